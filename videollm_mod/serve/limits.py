"""What a client may send: bytes and pixels of pictures, read from their headers before anything is decoded; rates."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError

from videollm_mod.types import InputError

FORMATS = ("JPEG", "PNG", "WEBP")  # by content; nothing else of what Pillow reads is tried


@dataclass(frozen=True)
class Bounds:
    """Bounds on what one client may cost."""

    frame_bytes: int = 2 * 2**20
    frame_pixels: int = 4096 * 2304
    question_characters: int = 500
    questions_waiting: int = 8
    messages_per_second: float = 60.0
    message_bytes: int = 16 * 2**10  # of JSON
    streams_per_client: int = 8
    stream_seconds: float = 24 * 3600.0
    body_bytes: int = 64 * 2**20  # of a request to /v1/chat/completions
    video_seconds: float = 600.0  # of a whole video there
    pictures: int = 64  # there


class TooLarge(InputError):
    """More bytes or pixels than allowed."""


def open_picture(data: bytes, bounds: Bounds) -> Image.Image:
    """A picture whose header has been read and found acceptable; its pixels are not decoded yet. Raises InputError."""
    if len(data) > bounds.frame_bytes:
        raise TooLarge(f"the picture has {len(data)} bytes; send at most {bounds.frame_bytes}.")
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        raise TooLarge(f"the picture has too many pixels; send at most {bounds.frame_pixels}.") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError):
        raise InputError("the picture is neither JPEG, PNG nor WebP; send one of these.") from None
    width, height = picture.size
    if width * height > bounds.frame_pixels:
        raise TooLarge(f"the picture has {width} x {height} pixels; send at most {bounds.frame_pixels} in all.")
    if not width or not height:
        raise InputError("the picture is empty; send one with pixels.")
    return picture


def decode_picture(data: bytes, bounds: Bounds) -> np.ndarray:
    """(height, width, 3) uint8 RGB. Raises InputError for what is too large, cut off, or no picture."""
    picture = open_picture(data, bounds)
    try:
        return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError):
        raise InputError("the picture is damaged or cut off; send it whole.") from None


class Rate:
    """A token bucket: `per_second` on average, at once up to twice as many."""

    def __init__(self, per_second: float) -> None:
        self.per_second, self._tokens, self._last = per_second, 2 * per_second, time.monotonic()

    def allows(self, cost: float = 1.0) -> bool:
        now = time.monotonic()
        self._tokens = min(2 * self.per_second, self._tokens + (now - self._last) * self.per_second)
        self._last = now
        if self._tokens < cost:
            return False
        self._tokens -= cost
        return True
