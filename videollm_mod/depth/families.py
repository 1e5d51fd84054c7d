"""Which decoders can be routed, told from their structure; and the few families that need a word of help.

A routed layer runs the model's own decoder layer on some of its tokens. That is right wherever tokens meet in causal
attention over the cache and nowhere else, and whatever belongs to a token is handed to the layer from outside.
No family has a file of its own. Only `FAMILIES` goes by name, one row for each of which structure tells too little.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from videollm_mod.types import InputError

# The layer types of Transformers' configs in which tokens meet in attention alone; the others carry a state along.
ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
# What the forward of a decoder layer may ask for: each is the same for all tokens, or is thinned out by layer.py.
UNDERSTOOD = {
    "hidden_states",
    "attention_mask",
    "position_ids",
    "position_embeddings",
    "past_key_values",
    "use_cache",
    "cache_position",
    "output_attentions",
    "output_router_logits",
}
INSTEAD = "take a causal LM with attention in every layer, such as Llama, Qwen3 or Gemma 3"


@dataclass(frozen=True)
class Family:
    """What the structure of a family's layers does not tell."""

    why: str
    norm: str  # the layer's norm before its attention: what reads="norm" scores


FAMILIES = {  # by the model_type of Transformers' config
    "apertus": Family(why="its norm before attention is called attention_layernorm", norm="attention_layernorm"),
    "biogpt": Family(why="its norm before attention is called self_attn_layer_norm", norm="self_attn_layer_norm"),
}


def first_norm(layer: nn.Module, config: Any) -> str | None:
    """The name of the layer's norm before its attention; None if it has none, as in families that norm afterwards."""
    family = FAMILIES.get(config.model_type)
    name = family.norm if family is not None else "input_layernorm"
    return name if hasattr(layer, name) else None


def has_window(layer: Any, config: Any) -> bool:
    """Whether the layer's attention is told to look back no further than a sliding window."""
    return bool(getattr(layer.self_attn, "sliding_window", getattr(config, "sliding_window", None)))


def window_of(layer: Any, config: Any) -> int | None:
    """How many tokens back the mask of a layer's attention reaches, the token itself included; None: all of them."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[layer.self_attn.layer_idx] != "sliding_attention":
        return None
    return getattr(layer.self_attn, "sliding_window", getattr(config, "sliding_window", None)) or None


def is_own(forward: Any, module: nn.Module) -> bool:
    """Whether it is the forward of the module's class, bound to the module: what hooks leave behind when they go."""
    return getattr(forward, "__func__", None) is type(module).forward


def refuse_recurrent(model: nn.Module) -> None:
    """InputError for what Transformers itself declares to be recurrent, hybrid or an encoder-decoder."""
    name, config = type(model).__name__, getattr(model, "config", None)
    if config is None:
        return
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name} is an encoder-decoder, which cannot be routed; {INSTEAD}.")
    text = config.get_text_config()
    types = getattr(text, "layer_types", None) or []
    other = next((index for index, kind in enumerate(types) if kind not in ATTENTION), None)
    if other is not None:
        raise InputError(
            f"layer {other} of {name} is of type '{types[other]}': its state needs every token, so none can skip it; "
            f"{INSTEAD}."
        )
    if getattr(model, "_is_stateful", False):
        raise InputError(f"{name} is recurrent or hybrid: its state needs every token, so none can skip it; {INSTEAD}.")


def refuse_layers(model: nn.Module, decoder: Any) -> None:
    """InputError for decoder layers that structure shows cannot run on some of their tokens."""
    name = type(model).__name__
    for module in (decoder, *decoder.layers):
        given = vars(module).get("forward")  # it would go round the routing, unseen
        if given is not None and not is_own(given, module):
            raise InputError(
                f"{type(module).__name__} of {name} has been given another forward, as hooks of accelerate do for "
                "device_map; call apply_depth before."
            )
    for index, layer in enumerate(decoder.layers):
        own = getattr(type(layer), "depth_own_class", type(layer))  # it may be routed already
        parameters = list(inspect.signature(own.forward).parameters.values())[1:]
        asked = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
        if asked[:1] != ["hidden_states"]:
            raise InputError(f"{own.__name__} of {name} does not take hidden_states first; {INSTEAD}.")
        foreign = next((word for word in asked if word not in UNDERSTOOD), None)
        if foreign is not None:
            raise InputError(
                f"{own.__name__} of {name} asks for '{foreign}', of which it is unknown what skipped tokens do to it; "
                f"{INSTEAD}."
            )
        if getattr(layer.self_attn, "layer_idx", None) != index:
            raise InputError(f"layer {index} of {name} has no KV cache of its own under that number; {INSTEAD}.")
        if getattr(layer.self_attn, "is_causal", True) is False:
            raise InputError(f"{name} attends in both directions, so no stream can equal one pass; {INSTEAD}.")
