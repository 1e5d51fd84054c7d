"""Routing goes in and comes out: the classes of a model's existing modules are swapped, in place.

The new class is a mix-in (layer.py, decoder.py) in front of the module's own, as in ToMe: every weight keeps its name,
only `depth_expert.*` keys are new, and `remove_depth` undoes it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from videollm_mod.depth.decoder import DepthCausalLM, DepthDecoder
from videollm_mod.depth.expert import LayerExpert
from videollm_mod.depth.families import INSTEAD, first_norm, is_own, refuse_layers, refuse_recurrent
from videollm_mod.depth.layer import DepthLayer
from videollm_mod.depth.plan import DepthPlan
from videollm_mod.depth.vision_language import vision_mixins
from videollm_mod.types import InputError

Model = TypeVar("Model", bound=nn.Module)
LEARNING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def find_decoder(model: nn.Module) -> Any:
    """The module that holds the decoder layers of a Transformers causal LM."""
    if hasattr(model, "get_base_model"):  # peft's, which stands around a model and hides it
        raise InputError(f"{type(model).__name__} stands around the model; give its get_base_model().")
    decoder: Any = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise InputError(f"{type(model).__name__} has no list 'layers', each with a 'self_attn'; {INSTEAD}.")
    return decoder


def _swap(module: nn.Module, mixin: type) -> None:
    """Put `mixin` in front of the module's class. The name stays: saving and sharding go by it."""
    now = type(module)
    own = getattr(now, "depth_own_class", now)  # a module may get two
    _drop_bound_forward(module)
    module.__class__ = type(own.__name__, (mixin, now), {"__module__": own.__module__, "depth_own_class": own})


def _drop_bound_forward(module: nn.Module) -> None:
    """Forget a forward that hooks have left on the module: it is that of its class, and of no other class."""
    if is_own(vars(module).get("forward"), module):
        del module.forward


def apply_depth(model: Model, plan: DepthPlan) -> Model:
    """Route the model's decoder layers by `plan`, in place; returns the model.

    On a model that is routed already the plan changes and the experts of layers that stay routed remain.
    """
    refuse_recurrent(model)
    decoder = find_decoder(model)
    refuse_layers(model, decoder)
    ratios = plan.ratios(len(decoder.layers))
    if plan.reads == "norm" and not all(first_norm(layer, decoder.config) for layer in decoder.layers):
        kind = type(decoder.layers[0]).__name__
        raise InputError(f"{kind} has no norm before its attention; take a plan with reads='input'.")
    experts = {i: layer.depth_expert for i, layer in enumerate(decoder.layers) if hasattr(layer, "depth_expert")}
    remove_depth(model)
    width = decoder.config.hidden_size
    for index, (layer, ratio) in enumerate(zip(decoder.layers, ratios)):
        norm = first_norm(layer, decoder.config)
        _swap(layer, DepthLayer)
        layer.depth_plan, layer.depth_ratio, layer.depth_index, layer.depth_norm = plan, ratio, index, norm
        if ratio is not None and plan.has_experts:
            # a quantised layer has weights of types that no expert can learn in; its norms have not
            like = next(weight for weight in layer.parameters() if weight.dtype in LEARNING)
            layer.depth_expert = experts.get(index) or LayerExpert(width, device=like.device, dtype=like.dtype)
    _swap(decoder, DepthDecoder)
    decoder.depth_plan = plan
    if model is not decoder:
        _swap(model, DepthCausalLM)
    for module, mixin in vision_mixins(model, decoder):
        _swap(module, mixin)
    decoder.config.depth_plan = plan.to_dict()
    return model


def remove_depth(model: Model) -> Model:
    """Give the original model back: classes, weights and keys as they were. Nothing happens to an unrouted one."""
    decoder = find_decoder(model)
    for module in (*decoder.layers, decoder, model, *(module for module, _ in vision_mixins(model, decoder))):
        own = getattr(type(module), "depth_own_class", None)
        if own is None:
            continue
        _drop_bound_forward(module)
        module.__class__ = own
        for name in ("depth_plan", "depth_ratio", "depth_index", "depth_norm"):
            module.__dict__.pop(name, None)
        module._modules.pop("depth_expert", None)
    if hasattr(decoder.config, "depth_plan"):
        del decoder.config.depth_plan
    return model


def get_plan(model: nn.Module) -> DepthPlan | None:
    """The plan a model is routed by, or None."""
    return getattr(find_decoder(model), "depth_plan", None)
