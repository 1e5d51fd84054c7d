"""One picture: which cells of a frame a routed layer kept, and how many routed layers kept each cell.

The model sees a square; `box` says where that square lies on the picture, so that cells are drawn where they are even
when the square is larger than the picture (letterboxed) or smaller (cropped).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from videollm_mod.show.text import INK, MUTED, WHITE, badge, font, text_size
from videollm_mod.types import InputError

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels of the picture; may reach beyond it
ACCENT = (255, 196, 46)  # outlines of kept cells


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


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) float32 luma."""
    return image @ np.asarray([0.299, 0.587, 0.114], dtype=np.float32)


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
    dimmed = (0.42 * _grey(image) + 14).astype(np.uint8)
    result = np.where(mask[..., None], image, dimmed[..., None])
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
    elif kept:
        badge(draw, (size // 2, size // 2), "CLS", size, ink=INK, fill=(*ACCENT, 255))
    else:
        badge(draw, (size // 2, size // 2), "CLS", size, ink=MUTED)
    return np.asarray(picture)


@lru_cache(maxsize=1)
def _colours() -> np.ndarray:
    """256 colours of a perceptually uniform map, (256, 3) float32."""
    from matplotlib import colormaps  # 0.2 s to import, and only heat pictures need it

    return (colormaps["inferno"](np.linspace(0.12, 1.0, 256))[:, :3] * 255).astype(np.float32)


def draw_share(
    image: np.ndarray, share: np.ndarray, grid: tuple[int, int], box: Box, layers: int | None = None
) -> np.ndarray:
    """Show how many routed layers keep each cell, as heat over the greyed picture, with a legend.

    image: (H, W, 3) uint8 RGB. share: (1 + h*w,) float in [0, 1], the share of routed layers that kept the token, CLS
    first. layers: how many routed layers there are; the legend then counts layers instead of percent. Cells that no
    layer kept stay grey. Pictures with a side under 160 pixels get no legend: it could not be read. Returns a new
    picture of the same size. InputError if shapes do not fit.
    """
    share = np.clip(np.asarray(share, dtype=np.float32), 0, 1)
    _check(share, grid, box)
    height, width = image.shape[:2]
    cells = cell_map(height, width, tuple(grid), tuple(box))
    # per cell: result = own * picture + grey * luma + tint; a hot cell is half in its own colours, under its heat
    heat = np.append(share[1:], 0).astype(np.float32)  # (h*w + 1,), the last for pixels outside the box
    hot = heat > 0
    strength = np.where(hot, 0.30 + 0.30 * heat, 0)
    own = np.where(hot, 0.5 * (1 - strength), 0)
    shade = np.where(hot, own, 1)
    tint = 10 * shade[:, None] + strength[:, None] * _colours()[(heat * 255).astype(np.uint8)]  # (h*w + 1, 3)
    own, shade, tint = (values.astype(np.float32) for values in (own, 0.62 * shade, tint))
    result = image * own[cells][..., None]  # (H, W, 3) float32; -1 picks the last
    result += (_grey(image) * shade[cells])[..., None]
    result += tint[cells]
    result = result.astype(np.uint8)
    result[_outline(hot[cells], max(1, round(min(height, width) / 300)))] = (235, 235, 235)
    return _legend(result, share, layers) if min(height, width) >= 160 else result


def _legend(image: np.ndarray, share: np.ndarray, layers: int | None) -> np.ndarray:
    """A colour bar at the bottom left, with the CLS token's share beside it."""
    height, width = image.shape[:2]
    size = int(np.clip(round(min(height, width) / 26), 10, 26))
    pad = size // 2
    bar = int(min(width * 0.3, size * 9))
    left, right = ("0", f"{layers} layers") if layers else ("0", "100 %")
    cls = f"CLS {round(float(share[0]) * layers)}/{layers}" if layers else f"CLS {100 * share[0]:.0f} %"
    widths = [text_size(text, size)[0] for text in (left, right, cls)]
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture, "RGBA")
    total = widths[0] + bar + widths[1] + widths[2] + 6 * pad
    top, line = height - 2 * size - 2 * pad // 2, 2 * size
    draw.rounded_rectangle((pad, top, pad + total, top + line), radius=pad, fill=(*INK, 215))
    middle = top + line / 2
    x = 2 * pad
    draw.text((x, middle), left, font=font(size), fill=WHITE, anchor="lm")
    x += widths[0] + pad
    ramp = _colours()[np.linspace(0, 255, bar).astype(int)].astype(np.uint8)  # (bar, 3)
    picture.paste(Image.fromarray(np.repeat(ramp[None], size, axis=0)), (x, round(middle - size / 2)))
    x += bar + pad
    draw.text((x, middle), right, font=font(size), fill=WHITE, anchor="lm")
    x += widths[1] + pad
    draw.text((x, middle), cls, font=font(size), fill=MUTED, anchor="lm")
    return np.asarray(picture)
