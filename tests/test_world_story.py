"""What the world tells is true, clear and reproducible: events, questions, splits and words."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videollm_mod.types import InputError
from videollm_mod.world import (
    COLOURS,
    DIFFICULTIES,
    HELD_OUT,
    SHAPES,
    SIZES,
    SPLITS,
    WorldConfig,
    WorldStream,
    all_sentences,
    difficulty,
    make_stream,
    matter,
    split_words,
    vocabulary,
)
from videollm_mod.world.config import EVENT_KINDS, SIDES
from videollm_mod.world.questions import CLEAR
from videollm_mod.world.script import SPACING
from videollm_mod.world.stage import MIN_STEP
from videollm_mod.world.words import describe

NUMBERS = st.integers(0, 100_000)
WORLDS = st.sampled_from(list(DIFFICULTIES)).map(difficulty)
STREAMS = st.builds(make_stream, st.sampled_from(SPLITS), NUMBERS, WORLDS)
MANY = settings(max_examples=60, deadline=None)
STEP = 1e-3  # seconds: "just before" and "just after"


def in_view(stream: WorldStream, time: float) -> dict[str, tuple[float, float, bool, float]]:
    """Description -> x, y, moving, visible fraction of the things in view."""
    things = [thing for thing in stream.visible(time) if thing.role == "thing"]
    return {describe(thing.look): (*thing.centre, thing.moving, thing.visible) for thing in things}


def border_crossed(stream: WorldStream, name: str, start: float, end: float) -> str:
    """The one side of the picture that cuts a thing off while it is neither wholly inside nor outside."""
    sides = set()
    for step in range(1, 200):
        for seen in stream.visible(start + (end - start) * step / 200):
            if describe(seen.look) == name and seen.visible < 0.9:
                x0, y0, x1, y1 = seen.box
                sides |= {side for side, cut in zip(SIDES, (x0 == 0, x1 == 1, y0 == 0, y1 == 1)) if cut}
    (side,) = sides
    return side


@MANY
@given(st.sampled_from(SPLITS), NUMBERS)
def test_the_same_arguments_give_the_same_stream(split: str, number: int) -> None:
    one, two = make_stream(split, number), make_stream(split, number)
    assert one == two and one.questions == two.questions


def test_splits_and_numbers_never_tell_the_same_story() -> None:
    scripts = [make_stream(split, number).script for split in SPLITS for number in range(50)]
    assert all(one.scenes[0] != two.scenes[0] for i, one in enumerate(scripts) for two in scripts[:i])


def test_the_story_does_not_depend_on_how_it_is_drawn() -> None:
    large = WorldConfig(size=448, noise=0.0, compress=False, questions=5.0)
    assert make_stream("train", 3).script == make_stream("train", 3, large).script


@MANY
@given(STREAMS)
def test_held_out_pairs_are_seen_in_the_heldout_split_only_and_there_nothing_else(stream: WorldStream) -> None:
    held_out = stream.name.startswith("heldout")
    seen = {(colour, thing.shape) for thing in stream.script.things for _, colour in thing.colours}
    told = {(e.became or e.look.colour, e.look.shape) for e in stream.events if e.look is not None}
    assert told <= seen
    assert all((pair in HELD_OUT) == held_out for pair in seen)


def test_each_colour_and_shape_is_still_seen_in_training() -> None:
    kept = [(colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT]
    assert len(HELD_OUT) == 5
    assert all(sum(colour == c for c, _ in kept) >= 4 for colour in COLOURS)
    assert all(sum(shape == s for _, s in kept) >= 4 for shape in SHAPES)


@MANY
@given(STREAMS)
def test_every_sentence_is_true_just_after_its_event_and_was_not_before(stream: WorldStream) -> None:
    for event in stream.events:
        frame_time = event.frame / stream.config.fps
        assert event.frame == min(i for i, time in enumerate(stream.times) if time >= event.time - 1e-9)
        now, roles = in_view(stream, frame_time), [seen.role for seen in stream.visible(event.time + STEP)]
        if event.kind == "cut":
            assert event.text == "The scene changes."
            assert stream.script.scene(event.time - STEP) != stream.script.scene(event.time)
            continue
        assert event.look is not None
        name = describe(event.look)
        assert name in event.text
        begin = max(start for start, _ in stream.script.busy if start <= event.time)
        before = in_view(stream, begin - STEP)
        if event.kind == "enters":
            assert name not in before and now[name][3] > 0.999
            assert event.text == f"A {name} enters from the {border_crossed(stream, name, begin, event.time)}."
        elif event.kind == "leaves":
            assert name in before and name not in now
            assert event.text == f"The {name} leaves to the {border_crossed(stream, name, begin, event.time)}."
        elif event.kind in ("appears", "placed"):
            assert name not in before and now[name][3] > 0.999 and not now[name][2]
            assert "hand" not in roles
        elif event.kind in ("disappears", "taken"):
            assert name in before and name not in now
            assert "hand" not in roles
        elif event.kind == "turns":
            assert event.became is not None
            after = name.replace(event.look.colour, event.became)
            assert name in before and name not in now and after in now and after not in before
        elif event.kind == "starts":
            assert not before[name][2] and now[name][2]
            assert abs(now[name][0] - before[name][0]) + abs(now[name][1] - before[name][1]) > 0.03
        else:
            assert event.kind == "stops" and before[name][2]
            last = in_view(stream, frame_time - 1 / stream.config.fps)
            assert not now[name][2] and not last[name][2], "two sampled frames show it at rest"


@MANY
@given(STREAMS)
def test_hands_bring_and_take_what_is_placed_and_taken_and_nothing_else(stream: WorldStream) -> None:
    with_hand = [event.time for event in stream.events if event.kind in ("placed", "taken")]
    assert with_hand == [hand.gone for hand in stream.script.hands]
    for hand in stream.script.hands:
        seen = [any(x.role == "hand" for x in stream.visible(t)) for t in stream.times if hand.start < t < hand.gone]
        assert any(seen), "a sampled frame shows the hand"


@MANY
@given(STREAMS)
def test_events_keep_their_distance_and_no_frame_shows_one_in_part(stream: WorldStream) -> None:
    events = stream.events
    assert all(later.time - earlier.time >= SPACING - 1e-9 for earlier, later in pairwise(events))
    assert all(later.frame > earlier.frame for earlier, later in pairwise(events))
    assert all(event.frame < stream.config.frame_count for event in events)
    assert all(start > end for (_, end), (start, _) in pairwise(stream.script.busy))
    for event in events:
        assert not any(event.time - event.vague + 1e-6 < time < event.time - 1e-6 for time in stream.times)


@MANY
@given(STREAMS)
def test_between_events_the_things_in_view_and_their_state_stay_the_same(stream: WorldStream) -> None:
    busy = [(0.0, 0.0), *stream.script.busy, (stream.config.seconds, stream.config.seconds)]
    for (_, end), (start, _) in pairwise(busy):
        early, late = in_view(stream, end), in_view(stream, max(end, start - STEP))
        assert {name: seen[2] for name, seen in early.items()} == {name: seen[2] for name, seen in late.items()}


@MANY
@given(STREAMS)
def test_things_in_view_look_different_never_overlap_and_are_never_too_many(stream: WorldStream) -> None:
    for time in stream.times:
        things = [thing for thing in stream.visible(time) if thing.role == "thing"]
        assert len({thing.look for thing in things}) == len(things) <= stream.config.max_things
        for i, one in enumerate(things):
            for two in things[:i]:
                (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = one.box, two.box
                assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0


@MANY
@given(STREAMS)
def test_what_moves_is_seen_to_move_and_what_rests_is_seen_to_rest(stream: WorldStream) -> None:
    for thing in stream.script.things:
        for leg, following in pairwise([*thing.legs, None]):
            end = min(thing.gone, stream.config.seconds, following.start if following else 1e9)
            (x0, y0), (x1, y1) = leg.at(leg.start), leg.at(leg.start + 0.5)
            if leg.moves and end - leg.start > 0.5:
                assert ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5 >= MIN_STEP
            assert leg.moves or (x0, y0) == (x1, y1)


@MANY
@given(st.sampled_from(SPLITS), NUMBERS)
def test_every_answer_follows_from_what_is_visible(split: str, number: int) -> None:
    stream = make_stream(split, number, WorldConfig(questions=8.0))
    for asked in stream.questions:
        assert asked.time == stream.times[asked.frame]
        assert all(event.frame != asked.frame for event in stream.events)
        assert not any(start <= asked.time <= end for start, end in stream.script.busy)
        view = in_view(stream, asked.time)
        if asked.kind == "count":
            assert asked.answer == ["None.", "One.", "Two.", "Three."][len(view)]
        elif asked.kind == "last":
            told = [event.text for event in stream.events if event.time <= asked.time]
            assert asked.answer == (told[-1] if told else "Nothing yet.")
        elif asked.kind == "view":
            named = re.findall(r"[Aa] ((?:small|large) \w+ \w+)", asked.answer)
            assert named == sorted(view, key=lambda name: view[name][0])
            assert (asked.answer == "Nothing.") == (not view)
        else:
            found = re.fullmatch(r"Where is the (.*)\?", asked.question)
            assert found is not None
            x, y = view[found.group(1)][:2]
            row, column = ("top", "middle", "bottom")[int(y * 3)], ("left", "middle", "right")[int(x * 3)]
            assert asked.answer == (
                "In the middle." if (row, column) == ("middle", "middle") else f"In the {row} {column}."
            )
            assert min(abs(place - line) for place in (x, y) for line in (1 / 3, 2 / 3)) >= CLEAR


def test_over_many_streams_every_kind_happens_at_the_wanted_rate() -> None:
    streams = [make_stream("train", number) for number in range(200)]
    kinds = [event.kind for stream in streams for event in stream.events]
    assert 10 <= len(kinds) / 100 <= 12  # per minute
    assert all(kinds.count(kind) >= 0.04 * len(kinds) for kind in EVENT_KINDS)
    questions = [question.kind for stream in streams for question in stream.questions]
    assert 1.7 <= len(questions) / 200 <= 2.2
    assert min(questions.count(kind) for kind in ("view", "count", "last", "where")) > 30
    gaps = [b - a for stream in streams for a, b in pairwise([0.0, *(e.time for e in stream.events)])]
    assert sum(gap > 8 for gap in gaps) > 0.05 * len(gaps), "there are quiet periods"
    begins = [len(in_view(stream, 0.0)) for stream in streams]
    assert {0, 1, 2} <= set(begins), "some streams start with things in view"


def test_the_vocabulary_covers_everything_that_is_said() -> None:
    words, sentences = set(vocabulary()), set(all_sentences())
    for stream in (make_stream(split, number) for split in SPLITS for number in range(40)):
        for text in [event.text for event in stream.events] + [question.question for question in stream.questions]:
            assert text in sentences
        for question in stream.questions:
            assert set(split_words(question.answer)) <= words
            assert question.answer in sentences or question.kind == "view"
    assert len(words) < 80 and {*COLOURS, *SHAPES, *SIZES} <= words


@pytest.mark.parametrize(
    ("dials", "said"),
    [
        ({"size": 113}, "size 113"),
        ({"size": 8}, "size 8"),
        ({"fps": 0.0}, "fps 0.0"),
        ({"seconds": float("nan")}, "seconds nan"),
        ({"events_per_minute": 60.0}, "events_per_minute 60.0"),
        ({"max_things": 4}, "max_things 4"),
        ({"crf": (30, 20)}, "crf (30, 20)"),
    ],
)
def test_a_dial_out_of_range_is_named_with_its_value(dials: dict, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        WorldConfig(**dials)


def test_an_unknown_split_and_a_negative_number_are_refused() -> None:
    with pytest.raises(InputError, match="'dev' does not exist"):
        make_stream("dev", 0)
    with pytest.raises(InputError, match="-1 is negative"):
        make_stream("train", -1)


def test_a_favoured_kind_happens_more_often_and_a_kind_of_factor_0_never() -> None:
    def kinds(config: WorldConfig) -> list[str]:
        return [event.kind for number in range(60) for event in make_stream("train", number, config).events]

    usual, favoured = kinds(WorldConfig()), kinds(WorldConfig(favoured=(("cut", 4.0), ("turns", 0.0))))
    assert favoured.count("cut") / len(favoured) > 2 * usual.count("cut") / len(usual) > 0
    assert "turns" in usual and "turns" not in favoured


def test_things_are_smaller_and_faster_and_more_is_in_their_way_the_harder_the_world() -> None:
    def measure(name: str) -> tuple[float, float, float]:
        streams = [make_stream("train", number, difficulty(name)) for number in range(40)]
        things = [thing for stream in streams for thing in stream.script.things]
        spins = [abs(leg.spin) * leg.radius for thing in things for leg in thing.legs if leg.drifts]
        clutter = [len(scene.clutter) for stream in streams for scene in stream.script.scenes]
        means = [sum(values) / len(values) for values in ([thing.extent for thing in things], spins, clutter)]
        return means[0], means[1], means[2]

    easy, medium, hard = (measure(name) for name in ("easy", "medium", "hard"))
    assert easy[0] > 1.1 * medium[0] > 1.3 * hard[0]
    assert hard[1] > 1.2 * medium[1]
    assert easy[2] < medium[2] < hard[2]


def test_an_unknown_difficulty_is_named() -> None:
    with pytest.raises(InputError, match="difficulty 'extreme' does not exist; choose of easy, medium, hard"):
        difficulty("extreme")
    assert difficulty("medium", seconds=60) == WorldConfig(seconds=60)


def test_an_unknown_kind_cannot_be_favoured() -> None:
    with pytest.raises(InputError, match="event 'falls' does not exist; choose of enters, leaves"):
        WorldConfig(favoured=(("falls", 2.0),))
    with pytest.raises(InputError, match=r"factor of 'cut' -1\.0 is out of range"):
        WorldConfig(favoured=(("cut", -1.0),))


@MANY
@given(STREAMS, st.integers(1, 9), st.integers(1, 9))
def test_what_matters_is_where_things_and_hands_are_or_were_a_frame_ago(
    stream: WorldStream, rows: int, columns: int
) -> None:
    scores = matter(stream, (rows, columns))
    assert scores.shape == (len(stream.times), 1 + rows * columns) and (scores[:, 0] == 1.5).all()
    before: set[tuple[int, int]] = set()
    for frame, time in enumerate(stream.times.tolist()):
        cells = scores[frame, 1:].reshape(rows, columns)
        matters = [seen for seen in stream.visible(time) if seen.role != "clutter"]
        centres = {
            (int(seen.centre[1] * rows), int(seen.centre[0] * columns))
            for seen in matters
            if 0 <= min(seen.centre) and max(seen.centre) < 1
        }
        assert {(int(y), int(x)) for y, x in zip(*(cells == 2).nonzero())} == centres | before
        before_it = before
        before = centres
        for row in range(rows):
            for column in range(columns):
                touched = any(
                    seen.box[0] < (column + 1) / columns
                    and seen.box[2] > column / columns
                    and seen.box[1] < (row + 1) / rows
                    and seen.box[3] > row / rows
                    for seen in matters
                )
                assert (cells[row, column] > 0) == (touched or (row, column) in centres | before_it)
                assert cells[row, column] == 2 or cells[row, column] <= 1 + 1e-6
