"""What FFmpeg is given to open, and what it may open: bytes of a file, an address, a capture device or a pipe.

FFmpeg opens far more than videos (playlists that name other files, text as terminal art, nested protocols), so only
the containers in `FORMATS` and the protocols that the caller names can be reached from here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, Any

import av

from videollm_mod.types import InputError

FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,gif,ivf,nut,mxf,wtv,dv,rm,h264,hevc,av1,obu,m4v,mpegvideo,vc1,"
    "yuv4mpegpipe,mjpeg,mpjpeg,jpeg_pipe,png_pipe,apng,wav,mp3,aac,flac,aiff"  # the last five: to say "sound only"
)


class Pipe:
    """A stream of bytes for FFmpeg: hands on what has come, and remembers Ctrl-C, which FFmpeg would swallow."""

    def __init__(self, stream: IO[bytes], close: bool = True) -> None:
        self._read = getattr(stream, "read1", stream.read)
        self._stream, self._close = stream, close
        self.interrupted = False

    def read(self, size: int) -> bytes:
        try:
            return self._read(size)
        except KeyboardInterrupt:
            self.interrupted = True
            return b""

    def close(self) -> None:
        if self._close:
            self._stream.close()


@dataclass(frozen=True)
class Address:
    """What to hand to FFmpeg."""

    url: str | Pipe
    name: str  # for people: no password in it
    protocols: str = "file"
    formats: str = FORMATS
    format: str | None = None  # a capture device's input format
    options: dict[str, str] = field(default_factory=dict)
    timeout: tuple[float, float] | None = None  # seconds to open, to read
    live: bool = False
    seekable: bool = True


def open_container(address: Address) -> Any:
    """The open av.container.InputContainer; InputError with the mend if it cannot be opened."""
    if address.format is not None:
        limits: dict[str, str] = {}  # a capture device, named by us
    elif isinstance(address.url, str):
        limits = {"format_whitelist": address.formats, "protocol_whitelist": address.protocols}
    else:  # the bytes come from Python; FFmpeg opens nothing
        limits = {"format_whitelist": address.formats, "protocol_whitelist": "none"}
    try:
        return av.open(
            address.url, format=address.format, options={**limits, **address.options}, timeout=address.timeout,
            metadata_errors="replace",
        )  # fmt: skip
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(address.url, Pipe):
            address.url.close()
            if address.url.interrupted:
                raise KeyboardInterrupt from error
        raise InputError(_refusal(address, error)) from error


def _refusal(address: Address, error: Exception) -> str:
    why = f"{address.name} cannot be opened ({reason(error)})"
    if address.format is not None:
        return f"{why}; check that it is plugged in and that nobody else uses it."
    if not address.seekable:
        return f"{why}, perhaps since it cannot be read as it comes; send MPEG-TS, Matroska or fast-start MP4."
    if address.protocols != "file":
        return f"{why}; check the address and the network."
    if isinstance(error, av.InvalidDataError | av.ArgumentError):  # the latter: a format that is not in FORMATS
        return f"{address.name} is not a video, or its beginning or index is missing; give a whole video file."
    if isinstance(error, av.EOFError):
        return f"{address.name} holds not a single picture, it ends before the first; record or copy it again."
    return f"{why}; check the file and its permissions."


def reason(error: BaseException) -> str:
    """FFmpeg's or the system's words for an error, without the address (it may hold a password)."""
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
