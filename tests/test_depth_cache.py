"""Law 6 and the rest of the ragged cache: rolling back, rows that move, bytes, frames that may not be split."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from depth_cases import BACKBONES, DTYPES, LAYERS, PLANS, TOLERANCE, clear, far, right_padded, routed, run, stream, talk
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from videollm_mod.depth import DepthPlan, RaggedCache
from videollm_mod.types import InputError

Models = Callable[..., PreTrainedModel]
TALK = talk("2t 10 1t 5 1 10 2t")
SHORT = talk("1t 5 2t 10 1t")
NEXT = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
NEXT_INDEX = torch.tensor([[-1, 90, 90, 90, 90, 90, -1]])


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", PLANS)
def test_law_6_cropped_to_any_token_no_layer_holds_a_later_entry_and_it_was_never_seen(
    models: Models, backbone: str, dtype: torch.dtype, name: str
) -> None:
    model, ids = models(backbone, dtype), TALK.ids()
    # what comes after is computed anew at each border; in single precision at two of them, for the time it takes
    borders = (0, *TALK.borders, len(TALK)) if dtype == torch.float64 else (TALK.turns[2], TALK.borders[-1])
    with routed(model, PLANS[name]), torch.no_grad():
        assert clear(model, ids, TALK), "rounding could choose another token: take another seed"
        full = stream(model, ids, TALK, TALK.turns).cache
        for position in range(len(TALK) + 1):
            cache = copy.deepcopy(full)
            cache.crop_to(position)
            for layer, (stored,) in zip(cache.layers, cache.stored):
                assert bool((layer.slots < position).all()) and int((layer.slots >= 0).sum()) == stored
            assert cache.seen == position
            if position not in borders:
                continue  # half a frame is no state a stream was ever in
            logits = model(NEXT, frame_index=NEXT_INDEX, past_key_values=cache).logits
            whole = torch.cat([ids[:, :position], NEXT], dim=1)
            index = torch.cat([TALK.index[:, :position], NEXT_INDEX], dim=1)
            assert far(logits, model(whole, frame_index=index).logits[:, position:]) < TOLERANCE[dtype]


@pytest.mark.parametrize("name", PLANS)
def test_transformers_crop_of_n_tokens_is_crop_to_what_is_left(llama: PreTrainedModel, name: str) -> None:
    with routed(llama, PLANS[name]):
        for n in (0, 1, 2, 7, 12, len(TALK)):
            caches = [run(llama, TALK.ids(), TALK.index).cache for _ in range(2)]
            caches[0].crop(-n)
            caches[1].crop_to(len(TALK) - n)
            assert caches[0].seen == caches[1].seen == len(TALK) - n
            assert caches[0].stored == caches[1].stored
            results = [run(llama, NEXT, NEXT_INDEX, past_key_values=cache).hidden for cache in caches]
            assert torch.equal(*results)


def test_transformers_older_crop_keeps_as_many_tokens_as_it_says(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        cache, cropped = run(llama, TALK.ids(), TALK.index).cache, run(llama, TALK.ids(), TALK.index).cache
    cache.crop(13)
    cropped.crop_to(13)
    assert cache.seen == 13 and cache.stored == cropped.stored


def test_cropping_behind_the_end_changes_nothing(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        cache = run(llama, TALK.ids(), TALK.index).cache
        stored = cache.stored
        cache.crop_to(len(TALK) + 5)
        assert cache.seen == len(TALK) and cache.stored == stored


@pytest.fixture
def two_rows(llama: PreTrainedModel) -> Iterator[tuple[PreTrainedModel, RaggedCache, list[Tensor], Tensor]]:
    """A batch of two different conversations gone by: the cache, and each row's continuation, alone."""
    talks = (TALK, SHORT)
    ids = [talked.ids(seed) for seed, talked in enumerate(talks)]
    real = right_padded([torch.ones_like(row) for row in ids])
    with routed(llama, DepthPlan("interleaved", 0.3, gate="update")) as model:
        alone = []
        for row, talked in zip(ids, talks):
            cache = run(model, row, talked.index).cache
            alone.append(run(model, NEXT, NEXT_INDEX, past_key_values=cache).hidden[0])
        index = right_padded([talked.index for talked in talks], -1)
        cache = run(model, right_padded(ids), index, attention_mask=real).cache
        yield model, cache, alone, real


def continued(model: PreTrainedModel, cache: RaggedCache, real: Tensor) -> Tensor:
    rows = real.shape[0]
    return run(
        model,
        NEXT.expand(rows, -1),
        NEXT_INDEX.expand(rows, -1),
        attention_mask=torch.cat([real, torch.ones(rows, NEXT.shape[1], dtype=torch.long)], dim=1),
        position_ids=real.sum(1, keepdim=True) + torch.arange(NEXT.shape[1]),
        past_key_values=cache,
    ).hidden


@pytest.mark.parametrize(
    ("move", "rows"),
    [
        (lambda cache: None, [0, 1]),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 0])), [1, 0]),
        (lambda cache: cache.reorder_cache(torch.tensor([1, 1])), [1, 1]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([False, True])), [1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([0])), [0]),
    ],
    ids=["as it is", "reordered", "one row twice", "repeated", "selected", "selected by mask", "first row"],
)
def test_rows_stay_whole_when_they_move(
    two_rows: tuple[PreTrainedModel, RaggedCache, list[Tensor], Tensor],
    move: Callable[[RaggedCache], None],
    rows: list[int],
) -> None:
    model, cache, alone, real = two_rows
    stored, frames = cache.stored, [list(row) for row in cache.frames]
    assert [row[-1].number for row in frames] == [3, 1]
    move(cache)
    assert cache.stored == [[layer[row] for row in rows] for layer in stored]
    assert cache.frames == [frames[row] for row in rows]
    hidden = continued(model, cache, real[rows])
    for row, own in zip(rows, hidden):
        assert far(own, alone[row]) < 1e-10


def test_what_a_reduction_remembers_moves_with_its_row_and_rolls_back_with_its_frame(
    two_rows: tuple[PreTrainedModel, RaggedCache, list[Tensor], Tensor],
) -> None:
    _, cache, _, _ = two_rows
    end = next(span.end for span in cache.frames[0] if span.number == 1)
    cache.memory = {0: {0: "a", 1: "b", 3: "c"}, 1: {1: "d"}}
    cache.dropped, cache.evicted = {0: [4, end - 1, end, end + 2]}, {0: 3, 1: 0}
    cache.reorder_cache(torch.tensor([1, 0]))
    assert cache.memory == {0: {1: "d"}, 1: {0: "a", 1: "b", 3: "c"}}
    assert cache.dropped == {1: [4, end - 1, end, end + 2]} and cache.evicted == {0: 0, 1: 3}
    cache.reorder_cache(torch.tensor([1, 0]))
    cache.crop_to(end)
    assert [span.number for span in cache.frames[0]] == [0, 1]
    assert cache.memory[0] == {0: "a", 1: "b"} and cache.dropped == {0: [4, end - 1]} and cache.evicted == {0: 1, 1: 0}


def test_moving_the_rows_of_an_empty_cache_is_harmless(llama: PreTrainedModel) -> None:
    cache = RaggedCache(LAYERS)
    cache.reorder_cache(torch.tensor([0, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0]))
    cache.crop_to(0)
    assert cache.seen == 0 and cache.kv_bytes == 0 and cache.allocated_bytes == 0
    with routed(llama, PLANS["interleaved"]):
        fresh, reused = (run(llama, TALK.ids(), TALK.index, past_key_values=c) for c in (RaggedCache(LAYERS), cache))
    assert torch.equal(fresh.hidden, reused.hidden)


def test_a_reset_cache_is_as_new(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        first = run(llama, TALK.ids(), TALK.index)
        first.cache.reset()
        assert first.cache.seen == 0 and first.cache.kv_bytes == 0
        assert torch.equal(run(llama, TALK.ids(), TALK.index, past_key_values=first.cache).hidden, first.hidden)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_raw_memory_behind_a_short_row_does_not_leak(models: Models, attention: str) -> None:
    """Buffers of rows of different length have gaps. Here fresh memory is NaN, which 0 * NaN would bring to light."""
    model = models("llama", torch.float32, attention)
    ids = [TALK.ids(), SHORT.ids()]
    real = right_padded([torch.ones_like(row) for row in ids])
    index = right_padded([TALK.index, SHORT.index], -1)
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    try:
        with routed(model, PLANS["interleaved"]):
            both = run(model, right_padded(ids), index, attention_mask=real)
            alone = run(model, ids[1], SHORT.index)
    finally:
        torch.use_deterministic_algorithms(False)
    assert far(both.hidden[1, : len(SHORT)], alone.hidden[0]) < 1e-4


def test_stored_entries_are_the_kept_tokens_of_each_layer_and_row(llama: PreTrainedModel) -> None:
    ids = [TALK.ids(), SHORT.ids()]
    real = right_padded([torch.ones_like(row) for row in ids])
    index = right_padded([TALK.index, SHORT.index], -1)
    with routed(llama, PLANS["list"]):
        passed = run(llama, right_padded(ids), index, attention_mask=real)
    assert passed.cache.kv_bytes == 2 * 2 * 8 * 8 * sum(map(sum, passed.cache.stored))  # key and value, heads, float64
    for number, layer in enumerate(passed.cache.layers):
        for row in range(2):
            kept = passed.kept[number][row] if number in passed.kept else torch.ones(len(TALK), dtype=torch.bool)
            slots = layer.slots[row, : passed.cache.stored[number][row]]
            assert slots.tolist() == kept.nonzero()[:, 0].tolist()


def test_appending_token_by_token_copies_little(llama: PreTrainedModel) -> None:
    """Buffers grow by half, so a long stream reallocates a few times; what is in use is still counted exactly."""
    with routed(llama, PLANS["interleaved"]):
        cache, buffers = RaggedCache(LAYERS), set()
        for _ in range(300):
            run(llama, torch.tensor([[1]]), None, past_key_values=cache)
            buffers.add(cache.layers[0].keys.data_ptr())
    assert cache.stored == [[300]] * LAYERS and cache.kv_bytes == 2 * 2 * 8 * 8 * 300 * LAYERS
    assert len(buffers) <= 6
    assert cache.kv_bytes < cache.allocated_bytes <= 1.5 * cache.kv_bytes


def test_a_filled_cache_of_another_kind_is_refused(llama: PreTrainedModel) -> None:
    filled = llama(NEXT, use_cache=True).past_key_values
    assert isinstance(filled, DynamicCache)
    with routed(llama, PLANS["interleaved"]), pytest.raises(InputError, match="DynamicCache"):
        llama(NEXT, past_key_values=filled)


def test_a_ragged_cache_serves_the_unrouted_model_too(llama: PreTrainedModel) -> None:
    ids = TALK.ids()
    with torch.no_grad():
        cache = RaggedCache(LAYERS)
        parts = [llama(ids[:, step], past_key_values=cache).logits for step in TALK.steps(TALK.turns)]
        assert far(torch.cat(parts, dim=1), llama(ids).logits) < 1e-10
    assert cache.stored == [[len(TALK)]] * LAYERS
