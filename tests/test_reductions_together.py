"""Several reductions in one model: each does behind the others what it does alone, or a sentence says why it cannot."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from reduction_cases import decisions, features_of, logits_of, method, small_model
from stream_cases import frames
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import Stream, System
from videollm_mod.model import StreamingVideoLM
from videollm_mod.reductions import Compose, Reduction, Signals, Tokens, methods
from videollm_mod.reductions.attention import _ears
from videollm_mod.reductions.base import HERE
from videollm_mod.reductions.hiprune import HiPrune
from videollm_mod.reductions.matryoshka import Matryoshka
from videollm_mod.reductions.transprune import TransPruneCausal
from videollm_mod.reductions.vflowopt import global_attention
from videollm_mod.reductions.vflowopt_cuts import shipped
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError

QUESTION = "What happened?"
ROUTED = DepthPlan("interleaved", 0.4)


@dataclass
class Seeing(Reduction):
    """Keeps all, and notes what it is given."""

    keep: float = 1.0
    wants: tuple[tuple[str, int], ...] = ()
    calls: list[tuple[Tokens, Signals]] = field(default_factory=list)

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return self.wants

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        self.calls.append((tokens, signals))
        return tokens


@dataclass
class SeeingInside(Seeing):
    stage: ClassVar = "layer"

    def cuts(self, layers: int) -> dict[int, float]:
        return {layers - 1: 1.0}


def stored(model: StreamingVideoLM, one: Reduction) -> list[int]:
    """How many of one frame's cells each layer's cache holds; its CLS and text are not counted."""
    with one.on(model, question=QUESTION):
        session = StreamSession(model, threshold=0.0)
        session.push(frames(1)[0])
    text = len(model.template.system(model.settings.system)) + 2  # "[" and ","
    return [entries - text - 1 for entries in session.state().stored]


def watch(model: StreamingVideoLM, one: Reduction, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model thinks of staying silent at each frame: in one pass, and frame by frame."""
    with one.on(model, question=QUESTION):
        talk = [System(model.settings.system), Stream(count)]
        whole = decisions(model, features_of(model, count), talk).softmax(-1)[:, model.template.interval_id]
        session, silences = StreamSession(model, threshold=0.0), []
        for frame in frames(count):
            session.push(frame)
            silences.append(session.silence)
    return whole, torch.tensor(silences, dtype=whole.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [None, ROUTED], ids=["alone", "routed"])
@pytest.mark.parametrize("first", methods())
def test_any_two_go_together_or_say_why_not_and_stream_as_in_one_pass(first: str, plan: DepthPlan | None) -> None:
    model = small_model("clip", "last", plan)
    for second in methods():
        try:
            both = Compose([method(first, 0.5), method(second, 0.5)])
            whole, live = watch(model, both)
        except InputError as error:
            told = ("goes backwards", "both prune in the tower", "put it before what drops some", "among all cells")
            assert any(words in str(error) for words in told), error
            continue
        assert whole.isfinite().all()
        asking = {"to_dre_exit", "trans_prune"} & {first, second}  # of text that one pass has and a stream has not yet
        if not asking and "holi_tom" not in (first, second):
            assert torch.allclose(whole, live, atol=1e-6), second


@pytest.mark.parametrize(
    "names",
    [("faster_vlm", "aim_prune", "quick_video"), ("flow_cut", "div_prune", "video_scan"), ("grt", "aim", "random")],
)
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_three_go_together_with_a_depth_plan(names: tuple[str, ...], kind: str) -> None:
    model = small_model(kind, "last", ROUTED)
    whole, live = watch(model, Compose([method(name, 0.5) for name in names]))
    assert torch.allclose(whole, live, atol=1e-6)


def test_shares_inside_the_decoder_are_of_what_enters_it() -> None:
    """AIM prunes behind its own merging, VFlowOpt cuts twice behind its own choice."""
    model = small_model()
    assert stored(model, method("aim_prune", 0.5)) == [16, 16, 16, 8]
    assert stored(model, Compose([method("aim", 0.25), method("aim_prune", 0.5)])) == [4, 4, 4, 2]
    assert stored(model, Compose([method("faster_vlm", 0.5), method("holi_tom_merge", 0.5)])) == [8, 8, 8, 4]
    enters = 12  # 0.7233 of 16; the cuts leave 0.7487 and 0.7487 * 0.4870 of these
    assert stored(model, shipped(0.50)) == [enters, 9, 9, 5]


def test_a_composition_tells_how_many_are_left_and_what_it_asks_for() -> None:
    both = Compose([method("faster_vlm", 0.5), method("quick_video", 0.5)])
    assert both.count(16) == 4 and both.needs == (("cls_attention", -2),)
    assert stored(small_model(), both) == [both.count(16)] * 4
    assert (both.streamable, both.exact, both.merges, both.needs_query) == ("causal", True, False, False)
    both = Compose([method("holi_tom", 0.5), Compose([method("holi_tom_merge", 0.5)])])
    assert (both.streamable, both.exact, both.merges, both.needs_query) == ("whole", False, True, True)
    assert both.causal().streamable == "question"


def test_what_is_called_per_frame_is_so_behind_what_sees_the_whole_video() -> None:
    model, after = small_model(), Seeing()
    with Compose([method("holi_tom", 0.5), after]).on(model, traced=True) as within:
        decisions(model, features_of(model, 4), [Stream(4)])
    assert [tokens.frame.unique().tolist() for tokens, _ in after.calls] == [[0], [1], [2], [3]]
    assert [signals.total for _, signals in after.calls] == [16] * 4
    (left,) = within.last
    assert sum(len(tokens) for tokens, _ in after.calls) == len(left) == 32
    assert left.w is not None and left.w.shape == (32, 64)


def test_attention_between_cells_is_among_those_that_are_left() -> None:
    model, seeing = small_model(), Seeing(wants=(("tower_attention", -1),))
    with seeing.on(model):
        decisions(model, features_of(model, 1), [Stream(1)])
    whole = seeing.calls[0][1]["tower_attention", -1]
    behind = Seeing(wants=seeing.wants)
    with Compose([method("uniform", 0.5), behind, method("v_flow_opt", 0.5)]).on(model, traced=True) as within:
        decisions(model, features_of(model, 1), [Stream(1)])
    left = torch.arange(1, 16, 2)  # the middle of 8 stretches of two
    part = behind.calls[0][1]["tower_attention", -1]
    assert torch.allclose(part, whole[left][..., left])
    score = global_attention(part.mean(1), 34.76 * 8 / 729)
    place = within.last[0].positions[:, 1] * 4 + within.last[0].positions[:, 2]
    assert place.tolist() == left[score.topk(4).indices.sort().values].tolist()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_pruned_towers_attention_is_among_the_cells_that_live(kind: str) -> None:
    model = small_model(kind)
    needs = (("received_attention", 0), ("received_attention", -1), ("tower_keys", -1), ("tower_attention", -1))
    alone, behind = Seeing(wants=needs), Seeing(wants=needs)
    with alone.on(model):
        decisions(model, features_of(model, 1), [Stream(1)])
    with Compose([method("flow_cut", 0.25), behind]).on(model):
        decisions(model, features_of(model, 1), [Stream(1)])
    (_, before), (living, after) = alone.calls[0], behind.calls[0]
    assert len(living) == 4
    at = living.positions[:, 1] * 4 + living.positions[:, 2]
    # the first block is not pruned yet; of the last, all attention goes to the four (and the CLS)
    assert torch.allclose(after["received_attention", 0], before["received_attention", 0][at])
    assert after["tower_attention", -1].shape == (4, 2, 4)
    to_cells = after["tower_attention", -1].sum(-1)
    if kind == "siglip":
        assert float(after["received_attention", -1].sum()) == pytest.approx(1.0)
        assert torch.allclose(to_cells, torch.ones_like(to_cells))
    else:
        assert bool((to_cells < 1).all()) and bool((to_cells > 0).all())
    assert not torch.allclose(after["tower_keys", -1], before["tower_keys", -1][at])


def test_a_pruned_towers_signals_are_pooled_over_the_living_as_its_tokens_are() -> None:
    model, seeing = small_model("siglip"), Seeing(wants=(("tower_attention", -1), ("received_attention", -1)))
    own, tokens = model.encoder.grid, model.encoder.tokens_per_frame
    try:
        model.encoder.grid, model.encoder.tokens_per_frame, model.template.tokens_per_frame = (2, 2), 5, 5
        with Compose([method("flow_cut", 0.5), seeing]).on(model):
            decisions(model, features_of(model, 1), [Stream(1)])
    finally:
        model.encoder.grid, model.encoder.tokens_per_frame, model.template.tokens_per_frame = own, tokens, tokens
    (two, signals) = seeing.calls[0]
    assert len(two) == 2 and signals["tower_attention", -1].shape == (2, 2, 2)
    assert torch.allclose(signals["tower_attention", -1].sum(-1), torch.ones(2, 2, dtype=torch.float64))
    # four own cells in each of the two that are left: their means add up to a quarter
    assert float(signals["received_attention", -1].sum()) == pytest.approx(0.25)


def test_two_listen_to_the_same_attention() -> None:
    model = small_model()
    alone, together = (SeeingInside(wants=(("last_attention", HERE),)) for _ in range(2))
    for parts in ([alone], [together, method("video_scan", 1.0)]):
        with Compose(parts).on(model):
            decisions(model, features_of(model, 2), [Stream(2)])
    for (_, one), (_, other) in zip(alone.calls, together.calls, strict=True):
        assert torch.allclose(one["last_attention", HERE], other["last_attention", HERE])
    assert not _ears


def test_sizes_and_w_of_what_was_merged_before_are_known_inside_the_decoder() -> None:
    model, inside = small_model(), SeeingInside()
    with Compose([method("aim", 0.25), inside]).on(model, traced=True) as within:
        decisions(model, features_of(model, 2), [Stream(2)])
    for tokens, _ in inside.calls:
        assert float(tokens.sizes.sum()) == 16 and tokens.w is not None
        w = tokens.w.to_dense()
        assert w.shape == (4, 16) and torch.allclose(w.sum(1), torch.ones(4, dtype=w.dtype))
    with Compose([method("aim", 0.5), method("holi_tom_merge", 0.5)]).on(model, traced=True) as within:
        decisions(model, features_of(model, 2), [Stream(2)])
        left = within.cuts.now[0, 1]
    assert len(left) == 4 and float(left.sizes.sum()) == 16 and left.w is not None
    assert torch.allclose(left.w.to_dense().sum(1), torch.ones(4, dtype=torch.float64))


def test_transprune_adds_up_what_layers_did_to_a_token_whoever_else_cuts_in_between() -> None:
    one, memory = TransPruneCausal(keep=0.25), dict[str, object]()
    tokens, same = Tokens.of_frame(torch.zeros(4, 2), (1, 4)), torch.tensor([[1.0, 0.0]])

    def call(tokens: Tokens, layer: int, lengths: list[float]) -> Tokens:
        told = dict.fromkeys((("attention_in", HERE), ("mlp_in", HERE)), same.repeat(len(tokens), 1))
        told[("attention_out", HERE)] = same * torch.tensor(lengths)[:, None]
        told[("mlp_out", HERE)] = same.repeat(len(tokens), 1)
        return one.reduce(tokens, Signals(told, memory=memory, layer=layer, layers=32, total=4))

    first, *_, last = one.cuts(32)
    tokens = call(tokens, first, [1.0, 1.0, 9.0, 2.0])  # token 2 has grown most; it and token 3 hold their lead,
    assert tokens.positions[:, 2].tolist() == [0, 1, 2, 3]
    tokens = tokens.take(torch.tensor([1, 2, 3]))  # though another method drops token 0
    assert call(tokens, last, [1.0, 1.0, 1.0]).positions[:, 2].tolist() == [2]


def test_hiprunes_neighbours_are_those_in_the_picture_also_behind_others() -> None:
    # 0 1 . 3        middle layer: cell 5, whose neighbours are 1, 4 and 9; 6 is gone. A budget of 5 has one anchor, and
    # 4 5 . 7        the deep layer's highest of the rest: 3
    # 8 9 . 11
    tokens = Tokens.of_frame(torch.arange(12.0)[:, None], (3, 4)).take(torch.tensor([0, 1, 3, 4, 5, 7, 8, 9, 11]))
    middle, deep = torch.zeros(9), torch.tensor([0.1, 0.2, 0.9, 0, 0, 0, 0, 0, 0.3])
    middle[4] = 1.0
    one = HiPrune(keep=5 / 9, alpha=1.0, layer=2)
    told = Signals({("received_attention", 1): middle, ("received_attention", -2): deep})
    assert one.reduce(tokens, told).x[:, 0].tolist() == [1, 3, 4, 5, 9]


def test_pooling_keeps_no_more_than_it_says_of_a_thin_grid_and_of_a_grid_with_gaps() -> None:
    row = Tokens.of_frame(torch.arange(4.0)[:, None], (1, 4))
    assert Matryoshka(0.25).reduce(row, Signals()).x.tolist() == [[1.5]]
    corners = Tokens.of_frame(torch.arange(16.0)[:, None], (4, 4)).take(torch.tensor([0, 3, 12, 15]))
    assert len(Matryoshka(0.6).reduce(corners, Signals())) <= Matryoshka(0.6).count(4)


@pytest.mark.parametrize("inside", ["flow_cut", "zero_t_prune"])
def test_pixels_of_all_cells_are_not_compared_where_the_tower_has_dropped_some(inside: str) -> None:
    both = Compose([method("grt", 0.5), method(inside, 0.5)])
    with pytest.raises(
        InputError, match=r"chooses among all cells of a picture, and .* in the tower by then; take one"
    ):
        both.on(small_model())


@pytest.mark.parametrize("parts", [[3], ["uniform"], [methods()["uniform"]]])
def test_a_composition_is_made_of_reductions(parts: list[Any]) -> None:
    with pytest.raises(InputError, match="is no reduction; give a list of them, such as"):
        Compose(parts)


def test_two_frames_of_two_conversations_equal_each_alone_with_cuts_and_evictions() -> None:
    model = small_model()
    both = Compose([method("aim_prune", 0.5), method("quick_video", 0.5)])
    film, example = features_of(model, 4), model.template.encode([System("Say what happens."), Stream(2)])
    ids, index = example.input_ids.repeat(2, 1), example.frame_index.repeat(2, 1)
    with both.on(model), torch.no_grad():
        together = model(ids, index, film, logits_to_keep=0).logits
        for row in range(2):
            alone = model(ids[:1], index[:1], film[2 * row : 2 * row + 2], logits_to_keep=0).logits[0]
            assert torch.allclose(together[row], alone)
        with pytest.raises(InputError, match="has a cache of one conversation at a time; give a batch of one"):
            model(ids, index, film, use_cache=True)


def test_nothing_of_a_composition_is_left_behind_an_error() -> None:
    model, sdpa = small_model(), ALL_ATTENTION_FUNCTIONS["sdpa"]
    features = features_of(model)
    expected = logits_of(model, features)[0]
    names = ("flow_cut", "faster_vlm", "trans_prune", "video_scan")
    fails: Callable[..., Any]
    for fails in (lambda: 1 / 0, lambda: method("uniform", 0.5).on(model).__enter__()):
        with pytest.raises((ZeroDivisionError, InputError)):
            with Compose([method(name, 0.5) for name in names]).on(model, question=QUESTION):
                features_of(model, 1)
                fails()
        assert model.reducing is None and "forward" not in vars(model.encoder) and not _ears
        assert not any(itertools.chain(*((m._forward_hooks, m._forward_pre_hooks) for m in model.modules())))
        assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa
        assert torch.equal(logits_of(model, features)[0], expected)
