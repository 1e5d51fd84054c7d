"""Many pictures: the annotated video (heat, one tile per routed layer, narration) and the sheet of kept sets.

Both draw from what a session records: `session.kept`, a dict from routed layer to a bool array (1 + h*w,), CLS first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from videollm_mod.show.clock import clock
from videollm_mod.show.draw import Box, cell_map, draw_kept, draw_share
from videollm_mod.show.text import INK, MUTED, WHITE, fit_lines, font, text_size
from videollm_mod.types import Frame, StreamEvent
from videollm_mod.video import VideoWriter

LONG_SIDE = (640, 960)  # of the main view: small pictures are enlarged so that words on them can be read
GAP = 8
LABEL = 20  # height of a tile's label
LINES = 3  # of narration below the picture


def fit(image: np.ndarray, width: int, height: int) -> tuple[np.ndarray, Box]:
    """Scale a picture (H, W, 3) into (height, width, 3), aspect kept, and tell where the model's square lies on it.

    The model's view is letterboxed: a square around the centre, as long as the picture's longer side. Averaged when
    shrinking, cubic when growing; bars only where the aspects differ by more than rounding.
    """
    tall, wide = image.shape[:2]
    scale = min(width / wide, height / tall)
    inner = (
        width if abs(wide * scale - width) < 1.5 else max(1, round(wide * scale)),
        height if abs(tall * scale - height) < 1.5 else max(1, round(tall * scale)),
    )
    side = max(inner)
    box = ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)
    if inner == (wide, tall) == (width, height):
        return image, box
    method = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX
    picture = Image.fromarray(image).resize(inner, method)
    if inner == (width, height):
        return np.asarray(picture), box
    canvas = Image.new("RGB", (width, height), INK)
    canvas.paste(picture, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return np.asarray(canvas), box


@dataclass(frozen=True)
class Layout:
    """Sizes in pixels of the annotated video; the same for all its frames."""

    view: tuple[int, int]  # (width, height) of the main view
    tile: tuple[int, int]  # (width, height) of one layer's tile
    columns: int  # of tiles, right of the view
    canvas: tuple[int, int]  # (width, height), both even, as 4:2:0 video needs
    text: int  # font size of the narration


def plan_layout(height: int, width: int, tiles: int) -> Layout:
    """Choose sizes for pictures of `height` x `width` with `tiles` routed layers: the largest tiles that fit."""
    scale = float(np.clip(max(height, width), *LONG_SIDE)) / max(height, width)
    view = (max(16, round(width * scale)), max(16, round(height * scale)))
    sizes = []  # of a tile, with 1, 2, .. columns
    for columns in range(1, tiles + 1):
        tall = (view[1] + GAP) / -(-tiles // columns) - GAP - LABEL
        wide = max(8.0, min(tall * view[0] / view[1], 0.34 * max(view), (0.8 * max(view) - GAP) / columns - GAP))
        sizes.append((int(wide), max(4, int(wide * view[1] / view[0]))))
    widest = max((size[0] for size in sizes), default=0)
    # fewer columns look calmer: take the first that costs no more than a quarter of the tile
    columns, tile = next(((n, size) for n, size in enumerate(sizes, 1) if size[0] >= 0.75 * widest), (0, (0, 0)))
    text = int(np.clip(round(view[0] / 34), 14, 26))
    beside = columns * (tile[0] + GAP)
    canvas_width = GAP + view[0] + (GAP + beside if tiles else 0) + GAP * (not tiles)
    canvas_height = GAP + view[1] + GAP + LINES * text_size("", text)[1] + GAP
    return Layout(view, tile, columns, (canvas_width + canvas_width % 2, canvas_height + canvas_height % 2), text)


def draw_overlay(
    image: np.ndarray,
    kept: Mapping[int, np.ndarray],
    grid: tuple[int, int],
    lines: Sequence[str],
    time: float,
    layout: Layout,
) -> np.ndarray:
    """One frame of the annotated video.

    image: (H, W, 3) uint8. kept: routed layer -> (1 + h*w,) bool. lines: narration, newest last; older ones are dimmer.
    Returns (canvas height, canvas width, 3) uint8.
    """
    view, box = fit(image, *layout.view)
    if kept:
        share = np.mean([np.asarray(mask, dtype=np.float32) for mask in kept.values()], axis=0)  # (1 + h*w,)
        view = draw_share(view, share, grid, box, layers=len(kept))
    canvas = Image.new("RGB", layout.canvas, INK)
    canvas.paste(Image.fromarray(view), (GAP, GAP))
    if kept:
        _tiles(canvas, image, kept, grid, layout)
    _narration(ImageDraw.Draw(canvas), lines, time, layout)
    return np.asarray(canvas)


def _tiles(
    canvas: Image.Image, image: np.ndarray, kept: Mapping[int, np.ndarray], grid: tuple[int, int], layout: Layout
) -> None:
    """One tile per routed layer, right of the view, each under its label."""
    draw = ImageDraw.Draw(canvas)
    small, box = fit(image, *layout.tile)
    visible = np.isin(np.arange(grid[0] * grid[1]), cell_map(*small.shape[:2], grid, box))  # (h*w,)
    size = min(14, max(10, layout.tile[0] // 9))
    for number, (layer, mask) in enumerate(sorted(kept.items())):
        x = GAP + layout.view[0] + GAP + (number % layout.columns) * (layout.tile[0] + GAP)
        y = GAP + (number // layout.columns) * (layout.tile[1] + GAP + LABEL)
        _label(draw, (x, y + LABEL // 2), layout.tile[0], size, layer, mask, visible)
        canvas.paste(Image.fromarray(draw_kept(small, mask, grid, box)), (x, y + LABEL))


def _label(
    draw: ImageDraw.ImageDraw,
    left: tuple[int, int],
    width: int,
    size: int,
    layer: int,
    mask: np.ndarray,
    visible: np.ndarray,
) -> None:
    """A tile's headline: the layer on the left, and on the right as much of the count as there is room for."""
    name, count = f"layer {layer}", f"{int(np.sum(mask))}/{len(mask)}"
    unseen = int(np.sum(mask[1:] & ~visible))  # the letterbox's bars have cells too
    draw.text(left, name, font=font(size), fill=WHITE, anchor="lm")
    room = width - text_size(name, size)[0] - GAP
    for words in ([f"{count}, {unseen} in bars"] if unseen else []) + [count]:
        if text_size(words, size)[0] <= room:
            draw.text((left[0] + width, left[1]), words, font=font(size), fill=MUTED, anchor="rm")
            return


def _narration(draw: ImageDraw.ImageDraw, lines: Sequence[str], time: float, layout: Layout) -> None:
    step = text_size("", layout.text)[1]
    top = GAP + layout.view[1] + GAP
    left = GAP + text_size("00:00.0", layout.text)[0] + 2 * GAP
    draw.text((GAP, top + step / 2), clock(time), font=font(layout.text), fill=MUTED, anchor="lm")
    room = layout.canvas[0] - left - GAP
    newest = fit_lines(lines[-1:], layout.text, room, LINES)
    older = fit_lines(lines[:-1], layout.text, room, LINES - len(newest))
    for number, line in enumerate([*older, *newest]):
        ink = WHITE if number >= len(older) else MUTED
        draw.text((left, top + number * step + step / 2), line, font=font(layout.text, line), fill=ink, anchor="lm")


def kept_sheet(
    frames: Sequence[np.ndarray],
    kept: Sequence[Mapping[int, np.ndarray]],
    grid: tuple[int, int],
    times: Sequence[float],
    cell: int = 176,
) -> np.ndarray:
    """One picture of many kept sets: frames across with their times on top, routed layers down with their numbers.

    frames: pictures (H, W, 3) uint8, the first gives the shape. kept: for each, routed layer -> (1 + h*w,) bool.
    times: seconds. cell: width of one picture in pixels. The first row is what the camera saw. Returns one (H, W, 3)
    uint8 picture on white.
    """
    layers = sorted(kept[0]) if kept else []
    height, width = frames[0].shape[:2]
    tall = max(16, round(cell * height / width))
    size, small = 18, 14
    margin = max(text_size(f"layer {max(layers, default=0)}", size)[0], text_size("100 % kept", small)[0]) + 4 * GAP
    step = tall + GAP
    canvas = Image.new(
        "RGB", (margin + len(frames) * (cell + GAP) + GAP, 2 * size + step * (1 + len(layers)) + GAP), WHITE
    )
    draw = ImageDraw.Draw(canvas)
    draw.text((margin - 2 * GAP, 2 * size + tall / 2), "frame", font=font(size), fill=INK, anchor="rm")
    for row, layer in enumerate(layers, start=1):
        middle = 2 * size + row * step + tall / 2
        shares = [float(np.mean(masks[layer])) for masks in kept]
        draw.text((margin - 2 * GAP, middle - 4), f"layer {layer}", font=font(size), fill=INK, anchor="rs")
        draw.text(
            (margin - 2 * GAP, middle + 4),
            f"{100 * np.mean(shares):.0f} % kept",
            font=font(small),
            fill=(96, 102, 112),
            anchor="rt",
        )
    for column, (image, masks, time) in enumerate(zip(frames, kept, times)):
        x = margin + column * (cell + GAP)
        picture, box = fit(image, cell, tall)
        draw.text((x + cell / 2, size), clock(time), font=font(size), fill=INK, anchor="mm")
        canvas.paste(Image.fromarray(picture), (x, 2 * size))
        for row, layer in enumerate(layers, start=1):
            drawn = draw_kept(picture, masks[layer], grid, box)
            canvas.paste(Image.fromarray(drawn), (x, 2 * size + row * step))
    return np.asarray(canvas)


class OverlayVideo:
    """Writes the annotated video; a context manager, with VideoWriter's care for half-written files."""

    def __init__(self, path: str | Path, fps: float, grid: tuple[int, int]) -> None:
        self._writer = VideoWriter(path, fps)
        self._grid = grid
        self._layout: Layout | None = None  # chosen for the first frame

    def __enter__(self) -> OverlayVideo:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    def push(self, image: np.ndarray, kept: Mapping[int, np.ndarray], lines: Sequence[str], time: float) -> None:
        """Append one frame; arguments as for `draw_overlay`. The same layers must be routed in every frame."""
        if self._layout is None:
            self._layout = plan_layout(image.shape[0], image.shape[1], len(kept))
        self._writer.write(draw_overlay(image, kept, self._grid, lines, time, self._layout), time)


class VideoSink:
    """The sink (see stream/sinks.py) that draws every frame: kept tokens, and the last sentences below."""

    def __init__(self, path: str | Path, fps: float, grid: tuple[int, int]) -> None:
        self._video = OverlayVideo(path, fps, grid)
        self._lines: deque[str] = deque(maxlen=LINES)

    def __enter__(self) -> VideoSink:
        self._video.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._video.__exit__(kind, error, trace)

    def event(self, event: StreamEvent) -> None:
        self._lines.append(event.text if event.question is None else f"Q: {event.question}  A: {event.text}")

    def frame(self, frame: Frame, session: Any) -> None:
        self._video.push(frame.image, session.kept, list(self._lines), frame.time)
