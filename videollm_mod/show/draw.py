"""One picture: which cells of a frame were kept. Kept is bright inside an amber line, everywhere; the rest is dark.

The model sees a square; `box` says where that square lies on the picture, so that cells are drawn where they are even
when the square is larger than the picture (letterboxed) or smaller (cropped).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from videollm_mod.show.text import INK, MUTED, badge
from videollm_mod.types import InputError

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the picture; may reach beyond it
ACCENT = (255, 196, 46)  # outlines of kept cells
SHADE = 0.45  # brightness of what no layer keeps, where its colours still matter


@lru_cache(maxsize=16)
def cell_map(height: int, width: int, grid: tuple[int, int], box: Box) -> np.ndarray:
    """Which cell each pixel belongs to: (height, width) int32, raster number in 0..h*w-1, or -1 outside the box."""
    rows, columns = grid
    x0, y0, x1, y1 = box
    across = np.floor((np.arange(width) + 0.5 - x0) / (x1 - x0) * columns).astype(np.int32)  # (width,)
    down = np.floor((np.arange(height) + 0.5 - y0) / (y1 - y0) * rows).astype(np.int32)  # (height,)
    inside = ((down >= 0) & (down < rows))[:, None] & ((across >= 0) & (across < columns))[None, :]
    cells = np.where(inside, down[:, None] * columns + across[None, :], -1)
    cells.flags.writeable = False  # cached
    return cells


def _check(values: np.ndarray, grid: tuple[int, int], box: Box) -> None:
    if values.shape != (1 + grid[0] * grid[1],):
        raise InputError(
            f"kept has shape {values.shape}, but a {grid[0]} x {grid[1]} grid needs ({1 + grid[0] * grid[1]},): "
            f"CLS, then the cells in raster order."
        )
    if not (box[2] > box[0] and box[3] > box[1]):
        raise InputError(f"box {box} is empty; give (x0, y0, x1, y1) with x1 > x0 and y1 > y0.")


def _outline(mask: np.ndarray, thickness: int) -> np.ndarray:
    """The inner border of a mask, `thickness` pixels wide; the picture's edge counts as a border."""
    inner = np.pad(mask, thickness)
    for axis in (0, 1):  # a square erosion is two line erosions
        source = inner
        for shift in range(-thickness, thickness + 1):
            inner = inner & np.roll(source, shift, axis)
    return mask & ~inner[thickness:-thickness, thickness:-thickness]


def dimmed(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> the same, grey and dark: how skipped cells look."""
    luma = image @ np.asarray([0.299, 0.587, 0.114], dtype=np.float32)  # (H, W)
    return np.repeat((0.42 * luma + 14).astype(np.uint8)[..., None], 3, axis=2)


def draw_kept(image: np.ndarray, kept: np.ndarray, grid: tuple[int, int], box: Box, cls: bool = True) -> np.ndarray:
    """Show one layer's kept set: kept cells as they are, inside a thin outline; skipped cells grey and dim.

    image: (H, W, 3) uint8 RGB, any size. kept: (1 + h*w,) bool, CLS first, then the grid in raster order.
    grid: (h, w). box: the model's square view on the picture, in pixels. cls: draw the CLS token's badge, filled when
    kept and hollow when not. Returns a new picture of the same size. InputError if shapes do not fit.
    """
    kept = np.asarray(kept, dtype=bool)
    _check(kept, grid, box)
    height, width = image.shape[:2]
    cells = cell_map(height, width, tuple(grid), tuple(box))
    mask = np.append(kept[1:], False)[cells]  # (H, W); outside the box, -1 picks the appended one
    result = np.where(mask[..., None], image, dimmed(image))
    result[_outline(mask, max(1, round(min(height, width) / 300)))] = ACCENT
    return _cls_badge(result, bool(kept[0])) if cls else result


def _cls_badge(image: np.ndarray, kept: bool) -> np.ndarray:
    height, width = image.shape[:2]
    size = int(np.clip(round(min(height, width) / 26), 9, 26))
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture, "RGBA")
    if min(height, width) < 72:  # no room for letters: a dot
        radius = max(2, min(height, width) // 20)
        draw.ellipse(
            (2, 2, 2 + 2 * radius, 2 + 2 * radius), fill=ACCENT if kept else None, outline=ACCENT if kept else MUTED
        )
    else:
        cls_badge(draw, (size // 2, size // 2), size, kept)
    return np.asarray(picture)


def cls_badge(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: int, kept: bool) -> None:
    """The chip "CLS" with its top left at `corner`, letters `size` pixels high: bright if the token was kept."""
    if kept:
        badge(draw, corner, "CLS", size, ink=INK, fill=(*ACCENT, 255))
    else:
        badge(draw, corner, "CLS", size, ink=MUTED)


def draw_shaded(image: np.ndarray, kept: np.ndarray, grid: tuple[int, int], box: Box) -> np.ndarray:
    """The picture in its colours, bright inside an amber line where cells are `kept`, with fainter lines between them,
    and darker elsewhere: for the large picture, which people also look at for what happens.

    image: (H, W, 3) uint8 RGB. kept: (1 + h*w,) bool, CLS first, then the grid in raster order; CLS is not drawn.
    Returns a new picture of the same size. InputError if shapes do not fit.
    """
    kept = np.asarray(kept, dtype=bool)
    _check(kept, grid, box)
    cells = cell_map(*image.shape[:2], tuple(grid), tuple(box))
    mask = np.append(kept[1:], False)[cells]  # (H, W); -1 picks False
    inner = np.zeros_like(mask)  # where the next cell begins, to the right or below
    inner[:, :-1] |= cells[:, :-1] != cells[:, 1:]
    inner[:-1] |= cells[:-1] != cells[1:]
    inner &= mask
    result = np.where(mask[..., None], image, (SHADE * image).astype(np.uint8))
    result[inner] = (0.8 * image[inner] + 0.2 * 255).astype(np.uint8)  # part of the way to white
    result[_outline(mask, max(1, round(min(image.shape[:2]) / 300)))] = ACCENT
    return result
