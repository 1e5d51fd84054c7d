"""What the world shows is what it says is visible; and mp4 + JSONL come back as they were written."""

import json
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollm_mod.types import InputError
from videollm_mod.world import SHAPES, SPLITS, WorldConfig, WorldStream, make_stream, write_stream
from videollm_mod.world.draw import RGB, coverage

NUMBERS = st.integers(0, 100_000)
NAMES = list(RGB)


def colour_family(pixels: np.ndarray) -> str:
    """The named colour whose direction and strength the mean of pixels (n, 3) is nearest to, whatever the light."""
    mean = pixels.mean(0)
    if mean.max() - mean.min() < 0.25 * mean.max():
        return "white" if mean.min() > 150 else "grey"
    named = np.array([RGB[name] for name in NAMES if name != "white"], float)
    named /= np.linalg.norm(named, axis=1, keepdims=True)
    return [name for name in NAMES if name != "white"][int(np.argmax(named @ mean))]


def wrong_colours(stream: WorldStream, images: np.ndarray, which: list[int], solid: float) -> tuple[int, int]:
    """(wrong, all) over the things in some frames: the colour family of the pixels that a thing covers by `solid`."""
    wrong, count, size = 0, 0, stream.config.size
    for image, i in zip(images, which):
        for thing in stream.visible(stream.times[i]):
            if thing.role != "thing" or thing.visible < 1:
                continue
            x0, y0, x1, _ = (value * size for value in thing.box)
            covered = coverage(thing.shape, x1 - x0, size, size, x0, y0) >= solid
            wrong += colour_family(image[covered].astype(float)) != thing.colour
            count += 1
    return wrong, count


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(SPLITS), NUMBERS)
def test_every_visible_thing_has_its_colour_where_its_shape_is(split: str, number: int) -> None:
    stream = make_stream(split, number)
    which = list(range(0, stream.config.frame_count, 7))
    images = np.stack([stream.render(stream.times[i]) for i in which])
    assert wrong_colours(stream, images, which, solid=1.0)[0] == 0


def test_colours_survive_compression_but_for_a_few_in_a_hundred() -> None:
    results = []
    for number in range(12):
        stream = make_stream("validation", number)
        results.append(wrong_colours(stream, stream.frames(), list(range(stream.config.frame_count)), solid=1.0))
    wrong, count = np.sum(results, axis=0)
    assert count > 300 and wrong <= 0.03 * count


@settings(max_examples=10, deadline=None)
@given(NUMBERS)
def test_where_nothing_is_visible_no_saturated_colour_is_shown(number: int) -> None:
    stream = make_stream("train", number, WorldConfig(noise=0.0))
    for time in stream.times[::6]:
        image, size = stream.render(time).astype(int), stream.config.size
        elsewhere = np.ones((size, size), bool)
        for seen in stream.visible(time):
            if seen.role != "clutter":
                x0, y0, x1, y1 = (round(value * size) for value in seen.box)
                elsewhere[max(y0 - 2, 0) : y1 + 2, max(x0 - 2, 0) : x1 + 2] = False
        spread = image.max(2) - image.min(2)
        # Less than 2 % of a thing, or of a hand's tip, may still peep in unreported at the border.
        assert (spread[elsewhere] > 70).sum() <= 0.02 * (0.33 * size) ** 2 + 4


def test_shapes_fill_their_box_and_differ_from_each_other() -> None:
    masks = {shape: coverage(shape, 16.0, 20, 20, 2.0, 2.0) for shape in SHAPES}
    for shape, mask in masks.items():
        rows, columns = np.flatnonzero(mask.max(1) > 0.3), np.flatnonzero(mask.max(0) > 0.3)
        assert len(columns) >= 14 and len(rows) >= 14, shape
        assert mask[:1].max() == 0 and mask[:, :1].max() == 0, shape
        assert all(np.abs(mask - other).sum() > 25 for name, other in masks.items() if name != shape), shape


def test_frames_are_the_renderings_when_not_compressed_and_near_them_when_compressed() -> None:
    plain, coded = (make_stream("train", 5, WorldConfig(seconds=6.0, compress=flag)) for flag in (False, True))
    drawn = np.stack([plain.render(time) for time in plain.times])
    assert drawn.shape == (12, 112, 112, 3) and drawn.dtype == np.uint8
    assert np.array_equal(plain.frames(), drawn)
    once, again = coded.frames(), coded.frames()
    assert np.array_equal(once, again), "compression is deterministic"
    error = np.abs(once.astype(int) - drawn).mean()
    assert 0.5 < error < 8


def test_a_larger_picture_shows_the_same_at_more_pixels() -> None:
    small, large = (make_stream("test", 2, WorldConfig(size=size, noise=0.0, jitter=0.0)) for size in (112, 448))
    for time in (0.0, 11.3, 29.5):
        shrunk = large.render(time).reshape(112, 4, 112, 4, 3).mean((1, 3))
        assert np.abs(shrunk - small.render(time)).mean() < 1.5


@pytest.mark.parametrize("size", [32, 98, 112, 160])
def test_any_even_size_can_be_drawn_and_compressed(size: int) -> None:
    stream = make_stream("train", 1, WorldConfig(seconds=2.0, size=size))
    assert stream.frames().shape == (4, size, size, 3)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(SPLITS), NUMBERS, st.floats(0, 30))
def test_boxes_lie_in_the_picture(split: str, number: int, time: float) -> None:
    for seen in make_stream(split, number).visible(time):
        x0, y0, x1, y1 = seen.box
        assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 and 0 < seen.visible <= 1 + 1e-9
        assert seen.role in ("thing", "hand", "clutter")


def test_a_time_outside_of_the_stream_is_refused() -> None:
    stream = make_stream("train", 0)
    for ask in (stream.render, stream.visible):
        with pytest.raises(InputError, match=r"Time 31 s is outside of train-000000"):
            ask(31)


def test_a_written_stream_reads_back_with_its_duration_and_its_truth(tmp_path: Path) -> None:
    stream = make_stream("test", 0, WorldConfig(seconds=12.0, questions=6.0))
    path = write_stream(stream, tmp_path / "new")
    assert sorted(p.name for p in path.parent.iterdir()) == ["test-000000.jsonl", "test-000000.mp4"]
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video)]
        assert container.duration == 12_000_000 and video.codec_context.name == "h264"
    assert len(frames) == 96
    for time, image in frames[::10]:
        assert np.abs(image.astype(int) - stream.render(time)).mean() < 8
    (line,) = path.with_suffix(".jsonl").read_text().splitlines()
    record = json.loads(line)
    assert (record["video"], record["duration"], record["fps"]) == ("test-000000.mp4", 12.0, 2.0)
    segments = record["segments"]
    assert [s["time"] for s in segments] == sorted(s["time"] for s in segments)
    narrated = [(s["time"], s["text"]) for s in segments if s["kind"] in {event.kind for event in stream.events}]
    assert narrated == [(round(event.time, 4), event.text) for event in stream.events] != []
    asked = [(one, following) for one, following in pairwise(segments) if one["role"] == "user"]
    assert stream.questions
    for question, (user, assistant) in zip(stream.questions, asked, strict=True):
        assert (user["text"], assistant["text"]) == (question.question, question.answer)
        assert user["time"] == assistant["time"] == question.time and assistant["role"] == "assistant"


def test_an_unwritable_folder_and_a_bad_rate_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    stream = make_stream("test", 0, WorldConfig(seconds=2.0))
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InputError, match="choose a writable folder"):
        write_stream(stream, tmp_path / "file")
    with pytest.raises(InputError, match="fps 0 is out of range"):
        write_stream(stream, tmp_path, fps=0)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
