"""Many pictures: the annotated video (the picture, one tile per routed layer, narration) and the sheet of kept sets.

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
from videollm_mod.show.draw import ACCENT, Box, cell_map, cls_badge, draw_kept, draw_shaded
from videollm_mod.show.text import INK, MUTED, WHITE, fit_lines, font, text_size, wrap
from videollm_mod.types import Frame, StreamEvent
from videollm_mod.video import VideoWriter

LONG_SIDE = (640, 960)  # of the main view: small pictures are enlarged so that words on them can be read
GAP = 8
LABEL = 38  # height of the two lines above a tile
LINES = 3  # of narration below the picture
CELL = 176  # width of one picture on the sheet
SMALL = 13  # font size of legends
BRIGHT = "bright: kept by at least one of the layers on the right"
LEGEND = (
    "Each square of the picture is a token. Bright inside amber: the layer computes it. Dark: it skips that layer. "
    "Layers not shown compute all they get. The summary token stands for the whole frame."
)
OUTSIDE = "Tokens outside the picture lie on the bars that make it square for the model."
GREY = (96, 102, 112)  # words of less weight on white


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
    legend: tuple[str, ...]  # lines at the very bottom


def plan_layout(height: int, width: int, tiles: int) -> Layout:
    """Choose sizes for pictures of `height` x `width` with `tiles` routed layers: the largest tiles that fit."""
    scale = float(np.clip(max(height, width), *LONG_SIDE)) / max(height, width)
    view = (max(16, round(width * scale)), max(16, round(height * scale)))
    sizes = []  # of a tile, with 1, 2, .. columns
    for columns in range(1, tiles + 1):
        tall = (view[1] + LABEL + GAP) / -(-tiles // columns) - GAP - LABEL
        wide = max(8.0, min(tall * view[0] / view[1], 0.34 * max(view), (0.8 * max(view) - GAP) / columns - GAP))
        sizes.append((int(wide), max(4, int(wide * view[1] / view[0]))))
    widest = max((size[0] for size in sizes), default=0)
    # fewer columns look calmer: take the first that costs no more than a quarter of the tile
    columns, tile = next(((n, size) for n, size in enumerate(sizes, 1) if size[0] >= 0.75 * widest), (0, (0, 0)))
    text = int(np.clip(round(view[0] / 30), 14, 28))
    beside = columns * (tile[0] + GAP)
    canvas_width = GAP + view[0] + (2 * GAP + beside if tiles else GAP)
    told = LEGEND if height == width else f"{LEGEND} {OUTSIDE}"
    legend = tuple(wrap(told, SMALL, canvas_width - 2 * GAP)) if tiles else ()
    canvas_height = GAP + LABEL + view[1] + GAP + LINES * text_size("", text)[1] + GAP
    canvas_height += len(legend) * text_size("", SMALL)[1] + GAP * bool(legend)
    even = (canvas_width + canvas_width % 2, canvas_height + canvas_height % 2)
    return Layout(view, tile, columns, even, text, legend)


def draw_overlay(
    image: np.ndarray,
    kept: Mapping[int, np.ndarray],
    grid: tuple[int, int],
    lines: Sequence[str],
    time: float,
    layout: Layout,
) -> np.ndarray:
    """One frame of the annotated video: the picture, darker where every layer skips, and a tile per layer beside it.

    image: (H, W, 3) uint8. kept: routed layer -> (1 + h*w,) bool. lines: narration, newest last; older ones are dimmer.
    Returns (canvas height, canvas width, 3) uint8.
    """
    view, box = fit(image, *layout.view)
    canvas = Image.new("RGB", layout.canvas, INK)
    draw = ImageDraw.Draw(canvas)
    if kept:
        view = draw_shaded(view, np.any(list(kept.values()), axis=0), grid, box)
        _tiles(canvas, image, kept, grid, layout)
    canvas.paste(Image.fromarray(view), (GAP, GAP + LABEL))
    _headline(draw, time, bool(kept), layout)
    _narration(draw, lines, layout)
    return np.asarray(canvas)


def _headline(draw: ImageDraw.ImageDraw, time: float, shaded: bool, layout: Layout) -> None:
    """Above the view: the time, and what is bright on it where there is room."""
    size, middle = 22, GAP + LABEL / 2
    draw.text((GAP, middle), clock(time), font=font(size), fill=WHITE, anchor="lm")
    room = layout.view[0] - text_size("00:00:00.0", size)[0] - GAP
    if shaded and text_size(BRIGHT, SMALL)[0] <= room:
        draw.text((GAP + layout.view[0], middle), BRIGHT, font=font(SMALL), fill=MUTED, anchor="rm")


def _tiles(
    canvas: Image.Image, image: np.ndarray, kept: Mapping[int, np.ndarray], grid: tuple[int, int], layout: Layout
) -> None:
    """One tile per routed layer, right of the view, each under its label."""
    draw = ImageDraw.Draw(canvas)
    small, box = fit(image, *layout.tile)
    visible = np.isin(np.arange(grid[0] * grid[1]), cell_map(*small.shape[:2], grid, box))  # (h*w,)
    for number, (layer, mask) in enumerate(sorted(kept.items())):
        x = GAP + layout.view[0] + 2 * GAP + (number % layout.columns) * (layout.tile[0] + GAP)
        y = GAP + (number // layout.columns) * (layout.tile[1] + GAP + LABEL)
        told = _label(draw, (x, y), layout.tile[0], layer, mask, visible)
        canvas.paste(Image.fromarray(draw_kept(small, mask, grid, box, cls=not told)), (x, y + LABEL))


def _label(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], width: int, layer: int, mask: np.ndarray, visible: np.ndarray
) -> bool:
    """A tile's two lines: how many tokens the layer kept, and whether the summary token (CLS) is one of them.

    Returns whether there was room for the latter.
    """
    size = int(np.clip(width // 9, 9, 14))
    count, unseen = int(np.sum(mask)), int(np.sum(mask[1:] & ~visible))  # the letterbox's bars have cells too
    words = [f"layer {layer} kept {count} of {len(mask)}", f"layer {layer}: {count}/{len(mask)}", f"layer {layer}"]
    if unseen:
        words[:1] = [f"{words[0]}, {unseen} outside the picture", f"{words[1]}, {unseen} outside", words[0]]
    first = next((line for line in words if text_size(line, size)[0] <= width), str(layer))
    draw.text((corner[0], corner[1] + LABEL // 4), first, font=font(size), fill=WHITE, anchor="lm")
    kept, radius, small = bool(mask[0]), 4, max(9, size - 2)
    state = "kept" if kept else "dropped"
    room = width - 2 * radius - GAP // 2
    for line in (f"summary token {state}", f"summary {state}"):
        if text_size(line, small)[0] <= room:
            break
    else:
        return False
    x, middle = corner[0], corner[1] + 3 * LABEL // 4 - 1
    dot = (x, middle - radius, x + 2 * radius, middle + radius)
    draw.ellipse(dot, fill=ACCENT if kept else None, outline=ACCENT if kept else MUTED)
    place = (x + 2 * radius + GAP // 2, middle)
    draw.text(place, line, font=font(small), fill=WHITE if kept else MUTED, anchor="lm")
    return True


def _narration(draw: ImageDraw.ImageDraw, lines: Sequence[str], layout: Layout) -> None:
    """Below the view, not on it: the last sentences, and the legend."""
    step = text_size("", layout.text)[1]
    top = GAP + LABEL + layout.view[1] + GAP
    room = layout.canvas[0] - 2 * GAP
    newest = fit_lines(lines[-1:], layout.text, room, LINES)
    older = fit_lines(lines[:-1], layout.text, room, LINES - len(newest))
    for number, line in enumerate([*older, *newest]):
        ink = WHITE if number >= len(older) else MUTED
        draw.text((GAP, top + number * step + step / 2), line, font=font(layout.text, line), fill=ink, anchor="lm")
    top += LINES * step + GAP
    step = text_size("", SMALL)[1]
    for number, line in enumerate(layout.legend):
        draw.text((GAP, top + number * step + step / 2), line, font=font(SMALL), fill=MUTED, anchor="lm")


def kept_sheet(
    frames: Sequence[np.ndarray],
    kept: Sequence[Mapping[int, np.ndarray]],
    grid: tuple[int, int],
    times: Sequence[float],
    cell: int = CELL,
) -> np.ndarray:
    """One picture of many kept sets: frames across with their times on top, routed layers down, a legend below.

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
    wide, bottom = margin + len(frames) * (cell + GAP) + GAP, 2 * size + step * (1 + len(layers)) + GAP
    legend = _place_legend(_legend(kept, grid), wide) if layers else []
    canvas = Image.new("RGB", (wide, bottom + (legend[-1][1] + LEGEND_STEP if legend else 0)), WHITE)
    draw = ImageDraw.Draw(canvas, "RGBA")
    draw.text((margin - 2 * GAP, 2 * size + tall / 2), "frame", font=font(size), fill=INK, anchor="rm")
    for row, layer in enumerate(layers, start=1):
        middle = 2 * size + row * step + tall / 2
        shares = [float(np.mean(masks[layer])) for masks in kept]
        draw.text((margin - 2 * GAP, middle - 4), f"layer {layer}", font=font(size), fill=INK, anchor="rs")
        draw.text(
            (margin - 2 * GAP, middle + 4),
            f"{100 * np.mean(shares):.0f} % kept",
            font=font(small),
            fill=GREY,
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
    if legend:
        swatches = _swatches(*fit(frames[-1], cell, tall), grid)
        for x, y, kind, words in legend:
            _legend_entry(canvas, draw, (x, bottom + y), kind, words, swatches)
    return np.asarray(canvas)


LEGEND_STEP, SWATCH = 30, 40  # height of a line, width of what stands before the words


def _legend(kept: Sequence[Mapping[int, np.ndarray]], grid: tuple[int, int]) -> list[tuple[str, str]]:
    """What the sheet needs explained, (kind, words): only what is on it."""
    masks = np.concatenate([np.stack(list(each.values())) for each in kept])  # (frames * layers, 1 + h*w)
    entries = [
        ("bright", "in colour, inside a line: kept, the layer computes it"),
        ("dim", "dark grey: it skips the layer"),
        ("cls kept", "the frame's summary token: kept"),
        ("cls dropped", "the frame's summary token: it skips the layer"),
        ("", f"Each frame is {grid[0]} x {grid[1]} squares, a token each. Layers not shown compute all they get."),
    ]
    cells, cls = masks[:, 1:], masks[:, 0]
    there = [cells.any(), not cells.all(), cls.any(), not cls.all(), True]
    return [entry for entry, shown in zip(entries, there) if shown]


def _swatches(picture: np.ndarray, box: Box, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """A telling cell of a picture as it looks kept and as it looks dropped, cut out of drawings of both: the one in
    which colourfulness differs most, as at the edge of a thing."""
    count = grid[0] * grid[1]
    numbers = cell_map(*picture.shape[:2], grid, box)
    colour = picture.max(-1).astype(float) - picture.min(-1)  # (H, W)
    best = max(set(numbers[numbers >= 0].tolist()), key=lambda number: colour[numbers == number].std())
    rows, columns = (slice(places.min(), places.max() + 1) for places in np.nonzero(numbers == best))
    drawn = {}
    for kind, one in (("bright", True), ("dim", False)):
        kept = np.zeros(1 + count, dtype=bool)
        kept[1 + best] = one
        drawn[kind] = draw_kept(picture, kept, grid, box, cls=False)[rows, columns]
    return drawn


def _place_legend(entries: Sequence[tuple[str, str]], width: int) -> list[tuple[int, int, str, str]]:
    """Where each entry of the sheet's legend goes, (x, y, kind, words), y from the legend's top; broken into lines."""
    places: list[tuple[int, int, str, str]] = []
    x, y = 2 * GAP, 0
    for kind, words in entries:
        for number, line in enumerate(wrap(words, SMALL, width - SWATCH - 4 * GAP)):
            needed = SWATCH + text_size(line, SMALL)[0] + 3 * GAP
            if number or (x > 2 * GAP and x + needed > width):
                x, y = 2 * GAP, y + LEGEND_STEP
            places.append((x, y, "" if number else kind, line))
            x += needed
    return places


def _legend_entry(
    canvas: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    kind: str,
    words: str,
    swatches: Mapping[str, np.ndarray],
) -> None:
    """A swatch, as the cells and chips of the sheet look, and what it means."""
    x, y = corner
    middle, most = y + LEGEND_STEP // 2, (SWATCH - GAP, LEGEND_STEP - 4)
    if kind in swatches:
        cell = Image.fromarray(swatches[kind])
        cell.thumbnail(most)
        canvas.paste(cell, (x + SWATCH - GAP - cell.width, middle - cell.height // 2))
    elif kind:
        cls_badge(draw, (x, middle - 8), 11, kind == "cls kept")
    draw.text((x + SWATCH, middle), words, font=font(SMALL), fill=GREY, anchor="lm")


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

    def finish(self) -> None:
        self._writer.finish()

    def push(self, image: np.ndarray, kept: Mapping[int, np.ndarray], lines: Sequence[str], time: float) -> None:
        """Append one frame; arguments as for `draw_overlay`. The same layers must be routed in every frame."""
        if self._layout is None:
            self._layout = plan_layout(image.shape[0], image.shape[1], len(kept))
        self._writer.write(draw_overlay(image, kept, self._grid, lines, time, self._layout), time)


class VideoSink:
    """The sink (see stream/sinks.py) that draws every frame: kept tokens, and the last sentences with their times.

    What is said after the last frame gets one more picture, the last again: an answer at the end is seen, too.
    """

    def __init__(self, path: str | Path, fps: float, grid: tuple[int, int]) -> None:
        self._video = OverlayVideo(path, fps, grid)
        self._period = 1 / fps
        self._lines: deque[str] = deque(maxlen=LINES)
        self._last: tuple[np.ndarray, dict[int, np.ndarray], float] | None = None  # newest picture, kept sets, time
        self._unseen: float | None = None  # time of the newest sentence, until a picture shows it

    def __enter__(self) -> VideoSink:
        self._video.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.finish()
        self._video.__exit__(kind, error, trace)

    def finish(self) -> None:
        """The picture with what was said last, and the end of the file."""
        if self._last is not None and self._unseen is not None:
            image, kept, time = self._last
            self._push(image, kept, max(self._unseen, time + self._period))
        self._video.finish()

    def event(self, event: StreamEvent) -> None:
        words = event.text if event.question is None else f"Q: {event.question}  A: {event.text}"
        self._lines.append(f"{clock(event.time)} {words}")
        self._unseen = event.time

    def frame(self, frame: Frame, session: Any) -> None:
        self._last = (frame.image, session.kept, frame.time)
        self._push(*self._last)

    def _push(self, image: np.ndarray, kept: dict[int, np.ndarray], time: float) -> None:
        self._video.push(image, kept, list(self._lines), time)
        self._unseen = None
