"""Letterboxing: where the picture lies, what is around it, and that it is resampled without aliasing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from videollm_mod.video import letterbox, letterbox_box

sides = st.integers(1, 200)


@given(sides, sides, st.integers(1, 100))
def test_the_box_is_centred_touches_two_sides_and_keeps_the_aspect(height: int, width: int, size: int) -> None:
    x0, y0, x1, y1 = letterbox_box(height, width, size)
    assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
    assert max(x1 - x0, y1 - y0) == size
    assert 0 <= (size - x1) - x0 <= 1 and 0 <= (size - y1) - y0 <= 1
    scale = size / max(height, width)
    for fitted, exact in [(x1 - x0, width * scale), (y1 - y0, height * scale)]:
        assert abs(fitted - exact) <= 0.5 + 1e-9 or fitted == 1


@settings(max_examples=30, deadline=None)
@given(sides, sides, st.integers(8, 96))
def test_the_picture_fills_the_box_and_the_fill_the_rest(height: int, width: int, size: int) -> None:
    white = np.full((2, height, width, 3), 255, np.uint8)
    square = letterbox(white, size, fill=(1, 2, 3))
    assert square.shape == (2, size, size, 3) and square.dtype == torch.uint8
    x0, y0, x1, y1 = letterbox_box(height, width, size)
    assert (square[:, y0:y1, x0:x1] == 255).all()
    square[:, y0:y1, x0:x1] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    assert (square == torch.tensor([1, 2, 3])).all()


@pytest.mark.parametrize("convert", [lambda images: images, torch.from_numpy])
def test_a_square_of_the_right_size_comes_back_as_it_is(convert: object) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    square = letterbox(convert(images), 40)
    assert np.array_equal(square.numpy(), images)
    square[:] = 0
    assert images.any(), "the pictures given are not the ones returned"


def test_shrinking_agrees_with_pillows_antialiased_bilinear() -> None:
    image = np.random.default_rng(1).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    x0, y0, x1, y1 = letterbox_box(120, 200, 50)
    ours = letterbox(image[None], 50)[0, y0:y1, x0:x1].numpy().astype(int)
    pillow = np.asarray(Image.fromarray(image).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)).astype(int)
    assert abs(ours - pillow).max() <= 1


def test_flipped_views_and_no_frames_at_all_are_fine() -> None:
    images = np.arange(2 * 6 * 4 * 3, dtype=np.uint8).reshape(2, 6, 4, 3)
    assert torch.equal(letterbox(images[:, ::-1], 6), letterbox(images[:, ::-1].copy(), 6))
    assert letterbox(images[:0], 6).shape == (0, 6, 6, 3)


def test_other_shapes_and_types_are_refused() -> None:
    for wrong in [np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.float32)]:
        with pytest.raises(ValueError, match="uint8"):
            letterbox(wrong, 8)
    with pytest.raises(ValueError, match="at least 1"):
        letterbox_box(0, 4, 8)


def test_a_picture_that_may_not_be_written_to_is_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    picture = np.full((1, 8, 4, 3), 9, np.uint8)
    picture.flags.writeable = False
    assert letterbox(picture, 8)[0, 0, 2:6].eq(9).all() and not picture.flags.writeable and not list(recwarn)
