"""Each method on an example that can be checked on paper; DivPrune against trying everything out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reduction_cases import method

from videollm_mod.reductions import Signals, Tokens, methods
from videollm_mod.reductions.base import HERE
from videollm_mod.reductions.divprune import farthest_points
from videollm_mod.reductions.flowcut import flow_scores, to_prune
from videollm_mod.reductions.fopru import best_rows
from videollm_mod.reductions.hiprune import anchors_and_registers
from videollm_mod.reductions.matryoshka import coarse_grid


def cells(rows: int, columns: int) -> Tokens:
    """Tokens whose one number is their place in the raster."""
    x = torch.arange(rows * columns, dtype=torch.float64)[:, None]
    return Tokens.of_frame(x, (rows, columns), traced=True)


def kept(tokens: Tokens) -> list[float]:
    return tokens.x[:, 0].tolist()


def test_uniform_keeps_the_middle_of_equal_stretches() -> None:
    out = method("uniform", 0.3).reduce(cells(2, 5), Signals())
    assert kept(out) == [1, 5, 8]  # of 0..3.3, 3.3..6.7, 6.7..10


def test_random_keeps_the_same_cells_of_a_frame_and_others_of_the_next() -> None:
    x = torch.arange(64.0)[:, None]
    one = method("random", 0.25)
    first, again, next_ = (kept(one.reduce(Tokens.of_frame(x, (8, 8), number), Signals())) for number in (3, 3, 4))
    assert first == again != next_
    assert first != kept(method("random", 0.25, seed=1).reduce(Tokens.of_frame(x, (8, 8), 3), Signals()))


def test_pooling_averages_blocks_and_puts_them_in_the_middle() -> None:
    out = method("matryoshka", 0.25).reduce(cells(4, 4), Signals())
    assert kept(out) == [2.5, 4.5, 10.5, 12.5]  # (0 + 1 + 4 + 5) / 4, ..
    assert out.sizes.tolist() == [4] * 4
    assert out.positions[:, 1:].tolist() == [[0, 1], [0, 3], [2, 1], [2, 3]]


@pytest.mark.parametrize("scale", [1, 9, 36, 144, 576])
def test_pooling_gives_the_five_nested_scales_of_m3(scale: int) -> None:
    assert coarse_grid(24, 24, scale / 576) == (math.isqrt(scale),) * 2
    x = torch.randn(576, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = method("matryoshka", scale / 576).reduce(Tokens.of_frame(x, (24, 24)), Signals())
    side = math.isqrt(576 // scale)
    pooled = torch.nn.functional.avg_pool2d(x.T.view(1, 3, 24, 24), side).flatten(2)[0].T
    assert torch.allclose(out.x, pooled)


def test_a_grid_that_does_not_divide_is_pooled_in_blocks_that_differ_by_one() -> None:
    assert coarse_grid(7, 7, 0.25) == (3, 3)
    out = method("matryoshka", 0.25).reduce(cells(7, 7), Signals())
    assert sorted(out.sizes.tolist()) == [4, 4, 4, 4, 6, 6, 6, 6, 9]


def test_fastervlm_keeps_what_cls_attends_to_in_raster_order() -> None:
    attention = torch.tensor([0.1, 0.3, 0.0, 0.2, 0.3, 0.1])
    out = method("faster_vlm", 0.5).reduce(cells(2, 3), Signals({("cls_attention", -2): attention}))
    assert kept(out) == [1, 3, 4]


def test_fopru_keeps_the_best_cells_or_the_best_rows() -> None:
    attention = torch.tensor([0.0, 0.4, 0.0, 0.2, 0.2, 0.1, 0.3, 0.0, 0.3])  # rows: 0.4, 0.5, 0.6
    signals = Signals({("received_attention", -2): attention})
    assert kept(method("fo_pru", 4 / 9).reduce(cells(3, 3), signals)) == [1, 3, 6, 8]
    # the third row, and of the second, the first of its two best
    assert kept(method("fo_pru", 4 / 9, rule="row").reduce(cells(3, 3), signals)) == [3, 6, 7, 8]
    assert best_rows(attention, torch.arange(9) // 3, 3).tolist() == [6, 7, 8]


def test_hiprune_keeps_anchors_with_their_neighbours_and_registers() -> None:
    middle, deep = torch.zeros(16), torch.zeros(16)
    middle[5], middle[10] = 0.9, 0.5
    deep[[0, 6, 15, 3]] = torch.tensor([0.4, 0.9, 0.3, 0.2])
    # budget 8, alpha 0.6: round(8 * 0.6 / 5) = 1 anchor, 5, with 4, 6, 1 and 9; then the deep layer's 0, 15 and 3
    assert anchors_and_registers(middle, deep, 8, 0.6, columns=4).tolist() == [0, 1, 3, 4, 5, 6, 9, 15]


def test_hiprune_has_an_anchor_however_few_are_kept() -> None:
    middle, deep = torch.zeros(16), torch.arange(16.0) / 100
    middle[5] = 1.0
    # round(7 * 0.1 / 5) = 0, but one at least: 5, with 4, 6, 1 and 9; then the deep layer's 15 and 14
    assert anchors_and_registers(middle, deep, 7, 0.1, columns=4).tolist() == [1, 4, 5, 6, 9, 14, 15]


def test_hiprune_neighbours_stay_within_the_raster_and_within_the_budget() -> None:
    middle, deep = torch.zeros(16), torch.arange(16.0) / 100
    middle[0] = 1.0
    # round(5 * 1 / 5) = 1 anchor in the corner: 0, 1, 4, and twice 0 held within; two registers, 15 and 14
    assert anchors_and_registers(middle, deep, 5, 1.0, columns=4).tolist() == [0, 1, 4, 14, 15]
    middle[1] = 0.5
    assert anchors_and_registers(middle, deep, 2, 4.0, columns=4).tolist() == [0, 1]  # of 0, 1, 2, 4, 5


def test_flowcut_scores_attention_and_likeness_of_values_by_the_size_of_values() -> None:
    attention = torch.tensor([0.3, 0.1], dtype=torch.float64)
    values = torch.tensor([[[1.0, 0.0]], [[0.0, -3.0]]], dtype=torch.float64)  # one head
    cls_value = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
    # shares of attention: 3/4, 1/4. v_cls . v: log 3 and 0, so that likeness is 3 to 1 whatever the CLS itself takes
    assert flow_scores(attention, values, cls_value).tolist() == pytest.approx([1.5 * 1, 0.5 * 3])


def test_flowcut_prunes_nothing_while_cls_looks_everywhere_and_all_at_once_when_it_looks_at_one() -> None:
    even, one = torch.ones(16), torch.eye(16)[3]
    assert to_prune(even, 16, 4, left=4) == 0
    assert to_prune(one, 16, 4, left=4) == 6  # (16 - 4) / sqrt(4)
    two = torch.zeros(16)
    two[:2] = 1  # entropy log 2 of log 16: a quarter; 1 - 1/16
    assert to_prune(two, 16, 4, left=4) == round(6 * 15 / 16)


def test_flowcut_prunes_at_every_second_block_by_the_running_score() -> None:
    one = method("flow_cut", 0.25)
    assert one.cuts(6) == {0: 1.0, 1: 1.0, 2: 1.0, 3: 0.25}
    tokens, memory = cells(2, 2), {}
    values = torch.ones(4, 1, 1, dtype=torch.float64)

    def call(tokens: Tokens, layer: int, attention: list[float]) -> Tokens:
        told = {("cls_attention", HERE): torch.tensor(attention, dtype=torch.float64)}
        told[("tower_values", HERE)] = values[: len(tokens)]
        told[("tower_cls_values", HERE)] = torch.zeros(1, 1, dtype=torch.float64)
        return one.reduce(tokens, Signals(told, memory=memory, layer=layer, layers=6, total=4))

    tokens = call(tokens, 0, [0.7, 0.1, 0.1, 0.1])  # 3 blocks are left: none goes
    assert kept(tokens) == [0, 1, 2, 3]
    tokens = call(tokens, 1, [0.0, 0.0, 0.0, 1.0])  # 2 are left: round(3 / sqrt(2)) = 2 go
    assert kept(tokens) == [0, 3]  # 0: half of 0.7 and 0, + 0.25; 3: half of 0.1 and 1, + 0.25
    tokens = call(tokens, 2, [0.5, 0.5])
    assert kept(call(tokens, 3, [0.5, 0.5])) == [3]


def test_divprune_begins_with_the_loneliest_and_goes_on_with_the_farthest() -> None:
    # on the unit circle, degrees; distance 1 - cos. The loneliest: 200 (70 from 130, 110 from 310)
    x = torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in (0, 10, 90, 130, 200, 310)])
    # farthest from 200: 10 (170). From both: 90 (80 from 10; 310 is 60 from 10). Then 310 (60), 130 (40), 0
    assert farthest_points(x, 6).tolist() == [4, 1, 2, 5, 3, 0]
    out = method("div_prune", 0.5).reduce(Tokens.of_frame(x, (2, 3)), Signals())
    assert torch.equal(out.x, x[[1, 2, 4]])  # the first three, in raster order


@given(st.integers(2, 7), st.integers(1, 4), st.integers(0, 50))
def test_divprune_is_no_worse_than_half_the_best_choice_there_is(n: int, k: int, seed: int) -> None:
    k = min(k, n)
    x = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    unit = torch.nn.functional.normalize(x, dim=1)
    apart = (1 - unit @ unit.T).clamp(min=0).sqrt()  # a metric: half of the Euclidean one's square root of 2

    def least(chosen: tuple[int, ...]) -> float:
        return min((float(apart[a, b]) for a, b in itertools.combinations(chosen, 2)), default=0.0)

    best = max(least(chosen) for chosen in itertools.combinations(range(n), k))
    chosen = farthest_points(x, k).tolist()
    assert len(set(chosen)) == k
    assert least(tuple(chosen)) >= best / 2 - 1e-9
    for step in range(1, k):  # and each step is the best there is
        left = [i for i in range(n) if i not in chosen[:step]]
        assert max(min(float(apart[i, c]) for c in chosen[:step]) for i in left) == pytest.approx(
            min(float(apart[chosen[step], c]) for c in chosen[:step])
        )


def test_divprune_keeps_as_many_as_it_says_even_if_all_are_the_same() -> None:
    assert sorted(farthest_points(torch.ones(5, 3), 3).tolist()) == [0, 1, 2]


def test_every_method_says_what_it_is_and_when_to_use_it() -> None:
    for name, kind in methods().items():
        assert kind.title and kind.when.endswith("."), name
        assert (kind.__doc__ or "").strip(), name
