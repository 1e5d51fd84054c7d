"""What a depth plan means, how it travels through JSON, and what it refuses; and the choice of k tokens by itself."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from depth_cases import plans
from hypothesis import given
from hypothesis import strategies as st
from reference import layer_ratios

from videollm_mod.depth import GATES, LAYERS, SCORERS, DepthPlan, LayerExpert, keep_count
from videollm_mod.depth.expert import choose, random_scores, uniform_places
from videollm_mod.depth.layer import apply_gate
from videollm_mod.depth.layout import FrameGroup, FrameLayout
from videollm_mod.types import InputError


@pytest.mark.parametrize(
    ("layers", "routed"),
    [
        ("full", [(), (), (), (), (), (), (), ()]),
        (
            "all",
            [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 3), tuple(range(5)), tuple(range(6)), tuple(range(7)), tuple(range(8))],
        ),
        ("all-deep", [(), (), (2,), (2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6), (2, 3, 4, 5, 6, 7)]),
        ("interleaved", [(), (1,), (1,), (1, 3), (1, 3), (1, 3, 5), (1, 3, 5), (1, 3, 5, 7)]),
        ("interleaved-deep", [(), (), (), (3,), (3,), (3, 5), (3, 5), (3, 5, 7)]),
        ("early-exit", [(0,), (1,), (1, 2), (2, 3), (2, 3, 4), (3, 4, 5), (3, 4, 5, 6), (4, 5, 6, 7)]),
        ("layer-skip", [(), (1,), (1,), (1, 3), (1, 3), (1, 3, 5), (1, 3, 5), (1, 3, 5, 7)]),
    ],
)
def test_named_layer_sets_for_one_to_eight_layers(layers: str, routed: list[tuple[int, ...]]) -> None:
    for count, expected in enumerate(routed, start=1):
        plan = DepthPlan(layers, 0.3)
        ratio = 0.0 if layers in ("early-exit", "layer-skip") else 0.3
        assert plan.routed(count) == expected
        assert plan.ratios(count) == tuple(ratio if i in expected else None for i in range(count))


@pytest.mark.parametrize("exit_after", range(6))
def test_early_exit_leaves_after_the_given_number_of_layers(exit_after: int) -> None:
    ratios = DepthPlan("early-exit", exit_after=exit_after).ratios(5)
    assert ratios == (None,) * exit_after + (0.0,) * (5 - exit_after)


def test_an_explicit_list_takes_one_ratio_or_one_for_each_layer() -> None:
    assert DepthPlan((1, 4), 0.3).ratios(5) == (None, 0.3, None, None, 0.3)
    assert DepthPlan([1, 4], [0.3, 1]).ratios(5) == (None, 0.3, None, None, 1.0)
    assert DepthPlan("interleaved", (0.3, 0.5)).ratios(5) == (None, 0.3, None, 0.5, None)
    assert DepthPlan(()).ratios(3) == (None, None, None)


@given(plan=plans())
def test_ratios_are_those_of_the_reference(plan: DepthPlan) -> None:
    assert plan.ratios(5) == tuple(None if ratio is None else float(ratio) for ratio in layer_ratios(plan, 5))


@given(plan=plans())
def test_a_plan_comes_back_from_json(plan: DepthPlan) -> None:
    back = DepthPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert back == plan and hash(back) == hash(plan)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (dict(layers="odd"), "odd"),
        (dict(layers=""), "''"),
        (dict(scorer="best"), "best"),
        (dict(gate="open"), "open"),
        (dict(keep=0), "0 "),
        (dict(keep=-0.2), "-0.2"),
        (dict(keep=1.5), "1.5"),
        (dict(keep=math.nan), "nan"),
        (dict(keep=math.inf), "inf"),
        (dict(keep=(0.2, 0.0)), "0.0"),
        (dict(keep=(0.2, 1.01)), "1.01"),
        (dict(keep=(0.2, math.nan)), "nan"),
        (dict(keep="0.2"), "0.2"),
        (dict(keep=None), "None"),
        (dict(layers=None), "None"),
        (dict(layers=3), "3"),
        (dict(layers=(1.5,)), "1.5"),
        (dict(layers=("one",)), "one"),
        (dict(layers=(3, 1), keep=(0.9, 0.2)), "(3, 1) do not rise"),
    ],
    ids=str,
)
def test_a_bad_value_is_one_sentence_that_names_it(values: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError) as error:
        DepthPlan(**values)
    assert named in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (lambda: DepthPlan((1, 5)), "layer 5"),
        (lambda: DepthPlan((-1,)), "layer -1"),
        (lambda: DepthPlan("interleaved", (0.2,)), "1 keep ratios for 2 routed layers"),
        (lambda: DepthPlan("interleaved", (0.2, 0.3, 0.4)), "3 keep ratios for 2 routed layers"),
        (lambda: DepthPlan((1, 2), ()), "0 keep ratios"),
        (lambda: DepthPlan("early-exit", exit_after=6), "6"),
        (lambda: DepthPlan("early-exit", exit_after=-1), "-1"),
    ],
    ids=["layer 5", "layer -1", "too few ratios", "too many ratios", "no ratios", "exit_after 6", "exit_after -1"],
)
def test_a_plan_that_does_not_fit_five_layers_says_so(plan: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        plan().ratios(5)


def test_a_layer_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="3"):
        DepthPlan((3, 3), (0.9, 0.2)).ratios(5)


def test_an_unknown_entry_in_a_stored_plan_is_an_error() -> None:
    with pytest.raises(InputError, match="router"):
        DepthPlan.from_dict({"layers": "all", "router": 1})


def test_names_are_those_of_the_design() -> None:
    assert set(LAYERS) == {"full", "all", "all-deep", "interleaved", "interleaved-deep", "early-exit", "layer-skip"}
    assert set(SCORERS) == {"learned", "random", "uniform", "given"}  # the last is for oracles
    assert set(GATES) == {"identity", "output", "update", "tanh", "straight", "relative", "salience"}  # two are ours


# --- k ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "tokens", "k"),
    [
        (0.14, 50, 7),
        (0.07, 100, 7),
        (0.2, 10, 2),
        (0.2, 50, 10),
        (0.2, 1, 1),
        (0.2, 11, 3),
        (0.7, 10, 7),
        (0.3, 10, 3),
        (1.0, 7, 7),
    ],
)
def test_k_is_the_ceiling_of_what_a_person_wrote(ratio: float, tokens: int, k: int) -> None:
    assert keep_count(ratio, tokens) == k


@given(hundredths=st.integers(1, 1000), tokens=st.integers(1, 2000))
def test_k_is_exact_for_all_ratios_of_three_digits(hundredths: int, tokens: int) -> None:
    assert keep_count(hundredths / 1000, tokens) == math.ceil(Fraction(hundredths, 1000) * tokens)


@given(ratio=st.floats(0, 1, exclude_min=True), tokens=st.integers(1, 2000))
def test_k_is_at_least_one_and_at_most_all(ratio: float, tokens: int) -> None:
    assert 1 <= keep_count(ratio, tokens) <= tokens


def test_k_is_nothing_where_a_baseline_keeps_nothing() -> None:
    assert keep_count(0.0, 50) == 0


def test_a_fresh_expert_has_small_scores_around_zero_that_differ() -> None:
    torch.manual_seed(0)
    expert = LayerExpert(1000)
    assert 0.015 < expert.weight.std().item() < 0.025 and expert.bias.tolist() == [0.0]
    assert len(set(expert(torch.randn(50, 1000)).tolist())) == 50


# --- who is chosen ---------------------------------------------------------------------------------------------------


def group(tokens: int, *numbers: int) -> FrameGroup:
    """Frames of `tokens` tokens, one behind the other."""
    places = torch.arange(len(numbers) * tokens).view(len(numbers), tokens)
    return FrameGroup(places, torch.tensor(numbers), (0,) * len(numbers))


def test_the_highest_scores_win_and_keep_their_order() -> None:
    scores = torch.tensor([0.1, 3.0, -2.0, 5.0, 4.0])
    assert choose(group(5, 0), 3, scores, DepthPlan(), 1).tolist() == [[1, 3, 4]]


def test_ties_go_to_the_lower_place() -> None:
    for tokens in (5, 50, 500):
        assert choose(group(tokens, 0), 3, torch.zeros(tokens), DepthPlan(), 1).tolist() == [[0, 1, 2]]
    scores = torch.tensor([0.0, 1.0, 1.0, 2.0, 1.0])
    assert choose(group(5, 0), 2, scores, DepthPlan(), 1).tolist() == [[1, 3]]


def test_each_frame_chooses_for_itself() -> None:
    scores = torch.tensor([9.0, 8.0, 7.0, 0.0, 2.0, 1.0])
    assert choose(group(3, 0, 1), 1, scores, DepthPlan(), 1).tolist() == [[0], [1]]


@pytest.mark.parametrize("scorer", SCORERS)
def test_keep_last_takes_one_of_the_k_places(scorer: str) -> None:
    scores = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0])
    with_last = choose(group(5, 0), 2, scores, DepthPlan(scorer=scorer, keep_last=True), 1)[0].tolist()
    without = choose(group(5, 0), 2, scores, DepthPlan(scorer=scorer), 1)[0].tolist()
    assert len(with_last) == 2 and with_last[-1] == 4
    assert set(with_last) & set(without)
    assert choose(group(5, 0), 1, scores, DepthPlan(scorer=scorer, keep_last=True), 1).tolist() == [[4]]


@given(tokens=st.integers(1, 200), share=st.floats(0.01, 1))
def test_uniform_places_are_distinct_and_evenly_spaced(tokens: int, share: float) -> None:
    k = keep_count(share, tokens)
    places = uniform_places(tokens, k)
    assert len(set(places)) == k and places == sorted(places) and 0 <= places[0] and places[-1] < tokens
    gaps = [b - a for a, b in zip(places, places[1:])]
    assert all(abs(gap - tokens / k) < 1 for gap in gaps)
    assert abs(places[0] - (tokens - 1 - places[-1])) <= 1, "as far from the beginning as from the end"


def test_random_choice_depends_on_frame_place_layer_and_seed_and_is_even() -> None:
    numbers = torch.arange(2000)
    scores = random_scores(numbers, 10, layer=1, seed=0)
    assert torch.equal(scores[7], random_scores(numbers[7:8], 10, layer=1, seed=0)[0])
    first = scores.argmax(-1)
    for other in (random_scores(numbers, 10, 3, 0), random_scores(numbers, 10, 1, 1), scores.roll(1, 0)):
        assert 0.05 < (other.argmax(-1) == first).float().mean() < 0.15  # a tenth by chance
    assert (first.bincount(minlength=10) - 200).abs().max() < 60  # 4.5 standard deviations


def test_the_expert_is_a_linear_score_in_at_least_float32() -> None:
    expert = LayerExpert(6, dtype=torch.bfloat16)
    x = torch.randn(2, 3, 6, dtype=torch.bfloat16)
    expected = (x.float() * expert.weight.float()).sum(-1) + expert.bias.float()
    assert expert(x).dtype == torch.float32 and torch.allclose(expert(x), expected, atol=1e-5)
    assert LayerExpert(6).double()(x.double()).dtype == torch.float64


# --- gates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gate", "formula"),
    [
        ("identity", lambda x, f, s: x + f),
        ("output", lambda x, f, s: s.sigmoid() * (x + f)),
        ("update", lambda x, f, s: x + s.sigmoid() * f),
        ("tanh", lambda x, f, s: x + (1 + 0.2 * s.tanh()) * f),
        ("straight", lambda x, f, s: x + f),
        ("relative", lambda x, f, s: x + f),
        ("salience", lambda x, f, s: x + f),
    ],
)
def test_gates_are_the_formulas_of_the_design(gate: str, formula: Any) -> None:
    x, f = torch.randn(2, 7, 4, dtype=torch.float64)
    s = torch.randn(7, 1, dtype=torch.float64) * 3
    assert torch.allclose(apply_gate(gate, x, x + f, s), formula(x, f, s), atol=1e-12)


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_a_layout_tells_text_from_frames_and_groups_frames_by_size() -> None:
    index = torch.tensor([[-1, 0, 0, -1, 1, 1, 2], [3, 3, 3, -1, -1, -1, -1]])
    real = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    layout = FrameLayout.of(index, real)
    assert layout.text.tolist() == [0, 3, 10, 11] and layout.text_counts == (2, 2)
    found = {tuple(frame): int(n) for g in layout.groups for frame, n in zip(g.tokens.tolist(), g.number)}
    assert found == {(1, 2): 0, (4, 5): 1, (6,): 2, (7, 8, 9): 3}
    assert layout.spans == (((1, 3, 0), (4, 6, 1), (6, 7, 2)), ((0, 3, 3),))  # begin, end, number
    assert layout.shape(0.5).counts == (2 + 1 + 1 + 1, 2 + 2)


@pytest.mark.parametrize(
    "index", [[0, 0, -1, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1, 0]], ids=["split", "mixed", "falling", "again"]
)
def test_a_frame_whose_tokens_lie_apart_or_out_of_order_is_refused(index: list[int]) -> None:
    """A stream refuses them, so one pass has to: otherwise two frames of one number would silently become one."""
    with pytest.raises(InputError, match="frame"):
        FrameLayout.of(torch.tensor([index]))
