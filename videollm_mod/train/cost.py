"""What a training step takes, by formula: bytes kept for the backward pass, and FLOPs, for gated-MLP decoders.

With d = hidden_size, m = intermediate_size, H and G = heads of queries and of keys times head_dim, T = tokens that go
through a layer (`flops.kv_entries`), c = bytes of the arithmetic, s = bytes of the hidden states between layers. For
each token a layer keeps

    norms       2 * 4 d, and 2 s d more where their weights learn
    attention   c (2 H + 2 G): queries and keys as rotated, values, what comes out; a fused kernel keeps no weights
    MLP         c * 3 m: gate, its activation, up
    where the linear maps learn, what they read: c * 5 d (under autocast each has its own copy; else c * 2 d), c m
    LoRA        for each map d_in * (1 + c) + c r: the dropout's mask, what A reads, what B reads
    gate        s d of each kept token, for the product of score and update

The head keeps (c + 4 + 4) bytes per labelled position and word, and 4 d per token. With checkpointing a layer keeps its
input, s d of all tokens. In the backward pass, from the last layer to the first, one layer at a time keeps all of the
above besides, when the inputs of those behind it are gone; the head's part goes first. (So dense layers in between set
the peak of an interleaved plan: it is hardly below that of the dense model.)

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
    """Bytes kept for the backward pass of `streams` streams at a time; see above."""
    c, s, d = setting.compute, setting.hidden, config.hidden_size
    entries = flops.kv_entries(config, plan, sample.text, sample.frames, sample.tokens_per_frame)
    inner = [_layer_bytes(config, setting) * tokens for tokens in entries]
    if plan.gate_acts:
        for layer in plan.routed(config.num_hidden_layers):
            inner[layer] += s * d * entries[layer]
    head = sample.labels * config.vocab_size * (c + 4 + 4) + 4 * d * sample.tokens
    if not setting.checkpointing:
        return streams * (sum(inner) + head)
    inputs = s * d * sample.tokens
    return streams * max(len(inner) * inputs + head, *(n * inputs + own for n, own in enumerate(inner, start=1)))


def _layer_bytes(config: Any, setting: Setting) -> int:
    """Per token that goes through, but for the gate."""
    c, s, d, inner = setting.compute, setting.hidden, config.hidden_size, config.intermediate_size
    sizes = linear_maps(config)
    total = 2 * 4 * d + c * (2 * sizes["q_proj"][1] + 2 * sizes["k_proj"][1]) + 3 * c * inner
    if setting.adapter is None:
        return total + 2 * s * d + c * ((5 if setting.bf16 else 2) * d + inner)
    names = [name for name in setting.adapter.targets if name in sizes and name != "lm_head"]
    return total + sum(sizes[name][0] * (1 + c) + c * setting.adapter.rank for name in names)


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
