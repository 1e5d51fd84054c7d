"""A session with a window forgets what is old, and what it remembers looks as if the stream had begun there."""

from __future__ import annotations

import math

import pytest
import torch
from depth_cases import tiny_model as family_model
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import frames, tiny_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import videollm_mod as vm
from videollm_mod.depth import DepthPlan, RaggedCache
from videollm_mod.depth.swap import find_decoder
from videollm_mod.depth.turning import turned, turns
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError

FRAME = 5


def llama(layers: int, plan: DepthPlan, **rope: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=50)
    config = LlamaConfig(**sizes, num_hidden_layers=layers, initializer_range=0.4, **rope)
    return vm.apply_depth(LlamaForCausalLM(config).double().eval(), plan)


def conversation(parts: list[int]) -> tuple[Tensor, Tensor]:
    """Ids and frame index of one row: 0 is a frame, n > 0 are n tokens of text."""
    index, frame = [], 0
    for part in parts:
        index += [-1] * part if part else [frame] * FRAME
        frame += not part
    ids = torch.randint(0, 50, (1, len(index)), generator=torch.Generator().manual_seed(len(index)))
    return ids, torch.tensor([index])


def step(model: LlamaForCausalLM, ids: Tensor, index: Tensor, cache: RaggedCache) -> Tensor:
    with torch.no_grad():
        out = model(input_ids=ids, frame_index=index, past_key_values=cache, use_cache=True)
    logits: Tensor = out.logits
    return logits


@settings(max_examples=20, deadline=None)
@given(
    before=st.lists(st.integers(0, 2), max_size=3),
    gone=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    stays=st.lists(st.integers(0, 2), max_size=3),
    plan=st.sampled_from([DepthPlan("full"), DepthPlan("all", 0.4), DepthPlan("all", 0.4, scorer="uniform")]),
)
def test_where_a_layer_sees_only_tokens_the_forgotten_ones_never_were(
    before: list[int], gone: list[int], stays: list[int], plan: DepthPlan
) -> None:
    model, cache, other = llama(1, plan), RaggedCache(1), RaggedCache(1)
    ids, index = conversation([1, *before, *gone, *stays, 0, 2])
    begin, end = (conversation(parts)[0].shape[1] for parts in ([1, *before], [1, *before, *gone]))
    last = ids.shape[1] - FRAME - 2
    step(model, ids[:, :last], index[:, :last], cache)
    cache.forget(begin, end, lambda keys, by: turned(find_decoder(model), keys, by))
    went_on = step(model, ids[:, last:], index[:, last:], cache)
    left = torch.cat([torch.arange(begin), torch.arange(end, ids.shape[1])])
    never = step(model, ids[:, left], index[:, left], other)
    assert torch.allclose(went_on, never[:, -went_on.shape[1] :], atol=1e-5)  # rotary tables are float32
    assert cache.seen == other.seen == len(left) and cache.stored == other.stored


def test_in_every_layer_and_row_the_range_is_gone_and_what_follows_has_moved_down() -> None:
    model, cache = llama(3, DepthPlan("interleaved", 0.4)), RaggedCache(3)
    ids, index = conversation([2, 0, 0, 3, 0, 1])
    ids, index = ids.repeat(2, 1), torch.cat([index, index.clone()])
    index[1] = torch.tensor(conversation([2, 0, 1, 0, 0, 3])[1].tolist()[0])
    step(model, ids, index, cache)
    begin, end = 2, 2 + FRAME  # the first frame of both rows
    old = [layer.slots[:, : max(layer.lengths)].clone() for layer in cache.layers if layer.slots is not None]
    values = [layer.values.clone() for layer in cache.layers]
    cache.forget(begin, end, lambda keys, by: turned(find_decoder(model), keys, by))
    for layer, slots, value in zip(cache.layers, old, values):
        assert layer.slots is not None
        for row in range(2):
            stay = [i for i, slot in enumerate(slots[row].tolist()) if slot >= 0 and not begin <= slot < end]
            wanted = [slot - FRAME * (slot >= end) for slot in slots[row, stay].tolist()]
            assert layer.slots[row, : layer.lengths[row]].tolist() == wanted
            assert (layer.values[row, :, : len(stay)] == value[row, :, stay]).all()
    assert cache.seen == ids.shape[1] - FRAME
    assert [[span.number for span in row] for row in cache.frames] == [[1, 2], [1, 2]]
    assert [row[0].begin for row in cache.frames] == [2, 3]


def test_half_a_frame_is_not_forgotten_and_neither_is_what_was_not_seen() -> None:
    model, cache = llama(2, DepthPlan("interleaved", 0.4)), RaggedCache(2)
    step(model, *conversation([2, 0, 1]), cache)
    for begin, end, told in (
        (0, 4, "cut frame 0 in two"),
        (3, 6, "cut frame 0 in two"),
        (0, 9, "of 8"),
        (3, 2, "of 8"),
    ):
        with pytest.raises(InputError, match=told):
            cache.forget(begin, end, lambda keys, by: keys)
    assert cache.seen == 8


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_keys_are_turned_as_if_they_stood_elsewhere(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 100.0, "factor": 2.0, "original_max_position_embeddings": 32}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    model = llama(1, DepthPlan("full"), rope_parameters=rope, max_position_embeddings=64)
    caches = [RaggedCache(1), RaggedCache(1)]
    ids, index = conversation([4])
    for cache, first in zip(caches, (0, 9)):
        with torch.no_grad():
            model(ids, frame_index=index, position_ids=torch.arange(first, first + 4)[None], past_key_values=cache)
    here, there = (cache.layers[0].keys[:, :, :4] for cache in caches)
    assert torch.allclose(turned(find_decoder(model), here[0], 9), there[0], atol=1e-5)
    assert torch.allclose(turned(find_decoder(model), there[0], -9), here[0], atol=1e-5)


def test_whether_keys_turn_is_found_out_by_trying() -> None:
    """Not where angles depend on the length, where layers have no rotary embedding or tables by their type."""
    dynamic = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}
    assert turns(find_decoder(llama(2, DepthPlan("interleaved", 0.4))))
    assert not turns(find_decoder(llama(1, DepthPlan("full"), rope_parameters=dynamic)))
    for family, wanted in (("phi3", True), ("qwen3", True), ("smollm3", False), ("gemma3", False)):
        model = vm.apply_depth(family_model(family, torch.float32), DepthPlan("full"))
        assert turns(find_decoder(model)) == wanted, family


def test_a_decoder_whose_keys_do_not_turn_gets_no_window() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    find_decoder(model.lm).rotary_emb.rope_type = "dynamic"
    assert StreamSession(model, window=math.inf)
    with pytest.raises(InputError, match="LlamaForCausalLM cannot forget"):
        StreamSession(model, window=5)


@pytest.mark.parametrize("decide", ["last", "own"])
def test_a_silent_session_with_a_window_remembers_what_one_that_began_there_knows(decide: str) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4), decide)
    session, film = StreamSession(model, threshold=0, window=2.0), frames(30)
    remembered = []
    for frame in film:
        session.push(frame)
        remembered.append(len(session.memory.frames))
        fresh = StreamSession(model, threshold=0)
        for known in film[frame.index + 1 - remembered[-1] : frame.index + 1]:
            fresh.push(known)
        assert session.context == fresh.context and session._cache.stored == fresh._cache.stored
    assert max(remembered) == 8 and min(remembered[8:]) == 4  # two windows and one, at two frames per second
    state, whole = session.state(), StreamSession(model, threshold=0)
    for frame in film:
        whole.push(frame)
    assert state.frames == 30 and state.seen == whole.state().seen
    assert state.kv_bytes < whole.state().kv_bytes / 2


def test_a_talking_session_with_a_window_stays_well_formed_and_bounded() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    session, most = StreamSession(model, threshold=1, window=2.0), 0
    system = model.template.system(model.settings.system)
    for frame in frames(40):
        assert session.push(frame)
        session.ask("What happened?")
        most = max(most, len(session.context))
        assert session.context[: len(system) + 1] == [*system, model.template.open_id]
        assert session.context[len(system) + 1] == model.template.vision_id
        assert session._cache.seen == len(session.context)
        assert [span.number for span in session._cache.frames[0]][-1] == frame.index
    assert most <= 8 * len(session.context) / len(session.memory.frames) + 16


def test_nothing_is_forgotten_without_a_window_and_the_models_own_is_taken_unless_another_is_given() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    assert StreamSession(model).window == math.inf
    model.settings = vm.model.StreamSettings(system="Say what happens.", window=5.0)
    assert StreamSession(model).window == 5
    assert StreamSession(model, window=math.inf).window == math.inf
    assert StreamSession(model, window=7).window == 7
    for window in (0, -1, math.nan):
        with pytest.raises(InputError, match="is no time"):
            StreamSession(model, window=window)
    with pytest.raises(InputError, match="window 0 is no time"):
        vm.model.StreamSettings(window=0)
