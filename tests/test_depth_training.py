"""Law 5: the LayerExpert receives a gradient, is trained, is saved and comes back; and what else training needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_cases import (
    BACKBONES,
    DTYPES,
    PLANS,
    assert_checkpointing_changes_no_gradient,
    far,
    given_scores,
    right_padded,
    routed,
    run,
    same_kept,
    talk,
    tiny_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from videollm_mod.depth import SCORERS, DepthPlan, apply_depth, get_plan
from videollm_mod.depth.salience import salience

Models = Callable[..., PreTrainedModel]
TALK = talk("2t 10 1t 5 1 10 3t")
SHORT = talk("1t 5 2t 10 1t")
GATED = ("output", "update", "tanh", "straight", "relative", "salience")
COMPARING = ("relative", "salience")  # what all scores have in common does nothing
GENTLE = 0.05  # of the experts' weights: gates that are not saturated have a slope

backbones = pytest.mark.parametrize("backbone", BACKBONES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
routing_plans = pytest.mark.parametrize("name", [n for n in PLANS if n not in ("full", "early-exit", "layer-skip")])


def loss_of(model: PreTrainedModel, **kwargs: Any) -> Tensor:
    ids = TALK.ids()
    return model(ids, frame_index=TALK.index, token_scores=given_scores(ids), labels=ids, **kwargs).loss


def double_loss(model: PreTrainedModel) -> Tensor:
    """In double precision, other than the model's own."""
    loss: Tensor = model(TALK.ids(), frame_index=TALK.index).logits.log_softmax(-1)[..., 0].mean()
    return loss


def expert_gradients(model: PreTrainedModel) -> list[Tensor | None]:
    return [weight.grad for name, weight in model.named_parameters() if "depth_expert" in name]


@backbones
@dtypes
@routing_plans
def test_law_5_the_expert_of_every_routed_layer_gets_a_gradient_and_is_moved_by_a_step(
    models: Models, backbone: str, dtype: torch.dtype, name: str
) -> None:
    model = models(backbone, dtype)
    for scorer in SCORERS:
        for gate in GATED:
            with routed(model, replace(PLANS[name], scorer=scorer, gate=gate), strength=GENTLE):
                experts = {n: p for n, p in model.named_parameters() if "depth_expert" in n}
                assert len(experts) == 2 * len(PLANS[name].routed(5))
                before = {n: p.detach().clone() for n, p in experts.items()}
                optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
                loss_of(model).backward()
                for n, weight in experts.items():
                    assert weight.grad is not None and weight.grad.isfinite().all(), (scorer, gate, n)
                    undone = gate == "output" and ".4." in n  # see the test below
                    if gate in COMPARING and n.endswith("bias"):
                        assert weight.grad.abs().max() < 1e-6
                        continue
                    assert weight.grad.abs().max() > (0 if undone else 1e-5), (scorer, gate, n)
                for weight in model.parameters():  # the shared model itself stays as it is
                    weight.grad = weight.grad if any(weight is p for p in experts.values()) else None
                optimiser.step()
                moved = {n for n, weight in experts.items() if not torch.equal(before[n], weight)}
                assert moved >= {n for n in experts if gate not in COMPARING or not n.endswith("bias")}
            model.zero_grad()


def test_the_output_gate_of_the_last_layer_is_undone_by_the_final_norm(models: Models) -> None:
    """RMSNorm(sigma(s)·y) = RMSNorm(y) but for its epsilon: the last layer's expert, if routed, hardly learns."""
    model = models("llama", torch.float64)
    sizes = {}
    for gate in ("output", "update"):
        with routed(model, DepthPlan("all", 0.4, gate=gate), strength=GENTLE):
            loss_of(model).backward()
            sizes[gate] = [layer.depth_expert.weight.grad.abs().max().item() for layer in model.model.layers]
        model.zero_grad()
    assert sizes["output"][4] < 1e-4 * max(sizes["output"][:4])
    assert sizes["update"][4] > 1e-2 * max(sizes["update"][:4])


def test_with_an_identity_gate_the_expert_gets_no_gradient(llama: PreTrainedModel) -> None:
    """The choice itself has no derivative: this gate is for baselines, and for experts that are trained elsewhere."""
    with routed(llama, replace(PLANS["interleaved"], gate="identity")):
        loss_of(llama).backward()
        gradients = expert_gradients(llama)
        assert len(gradients) == 4 and all(gradient is None for gradient in gradients)
    llama.zero_grad()


@pytest.mark.parametrize("gate", GATED)
def test_the_gradient_is_the_slope_of_the_loss(models: Models, gate: str) -> None:
    """By finite differences; for `straight`, whose forward is flat in s, of the function it stands in for."""
    model = models("llama", torch.float64)
    loss = partial(double_loss, model)
    with routed(model, DepthPlan((3,), 0.5, gate=gate), strength=GENTLE):
        expert = model.model.layers[3].depth_expert
        loss().backward()
        gradient = expert.bias.grad.item()  # the bias moves all scores alike, so the choice stays
        step = 1e-5

        def moved(by: float) -> float:
            with torch.no_grad():
                expert.bias.add_(by)
                value = loss().item()
                expert.bias.sub_(by)
            return value

        slope = (moved(step) - moved(-step)) / (2 * step)
    model.zero_grad()
    if gate == "straight":
        assert slope == 0.0 and gradient != 0.0
    elif gate in COMPARING:
        assert slope == 0.0 and abs(gradient) < 1e-12
    else:
        assert abs(slope) > 1e-4 and abs(gradient - slope) < 1e-6


@pytest.mark.parametrize("gate", ["output", "update", "tanh"])
def test_what_comes_before_a_layer_learns_through_its_expert_too(models: Models, gate: str) -> None:
    """By finite differences: a token's score is a function of its hidden state, and the loss one of both."""
    model = models("llama", torch.float64)
    embeds = model.get_input_embeddings()(TALK.ids()).detach().requires_grad_()
    way = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(at: Tensor) -> Tensor:
        return model(inputs_embeds=at, frame_index=TALK.index).logits.log_softmax(-1)[..., 0].mean()

    with routed(model, DepthPlan((1, 3), 0.5, gate=gate)):
        (gradient,) = torch.autograd.grad(loss(embeds), embeds)
        with torch.no_grad():
            slope = (loss(embeds + 1e-6 * way) - loss(embeds - 1e-6 * way)).item() / 2e-6
    assert abs(slope) > 1e-3 and abs((gradient * way).sum().item() - slope) < 1e-6 * max(1.0, abs(slope))


def test_straight_has_the_gradient_of_sigma_s_times_f() -> None:
    from videollm_mod.depth.layer import apply_gate

    x, y, g = torch.randn(3, 7, 4, dtype=torch.float64).unbind(0)
    s = torch.randn(7, 1, dtype=torch.float64, requires_grad=True)
    (apply_gate("straight", x, y, s) * g).sum().backward()
    expected = (g * (y - x)).sum(-1, keepdim=True) * s.sigmoid() * (1 - s.sigmoid())
    assert torch.allclose(s.grad, expected.detach(), atol=1e-12)


def test_relative_has_the_gradient_of_s_times_f_and_its_mean_over_the_kept_tokens_taken_away(models: Models) -> None:
    """So a row's gradients sum to nothing: what one score wins the others lose."""
    model = models("llama", torch.float64)
    seen: dict[str, Tensor] = {}

    def watch(module: torch.nn.Module, args: object, scores: Tensor) -> None:
        if scores.requires_grad:  # not those of the choice
            scores.register_hook(lambda gradient: seen.update(grad=gradient))

    with routed(model, DepthPlan((3,), 0.5, gate="relative"), strength=GENTLE):
        hook = model.model.layers[3].depth_expert.register_forward_hook(watch)
        loss_of(model).backward()
        hook.remove()
    model.zero_grad()
    assert seen["grad"].abs().max() > 1e-5
    assert abs(seen["grad"].sum().item()) < 1e-12


def test_salience_draws_the_shares_of_a_frames_scores_to_those_of_its_slopes() -> None:
    frame = torch.tensor([[0, 1, 1, 0, 2, 2, 2], [3, 3, 3, 3, 3, 0, 0], [4, 0, 5, 6, 6, 0, 7]])
    real = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [True] * 7])  # what pads a row repeats its last token
    scores, slopes = torch.randn(2, 3, 7, dtype=torch.float64)
    scores.requires_grad_()
    zeros = salience(scores, frame, 8, real)
    assert torch.equal(zeros, torch.zeros(3, 7, dtype=torch.float64))
    (zeros * slopes).sum().backward()
    expected = torch.zeros(3, 7, dtype=torch.float64)
    alone = [0, 2, 6]  # in frames that keep one token: compared with one another
    for row, places in ((0, [1, 2]), (0, [4, 5, 6]), (1, [0, 1, 2, 3]), (2, [3, 4]), (2, alone)):
        size = slopes[row, places].abs()
        expected[row, places] = scores[row, places].softmax(0) * size.sum() - size
    assert torch.allclose(scores.grad, expected.detach(), atol=1e-12)


@backbones
def test_salience_leaves_all_other_gradients_as_they_are_without_it(models: Models, backbone: str) -> None:
    model, found = models(backbone, torch.float64), {}
    for gate in ("identity", "salience"):
        with routed(model, replace(PLANS["interleaved"], gate=gate), strength=GENTLE):
            loss_of(model).backward()
            found[gate] = {n: p.grad for n, p in model.named_parameters() if "depth_expert" not in n}
        model.zero_grad()
    assert found["salience"].keys() == found["identity"].keys()
    for name, gradient in found["identity"].items():
        assert (gradient is None) == (found["salience"][name] is None)
        assert gradient is None or torch.allclose(gradient, found["salience"][name], atol=1e-12), name


def test_the_slope_of_salience_is_that_of_what_a_token_gives_to_attention_and_to_itself(models: Models) -> None:
    """By finite differences: its input to attention, and its way through the layer, 1 + c times as strong."""
    model = models("llama", torch.float64)
    layer, seen = model.model.layers[3], dict[str, Tensor]()

    def slopes(scores: Tensor, frame: Tensor, frames: int, real: Tensor | None) -> Tensor:
        seen["factor"] = torch.zeros_like(scores, requires_grad=True)
        return seen["factor"]

    def loss(token: int = 0, by: float = 0.0) -> float:
        def attention(module: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
            grown = kwargs["hidden_states"].clone()
            grown[:, token] *= 1 + by
            return args, {**kwargs, "hidden_states": grown}

        own = layer.depth_own_class.forward

        def through(self: Any, x: Tensor, **kwargs: Any) -> Tensor:
            y = own(self, x, **kwargs).clone()
            if self is layer:
                y[:, token] += by * (y[:, token] - x[:, token])
            return y

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layer.depth_own_class, "forward", through)
            hook = layer.self_attn.register_forward_pre_hook(attention, with_kwargs=True)
            value = double_loss(model).item()
            hook.remove()
        return value

    with routed(model, DepthPlan((3,), 0.5, gate="salience"), strength=GENTLE), pytest.MonkeyPatch.context() as patch:
        patch.setattr("videollm_mod.depth.layer.salience", slopes)
        double_loss(model).backward()
        factor = seen["factor"].grad
        with torch.no_grad():
            for token in range(factor.shape[1]):
                slope = (loss(token, 1e-6) - loss(token, -1e-6)) / 2e-6
                assert abs(slope - factor[0, token].item()) < 1e-7, token
    model.zero_grad()
    assert factor.abs().max() > 1e-4


@backbones
@pytest.mark.parametrize("gate", GATED)
def test_gradient_checkpointing_gives_the_same_gradients(models: Models, backbone: str, gate: str) -> None:
    model = tiny_model(backbone, torch.float64).train()
    with routed(model, replace(PLANS["interleaved"], gate=gate)):
        assert_checkpointing_changes_no_gradient(model, lambda: loss_of(model, use_cache=False))


@backbones
def test_training_with_the_default_cache_has_the_gradients_of_training_without(models: Models, backbone: str) -> None:
    model = models(backbone, torch.float64)
    with routed(model.train(), replace(PLANS["interleaved"], gate="update")):
        gradients = []
        for options in ({}, {"use_cache": False}):
            model.zero_grad()
            loss_of(model, **options).backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
    model.eval().zero_grad()
    assert max(far(a, b) for a, b in zip(*gradients)) < 1e-10


def test_steps_that_share_a_cache_can_be_learned_from_and_the_cache_is_part_of_no_graph(llama: PreTrainedModel) -> None:
    """What a later step reads of an earlier one is as it is: its gradient ends there."""
    ids, half = TALK.ids(), TALK.frame_index.index(1)
    with routed(llama, replace(PLANS["interleaved"], gate="update")):
        first = llama(ids[:, :half], frame_index=TALK.index[:, :half], use_cache=True)
        cache = first.past_key_values
        second = llama(ids[:, half:], frame_index=TALK.index[:, half:], past_key_values=cache)
        (first.logits.logsumexp(-1).sum() + second.logits.logsumexp(-1).sum()).backward()
        assert all(weight.grad.isfinite().all() for weight in llama.parameters())
        assert not any(layer.keys.requires_grad or layer.values.requires_grad for layer in cache.layers)
    llama.zero_grad()


@pytest.mark.parametrize("use_cache", [True, False])
@backbones
def test_gradients_of_a_padded_batch_are_the_sum_of_its_rows(models: Models, backbone: str, use_cache: bool) -> None:
    talks = (TALK, talk("1t 10 3t 1 10"))  # what pads a row repeats its last kept token, here one of a frame
    model = models(backbone, torch.float64)
    ids = [talked.ids(seed) for seed, talked in enumerate(talks)]
    real = right_padded([torch.ones_like(row) for row in ids])
    index = right_padded([talked.index for talked in talks], -1)

    def gradients(*batches: dict[str, Tensor]) -> list[Tensor]:
        model.zero_grad()
        for batch in batches:
            mask = batch["attention_mask"].bool()
            (model(**batch, use_cache=use_cache).logits[mask].logsumexp(-1)).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    for name, gate in (("interleaved", "update"), ("all", "update"), ("early-exit", "update"), ("all", "relative")):
        with routed(model, replace(PLANS[name], gate=gate)):
            together = gradients(dict(input_ids=right_padded(ids), frame_index=index, attention_mask=real))
            alone = gradients(
                *[
                    dict(input_ids=row, frame_index=talked.index, attention_mask=torch.ones_like(row))
                    for row, talked in zip(ids, talks)
                ]
            )
        assert max(far(a, b) / (1 + b.abs().max().item()) for a, b in zip(together, alone)) < 1e-9, (name, gate)
    model.zero_grad()


def test_a_row_of_which_nothing_goes_through_a_layer_leaves_gradients_finite(models: Models) -> None:
    """A row of frames only, behind an early exit, beside one with text: all its keys are masked there."""
    ids = torch.arange(1, 21).view(2, 10)
    index = torch.tensor([[0] * 10, [-1] * 10])
    for attention in ("sdpa", "eager"):
        model = models("llama", torch.float32, attention)
        for use_cache in (True, False):
            for real in (None, torch.tensor([[1] * 10, [1] * 8 + [0] * 2])):
                with routed(model, DepthPlan("early-exit")):
                    out = model(ids, frame_index=index, attention_mask=real, use_cache=use_cache).logits
                    out.logsumexp(-1).sum().backward()
                assert out.isfinite().all()
                assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
                model.zero_grad()


def test_gradients_reach_the_embeddings_of_kept_and_of_skipped_tokens(llama: PreTrainedModel) -> None:
    embeds = llama.get_input_embeddings()(TALK.ids()).detach().requires_grad_()
    with routed(llama, replace(PLANS["all"], gate="update")):
        kept: dict[int, Tensor] = {}
        llama(inputs_embeds=embeds, frame_index=TALK.index, kept_out=kept).logits.logsumexp(-1).sum().backward()
    skipped_everywhere = ~torch.stack(list(kept.values())).any(0)
    assert skipped_everywhere.any()
    assert (embeds.grad.abs().sum(-1) > 0).all()
    llama.zero_grad()


@backbones
def test_law_5_weights_saved_to_safetensors_come_back_to_the_bit(models: Models, backbone: str, tmp_path: Path) -> None:
    model, plan = models(backbone, torch.float32), replace(PLANS["list"], gate="output")
    with routed(model, plan, seed=5):
        before = run(model, TALK.ids(), TALK.index)
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, tmp_path / "m.safetensors")
    fresh = tiny_model(backbone, torch.float32)
    apply_depth(fresh, plan)
    fresh.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    after = run(fresh, TALK.ids(), TALK.index)
    assert torch.equal(before.hidden, after.hidden) and same_kept(before.kept, after.kept)


@backbones
def test_save_pretrained_keeps_architecture_name_plan_and_experts(
    models: Models, backbone: str, tmp_path: Path
) -> None:
    model, plan = models(backbone, torch.float32), replace(PLANS["list"], gate="output")
    own = type(model)
    with routed(model, plan, seed=5):
        before = run(model, TALK.ids(), TALK.index)
        model.save_pretrained(tmp_path)
    dense = own.from_pretrained(tmp_path)
    assert dense.config.architectures == [own.__name__] and type(dense) is own
    assert DepthPlan.from_dict(dense.config.depth_plan) == plan
    apply_depth(dense, DepthPlan.from_dict(dense.config.depth_plan))
    dense.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    after = run(dense, TALK.ids(), TALK.index)
    assert torch.equal(before.hidden, after.hidden) and same_kept(before.kept, after.kept)


def test_a_new_plan_keeps_the_experts_of_layers_that_stay_routed(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        experts = {i: llama.model.layers[i].depth_expert for i in (1, 3)}
        apply_depth(llama, DepthPlan((2, 3), 0.5))
        assert get_plan(llama) == DepthPlan((2, 3), 0.5)
        assert llama.model.layers[3].depth_expert is experts[3]
        assert hasattr(llama.model.layers[2], "depth_expert") and not hasattr(llama.model.layers[1], "depth_expert")


def test_a_deep_copy_is_routed_and_independent(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        twin = copy.deepcopy(llama)
        mine, its = run(llama, TALK.ids(), TALK.index), run(twin, TALK.ids(), TALK.index)
        with torch.no_grad():
            twin.model.layers[1].depth_expert.weight.zero_()
        again, changed = run(llama, TALK.ids(), TALK.index), run(twin, TALK.ids(), TALK.index)
    assert torch.equal(mine.hidden, its.hidden) and torch.equal(mine.hidden, again.hidden)
    assert far(mine.hidden, changed.hidden) > 1e-2
    assert get_plan(twin) == PLANS["interleaved"]  # removing it from the original leaves the copy routed
