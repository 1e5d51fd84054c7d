"""What fixed cameras see in the generated world: every event is shown when it is told, and told as it is shown."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollm_mod.dialogue import Assistant, Stream
from videollm_mod.types import InputError
from videollm_mod.video.letterbox import letterbox_box
from videollm_mod.world.camera import (
    KINDS,
    PLACES,
    SIDES,
    SPLITS,
    CameraConfig,
    CameraEvent,
    CameraStream,
    VisibleActor,
    all_camera_sentences,
    make_camera_stream,
    narration,
    parse,
)
from videollm_mod.world.camera.config import ASPECTS, SPACING
from videollm_mod.world.camera.motion import fitted
from videollm_mod.world.conversation import segments
from videollm_mod.world.words import split_words

NUMBERS = st.integers(0, 100_000)
STREAMS = st.builds(make_camera_stream, st.sampled_from(SPLITS), NUMBERS)
MANY = settings(max_examples=30, deadline=None)
FEW = settings(max_examples=4, deadline=None)
STILL = CameraConfig(noise=0, jitter=0, light=0, shadows=0, blur=0, compress=False)


@pytest.fixture(scope="module")
def streams() -> list[CameraStream]:
    """Two hundred streams, not drawn."""
    return [make_camera_stream("train", number) for number in range(200)]


def actor_of(stream: CameraStream, event: CameraEvent, time: float) -> VisibleActor | None:
    """The walker or object of an event, if it is visible at `time`."""
    scene, script = stream.script.scene, stream.script
    number = event.actor + len(scene.screens) + len(scene.plants) + len(scene.specks)
    number += len(script.walkers) if event.place else 0
    return next((one for one in stream.visible(time) if one.number == number), None)


def third(stream: CameraStream, x: float) -> str:
    """In which third of the content's width a place of the square lies."""
    x0, _, x1, _ = stream.content
    return PLACES[min(int((x - x0) / (x1 - x0) * 3), 2)]


@FEW
@given(st.sampled_from(SPLITS), NUMBERS)
def test_the_same_arguments_give_the_same_stream(split: str, number: int) -> None:
    config = CameraConfig(seconds=4)
    one, two = make_camera_stream(split, number, config), make_camera_stream(split, number, config)
    assert one.events == two.events and one.questions == two.questions
    assert np.array_equal(one.frames(), two.frames())


def test_the_splits_share_no_stream() -> None:
    stories = [
        (stream.script.walkers, stream.script.things, stream.script.scene)
        for split in SPLITS
        for stream in (make_camera_stream(split, number) for number in range(8))
    ]
    assert all(one != two for i, one in enumerate(stories) for two in stories[:i])


@MANY
@given(NUMBERS)
def test_dials_of_pixels_do_not_change_the_story(number: int) -> None:
    plain = make_camera_stream("train", number)
    other = make_camera_stream(
        "train",
        number,
        CameraConfig(size=64, noise=0, jitter=0.02, light=0, shadows=0, blur=0, distractors=1, film=1, crf=(40, 40)),
    )
    assert plain.events == other.events
    assert plain.script.walkers == other.script.walkers and plain.script.hands == other.script.hands


@MANY
@given(STREAMS)
def test_who_enters_is_seen_at_the_named_side_and_was_not_seen_before(stream: CameraStream) -> None:
    x0, y0, x1, y1 = stream.content
    for event in stream.events:
        if event.kind != "enter":
            continue
        now = actor_of(stream, event, stream.times[event.frame])
        assert now is not None and now.role == "walker" and now.name == event.name
        assert actor_of(stream, event, max(0.0, event.time - event.vague - 0.05)) is None
        at_first = actor_of(stream, event, event.time)
        assert at_first is not None
        near = {
            "left": at_first.box[0] - x0,
            "top": at_first.box[1] - y0,
            "right": x1 - at_first.box[2],
            "bottom": y1 - at_first.box[3],
        }
        assert near[event.side] <= 0.02


@MANY
@given(STREAMS)
def test_who_leaves_was_seen_and_is_not_seen_any_more(stream: CameraStream) -> None:
    for event in stream.events:
        if event.kind == "leave":
            assert actor_of(stream, event, event.time) is None
            assert actor_of(stream, event, stream.times[event.frame]) is None
            assert event.time < event.vague + 0.1 or actor_of(stream, event, event.time - event.vague - 0.1) is not None


@MANY
@given(STREAMS)
def test_what_is_placed_rests_in_the_named_third(stream: CameraStream) -> None:
    for event in stream.events:
        if event.kind == "placed":
            now = actor_of(stream, event, stream.times[event.frame])
            assert now is not None and now.state == "rests" and third(stream, now.centre[0]) == event.place
            before = actor_of(stream, event, max(0.0, event.time - 0.05))
            assert before is None or before.state == "held"


@MANY
@given(STREAMS)
def test_what_is_removed_rested_in_the_named_third_and_is_off_its_place(stream: CameraStream) -> None:
    for event in stream.events:
        if event.kind == "removed":
            before = actor_of(stream, event, max(0.0, event.time - event.vague - 0.05))
            assert before is not None and before.state == "rests" and third(stream, before.centre[0]) == event.place
            now = actor_of(stream, event, stream.times[event.frame])
            assert now is None or (now.state == "held" and np.hypot(*np.subtract(now.centre, before.centre)) > 0.03)


@MANY
@given(STREAMS)
def test_only_two_hands_do_things_at_once(stream: CameraStream) -> None:
    assert [event.time for event in stream.events] == sorted(event.time for event in stream.events)
    for one, two in pairwise(stream.events):
        at_once = one.place is not None and one.kind == two.kind
        assert two.time - one.time >= SPACING - 1e-9 or at_once
        assert two.frame > one.frame or at_once


@MANY
@given(STREAMS)
def test_every_sentence_is_known_and_read_back(stream: CameraStream) -> None:
    known = set(all_camera_sentences())
    for event in stream.events:
        assert event.text in known and parse(event.text) == (event.kind, event.side or event.place)
        assert stream.times[event.frame] >= event.time - 1e-9 > stream.times[event.frame] - 1 / stream.config.fps - 1e-6
    for question in stream.questions:
        assert {question.question, question.answer} <= known


def test_only_narrations_are_read_back_and_words_are_few() -> None:
    for kind, wheres in zip(KINDS, (SIDES, SIDES, PLACES, PLACES)):
        for where in wheres:
            assert parse(narration(kind, "something", where)) == (kind, where)
    for text in (
        "",
        "Nothing.",
        "A person enters from the roof.",
        "A person enters from the left. A car",
        "A hand takes it.",
    ):
        assert parse(text) is None
    assert len({word for text in all_camera_sentences() for word in split_words(text)}) < 70


@FEW
@given(STREAMS)
def test_a_stream_is_a_conversation(stream: CameraStream) -> None:
    said = segments(stream, "Narrate.")
    assert sum(part.frames for part in said if isinstance(part, Stream)) == stream.config.frame_count
    texts = [part.text for part in said if isinstance(part, Assistant)]
    assert len(texts) == len({event.frame for event in stream.events}) + len(stream.questions)
    assert " ".join(event.text for event in stream.events) == " ".join(
        part.text for before, part in pairwise(said) if isinstance(part, Assistant) and isinstance(before, Stream)
    )


@settings(max_examples=12, deadline=None)
@given(NUMBERS)
def test_pixels_change_only_where_something_is_said_to_be(number: int) -> None:
    stream = make_camera_stream("train", number, STILL)
    if stream.script.scene.shades:
        return  # shadows without bodies
    size = stream.config.size
    for time in (3.0, 11.5, 20.0):
        one, two = (stream.render(t).astype(int) for t in (time, time + 0.5))
        changed = np.abs(one - two).max(2) > 4
        for seen in stream.visible(time) + stream.visible(time + 0.5):
            x0, y0, x1, y1 = (value * size for value in seen.box)
            changed[max(0, int(y0) - 3) : int(y1) + 4, max(0, int(x0) - 3) : int(x1) + 4] = False
        assert changed.sum() <= 6  # what is hardly in view is not listed


def test_an_event_changes_pixels(streams: list[CameraStream]) -> None:
    dull = count = 0
    for stream in streams[:60]:
        for event in stream.events[:2]:
            if event.kind != "leave":
                continue
            before, after = (stream.render(t).astype(int) for t in (max(0, event.time - event.vague - 0.5), event.time))
            dull += np.abs(before - after).max() < 40
            count += 1
    assert count > 15 and dull <= 0.1 * count


def test_the_picture_lies_where_a_letterbox_puts_it_and_bars_are_black() -> None:
    for aspect in ASPECTS:
        assert fitted(aspect, 112) == letterbox_box(aspect[1] * 20, aspect[0] * 20, 112)
    for number in range(12):
        stream = make_camera_stream("test", number, CameraConfig(seconds=2))
        frames = stream.frames()
        x0, y0, x1, y1 = fitted(stream.script.scene.aspect, 112)
        assert frames.shape == (4, 112, 112, 3) and frames.dtype == np.uint8
        assert frames[:, y0:y1, x0:x1].mean() > 5
        frames[:, y0:y1, x0:x1] = 0
        assert not frames.any()


def test_every_kind_and_side_is_frequent_enough(streams: list[CameraStream]) -> None:
    counts = Counter((event.kind, event.side or event.place) for stream in streams for event in stream.events)
    total = sum(counts.values())
    kinds = Counter(kind for kind, _ in counts.elements())
    assert 3 <= total / len(streams) <= 5  # 8 per minute in those that are not quiet
    assert all(kinds[kind] >= 0.14 * total for kind in KINDS)
    for kind in ("enter", "leave"):
        assert all(counts[kind, side] >= 0.15 * kinds[kind] for side in ("left", "right", "bottom"))
        assert counts[kind, "top"] >= 0.02 * kinds[kind]
    for kind in ("placed", "removed"):
        assert all(counts[kind, place] >= 0.2 * kinds[kind] for place in PLACES)
    named = Counter(event.name for stream in streams for event in stream.events)
    assert named["something"] > 0.25 * total and len(named) == 6


def test_another_film_changes_all_pixels_and_nothing_else() -> None:
    for number in range(6):
        plain = make_camera_stream("train", number, CameraConfig(compress=False, seconds=4))
        other = make_camera_stream("train", number, CameraConfig(compress=False, seconds=4, film=1))
        assert plain.events == other.events and other.script.scene.film is not None
        assert replace(other.script.scene, film=None) == plain.script.scene
        apart = np.abs(plain.render(1.0).astype(int) - other.render(1.0).astype(int)).mean()
        assert apart > 0.5  # in 8-bit levels, bars included


def test_some_films_are_without_colours_and_some_have_a_wrong_white_balance() -> None:
    config = CameraConfig(film=1, seconds=2, noise=0, compress=False)
    films = [make_camera_stream("train", number, config) for number in range(60)]
    grey = [stream for stream in films if stream.script.scene.film.saturation == 0]  # type: ignore[union-attr]
    assert 3 <= len(grey) <= 20
    assert all(np.ptp(stream.render(1.0).astype(int), axis=-1).max() == 0 for stream in grey[:3])
    warmth = [film.cast[0] - film.cast[2] for stream in films if (film := stream.script.scene.film) is not None]
    assert warmth.count(0) > 15 and max(warmth) > 0.2 and min(warmth) < -0.2 and max(map(abs, warmth)) <= 0.8


@pytest.mark.slow
def test_pairs_crowds_and_aspects_are_as_asked_for() -> None:
    def streams_of(**dials: Any) -> list[CameraStream]:
        return [make_camera_stream("train", number, CameraConfig(quiet=0, **dials)) for number in range(60)]

    def at_once(streams: list[CameraStream]) -> int:
        return sum(b.time - a.time < 0.6 for stream in streams for a, b in pairwise(stream.events))

    assert at_once(streams_of(objects=1, pairs=0)) == 0
    assert at_once(streams_of(objects=1, pairs=1)) > 2 * at_once(streams_of(objects=1)) > 0
    walkers = [
        sum(len(stream.script.walkers) for stream in streams_of(objects=0, events_per_minute=14, crowd=crowd))
        for crowd in (0, 1)
    ]
    assert walkers[1] > 1.1 * walkers[0]
    assert {stream.script.scene.aspect for stream in streams_of(aspects=((16, 9), (4, 3)))} == {(16, 9), (4, 3)}


def test_some_streams_are_quiet_and_all_can_be(streams: list[CameraStream]) -> None:
    assert 0.04 <= sum(not stream.events for stream in streams) / len(streams) <= 0.2
    assert not any(make_camera_stream("train", number, CameraConfig(quiet=1)).events for number in range(20))


@pytest.mark.parametrize(
    "dial",
    [
        {"seconds": 0},
        {"fps": 0},
        {"size": 113},
        {"size": 8},
        {"events_per_minute": 100},
        {"quiet": 2},
        {"pairs": 2},
        {"crowd": -1},
        {"film": 1.5},
        {"aspects": ()},
        {"aspects": ((16, 0),)},
        {"crf": (30, 20)},
        {"crf": (0, 60)},
        {"noise": float("nan")},
        {"shadows": -1},
    ],
)
def test_a_bad_dial_is_named_in_one_sentence(dial: dict) -> None:
    with pytest.raises(InputError) as error:
        CameraConfig(**dial)
    assert next(iter(dial)) in str(error.value) and str(error.value).count("\n") == 0


def test_wrong_splits_numbers_and_times_are_refused() -> None:
    with pytest.raises(InputError, match="heldout"):
        make_camera_stream("heldout", 0)
    with pytest.raises(InputError, match="-1"):
        make_camera_stream("train", -1)
    with pytest.raises(InputError, match="outside"):
        make_camera_stream("train", 0).render(31)
