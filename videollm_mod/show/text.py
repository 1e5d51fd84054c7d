"""Words on pictures: the bundled font, wrapping, labels.

The font is the one inside Pillow, which holds little more than ASCII; a line with other letters is set in the DejaVu
Sans inside matplotlib (Latin, Greek, Cyrillic, ..). No font is shipped or searched for. Neither has Chinese, Japanese
or Korean: such letters come out as boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

WHITE = (255, 255, 255)
INK = (14, 16, 20)  # near-black for bands and text on light badges
MUTED = (150, 156, 166)


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@lru_cache(maxsize=64)
def _font(size: int, wide: bool) -> Font:
    if not wide:
        return ImageFont.load_default(size=size)
    from matplotlib import get_data_path  # 0.2 s to import, and few lines need it

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", round(size * 0.92))


def font(size: int, text: str = "") -> Font:
    """A bundled font at `size` pixels that can write `text`."""
    return _font(size, not all(letter.isascii() or letter == "…" for letter in text))


def text_size(text: str, size: int) -> tuple[int, int]:
    """(width, height) in pixels of one line; the height is that of the font, the same for every text."""
    return round(font(size, text).getlength(text)), round(size * 1.25)


def wrap(text: str, size: int, width: int) -> list[str]:
    """`text` in lines of at most `width` pixels at font `size`; broken at spaces, and inside a word only if it must."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if text_size(joined, size)[0] <= width:
            line = joined
            continue
        if line:
            lines.append(line)
        while len(word) > 1 and text_size(word, size)[0] > width:
            cut = next((n for n in range(len(word) - 1, 1, -1) if text_size(word[:n], size)[0] <= width), 1)
            lines.append(word[:cut])
            word = word[cut:]
        line = word
    return [*lines, line] if line else lines


def fit_lines(lines: Sequence[str], size: int, width: int, room: int) -> list[str]:
    """All `lines` wrapped to `width`; of more than `room` the newest stay, with dots before them."""
    wrapped = [part for line in lines for part in wrap(line, size, width)]
    if len(wrapped) <= room:
        return wrapped
    if room < 1:
        return []
    first, *rest = wrapped[len(wrapped) - room :]
    words = f"… {first}"
    while text_size(words, size)[0] > width and " " in words:  # make place for the dots, at the old end
        words = "… " + words.split(" ", 2)[2] if words.count(" ") > 1 else "…"
    return [words, *rest]


def badge(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    size: int,
    ink: tuple[int, int, int] = WHITE,
    fill: tuple[int, ...] = (*INK, 200),
    anchor: str = "left",
) -> None:
    """A small rounded label with its top left (or, with anchor "right", top right) corner at `corner`."""
    pad = max(2, size // 3)
    width, height = text_size(text, size)
    x = corner[0] - (width + 2 * pad if anchor == "right" else 0)
    y = corner[1]
    draw.rounded_rectangle((x, y, x + width + 2 * pad, y + height + pad // 2), radius=max(2, size // 3), fill=fill)
    middle = y + (height + pad // 2) / 2 + 1
    draw.text((x + pad, middle), text, font=font(size, text), fill=ink, anchor="lm")
