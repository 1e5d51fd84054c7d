"""`videollm-mod show SOURCE`: which tokens each routed layer keeps, as an overlay video and as one picture.

    videollm-mod show clip.mp4 --video kept.mp4 --picture kept.png

Like cli.py it stands at the right end of the line: it runs the loop of `watch` with other sinks.
"""

from __future__ import annotations

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

WIDEST = 480  # pixels of a frame kept in memory for the picture


@dataclass(frozen=True)
class ShowConfig(StreamFlags):
    """Draw the kept tokens; give --video, --picture or both."""

    video: Path | None = None
    """Write the overlay video (mp4) here."""
    picture: Path | None = None
    """Write one picture (png) here: frames across, routed layers down."""
    frames: int = 8
    """How many frames the picture shows, evenly spread."""


def show(config: ShowConfig) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""
    from videollm_mod.types import InputError

    if config.video is None and config.picture is None:
        raise InputError("nothing to draw: give --video OUT.mp4, --picture OUT.png or both.")
    if config.picture is not None and config.picture.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--picture {config.picture} is not a picture's name; end it in .png.")
    if config.frames < 1:
        raise InputError(f"--frames {config.frames} is too few; give 1 or more.")

    def sinks(video: VideoSource, session: StreamSession) -> list[Sink]:
        from videollm_mod.show.overlay import VideoSink

        made: list[Sink] = []
        if config.video is not None:
            made.append(VideoSink(config.video, video.fps, session.grid))
        if config.picture is not None:
            made.append(SheetSink(config.picture, session.grid, config.frames))
        return made

    return run(config, {"video": config.video, "picture": config.picture}, sinks, record_kept=True)


class SheetSink:
    """Collects frames and their kept sets, and draws the sheet at the end, also after Ctrl-C.

    A stream's length is not known before its end: every `stride`-th frame is kept, and when there are twice as many as
    wanted, every second of them goes and the stride doubles.
    """

    def __init__(self, path: Path, grid: tuple[int, int], columns: int) -> None:
        self.path, self.grid, self.columns = path, grid, columns
        self.held: list[tuple[np.ndarray, dict[int, np.ndarray], float]] = []
        self._stride, self._seen = 1, 0

    def __enter__(self) -> SheetSink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held and (kind is None or issubclass(kind, KeyboardInterrupt)):
            self._draw()

    def event(self, event: StreamEvent) -> None:
        """The picture shows no words."""

    def frame(self, frame: Frame, session: Any) -> None:
        from videollm_mod.show.overlay import fit

        if self._seen % self._stride == 0:
            height, width = frame.image.shape[:2]
            scale = min(1.0, WIDEST / width)
            small, _ = fit(frame.image, round(width * scale), max(1, round(height * scale)))
            self.held.append((small.copy(), {layer: kept.copy() for layer, kept in session.kept.items()}, frame.time))
            if len(self.held) >= 2 * self.columns:
                self.held = self.held[::2]
                self._stride *= 2
        self._seen += 1

    def _draw(self) -> None:
        from PIL import Image

        from videollm_mod.files import atomic_write
        from videollm_mod.show.overlay import kept_sheet

        count = min(self.columns, len(self.held))
        chosen = [self.held[number * len(self.held) // count] for number in range(count)]
        images, kept, times = zip(*chosen)
        sheet = Image.fromarray(kept_sheet(images, kept, self.grid, times))
        with atomic_write(self.path, binary=True) as file:
            sheet.save(file, format=Image.registered_extensions()[self.path.suffix.lower()])
