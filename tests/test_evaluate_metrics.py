"""Every metric against numbers worked out by hand, and the matching against all possible matchings."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.evaluate.metrics import (
    Said,
    false_alarms,
    first_wrong,
    fluency,
    frames_off,
    lm_correctness,
    lm_ppl,
    match,
    mean,
    precision_recall_f1,
    quiet_seconds,
    time_diff,
)


def test_perplexity_is_the_exponential_of_the_mean_cross_entropy() -> None:
    assert lm_ppl([math.log(2), math.log(8)]) == pytest.approx(4)
    assert lm_ppl([0.0, 0.0]) == 1


def test_correctness_counts_labels_before_the_first_mistake_only() -> None:
    assert lm_correctness([True, True, False, True]) == 0.5
    assert lm_correctness([False, True, True]) == 0
    assert lm_correctness([True, True]) == 1
    assert first_wrong([True, True, False, True]) == 2


@pytest.mark.parametrize(
    ("speaks", "later", "off"),
    [
        ("...X", "", 0),
        ("X...", "", 3),
        ("..XX", "", 1),  # the first time counts
        ("....", "X", -1),
        ("....", "..X", -3),
        ("....", "...", -3),  # as late as it was watched
        ("....", "", -1),  # nothing came after: a reply that never came is not a timely one
        ("X", "", 0),
        (".", "", -1),
    ],
)
def test_how_many_frames_off_a_reply_is(speaks: str, later: str, off: int) -> None:
    assert frames_off([c == "X" for c in speaks], [c == "X" for c in later]) == off


def test_time_difference_is_in_seconds_and_has_no_sign() -> None:
    assert time_diff(3, fps=2) == time_diff(-3, fps=2) == 1.5
    assert time_diff(0, fps=2) == 0


def test_fluency_is_the_share_of_predictions_before_the_first_mistake() -> None:
    # 4 frames and 6 labels: 10 predictions
    assert fluency(4, 6, correct=6, off=0) == 1
    assert fluency(4, 6, correct=2, off=0) == 0.6
    assert fluency(4, 6, correct=6, off=3) == 0  # spoke at the first frame: the very first prediction is wrong
    assert fluency(4, 6, correct=6, off=1) == 0.2  # two frames of silence were right
    assert fluency(4, 6, correct=6, off=-2) == 0.3  # three were, the fourth should have spoken


def test_a_mean_leaves_out_what_is_missing() -> None:
    assert mean([1.0, None, 3.0]) == 2
    assert mean([None]) is None


A, B = "A ring appears.", "The scene changes."


def test_half_a_second_off_still_matches_and_more_does_not() -> None:
    true = [Said(10.0, A)]
    assert match([Said(10.5, A)], true) == match([Said(9.5, A)], true) == [(0, 0)]
    assert match([Said(10.51, A)], true) == match([Said(9.49, A)], true) == []
    assert match([Said(10.5 + 1e-9, A)], true) == [(0, 0)]  # a sum of floats


def test_a_match_needs_the_very_same_sentence_unless_only_time_counts() -> None:
    said, true = [Said(10.0, B)], [Said(10.0, A)]
    assert match(said, true) == []
    assert match(said, true, by_text=False) == [(0, 0)]
    assert match([Said(10.0, A.lower())], true) == []


def test_one_true_sentence_is_matched_once() -> None:
    assert match([Said(9.5, A), Said(10.0, A), Said(10.5, A)], [Said(10.0, A)]) == [(0, 0)]
    assert match([Said(10.0, A)], [Said(9.6, A), Said(10.4, A)]) == [(0, 0)]


def test_as_many_as_possible_are_matched_even_if_not_each_with_its_nearest() -> None:
    assert match([Said(1.0, A), Said(1.5, A)], [Said(0.6, A), Said(1.1, A)]) == [(0, 0), (1, 1)]


moments = st.lists(st.builds(Said, st.integers(0, 24).map(lambda k: k / 4), st.sampled_from([A, B])), max_size=6)


@given(moments, moments, st.booleans())
def test_matching_is_one_to_one_within_the_tolerance_and_as_large_as_any(
    said: list[Said], true: list[Said], by_text: bool
) -> None:
    said, true = sorted(said), sorted(true)

    def fits(i: int, j: int) -> bool:
        return abs(said[i].time - true[j].time) <= 0.5 and (not by_text or said[i].text == true[j].text)

    def largest(i: int, free: frozenset[int]) -> int:
        if i == len(said):
            return 0
        with_one = [1 + largest(i + 1, free - {j}) for j in free if fits(i, j)]
        return max([largest(i + 1, free), *with_one])

    pairs = match(said, true, by_text=by_text)
    assert all(fits(i, j) for i, j in pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert len(pairs) == largest(0, frozenset(range(len(true))))


def test_a_false_alarm_has_nothing_true_near_it_whatever_the_words() -> None:
    true = [Said(10.0, A)]
    assert false_alarms([Said(5.0, A), Said(9.5, B), Said(10.5, B), Said(11.0, A)], true) == [0, 3]
    assert false_alarms([Said(5.0, A)], []) == [0]


def test_quiet_is_what_lies_further_than_the_tolerance_from_every_event() -> None:
    assert quiet_seconds([], 30) == 30
    assert quiet_seconds([Said(10, A)], 30) == 29
    assert quiet_seconds([Said(10, A), Said(10.5, A)], 30) == 28.5  # their surroundings overlap
    assert quiet_seconds([Said(0.2, A), Said(29.8, A)], 30) == pytest.approx(28.6)  # and do not reach beyond the ends
    assert quiet_seconds([Said(30.4, A)], 30) == pytest.approx(29.9)
    assert quiet_seconds([Said(10, A), Said(20, A)], 30, start=9.8) == pytest.approx(18.5)  # from 10.5 on
    assert quiet_seconds([Said(10, A)], 30, start=40) == 0


def test_precision_recall_and_f1_are_defined_for_silence_too() -> None:
    assert precision_recall_f1(3, 4, 6) == (0.75, 0.5, 0.6)
    assert precision_recall_f1(0, 0, 5) == (0, 0, 0)
    assert precision_recall_f1(0, 5, 0) == (0, 0, 0)
    assert precision_recall_f1(0, 0, 0) == (1, 1, 1)
