"""Metrics of the field's benchmarks against numbers worked out by hand, and where the public code differs."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest
from data_cases import ANNOTATIONS, needs_annotations
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.data.epic import classes
from videollm_mod.evaluate.actions import Z, area_under, class_recall, edit_curve, edit_distance, in_top
from videollm_mod.evaluate.benchmarks import BENCHMARKS, Settings
from videollm_mod.evaluate.bootstrap import add, bootstrap, ratio
from videollm_mod.evaluate.captions import cider, meteor, rouge_l, words
from videollm_mod.evaluate.judges import Classes
from videollm_mod.evaluate.labels import ActionSpace, LabelSpace, numbered_lines, plain, step_hits, steps
from videollm_mod.evaluate.metrics import Said, fluency, frames_off, quiet_seconds
from videollm_mod.evaluate.teacher_forced import Turn
from videollm_mod.evaluate.timed import (
    duplicates,
    flownar_alignment,
    flownar_pairs,
    iou,
    match_spans,
    repeats,
    spans,
)
from videollm_mod.types import InputError


def turn(silence: str, later: str = "", right: str = "rr") -> Turn:
    """ "," where silence is the likeliest token, and almost certain."""

    def certain(marks: str) -> tuple[float, ...]:
        return tuple(0.9 if mark == "," else 0.1 for mark in marks)

    def likeliest(marks: str) -> tuple[bool, ...]:
        return tuple(mark == "," for mark in marks)

    correct = tuple(mark == "r" for mark in right)
    return Turn(
        True,
        tuple(range(len(silence))),
        certain(silence),
        (0.5,) * len(right),
        correct,
        certain(later),
        likeliest(silence),
        likeliest(later),
    )


def test_a_missed_reply_after_which_nothing_comes_is_late_and_to_the_public_code_perfect() -> None:
    assert frames_off([False, False]) == -1
    assert frames_off([False, False], compat=True) == 0
    missed = turn(",,,", right="rr")
    ours, theirs = missed.scores(0.5, fps=2), missed.scores(0.5, fps=2, compat=True)
    assert (ours["time_diff"], ours["fluency"]) == (0.5, pytest.approx(2 / 5))
    assert (theirs["time_diff"], theirs["fluency"]) == (0, 1)


def test_frames_behind_the_last_turn_are_looked_at_though_the_public_code_does_not() -> None:
    missed = turn(",,,", later=",]")
    assert missed.off(0.5) == -2
    assert missed.off(0.5, compat=True) == -2
    assert missed.off(0.5, compat=True, last=True) == 0


def test_an_early_reply_is_credited_with_its_silent_frames_and_by_the_public_code_with_one_more() -> None:
    # 4 frames, 6 labels, it speaks at frame 2 of 0..3: two frames of silence were right, of 10 predictions
    assert fluency(4, 6, correct=6, off=1) == 0.2
    assert fluency(4, 6, correct=6, off=1, compat=True) == 0.3
    assert fluency(4, 6, correct=3, off=0) == fluency(4, 6, correct=3, off=0, compat=True)
    assert fluency(4, 6, correct=6, off=-2) == fluency(4, 6, correct=6, off=-2, compat=True)


def test_a_threshold_decides_who_speaks_and_in_the_public_code_the_likeliest_token() -> None:
    hesitant = Turn(True, (0, 1), (0.6, 0.1), (0.5,), (True,), None, silent=(True, False))
    assert hesitant.off(0.7) == 1  # 0.6 is below the threshold: it speaks a frame early
    assert hesitant.off(0.7, compat=True) == 0


# -- spans -------------------------------------------------------------------------------------------------------------


def said(*times: float, text: str = "a") -> list[Said]:
    return [Said(time, text) for time in times]


def test_a_sentence_tells_of_the_time_since_the_one_before_it() -> None:
    assert spans(said(2.0, 5.0), start=1.0) == [(1.0, 2.0), (2.0, 5.0)]
    assert spans([], start=0.0) == []


def test_overlap_is_what_is_shared_of_what_both_cover() -> None:
    assert iou([(0, 2), (4, 8)], [(1, 3), (4, 6)]).tolist() == [[1 / 3, 0], [0, 0.5]]
    assert iou([(2, 2)], [(2, 2)]).tolist() == [[0]]


def test_spans_pair_one_to_one_and_the_best_overlap_first() -> None:
    assert match_spans([(0, 4), (0, 5)], [(0, 5), (5, 9)]) == [(1, 0)]
    assert match_spans([(0, 2), (2, 4)], [(0, 4)]) == [(0, 0)]  # a half each: the first takes it
    assert match_spans([], [(0, 1)]) == match_spans([(0, 1)], []) == []


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6)).map(lambda p: (p[0], p[0] + p[1])), max_size=5),
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 6)).map(lambda p: (p[0], p[0] + p[1])), max_size=5),
)
def test_pairs_of_spans_are_one_to_one_and_none_that_fits_is_left_over(
    ours: list[tuple[int, int]], theirs: list[tuple[int, int]]
) -> None:
    pairs = match_spans(ours, theirs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    overlap = iou(ours, theirs)
    assert all(overlap[i, j] >= 0.5 for i, j in pairs)
    left = [(i, j) for i in range(len(ours)) for j in range(len(theirs)) if (i, j) not in pairs]
    for i, j in left:
        met = [overlap[a, b] for a, b in pairs if a == i or b == j]
        assert overlap[i, j] < 0.5 or max(met) >= overlap[i, j]


def test_flownar_lets_one_span_stand_for_several_and_compares_words_that_do_not_overlap() -> None:
    ours, theirs = [(0.0, 2.0), (2.0, 4.0)], [(0.0, 4.0)]
    assert flownar_alignment(ours, theirs) == (1.0, 1.0, 1.0)
    assert match_spans(ours, theirs) == [(0, 0)]  # precision a half
    assert flownar_pairs([(0.0, 1.0)], [(8.0, 9.0), (0.0, 1.0)]) == [(0, 0), (0, 1)]
    assert flownar_alignment([], theirs) == (0, 0, 0)


def test_a_duplicate_is_near_something_told_already_and_a_repeat_says_it_again() -> None:
    spoken = [Said(1.0, "a"), Said(1.5, "b"), Said(9.0, "b")]
    assert duplicates(spoken, [Said(1.2, "x")], tolerance=0.5) == [1]
    assert repeats(spoken) == [2]
    assert quiet_seconds([Said(10, "a")], 30, tolerance=2.0) == 26


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert words("C picks a cup, doesn't C?") == "c picks a cup doesn't c"


def test_the_public_code_compares_words_with_their_capitals_and_full_stops() -> None:
    assert rouge_l([("C takes it.", "c takes it")]) == [pytest.approx(1)]
    assert rouge_l([("C takes it.", "c takes it")], compat=True)[0] == pytest.approx(1 / 3)  # "takes" alone
    pairs = [("a red cup stands", "a red cup stands."), ("x", "two dogs ran home")]
    assert cider(pairs)[0] == pytest.approx(10) and cider(pairs, compat=True)[0] < 8


def test_rouge_is_the_longest_common_subsequence() -> None:
    assert rouge_l([("C picks a cup.", "c picks a cup")]) == [pytest.approx(1)]
    # 2 of 4 said words, 2 of 2 true ones: P 1/2, R 1, F with beta 1.2
    assert rouge_l([("c quickly picks up", "c picks")]) == [pytest.approx((1 + 1.44) * 0.5 / (1 + 1.44 * 0.5))]
    assert rouge_l([("x", "y")]) == [0]


def test_cider_is_ten_for_the_same_rare_sentence_and_nothing_for_words_that_all_share() -> None:
    pairs = [("c picks a red cup", "c picks a red cup"), ("c opens one big door", "x closes that small gate")]
    scores = cider(pairs)
    assert scores[0] == pytest.approx(10)
    assert scores[1] == 0
    assert cider([("a b c d", "a b c d"), ("a b c d", "a b c d")]) == [0, 0]  # of two references that are the same
    assert cider([]) == rouge_l([]) == []


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR needs Java")
@pytest.mark.slow
def test_meteor_is_there_where_java_is() -> None:
    scores = meteor([("c picks a cup", "c picks a cup"), ("c picks a cup", "the dog barks")])
    assert scores is not None and scores[0] > 0.9 > 0.2 > scores[1]


# -- labels ------------------------------------------------------------------------------------------------------------


def test_an_answer_is_its_label_or_the_one_with_the_fewest_edits_to_it() -> None:
    space = LabelSpace(["wash the rice", "cook the rice", "wash the dishes"])
    assert space.nearest(["wash the rice", "wash teh rise", "cook"]) == [
        "wash the rice",
        "wash the rice",
        "cook the rice",
    ]
    assert LabelSpace(["b", "a"]).nearest(["c"]) == ["a"]  # a tie: the first of the alphabet
    with pytest.raises(InputError, match="no labels"):
        LabelSpace([])


def test_a_label_that_only_training_has_can_be_answered_only_if_it_is_among_the_labels() -> None:
    answer = "cut the bred"
    assert LabelSpace(["cut the beard"]).nearest([answer]) == [
        "cut the beard"
    ]  # the evaluated split alone: right by luck
    assert LabelSpace(["cut the beard", "cut the bread"]).nearest([answer]) == ["cut the bread"]


def test_steps_are_lines_without_numbers_and_missing_ones_are_wrong() -> None:
    assert steps("1. Cut it.\n2) Fry  it\n\n3: ") == ["cut it", "fry it"]
    assert steps("1. Cut it. 2. Fry 3 eggs. 3. Eat.") == ["cut it", "fry 3 eggs", "eat"]
    # the public code for COIN: behind the last full stop with a space, as it stands, and an empty line is a step
    assert steps("1. Cut it.\n\n2. Fry it. Now.", compat=True) == ["Cut it.", "", "Now."]
    assert steps("Take 2. Then 3. rest") == ["take 2. then 3. rest"]  # numbers that do not count up from its first word
    assert plain(" Cut  it. ") == "cut it"
    true = ["cut it", "fry it", "eat it", "wash up"]
    assert step_hits(["cut it", "burn it"], true) == (1, 4)
    assert step_hits(["cut it", "burn it"], true, compat=True) == (1, 2)
    assert step_hits(true, true) == (4, 4)


def test_a_hundred_answers_find_their_actions_among_61_000_pairs_in_a_second() -> None:
    verbs = [f"verb{i:03d}" for i in range(117)]
    nouns = [f"noun{i:03d}" for i in range(521)]
    space = ActionSpace(verbs, nouns)
    assert len(space) == 60_957
    texts = [f"vreb{i:03d} noun{(7 * i) % 521:03d}." for i in range(100)]
    began = time.process_time()
    found = space.numbers(texts)
    took = time.process_time() - began
    assert found == [(i, (7 * i) % 521) for i in range(100)]
    assert took < 3  # of the processor; runs/label_speed.py holds it to a second on a quiet machine


def test_an_answer_that_lists_too_little_is_filled_up_with_its_last_action() -> None:
    space = ActionSpace(["take", "put"], ["cup", "knife"])
    assert space.sequence("1. Take cup.\n2. Put knif.", 4, fill=(0, 0)) == [(0, 0), (1, 1), (1, 1), (1, 1)]
    assert space.sequence("", 2, fill=(1, 0)) == [(1, 0), (1, 0)]
    assert space.sequence("take cup\n" * 5, 2, fill=(0, 0)) == [(0, 0)] * 2


def test_the_public_code_for_lta_takes_numbered_lines_only() -> None:
    told = "After that:\n1. Take cup.\nput cup\nAction 2.put knife\n"
    assert numbered_lines(told) == ["take cup", "put knife"]
    space = ActionSpace(["take", "put"], ["cup", "knife"])
    assert space.sequence("put cup\n1. Take knife.", 2, fill=(0, 0)) == [(1, 0), (0, 1)]
    assert space.sequence("put cup\n1. Take knife.", 2, fill=(0, 0), compat=True) == [(0, 1), (0, 1)]
    assert space.sequence("put cup", 1, fill=(0, 0), compat=True) == [(0, 0)]


@needs_annotations
def test_every_action_of_epic_kitchens_finds_its_own_classes_in_the_real_label_space() -> None:
    source, _ = BENCHMARKS["epic-anticipation"].read(ANNOTATIONS, "validation")
    judge = BENCHMARKS["epic-anticipation"].judge(source, Settings(0.5, 2.0, compat=False))
    assert isinstance(judge, Classes)
    verbs, nouns = classes(source)
    assert (len(verbs), len(nouns)) == (97, 305)  # five more nouns than in the paper
    for verb, noun in [(v, (7 * v) % 305) for v in range(97)] + [((3 * n) % 97, n) for n in range(0, 305, 5)]:
        found = judge.read(f"{verbs[verb].capitalize()} {nouns[noun]}.")
        assert (found["verb"], found["noun"]) == (verb, noun)


# -- sequences and classes ---------------------------------------------------------------------------------------------


def test_edit_distance_is_that_of_the_best_candidate() -> None:
    true = list("abcd")
    assert edit_distance([list("abcd")], true, 4) == 0
    assert edit_distance([list("bcda")], true, 4) == 0.5  # one deleted in front, one added behind
    assert edit_distance([list("xxxx"), list("abxd")], true, 4) == 0.25
    assert edit_distance([["a"]], true, 4) == 0.75
    assert edit_distance([list("axxx")], true, 1) == 0


def test_the_area_under_the_curve_counts_each_z_once_and_in_the_public_code_its_ends_by_half() -> None:
    assert Z == 20
    curve = edit_curve([[0] * 20], [0] * 10 + [1] * 10)
    assert curve[9] == 0 and curve[19] == 0.5
    first_wrong = np.array([1.0] + [0.0] * 19)
    assert area_under(first_wrong) == pytest.approx(1 / 20)
    assert area_under(first_wrong, compat=True) == pytest.approx(0.5 / 19)
    assert (
        area_under(np.full(20, 0.7)) == pytest.approx(area_under(np.full(20, 0.7), compat=True)) == pytest.approx(0.7)
    )


def test_rare_classes_count_as_much_as_frequent_ones() -> None:
    hits, counts = np.array([9.0, 0.0, 0.0]), np.array([9.0, 1.0, 0.0])
    assert class_recall(hits, counts) == 0.5
    assert class_recall(np.zeros(2), np.zeros(2)) is None
    assert in_top(["a", "a", "b", "c"], "b", 2)
    assert not in_top(["a", "a", "b", "c"], "c", 2)


# -- intervals ---------------------------------------------------------------------------------------------------------


def accuracy(sums: dict[str, float]) -> dict[str, float | None]:
    return {"accuracy": ratio(sums["right"], sums["counted"])}


def test_an_interval_draws_videos_and_not_samples() -> None:
    one = {"right": 100, "counted": 100}
    other = {"right": 0, "counted": 100}
    found = bootstrap([one, other], accuracy)["accuracy"]  # type: ignore[arg-type]
    assert found == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert bootstrap([one] * 5, accuracy)["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}  # type: ignore[arg-type]
    assert bootstrap([one], accuracy)["accuracy"]["low"] is None  # type: ignore[arg-type]


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(1)
    videos = [{"right": float(value), "counted": 1} for value in rng.normal(0, 1, 400)]
    found = bootstrap(videos, accuracy)["accuracy"]  # type: ignore[arg-type]
    assert found["high"] is not None and found["low"] is not None
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 / 20, rel=0.1)
    assert bootstrap(videos, accuracy) == bootstrap(videos, accuracy)  # type: ignore[arg-type]


def test_sums_add_up_arrays_too_and_what_cannot_be_measured_has_no_number() -> None:
    total = add([{"a": np.array([1, 2]), "n": 1}, {"a": np.array([3, 4]), "n": 2}])
    assert total["a"].tolist() == [4, 6] and total["n"] == 3
    nothing = bootstrap([{"right": 0, "counted": 0}] * 3, accuracy)["accuracy"]  # type: ignore[arg-type]
    assert nothing == {"value": None, "low": None, "high": None}
