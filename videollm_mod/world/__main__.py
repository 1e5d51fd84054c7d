"""How long the world takes: python -m videollm_mod.world; the last line is JSON, processor milliseconds per frame.

Measured in this process's own time, so that other work on the machine hardly matters.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from videollm_mod.world.config import WorldConfig
from videollm_mod.world.h264 import compress
from videollm_mod.world.stream import WorldStream, make_stream


def measure(config: WorldConfig, streams: int) -> dict[str, float]:
    """Mean milliseconds per frame of each stage, over the first training streams."""

    def clock(work: Callable[[], list]) -> tuple[list, float]:
        start = time.process_time()
        done = work()
        return done, (time.process_time() - start) * 1000 / (streams * config.frame_count)

    def script() -> list[WorldStream]:
        made = [make_stream("train", number, config) for number in range(streams)]
        return [stream for stream in made if stream.questions is not None]

    make_stream("train", 0, config).frames()  # fills the noise pool
    worlds, scripted = clock(script)
    pictures, drawn = clock(lambda: [np.stack([world.render(t) for t in world.times]) for world in worlds])
    _, coded = clock(lambda: [compress(frames, world.crf) for frames, world in zip(pictures, worlds)])
    total = scripted + drawn + coded
    return {"script_ms": scripted, "draw_ms": drawn, "h264_ms": coded, "total_ms": total}


if __name__ == "__main__":
    result = {size: measure(WorldConfig(size=size), streams) for size, streams in ((112, 40), (448, 4))}
    print(json.dumps({size: {name: round(ms, 3) for name, ms in row.items()} for size, row in result.items()}))
