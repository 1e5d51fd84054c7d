"""Every family of decoders goes through every law of the core, with a few telling plans each.

All plans x scorers x gates are taken by three families in the other test_depth_* files. The names here say which law
they test: `runs/backbones.py` makes docs/backbones.md of what passes.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_cases import (
    DTYPES,
    FAMILIES,
    GLOBAL,
    LAYERS,
    LOCAL,
    SHORT,
    STEPS,
    TALK,
    TOLERANCE,
    WINDOW,
    Conversation,
    assert_checkpointing_changes_no_gradient,
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
    shake_experts,
    stream,
    stream_batch,
    talk,
    tiny_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import reference
from safetensors.torch import load_file
from stream_cases import frames
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from videollm_mod.depth import DepthPlan, apply_depth, remove_depth
from videollm_mod.depth.families import FAMILIES as HELPED
from videollm_mod.depth.families import first_norm
from videollm_mod.depth.flops import kv_bytes
from videollm_mod.depth.swap import find_decoder
from videollm_mod.dialogue import Assistant, Stream, System, collate, word_tokenizer
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError
from videollm_mod.vision import Connector, ConvTower, ConvTowerConfig, FrameEncoder

pytestmark = pytest.mark.slow  # every law once more, over many models

Models = Callable[..., PreTrainedModel]
PLANS = (  # together: each scorer, a gate of each kind, a ratio per layer, layers that keep no vision at all
    DepthPlan("interleaved", 0.2),
    DepthPlan("all", 0.4, gate="update", keep_last=True),
    DepthPlan((0, 2, 3), (0.7, 0.1, 0.3), scorer="given", gate="output"),
    DepthPlan("early-exit", scorer="random"),
)
NORMED = DepthPlan("interleaved-deep", 0.5, scorer="learned", gate="tanh", reads="norm")
NO_NORM = ("olmo2",)  # families without a norm before attention

families = pytest.mark.parametrize("family", FAMILIES)
mixtures = pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.experts])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
few = settings(max_examples=settings.default.max_examples // 5)


# --- 1: keep ratio 1 -------------------------------------------------------------------------------------------------


@families
def test_law_1_keeping_all_is_the_untouched_model_to_the_bit(models: Models, family: str) -> None:
    model, ids = models(family, torch.float32), TALK.ids()
    with torch.no_grad():
        dense = model(ids).logits
        for plan in (DepthPlan("all", 1.0), DepthPlan("interleaved", 1.0, gate="identity", scorer="uniform")):
            with routed(model, plan):
                for use_cache in (True, False):
                    assert torch.equal(model(ids, frame_index=TALK.index, use_cache=use_cache).logits, dense), plan
        with routed(model, replace(PLANS[0], gate="output")):  # and without any frame, whatever the plan
            assert torch.equal(model(ids).logits, dense)


@families
def test_law_1_the_original_comes_back(models: Models, family: str) -> None:
    model, ids = models(family, torch.float32), TALK.ids()
    with torch.no_grad():
        dense, keys = model(ids).logits, list(model.state_dict())
        classes, config = [type(module) for module in model.modules()], model.config.to_dict()
        apply_depth(model, PLANS[1])
        new = set(model.state_dict()) - set(keys)
        assert len(new) == 2 * LAYERS and all(".depth_expert." in key for key in new)
        remove_depth(model)
        assert list(model.state_dict()) == keys and model.config.to_dict() == config
        assert [type(module) for module in model.modules()] == classes
        assert torch.equal(model(ids).logits, dense)


# --- 2: streaming ----------------------------------------------------------------------------------------------------


@families
@dtypes
def test_law_2_a_stream_equals_one_pass(models: Models, family: str, dtype: torch.dtype) -> None:
    model, ids = models(family, dtype), TALK.ids()
    for plan in (*PLANS, *([] if family in NO_NORM else [NORMED]))[:: 1 if dtype == torch.float64 else 2]:
        with routed(model, plan):
            once, streamed = run(model, ids, TALK.index, use_cache=False), stream(model, ids, TALK, STEPS)
        assert same_kept(streamed.kept, once.kept), plan
        assert far(streamed.hidden, once.hidden) < TOLERANCE[dtype], plan
        assert streamed.cache.seen == len(TALK)


@families
@few
@given(talked=conversations(longest=40), plan=plans(), seed=st.integers(0, 99), data=st.data())
def test_law_2_a_stream_cut_anywhere_equals_the_brute_force_reference(
    models: Models, family: str, talked: Conversation, plan: DepthPlan, seed: int, data: st.DataObject
) -> None:
    model, ids = models(family, torch.float64), talked.ids(seed)
    with routed(model, plan, seed), torch.no_grad():
        streamed = stream(model, ids, talked, data.draw(cuts(talked)))
        embeds = model.get_input_embeddings()(ids)[0]
        slow = reference(model, embeds, talked.frame_index, plan, given=given_scores(ids)[0].tolist())
    assert {i: set(kept[0].nonzero()[:, 0].tolist()) for i, kept in streamed.kept.items()} == slow.kept
    assert far(streamed.hidden[0], slow.hidden) < 1e-10
    assert [rows[0] for rows in streamed.cache.stored] == slow.entries


# --- 3: causality ----------------------------------------------------------------------------------------------------


@families
def test_law_3_nothing_later_changes_anything_earlier(models: Models, family: str) -> None:
    model, ids = models(family, torch.float64), TALK.ids()
    border = TALK.frame_index.index(3)  # frame 3 and all behind it get other tokens, and even another layout
    other = TALK.ids(seed=1)
    other[:, :border] = ids[:, :border]
    elsewhere = Conversation((*TALK.frame_index[:border], *[-1] * 4, *[7] * 10, *[-1] * (len(TALK) - border - 14)))
    for plan in PLANS:
        with routed(model, plan):
            first, second = run(model, ids, TALK.index), run(model, other, elsewhere.index)
        assert far(first.hidden[:, :border], second.hidden[:, :border]) < 1e-12, plan
        assert far(first.hidden[:, border:], second.hidden[:, border:]) > 1e-2, "the change did nothing at all"
        for layer, kept in first.kept.items():
            assert torch.equal(kept[:, :border], second.kept[layer][:, :border]), plan


# --- 4: batches ------------------------------------------------------------------------------------------------------


@families
def test_law_4_a_batch_of_two_layouts_equals_two_batches_of_one(models: Models, family: str) -> None:
    model, talks = models(family, torch.float64), (TALK, SHORT)
    ids = [talked.ids(seed) for seed, talked in enumerate(talks)]
    for pad in (right_padded, left_padded):
        real = pad([torch.ones_like(row) for row in ids])
        batch = dict(
            ids=pad(ids),
            frame_index=pad([talked.index for talked in talks], -1),
            attention_mask=real,
            position_ids=(real.cumsum(1) - 1).clamp(min=0),
        )
        for plan in PLANS[pad is left_padded :: 2]:
            with routed(model, plan):
                both = run(model, **batch)
                for row, (tokens, talked) in enumerate(zip(ids, talks)):
                    alone, own = run(model, tokens, talked.index), real[row].bool()
                    assert far(both.hidden[row, own], alone.hidden[0]) < 1e-10, plan
                    for layer, kept in both.kept.items():
                        assert torch.equal(kept[row, own], alone.kept[layer][0]) and not kept[row, ~own].any(), plan


@families
def test_law_4_rows_that_stream_side_by_side_equal_each_alone(models: Models, family: str) -> None:
    """Rows of the same length, so without a mask; what they hold differs from row to row in routed layers."""
    model, rows = models(family, torch.float64), (talk("2t 10 1t 5 2t"), talk("2t 5 1t 10 2t"))
    ids = torch.cat([row.ids(seed) for seed, row in enumerate(rows)])
    index, parts, cache = torch.cat([row.index for row in rows]), [], None
    borders = sorted(set(rows[0].borders) & set(rows[1].borders))
    with routed(model, PLANS[1]):
        for step in rows[0].steps(borders):
            parts.append(run(model, ids[:, step], index[:, step], past_key_values=cache))
            cache = parts[-1].cache
        streamed = torch.cat([part.hidden for part in parts], dim=1)
        for i, row in enumerate(rows):
            assert far(streamed[i], run(model, ids[i : i + 1], row.index).hidden[0]) < 1e-10


@families
def test_law_4_rows_padded_between_their_steps_equal_each_alone(models: Models, family: str) -> None:
    """Transformers' sliding windows count such padding; ours do not. Layers of the other types are as ever."""
    model, talks = models(family, torch.float64), [TALK, SHORT]
    ids = [talked.ids(seed) for seed, talked in enumerate(talks)]
    with routed(model, PLANS[1]):
        hidden, real, _ = stream_batch(model, padded_steps(talks, [talked.turns for talked in talks], ids))
        assert bool((real[1].diff().int() > 0).any()), "padding stands between the tokens of the second row"
        for row, (tokens, talked) in enumerate(zip(ids, talks)):
            assert far(hidden[row, real[row]], run(model, tokens, talked.index).hidden[0]) < 1e-10


# --- 5: the expert learns --------------------------------------------------------------------------------------------


def loss_of(model: PreTrainedModel, **options: Any) -> Tensor:
    ids = TALK.ids()
    return model(ids, frame_index=TALK.index, token_scores=given_scores(ids), labels=ids, **options).loss


@families
def test_law_5_the_expert_gets_a_gradient_is_moved_saved_and_comes_back(family: str, tmp_path: Path) -> None:
    model, plan = tiny_model(family, torch.float32), DepthPlan("interleaved", 0.4, gate="update")
    own = type(model)
    apply_depth(model, plan)
    shake_experts(model, strength=0.05)  # gates that are not saturated have a slope
    experts = {name: weight for name, weight in model.named_parameters() if "depth_expert" in name}
    first = {name: weight.detach().clone() for name, weight in experts.items()}
    assert len(experts) == 4
    loss_of(model).backward()
    for name, weight in experts.items():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.abs().max() > 1e-5, name
    torch.optim.SGD(experts.values(), lr=10.0).step()
    assert all(not torch.equal(first[name], weight) for name, weight in experts.items())
    after = run(model, TALK.ids(), TALK.index)

    model.save_pretrained(tmp_path)
    dense = own.from_pretrained(tmp_path)
    fresh = apply_depth(dense, DepthPlan.from_dict(dense.config.depth_plan))
    assert type(dense).__mro__[1:3] == type(model).__mro__[1:3] and dense.config.architectures == [own.__name__]
    saved = {key: value for key, value in load_file(tmp_path / "model.safetensors").items() if "depth_expert" in key}
    assert saved.keys() == experts.keys() and not fresh.load_state_dict(saved, strict=False).unexpected_keys
    again = run(fresh, TALK.ids(), TALK.index)
    assert torch.equal(again.hidden, after.hidden) and same_kept(again.kept, after.kept)


@families
def test_law_5_gradient_checkpointing_gives_the_same_gradients(family: str) -> None:
    model = tiny_model(family, torch.float64).train()
    with routed(model, PLANS[2]):
        assert_checkpointing_changes_no_gradient(model, lambda: loss_of(model, use_cache=False))


# --- 6: the cache ----------------------------------------------------------------------------------------------------


@families
def test_law_6_kv_bytes_in_use_equal_the_formula(models: Models, family: str) -> None:
    model = models(family, torch.float32)
    for plan in PLANS:
        with routed(model, plan):
            cache = stream(model, TALK.ids(), TALK, STEPS).cache
        assert cache.kv_bytes == kv_bytes(model.config, plan, text=6, frames=(10, 5, 1, 10, 10), bytes_per_value=4)


@families
def test_law_6_rolled_back_it_is_as_if_the_rest_had_never_been(models: Models, family: str) -> None:
    model, ids = models(family, torch.float64), TALK.ids()
    more, more_index = torch.tensor([[3, 1, 4, 1, 5, 9, 2]]), torch.tensor([[-1, 90, 90, 90, 90, 90, -1]])
    with routed(model, PLANS[1]), torch.no_grad():
        full = stream(model, ids, TALK, STEPS).cache
        for position in (0, 2, 17, 20, len(TALK)):
            cache = copy.deepcopy(full)
            cache.crop_to(position)
            for layer, (stored,) in zip(cache.layers, cache.stored):
                assert bool((layer.slots < position).all()) and int((layer.slots >= 0).sum()) == stored
            continued = run(model, more, more_index, past_key_values=cache)
            whole = torch.cat([ids[:, :position], more], 1), torch.cat([TALK.index[:, :position], more_index], 1)
            never = run(model, *whole)
            assert far(continued.hidden, never.hidden[:, position:]) < 1e-10, position
            assert cache.stored == never.cache.stored


# --- what else people do with a decoder ------------------------------------------------------------------------------


def generate(model: PreTrainedModel, ids: Tensor, index: Tensor, real: Tensor | None = None, **options: Any) -> Tensor:
    """(batch, 5): what is said"""
    real = torch.ones_like(ids) if real is None else real
    # the tiny models have no padding token of their own, and beams end by length alone
    options = dict(do_sample=False, max_new_tokens=5, pad_token_id=0, eos_token_id=None) | options
    return model.generate(ids, frame_index=index, attention_mask=real, **options)[:, -5:]


@families
def test_generation_greedy_and_in_beams_equals_computing_everything_anew(models: Models, family: str) -> None:
    model, talks = models(family, torch.float64), (TALK, SHORT)
    ids = [talked.ids(seed) for seed, talked in enumerate(talks)]
    real = left_padded([torch.ones_like(row) for row in ids])
    batch = left_padded(ids), left_padded([talked.index for talked in talks], -1), real
    with routed(model, PLANS[0]):
        for beams in (1, 3):
            alone = [
                generate(model, row, talked.index, num_beams=beams, use_cache=False) for row, talked in zip(ids, talks)
            ]
            assert torch.equal(generate(model, *batch, num_beams=beams), torch.cat(alone)), beams


@families
def test_eager_attention_equals_sdpa(models: Models, family: str) -> None:
    sdpa, eager = models(family, torch.float32), models(family, torch.float32, "eager")
    with routed(sdpa, PLANS[1]), routed(eager, PLANS[1]):
        a, b = run(sdpa, TALK.ids(), TALK.index), stream(eager, TALK.ids(), TALK, STEPS)
    assert same_kept(a.kept, b.kept) and far(a.hidden, b.hidden) < 1e-4


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_masks_made_beforehand_for_each_layer_type_do_as_well(models: Models, family: str) -> None:
    model, place = models(family, torch.float64), torch.arange(len(TALK))
    ago = place[:, None] - place
    masks = {GLOBAL: (ago >= 0)[None, None], LOCAL: ((ago >= 0) & (ago < WINDOW))[None, None]}
    with routed(model, PLANS[1]):
        plain = run(model, TALK.ids(), TALK.index)
        made = run(model, TALK.ids(), TALK.index, attention_mask=masks)
    assert same_kept(made.kept, plain.kept) and far(made.hidden, plain.hidden) < 1e-12


@families
def test_an_expert_reads_the_norm_before_attention_where_there_is_one(models: Models, family: str) -> None:
    model = models(family, torch.float32)
    if family in NO_NORM:
        with pytest.raises(InputError, match="has no norm before its attention; take a plan with reads='input'"):
            apply_depth(model, NORMED)
        return
    with routed(model, NORMED), torch.no_grad():
        scores: dict[int, Tensor] = {}
        layer = model.get_decoder().layers[3]
        with watched_norm(layer, "input_layernorm") as seen:
            model(TALK.ids(), frame_index=TALK.index, scores_out=scores)
        assert torch.equal(scores[3], layer.depth_expert(seen["normed"][0]))


@pytest.mark.parametrize("kind", HELPED)
def test_the_norm_that_a_row_of_help_names_stands_between_the_layers_input_and_attention(kind: str) -> None:
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, vocab_size=61)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**sizes, pad_token_id=None)).eval()
    layer = find_decoder(model).layers[1]
    name = first_norm(layer, model.config)
    assert name == HELPED[kind].norm
    with watched_norm(layer, name) as seen, torch.no_grad():
        model(TALK.ids())
    assert torch.equal(seen["into the layer"][0], seen["into the norm"][0])
    assert torch.equal(seen["normed"][0], seen["into attention"][0])


@contextmanager
def watched_norm(layer: nn.Module, name: str) -> Iterator[dict[str, list[Tensor]]]:
    """What goes into the layer and its norm, what the norm makes of it, and what attention gets."""
    seen: dict[str, list[Tensor]] = defaultdict(list)
    norm = getattr(layer, name)
    hooks = [
        layer.register_forward_pre_hook(lambda module, args: seen["into the layer"].append(args[0])),
        norm.register_forward_hook(lambda module, args, out: seen["into the norm"].append(args[0])),
        norm.register_forward_hook(lambda module, args, out: seen["normed"].append(out)),
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: seen["into attention"].append(kwargs.get("hidden_states", *args[:1])),
            with_kwargs=True,
        ),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# --- mixtures of experts ---------------------------------------------------------------------------------------------


@mixtures
def test_a_skipped_token_reaches_no_expert(models: Models, family: str) -> None:
    """Counted at the door of the experts: one row for each token that goes through, and none besides."""
    model, got = models(family, torch.float32), {}
    hooks = []
    for number, layer in enumerate(model.get_decoder().layers):
        if hasattr(layer.mlp, "experts"):

            def count(module: Any, args: tuple[Tensor, ...], number: int = number) -> None:
                got[number] = args[0]

            hooks.append(layer.mlp.experts.register_forward_pre_hook(count))
    assert len(hooks) >= 4
    try:
        for plan in PLANS:
            with routed(model, plan):
                got.clear()
                kept = run(model, TALK.ids(), TALK.index).kept
            for number, rows in got.items():
                through = int(kept[number].sum()) if number in kept else len(TALK)
                # few rows are filled up to a multiple of four on a CPU, by repeating one that goes through anyway
                assert len(rows.unique(dim=0)) == through and len(rows) < through + 4, (plan, number)
    finally:
        for hook in hooks:
            hook.remove()


@mixtures
def test_the_load_balancing_loss_counts_what_goes_through_and_refuses_a_mask(models: Models, family: str) -> None:
    model, ids = models(family, torch.float32), TALK.ids()
    with routed(model, PLANS[1]), torch.no_grad():
        out = model(ids, frame_index=TALK.index, output_router_logits=True)
        assert out.aux_loss.isfinite() and all(len(logits) < len(TALK) for logits in out.router_logits[:2])
        with pytest.raises(InputError, match="leave attention_mask out"):
            model(ids, frame_index=TALK.index, output_router_logits=True, attention_mask=torch.ones_like(ids))
    with torch.no_grad():  # the plain model takes it as ever
        model(ids, output_router_logits=True, attention_mask=torch.ones_like(ids))


# --- the whole model -------------------------------------------------------------------------------------------------


@families
def test_a_streaming_video_model_of_any_family_watches_learns_and_comes_back(family: str, tmp_path: Path) -> None:
    tokenizer = word_tokenizer("A red square enters . Say what happens".split())
    encoder = FrameEncoder(ConvTower(ConvTowerConfig(image_size=32, channels=(8, 8, 16), heads=2)), (2, 2))
    lm = tiny_model(family, torch.float32, vocab_size=len(tokenizer))
    model = StreamingVideoLM(encoder, Connector(16, 32), lm, tokenizer, PLANS[0]).eval()
    batch = collate(
        [model.template.encode([System("Say what happens."), Stream(3), Assistant("A red square enters.")])]
    )
    features = encoder(torch.stack([torch.from_numpy(frame.image) for frame in frames(3)]))

    out = model(batch.input_ids, batch.frame_index, features, labels=batch.labels, decision=batch.decision)
    out.loss.backward()
    for part in ("connector.", "layers.1.depth_expert."):
        gradients = [weight.grad for name, weight in model.named_parameters() if part in name]
        assert any(gradient is not None and gradient.abs().max() > 0 for gradient in gradients), part

    with torch.no_grad():
        once = model(batch.input_ids, batch.frame_index, features, logits_to_keep=0)
        model.save_pretrained(tmp_path)
        again = StreamingVideoLM.from_pretrained(tmp_path)
        assert type(again.lm).__name__ == type(lm).__name__ and again.plan == PLANS[0]
        assert torch.equal(again(batch.input_ids, batch.frame_index, features, logits_to_keep=0).logits, once.logits)
        session = StreamSession(again, threshold=0.0)  # it never speaks of its own accord
        assert [event for frame in frames(3) for event in session.push(frame)] == []
        assert session.ask("what happens").kind == "answer"
