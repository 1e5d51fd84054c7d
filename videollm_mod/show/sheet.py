"""The sheet: frames across, routed layers down, the kept tokens of each; what `show` writes as one picture."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from videollm_mod.files import atomic_write, naming
from videollm_mod.show.overlay import CELL, fit, kept_sheet
from videollm_mod.stream.sinks import FileSink
from videollm_mod.types import Frame, StreamEvent

SPARE = 8  # frames held for each one drawn, so that those drawn are evenly spread


@dataclass(frozen=True)
class Held:
    """A frame that may be drawn."""

    number: int  # among all frames of the stream, from 0
    image: np.ndarray  # (H, W, 3) uint8, as wide as the sheet shows it or less
    kept: dict[int, np.ndarray]  # routed layer -> (1 + h*w,) bool
    time: float  # seconds


class SheetSink(FileSink):
    """Collects frames and their kept sets, and draws the sheet at the end, also after Ctrl-C.

    A stream's length is not known before its end: every `stride`-th frame is held, and when there are too many, every
    second of them goes and the stride doubles. The newest frame is always held, as the sheet ends with it.
    """

    def __init__(self, path: Path, grid: tuple[int, int], columns: int) -> None:
        super().__init__(path)
        self.grid, self.columns = grid, columns
        self.held: list[Held] = []
        self._newest: Held | None = None
        self._stride, self._seen = 1, 0
        self._finished = False

    def event(self, event: StreamEvent) -> None:
        """The picture shows no words."""

    def frame(self, frame: Frame, session: Any) -> None:
        height, width = frame.image.shape[:2]
        scale = min(1.0, CELL / width)
        small, _ = fit(frame.image, round(width * scale), max(1, round(height * scale)))
        kept = {layer: kept.copy() for layer, kept in session.kept.items()}
        self._newest = Held(self._seen, small.copy(), kept, frame.time)
        if self._seen % self._stride == 0:
            self.held.append(self._newest)
            if len(self.held) >= SPARE * self.columns + 1:
                self.held = self.held[::2]
                self._stride *= 2
        self._seen += 1

    def chosen(self) -> list[Held]:
        """The frames to draw: evenly spread, the first and the last among them; all if there are fewer than wanted."""
        last = self._newest
        if last is None:
            return []
        held = self.held if self.held[-1].number == last.number else [*self.held, last]
        count = min(self.columns, len(held))
        ideal = [last.number * place / max(count - 1, 1) for place in range(count)]
        return [min(held, key=lambda one: abs(one.number - number)) for number in ideal]

    def finish(self) -> None:
        """Draw the sheet."""
        if self._newest is None or self._finished:
            return
        self._finished = True
        chosen = self.chosen()
        if len(chosen) < self.columns:
            every = "the only frame" if len(chosen) == 1 else f"all {len(chosen)} frames"
            warnings.warn(f"--frames {self.columns} is more than there are: the picture shows {every}", stacklevel=1)
        images, kept, times = zip(*((one.image, one.kept, one.time) for one in chosen))
        sheet = Image.fromarray(kept_sheet(images, kept, self.grid, times))
        file = self._stack.enter_context(atomic_write(self.path, binary=True, keep_on_interrupt=True))
        with naming(self.path):
            sheet.save(file, format=Image.registered_extensions()[self.path.suffix.lower()])
            file.flush()
