"""`videollm-mod show SOURCE`: which tokens each routed layer keeps, as an overlay video and as one picture.

    videollm-mod show clip.mp4 --video kept.mp4 --picture kept.png

Like cli.py it stands at the right end of the line: it runs the loop of `watch` with other sinks.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videollm_mod.watch import StreamFlags, run

if TYPE_CHECKING:
    from videollm_mod.stream.session import StreamSession
    from videollm_mod.stream.sinks import Sink
    from videollm_mod.video import VideoSource

HOME = Path("out/show")  # of what is drawn if no output is named


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
        from videollm_mod.show.sheet import SheetSink

        plan = session.model.plan
        if not session.model.told_layers:
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
