"""`open_video`: a file, a folder of images, an address, a camera or a pipe as one stream of frames in time.

Only http, https and rtsp addresses reach FFmpeg's network code; everything else is a local path, whatever colons it
holds, and FFmpeg's other protocols and playlist formats are out of reach (see opening.py).
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol
from urllib.parse import urlsplit

import numpy as np

from videollm_mod.types import Frame, InputError
from videollm_mod.video.decode import Decoder, Picture
from videollm_mod.video.images import ImageFolder, is_image
from videollm_mod.video.opening import FORMATS, Address, Pipe
from videollm_mod.video.timing import TOLERANCE, on_grid

DEFAULT_FPS = 2.0
NETWORK_TIMEOUT = (10.0, 20.0)  # s to open, to wait for more data
_HTTP = "http,https,tcp,tls,crypto"  # crypto: encrypted HLS segments
PROTOCOLS = {"http": _HTTP, "https": _HTTP, "rtsp": "rtsp,rtp,rtcp,srtp,udp,tcp,tls"}
CAMERA_FORMATS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}


class Reader(Protocol):
    """What stands behind a VideoSource: a Decoder or an ImageFolder."""

    name: str
    source_fps: float
    duration: float | None
    duration_sure: bool
    width: int
    height: int
    live: bool
    warnings: list[str]
    frames_decoded: int

    def pictures(self, start: float = 0.0) -> Iterator[Picture]: ...
    def finish(self, complete: bool, hung_up: bool) -> None: ...
    def close(self) -> None: ...


class VideoSource:
    """An open video: iterate over its frames once; close it, or use it as a context manager.

    name            for people (a password in an address is hidden)
    fps             frames per second of video time that come out; None was asked: the source's own
    source_fps      frames per second of the source (its average; 25 where it states none)
    duration        seconds, or None if unknown; an estimate for MPEG streams, exact for MP4, MOV, Matroska and AVI
    width, height   of the first picture, upright and with square pixels; a stream may change size on its way
    live            pictures come at their own pace and are lost if nobody takes them
    warnings        one sentence each; those about damage come when the iteration ends
    frames_decoded  pictures decoded so far, used or not

    Frame.time: at a target rate the grid time k / fps, with the picture on the screen at that time; at the source's
    own rate the picture's presentation time. Both count from the source's first picture, also if `start` is given,
    and increase strictly. Belongs to one thread.
    """

    def __init__(self, reader: Reader, fps: float | None, start: float, end: float | None) -> None:
        self._reader = reader
        self.name, self.source_fps, self.duration = reader.name, reader.source_fps, reader.duration
        self.width, self.height, self.live = reader.width, reader.height, reader.live
        self.warnings = reader.warnings
        self._start, self._end = start, end
        self._native = fps is None or fps >= reader.source_fps
        self.fps = reader.source_fps if fps is None else min(fps, reader.source_fps)
        if fps is not None and fps > reader.source_fps * 1.005:  # 30 for 29.97 is not worth a word
            self.warnings.append(
                f"{self.name} has {reader.source_fps:.4g} frames per second, fewer than the {fps:.4g} asked for: "
                "each of its frames is used once"
            )
        self._closed = False
        self._frames = self._produce()

    @property
    def frames_decoded(self) -> int:
        """Pictures decoded so far, used or not."""
        return self._reader.frames_decoded

    def __iter__(self) -> VideoSource:
        return self

    def __next__(self) -> Frame:
        return next(self._frames)

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the file, socket or device; may be called again. No frame comes afterwards."""
        if not self._closed:
            self._closed = True
            self._frames.close()
            self._reader.close()

    def _produce(self) -> Generator[Frame]:  # a generator: close() runs its `finally`
        complete, hung_up, index, last, time = False, False, 0, None, 0.0
        try:
            for time, picture in self._chosen():
                image = picture.rgb()
                if picture is last:  # held on the screen: a copy, so that drawing on one frame leaves the next alone
                    image = np.array(image)
                last = picture
                yield Frame(image, time, index)
                index += 1
            complete = self._end is None
            hung_up = self.live and (self._end is None or time + 2 / self.fps < self._end)
        finally:
            if complete or index or self._closed:
                self._reader.finish(complete, hung_up)
        if index == 0:
            self._reader.close()
            raise InputError(
                f"{self.name} shows nothing from {self._start:g} s"
                + ("" if self._end is None else f" to {self._end:g} s")
                + "; give an earlier start or a later end."
            )

    def _chosen(self) -> Iterator[tuple[float, Picture]]:
        pictures = self._reader.pictures(self._start)
        if not self._native:
            timed = ((picture.time, picture.duration, picture) for picture in pictures)
            yield from on_grid(timed, self.fps, self._start, self._end, self.live)
            return
        for picture in pictures:
            if self._end is not None and picture.time >= self._end:
                return
            if picture.time >= self._start - TOLERANCE:
                yield picture.time, picture


def open_video(
    source: str | Path, *, fps: float | None = DEFAULT_FPS, start: float = 0.0, end: float | None = None
) -> VideoSource:
    """Open any video as a stream of RGB frames.

    source  a video file, an image, a folder of images, an http(s) or rtsp address, "camera:0", or "-" for a video
            piped into standard input; a Path is always a file or folder
    fps     frames per second of video time; None: every frame of the source. A folder shows `fps` images per second (2)
    start   seconds from the source's first picture; frames before it are left out
    end     seconds; frames at this time or later are left out

    Raises InputError, one sentence with the mend, if there is nothing to see or an argument makes no sense.
    """
    _check_times(fps, start, end)
    reader = _open_reader(source, fps)
    if reader.duration is not None and reader.duration_sure and start >= reader.duration:
        reader.close()
        raise InputError(
            f"start {start:g} s lies beyond the end of {reader.name} ({reader.duration:.1f} s); start earlier."
        )
    return VideoSource(reader, fps, start, end)


def _check_times(fps: float | None, start: float, end: float | None) -> None:
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise InputError(f"fps {fps:g} makes no sense; give a number above 0, such as {DEFAULT_FPS:g}.")
    if not (math.isfinite(start) and start >= 0):
        raise InputError(f"start {start:g} s makes no sense; give 0 or more seconds from the beginning.")
    if end is not None and not end > start:  # also for NaN
        raise InputError(f"end {end:g} s does not lie after start {start:g} s; give a later end.")


def _open_reader(source: str | Path, fps: float | None) -> Reader:
    text = str(source)
    if isinstance(source, str):
        if source == "-":
            return Decoder(_pipe())
        if source.startswith("camera:"):
            return Decoder(_camera(source))
        scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", source)
        if scheme:
            return Decoder(_network(source, scheme[1].lower()))
    if not text or "\0" in text:
        raise InputError(f"{text!r} names no video; give a file, a folder of images, an address, camera:0 or -.")
    path = Path(os.path.expanduser(text))
    try:
        kind = path.stat()
    except OSError as error:
        mend = "check the path" if isinstance(error, FileNotFoundError) else "check the path and its permissions"
        raise InputError(f"there is no video at {text} ({error.strerror}); {mend}.") from error
    if stat.S_ISFIFO(kind.st_mode):
        return Decoder(Address(Pipe(path.open("rb", buffering=0)), text, seekable=False))
    if not (path.is_dir() or path.is_file()):
        raise InputError(f"{text} is a device, not a video; for a camera give camera:0 or camera:1.")
    if path.is_file() and kind.st_size == 0:
        raise InputError(f"{text} is empty (0 bytes); copy or record it again.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{text} cannot be read (permission denied); change its permissions.")
    if path.is_dir() or is_image(path):
        return ImageFolder(path, text, fps or DEFAULT_FPS)
    return Decoder(Address("file:" + os.path.abspath(path), text))


def _network(source: str, scheme: str) -> Address:
    if scheme not in PROTOCOLS:
        raise InputError(
            f"addresses of the kind {scheme}:// are not opened; give http://, https://, rtsp:// or the path of a file."
        )
    try:
        parts = urlsplit(source)
        host, login = parts.hostname, parts.netloc.rpartition("@")[0]
    except ValueError as error:
        raise InputError(f"{source} is no valid address ({error}); check it.") from error
    if not host:
        raise InputError(f"{source} names no host; give an address such as {scheme}://host/video.mp4.")
    name = source.replace(login + "@", login.partition(":")[0] + ":***@", 1) if ":" in login else source
    if scheme == "rtsp":
        options, formats = {"rtsp_flags": "prefer_tcp"}, "rtsp,sdp,rtp,mpegts"
    else:
        options, formats = {}, FORMATS + ",hls"
    return Address(
        source, name, PROTOCOLS[scheme], formats, options=options, timeout=NETWORK_TIMEOUT, live=scheme == "rtsp"
    )


def _camera(source: str) -> Address:
    number = source.removeprefix("camera:")
    if not number.isdecimal() and sys.platform != "win32":
        raise InputError(f"{source} names no camera; give camera:0 for the first, camera:1 for the second.")
    format = CAMERA_FORMATS.get(sys.platform)
    if format is None:
        raise InputError(f"cameras cannot be opened on {sys.platform}; give a file or an rtsp:// address.")
    device = {"v4l2": f"/dev/video{number}", "avfoundation": f"{number}:none", "dshow": f"video={number}"}[format]
    if format == "v4l2" and not os.path.exists(device):
        raise InputError(f"{source} is not there (no {device}); plug a camera in, or give another number.")
    if format == "dshow" and number.isdecimal():
        device = f"video={_windows_camera(source, int(number))}"
    return Address(device, source, format=format, live=True, seekable=False)


def _windows_camera(source: str, number: int) -> str:
    """DirectShow knows cameras by name only."""
    from av.device import enumerate_input_devices

    cameras = [device.name for device in enumerate_input_devices("dshow") if "video" in device.media_types]
    if number >= len(cameras):
        raise InputError(f"{source} is not there ({len(cameras)} cameras found); plug one in, or give another number.")
    return cameras[number]


def _pipe() -> Address:
    stdin = None if sys.stdin is None else sys.stdin.buffer
    if stdin is None or stdin.isatty():
        raise InputError('"-" reads a video from standard input, but nothing is piped in; try `cat clip.mkv | ... -`.')
    return Address(Pipe(stdin, close=False), "standard input", seekable=False)
