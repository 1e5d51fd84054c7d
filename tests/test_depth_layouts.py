"""The laws of the core over random conversations, cuts, batches and plans, in either precision on every backbone.

Frames of 1, 5, 10 and 50 tokens mixed, several frames in a step, questions in between, text before and after. In single
precision, conversations in which rounding could choose another token are passed over: see `clear`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from depth_cases import (
    BACKBONES,
    DTYPES,
    LAYERS,
    TOLERANCE,
    VOCABULARY,
    Conversation,
    clear,
    conversations,
    cuts,
    far,
    given_scores,
    left_padded,
    padded_steps,
    plans,
    right_padded,
    routed,
    run,
    same_kept,
    stream,
    stream_batch,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference import reference
from transformers import PreTrainedModel

from videollm_mod.depth import DepthPlan, keep_count

Models = Callable[..., PreTrainedModel]
backbones = pytest.mark.parametrize("backbone", BACKBONES)
seeds = st.integers(0, 99)
dtypes = st.sampled_from(DTYPES[::-1])  # the simplest is double: what fails in both is shown in that
slow = settings(max_examples=settings.default.max_examples // 3)  # for what runs the reference


@backbones
@slow
@given(talked=conversations(longest=60), plan=plans(), seed=seeds, dtype=dtypes)
def test_the_brute_force_reference_agrees(
    models: Models, backbone: str, talked: Conversation, plan: DepthPlan, seed: int, dtype: torch.dtype
) -> None:
    model, ids = models(backbone, dtype), talked.ids(seed)
    with routed(model, plan, seed), torch.no_grad():
        assume(clear(model, ids, talked))
        fast = run(model, ids, talked.index)
        embeds, scores = model.get_input_embeddings()(ids)[0], given_scores(ids)[0].tolist()
        naive = reference(model, embeds, talked.frame_index, plan, given=scores)
    assert {i: set(kept[0].nonzero()[:, 0].tolist()) for i, kept in fast.kept.items()} == naive.kept
    assert far(fast.hidden[0], naive.hidden) < TOLERANCE[dtype]
    assert [rows[0] for rows in fast.cache.stored] == naive.entries


@backbones
@given(talked=conversations(), plan=plans(), seed=seeds, dtype=dtypes, data=st.data())
def test_law_2_a_stream_cut_anywhere_but_inside_a_frame_equals_one_pass(
    models: Models,
    backbone: str,
    talked: Conversation,
    plan: DepthPlan,
    seed: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    model, ids = models(backbone, dtype), talked.ids(seed)
    borders = data.draw(cuts(talked))
    with routed(model, plan, seed):
        assume(clear(model, ids, talked))
        once, streamed = run(model, ids, talked.index), stream(model, ids, talked, borders)
    assert same_kept(streamed.kept, once.kept)
    assert far(streamed.hidden, once.hidden) < TOLERANCE[dtype]
    assert streamed.cache.stored == once.cache.stored and streamed.cache.seen == once.cache.seen == len(talked)


@backbones
@given(talked=conversations(), other=conversations(), plan=plans(), seed=seeds, dtype=dtypes, data=st.data())
def test_law_3_nothing_later_changes_anything_earlier(
    models: Models,
    backbone: str,
    talked: Conversation,
    other: Conversation,
    plan: DepthPlan,
    seed: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    """The future is exchanged for another one from a random border on: other tokens, other frames, other length."""
    model = models(backbone, dtype)
    border = data.draw(st.sampled_from([*talked.borders, len(talked)]))
    later = [number + 100 if number >= 0 else -1 for number in other.frame_index]
    changed = Conversation((*talked.frame_index[:border], *later))
    ids, new_ids = talked.ids(seed), changed.ids(seed + 1)
    new_ids[:, :border] = ids[:, :border]
    with routed(model, plan, seed):
        assume(clear(model, ids, talked))
        first, second = run(model, ids, talked.index), run(model, new_ids, changed.index)
    assert far(first.hidden[:, :border], second.hidden[:, :border]) < TOLERANCE[dtype]
    for layer, kept in first.kept.items():
        assert torch.equal(kept[:, :border], second.kept[layer][:, :border])


@torch.no_grad()
def stores_padding(plan: DepthPlan, layer: int) -> bool:
    """Whether a routed layer keeps all, and does no more: then it is the untouched one, which stores padding, too."""
    return plan.ratios(LAYERS)[layer] == 1 and not plan.gate_acts


@backbones
@given(
    talks=st.lists(conversations(), min_size=2, max_size=3), plan=plans(), seed=seeds, dtype=dtypes, left=st.booleans()
)
def test_law_4_a_padded_batch_equals_its_rows_alone(
    models: Models, backbone: str, talks: list[Conversation], plan: DepthPlan, seed: int, dtype: torch.dtype, left: bool
) -> None:
    model = models(backbone, dtype)
    pad = left_padded if left else right_padded
    ids = [talked.ids(seed + i) for i, talked in enumerate(talks)]
    real = pad([torch.ones_like(row) for row in ids])
    batch = dict(
        ids=pad(ids),
        frame_index=pad([talked.index for talked in talks], -1),
        attention_mask=real,
        position_ids=(real.cumsum(1) - 1).clamp(min=0),
    )
    with routed(model, plan, seed):
        assume(all(map(partial(clear, model), ids, talks)))
        both, bare = run(model, **batch), run(model, **batch, use_cache=False)
        for row, (tokens, talked) in enumerate(zip(ids, talks)):
            alone, own = run(model, tokens, talked.index), real[row].bool()
            assert far(both.hidden[row, own], alone.hidden[0]) < TOLERANCE[dtype]
            assert far(bare.hidden[row, own], alone.hidden[0]) < TOLERANCE[dtype]
            for layer, kept in both.kept.items():
                assert torch.equal(kept[row, own], alone.kept[layer][0]) and not kept[row, ~own].any()
                whole = stores_padding(plan, layer)
                assert both.cache.stored[layer][row] == (real.shape[1] if whole else alone.cache.stored[layer][0])


@backbones
@given(talks=st.tuples(conversations(), conversations()), plan=plans(), seed=seeds, dtype=dtypes, data=st.data())
def test_law_4_rows_that_stream_side_by_side_equal_each_alone(
    models: Models,
    backbone: str,
    talks: tuple[Conversation, Conversation],
    plan: DepthPlan,
    seed: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    model = models(backbone, dtype)
    ids = [talked.ids(seed + i) for i, talked in enumerate(talks)]
    steps = padded_steps(list(talks), [data.draw(cuts(talked)) for talked in talks], ids)
    with routed(model, plan, seed):
        assume(all(map(partial(clear, model), ids, talks)))
        hidden, real, cache = stream_batch(model, steps)
        for row, (tokens, talked) in enumerate(zip(ids, talks)):
            alone = run(model, tokens, talked.index)
            assert far(hidden[row, real[row]], alone.hidden[0]) < TOLERANCE[dtype]
            for layer, kept in alone.kept.items():
                assert cache.stored[layer][row] == (cache.seen if stores_padding(plan, layer) else int(kept.sum()))


@backbones
@given(talks=st.tuples(conversations(60), conversations(60)), plan=plans(), seed=seeds, dtype=dtypes)
def test_law_4_rows_of_the_same_length_stream_side_by_side_without_a_mask(
    models: Models,
    backbone: str,
    talks: tuple[Conversation, Conversation],
    plan: DepthPlan,
    seed: int,
    dtype: torch.dtype,
) -> None:
    """No padding, so no mask; but rows hold different numbers of entries, also when a single token comes."""
    model, length = models(backbone, dtype), max(len(talked) for talked in talks) + 2
    rows = [Conversation((*talked.frame_index, *[-1] * (length - len(talked)))) for talked in talks]
    ids = torch.cat([row.ids(seed + i) for i, row in enumerate(rows)])
    index = torch.cat([row.index for row in rows])
    with routed(model, plan, seed):
        assume(all(clear(model, ids[i : i + 1], row) for i, row in enumerate(rows)))
        once, cache, parts = run(model, ids, index), None, []
        for step in rows[0].steps(sorted(set(rows[0].borders) & set(rows[1].borders))):
            parts.append(run(model, ids[:, step], index[:, step], past_key_values=cache))
            cache = parts[-1].cache
        streamed = torch.cat([part.hidden for part in parts], dim=1)
        for i, row in enumerate(rows):
            alone = run(model, ids[i : i + 1], row.index)
            assert far(once.hidden[i], alone.hidden[0]) < TOLERANCE[dtype]
            assert far(streamed[i], alone.hidden[0]) < TOLERANCE[dtype]


@backbones
@given(talked=conversations(), plan=plans(), seed=seeds, dtype=dtypes, data=st.data())
def test_law_6_rolled_back_to_any_token_it_is_as_if_the_rest_had_never_been(
    models: Models,
    backbone: str,
    talked: Conversation,
    plan: DepthPlan,
    seed: int,
    dtype: torch.dtype,
    data: st.DataObject,
) -> None:
    model, ids = models(backbone, dtype), talked.ids(seed)
    border = data.draw(st.sampled_from([0, *talked.borders, len(talked)]))
    more = torch.randint(VOCABULARY, (1, 12), generator=torch.Generator().manual_seed(seed))
    more_index = torch.tensor([[-1, -1, *[talked.frames[-1] + 1 if talked.frames else 0] * 10]])
    with routed(model, plan, seed):
        all_ids = torch.cat([ids[:, :border], more], dim=1)
        all_index = torch.cat([talked.index[:, :border], more_index], dim=1)
        assume(clear(model, ids, talked) and clear(model, all_ids, Conversation(tuple(all_index[0].tolist()))))
        cache = stream(model, ids, talked, data.draw(cuts(talked))).cache
        cache.crop_to(border)
        for layer in cache.layers:
            assert bool((layer.slots < border).all())
        continued = run(model, more, more_index, past_key_values=cache)
        never = run(model, all_ids, all_index)
    assert cache.stored == never.cache.stored and cache.seen == border + 12
    assert far(continued.hidden, never.hidden[:, border:]) < TOLERANCE[dtype]


@given(talked=conversations(), plan=plans(), seed=seeds)
def test_a_routed_layer_keeps_k_of_each_frame_and_all_text(
    models: Models, talked: Conversation, plan: DepthPlan, seed: int
) -> None:
    model = models("llama", torch.float64)
    with routed(model, plan, seed):
        passed = run(model, talked.ids(seed), talked.index)
    ratios = plan.ratios(len(model.model.layers))
    assert list(passed.kept) == [layer for layer, ratio in enumerate(ratios) if ratio is not None]
    for layer, kept in passed.kept.items():
        assert kept[talked.index < 0].all()
        for number in talked.frames:
            frame = kept[talked.index == number]
            assert int(frame.sum()) == keep_count(ratios[layer], len(frame))
            if plan.keep_last and ratios[layer]:
                assert frame[-1]
