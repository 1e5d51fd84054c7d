"""`videollm-mod show SOURCE`: which tokens each routed layer keeps, as an overlay video and as one picture.

    videollm-mod show clip.mp4 --video kept.mp4 --picture kept.png

Like cli.py it stands at the right end of the line: it runs the loop of `watch` with other sinks.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from videollm_mod.watch import StreamFlags, run

if TYPE_CHECKING:
    import numpy as np

    from videollm_mod.stream.session import StreamSession
    from videollm_mod.stream.sinks import Sink
    from videollm_mod.types import Frame, StreamEvent
    from videollm_mod.video import VideoSource

HOME = Path("out/show")  # of what is drawn if no output is named
SPARE = 8  # frames held for each one drawn, so that those drawn are evenly spread


@dataclass(frozen=True)
class ShowConfig(StreamFlags):
    """Draw the kept tokens; without --video and --picture both, in out/show."""

    video: Path | None = None
    """Write the overlay video (mp4) here."""
    picture: Path | None = None
    """Write one picture (png) here: frames across, routed layers down."""
    frames: int = 8
    """How many frames the picture shows, evenly spread from the first to the last."""


def show(config: ShowConfig) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""
    from videollm_mod.types import InputError

    if config.frames < 1:
        raise InputError(f"--frames {config.frames} is too few; give 1 or more.")
    if config.video is None and config.picture is None:
        config = _named(config)

    def sinks(video: VideoSource, session: StreamSession) -> list[Sink]:
        from videollm_mod.show.overlay import VideoSink

        plan = session.model.plan
        if not plan.routed(session.model.num_layers):
            message = f"no layer is routed (plan {plan.layers}), so there is nothing to see but the frames"
            warnings.warn(message, stacklevel=1)
        made: list[Sink] = []
        if config.video is not None:
            made.append(VideoSink(config.video, video.fps, session.grid))
        if config.picture is not None:
            made.append(SheetSink(config.picture, session.grid, config.frames))
        return made

    return run(config, {"video": config.video, "picture": config.picture}, sinks, record_kept=True)


def _named(config: ShowConfig) -> ShowConfig:
    """Both outputs, in out/show, called as the source is: clip.mp4 and clip.png."""
    HOME.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w-]+", "_", Path(config.source.rstrip("/")).stem).strip("_") or "stream"
    return dataclasses.replace(config, video=HOME / f"{name}.mp4", picture=HOME / f"{name}.png")


class SheetSink:
    """Collects frames and their kept sets, and draws the sheet at the end, also after Ctrl-C.

    A stream's length is not known before its end: every `stride`-th frame is held, and when there are too many, every
    second of them goes and the stride doubles. The newest frame is always held, as the sheet ends with it.
    """

    def __init__(self, path: Path, grid: tuple[int, int], columns: int) -> None:
        self.path, self.grid, self.columns = path, grid, columns
        self.held: list[Held] = []
        self._newest: Held | None = None
        self._stride, self._seen = 1, 0
        self._finished = False
        self._stack = ExitStack()  # holds the file: gives it its name, or not

    def __enter__(self) -> SheetSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.finish()
        self._stack.__exit__(kind, error, trace)

    def event(self, event: StreamEvent) -> None:
        """The picture shows no words."""

    def frame(self, frame: Frame, session: Any) -> None:
        from videollm_mod.show.overlay import CELL, fit

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
        from PIL import Image

        from videollm_mod.files import atomic_write, naming
        from videollm_mod.show.overlay import kept_sheet

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


@dataclass(frozen=True)
class Held:
    """A frame that may be drawn."""

    number: int  # among all frames of the stream, from 0
    image: np.ndarray  # (H, W, 3) uint8, as wide as the sheet shows it or less
    kept: dict[int, np.ndarray]  # routed layer -> (1 + h*w,) bool
    time: float  # seconds
