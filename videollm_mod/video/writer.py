"""Write RGB pictures as an H.264 MP4 that plays everywhere (yuv420p, index in front), whole or not at all."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from videollm_mod.files import check_writable, publish, temporary_name
from videollm_mod.types import InputError

TICKS = 90_000  # per second: a time base in which 24, 25, 30 and 60 frames per second are whole
BT709, LIMITED_RANGE = 1, 1  # ISO/IEC 23091-2 codes


class VideoWriter:
    """Writes frames to `path`, which appears under its name on `close` only.

    As a context manager: a block that ends well, or by Ctrl-C, leaves a valid file; any other exception leaves none
    (and an older file of that name as it was). Without a single frame written there is no file either.
    """

    def __init__(self, path: str | Path, fps: float, *, crf: int = 20) -> None:
        """fps: frames per second where `write` is given no time; crf: x264 quality, 0 best to 51 worst.

        Raises InputError if the file cannot be written there or is not to be an .mp4.
        """
        if not (math.isfinite(fps) and fps > 0):
            raise InputError(f"fps {fps:g} makes no sense for a video; give a number above 0.")
        if Path(path).suffix.lower() != ".mp4":
            raise InputError(f"cannot write {path}: videos are written as MP4; give a name that ends in .mp4.")
        self.path, self.fps, self._crf = check_writable(path), fps, crf
        if self.path.exists() and not self.path.is_file():
            raise InputError(f"cannot write {path}: it is a device or a pipe; give the name of a file.")
        self._temporary = temporary_name(self.path)
        self._container: Any = None
        self._stream: Any = None
        self._size = (0, 0)  # height, width of the pictures given
        self._first: float | None = None  # time of the first frame, which becomes 0 in the file
        self._last = 0.0
        self._finished = self._closed = False  # the file is whole; it has its name, or never gets it
        self.frames = 0

    def write(self, image: np.ndarray, time: float | None = None) -> None:
        """Append one picture, (height, width, 3) uint8 RGB, all of one size; an odd size gets its last line doubled.

        time: seconds, above the one before; None: 1 / fps after the one before. Raises ValueError for other shapes,
        a size that changes, or a time that does not increase; InputError if the disk is full.
        """
        if self._closed:
            raise ValueError(f"{self.path} is closed already")
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"pictures are (height, width, 3) uint8, not {image.shape} {image.dtype}")
        if self._size not in ((0, 0), image.shape[:2]):
            raise ValueError(f"{self.path} has pictures of {self._size}, not {image.shape[:2]}")
        if time is None:
            time = 0.0 if self._first is None else self._last + 1 / self.fps
        if self._first is None:
            self._first = time
        elif time - self._last < 1 / TICKS:
            raise ValueError(f"time {time} does not lie after {self._last}")
        height, width = image.shape[:2]
        even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")  # yuv420p halves both
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
        frame.pts, frame.time_base = round((time - self._first) * TICKS), Fraction(1, TICKS)
        frame.duration = round(TICKS / self.fps)  # what the last frame is shown for
        try:
            if self._container is None:
                self._open(even.shape[0], even.shape[1])
                self._size = (height, width)
            self._container.mux(self._stream.encode(frame))
        except (av.FFmpegError, OSError) as error:
            self.discard()
            raise self._full(error) from error
        self._last = time
        self.frames += 1

    def finish(self) -> None:
        """Write what is left; the file is whole, and has not got its name yet. May be called again."""
        if self._closed or self._finished or self._container is None:
            return
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._finished = True
        except (av.FFmpegError, OSError) as error:
            self.discard()
            raise self._full(error) from error

    def close(self) -> None:
        """Finish the file and give it its name; may be called again."""
        self.finish()
        if not self._closed and self._finished:
            try:
                publish(self._temporary, self.path)
            except OSError as error:
                raise self._full(error) from error
            finally:
                self.discard()
        self._closed = True

    def _full(self, error: Any) -> InputError:
        return InputError(f"cannot write {self.path}: {error.strerror}; free some space or choose another place.")

    def discard(self) -> None:
        """Give up: what has not got its final name is removed."""
        self._closed = True
        if self._container is not None and not self._finished:
            try:
                self._container.close()
            except (av.FFmpegError, OSError):
                pass  # the disk that failed once fails again
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.discard()

    def _open(self, height: int, width: int) -> None:
        self._container = av.open(str(self._temporary), "w", format="mp4", options={"movflags": "+faststart"})
        stream = self._container.add_stream("libx264", rate=Fraction(self.fps).limit_denominator(TICKS))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = BT709  # unstated, players would guess by size
        codec.color_range = LIMITED_RANGE
        # B-frames at a variable rate make FFmpeg's muxer write too short a duration, at which players stop
        stream.options = {"crf": str(self._crf), "preset": "veryfast", "bf": "0"}
        self._stream = stream
