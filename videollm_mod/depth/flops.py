"""What a plan costs on a decoder: FLOPs of one pass, of a training step and of streaming, and the KV cache's size.

Two FLOPs per multiply-add, matrix products only, attention as the full rectangle of queries x keys: what PyTorch's
FlopCounterMode counts, to the FLOP (but for the padding of few rows on CPUs, see layout.py). For gated-MLP decoders
(Llama, Qwen, Mistral) and mixtures of experts (Mixtral, Qwen3-MoE), here with d = hidden_size, m = intermediate_size,
h and g = heads of queries and of keys, e = head_dim. `plan` None is the dense model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from videollm_mod.depth.plan import GRADIENT_GATES, DepthPlan, keep_count
from videollm_mod.types import InputError

DENSE = DepthPlan(layers="full")


@dataclass(frozen=True)
class Step:
    """What goes through the model in one forward, batch 1."""

    text: int = 0  # tokens that are no vision: prompt, interval tokens, words
    frames: tuple[int, ...] = ()  # vision tokens of each frame
    logits: int = 0  # positions at which the vocabulary's logits are computed

    @property
    def tokens(self) -> int:
        return self.text + sum(self.frames)


def frame_sizes(frames: int | Sequence[int], tokens_per_frame: int | None = None) -> tuple[int, ...]:
    """Vision tokens of each frame, from `frames` x `tokens_per_frame` or from the list of sizes itself."""
    if isinstance(frames, int):
        if tokens_per_frame is None:
            raise InputError(f"{frames} frames of how many tokens? Give tokens_per_frame, or a list of frame sizes.")
        return (tokens_per_frame,) * frames
    return tuple(frames)


def stream_steps(text: int, frames: int | Sequence[int], tokens_per_frame: int | None = None) -> list[Step]:
    """A silent stream: the prompt's `text` tokens, then a step per frame, its interval token with it, and one logit."""
    return [Step(text)] * (text > 0) + [Step(1, (size,), 1) for size in frame_sizes(frames, tokens_per_frame)]


# --- KV cache --------------------------------------------------------------------------------------------------------


def kv_entries(
    config: Any,
    plan: DepthPlan | None,
    text: int,
    frames: int | Sequence[int] = 0,
    tokens_per_frame: int | None = None,
) -> tuple[int, ...]:
    """Entries that each layer's cache holds, which are the tokens that went through it: text + sum of ceil(r n)."""
    sizes = frame_sizes(frames, tokens_per_frame) if frames else ()
    count = {size: sizes.count(size) for size in set(sizes)}
    return tuple(
        text + sum(many * (size if ratio is None else keep_count(ratio, size)) for size, many in count.items())
        for ratio in (plan or DENSE).ratios(_text_config(config).num_hidden_layers)
    )


def kv_bytes(
    config: Any,
    plan: DepthPlan | None,
    text: int,
    frames: int | Sequence[int] = 0,
    tokens_per_frame: int | None = None,
    bytes_per_value: int = 2,
) -> int:
    """Bytes of keys and values in all layers, for one stream: 2 g e values per entry."""
    _, kv_heads, head_dim = _heads(config)
    return sum(kv_entries(config, plan, text, frames, tokens_per_frame)) * 2 * kv_heads * head_dim * bytes_per_value


# --- FLOPs -----------------------------------------------------------------------------------------------------------


def step_flops(config: Any, plan: DepthPlan | None, step: Step, past: Sequence[int] | None = None) -> int:
    """FLOPs of one forward; `past`: the entries per layer that the cache already holds, as `kv_entries` gives them."""
    config, plan = _text_config(config), plan or DENSE
    layers, d = config.num_hidden_layers, config.hidden_size
    heads, kv_heads, head_dim = _heads(config)
    attention = 2 * d * heads * head_dim + 2 * d * kv_heads * head_dim  # q, o; k, v

    flops = _choice_flops(config, plan, step) + 2 * d * config.vocab_size * step.logits
    if plan.gate not in GRADIENT_GATES:  # which do nothing without a gradient
        flops += _gate_flops(config, plan, step)
    kept = kv_entries(config, plan, step.text, step.frames)
    for layer, (queries, keys) in enumerate(zip(kept, past or [0] * layers)):
        weights = attention + _mlp_weights(config, layer)
        flops += 2 * weights * queries  # every weight meets every token that goes through
        flops += 2 * 2 * heads * head_dim * queries * (keys + queries)  # queries x keys, and weights x values
    return flops


def forward_flops(
    config: Any,
    plan: DepthPlan | None,
    text: int,
    frames: int | Sequence[int] = 0,
    tokens_per_frame: int | None = None,
    logits: int = 0,
) -> int:
    """FLOPs of one pass over `text` text tokens and the frames, with an empty cache, in whatever order they stand."""
    sizes = frame_sizes(frames, tokens_per_frame) if frames else ()
    return step_flops(config, plan, Step(text, sizes, logits))


def train_flops(
    config: Any,
    plan: DepthPlan | None,
    text: int,
    frames: int | Sequence[int] = 0,
    tokens_per_frame: int | None = None,
    logits: int = 0,
) -> int:
    """FLOPs of one training step of all weights from token ids: forward + backward, optimiser excluded.

    A matrix product costs twice its forward in the backward pass (gradients of both factors), so 3 x forward, except
    for the experts' choice, which has no gradient. Attention weights are taken as kept in memory: kernels that compute
    them again (flash) need 3.5 instead of 3 there; checkpointing adds a forward of all layers.
    """
    sizes = frame_sizes(frames, tokens_per_frame) if frames else ()
    step = Step(text, sizes, logits)
    flops = 3 * step_flops(config, plan, step)
    if plan is not None:
        flops -= 2 * _choice_flops(config, plan, step)
        if plan.gate in GRADIENT_GATES:
            passes = 2 if plan.gate == "salience" else 3  # its expert's gradient goes no further
            flops += passes * _gate_flops(config, plan, step)
    return flops


def stream_flops(config: Any, plan: DepthPlan | None, steps: Iterable[Step]) -> int:
    """FLOPs of a stream taken in steps, each attending to what the cache holds then; see `stream_steps`."""
    flops, past = 0, [0] * _text_config(config).num_hidden_layers
    for step in steps:
        flops += step_flops(config, plan, step, past)
        past = [old + new for old, new in zip(past, kv_entries(config, plan, step.text, step.frames))]
    return flops


def _choice_flops(config: Any, plan: DepthPlan, step: Step) -> int:
    """To choose, a LayerExpert scores every token of a step that has vision, 2 d each, where not all are kept."""
    config = _text_config(config)
    if plan.scorer != "learned" or not step.frames:
        return 0
    choosing = [ratio for ratio in plan.ratios(config.num_hidden_layers) if ratio is not None and 0 < ratio < 1]
    return 2 * config.hidden_size * step.tokens * len(choosing)


def _gate_flops(config: Any, plan: DepthPlan, step: Step) -> int:
    """To gate, it scores all that goes through the layer, 2 d each."""
    config = _text_config(config)
    if plan.gate == "identity" or not plan.has_experts or not step.frames:
        return 0
    kept = kv_entries(config, plan, step.text, step.frames)
    return 2 * config.hidden_size * sum(kept[layer] for layer in plan.routed(config.num_hidden_layers))


def _mlp_weights(config: Any, layer: int) -> int:
    """Weights that a token meets in a layer's MLP: gate, up and down, of one MLP or of the experts it is sent to."""
    d = config.hidden_size
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    dense = layer in (getattr(config, "mlp_only_layers", None) or ())
    if not experts or dense or (layer + 1) % (getattr(config, "decoder_sparse_step", None) or 1):
        return 3 * d * int(config.intermediate_size)
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    return 3 * d * int(inner) * int(config.num_experts_per_tok) + d * int(experts)  # and the router


def _heads(config: Any) -> tuple[int, int, int]:
    """Heads of queries, heads of keys and values, head_dim."""
    config = _text_config(config)
    heads = config.num_attention_heads
    return heads, config.num_key_value_heads, getattr(config, "head_dim", None) or config.hidden_size // heads


def _text_config(config: Any) -> Any:
    """A Transformers config of a decoder, or the decoder's part of a multimodal one."""
    return config.get_text_config()
