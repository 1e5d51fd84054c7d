"""HoliTom, AIM, ToDRE, VFlowOpt, TransPrune, Zero-TPrune, GRT, QuickVideo, VideoScan: examples worked out by hand, and
plain-loop versions of what they compute.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from videollm_mod.depth import keep_count
from videollm_mod.reductions import Reduction, Signals, Tokens
from videollm_mod.reductions.aim import AIM, AIMPrune, importance, merge_pass, schedule
from videollm_mod.reductions.base import HERE
from videollm_mod.reductions.grt import GRT, dissimilarity
from videollm_mod.reductions.holitom import HoliTom, allot, centres, gains, segments, shares
from videollm_mod.reductions.holitom_causal import HoliTomCausal
from videollm_mod.reductions.holitom_merge import HoliTomMerge, fold
from videollm_mod.reductions.quickvideo import QuickVideo, smallest_keys
from videollm_mod.reductions.todre import ToDRE, ToDREExit, max_sum
from videollm_mod.reductions.transprune import TransPrune, transition
from videollm_mod.reductions.vflowopt import VFlowOpt, global_attention, low_for, recycled
from videollm_mod.reductions.vflowopt_cuts import SHIPPED, VFlowOptCuts, shipped
from videollm_mod.reductions.videoscan import VideoScan, attended, nearest_pair
from videollm_mod.reductions.zerotprune import ZeroTPrune, page_rank, unlike
from videollm_mod.types import InputError

F64 = torch.float64
seeds = st.integers(0, 10**6)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def stochastic(*shape: int, seed: int = 0) -> Tensor:
    return (2 * noise(*shape, seed=seed)).softmax(-1)


def film(x: Tensor, grid: tuple[int, int], traced: bool = True) -> Tokens:
    """(frames, h * w, d) -> the tokens of all frames."""
    return Tokens.join([Tokens.of_frame(each, grid, t, traced=traced) for t, each in enumerate(x)])


# -- HoliTom -----------------------------------------------------------------------------------------------------------


def total_gain(still: Tensor, parts: list[tuple[int, int]]) -> int:
    """What a partition saves, counted token by token."""
    return sum((last - first) * int(still[first:last].all(0).sum()) for first, last in parts if last > first)


def partitions(frames: int, longest: int) -> list[list[tuple[int, int]]]:
    found = []
    for cuts in itertools.product([False, True], repeat=frames - 1):
        edges = [0, *(t + 1 for t, cut in enumerate(cuts) if cut), frames]
        parts = [(a, b - 1) for a, b in zip(edges, edges[1:])]
        if all(last - first < longest for first, last in parts):
            found.append(parts)
    return found


def test_holitom_cuts_three_frames_where_most_is_saved() -> None:
    # position 0 stands still throughout, position 1 from frame 0 to 1 only: [0 1 2] saves 2 * 1, [0 1] [2] saves 1 * 2
    still = torch.tensor([[True, True], [True, False]])
    assert gains(still).tolist() == [[0, 2, 2], [0, 0, 1], [0, 0, 0]]
    assert segments(gains(still)) == [(0, 1), (2, 2)]  # a tie goes to what needs no further extension
    assert segments(gains(torch.tensor([[True, True], [True, True]]))) == [(0, 2)]
    assert segments(gains(still), longest=1) == [(0, 0), (1, 1), (2, 2)]


@given(frames=st.integers(1, 7), n=st.integers(1, 4), longest=st.integers(1, 7), seed=seeds, share=st.floats(0, 1))
def test_holitoms_segments_are_the_best_of_all_partitions(
    frames: int, n: int, longest: int, seed: int, share: float
) -> None:
    still = torch.rand(frames - 1, n, generator=torch.Generator().manual_seed(seed)) < share
    gain = gains(still)
    for first, last in itertools.combinations(range(frames), 2):
        assert int(gain[first, last]) == (last - first) * int(still[first:last].all(0).sum())
    found = segments(gain, longest)
    assert found in partitions(frames, longest)
    assert total_gain(still, found) == max(total_gain(still, parts) for parts in partitions(frames, longest))


def test_dpc_knn_finds_two_heaps_and_their_middles() -> None:
    x = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    # 2 neighbours, itself and the nearest: all equally dense, so a lower index counts as denser; the farthest from a
    # denser one is token 3 (8 from token 2), then token 0 by being the densest of all
    centre, to = centres(x, 2, neighbours=7)
    assert centre.tolist() == [0, 3] and to.tolist() == [0, 0, 0, 1, 1, 1]
    assert shares(to, centre, beta=0.6).tolist() == pytest.approx([0.6, 0.2, 0.2, 0.6, 0.2, 0.2])


def test_allotting_comes_out_and_gives_no_part_more_than_it_has() -> None:
    assert allot([3, 3, 3], 4) == [1, 2, 1]
    assert allot([0, 5], 9) == [0, 5]
    assert allot([], 3) == []


@given(frames=st.integers(1, 5), keep=st.floats(0.02, 0.99), still=st.floats(0, 1), seed=seeds)
def test_holitom_tells_where_everything_came_from(frames: int, keep: float, still: float, seed: int) -> None:
    x = noise(1, 6, 5, seed=seed).repeat(frames, 1, 1)
    moves = torch.rand(frames, 6, generator=torch.Generator().manual_seed(seed)) > still
    x = torch.where(moves[..., None], noise(frames, 6, 5, seed=seed + 1), x)
    tokens = film(x, (2, 3))
    for clustered in (0.0, 0.5):
        method = HoliTom(keep, clustered=clustered)
        signals = Signals({("received_attention", -1): noise(frames * 6, seed=seed + 2)}, total=frames * 6)
        out = method.reduce(tokens, signals)
        assert out.w is not None
        w = out.w.to_dense()
        assert len(out) <= method.count(frames * 6)
        assert torch.allclose(w.sum(1), torch.ones(len(out), dtype=F64))
        assert torch.allclose(w @ tokens.x, out.x)
        places = out.positions @ torch.tensor([6, 3, 1])
        assert bool((places.diff() > 0).all())


def test_holitom_makes_one_token_of_what_stands_still_through_a_segment() -> None:
    # two frames of two cells: cell 0 stands still (a little brighter), cell 1 moves; keep 3 of 4
    x = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[3.0, 0.0], [0.0, 1.0]]], dtype=F64)
    signals = Signals({("received_attention", -1): torch.ones(4)}, total=4)
    out = HoliTom(keep=0.75).reduce(film(x, (1, 2)), signals)
    assert out.x.tolist() == [[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    assert out.positions.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 1]]
    assert out.sizes.tolist() == [2.0, 1.0, 1.0]


def test_causal_holitom_sends_what_moves_and_opens_a_segment_when_little_stands_still() -> None:
    memory: dict[str, object] = {}
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    attention = Signals({("received_attention", -1): torch.tensor([4.0, 3.0, 2.0, 1.0])}, memory=memory, total=4)
    method = HoliTomCausal(keep=0.5)

    def kept(*cells: Tensor) -> list[int]:
        return method.reduce(Tokens.of_frame(torch.stack(cells), (1, 4)), attention).positions[:, 2].tolist()

    assert kept(a, a, a, a) == [0, 1]  # the first: by attention
    assert kept(a, a, a, b) == [3]  # three stand still
    assert kept(a, a, b, b) == [2, 3]  # two do since the first: 2 * 2 > 1 * 3
    assert kept(a, b, a, b) == [0, 1]  # one does: 3 * 1 < 2 * 2, so a new segment begins
    assert kept(a, b, a, b) == [0]  # and all stands still: one token has to stay


def test_holitom_folds_dropped_tokens_into_the_most_similar_one_after_the_other() -> None:
    x = torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0], [8.0, 0.0]], dtype=F64)
    group, weights = fold(x, torch.tensor([0, 2]))
    assert group.tolist() == [0, 0, 1, 0]
    assert weights.tolist() == [0.25, 0.25, 1.0, 0.5]  # ((2 + 4) / 2 + 8) / 2 = 5.5
    assert Tokens.of_frame(x, (2, 2)).merge(group, torch.tensor([0, 2]), weights).x.tolist() == [[5.5, 0.0], [0.0, 6.0]]


def test_holitom_keeps_what_the_question_attends_to_and_folds_the_rest_in() -> None:
    tokens = Tokens.of_frame(torch.tensor([[2.0, 0.0], [4.0, 0.0], [0.0, 6.0], [8.0, 0.0]], dtype=F64), (2, 2))
    signals = Signals({("last_attention", HERE): torch.tensor([0.4, 0.1, 0.3, 0.2])}, total=4)
    out = HoliTomMerge(keep=0.5).reduce(tokens, signals)  # 0 and 2 stay; 1 and 3 are like 0
    assert out.x.tolist() == [[5.5, 0.0], [0.0, 6.0]] and out.sizes.tolist() == [3.0, 1.0]
    assert HoliTomMerge().cuts(28) == {17: 0.5}  # behind the 18th


@pytest.mark.parametrize("method", [HoliTom(), HoliTomCausal(), GRT()])
def test_what_compares_a_place_over_time_refuses_frames_with_gaps(method: Reduction) -> None:
    left = Tokens.of_frame(noise(6, 3), (2, 3)).take(torch.tensor([0, 2, 5]))
    with pytest.raises(InputError, match="needs every cell of a frame; put it before what drops some"):
        method.reduce(left, Signals(total=6))


# -- AIM ---------------------------------------------------------------------------------------------------------------


def test_aim_merges_the_sources_most_like_their_destinations() -> None:
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=F64)
    # sources 0 and 2, destinations 1 and 3: 0 is just like 1, 2 is at 45 degrees to 3
    merged, group, at = merge_pass(x, 1)
    assert merged.tolist() == [[0.0, 1.0], [1.5, 0.0], [1.0, 1.0]]  # the unmerged source first
    assert group.tolist() == [1, 1, 0, 2] and at.tolist() == [2, 1, 3]
    out = AIM(keep=0.75).reduce(Tokens.of_frame(x, (2, 2)), Signals(total=4))
    assert out.x.tolist() == [[1.5, 0.0], [0.0, 1.0], [1.0, 1.0]]  # back in raster order


@given(n=st.integers(1, 17), keep=st.floats(0.02, 1), seed=seeds)
def test_aims_passes_are_means_of_means(n: int, keep: float, seed: int) -> None:
    x = noise(n, 4, seed=seed)
    method = AIM(keep)
    out = method.reduce(Tokens.of_frame(x, (1, n), traced=True), Signals(total=n))
    assert len(out) == method.count(n) and float(out.sizes.sum()) == n
    plain = x
    while len(plain) > method.count(n):
        plain = merge_pass(plain, min(len(plain) // 2, len(plain) - method.count(n)))[0]
    assert torch.allclose(out.x.sort(0).values, plain.sort(0).values)


def test_aims_page_rank_of_two_tokens_by_hand() -> None:
    # token 1 attends to both alike, token 0 to itself: (1/2, 1/2) -> (3/4, 1/4) -> (7/8, 1/8)
    logits = torch.tensor([[[0.0, -math.inf], [0.0, 0.0]]])
    assert importance(logits, rounds=2).tolist() == pytest.approx([7 / 8, 1 / 8])
    two = torch.cat([logits, torch.tensor([[[0.0, -math.inf], [0.0, -math.inf]]])])
    assert importance(two, rounds=1).tolist() == pytest.approx([math.sqrt((9 / 16 + 1) / 2), math.sqrt(1 / 32)])


def test_aims_schedule_is_the_published_one() -> None:
    shares = schedule(28, 0.5, 22 / 28, 0.0)
    assert list(shares) == list(range(14, 22))
    assert list(shares.values()) == pytest.approx([0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0])


def test_aim_prunes_what_hardly_anybody_walks_to() -> None:
    keys = torch.eye(4, dtype=F64)[:, None]  # (n, heads, e): each token has its own direction
    queries = 8 * torch.eye(4, dtype=F64)[[0, 0, 0, 2]][:, None]  # 0, 1 and 2 look at token 0, 3 at token 2
    signals = Signals({("queries", HERE): queries, ("keys", HERE): keys}, layer=2, layers=4, total=4)
    out = AIMPrune(keep=0.5, rounds=1).reduce(Tokens.of_frame(noise(4, 2), (2, 2)), signals)
    assert out.positions[:, 1:].tolist() == [[0, 0], [1, 0]]  # one step: three quarters at 0, a quarter at 2


# -- ToDRE -------------------------------------------------------------------------------------------------------------


def test_todre_takes_what_is_least_like_all_it_has() -> None:
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0], [-0.6, 0.8]], dtype=F64)
    assert max_sum(x, 2, pivot=0).tolist() == [0, 3]  # cosines .6, 0, -.6 to token 0
    assert max_sum(x, 3, pivot=0).tolist() == [0, 2, 3]  # sums .6 + .28 and 0 - .8
    signals = Signals({("cls_attention", -1): torch.tensor([0.1, 0.7, 0.1, 0.1])}, total=4)
    assert ToDRE(keep=0.25).reduce(Tokens.of_frame(x, (2, 2)), signals).positions[:, 2].tolist() == [1]


@given(n=st.integers(2, 7), seed=seeds)
def test_todres_greedy_step_is_the_best_single_step(n: int, seed: int) -> None:
    x = noise(n, 3, seed=seed)
    alike = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    for k in range(2, n + 1):
        before, after = set(max_sum(x, k - 1, 0).tolist()), set(max_sum(x, k, 0).tolist())
        assert before < after
        costs = {j: float(sum(alike[i, j] for i in before)) for j in set(range(n)) - before}
        assert costs[(after - before).pop()] == pytest.approx(min(costs.values()))


def test_todre_lets_a_frame_leave_that_text_does_not_look_at() -> None:
    tokens = Tokens.of_frame(noise(4, 2), (2, 2))
    for attention, left in (
        ([0.01, 0.02, 0.03, 0.01], [2]),
        ([0.05, 0.05, 0.0, 0.0], [0, 1, 2, 3]),
        ([0.0] * 4, [0, 1, 2, 3]),
    ):
        signals = Signals({("text_attention", HERE): torch.tensor(attention)}, layer=6, layers=8, total=4)
        out = ToDREExit().reduce(tokens, signals)
        assert (2 * out.positions[:, 1] + out.positions[:, 2]).tolist() == left
    assert ToDREExit().cuts(8) == {6: 1.0}  # behind the seventh of eight


# -- VFlowOpt ----------------------------------------------------------------------------------------------------------


def test_vflowopt_listens_to_the_tokens_that_everything_flows_to() -> None:
    # token 0 gets 0.7 of 1 on average, so more than twice the mean of 1/3; it looks at token 2
    attention = torch.tensor([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert global_attention(attention, 2.0).tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert global_attention(attention, 9.0).tolist() == pytest.approx([0.7, 0.2 / 3, 0.7 / 3])  # nobody: everybody


def test_vflowopt_keeps_what_the_global_tokens_look_at() -> None:
    # as above, with one head and a threshold of 2 of 3 cells (scaled as 486 of 729): token 0 is the global one
    attention = torch.tensor([[0.1, 0.2, 0.7], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])[:, None]
    tokens = Tokens.of_frame(torch.arange(3.0)[:, None], (1, 3))
    signals = Signals({("tower_attention", -1): attention, ("entropy", 0): torch.tensor([9.0, 0.0, 0.0])}, total=3)
    assert VFlowOpt(2 / 3, threshold=486.0).reduce(tokens, signals).x[:, 0].tolist() == [1, 2]
    # softmax of the entropies is nearly 1, 0, 0: with half of it token 0 comes first
    assert VFlowOpt(2 / 3, threshold=486.0, entropy=0.5).reduce(tokens, signals).x[:, 0].tolist() == [0, 2]


def test_vflowopt_cuts_by_the_same_map_behind_two_layers() -> None:
    one = VFlowOptCuts(keep=0.5, step=0.5)
    assert one.cuts(28) == {8: 0.75, 17: 0.5}
    tokens, attention = Tokens.of_frame(torch.arange(4.0)[:, None], (2, 2)), torch.tensor([0.4, 0.1, 0.2, 0.3])
    for layer, left in ((8, [0, 2, 3]), (17, [0, 3])):
        signals = Signals({("received_attention", -1): attention}, layer=layer, layers=28, total=4)
        tokens = one.reduce(tokens, signals)
        attention = attention[torch.tensor([0, 2, 3])] if layer == 8 else attention
        assert tokens.x[:, 0].tolist() == left


def test_vflowopt_recycles_what_it_drops_square_by_square() -> None:
    # one row of four cells, squares of two: the two lowest, 2 and 3, stand in the same one and become one where 2 is
    score = torch.tensor([0.4, 0.3, 0.2, 0.1])
    tokens = Tokens.of_frame(torch.tensor([[8.0], [4.0], [3.0], [9.0]], dtype=F64), (1, 4), traced=True)
    group, at = recycled(score, tokens.positions[:, 1:], 2, 2.0)
    assert at.tolist() == [0, 1, 2] and group.tolist() == [0, 1, 2, 2]
    out = tokens.merge(group, at, score)
    assert out.x[:, 0].tolist() == pytest.approx([8.0, 4.0, (0.2 * 3 + 0.1 * 9) / 0.3])
    assert low_for(score, tokens.positions[:, 1:], 2.0, 3) == 2
    assert low_for(score, tokens.positions[:, 1:], 2.0, 2) == 4


@given(rows=st.integers(1, 5), columns=st.integers(1, 5), keep=st.floats(0.05, 1), cell=st.floats(1, 6), seed=seeds)
def test_vflowopt_keeps_its_count_with_recycling_too(
    rows: int, columns: int, keep: float, cell: float, seed: int
) -> None:
    n = rows * columns
    tokens = Tokens.of_frame(noise(n, 3, seed=seed), (rows, columns), traced=True)
    signals = Signals({("tower_attention", -1): stochastic(n, 2, n, seed=seed)}, total=n)
    method = VFlowOpt(keep, recycle=True, cell=cell)
    out = method.reduce(tokens, signals)
    assert len(out) == method.count(n) and float(out.sizes.sum()) == n
    assert out.w is not None and torch.allclose(out.w.to_dense() @ tokens.x, out.x)


def test_vflowopts_settings_keep_the_published_share_of_all_layers() -> None:
    for mean, (threshold, cell, enters, (first, second)) in SHIPPED.items():
        assert enters * (9 + 9 * first + 10 * first * second) / 28 == pytest.approx(mean, abs=1e-3)
        tokens, cuts = shipped(mean).parts
        assert tokens == VFlowOpt(enters, threshold, cell)
        assert cuts.cuts(28) == pytest.approx({8: first, 17: first * second})
    with pytest.raises(InputError, match="no setting for a budget"):
        shipped(0.3)
    assert VFlowOptCuts().cuts(28) == pytest.approx({8: 0.9833, 17: 0.8627}, abs=1e-4)


# -- TransPrune --------------------------------------------------------------------------------------------------------


def test_transprune_likes_what_is_turned_and_lengthened() -> None:
    before, after = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    e = math.e
    assert transition(before, after).tolist() == pytest.approx([2 / (1 + e), 2 * e / (1 + e)])


def test_to_transprune_a_token_that_skipped_the_layer_has_not_changed() -> None:
    before = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])  # behind a depth plan the second went by
    after = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    e = math.e
    assert transition(before, after).tolist() == pytest.approx([2 / (1 + e), 0, 2 * e / (1 + e)])
    assert transition(before * 0, after * 0).tolist() == [0, 0, 0]


def test_transprune_cuts_as_published() -> None:
    cuts, counts = TransPrune().cuts(32), []
    left = 576
    for layer in range(32):
        counts.append(left)
        left = keep_count(cuts[layer], 576) if layer in cuts else left
    assert counts == [576] * 7 + [504] * 2 + [360] * 3 + [72] * 20
    assert sum(counts) / 32 == 236.25


def test_transprune_adds_up_what_layers_did_and_what_text_looks_at() -> None:
    method, memory = TransPrune(keep=0.25), dict[str, object]()
    same = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    tokens, seen = Tokens.of_frame(noise(4, 2), (1, 4)), []
    for layer in method.cuts(8):
        longer = (
            same[: len(tokens)] * torch.tensor([1.0, 4.0, 2.0, 3.0])[tokens.positions[:, 2], None]
        )  # token 1 grows most
        halves = {("attention_in", HERE): same[: len(tokens)], ("attention_out", HERE): longer}
        halves |= {("mlp_in", HERE): same[: len(tokens)], ("mlp_out", HERE): same[: len(tokens)]}
        text = torch.zeros(len(tokens))
        text[0] = 0.9  # text looks at token 0
        signals = Signals(halves | {("text_attention", HERE): text}, memory=memory, layer=layer, layers=8, total=4)
        tokens = method.reduce(tokens, signals)
        seen.append(tokens.positions[:, 2].tolist())
    assert seen == [[0, 1, 3], [0]]


# -- Zero-TPrune -------------------------------------------------------------------------------------------------------


def test_zero_tprunes_page_rank_leaves_out_heads_that_tell_nothing() -> None:
    flat = torch.full((3, 3), 1 / 3, dtype=F64)
    star = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25]], dtype=F64)  # ranks 1.5, .75, .75
    assert page_rank(torch.stack([flat, star]), 1).tolist() == pytest.approx([1.5, 0.75, 0.75])
    assert page_rank(flat[None], 5).tolist() == pytest.approx([1, 1, 1])  # no head fits, so all count


def test_zero_tprune_drops_the_less_important_that_is_like_something_important() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [-1.0, 1.0]])
    rank = torch.tensor([0.1, 0.2, 0.9, 0.8])  # lower half: 0, much like 2, and 1, at 45 degrees to 3
    assert unlike(keys, rank, 1).tolist() == [1, 2, 3]
    assert unlike(keys, rank, 2).tolist() == [2, 3]


def test_zero_tprune_drops_half_for_likeness_and_half_for_rank() -> None:
    # everybody attends as 0.4, 0.3, 0.2, 0.1: ranks 1.6, 1.2, 0.8, 0.4; token 2 is just like token 0 and goes first
    tokens = Tokens.of_frame(torch.arange(4.0)[:, None], (2, 2))
    attention = torch.tensor([0.4, 0.3, 0.2, 0.1]).repeat(4, 1, 1)  # (n, heads, n)
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, -1.0]])[:, None]
    signals = Signals({("tower_attention", HERE): attention, ("tower_keys", HERE): keys}, layer=3, layers=4, total=4)
    one = ZeroTPrune(keep=0.5, places=(1.0,))
    assert one.cuts(4) == {3: 0.5}
    assert one.reduce(tokens, signals).x[:, 0].tolist() == [0, 1]  # and then token 3, the lowest of those left
    alone = ZeroTPrune(keep=0.75, places=(1.0,), likeness=1.0)
    assert alone.reduce(tokens, signals).x[:, 0].tolist() == [0, 1, 3]
    assert ZeroTPrune(keep=0.75, places=(1.0,), likeness=0.0).reduce(tokens, signals).x[:, 0].tolist() == [0, 1, 2]


@given(keep=st.floats(0.05, 0.99), seed=seeds)
def test_zero_tprune_leaves_what_it_says_behind_each_cut(keep: float, seed: int) -> None:
    method, n, blocks = ZeroTPrune(keep), 12, 12
    tokens = Tokens.of_frame(noise(n, 4, seed=seed), (3, 4))
    for layer in method.cuts(blocks):
        values = {("tower_attention", HERE): stochastic(len(tokens), 2, len(tokens), seed=seed)}
        values[("tower_keys", HERE)] = noise(len(tokens), 2, 3, seed=seed)
        tokens = method.reduce(tokens, Signals(values, layer=layer, layers=blocks, total=n))
    assert len(tokens) == method.count(n)


# -- GRT ---------------------------------------------------------------------------------------------------------------


def test_grt_measures_likeness_of_cells_by_hand() -> None:
    a, b = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    # means 1/2, variances 1/4, covariance -1/4, range 1: form (2 * -1/4 + c2) / (1/2 + c2), light 1
    assert dissimilarity(a, a).tolist() == [0.0]
    assert dissimilarity(a, b).tolist() == pytest.approx([1 - (-0.5 + 9e-4) / (0.5 + 9e-4)])


@pytest.mark.parametrize("metric", ["ssim", "l2"])
def test_grt_keeps_what_changed_since_it_was_last_seen_to_change(metric: str) -> None:
    memory: dict[str, object] = {}
    method = GRT(keep=0.25, metric=metric)

    def kept(pixels: Tensor) -> list[int]:
        return method.reduce(Tokens.of_frame(pixels, (1, 4)), Signals(memory=memory, total=4)).positions[:, 2].tolist()

    first = torch.rand(4, 12, generator=torch.Generator().manual_seed(1))
    first[2] = torch.tensor([0.0, 1.0]).repeat(6)
    assert kept(first) == [2]  # the first frame: by contrast
    second = first.clone()
    second[3] = 1 - second[3]
    assert kept(second) == [3]
    assert kept(second) == [0]  # nothing has changed any more: a tie
    assert kept(first) == [3]


# -- QuickVideo and VideoScan ------------------------------------------------------------------------------------------


def test_quickvideo_keeps_short_keys_in_their_order() -> None:
    assert smallest_keys(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [9.0, 0.0]]), 2).tolist() == [1, 2]
    tokens = Tokens.of_frame(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0], [9.0, 0.0]]), (2, 2))
    assert QuickVideo(0.5).reduce(tokens, Signals(layers=1, layer=0)).x.tolist() == [[1.0, 0.0], [0.0, 2.0]]
    assert [QuickVideo(0.5, decay="linear").count_at(16, layer, 4) for layer in range(4)] == [8, 6, 4, 2]
    assert [QuickVideo(0.5, decay="exponential", factor=0.5).count_at(16, layer, 4) for layer in range(5)] == [
        8,
        4,
        2,
        1,
        1,
    ]


def test_videoscans_carrier_is_the_mean_and_stays_with_what_it_attends_to() -> None:
    tokens = Tokens.of_frame(torch.tensor([[1.0], [2.0], [3.0], [6.0]], dtype=F64), (2, 2), traced=True)
    carried = VideoScan().prepare(tokens)
    assert carried.x[:, 0].tolist() == [1.0, 2.0, 3.0, 3.0]
    assert carried.w is not None and carried.w.to_dense()[3].tolist() == [0.25] * 4
    keys = torch.tensor([[0.0], [5.0], [1.0], [0.0]])[:, None]
    queries = torch.ones(4, 1, 1)
    assert attended(queries, keys).tolist() == pytest.approx(torch.tensor([0.0, 5.0, 1.0, 0.0]).softmax(0).tolist())
    signals = Signals({("queries", HERE): queries, ("keys", HERE): keys}, total=4)
    assert VideoScan().reduce(tokens, signals).x[:, 0].tolist() == [6.0]
    assert VideoScan().count(210) == 1, "as theirs, the carrier alone"
    assert VideoScan(keep=0.5).reduce(tokens, signals).x[:, 0].tolist() == [2.0, 6.0]


def test_videoscan_forgets_the_earlier_of_the_two_most_alike() -> None:
    assert nearest_pair(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]])) == 1
