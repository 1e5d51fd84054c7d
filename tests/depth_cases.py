"""What the tests of `depth/` share: tiny decoders, conversations, and ways to run one over the other.

The weights are large and the experts' are not small, so that every choice and every gate shows in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from videollm_mod.depth import GATES, SCORERS, DepthPlan, RaggedCache, apply_depth, get_plan, remove_depth

BACKBONES = ("llama", "qwen3", "mistral")  # these go through every plan, scorer and gate; all of FAMILIES through some
LAYERS = 5
WINDOW = 8  # of those that slide, in tokens: shorter than the conversations
VOCABULARY = 61
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10}  # on hidden states before the final norm

PLANS = {
    "full": DepthPlan("full"),
    "all": DepthPlan("all", 0.4),
    "all-deep": DepthPlan("all-deep", 0.3, keep_last=True),
    "interleaved": DepthPlan("interleaved", 0.2),
    "interleaved-deep": DepthPlan("interleaved-deep", 0.5, reads="norm"),
    "early-exit": DepthPlan("early-exit"),
    "layer-skip": DepthPlan("layer-skip"),
    "list": DepthPlan((0, 2, 3), (0.7, 0.1, 0.3)),
}


NEAR = 1e-3  # scores less far apart may change places by rounding in single precision, where they are off by 1e-5


def variants(plan: DepthPlan) -> list[DepthPlan]:
    """The plan with every scorer and every gate; where no vision token is ever scored, with each of them once."""
    pairs = [(scorer, gate) for scorer in SCORERS for gate in GATES]
    if plan.layers in ("full", "early-exit", "layer-skip"):
        pairs = [(SCORERS[number % len(SCORERS)], gate) for number, gate in enumerate(GATES)]
    return [replace(plan, scorer=scorer, gate=gate) for scorer, gate in pairs]


# --- models ----------------------------------------------------------------------------------------------------------


LOCAL, GLOBAL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Family:
    """A decoder of Transformers, small and with all that is peculiar to it."""

    title: str
    peculiar: str  # for docs/backbones.md
    options: dict[str, Any]  # of its config, beyond what all have
    model_type: str = ""  # of Transformers, where it is not the family's name here
    experts: bool = False


FAMILIES = {
    "llama": Family("Llama", "the plain case", {}),
    "mistral": Family("Mistral", "a sliding window in every layer", dict(sliding_window=WINDOW)),
    "qwen2": Family(
        "Qwen2",
        "biases; a sliding window in the upper layers only",
        dict(use_sliding_window=True, sliding_window=WINDOW, max_window_layers=2),
    ),
    "qwen3": Family("Qwen3", "norms of each head's queries and keys", dict(head_dim=16)),
    "gemma3": Family(
        "Gemma 3",
        "local and global layers, each kind with its mask and rotary table; scaled embeddings; norms before and after",
        dict(
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=WINDOW,
            layer_types=[LOCAL, GLOBAL, LOCAL, LOCAL, GLOBAL],
            tie_word_embeddings=False,
        ),
        model_type="gemma3_text",
    ),
    "phi3": Family(
        "Phi-3",
        "fused projections; rotates half of each head",
        dict(rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=0.5)),
    ),
    "olmo2": Family("OLMo 2", "norms after attention and MLP, none before", {}),
    "smollm3": Family("SmolLM3", "layers without rotary embedding", dict(no_rope_layers=[1, 0, 1, 1, 0])),
    "granite": Family(
        "Granite",
        "multipliers of embeddings, attention, residuals and logits",
        dict(embedding_multiplier=1.5, attention_multiplier=0.3, residual_multiplier=0.6, logits_scaling=2.0),
    ),
    "mixtral": Family(
        "Mixtral", "a mixture of experts in every layer", dict(num_local_experts=4, num_experts_per_tok=2), experts=True
    ),
    "qwen3_moe": Family(
        "Qwen3-MoE",
        "mixtures of experts, and layers without",
        dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, mlp_only_layers=[2]),
        experts=True,
    ),
}


@dataclass(frozen=True)
class Refused:
    """A model that cannot be routed, and the word by which it is told why."""

    model_type: str
    told: str
    options: dict[str, Any]
    seq2seq: bool = False


REFUSED = {
    "Mamba": Refused("mamba", "its state needs every token", dict(num_hidden_layers=2)),
    "Jamba": Refused("jamba", "its state needs every token", dict(num_hidden_layers=2)),
    "RecurrentGemma": Refused("recurrent_gemma", "its state needs every token", dict(num_hidden_layers=3)),
    "Qwen3-Next": Refused("qwen3_next", "'linear_attention': its state needs", dict(num_hidden_layers=4)),
    "Falcon-H1": Refused("falcon_h1", "its state needs every token", dict(num_hidden_layers=2)),
    "LFM2": Refused(
        "lfm2",
        "'conv': its state needs every token",
        dict(num_hidden_layers=2, layer_types=["conv", "full_attention"]),
    ),
    "MiniMax": Refused("minimax", "'linear_attention': its state needs", dict(num_hidden_layers=2)),
    "DeepSeek-V3.2": Refused("deepseek_v32", "'indexed_attention'", dict(num_hidden_layers=2)),
    "Gemma 3n": Refused("gemma3n_text", "'per_layer_input'", dict(num_hidden_layers=5, num_kv_shared_layers=0)),
    "Gemma 3 for embeddings": Refused(
        "gemma3_text", "in both directions", dict(num_hidden_layers=2, use_bidirectional_attention=True)
    ),
    "T5": Refused("t5", "is an encoder-decoder", dict(num_layers=2), seq2seq=True),
    "BART's decoder": Refused("bart", "'encoder_hidden_states'", dict(decoder_layers=2)),
    "GPT-2": Refused("gpt2", "no list 'layers'", dict(n_layer=2)),
}


def refused_model(name: str) -> PreTrainedModel:
    """Of the size it has by default, but without weights."""
    refused = REFUSED[name]
    config = CONFIG_MAPPING[refused.model_type](**refused.options)
    with torch.device("meta"):
        return (AutoModelForSeq2SeqLM if refused.seq2seq else AutoModelForCausalLM).from_config(config)


def tiny_model(backbone: str, dtype: torch.dtype, attention: str = "sdpa", **sizes: Any) -> PreTrainedModel:
    """A decoder of 5 layers with grouped queries and large random weights, in eval mode; `sizes` replace the config's.

    In double precision it is double all through: see `ExactNorm`.
    """
    family = FAMILIES[backbone]
    shared: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config = CONFIG_MAPPING[family.model_type or backbone](**(shared | family.options | sizes))
    torch.manual_seed(0)
    # the default way of running experts knows no double
    experts = dict(experts_implementation="eager") if family.experts and dtype == torch.float64 else {}
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention, **experts)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()
        embeddings.weight.normal_()
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.normal_(1, 0.3)
    if dtype == torch.float64:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.__class__ = ExactNorm
            elif "RMSNorm" in type(module).__name__:
                module.__class__ = ExactGemmaNorm
            elif "Router" in type(module).__name__:
                module.__class__ = ExactRouter
    return model.to(dtype).eval()


class ExactNorm(nn.Module):
    """RMSNorm in the dtype it is given. Transformers' own computes in float32 whatever the model is in, which flattens
    slopes, and turns a difference of 1e-15 into one of 1e-7 where it falls on the edge of a rounding.
    """

    weight: Tensor
    variance_epsilon: float

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


class ExactGemmaNorm(nn.Module):
    """The same for Gemma's, whose weights are deviations from one."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.weight) * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()


class ExactRouter(nn.Module):
    """The same for the choice of experts, by Mixtral and by Qwen3-MoE."""

    weight: Tensor
    top_k: int

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = nn.functional.linear(x.reshape(-1, x.shape[-1]), self.weight)  # (tokens, experts)
        shares, experts = logits.softmax(-1).topk(self.top_k, dim=-1)
        if getattr(self, "norm_topk_prob", True):
            shares = shares / shares.sum(-1, keepdim=True)
        return logits, shares, experts


@contextmanager
def routed(model: PreTrainedModel, plan: DepthPlan, seed: int = 0, strength: float = 0.5) -> Iterator[PreTrainedModel]:
    """The model routed by the plan, with strongly opinionated experts; the plain model again at the end."""
    apply_depth(model, plan)
    shake_experts(model, seed, strength)
    try:
        yield model
    finally:
        remove_depth(model)


def shake_experts(model: PreTrainedModel, seed: int = 0, strength: float = 0.5) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.get_decoder().layers:
            if hasattr(layer, "depth_expert"):
                for weight in layer.depth_expert.parameters():
                    weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * strength)


# --- conversations ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Conversation:
    """One row of tokens: for each the number of its frame, or -1 for text."""

    frame_index: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def index(self) -> Tensor:
        """(1, tokens) int64"""
        return torch.tensor([self.frame_index])

    @property
    def borders(self) -> list[int]:
        """Where a stream may be cut into steps: anywhere but inside a frame."""
        f = self.frame_index
        return [i for i in range(1, len(f)) if f[i] < 0 or f[i] != f[i - 1]]

    @property
    def turns(self) -> list[int]:
        """The borders between frames, and between frames and text: the natural steps."""
        f = self.frame_index
        return [i for i in range(1, len(f)) if f[i] != f[i - 1]]

    @property
    def frames(self) -> list[int]:
        return sorted({number for number in self.frame_index if number >= 0})

    def steps(self, borders: Iterable[int]) -> list[slice]:
        cuts = [0, *borders, len(self)]
        return [slice(a, b) for a, b in zip(cuts, cuts[1:])]

    def ids(self, seed: int = 0) -> Tensor:
        """(1, tokens) random token ids; vision tokens are ids too, here"""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(1, VOCABULARY, (1, len(self)), generator=generator)


def talk(words: str) -> Conversation:
    """`talk("3t 10 5 2t")` is three text tokens, a frame of ten vision tokens, one of five, two text tokens."""
    index: list[int] = []
    for word in words.split():
        index += [-1] * int(word[:-1]) if word.endswith("t") else [max([-1, *index]) + 1] * int(word)
    return Conversation(tuple(index))


TALK = talk("2t 10 5 2t 1 10 10 2t")  # longer than the sliding window
STEPS = [2, 19, 20, 30]  # text | two frames and a question | a frame | a frame | a frame and text
SHORT = talk("1t 10 3t 1 5 1t")


@st.composite
def conversations(draw: st.DrawFn, longest: int = 90) -> Conversation:
    """System text, frames of 1, 5, 10 and 50 tokens mixed, questions in between, text after; any of it may lack."""
    index = [-1] * draw(st.integers(0, 4))
    number = draw(st.integers(0, 3))
    for size in draw(st.lists(st.sampled_from([10, 5, 1, 50]), min_size=1, max_size=6)):
        if len(index) + size > longest:
            continue
        index += [number] * size + [-1] * draw(st.integers(0, 3))
        number += draw(st.integers(1, 3))  # frames may have been dropped
    return Conversation((*index, *[-1] * draw(st.integers(0 if index else 1, 4))))


@st.composite
def cuts(draw: st.DrawFn, conversation: Conversation) -> list[int]:
    """Random borders that split no frame."""
    return sorted(draw(st.sets(st.sampled_from(conversation.borders)))) if conversation.borders else []


@st.composite
def plans(draw: st.DrawFn) -> DepthPlan:
    """Any plan for 5 layers, baselines and explicit lists included."""
    layers = draw(st.sampled_from([*(name for name in PLANS if name != "list"), (0, 2, 3), (1, 4)]))
    ratio = st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0])
    keep = draw(ratio if isinstance(layers, str) else st.tuples(*[ratio] * len(layers)))
    return DepthPlan(
        layers,
        keep,
        scorer=draw(st.sampled_from(SCORERS)),
        gate=draw(st.sampled_from(GATES)),
        keep_last=draw(st.booleans()),
        exit_after=draw(st.sampled_from([None, 0, 1, LAYERS])) if layers == "early-exit" else None,
        seed=draw(st.integers(0, 9)),
    )


def given_scores(ids: Tensor) -> Tensor:
    """Scores from outside, for the scorer of that name: some number for each token, and often the same."""
    return (ids * 37 % 23).double()


# --- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What came out of one pass, or of a stream put together."""

    hidden: Tensor  # (batch, tokens, d) before the final norm
    kept: dict[int, Tensor]  # routed layer -> (batch, tokens) bool
    cache: RaggedCache | None


@torch.no_grad()
def run(model: PreTrainedModel, ids: Tensor, frame_index: Tensor | None, **kwargs: Any) -> Pass:
    """One forward of the decoder over ids (batch, tokens), watched before its final norm."""
    decoder = model.get_decoder()
    seen: list[Tensor] = []
    kept: dict[int, Tensor] = {}
    hook = decoder.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        out = decoder(input_ids=ids, frame_index=frame_index, token_scores=given_scores(ids), kept_out=kept, **kwargs)
    finally:
        hook.remove()
    return Pass(seen[0], kept, out.past_key_values)


def stream(
    model: PreTrainedModel, ids: Tensor, conversation: Conversation, borders: Sequence[int], cache: Any = None
) -> Pass:
    """The conversation step by step, cut at `borders`, with one cache."""
    parts = []
    for step in conversation.steps(borders):
        parts.append(run(model, ids[:, step], conversation.index[:, step], past_key_values=cache, use_cache=True))
        cache = parts[-1].cache
    layers = parts[0].kept
    return Pass(
        torch.cat([part.hidden for part in parts], dim=1),
        {layer: torch.cat([part.kept[layer] for part in parts], dim=1) for layer in layers},
        cache,
    )


def clear(model: PreTrainedModel, ids: Tensor, talked: Conversation) -> bool:
    """Whether no choice of the routed model in this conversation hangs on the rounding of single precision.

    There a sum of other shape, in a step or in a batch, is off by 1e-5, and of two tokens with nearly the same score
    the other may be kept: a different token, not a small difference, and no fault. Only a learned score can be near
    another. The very same token twice in a frame is no near-tie: both have one score, and the first is kept.
    """
    plan, scores = get_plan(model), {}
    if model.dtype == torch.float64 or plan is None or plan.scorer != "learned":
        return True
    for layer, kept in run(model, ids, talked.index, scores_out=scores).kept.items():
        for number in talked.frames:
            frame = talked.index[0] == number
            stays = kept[0, frame]
            if plan.keep_last:  # whatever its score
                frame[frame.nonzero()[-1]], stays = False, stays[:-1]
            if stays.any() and not stays.all():
                own = scores[layer][0, frame]
                if 0 < own[stays].min() - own[~stays].max() < NEAR:
                    return False
    return True


def far(a: Tensor, b: Tensor) -> float:
    """The greatest difference; infinite if there is a NaN."""
    difference = (a - b).abs().max().item() if a.numel() else 0.0
    return float("inf") if difference != difference else difference


def same_kept(a: dict[int, Tensor], b: dict[int, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[layer], b[layer]) for layer in a)


def right_padded(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    """Rows (1, tokens) of different length as one tensor (batch, longest)."""
    return torch.nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True, padding_value=value)


def left_padded(rows: Sequence[Tensor], value: int = 0) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(
        [row[0] for row in rows], batch_first=True, padding_value=value, padding_side="left"
    )


def padded_steps(talks: list[Conversation], borders: list[list[int]], ids: list[Tensor]) -> list[dict[str, Tensor]]:
    """Rows that stream side by side, step by step: in each step the shorter ones are padded on the right."""
    count = max(len(own) for own in borders) + 1
    steps = [talked.steps(own) for talked, own in zip(talks, borders)]
    steps = [own + [slice(len(talked), len(talked))] * (count - len(own)) for own, talked in zip(steps, talks)]
    return [
        dict(
            ids=right_padded([row[:, own[i]] for row, own in zip(ids, steps)]),
            frame_index=right_padded([talked.index[:, own[i]] for talked, own in zip(talks, steps)], -1),
            real=right_padded([torch.ones_like(row[:, own[i]]) for row, own in zip(ids, steps)]),
            position_ids=right_padded([torch.arange(row.shape[1])[None, own[i]] for row, own in zip(ids, steps)]),
        )
        for i in range(count)
    ]


def stream_batch(model: PreTrainedModel, steps: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor, RaggedCache]:
    """Hidden states (batch, all steps' tokens, d), the mask of real tokens (batch, all steps' tokens), the cache."""
    real, hidden, cache = steps[0]["real"][:, :0], [], None
    for step in steps:
        real = torch.cat([real, step["real"]], dim=1)
        rest = {key: value for key, value in step.items() if key != "real"}
        part = run(model, **rest, attention_mask=real, past_key_values=cache)
        hidden.append(part.hidden)
        cache = part.cache
    assert cache is not None
    return torch.cat(hidden, dim=1), real.bool(), cache


def assert_checkpointing_changes_no_gradient(model: PreTrainedModel, loss: Callable[[], Tensor]) -> None:
    """The gradients of a routed model in double precision, with its layers computed once and again."""
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.zero_grad()
        loss().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and any("depth_expert" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert far(gradient, gradients[1][name]) < 1e-10, name
