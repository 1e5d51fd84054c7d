"""Pictures of kept sets: what is kept stays as it was, what is skipped is dimmed, and all of it where it really is."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.show.clock import clock
from videollm_mod.show.draw import ACCENT, SHADE, cell_map, draw_kept, draw_shaded
from videollm_mod.show.overlay import GAP, LABEL, VideoSink, draw_overlay, fit, kept_sheet, plan_layout
from videollm_mod.show.sheet import SPARE, SheetSink
from videollm_mod.show.text import fit_lines, text_size, wrap
from videollm_mod.types import Frame, InputError, StreamEvent
from videollm_mod.video import letterbox, letterbox_box

GRID = (7, 7)
SIZES = [(96, 96), (40, 24), (1, 1), (180, 320), (321, 123), (1080, 1920)]


def picture(height: int, width: int) -> np.ndarray:
    """Bright random colours: no pixel is grey, or as dark as a dimmed one."""
    noise = np.random.default_rng(height * width).integers(150, 256, (height, width, 3), dtype=np.uint8)
    noise[..., 2] = 0
    return noise


def whole(image: np.ndarray) -> tuple[float, float, float, float]:
    return (0, 0, image.shape[1], image.shape[0])


@pytest.mark.parametrize("size", SIZES)
def test_every_drawing_has_the_size_of_its_picture_and_leaves_it_alone(size: tuple[int, int]) -> None:
    image = picture(*size)
    before = image.copy()
    kept = np.arange(50) % 5 == 0
    for drawn in (
        draw_kept(image, kept, GRID, whole(image)),
        draw_shaded(image, kept, GRID, whole(image)),
    ):
        assert drawn.shape == image.shape and drawn.dtype == np.uint8
        assert (drawn != image).any()
    assert (image == before).all()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(30, 120), st.integers(30, 120), st.data())
def test_kept_cells_are_untouched_inside_their_outline_and_skipped_ones_are_grey(
    rows: int, columns: int, height: int, width: int, data: st.DataObject
) -> None:
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=1 + rows * columns, max_size=1 + rows * columns)))
    image = picture(height, width)
    drawn = draw_kept(image, kept, (rows, columns), whole(image), cls=False)
    mask = kept[1:][cell_map(height, width, (rows, columns), whole(image))]  # (height, width)
    outline = (drawn == ACCENT).all(-1)
    assert not (outline & ~mask).any(), "an outline lies inside what it surrounds"
    assert (drawn[mask & ~outline] == image[mask & ~outline]).all()
    skipped = drawn[~mask]
    assert (skipped == skipped[:, :1]).all() and (skipped < 130).all()


def test_the_cls_badge_tells_whether_cls_was_kept() -> None:
    image = picture(180, 320)
    cells = [False] * 49
    kept, skipped = (draw_kept(image, np.array([cls, *cells]), GRID, whole(image)) for cls in (True, False))
    assert (kept == ACCENT).all(-1).sum() > 100
    assert not (skipped == ACCENT).all(-1).any()


def test_cells_beyond_the_picture_are_not_drawn_and_cells_of_a_cropped_view_end_where_it_ends() -> None:
    letterboxed = cell_map(60, 120, (4, 4), (0, -30, 120, 90))  # the square reaches 30 px beyond, above and below
    assert sorted(set(letterboxed.ravel())) == list(range(4, 12))
    cropped = cell_map(60, 120, (4, 4), (30, 0, 90, 60))
    assert (cropped[:, :30] == -1).all() and (cropped[:, 90:] == -1).all() and (cropped[:, 30:90] >= 0).all()


@given(st.integers(70, 300), st.integers(70, 300))
def test_cells_are_drawn_where_the_models_letterboxed_view_has_them(height: int, width: int) -> None:
    # Number the cells of the model's square, and look which number the letterboxed picture has in each.
    size, cells = 112, 7
    image, box = fit(picture(height, width), width, height)
    numbers = cell_map(height, width, (cells, cells), box)
    as_picture = np.repeat(numbers[..., None] + 1, 3, axis=2).astype(np.uint8)  # 0 is the letterbox's bar
    seen = letterbox(as_picture[None], size)[0, ..., 0].numpy()
    x0, y0, x1, y1 = letterbox_box(height, width, size)
    middle = size // cells // 2
    for row in range(cells):
        for column in range(cells):
            y, x = row * size // cells + middle, column * size // cells + middle
            if y0 + 2 < y < y1 - 3 and x0 + 2 < x < x1 - 3:
                assert seen[y, x] == row * cells + column + 1
    assert image.shape[:2] == (height, width)


@given(st.integers(60, 200), st.integers(60, 200), st.data())
def test_the_large_picture_is_as_it_was_inside_kept_cells_and_darker_everywhere_else(
    height: int, width: int, data: st.DataObject
) -> None:
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=50, max_size=50)))
    image = picture(height, width)
    drawn = draw_shaded(image, kept, GRID, whole(image))
    changed = (drawn != image).any(-1)
    cells = cell_map(height, width, GRID, whole(image))
    dropped = ~kept[1:][cells]
    assert (drawn[dropped] == (SHADE * image[dropped]).astype(np.uint8)).all(), "in their colours, and without a line"
    for cell in np.flatnonzero(kept[1:]):
        rows, columns = np.nonzero(cells == cell)
        inside = changed[rows.min() + 1 : rows.max(), columns.min() + 1 : columns.max()]
        assert not inside.any(), "a line is one pixel thin"
    assert (drawn == ACCENT).all(-1).any() == kept[1:].any()


def test_a_kept_set_that_does_not_fit_the_grid_is_refused_with_both_sizes() -> None:
    with pytest.raises(InputError, match=r"\(49,\).*\(50,\)"):
        draw_kept(picture(40, 40), np.zeros(49, dtype=bool), GRID, (0, 0, 40, 40))
    with pytest.raises(InputError, match="empty"):
        draw_shaded(picture(40, 40), np.zeros(50), GRID, (0, 0, 0, 40))


words = st.text(alphabet="abcdefghij ABC.,!?é中", max_size=80)


@given(words, st.integers(10, 40), st.integers(40, 400))
def test_wrapping_keeps_every_letter_and_no_line_is_wider_than_the_room(text: str, size: int, width: int) -> None:
    lines = wrap(text, size, width)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(text_size(line, size)[0] <= width or len(line) == 1 for line in lines)
    assert all(line for line in lines)


@given(st.lists(words, max_size=6), st.integers(0, 4))
def test_when_narration_does_not_fit_the_newest_words_stay(lines: list[str], room: int) -> None:
    fitted = fit_lines(lines, 16, 200, room)
    everything = [part for line in lines for part in wrap(line, 16, 200)]
    assert len(fitted) <= room or fitted == everything
    if len(everything) > room > 0:
        assert fitted[0].startswith("…") and fitted[1:] == everything[len(everything) - room + 1 :]
    assert all(text_size(line, 16)[0] <= 200 for line in fitted if len(line) > 1)


@given(st.floats(0, 1e6))
def test_the_clock_reads_back_as_the_time_to_a_tenth(seconds: float) -> None:
    parts = [float(part) for part in clock(seconds).split(":")]
    total = sum(part * 60**power for power, part in enumerate(reversed(parts)))
    assert total == pytest.approx(seconds, abs=0.0501)
    assert all(part < 60 for part in parts[1:])


@given(st.integers(8, 2000), st.integers(8, 2000), st.integers(0, 40))
def test_tiles_never_leave_the_canvas_or_overlap_the_narration(height: int, width: int, tiles: int) -> None:
    if max(height, width) > 4 * min(height, width):
        height = width  # strips are not pictures
    layout = plan_layout(height, width, tiles)
    assert layout.canvas[0] % 2 == 0 and layout.canvas[1] % 2 == 0
    if tiles:
        rows = -(-tiles // layout.columns)
        assert GAP + rows * (layout.tile[1] + LABEL + GAP) - GAP <= GAP + LABEL + layout.view[1]
        assert GAP + layout.view[0] + layout.columns * (GAP + layout.tile[0]) <= layout.canvas[0]


@pytest.mark.parametrize("size", [(96, 96), (180, 320), (320, 180)])
@pytest.mark.parametrize("layers", [(), (1, 3, 5), tuple(range(1, 32, 2))])
def test_the_overlay_shows_the_same_canvas_whatever_is_kept_and_said(
    size: tuple[int, int], layers: tuple[int, ...]
) -> None:
    layout = plan_layout(*size, len(layers))
    image = picture(*size)
    kept = {layer: np.arange(50) % (layer + 2) == 0 for layer in layers}
    quiet = draw_overlay(image, kept, GRID, [], 0.0, layout)
    speaking = draw_overlay(image, kept, GRID, ["It leaves.", "It is back. " * 30], 7.5, layout)
    assert quiet.shape == speaking.shape == (layout.canvas[1], layout.canvas[0], 3)
    top, below = GAP + LABEL, GAP + LABEL + layout.view[1] + 1
    assert (quiet[top:below] == speaking[top:below]).all(), "words never cover the picture"
    assert (quiet[:top] != speaking[:top]).any(), "the time stands above it"
    assert (quiet[below:] != speaking[below:]).any(), "the narration below"
    # a picture of another shape, as an adaptive stream may send, is fitted in
    assert draw_overlay(image[:50], kept, GRID, [], 1.0, layout).shape == quiet.shape


@pytest.mark.parametrize("size", [(96, 96), (180, 320), (320, 180)])
def test_the_large_picture_of_the_overlay_is_bright_where_any_layer_keeps_and_dark_where_all_drop(
    size: tuple[int, int],
) -> None:
    nothing = {layer: np.zeros(50, dtype=bool) for layer in (1, 3, 5)}
    one, all_ = np.arange(50) == 25, np.ones(50, dtype=bool)  # number 25 is the cell in the middle
    layout = plan_layout(*size, 3)
    view, box = fit(picture(*size), *layout.view)
    kept = nothing, {**nothing, 3: one}, {**nothing, 1: one, 5: all_}
    shown = [draw_overlay(picture(*size), each, GRID, [], 0.0, layout) for each in kept]
    none, middle, full = (drawn[GAP + LABEL :, GAP:][: view.shape[0], : view.shape[1]] for drawn in shown)
    assert (none == (SHADE * view).astype(np.uint8)).all()
    assert 0 < (full != view).any(-1).mean() < 0.08, "of kept cells only the lines are drawn over"
    cell = cell_map(*view.shape[:2], GRID, box) == 24
    assert (middle[~cell] == none[~cell]).all() and (middle[cell] == view[cell]).all(-1).mean() > 0.9


def test_a_tile_tells_how_many_kept_tokens_lie_outside_the_picture() -> None:
    """Rows 0 and 6 of the model's square are bars, of a picture that is twice as wide as it is high."""
    image, layout = picture(180, 360), plan_layout(180, 360, 1)
    inside, outside = np.arange(50) == 25, np.arange(50) == 1
    tiles = [
        draw_overlay(image, {1: kept}, GRID, [], 0.0, layout)[GAP : GAP + LABEL // 2, layout.view[0] + 2 * GAP :]
        for kept in (inside, outside)
    ]
    ends = [int(np.flatnonzero((tile > 128).any((0, 2))).max()) for tile in tiles]
    assert ends[1] > ends[0], "one kept token each, and more words where it cannot be seen"
    assert len(plan_layout(180, 360, 1).legend) > 0 and "outside the picture" in " ".join(layout.legend)
    assert "outside" not in " ".join(plan_layout(96, 96, 1).legend)


def test_a_tile_tells_in_words_whether_the_summary_token_was_kept() -> None:
    layout = plan_layout(96, 96, 1)
    dropped, kept = (
        draw_overlay(picture(96, 96), {1: np.array([cls, *[False] * 49])}, GRID, [], 0.0, layout)
        for cls in (False, True)
    )
    tile = np.s_[GAP : GAP + LABEL, 2 * GAP + layout.view[0] :]
    assert (kept[tile] == ACCENT).all(-1).any() and not (dropped[tile] == ACCENT).all(-1).any()
    assert (kept[tile] != dropped[tile]).any(-1).sum() > 100, "more than a dot: words"


class Watched:
    """What a sink reads of a session."""

    def __init__(self, kept: dict[int, np.ndarray]) -> None:
        self.kept = kept


def test_what_is_said_after_the_last_frame_gets_a_picture_of_its_own(tmp_path: Path) -> None:
    seen = {1: np.ones(50, dtype=bool)}
    counts = []
    for late in (False, True):
        with VideoSink(tmp_path / "out.mp4", 2, GRID) as sink:
            for number in range(3):
                sink.frame(Frame(picture(48, 64), number / 2, number), Watched(seen))
                if number < 2 or late:
                    sink.event(StreamEvent(number / 2 + 0.4, "answer", "Nothing.", number, "What?", number / 2 + 0.4))
        with av.open(str(tmp_path / "out.mp4")) as video:
            counts.append([frame.time for frame in video.decode(video=0)])
    assert counts == [[0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.5]], "never before the question at 1.4 s"


@given(st.integers(1, 400), st.integers(1, 12))
def test_the_sheet_shows_frames_evenly_spread_with_the_first_and_the_last(count: int, columns: int) -> None:
    sink = SheetSink(Path("never-drawn.png"), GRID, columns)
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    for number in range(count):
        sink.frame(Frame(image, number / 2, number), Watched({}))
    numbers = [held.number for held in sink.chosen()]
    assert len(numbers) == min(columns, count) == len(set(numbers)) and numbers[0] == 0
    assert len(sink.held) <= SPARE * columns, "memory is bounded"
    if len(numbers) > 1:
        assert numbers[-1] == count - 1
        step = (count - 1) / (len(numbers) - 1)
        assert np.allclose(numbers, np.arange(len(numbers)) * step, atol=max(0.5, step / 6))


def test_the_sheet_ends_with_a_legend_unless_no_layer_is_routed() -> None:
    frames, times = [picture(90, 160)] * 8, [0.0] * 8
    routed = kept_sheet(frames, [{1: np.ones(50, dtype=bool)}] * 8, GRID, times)
    bare = kept_sheet(frames, [{}] * 8, GRID, times)
    rows = round(176 * 90 / 160) + GAP
    assert routed.shape[0] - bare.shape[0] > rows, "a row, and the legend"
    legend = routed[bare.shape[0] + rows :]
    assert (legend == ACCENT).all(-1).any() and (legend < 150).all(-1).any(), "a bright chip, and words"


@pytest.mark.parametrize("columns", [1, 2, 5, 20])
def test_the_legend_of_a_narrow_sheet_breaks_into_lines_that_fit(columns: int) -> None:
    kept = [{1: np.ones(50, dtype=bool)}] * columns
    sheet = kept_sheet([picture(90, 160)] * columns, kept, GRID, [0.0] * columns)
    assert (sheet[:, -2:] == 255).all(), "nothing is cut off on the right"


def test_the_sheet_has_a_column_per_frame_and_a_row_per_layer() -> None:
    frames = [picture(90, 160)] * 3
    kept = [{1: np.ones(50, dtype=bool), 3: np.zeros(50, dtype=bool)}] * 3
    sheet = kept_sheet(frames, kept, GRID, [0.0, 0.5, 1.0], cell=160)
    more_frames = kept_sheet(frames * 2, kept * 2, GRID, [0.0] * 6, cell=160)
    more_layers = kept_sheet(frames, [{1: k[1], 3: k[3], 5: k[3]} for k in kept], GRID, [0.0, 0.5, 1.0], cell=160)
    assert more_frames.shape[1] - sheet.shape[1] == 3 * (160 + GAP)
    assert more_layers.shape[0] - sheet.shape[0] == 90 + GAP
