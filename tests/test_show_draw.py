"""Pictures of kept sets: what is kept stays as it was, what is skipped is dimmed, and all of it where it really is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.show.clock import clock
from videollm_mod.show.draw import ACCENT, cell_map, draw_kept, draw_share
from videollm_mod.show.overlay import GAP, LABEL, draw_overlay, fit, kept_sheet, plan_layout
from videollm_mod.show.text import caption, fit_lines, text_size, wrap
from videollm_mod.types import InputError
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
        draw_share(image, kept / 2, GRID, whole(image), layers=3),
        caption(image, ["A small red square enters from the left."], time=3.25),
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


def test_more_layers_keeping_a_cell_make_it_brighter_and_no_layer_leaves_it_grey() -> None:
    image = np.full((100, 100, 3), 90, dtype=np.uint8)
    share = np.array([0.0, 0.0, 0.25, 0.5, 1.0])
    drawn = draw_share(image, share, (1, 4), whole(image))
    none, *some = (drawn[50, x].astype(int) for x in (12, 37, 62, 87))
    assert len(set(none)) == 1
    sums = [colour.sum() for colour in some]
    assert sums == sorted(sums) and len(set(sums)) == 3


def test_a_kept_set_that_does_not_fit_the_grid_is_refused_with_both_sizes() -> None:
    with pytest.raises(InputError, match=r"\(49,\).*\(50,\)"):
        draw_kept(picture(40, 40), np.zeros(49, dtype=bool), GRID, (0, 0, 40, 40))
    with pytest.raises(InputError, match="empty"):
        draw_share(picture(40, 40), np.zeros(50), GRID, (0, 0, 0, 40))


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


@given(st.sampled_from([0, 96, 255]))
def test_a_caption_is_readable_on_any_background(level: int) -> None:
    drawn = caption(np.full((180, 320, 3), level, dtype=np.uint8), ["Something happens."]).mean(-1)
    band = drawn[-20:-4]
    assert band.max() > 240, "white letters"
    assert np.median(band) < 100, "on dark ground"


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
        assert GAP + rows * (layout.tile[1] + LABEL + GAP) - GAP <= GAP + layout.view[1] + LABEL
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
    below = GAP + layout.view[1] + 1
    assert (quiet[:below] == speaking[:below]).all() and (quiet[below:] != speaking[below:]).any()
    # a picture of another shape, as an adaptive stream may send, is fitted in
    assert draw_overlay(image[:50], kept, GRID, [], 1.0, layout).shape == quiet.shape


def test_the_sheet_has_a_column_per_frame_and_a_row_per_layer() -> None:
    frames = [picture(90, 160)] * 3
    kept = [{1: np.ones(50, dtype=bool), 3: np.zeros(50, dtype=bool)}] * 3
    sheet = kept_sheet(frames, kept, GRID, [0.0, 0.5, 1.0], cell=160)
    more_frames = kept_sheet(frames * 2, kept * 2, GRID, [0.0] * 6, cell=160)
    more_layers = kept_sheet(frames, [{1: k[1], 3: k[3], 5: k[3]} for k in kept], GRID, [0.0, 0.5, 1.0], cell=160)
    assert more_frames.shape[1] - sheet.shape[1] == 3 * (160 + GAP)
    assert more_layers.shape[0] - sheet.shape[0] == 90 + GAP
