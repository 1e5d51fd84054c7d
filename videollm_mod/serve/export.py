"""What was said in a stream as a file: JSON lines, SubRip subtitles, or its pictures with the sentences burned in."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from videollm_mod.serve.store import Store, Stored
from videollm_mod.stream.sinks import SrtSink, event_to_json
from videollm_mod.types import Frame, InputError

TYPES = {"jsonl": "application/x-ndjson", "srt": "application/x-subrip", "mp4": "video/mp4"}


def jsonl(said: Sequence[Stored]) -> bytes:
    """One event a line, as `watch --jsonl` writes them."""
    return "".join(event_to_json(one.event) + "\n" for one in said).encode()


def srt(said: Sequence[Stored]) -> bytes:
    """Subtitles, in the order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.srt"
        with SrtSink(path) as sink:
            for one in sorted(said, key=lambda one: (one.event.time, one.number)):
                sink.event(one.event)
        return path.read_bytes() if path.exists() else b""


def mp4(store: Store, stream: str, said: Sequence[Stored], fps: float, grid: tuple[int, int], path: Path) -> None:
    """The stored pictures with what was said below them. Raises InputError if none is stored."""
    from videollm_mod.show.overlay import VideoSink, fit

    times = store.frame_times(stream)
    if not times:
        raise InputError("no pictures of this stream are stored; open it with store_frames to export it as video.")
    waiting = sorted(said, key=lambda one: (one.event.time, one.number))
    size: tuple[int, int] | None = None
    with VideoSink(path, fps, grid) as sink:
        for index, (number, when) in enumerate(times):
            while waiting and waiting[0].event.time <= when:
                sink.event(waiting.pop(0).event)
            image = np.asarray(Image.open(io.BytesIO(store.picture(number))).convert("RGB"))
            size = size or (image.shape[1], image.shape[0])
            image, _ = fit(image, *size)  # a camera may change its size on the way
            sink.frame(Frame(np.ascontiguousarray(image), when, index), SimpleNamespace(kept={}))
        for one in waiting:
            sink.event(one.event)
