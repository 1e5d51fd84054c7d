"""`generate(input_ids, frame_index=...)` of a routed model: greedy, beams, padded batches, pre-filled caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from depth_cases import BACKBONES, PLANS, Conversation, given_scores, left_padded, routed, run, stream, talk
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from videollm_mod.depth import DepthPlan, RaggedCache

Models = Callable[..., PreTrainedModel]
TALK = talk("2t 10 1t 5 1 10 2t")
SHORT = talk("1t 5 2t 10 1t")
NEW = 8  # tokens to generate

backbones = pytest.mark.parametrize("backbone", BACKBONES)
plan_names = pytest.mark.parametrize("name", PLANS)


@torch.no_grad()
def naive(model: PreTrainedModel, ids: Tensor, talked: Conversation) -> list[int]:
    """Greedy decoding that computes everything anew at every token."""
    said: list[int] = []
    for _ in range(NEW):
        whole = torch.cat([ids, torch.tensor([said], dtype=torch.long)], dim=1)
        index = torch.cat([talked.index, torch.full((1, len(said)), -1)], dim=1)
        said.append(int(model(whole, frame_index=index, use_cache=False).logits[0, -1].argmax()))
    return said


def generate(model: PreTrainedModel, ids: Tensor, frame_index: Tensor | None, **options: Any) -> Tensor:
    """(batch, NEW): what is said"""
    # the tiny models have no padding token of their own, and beams end by length alone
    options = dict(do_sample=False, max_new_tokens=NEW, pad_token_id=0, eos_token_id=None) | options
    if "attention_mask" not in options and "inputs_embeds" not in options:
        options["attention_mask"] = torch.ones_like(ids)
    inputs = {} if ids is None else {"input_ids": ids}
    return model.generate(**inputs, frame_index=frame_index, **options)[:, -NEW:]


@backbones
@plan_names
def test_greedy_generation_equals_a_loop_that_computes_everything_anew(
    models: Models, backbone: str, name: str
) -> None:
    model, ids = models(backbone, torch.float64), TALK.ids()
    with routed(model, PLANS[name]):
        assert generate(model, ids, TALK.index)[0].tolist() == naive(model, ids, TALK)


def test_scores_from_outside_reach_the_prompt_and_never_what_is_generated(models: Models) -> None:
    model, ids = models("llama", torch.float64), TALK.ids()
    said = set()
    with routed(model, DepthPlan("all", 0.2, scorer="given")), torch.no_grad():
        for scores in (given_scores(ids), -given_scores(ids)):
            new = generate(model, ids, TALK.index, token_scores=scores)[0].tolist()
            whole = torch.cat([ids, torch.tensor([new[:-1]])], dim=1)
            index = torch.nn.functional.pad(TALK.index, (0, NEW - 1), value=-1)
            padded = torch.nn.functional.pad(scores, (0, NEW - 1))
            logits = model(whole, frame_index=index, token_scores=padded, use_cache=False).logits
            assert logits[0, -NEW:].argmax(-1).tolist() == new
            said.add(tuple(new))
    assert len(said) == 2  # the choice shows


@backbones
@plan_names
def test_beam_search_with_the_cache_equals_beam_search_without(models: Models, backbone: str, name: str) -> None:
    model, ids = models(backbone, torch.float64), TALK.ids()
    with routed(model, PLANS[name]):
        cached, bare = (generate(model, ids, TALK.index, num_beams=3, use_cache=use) for use in (True, False))
    assert torch.equal(cached, bare)


@pytest.mark.parametrize("beams", [1, 3])
@backbones
def test_a_batch_of_two_left_padded_prompts_says_what_each_says_alone(
    models: Models, backbone: str, beams: int
) -> None:
    model, talks = models(backbone, torch.float64), (TALK, SHORT)
    ids = [talked.ids(seed) for seed, talked in enumerate(talks)]
    real = left_padded([torch.ones_like(row) for row in ids])
    index = left_padded([talked.index for talked in talks], -1)
    for name in ("interleaved", "all", "early-exit"):
        with routed(model, PLANS[name]):
            both = generate(model, left_padded(ids), index, attention_mask=real, num_beams=beams)
            alone = [generate(model, row, talked.index, num_beams=beams) for row, talked in zip(ids, talks)]
        assert torch.equal(both, torch.cat(alone))


@backbones
@plan_names
def test_generation_goes_on_from_a_cache_that_a_stream_has_filled(models: Models, backbone: str, name: str) -> None:
    model, ids = models(backbone, torch.float64), TALK.ids()
    border = TALK.borders[-1]
    with routed(model, PLANS[name]):
        said = generate(model, ids, TALK.index)
        watched = Conversation(TALK.frame_index[:border])
        for frame_index in (TALK.index, None):  # the rest of the prompt is text
            cache = stream(model, ids[:, :border], watched, watched.turns).cache
            assert torch.equal(generate(model, ids, frame_index, past_key_values=cache), said)
            assert cache.seen == len(TALK) + NEW - 1


@plan_names
def test_generation_goes_on_with_frames_that_the_cache_has_not_seen(llama: PreTrainedModel, name: str) -> None:
    ids, border = TALK.ids(), TALK.frame_index.index(2)
    watched = Conversation(TALK.frame_index[:border])
    with routed(llama, PLANS[name]):
        cache = stream(llama, ids[:, :border], watched, watched.turns).cache
        assert torch.equal(generate(llama, ids, TALK.index, past_key_values=cache), generate(llama, ids, TALK.index))


def test_generation_from_embeddings_says_the_same(llama: PreTrainedModel) -> None:
    ids = TALK.ids()
    embeds = llama.get_input_embeddings()(ids).detach()
    with routed(llama, PLANS["interleaved"]):
        said = generate(llama, ids, TALK.index)
        assert torch.equal(generate(llama, None, TALK.index, inputs_embeds=embeds), said)


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23),
    reason="speculative decoding of Transformers 5.17 gives a mask shorter than what was seen; we refuse it",
)
def test_speculative_decoding_rolls_the_cache_back_and_says_the_same(llama: PreTrainedModel) -> None:
    """Prompt look-up guesses several tokens at once and crops what was wrong, in every layer."""
    ids = TALK.ids() % 7  # repetitive, so that there is something to look up
    for name in ("interleaved", "all", "early-exit"):
        with routed(llama, PLANS[name]):
            greedy = generate(llama, ids, TALK.index)
            assert torch.equal(generate(llama, ids, TALK.index, prompt_lookup_num_tokens=3), greedy)


def test_after_generation_the_stream_goes_on_as_if_it_had_been_fed_the_words(llama: PreTrainedModel) -> None:
    ids, more = TALK.ids(), talk("1t 10")
    more_index = torch.where(more.index >= 0, more.index + 50, -1)
    with routed(llama, PLANS["interleaved"]):
        out = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            frame_index=TALK.index,
            max_new_tokens=NEW,
            do_sample=False,
            return_dict_in_generate=True,
            eos_token_id=None,
            pad_token_id=0,
        )
        fed = torch.cat(
            [out.sequences[:, out.past_key_values.seen :], more.ids()], dim=1
        )  # the last word is not in yet
        index = torch.cat([torch.full((1, 1), -1), more_index], dim=1)
        continued = run(llama, fed, index, past_key_values=out.past_key_values)
        whole = torch.cat([out.sequences, more.ids()], dim=1)
        whole_index = torch.cat([TALK.index, torch.full((1, NEW), -1), more_index], dim=1)
        once = run(llama, whole, whole_index)
    assert (continued.hidden - once.hidden[:, -fed.shape[1] :]).abs().max() < 1e-10


class Operators(TorchDispatchMode):
    """Notes the operators that run inside the `with` block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def operators_of(llama: PreTrainedModel, index: list[int]) -> dict[str, list[str]]:
    """What a step of such tokens runs behind a stream, where all layers are dense and where all are routed."""
    taken = {}
    for name in ("full", "all"):
        with routed(llama, PLANS[name]), torch.no_grad():
            cache = RaggedCache(llama.config.num_hidden_layers)
            run(llama, TALK.ids(), TALK.index, past_key_values=cache)
            ids = torch.ones(1, len(index), dtype=torch.long)
            with Operators() as operators:
                llama(ids, past_key_values=cache, frame_index=torch.tensor([index]))
        taken[name] = operators.names
    return taken


def test_a_word_is_neither_gathered_nor_scattered_in_routed_layers(llama: PreTrainedModel) -> None:
    """All words go through every layer, so a word costs a routed layer what it costs a dense one."""
    taken = operators_of(llama, [-1])
    moved = ("aten::gather", "aten::index.Tensor", "aten::index_copy", "aten::sort.stable", "aten::sort")
    assert [taken["all"].count(name) for name in moved] == [taken["full"].count(name) for name in moved]
    assert len(taken["all"]) - len(taken["full"]) <= 5 * llama.config.num_hidden_layers


def test_a_frame_costs_a_routed_layer_half_as_many_operators_again(llama: PreTrainedModel) -> None:
    """As docs/performance.md says: where each is a launch on a device, that is what routing costs."""
    taken = operators_of(llama, [-1, *[50] * 10])
    assert len(taken["all"]) - len(taken["full"]) <= 60 * llama.config.num_hidden_layers
