"""What a training step takes, by formula: peak bytes of activations, and FLOPs, for gated-MLP decoders.

With d = hidden_size, m = intermediate_size, H and G = heads of queries and of keys times head_dim, T = tokens that go
through a layer (`flops.kv_entries`), c = bytes of the arithmetic, s = bytes of the hidden states between layers. For
each token a layer keeps

    norms       2 * 4 d, and 2 s d more where their weights learn
    attention   c (2 H + 2 G): queries and keys as rotated, values, what comes out; a fused kernel keeps no weights
    MLP         c * 3 m: gate, its activation, up
    where the linear maps learn, what they read: c * 5 d (under autocast each has its own copy; else c * 2 d), c m
    LoRA        for each map c d_in + c r, what A reads and what B reads; with dropout d_in more, a mask of bytes (on a
                CPU 4 d_in, a mask of numbers)
    gate        s d of each kept token, for the product of score and update; twice for `salience`, which multiplies what
                goes into attention, too

The head keeps (c + 4 + 4) bytes per labelled position and word, and 4 d per token. Autocast keeps a copy, c bytes each,
of the weights that learn in linear maps.

In the backward pass, from the last layer to the first, the layer at work has gradients in flight besides, most of them
in its MLP: 2 c m per token; where LoRA is on its way down m (2 c + 4), twice the 4 with dropout, since A reads float32.
What the layers behind it kept is gone by then; the head's part goes first.

With checkpointing a layer keeps its input, s d of all tokens, and all of the above only while it is at work. (So dense
layers in between set the peak of an interleaved plan: it is hardly below that of the dense model.)

FLOPs are those of `depth.flops`; what does not learn costs no gradient of weights, and checkpointing computes the
layers once more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from videollm_mod.adapters import LoraSettings
from videollm_mod.depth import DepthPlan, flops


@dataclass(frozen=True)
class Sample:
    """The shape of one stream with its conversation."""

    frames: int
    tokens_per_frame: int
    text: int  # tokens that are no vision, the interval tokens among them
    labels: int  # positions at which something is learned

    @property
    def vision(self) -> int:
        return self.frames * self.tokens_per_frame

    @property
    def tokens(self) -> int:
        return self.vision + self.text


@dataclass(frozen=True)
class Setting:
    """How a decoder is trained."""

    adapter: LoraSettings | None  # None: all of its weights learn
    checkpointing: bool
    bf16: bool  # arithmetic

    @property
    def compute(self) -> int:
        return 2 if self.bf16 else 4

    @property
    def hidden(self) -> int:
        """Bytes of a hidden state's number: frozen weights are bf16 themselves, others float32 under autocast."""
        return 2 if self.bf16 and self.adapter is not None else 4


def linear_maps(config: Any) -> Mapping[str, tuple[int, int]]:
    """A decoder layer's linear maps: name -> (inputs, outputs); and the head."""
    d, inner = config.hidden_size, config.intermediate_size
    head_dim = getattr(config, "head_dim", None) or d // config.num_attention_heads
    queries, keys = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    return {
        "q_proj": (d, queries),
        "k_proj": (d, keys),
        "v_proj": (d, keys),
        "o_proj": (queries, d),
        "gate_proj": (d, inner),
        "up_proj": (d, inner),
        "down_proj": (inner, d),
        "lm_head": (d, config.vocab_size),
    }


def adapter_parameters(config: Any, adapter: LoraSettings) -> int:
    """Numbers in A and B of all layers and of the head: r (inputs + outputs) each."""
    sizes = linear_maps(config)
    each = {name: adapter.rank * sum(sizes[name]) for name in adapter.targets if name in sizes}
    head = each.pop("lm_head", 0)
    return config.num_hidden_layers * sum(each.values()) + head


def activation_bytes(config: Any, plan: DepthPlan, sample: Sample, setting: Setting, streams: int = 1) -> int:
    """Peak bytes of a step of `streams` streams at a time, beyond weights, their gradients and AdamW's state."""
    s, d = setting.hidden, config.hidden_size
    entries = flops.kv_entries(config, plan, sample.text, sample.frames, sample.tokens_per_frame)
    inner = [_layer_bytes(config, setting) * tokens for tokens in entries]
    if plan.gate_acts:
        for layer in plan.routed(config.num_hidden_layers):
            inner[layer] += (2 if plan.gate == "salience" else 1) * s * d * entries[layer]
    flying = [_gradient_bytes(config, setting) * tokens for tokens in entries]
    head = sample.labels * config.vocab_size * (setting.compute + 4 + 4) + 4 * d * sample.tokens
    copies = _copied_bytes(config, setting)
    every = sum(copies.values()) + (len(inner) - 1) * copies["layer"]
    if not setting.checkpointing:
        at_work = max(sum(inner[: n + 1]) + own for n, own in enumerate(flying))
        return every + streams * max(sum(inner) + head, at_work)
    inputs = s * d * sample.tokens
    at_work = max((n + 1) * inputs + own + flown for n, (own, flown) in enumerate(zip(inner, flying)))
    return max(every + streams * (len(inner) * inputs + head), copies["layer"] + streams * at_work)


def _layer_bytes(config: Any, setting: Setting) -> int:
    """Per token that goes through, but for the gate."""
    c, s, d, inner = setting.compute, setting.hidden, config.hidden_size, config.intermediate_size
    sizes = linear_maps(config)
    total = 2 * 4 * d + c * (2 * sizes["q_proj"][1] + 2 * sizes["k_proj"][1]) + 3 * c * inner
    if setting.adapter is None:
        return total + 2 * s * d + c * ((5 if setting.bf16 else 2) * d + inner)
    mask = 1 if setting.adapter.dropout else 0
    names = [name for name in setting.adapter.targets if name in sizes and name != "lm_head"]
    return total + sum(sizes[name][0] * (mask + c) + c * setting.adapter.rank for name in names)


def _gradient_bytes(config: Any, setting: Setting) -> int:
    """Of gradients on their way through a layer, per token that goes through."""
    through_adapter = 0
    if setting.adapter is not None and "down_proj" in setting.adapter.targets and setting.bf16:
        through_adapter = 8 if setting.adapter.dropout else 4
    return (2 * setting.compute + through_adapter) * int(config.intermediate_size)


def _copied_bytes(config: Any, setting: Setting) -> dict[str, int]:
    """Autocast's copies of the weights that learn, in linear maps: of a layer, and of the head."""
    if not setting.bf16:
        return {"layer": 0, "head": 0}
    sizes, adapter = linear_maps(config), setting.adapter
    if adapter is None:
        each = {name: inputs * outputs for name, (inputs, outputs) in sizes.items()}
    else:
        each = {name: adapter.rank * sum(sizes[name]) for name in adapter.targets if name in sizes}
    head = each.pop("lm_head", 0)
    return {"layer": 2 * sum(each.values()), "head": 2 * head}


def decoder_flops(config: Any, plan: DepthPlan, sample: Sample, setting: Setting) -> int:
    """FLOPs of one stream, forward and backward, of the decoder and its head."""
    shape = (sample.text, sample.frames, sample.tokens_per_frame)
    layers = flops.forward_flops(config, plan, *shape)
    if setting.adapter is None:
        total = flops.train_flops(config, plan, *shape, logits=sample.labels)
        return total + (layers if setting.checkpointing else 0)
    sizes, rank = linear_maps(config), setting.adapter.rank
    entries = flops.kv_entries(config, plan, *shape)
    low_rank = {name: 2 * rank * sum(sizes[name]) for name in setting.adapter.targets if name in sizes}
    head = low_rank.pop("lm_head", 0) * sample.labels
    inside = sum(low_rank.values()) * sum(entries)
    # frozen weights need no gradient, and a product with them costs one forward less; in attention both factors do
    attention = sum(4 * sizes["q_proj"][1] * tokens**2 for tokens in entries)
    total = 2 * flops.forward_flops(config, plan, *shape, logits=sample.labels) + attention + 3 * (inside + head)
    return total + (layers + inside if setting.checkpointing else 0)
