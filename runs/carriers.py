"""Behind how many carriers does a model still speak well? F1 under the policy `carrier` with a bound of 4, 16, 64, ...

    python runs/carriers.py --out docs/results/carriers.json       # a quarter of an hour on one core
    python runs/carriers.py --minutes 2 --most 4 16 --streams 1    # to see that it works

Streams of the world's validation split, what is said in the first minute left out: by then there are carriers. Beside
them the model's own window and the policy `window`. No budget. The last stdout line is the JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
import tyro
from torch import Tensor

from videollm_mod.bench.measure import progress, rounded
from videollm_mod.evaluate.metrics import Said, match, precision_recall_f1
from videollm_mod.evaluate.result import versions
from videollm_mod.evaluate.streams import features_of
from videollm_mod.evaluate.summary import true_narration
from videollm_mod.files import atomic_write
from videollm_mod.model import StreamingVideoLM, load
from videollm_mod.stream.memory import Policy
from videollm_mod.stream.policies.carrier import TOKENS, Carrier
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import FrameTokens
from videollm_mod.world import WorldConfig, WorldStream, make_stream

SPARED = 60.0  # seconds at the beginning that do not count


@dataclass(frozen=True)
class Carriers:
    """F1 behind so many carriers."""

    model: str = "tiny"
    """A bundled model of the coloured shapes, or a model's folder."""
    most: tuple[int, ...] = (4, 16, 64, 256)
    """Bounds on the carriers."""
    streams: int = 2
    """How many of the validation split."""
    minutes: float = 5.0
    """Length of each."""
    out: Path | None = None
    """Write the JSON here, too."""


def f1(model: StreamingVideoLM, films: list[tuple[WorldStream, Tensor]], policy: str | Policy | None) -> dict[str, Any]:
    """How well the model narrates the streams, pooled."""
    right = said = true = 0
    for stream, tokens in films:
        session, heard = StreamSession(model, policy=policy), list[Said]()
        for number, (time, each) in enumerate(zip(stream.times.tolist(), tokens)):
            events = session.push_tokens(FrameTokens(each, session.grid, time, number))
            heard += [Said(event.time, event.text) for event in events if event.time >= SPARED]
        told = [item for item in true_narration(stream) if item.time >= SPARED]
        right, said, true = right + len(match(heard, told)), said + len(heard), true + len(told)
    return {"f1": precision_recall_f1(right, said, true)[2], "said": said, "events": true}


def main(config: Carriers) -> None:
    torch.set_num_threads(1)
    model = load(config.model)
    world = WorldConfig(60 * config.minutes, fps=model.settings.fps, size=model.encoder.tower.image_size)
    streams = [make_stream("validation", number, world) for number in range(config.streams)]
    with torch.inference_mode():
        films = [(stream, features_of(model, stream)) for stream in streams]
    window = Carrier.after if model.settings.window is None else model.settings.window
    policies: dict[str, str | Policy | None] = {"own": None, "window": "window"}
    policies |= {f"{token} {most}": Carrier(window, token, most=most) for token in TOKENS for most in config.most}
    rows: dict[str, Any] = {}
    for name, policy in policies.items():
        rows[name] = f1(model, films, policy)
        progress(f"{name:12} F1 {rows[name]['f1']:.3f}, said {rows[name]['said']} of {rows[name]['events']}")
    result = rounded({"rows": rows, "streams": [s.name for s in streams], "minutes": config.minutes, **versions()})
    line = json.dumps(result)
    if config.out is not None:
        with atomic_write(config.out) as file:
            file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main(tyro.cli(Carriers))
