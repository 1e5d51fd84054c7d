"""What a routed model refuses, because it would silently be wrong; and what a step that fails leaves behind."""

from __future__ import annotations

from collections.abc import Callable

import peft
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from depth_cases import REFUSED, refused_model, routed, run, tiny_model
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from videollm_mod.depth import DepthPlan, RaggedCache, apply_depth, remove_depth
from videollm_mod.depth.layer import Keys, kept_mask
from videollm_mod.types import InputError

PLAN = DepthPlan("interleaved", 0.4, gate="output")
IDS = torch.arange(9)[None] % 7
FRAMES = torch.tensor([[-1, 0, 0, 0, -1, 1, 1, 1, -1]])


def first_half(model: PreTrainedModel) -> RaggedCache:
    with torch.no_grad():
        return model(IDS[:, :5], frame_index=FRAMES[:, :5], use_cache=True).past_key_values


def test_a_mask_of_the_current_step_alone_is_refused_where_tokens_went_before(llama: PreTrainedModel) -> None:
    with routed(llama, PLAN):
        cache = first_half(llama)
        with pytest.raises(InputError, match="covers 4 tokens; it must cover the 5 seen before and the 4"):
            llama(IDS[:, 5:], frame_index=FRAMES[:, 5:], past_key_values=cache, attention_mask=torch.ones(1, 4))


def test_a_model_that_peft_has_wrapped_is_refused_with_how_to_get_at_it() -> None:
    wrapped = peft.get_peft_model(tiny_model("llama", torch.float32), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"^PeftModel stands around the model; give its get_base_model\(\)\.$"):
        apply_depth(wrapped, PLAN)
    apply_depth(wrapped.get_base_model(), PLAN)


def test_gradient_checkpointing_is_refused_with_a_cache_that_it_would_drop(llama: PreTrainedModel) -> None:
    with routed(llama, PLAN):
        cache = first_half(llama)
        llama.train()
        llama.gradient_checkpointing_enable()
        try:
            with pytest.raises(InputError, match="gradient checkpointing cannot go on from a cache"):
                llama(IDS[:, 5:], frame_index=FRAMES[:, 5:], past_key_values=cache)
            assert llama(IDS, frame_index=FRAMES, use_cache=True).past_key_values is None  # without one it just trains
        finally:
            llama.gradient_checkpointing_disable()
            llama.eval()


def test_the_rest_of_a_frame_that_was_cut_in_two_is_refused_and_the_whole_frame_is_not(llama: PreTrainedModel) -> None:
    with routed(llama, PLAN), torch.no_grad():
        cache = first_half(llama)
        cache.crop_to(3)
        with pytest.raises(InputError, match="frame 0 comes after frame 0"):
            llama(IDS[:, 3:5], frame_index=FRAMES[:, 3:5], past_key_values=cache)
        cache.crop_to(1)
        whole = llama(IDS[:, 1:5], frame_index=FRAMES[:, 1:5], past_key_values=cache).past_key_values
        assert whole.seen == 5 and whole.frames == first_half(llama).frames


@pytest.mark.parametrize("roll_back", [lambda cache: cache.crop_to(-3), lambda cache: cache.crop(-100)])
def test_rolling_back_by_more_than_there_is_empties_the_cache(
    llama: PreTrainedModel, roll_back: Callable[[RaggedCache], None]
) -> None:
    with routed(llama, PLAN):
        cache = first_half(llama)
        roll_back(cache)
        assert cache.seen == 0 and cache.kv_bytes == 0


@pytest.mark.parametrize("place", ["layers.3", "layers.3.self_attn", "layers.3.mlp"])
def test_a_step_that_fails_halfway_leaves_the_cache_as_it_was(llama: PreTrainedModel, place: str) -> None:
    """Before a routed layer, between what it tells its cache to expect and the keys, and behind those."""
    with routed(llama, PLAN), torch.no_grad():
        cache, undisturbed = first_half(llama), first_half(llama)
        layer = llama.model.get_submodule(place)

        def fail(*_: object) -> None:
            raise KeyboardInterrupt  # somebody presses Ctrl-C while layer 3 works

        hook = layer.register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            llama(IDS[:, 5:], frame_index=FRAMES[:, 5:], past_key_values=cache)
        hook.remove()
        assert cache.stored == undisturbed.stored and cache.frames == undisturbed.frames
        again, expected = (
            llama(IDS[:, 5:], frame_index=FRAMES[:, 5:], past_key_values=each).logits for each in (cache, undisturbed)
        )
        assert torch.equal(again, expected)


def test_frame_numbers_of_any_integer_type_give_the_same_random_sets(llama: PreTrainedModel) -> None:
    index = torch.where(FRAMES >= 0, FRAMES + 1_000_000, FRAMES)
    with routed(llama, DepthPlan("all", 0.4, scorer="random", gate="identity")), torch.no_grad():
        wide, narrow = {}, {}
        llama(IDS, frame_index=index, kept_out=wide)
        llama(IDS, frame_index=index.int(), kept_out=narrow)
    assert all(torch.equal(wide[layer], narrow[layer]) for layer in wide)


def test_flash_attentions_padding_mask_is_refused_with_what_to_use_instead() -> None:
    keys = Keys(torch.tensor([[0, 1]]), first=0, even=True)
    with pytest.raises(InputError, match="use attn_implementation='sdpa'"):
        kept_mask(torch.ones(1, 2), torch.tensor([[0, 1]]), keys)


@pytest.mark.parametrize("use_cache", [True, False])
def test_another_kind_of_filled_cache_is_refused_by_its_name(llama: PreTrainedModel, use_cache: bool) -> None:
    other = DynamicCache(config=llama.config)
    with torch.no_grad():
        llama(IDS[:, :5], past_key_values=other)
    with routed(llama, PLAN), pytest.raises(InputError, match="filled DynamicCache"):
        llama(IDS[:, 5:], frame_index=FRAMES[:, 5:], past_key_values=other, use_cache=use_cache)


def test_a_static_cache_is_refused_because_layers_hold_different_numbers(llama: PreTrainedModel) -> None:
    with routed(llama, PLAN), pytest.raises(InputError, match=r"StaticCache.*leave cache_implementation out"):
        llama.generate(IDS, frame_index=FRAMES, max_new_tokens=2, cache_implementation="static")


def test_positional_arguments_mean_what_they_mean_to_transformers(llama: PreTrainedModel) -> None:
    with routed(llama, PLAN), torch.no_grad():
        mask = torch.ones_like(IDS)
        assert torch.equal(
            llama.model(IDS, mask, frame_index=FRAMES)[0],
            llama.model(input_ids=IDS, attention_mask=mask, frame_index=FRAMES)[0],
        )


def test_a_row_that_keeps_nothing_gives_no_nan_gradient(models: Callable[..., PreTrainedModel]) -> None:
    model = models("llama", torch.float64, "eager")
    apply_depth(model, DepthPlan("early-exit", exit_after=2))
    try:
        ids = torch.ones(2, 4, dtype=torch.long)
        index = torch.tensor([[0, 0, 0, 0], [-1, -1, 0, 0]])  # the first row is nothing but a frame
        model(ids, frame_index=index, use_cache=False).logits[1].sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    finally:
        model.zero_grad()
        remove_depth(model)


def test_input_ids_or_embeddings_are_needed(llama: PreTrainedModel) -> None:
    with routed(llama, PLAN), pytest.raises(InputError, match="needs input_ids or inputs_embeds"):
        llama.model()


def test_the_scorer_given_needs_a_score_for_every_token_of_a_step_with_frames(llama: PreTrainedModel) -> None:
    with routed(llama, DepthPlan("all", 0.4, scorer="given")), torch.no_grad():
        llama(torch.full_like(IDS, 1))  # nothing to choose from
        for scores in (None, torch.ones(1, IDS.shape[1] - 1)):
            with pytest.raises(InputError, match=r"token_scores is (missing|of shape .*); the plan's scorer 'given'"):
                llama(IDS, frame_index=FRAMES, token_scores=scores)
    with routed(llama, DepthPlan("early-exit", scorer="given")), torch.no_grad():
        llama(IDS, frame_index=FRAMES)  # nothing is chosen


# --- decoders that cannot be routed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [PLAN, DepthPlan("full")], ids=["routed", "full"])
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_that_cannot_be_routed_is_refused_in_one_sentence_and_left_as_it_was(
    name: str, plan: DepthPlan
) -> None:
    model = refused_model(name)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(InputError, match=REFUSED[name].told) as told:
        apply_depth(model, plan)
    sentence = str(told.value)
    assert type(model).__name__ in sentence and "take a causal LM with attention in every layer" in sentence
    assert sentence.count(". ") == 0 and sentence.endswith(".")
    assert [type(module) for module in model.modules()] == classes


class OddLayer(nn.Module):
    """It has attention, but takes its hidden states under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attn = nn.Linear(2, 2)

    def forward(self, activations: Tensor) -> Tensor:
        return activations


def test_a_layer_that_does_not_take_hidden_states_first_is_refused() -> None:
    model = tiny_model("llama", torch.float32)
    model.model.layers[2] = OddLayer()
    with pytest.raises(InputError, match="OddLayer of LlamaForCausalLM does not take hidden_states first"):
        apply_depth(model, PLAN)


def test_a_layer_with_the_cache_of_another_is_refused() -> None:
    model = tiny_model("llama", torch.float32)
    model.model.layers = nn.ModuleList([model.model.layers[i] for i in (0, 1, 1, 3)])  # one layer twice
    with pytest.raises(InputError, match="layer 2 of LlamaForCausalLM has no KV cache of its own"):
        apply_depth(model, PLAN)


def test_hooks_that_went_in_before_are_refused_and_hooks_that_go_in_after_see_every_layer() -> None:
    """Accelerate's replace the forward of the module itself, so that a change of class would go unseen."""
    model = tiny_model("llama", torch.float32)
    dense = model(IDS).logits
    add_hook_to_module(model.model.layers[1], ModelHook())
    with pytest.raises(InputError, match="LlamaDecoderLayer of LlamaForCausalLM has been given another forward"):
        apply_depth(model, PLAN)
    remove_hook_from_module(model.model.layers[1])
    with routed(model, PLAN):
        plain = run(model, IDS, FRAMES)
        seen: list[int] = []

        class Count(ModelHook):
            def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple:
                seen.append(args[0].shape[1])
                return args, kwargs

        for layer in model.model.layers:
            add_hook_to_module(layer, Count())
        hooked = run(model, IDS, FRAMES)
        for layer in model.model.layers:
            remove_hook_from_module(layer)
    assert seen == [IDS.shape[1]] * len(model.model.layers) and torch.equal(hooked.hidden, plain.hidden)
    assert torch.equal(model(IDS).logits, dense), "what hooks have left behind went with the routing"


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma3", "mixtral"])
def test_flash_attention_is_refused_where_a_routed_layer_has_a_sliding_window(
    models: Callable[..., PreTrainedModel], family: str
) -> None:
    """It would count the window in kept tokens; the config alone says so, for it is not installed here."""
    sizes = dict(sliding_window=8) if family == "mixtral" else {}
    model = tiny_model(family, torch.float32, **sizes)
    apply_depth(model, PLAN)
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(InputError, match="counts a sliding window in kept tokens"):
        model(IDS, frame_index=FRAMES)
