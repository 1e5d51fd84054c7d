"""What a routed decoder computes, once more and as slowly as it can be said: one token, one head, one layer at a time.

Written from the design alone (VideoLLM-MoD, arXiv 2408.16730, section 3.2), for one row without batch or cache. Of the
model it uses only weights: norms, projections and MLP, called on single tokens. Rotary embedding, softmax, masks, layer
sets, mixtures of experts, the choice of k tokens and the gates are its own. Of the package it borrows one function: the
hash of `random`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from videollm_mod.depth import DepthPlan
from videollm_mod.depth.expert import random_scores


@dataclass(frozen=True)
class Reference:
    """What comes out."""

    hidden: Tensor  # (tokens, d) before the final norm
    kept: dict[int, set[int]]  # routed layer -> places of all tokens that went through it, text included
    entries: list[int]  # KV entries that each layer holds in the end


def reference(
    model: Any,
    embeds: Tensor,
    frame_index: Sequence[int],
    plan: DepthPlan,
    given: Sequence[float] | None = None,
) -> Reference:
    """embeds (tokens, d); frame_index, given scores: a value per token."""
    decoder = model.get_decoder()
    tokens = len(frame_index)
    ratios = layer_ratios(plan, len(decoder.layers))
    hidden = [embeds[i] * getattr(decoder.config, "embedding_multiplier", 1.0) for i in range(tokens)]
    kept: dict[int, set[int]] = {}
    entries = []
    for number, (layer, ratio) in enumerate(zip(decoder.layers, ratios)):
        if ratio is None:
            through = set(range(tokens))
        else:
            through = {i for i in range(tokens) if frame_index[i] < 0}
            for frame in sorted({f for f in frame_index if f >= 0}):
                places = [i for i in range(tokens) if frame_index[i] == frame]
                inputs = [hidden[i] for i in places]
                told = [given[i] for i in places] if given is not None else None
                through |= {places[j] for j in chosen(layer, inputs, ratio, plan, frame, number, told)}
            kept[number] = through
        entries.append(len(through))
        before = list(hidden)
        for i, out in decoder_layer(layer, decoder.config, number, before, sorted(through)).items():
            routed_vision = ratio is not None and frame_index[i] >= 0
            hidden[i] = gated(layer, plan, before[i], out) if routed_vision else out
    return Reference(torch.stack(hidden), kept, entries)


def layer_ratios(plan: DepthPlan, layers: int) -> list[Fraction | None]:
    """The keep ratio of each layer, None where it is not routed."""
    half = plan.exit_after if plan.exit_after is not None else layers // 2
    sets = {
        "full": [],
        "all": [i for i in range(layers)],
        "all-deep": [i for i in range(layers) if i >= 2],
        "interleaved": [i for i in range(layers) if i % 2 == 1],
        "interleaved-deep": [i for i in range(layers) if i % 2 == 1 and i >= 3],
        "early-exit": [i for i in range(layers) if i >= half],
        "layer-skip": [i for i in range(layers) if i % 2 == 1],
    }
    routed = sets[plan.layers] if isinstance(plan.layers, str) else list(plan.layers)
    if plan.layers in ("early-exit", "layer-skip"):
        keep = [0.0 for _ in routed]
    elif isinstance(plan.keep, tuple):
        keep = list(plan.keep)
    else:
        keep = [plan.keep for _ in routed]
    # by way of the decimal that a person wrote: 0.1 is a tenth, not 0.1000000000000000055
    by_layer = {layer: Fraction(str(ratio)) for layer, ratio in zip(routed, keep)}
    return [by_layer.get(i) for i in range(layers)]


def chosen(
    layer: Any,
    inputs: list[Tensor],
    ratio: Fraction,
    plan: DepthPlan,
    frame: int,
    number: int,
    given: list[float] | None,
) -> list[int]:
    """Places within a frame, of the tokens that go through."""
    n = len(inputs)
    k = math.ceil(ratio * n)
    if k == 0:
        return []
    if plan.scorer == "learned":
        scores = [score(layer, plan, x) for x in inputs]
    elif plan.scorer == "given":
        assert given is not None
        scores = given
    elif plan.scorer == "random":
        scores = random_scores(torch.tensor([frame]), n, number, plan.seed)[0].tolist()
    else:
        middles = [math.floor(Fraction(n, k) * (Fraction(1, 2) + i)) for i in range(k)]  # of k equal parts
        scores = [1.0 if j in middles else 0.0 for j in range(n)]
    order = sorted(range(n), key=lambda j: (-scores[j], j))  # ties: the lower place first
    if plan.keep_last:
        order.remove(n - 1)
        order.insert(0, n - 1)
    return order[:k]


def score(layer: Any, plan: DepthPlan, x: Tensor) -> float:
    """s = w·x + b, of the token as it enters the layer, or after its first norm."""
    expert = layer.depth_expert
    if plan.reads == "norm":
        x = layer.input_layernorm(x)
    return float((expert.weight[0] * x).sum() + expert.bias[0])


def gated(layer: Any, plan: DepthPlan, x: Tensor, y: Tensor) -> Tensor:
    """A kept vision token after its gate; y is the plain layer's output, f = y - x."""
    if plan.gate in ("identity", "straight", "relative", "salience"):
        return y
    s = score(layer, plan, x)
    sigma = 1 / (1 + math.exp(-s))
    f = y - x
    if plan.gate == "output":
        return sigma * (x + f)
    if plan.gate == "update":
        return x + sigma * f
    assert plan.gate == "tanh"
    return x + (1 + 0.2 * math.tanh(s)) * f


def decoder_layer(layer: Any, config: Any, number: int, hidden: list[Tensor], through: list[int]) -> dict[int, Tensor]:
    """Decoder layer `number` on the tokens in `through`, as if there were no others. What a family does in its own way
    is told by the parts that its layers have, and by its config."""
    attention = layer.self_attn
    share = config.num_attention_heads // config.num_key_value_heads  # query heads per key head
    scale = attention.head_dim**-0.5
    if config.model_type == "granite":
        scale = config.attention_multiplier
    if config.model_type == "gemma3_text":
        scale = config.query_pre_attn_scalar**-0.5
    multiplier = getattr(config, "residual_multiplier", 1.0)  # Granite
    norm_attention, norm_attended, norm_mlp, norm_mixed = norms(layer)
    queries, keys, values = {}, {}, {}
    for i in through:
        q, k, values[i] = projected(attention, config, norm_attention(hidden[i]))
        queries[i] = [rotated(head, i, config, number) for head in q]
        keys[i] = [rotated(head, i, config, number) for head in k]
    window = window_of(config, number)
    out = {}
    for i in through:
        # a sliding window counts tokens of the sequence, whether or not they are in this layer
        visible = [j for j in through if j <= i and (window is None or i - j < window)]
        heads = []
        for h, query in enumerate(queries[i]):
            logits = torch.stack([keys[j][h // share] for j in visible]) @ query * scale
            weights = (logits - logits.max()).exp()
            weights = weights / weights.sum()
            heads.append(weights @ torch.stack([values[j][h // share] for j in visible]))
        x = hidden[i] + multiplier * norm_attended(attention.o_proj(torch.cat(heads)))
        out[i] = x + multiplier * norm_mixed(feed_forward(layer.mlp, config, norm_mlp(x)))
    return out


def norms(layer: Any) -> list[Callable[[Tensor], Tensor]]:
    """What is done before attention, after it, before the MLP and after it."""

    def same(x: Tensor) -> Tensor:
        return x

    if not hasattr(layer, "post_feedforward_layernorm"):
        return [layer.input_layernorm, same, layer.post_attention_layernorm, same]
    after = layer.post_attention_layernorm, layer.post_feedforward_layernorm
    if not hasattr(layer, "input_layernorm"):  # OLMo 2
        return [same, after[0], same, after[1]]
    return [layer.input_layernorm, after[0], layer.pre_feedforward_layernorm, after[1]]  # Gemma 3


def projected(attention: Any, config: Any, x: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    """Queries, keys and values of one token, (head_dim,) for each head."""
    size = attention.head_dim
    if hasattr(attention, "qkv_proj"):  # Phi-3
        of_keys = config.num_key_value_heads * size
        q, k, v = attention.qkv_proj(x).split([config.num_attention_heads * size, of_keys, of_keys])
    else:
        q, k, v = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    if config.model_type == "olmo2":  # all heads are normed as one
        q, k = attention.q_norm(q), attention.k_norm(k)
    q, k, v = q.split(size), k.split(size), v.split(size)
    if config.model_type in ("qwen3", "qwen3_moe", "gemma3_text"):  # each head is normed
        q, k = [attention.q_norm(head) for head in q], [attention.k_norm(head) for head in k]
    return q, k, v


def window_of(config: Any, number: int) -> int | None:
    """How many tokens the layer sees, itself included; None if all."""
    types = getattr(config, "layer_types", None)
    if types is not None and types[number] != "sliding_attention":
        return None
    return getattr(config, "sliding_window", None)


def rotated(head: Tensor, position: int, config: Any, number: int) -> Tensor:
    """Rotary embedding of one head (head_dim,). Angles are float32 in Transformers whatever the model's dtype."""
    if config.model_type == "smollm3" and not config.no_rope_layers[number]:
        return head
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        rope = rope[config.layer_types[number]]
    half = int(head.shape[0] * rope.get("partial_rotary_factor", 1.0)) // 2
    powers = torch.arange(0, 2 * half, 2, dtype=torch.float32) / (2 * half)
    angles = position * (1.0 / rope["rope_theta"] ** powers)
    cos, sin = angles.cos().to(head.dtype), angles.sin().to(head.dtype)
    left, right, rest = head.split([half, half, head.shape[0] - 2 * half])
    return torch.cat([left * cos - right * sin, right * cos + left * sin, rest])


def feed_forward(mlp: Any, config: Any, x: Tensor) -> Tensor:
    """The MLP, or the weighted sum of those experts that the token's router likes best."""
    if not hasattr(mlp, "experts"):
        return mlp(x)
    shares = (mlp.gate.weight @ x).softmax(0)
    best = sorted(range(len(shares)), key=lambda i: -shares[i])[: config.num_experts_per_tok]
    total = sum(shares[i] for i in best) if getattr(config, "norm_topk_prob", True) else 1.0
    out = torch.zeros_like(x)
    for i in best:
        gate, up = (mlp.experts.gate_up_proj[i] @ x).chunk(2)
        out = out + shares[i] / total * (mlp.experts.down_proj[i] @ (gate * gate.sigmoid() * up))
    return out
