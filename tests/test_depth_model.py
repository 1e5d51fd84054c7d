"""A routed model is still a Transformers model: inputs, outputs, attention kinds, versions; and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import transformers
from depth_cases import BACKBONES, LAYERS, PLANS, far, left_padded, right_padded, routed, run, same_kept, stream, talk
from torch import nn
from transformers import PreTrainedModel

from videollm_mod.depth import DepthPlan, apply_depth, get_plan
from videollm_mod.depth.layout import FrameLayout
from videollm_mod.types import InputError

Models = Callable[..., PreTrainedModel]
TALK = talk("2t 10 1t 5 1 10 3t")
SHORT = talk("1t 5 2t 10 1t")
backbones = pytest.mark.parametrize("backbone", BACKBONES)
plan_names = pytest.mark.parametrize("name", PLANS)


def test_transformers_is_of_the_major_version_that_was_tried() -> None:
    """Tried: 5.17.0 and 5.23.0. `depth/layer.py` and `depth/cache.py` touch its internals: look again at a major."""
    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    assert major == 5, (
        f"Transformers {transformers.__version__}: tried are 5.17 and 5.23; run tests/test_depth_* first."
    )
    assert minor >= 17, f"Transformers {transformers.__version__} is older than 5.17, the oldest version tried."


@backbones
@plan_names
def test_eager_attention_equals_sdpa(models: Models, backbone: str, name: str) -> None:
    """In float32, which is what Transformers' eager softmax computes in whatever the model is in."""
    sdpa, eager = models(backbone, torch.float32), models(backbone, torch.float32, "eager")
    ids = TALK.ids()
    batch_ids = right_padded([ids, SHORT.ids()])
    index = right_padded([TALK.index, SHORT.index], -1)
    real = right_padded([torch.ones_like(ids), torch.ones_like(SHORT.ids())])
    plan = replace(PLANS[name], gate="update")
    with routed(sdpa, plan), routed(eager, plan):
        for use_cache in (True, False):
            a, b = (run(model, ids, TALK.index, use_cache=use_cache) for model in (sdpa, eager))
            assert far(a.hidden, b.hidden) < 1e-4 and same_kept(a.kept, b.kept)
            padded = [
                run(model, batch_ids, index, attention_mask=real, use_cache=use_cache).hidden for model in (sdpa, eager)
            ]
            assert far(padded[0][real.bool()], padded[1][real.bool()]) < 1e-4
        streamed = stream(eager, ids, TALK, TALK.turns)
        assert far(streamed.hidden, a.hidden) < 1e-4 and same_kept(streamed.kept, a.kept)


def test_a_layout_that_is_thinned_between_layers_counts_what_is_left() -> None:
    layout = FrameLayout.of(torch.tensor([[-1, 0, 0, 0, 0, -1], [0, 0, 0, 0, 1, 1]]))
    assert layout.shape(0.5).counts == (4, 3)
    layout.thin(torch.tensor([[1, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]], dtype=torch.bool).flatten())
    assert layout.shape(0.5).counts == (3, 1) and layout.shape(1.0).counts == (4, 1)
    assert [(group.rows, group.number.tolist()) for group in layout.groups] == [((1,), [1]), ((0,), [0])]
    layout = FrameLayout.of(torch.tensor([[0, 0, 1, 1, 2, 2]]))
    layout.thin(torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.bool))
    left = [(group.number.tolist(), group.tokens.tolist()) for group in layout.groups]
    assert left == [([1], [[3]]), ([2], [[4, 5]])]


def test_attention_is_told_the_kept_tokens_own_positions(llama: PreTrainedModel) -> None:
    """Beside their rotary tables: some attention scales by the number of the position."""
    seen: list[dict] = []
    with routed(llama, PLANS["interleaved"]):
        attention = llama.model.layers[1].self_attn
        hook = attention.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
        first = run(llama, TALK.ids(), TALK.index)
        more = run(llama, TALK.ids(1), torch.where(TALK.index >= 0, TALK.index + 9, -1), past_key_values=first.cache)
        hook.remove()
    for kwargs, passed, start in zip(seen, (first, more), (0, len(TALK)), strict=True):
        places = passed.kept[1][0].nonzero()[:, 0]
        assert kwargs["position_ids"].tolist() == [(places + start).tolist()]
        tables = llama.model.rotary_emb(passed.hidden, kwargs["position_ids"])
        assert all(torch.equal(own, table) for own, table in zip(kwargs["position_embeddings"], tables))


@backbones
def test_left_padding_equals_no_padding(models: Models, backbone: str) -> None:
    model = models(backbone, torch.float64)
    ids = [TALK.ids(), SHORT.ids()]
    real = left_padded([torch.ones_like(row) for row in ids])
    index = left_padded([TALK.index, SHORT.index], -1)
    positions = (real.cumsum(1) - 1).clamp(min=0)
    with routed(model, PLANS["interleaved"]):
        both = run(model, left_padded(ids), index, attention_mask=real, position_ids=positions)
        alone = run(model, ids[1], SHORT.index)
    assert far(both.hidden[1, -len(SHORT) :], alone.hidden[0]) < 1e-10


@plan_names
def test_embeddings_do_as_well_as_ids(llama: PreTrainedModel, name: str) -> None:
    ids = TALK.ids()
    with routed(llama, PLANS[name]), torch.no_grad():
        embeds = llama.get_input_embeddings()(ids)
        assert torch.equal(
            llama(inputs_embeds=embeds, frame_index=TALK.index).logits, llama(ids, frame_index=TALK.index).logits
        )


@plan_names
def test_hidden_states_of_all_layers_can_be_asked_for(llama: PreTrainedModel, name: str) -> None:
    with routed(llama, PLANS[name]):
        out = llama(TALK.ids(), frame_index=TALK.index, output_hidden_states=True)
        before_norm = run(llama, TALK.ids(), TALK.index)
        states = out.hidden_states
        assert len(states) == LAYERS + 1 and all(state.shape == (1, len(TALK), 32) for state in states)
        for layer, kept in before_norm.kept.items():  # who skips a layer comes out as it went in
            if layer < LAYERS - 1:  # the last state is that after the final norm
                same = (states[layer] == states[layer + 1]).all(-1)
                assert torch.equal(same, ~kept)
    dense = llama(TALK.ids(), output_hidden_states=True).hidden_states
    assert len(dense) == LAYERS + 1


def test_attentions_of_routed_layers_are_those_of_the_kept_tokens(models: Models) -> None:
    model = models("llama", torch.float64, "eager")
    with routed(model, PLANS["interleaved"]):
        out = model(TALK.ids(), frame_index=TALK.index, output_attentions=True)
    kept = 6 + 2 + 1 + 1 + 2  # text, and a fifth of each frame
    sizes = [len(TALK), kept, len(TALK), kept, len(TALK)]
    assert [tuple(a.shape) for a in out.attentions] == [(1, 4, n, n) for n in sizes]


def test_keyword_and_positional_calls_agree(llama: PreTrainedModel) -> None:
    ids = TALK.ids()
    with routed(llama, PLANS["interleaved"]):
        assert torch.equal(
            llama(ids, frame_index=TALK.index).logits, llama(input_ids=ids, frame_index=TALK.index).logits
        )
        as_tuple = llama(ids, frame_index=TALK.index, return_dict=False)
        assert torch.equal(as_tuple[0], llama(ids, frame_index=TALK.index).logits)


@plan_names
def test_a_decoder_without_language_head_can_be_routed(llama: PreTrainedModel, name: str) -> None:
    own = type(llama.model)
    with routed(llama, PLANS[name]):
        whole = run(llama, TALK.ids(), TALK.index)
    with routed(llama.model, PLANS[name]):
        assert get_plan(llama.model) == get_plan(llama) == PLANS[name]
        alone = llama.model(TALK.ids(), frame_index=TALK.index).last_hidden_state
    assert torch.equal(alone, llama.model.norm(whole.hidden)) and type(llama.model) is own


def test_routing_again_by_the_same_plan_changes_nothing(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        first, kinds = run(llama, TALK.ids(), TALK.index), [type(m).__mro__[1:] for m in llama.modules()]
        apply_depth(llama, PLANS["interleaved"])
        assert torch.equal(run(llama, TALK.ids(), TALK.index).hidden, first.hidden)
        assert [type(m).__mro__[1:] for m in llama.modules()] == kinds


def test_a_plan_that_does_not_fit_leaves_the_model_as_it_was(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        first = run(llama, TALK.ids(), TALK.index)
        with pytest.raises(InputError, match="layer 9"):
            apply_depth(llama, DepthPlan((9,)))
        assert torch.equal(run(llama, TALK.ids(), TALK.index).hidden, first.hidden)


def test_a_frame_index_of_another_shape_is_refused(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]), pytest.raises(InputError, match=r"\(1, 31\).*\(1, 32\)"):
        llama(TALK.ids(), frame_index=TALK.index[:, 1:])


def test_a_vision_token_under_padding_is_refused(llama: PreTrainedModel) -> None:
    real = torch.ones_like(TALK.ids())
    real[0, 5] = 0
    with routed(llama, PLANS["interleaved"]), pytest.raises(InputError, match="attention_mask"):
        llama(TALK.ids(), frame_index=TALK.index, attention_mask=real)


def test_a_module_without_decoder_layers_is_refused() -> None:
    with pytest.raises(InputError, match="Linear"):
        apply_depth(nn.Linear(2, 2), DepthPlan())


def test_attention_that_cannot_be_routed_is_refused(models: Models) -> None:
    model = models("llama", torch.float32, "flex_attention")
    with routed(model, PLANS["interleaved"]), pytest.raises(InputError, match="flex_attention"):
        model(TALK.ids(), frame_index=TALK.index)
