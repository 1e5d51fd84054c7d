"""The narration as one picture: for every sentence the frame that it was said of, with time and words below.

videollm-mod watch clip.mp4 --strip strip.png
"""

from __future__ import annotations

import warnings
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from videollm_mod.files import atomic_write, naming
from videollm_mod.show.clock import clock
from videollm_mod.show.overlay import CELL, GAP, GREY, fit
from videollm_mod.show.text import INK, WHITE, font, text_size, wrap
from videollm_mod.stream.sinks import FileSink
from videollm_mod.types import Frame, StreamEvent

COLUMNS = 6
MOST = 60  # sentences on a picture; of a longer stream it shows the newest
TIME, WORDS = 14, 15  # font sizes


@dataclass(frozen=True)
class Shot:
    """A frame, and what was said of it."""

    image: np.ndarray  # (H, W, 3) uint8
    time: float  # seconds
    texts: tuple[str, ...]


def draw_strip(shots: list[Shot], cell: int = CELL) -> np.ndarray:
    """Shots in reading order, at most COLUMNS in a row, each `cell` pixels wide. Returns (H, W, 3) uint8 on white.

    The first shot's aspect is everybody's. A row is as high as its longest words need.
    """
    height, width = shots[0].image.shape[:2]
    tall = max(16, round(cell * height / width))
    rows = [shots[first : first + COLUMNS] for first in range(0, len(shots), COLUMNS)]
    lines = [[[part for text in shot.texts for part in wrap(text, WORDS, cell)] for shot in row] for row in rows]
    time_step, step = text_size("", TIME)[1], text_size("", WORDS)[1]
    heights = [tall + GAP + time_step + max(map(len, row)) * step + 2 * GAP for row in lines]
    canvas = Image.new("RGB", (GAP + min(len(shots), COLUMNS) * (cell + GAP), GAP + sum(heights)), WHITE)
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for row, words, high in zip(rows, lines, heights):
        for column, (shot, parts) in enumerate(zip(row, words)):
            x, y = GAP + column * (cell + GAP), top + tall + GAP
            canvas.paste(Image.fromarray(fit(shot.image, cell, tall)[0]), (x, top))
            draw.text((x, y), clock(shot.time), font=font(TIME), fill=GREY)
            for number, part in enumerate(parts):
                draw.text((x, y + time_step + number * step), part, font=font(WORDS, part), fill=INK)
        top += high
    return np.asarray(canvas)


class StripSink(FileSink):
    """The sink (see stream/sinks.py) that collects a shot for every frame something was said of, and draws at the end.

    Narrations of one frame share a shot, an answer has its own. Where nothing was said, the picture is the last frame
    and says so.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._shots: deque[Shot] = deque(maxlen=MOST)
        self._said: list[str] = []  # of the frame that comes next
        self._newest: tuple[np.ndarray, float] | None = None  # of the frames
        self._left_out = 0
        self._finished = False

    def finish(self) -> None:
        """Draw the picture."""
        if self._newest is None or self._finished:
            return
        self._finished = True
        if self._left_out:
            message = f"the picture {self.path} shows the last {MOST} shots; {self._left_out} earlier ones are left out"
            warnings.warn(message, stacklevel=1)
        shots = list(self._shots) or [Shot(*self._newest, ("Nothing was said.",))]
        file = self._stack.enter_context(atomic_write(self.path, binary=True, keep_on_interrupt=True))
        picture = Image.fromarray(draw_strip(shots))
        with naming(self.path):
            picture.save(file, format=Image.registered_extensions()[self.path.suffix.lower()])
            file.flush()

    def event(self, event: StreamEvent) -> None:
        if event.question is None:
            self._said.append(event.text)  # of a frame that comes in a moment
        elif self._newest is not None:  # an answer is about what was seen
            self._take(*self._newest, f"{event.question} {event.text}")

    def frame(self, frame: Frame, session: Any = None) -> None:
        height, width = frame.image.shape[:2]
        scale = min(1.0, CELL / width)
        small, _ = fit(frame.image, round(width * scale), max(1, round(height * scale)))
        self._newest = (small.copy(), frame.time)
        if self._said:
            self._take(*self._newest, *self._said)
            self._said.clear()

    def _take(self, image: np.ndarray, time: float, *texts: str) -> None:
        self._left_out += len(self._shots) == MOST
        self._shots.append(Shot(image, time, texts))
