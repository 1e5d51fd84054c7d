"""Many streams in one step of the decoder: each gets what it gets alone, and outside of a step nothing has changed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest
import torch
from depth_cases import (
    BACKBONES,
    FAMILIES,
    LAYERS,
    PLANS,
    STEPS,
    TALK,
    TOLERANCE,
    Conversation,
    Pass,
    conversations,
    cuts,
    far,
    plans,
    routed,
    run,
    same_kept,
    stream,
    talk,
    tiny_model,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from videollm_mod.depth import DepthPlan, RaggedCache, apply_depth
from videollm_mod.depth.step import IMPLEMENTATION, StepCache, try_together
from videollm_mod.types import InputError

Models = Callable[..., PreTrainedModel]
OTHERS = [(talk("3t 5 1t 10 2t"), [8]), (talk("10 5 10 1 4t"), [10, 26])]


def together(model: PreTrainedModel, films: Sequence[tuple[Conversation, Sequence[int]]]) -> list[Pass]:
    """Each stream cut into its steps; all first steps run as one, then all second ones."""
    ids = [film.ids(seed) for seed, (film, _) in enumerate(films)]
    steps = [film.steps(borders) for film, borders in films]
    caches = [RaggedCache(LAYERS) for _ in films]
    parts: list[list[Pass]] = [[] for _ in films]
    for turn in range(max(map(len, steps))):
        there = [number for number, each in enumerate(steps) if turn < len(each)]
        cut = [steps[number][turn] for number in there]
        numbers = [films[number][0].frame_index[part] for number, part in zip(there, cut)]
        cache = StepCache(model.get_decoder(), [caches[number] for number in there], numbers)
        row = torch.cat([ids[number][:, part] for number, part in zip(there, cut)], 1)
        out = run(model, row, cache.frame_index, past_key_values=cache, use_cache=True, position_ids=cache.position_ids)
        for number, share in zip(there, cache.shares):
            part = slice(share.begin, share.end)
            kept = {layer: row[:, part] for layer, row in out.kept.items()}
            parts[number].append(Pass(out.hidden[:, part], kept, caches[number]))
    return [
        Pass(
            torch.cat([part.hidden for part in each], 1),
            {layer: torch.cat([part.kept[layer] for part in each], 1) for layer in each[0].kept},
            each[0].cache,
        )
        for each in parts
    ]


def assert_as_alone(model: PreTrainedModel, films: Sequence[tuple[Conversation, Sequence[int]]], near: float) -> None:
    for seed, (got, (film, borders)) in enumerate(zip(together(model, films), films)):
        own = stream(model, film.ids(seed), film, borders)
        assert same_kept(got.kept, own.kept)
        assert far(got.hidden, own.hidden) < near
        assert got.cache is not None and own.cache is not None
        assert got.cache.seen == own.cache.seen and got.cache.stored == own.cache.stored
        assert got.cache.frames == own.cache.frames
        for mine, its in zip(got.cache.layers, own.cache.layers):
            if its.slots is not None and mine.slots is not None:
                entries = its.lengths[0]
                assert torch.equal(mine.slots[:, :entries], its.slots[:, :entries])


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_of_any_family_get_in_one_step_what_they_get_alone(family: str, models: Models) -> None:
    with routed(models(family, torch.float64), PLANS["interleaved"]) as model:
        assert_as_alone(model, [(TALK, STEPS), *OTHERS], TOLERANCE[torch.float64])
        try_together(model.get_decoder())


@pytest.mark.parametrize("plan", PLANS)
def test_streams_share_a_step_under_any_plan(plan: str, models: Models) -> None:
    with routed(models("qwen3", torch.float64), PLANS[plan]) as model:
        assert_as_alone(model, [*OTHERS, (TALK, STEPS)], TOLERANCE[torch.float64])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_in_single_precision_they_are_as_near(backbone: str, models: Models) -> None:
    with routed(models(backbone, torch.float32), PLANS["interleaved"]) as model:
        assert_as_alone(model, [(TALK, STEPS), *OTHERS], TOLERANCE[torch.float32])


@settings(max_examples=8)
@given(data=st.data(), plan=plans(), backbone=st.sampled_from(BACKBONES))
def test_any_streams_cut_anyhow_share_steps(
    data: st.DataObject, plan: DepthPlan, backbone: str, models: Models
) -> None:
    films = [data.draw(conversations(longest=40)) for _ in range(data.draw(st.integers(1, 4)))]
    steps = [(film, data.draw(cuts(film))) for film in films]
    if plan.scorer == "given":  # `run` gives scores by id, whatever the row
        plan = DepthPlan(plan.layers, plan.keep, scorer="uniform", exit_after=plan.exit_after)
    with routed(models(backbone, torch.float64), plan) as model:
        assert_as_alone(model, steps, TOLERANCE[torch.float64])


def test_the_control_a_stream_whose_keys_another_one_sees_is_found_out(models: Models) -> None:
    """One ragged cache for two streams, which is what a row without shares would be."""
    with routed(models("llama", torch.float64), PLANS["interleaved"]) as model:
        film = talk("2t 5 1t")
        own = stream(model, film.ids(1), film, [])
        mixed = talk("2t 5 1t 2t 5 1t")
        both = run(model, torch.cat([film.ids(0), film.ids(1)], 1), mixed.index)
        assert far(both.hidden[:, len(film) :], own.hidden) > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_after_a_step_the_model_attends_as_before(attention: str) -> None:
    with routed(tiny_model("mistral", torch.float64, attention), PLANS["interleaved"]) as model:
        before = run(model, TALK.ids(), TALK.index).hidden
        together(model, OTHERS)
        assert model.config._attn_implementation == attention
        assert torch.equal(run(model, TALK.ids(), TALK.index).hidden, before)


@torch.no_grad()
def test_another_thread_may_use_the_model_in_the_middle_of_a_step(models: Models) -> None:
    with routed(models("mistral", torch.float64), PLANS["interleaved"]) as model:
        decoder, film = model.get_decoder(), OTHERS[0][0]
        expected, alone = (decoder(each.ids(), frame_index=each.index).last_hidden_state for each in (TALK, film))
        found: list[torch.Tensor] = []

        @torch.no_grad()
        def meanwhile() -> None:
            found.append(decoder(TALK.ids(), frame_index=TALK.index).last_hidden_state)

        def elsewhere(*args: object) -> None:
            handle.remove()
            assert model.config._attn_implementation == IMPLEMENTATION
            thread = threading.Thread(target=meanwhile)
            thread.start()
            thread.join()

        handle = decoder.layers[2].register_forward_pre_hook(elsewhere)
        step = StepCache(decoder, [RaggedCache(LAYERS), RaggedCache(LAYERS)], [film.frame_index] * 2)
        row = torch.cat([film.ids(), film.ids()], 1)
        out = decoder(row, frame_index=step.frame_index, position_ids=step.position_ids, past_key_values=step)
        assert far(found[0], expected) < TOLERANCE[torch.float64]
        for share in step.shares:
            assert far(out.last_hidden_state[:, share.begin : share.end], alone) < TOLERANCE[torch.float64]


def test_a_step_that_fails_leaves_every_stream_as_it_was(models: Models) -> None:
    with routed(models("llama", torch.float64), PLANS["interleaved"]) as model:
        caches = [stream(model, film.ids(), film, []).cache for film, _ in OTHERS]
        assert all(cache is not None for cache in caches)
        before = [(cache.seen, cache.stored, [list(row) for row in cache.frames]) for cache in caches if cache]

        def broken(*args: object) -> None:
            raise MemoryError("no more")

        handle = model.get_decoder().layers[3].register_forward_pre_hook(broken)
        step = StepCache(model.get_decoder(), [cache for cache in caches if cache], [[9] * 5, [-1]])
        with pytest.raises(MemoryError):
            run(model, talk("5 1t").ids(), step.frame_index, past_key_values=step, position_ids=step.position_ids)
        handle.remove()
        assert [(cache.seen, cache.stored, cache.frames) for cache in caches if cache] == before
        assert model.config._attn_implementation == "sdpa"


def test_a_frame_that_began_in_an_earlier_step_of_its_stream_is_refused(models: Models) -> None:
    with routed(models("llama", torch.float64), PLANS["interleaved"]) as model:
        film = talk("5 5")
        cache = stream(model, film.ids(), film, []).cache
        assert cache is not None
        step = StepCache(model.get_decoder(), [RaggedCache(LAYERS), cache], [[0] * 5, [1] * 3])
        with pytest.raises(InputError, match="frame 1 comes after frame 1 of its stream"):
            run(model, talk("5 3").ids(), step.frame_index, past_key_values=step, position_ids=step.position_ids)


@pytest.mark.parametrize(
    ("backbone", "options", "told"),
    [
        ("llama", dict(rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=2.0)), "the longest stream"),
        ("gemma2", dict(head_dim=16, attn_logit_softcapping=5.0), "attends with 'softcap'"),
    ],
)
def test_a_decoder_that_cannot_is_told_in_one_sentence(backbone: str, options: dict, told: str) -> None:  # type: ignore[type-arg]
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=50)
    config = CONFIG_MAPPING[backbone](**sizes, num_key_value_heads=2, **options)
    model = apply_depth(AutoModelForCausalLM.from_config(config).eval(), DepthPlan("full"))
    with pytest.raises(InputError, match=told):
        try_together(model.get_decoder())
