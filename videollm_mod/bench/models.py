"""Who competes in `bench depth`, `train` and `stream`: decoders on the very same random weights, each with its plan.

How long a step takes depends on shapes alone, so nothing is trained and no weight is read. `dense` is our own dense
path, the plan `full`; `transformers` is the untouched model with Transformers' own DynamicCache.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, PreTrainedModel

from videollm_mod.attention import use_stream_attention
from videollm_mod.bench.llms import causal_config
from videollm_mod.bench.measure import free_memory
from videollm_mod.depth import DepthPlan, RaggedCache, apply_depth, flops
from videollm_mod.depth.cache import RaggedLayer
from videollm_mod.depth.plan import parse_layers
from videollm_mod.depth.swap import find_decoder
from videollm_mod.packed import pack_linears
from videollm_mod.types import InputError

Model = TypeVar("Model", bound=PreTrainedModel)
DENSE, UNTOUCHED = "dense", "transformers"


@dataclass(frozen=True)
class Competitor:
    """A decoder with its head, and the plan that routes it; None: as Transformers has it."""

    name: str
    model: Any  # a Transformers causal LM
    plan: DepthPlan | None


def parse_route(word: str) -> DepthPlan:
    """A plan from a word of `--routes`: "interleaved@0.2", "1,3@0.5", "early-exit". Raises InputError."""
    layers, _, keep = word.partition("@")
    named = parse_layers(layers)
    assert named is not None  # only None stays None
    try:
        ratio = float(keep) if keep else 0.2
    except ValueError as error:
        raise InputError(f"--routes '{word}' is not LAYERS@KEEP; write for example interleaved@0.2.") from error
    return DepthPlan(named, ratio)


def competitors(
    config: Any, routes: dict[str, DepthPlan], device: str = "cpu", dtype: str = "float32"
) -> list[Competitor]:
    """Transformers' own, ours dense, and ours routed by each plan; ours stream as in a session."""
    first = random_decoder(config, device, dtype)
    made = [Competitor(UNTOUCHED, first.eval(), None)]
    for name, plan in {DENSE: DepthPlan("full"), **routes}.items():
        made.append(Competitor(name, as_in_a_session(apply_depth(on_the_same_weights(first), plan)), plan))
    return made


def random_decoder(config: Any, device: str, dtype: str) -> Any:
    """A causal LM with random weights on a device. Raises InputError where they do not fit."""
    with torch.device("meta"):
        numbers = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    needed, free = numbers * getattr(torch, dtype).itemsize, free_memory(device)
    if needed > free:
        raise InputError(
            f"the decoder's weights take {needed / 2**30:.1f} GiB in {dtype}, of which {free / 2**30:.1f} are free on "
            f"{device}; give a smaller --llm, or another --dtype."
        )
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def as_in_a_session(model: Model) -> Model:
    """With all that a StreamSession does to a model for speed."""
    return use_stream_attention(pack_linears(model))


def on_the_same_weights(model: Model) -> Model:
    """Another model of the same class that shares every parameter and buffer, and so the gradients."""
    with torch.device("meta"):  # its own would only be thrown away
        twin = type(model)(type(model.config)(**model.config.to_dict()))
    for name, module in model.named_modules():
        own = twin.get_submodule(name)
        own._parameters.update(module._parameters)
        own._buffers.update(module._buffers)
    return twin.train(model.training)


@dataclass
class Stream:
    """A stream that is `frame` frames old. `step` takes it one frame further."""

    model: Any  # a causal LM
    cache: Any  # RaggedCache or DynamicCache
    tokens: int
    frame: int
    depth: bool  # whether the decoder knows `frame_index`
    logits: bool = False  # whether the head is asked for a decision, too

    @torch.inference_mode()
    def step(self) -> None:
        decoder = find_decoder(self.model)
        like = next(self.model.parameters())
        embeds = torch.randn(1, self.tokens + 1, decoder.config.hidden_size, device=like.device, dtype=like.dtype)
        inputs: dict[str, Any] = {"inputs_embeds": embeds, "past_key_values": self.cache, "use_cache": True}
        if self.depth:
            inputs["frame_index"] = torch.tensor([[self.frame] * self.tokens + [-1]])
        if self.logits:
            self.model(**inputs, logits_to_keep=1)
        else:
            decoder(**inputs)
        self.frame += 1

    @classmethod
    def filled(cls, model: Any, tokens: int, frames: int, plan: DepthPlan | None, *, logits: bool = False) -> Stream:
        """A routed or dense stream, as old as said, of random keys and values.

        Streaming there would take longer than everything else together, and leave caches of the very same sizes. Kept
        places are evenly spaced.
        """
        like = next(model.parameters())
        cache = RaggedCache(model.config.num_hidden_layers)
        # in two goes, so that the buffers have room to grow, as they do on the way
        for first, last in ((0, 3 * frames // 4), (3 * frames // 4, frames)):
            entries = flops.kv_entries(model.config, plan, last - first, last - first, tokens)
            span = (last - first) * (tokens + 1)
            for layer, count in zip(cache.layers, entries):
                assert isinstance(layer, RaggedLayer)
                slots = first * (tokens + 1) + torch.arange(count, device=like.device) * span // max(count, 1)
                layer.expect(span, slots[None], [count])
                if count:
                    layer.update(*_random_entries(model.config, count, like))
        return cls(model, cache, tokens, frames, depth=True, logits=logits)

    @classmethod
    def untouched(cls, model: Any, tokens: int, frames: int, *, logits: bool = False) -> Stream:
        """The same for Transformers' own cache: all layers full."""
        cache, like = DynamicCache(), next(model.parameters())
        for layer in range(model.config.num_hidden_layers if frames else 0):
            cache.update(*_random_entries(model.config, frames * (tokens + 1), like), layer)
        return cls(model, cache, tokens, frames, depth=False, logits=logits)

    @classmethod
    def of(cls, competitor: Competitor, tokens: int, frames: int) -> Stream:
        """A competitor's stream of that age, with a decision at each frame."""
        if competitor.plan is None:
            return cls.untouched(competitor.model, tokens, frames, logits=True)
        return cls.filled(competitor.model, tokens, frames, competitor.plan, logits=True)


def fill_up(cache: RaggedCache) -> None:
    """Cut the growing room off all buffers, so that the next step must make them grow."""
    for layer in cache.layers:
        used = max(layer.lengths, default=0)
        if layer.slots is not None and layer.is_initialized:
            layer.slots = layer.slots[:, :used]
            layer.keys, layer.values = (buffer[:, :, :used] for buffer in layer._buffers())


def _random_entries(config: Any, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, (1, heads, count, head_dim): one random entry, repeated, because to draw them all takes long."""
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    keys, values = torch.randn(2, 1, config.num_key_value_heads, 1, head_dim, device=like.device, dtype=like.dtype)
    return keys.expand(-1, -1, count, -1), values.expand(-1, -1, count, -1)


def training_sample(frames: int, tokens: int, text: int, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Random ids and the frame index, (1, all tokens) int64 each: frames with an interval token each, then text."""
    index = [*chain.from_iterable([number] * tokens + [-1] for number in range(frames)), *[-1] * text]
    return torch.randint(vocabulary, (1, len(index))), torch.tensor([index])


def train_step(model: Any, ids: Tensor, index: Tensor, *, depth: bool = True, all_logits: bool = False) -> None:
    """Forward and backward. Labels stand at text tokens; the logits that predict them are one position earlier.

    ids, index: (1, tokens) int64. With `all_logits` the head is asked at every position, as most training code does.
    """
    labelled = (index[0] < 0).nonzero().squeeze(1).to(ids.device)
    asked = {"frame_index": index} if depth else {}
    hidden = find_decoder(model)(input_ids=ids, use_cache=False, **asked).last_hidden_state
    before = (labelled - 1).clamp(min=0)
    if all_logits:
        logits = model.lm_head(hidden[0])[before]  # (tokens, vocabulary) -> (labels, vocabulary)
    else:
        logits = model.lm_head(hidden[0, before])  # (labels, vocabulary)
    nn.functional.cross_entropy(logits, ids[0, labelled]).backward()


def weights_read(model: Any) -> int:
    """Bytes of weights that a step reads: all but the table of embeddings, unless that is the head as well."""
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    total = sum(weight.nbytes for weight in model.parameters())
    return total if table is head else total - table.nbytes


def decoder_config(flags: Any) -> Any:
    """The Transformers config that a bench's flags ask for: --llm, or a Llama of --width, --inner, --layers, ..."""
    if flags.llm:
        return causal_config(flags.llm)
    return LlamaConfig(
        hidden_size=flags.width,
        intermediate_size=flags.inner,
        num_hidden_layers=flags.layers,
        num_attention_heads=flags.heads,
        num_key_value_heads=flags.heads,
        vocab_size=flags.vocabulary,
    )


def against(ratio: float, bound: float) -> dict[str, float]:
    """A measured ratio beside the ratio of FLOPs, which nothing that is bound by FLOPs can beat.

    times_bound         1 = at the bound, 1.02 = two percent above it
    saving_reached      share of what the bound allows to save that was saved; 1 = all of it
    """
    told = {"ratio": ratio, "flops_bound": bound, "times_bound": ratio / bound}
    if bound < 1:
        told["saving_reached"] = (1 - ratio) / (1 - bound)
    return told
