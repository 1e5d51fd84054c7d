"""A folder of images as a video: PNG, JPEG, WebP and BMP, recognised by content, in natural order (2 before 10)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from videollm_mod.types import InputError
from videollm_mod.video.decode import MAX_PIXELS, Picture
from videollm_mod.video.pixels import over_black

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # promise an image; content decides
DECODERS = ("PNG", "JPEG", "WEBP", "BMP")  # nothing else of what Pillow reads is tried


class ImageFolder:
    """The images of a folder, or one image, each shown for `period` seconds. Reads one at a time."""

    live, duration_sure = False, True

    def __init__(self, path: Path, name: str, fps: float) -> None:
        self.name, self.source_fps = name, fps
        self.warnings: list[str] = []
        self.frames_decoded = 0
        self._unreadable: list[str] = []
        try:
            files = sorted(path.iterdir(), key=_natural) if path.is_dir() else [path]
            visible = [file for file in files if not file.name.startswith(".")]
            self._files = [file for file in visible if is_image(file)]
        except OSError as error:
            raise InputError(f"{name} cannot be read ({error.strerror}); change its permissions.") from error
        images = set(self._files)
        misnamed = [file for file in visible if file.suffix.lower() in SUFFIXES and file not in images]
        misnamed = [file for file in misnamed if file.is_file()]
        if not self._files:
            but = f" ({misnamed[0].name} is only named like one)" if misnamed else ""
            raise InputError(f"the folder {name} holds no image{but}; put PNG, JPEG, WebP or BMP files into it.")
        if misnamed:
            which = _counted(misnamed, "file that is only named like an image", "files that are only named like images")
            self.warnings.append(f"{name}: {which}: {misnamed[0].name}")
        self.duration: float | None = len(self._files) / fps
        first = next((image for file in self._files if (image := self._read(file)) is not None), None)
        if first is None and len(self._files) == 1:
            raise InputError(f"the only image of {name} cannot be read: {self._unreadable[0]}")
        if first is None:
            raise InputError(f"not one of the {len(self._files)} images of {name} can be read: {self._unreadable[0]}")
        self.height, self.width = first.shape[:2]
        self._unreadable.clear()
        self.frames_decoded = 0

    def pictures(self, start: float = 0.0) -> Iterator[Picture]:
        """One picture per readable image; the n-th file is shown at n / fps even if others cannot be read."""
        for number in range(int(start * self.source_fps), len(self._files)):
            image = self._read(self._files[number])
            if image is not None:
                yield Picture(number / self.source_fps, 1 / self.source_fps, partial(np.asarray, image))

    def finish(self, complete: bool, hung_up: bool) -> None:
        """Put what went wrong into `warnings`, one sentence."""
        if self._unreadable:
            which = _counted(self._unreadable, "image", "images")
            self.warnings.append(f"{self.name}: {which}: {self._unreadable[0]}")

    def close(self) -> None:
        """Nothing is kept open between images."""

    def _read(self, file: Path) -> np.ndarray | None:
        try:
            image = read_image(file)
        except InputError as error:
            self._unreadable.append(str(error))
            return None
        self.frames_decoded += 1
        return image


def is_image(path: Path) -> bool:
    """True if the file begins as a PNG, JPEG, WebP or BMP does, whatever its name (raw Motion JPEG is a video)."""
    if not path.is_file() or path.suffix.lower() in (".mjpeg", ".mjpg"):
        return False
    with path.open("rb") as file:
        head = file.read(18)
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return True
    return (head[:4] == b"RIFF" and head[8:12] == b"WEBP") or (head[:2] == b"BM" and head[14:18] in _BMP_HEADERS)


_BMP_HEADERS = tuple(size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124))


def read_image(path: Path) -> np.ndarray:
    """(height, width, 3) uint8 RGB, upright by its EXIF flag, over black; InputError if broken or over MAX_PIXELS."""
    try:
        with Image.open(path, formats=DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise InputError(f"{path} has {size} pixels; scale it to at most {MAX_PIXELS} pixels first.")
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):  # 16-bit grey, which Pillow would clip at 255 instead of scaling
                grey = (np.asarray(upright).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            if upright.has_transparency_data:
                return over_black(np.asarray(upright.convert("RGBA")))
            return np.array(upright.convert("RGB"))
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on broken data
        raise InputError(f"{path} cannot be read as an image ({reason_of(error)}); remove or replace it.") from error


def _counted(things: Sequence[object], one: str, many: str) -> str:
    """ "1 image was left out", "3 images were left out, the first"."""
    return f"1 {one} was left out" if len(things) == 1 else f"{len(things)} {many} were left out, the first"


def reason_of(error: Exception) -> str:
    """One line of what Pillow said."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _natural(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", path.name.casefold())  # text and digits in turn, so equal places compare
    return [int(part) if number % 2 else part for number, part in enumerate(parts)], path.name
