"""Wrong words in the context: what is corrupted, and what is learned around it."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from videollm_mod.dialogue import Assistant, Segment, Stream, System, User
from videollm_mod.train.corrupt import FEW, corrupt, mislead

OTHERS = ("A small red ring appears.", "The scene changes.")
TURNS = st.lists(st.tuples(st.integers(1, 5), st.sampled_from(("narration", "question"))), max_size=6)


@st.composite
def conversations(draw: st.DrawFn) -> list[Segment]:
    segments: list[Segment] = [System("Say what happens.")]
    for number, (frames, kind) in enumerate(draw(TURNS)):
        segments.append(Stream(frames))
        if kind == "question":
            segments.append(User("What?"))
        segments.append(Assistant(f"It is {number}."))
    return [*segments, Stream(3)]


def frames_of(segments: list[Segment]) -> int:
    return sum(segment.frames for segment in segments if isinstance(segment, Stream))


def replies(segments: list[Segment], learned: bool) -> list[str]:
    return [segment.text for segment in segments if isinstance(segment, Assistant) and segment.learn == learned]


def narrations(segments: list[Segment]) -> list[str]:
    return [b.text for a, b in pairwise(segments) if isinstance(a, Stream) and isinstance(b, Assistant)]


@settings(max_examples=300, deadline=None)
@given(conversations(), st.integers(0, 1000))
def test_at_most_one_reply_is_corrupted_and_every_frame_stays(segments: list[Segment], seed: int) -> None:
    corrupted = corrupt(segments, random.Random(seed), OTHERS)
    assert frames_of(corrupted) == frames_of(segments)
    if len(narrations(segments)) < 2:
        assert corrupted == segments
        return
    lost = [text for text in replies(segments, True) if text not in replies(corrupted, True)]
    assert corrupted != segments and len(lost) <= 1
    assert [text for text in replies(corrupted, True) if text not in lost] == [
        text for text in replies(segments, True) if text not in lost
    ]
    assert narrations(segments)[-1] in replies(corrupted, True)  # the last one stays
    assert set(replies(corrupted, False)) <= {"", *OTHERS}


@settings(max_examples=300, deadline=None)
@given(conversations(), st.integers(0, 1000))
def test_after_a_wrong_reply_it_is_put_right_at_the_next_frame_or_nothing_is_learned(
    segments: list[Segment], seed: int
) -> None:
    corrupted = corrupt(segments, random.Random(seed), OTHERS)
    for i, (segment, following) in enumerate(pairwise(corrupted)):
        wrong = isinstance(segment, Assistant) and not segment.learn
        dropped = isinstance(segment, Stream) and segment == Stream(1, learn=False) and isinstance(following, Stream)
        if not (wrong or dropped):
            continue
        assert isinstance(following, Stream)
        if following.learn:
            after = corrupted[i + 2]
            assert following.frames == 1 and isinstance(after, Assistant) and after.learn
            assert after.text in narrations(segments)
    if corrupted != segments:
        assert any(isinstance(s, Stream) and not s.learn for s in corrupted) or replies(corrupted, False)


def test_every_way_occurs_and_half_are_put_right() -> None:
    segments: list[Segment] = [Stream(4), Assistant("One."), Stream(4), Assistant("Two."), Stream(4)]
    found = [corrupt(segments, random.Random(seed), OTHERS) for seed in range(600)]
    dropped = sum(not replies(each, False) for each in found)
    empty = sum("" in replies(each, False) for each in found)
    right = sum("One." in replies(each, True) for each in found)
    assert 150 < dropped < 250 and 150 < empty < 250 and 250 < right < 350


def test_without_another_sentence_the_reply_is_emptied() -> None:
    segments: list[Segment] = [Stream(2), Assistant("One."), Stream(2), Assistant("Two."), Stream(2)]
    said = {text for seed in range(50) for text in replies(corrupt(segments, random.Random(seed), ["One."]), False)}
    assert said == {""}


MANY_OTHERS = tuple(f"A thing number {number} appears." for number in range(9))


@settings(max_examples=300, deadline=None)
@given(conversations(), st.integers(0, 1000))
def test_a_misled_conversation_has_every_frame_and_learns_all_that_is_still_true(
    segments: list[Segment], seed: int
) -> None:
    misled = mislead(segments, random.Random(seed), MANY_OTHERS)
    assert [s for s in misled if not isinstance(s, Assistant)] == [s for s in segments if not isinstance(s, Assistant)]
    for i, (new, old) in enumerate(zip(misled, segments, strict=True)):
        if isinstance(new, Assistant) and isinstance(old, Assistant) and new != old:
            assert not new.learn
            assert new.text in MANY_OTHERS or isinstance(misled[i - 1], User)  # wrong, or repeats what was lost
    if narrations(segments):
        assert narrations(segments)[-1] in replies(misled, True)
    assert len({text for text in replies(misled, False) if text in MANY_OTHERS}) <= max(FEW)


def test_most_replies_of_misled_conversations_are_wrong_and_the_answer_that_repeats_one_is_not_learned() -> None:
    segments: list[Segment] = []
    for number in range(6):
        segments += [Stream(4), Assistant(f"It is {number}.")]
    segments += [
        Stream(1),
        User("What happened last?"),
        Assistant("It is 0."),
        Stream(1),
        Assistant("Last."),
        Stream(2),
    ]
    found = [mislead(segments, random.Random(seed), MANY_OTHERS) for seed in range(300)]
    wrong = sum(text in MANY_OTHERS for each in found for text in replies(each, False))
    assert 0.6 < wrong / (300 * 6) < 0.8
    assert any(len(set(replies(each, False)) & {*MANY_OTHERS}) == 1 for each in found)  # the same words again and again
    for each in found:
        lost = "It is 0." not in narrations(each)
        assert ("It is 0." in replies(each, False)) == lost


def test_where_there_is_no_other_sentence_nobody_is_misled() -> None:
    segments: list[Segment] = [Stream(2), Assistant("One."), Stream(2), Assistant("Two."), Stream(2)]
    assert mislead(segments, random.Random(0), ["One."]) == segments
    assert mislead(segments, random.Random(0), []) == segments
