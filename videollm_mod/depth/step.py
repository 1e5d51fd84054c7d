"""Many streams in one step: their tokens stand behind one another in one row, and attention alone tells them apart.

Embeddings, linear layers, norms, MLPs and experts treat every token by itself, so they run once over the whole row,
through unmodified decoder layers. A `StepCache` is what such a step gets for a cache: each of its layers stores every
stream's part in that stream's own `RaggedLayer`, and an attention function that Transformers finds under
`IMPLEMENTATION`, for the length of the step, lets each stream's queries look at that stream's own keys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, causal_mask_function, sdpa_mask

from videollm_mod.depth.cache import RaggedCache, RaggedLayer
from videollm_mod.depth.layout import FrameGroup, FrameLayout, FrameSpan
from videollm_mod.depth.plan import keep_count
from videollm_mod.types import InputError

IMPLEMENTATION = "videollm_mod_step"
MORE_THAN_MASKS = ("softcap", "s_aux", "position_bias")  # what attention functions are told that changes their result
ALONE = "run such a model's streams one by one, each with a StreamSession"
_current: ContextVar[StepCache | None] = ContextVar("step", default=None)  # of this thread
_swapping = threading.Lock()
_running: WeakKeyDictionary[nn.Module, tuple[int, str]] = WeakKeyDictionary()  # decoder -> steps, what it had before


@dataclass(frozen=True)
class Share:
    """One stream's part of the row: tokens begin..end-1."""

    cache: RaggedCache
    begin: int
    end: int
    first: int  # slot of its first token in its own sequence
    numbers: tuple[int, ...]  # of its frames, in its own counting
    sizes: tuple[int, ...]  # and how many tokens of each go through layers
    text: int  # tokens that are of no frame


@dataclass(frozen=True)
class StepMask:
    """Stands where a layer's attention mask would: Transformers' rule for who sees whom, by slots.

    rule: (batch, head, query slot, key slot) -> bool, broadcasting; with it, sliding windows and chunks come as the
    model itself means them.
    """

    rule: Callable[..., Any]


class StepLayer(RaggedLayer):
    """One layer of a step. It holds nothing itself, so that `seen` and `lengths` stay 0."""

    def __init__(self, step: StepCache, index: int, ratio: float | None) -> None:
        super().__init__()
        self.lengths = [0]
        self._step, self._ratio = step, ratio
        self._own = [share.cache.layers[index] for share in step.shares]
        self._counts: tuple[int, ...] | None = None  # tokens of each stream that go through the layer
        self._stored: list[tuple[Tensor, Tensor]] = []  # keys and values of each stream that has such tokens

    def expect(self, tokens: int, slots: Tensor, counts: list[int]) -> Tensor:
        """As of any ragged layer; `slots` (1, width) are places in the row."""
        each = self._step.counts(self._ratio)
        if sum(each) != counts[0]:
            raise InputError(f"a layer keeps {counts[0]} tokens of a step where the plan says {sum(each)}; {ALONE}.")
        self._announce(self._step.slots[slots[0]], each)
        return slots

    def _announce(self, slots: Tensor, each: tuple[int, ...]) -> None:
        """Tell each stream's own layer; slots (tokens,) are those of the streams' own sequences, one after another."""
        begin, self._counts = 0, each
        for layer, share, count in zip(self._own, self._step.shares, each):
            layer.expect(share.end - share.begin, slots[None, begin : begin + count], [count])
            begin += count

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (1, heads, width, head_dim), each stream's part in its own layer; returns what it was given.

        What is returned nobody looks at: `attend` has the keys and values. Without an `expect` all tokens are stored.
        """
        if self._counts is None:
            self._announce(self._step.slots, self._step.counts(None))
        assert self._counts is not None
        begin = 0
        for layer, count in zip(self._own, self._counts):
            if count:
                part = slice(begin, begin + count)
                self._stored.append(layer.update(key_states[:, :, part], value_states[:, :, part]))
            begin += count
        return key_states, value_states

    def attend(self, query: Tensor, mask: StepMask | None, scaling: float | None) -> Tensor:
        """query (1, heads, width, head_dim) -> (1, width, heads, width of a value), each stream by itself.

        Queries that share a head of keys are laid side by side, so that no keys are copied for them. What pads the row
        behind its last token comes out as zeros.
        """
        heads, width = query.shape[1:3]
        stored, begin, out = iter(self._stored), 0, None
        assert self._counts is not None
        for number, count in enumerate(self._counts):
            if not count:
                continue
            keys, values = next(stored)  # (1, key heads, entries, head_dim)
            group = heads // keys.shape[1]
            packed = query[:, :, begin : begin + count].reshape(1, keys.shape[1], group * count, -1)
            sees = self._sees(number, begin, count, keys.shape[2], group, mask, query.dtype)
            part = nn.functional.scaled_dot_product_attention(packed, keys, values, attn_mask=sees, scale=scaling)
            if out is None:
                out = query.new_zeros(1, width, heads, values.shape[3])
            out[:, begin : begin + count] = part.reshape(1, heads, count, -1).transpose(1, 2)
            begin += count
        assert out is not None
        self._stored = []
        return out

    def _sees(
        self, stream: int, begin: int, count: int, entries: int, group: int, mask: StepMask | None, dtype: torch.dtype
    ) -> Tensor | None:
        """What is added to the logits of one stream's queries, (group * count, entries); None where all is seen."""
        if mask is None or mask.rule is causal_mask_function:
            # entries stand in the order of their slots and the newest are the queries' own: numbers alone tell
            return self._step.causal(count, entries, group, dtype)
        layer, key = self._own[stream], (stream, id(mask.rule), group)
        whole = layer.seen == entries  # then all layers of the kind hold the same entries
        if whole and key in self._step.masks:
            return self._step.masks[key]
        assert layer.slots is not None
        slots = layer.slots[0, :entries]
        nothing = torch.zeros((), dtype=torch.long, device=slots.device)
        seen = mask.rule(nothing, nothing, slots[entries - count :, None], slots[None, :])  # (count, entries)
        added = _added(seen.expand(count, entries), group, dtype)
        if whole:
            self._step.masks[key] = added
        return added


def _added(seen: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """(count, entries) bool -> (group * count, entries): 0 where a key is seen, else minus infinity."""
    hidden = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return hidden.repeat(group, 1) if group > 1 else hidden


class StepCache(RaggedCache):
    """The cache of one step of many streams; made for it, and of no use afterwards.

    decoder: routed by `apply_depth`.
    caches: one for each stream, of one row. Each gets its part of the step, as if it had run alone.
    numbers: of each stream's tokens: -1 = text, else the number of the token's frame, in the stream's own counting.

    What goes with it into the model: `frame_index` and `position_ids`, both (1, tokens).
    """

    def __init__(self, decoder: Any, caches: Sequence[RaggedCache], numbers: Sequence[Sequence[int]]) -> None:
        shares: list[Share] = []
        index: list[int] = []
        slots: list[int] = []
        begin = 0
        self.numbers: list[int] = []  # the streams' own numbers of the row's frames
        for cache, row in zip(caches, numbers, strict=True):
            first, frames, sizes = cache.seen, [], []
            for place, number in enumerate(row):
                if number >= 0 and (place == 0 or row[place - 1] != number):
                    frames.append(number)
                    sizes.append(0)
                if number >= 0:
                    sizes[-1] += 1
                index.append(-1 if number < 0 else len(self.numbers) + len(frames) - 1)
            self.numbers += frames
            text = len(row) - sum(sizes)
            shares.append(Share(cache, begin, begin + len(row), first, tuple(frames), tuple(sizes), text))
            slots += range(first, first + len(row))
            begin += len(row)
        self.shares = shares
        device = next(decoder.parameters()).device
        self.slots = torch.tensor(slots, device=device)  # (tokens,)
        self.frame_index = torch.tensor([index])  # (1, tokens): rising along the row; read on the CPU
        self.position_ids = self.slots[None]
        self.masks: dict[Any, Tensor] = {}
        self._counts: dict[float | None, tuple[int, ...]] = {}
        layers = [StepLayer(self, at, layer.depth_ratio) for at, layer in enumerate(decoder.layers)]
        Cache.__init__(self, layers=layers)  # type: ignore[arg-type]
        self.frames = []

    def counts(self, ratio: float | None) -> tuple[int, ...]:
        """Tokens of each stream that go through a layer with this keep ratio; None: a dense layer."""
        if ratio not in self._counts:
            kept = [
                share.text + sum(size if ratio is None else keep_count(ratio, size) for size in share.sizes if size)
                for share in self.shares
            ]
            self._counts[ratio] = tuple(kept)
        return self._counts[ratio]

    def thin(self, alive: Tensor) -> None:
        """From here on only vision tokens that are alive, (1, tokens) bool, go through layers."""
        left = self.frame_index[(self.frame_index >= 0) & alive.cpu()]
        sizes, first = torch.bincount(left, minlength=len(self.numbers)).tolist(), 0
        for at, share in enumerate(self.shares):
            self.shares[at] = replace(share, sizes=tuple(sizes[first : first + len(share.sizes)]))
            first += len(share.sizes)
        self._counts.clear()

    def causal(self, count: int, entries: int, group: int, dtype: torch.dtype) -> Tensor | None:
        """The causal mask of the newest `count` of `entries` tokens; made once for all layers where it is the same."""
        if count == 1:
            return None
        key = (count, entries, group)
        if key not in self.masks:
            seen = torch.ones(count, entries, dtype=torch.bool, device=self.slots.device).tril_(entries - count)
            self.masks[key] = _added(seen, group, dtype)
        return self.masks[key]

    def own_numbers(self, groups: Sequence[FrameGroup]) -> list[FrameGroup]:
        """The row's frames with the numbers that they have in their own streams: random scores go by them."""
        own = torch.tensor(self.numbers, device=self.slots.device)
        return [replace(group, number=own[group.number]) for group in groups]

    def refuse_split_frames(self, layout: FrameLayout) -> None:
        for share in self.shares:
            row = share.cache.frames[0] if share.cache.frames else []
            if row and share.numbers and share.numbers[0] <= row[-1].number:
                raise InputError(
                    f"frame {share.numbers[0]} comes after frame {row[-1].number} of its stream: a frame's tokens must "
                    "come in one step, with rising numbers."
                )

    def remember_frames(self, layout: FrameLayout, first: int) -> None:
        spans = iter(layout.spans[0])
        for share in self.shares:
            share.cache.frames = share.cache.frames or [[]]
            by = share.first - share.begin
            for number in share.numbers:
                begin, end, _ = next(spans)
                share.cache.frames[0].append(FrameSpan(begin + by, end + by, number))

    def crop_to(self, position: int) -> None:
        """A step that failed: every stream as it was before."""
        for share in self.shares:
            share.cache.crop_to(share.first)


# --- what Transformers calls ------------------------------------------------------------------------------------------


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The attention function of `IMPLEMENTATION`. Outside of a step it is Transformers' own `sdpa`."""
    step = _current.get()
    if step is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    name = type(module).__name__
    more = next((word for word in MORE_THAN_MASKS if kwargs.get(word) is not None), None)
    if more is not None:
        raise InputError(f"{name} attends with '{more}', which a step of many streams does not know; {ALONE}.")
    own_mask = attention_mask is not None and not isinstance(attention_mask, StepMask)
    if own_mask or (attention_mask is None and getattr(module, "sliding_window", None)):
        raise InputError(f"{name} gets its attention mask in a way of its own; {ALONE}.")
    layer: StepLayer = step.layers[module.layer_idx]  # type: ignore[assignment,index]
    return layer.attend(query, attention_mask, scaling), None


def _mask(*args: Any, **kwargs: Any) -> Any:
    """The mask function of `IMPLEMENTATION`."""
    if _current.get() is None:
        return sdpa_mask(*args, **kwargs)
    return StepMask(kwargs.get("mask_function", causal_mask_function))


@contextmanager
def attention_for(decoder: Any, cache: RaggedCache | None) -> Iterator[None]:
    """While the decoder runs a step of many streams, its layers attend stream by stream. No change for other caches."""
    if not isinstance(cache, StepCache):
        yield
        return
    with _swapping:
        if IMPLEMENTATION not in AttentionInterface._global_mapping:
            AttentionInterface.register(IMPLEMENTATION, _attend)
            AttentionMaskInterface.register(IMPLEMENTATION, _mask)
        steps, before = _running.get(decoder, (0, decoder.config._attn_implementation))
        _running[decoder] = (steps + 1, before)
        decoder.config._attn_implementation = IMPLEMENTATION
    token = _current.set(cache)
    try:
        yield
    finally:
        _current.reset(token)
        with _swapping:
            steps, before = _running[decoder]
            _running[decoder] = (steps - 1, before)
            if steps == 1:
                del _running[decoder]
                decoder.config._attn_implementation = before


# --- which decoders ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def try_together(decoder: Any) -> list[int]:
    """Raise InputError if many streams cannot share a step of this decoder; else the bytes of an entry of each layer.

    Found out by trying, three streams of random tokens, alone and in one step. What trying would not show: a rotary
    table that depends on the longest stream.
    """
    name = type(decoder).__name__
    kinds = getattr(getattr(decoder, "rotary_emb", None), "rope_type", None)
    for kind in kinds.values() if isinstance(kinds, dict) else [kinds]:
        if kind is not None and ("dynamic" in kind or kind == "longrope"):
            raise InputError(f"{name} turns its keys by angles that depend on the longest stream ('{kind}'); {ALONE}.")
    like, generator = next(decoder.parameters()), torch.Generator().manual_seed(0)
    pasts, news = (5, 0, 9), (3, 4, 1)
    films = [
        torch.randn(1, past + new, decoder.config.hidden_size, generator=generator) for past, new in zip(pasts, news)
    ]

    def run(embeds: Tensor, **more: Any) -> Tensor:
        out = decoder(inputs_embeds=embeds.to(like), use_cache=True, **more)
        hidden: Tensor = out.last_hidden_state
        return hidden

    caches = [[RaggedCache(len(decoder.layers)) for _ in films] for _ in range(2)]
    for each in caches:
        for film, past, cache in zip(films, pasts, each):
            if past:
                run(film[:, :past], past_key_values=cache)
    alone = torch.cat(
        [run(film[:, past:], past_key_values=cache) for film, past, cache in zip(films, pasts, caches[0])], 1
    )
    step = StepCache(decoder, caches[1], [[-1] * new for new in news])
    try:
        row = torch.cat([film[:, past:] for film, past in zip(films, pasts)], 1)
        together = run(row, past_key_values=step, position_ids=step.position_ids, frame_index=step.frame_index)
        off = (together - alone).float().abs().amax(-1) / alone.float().abs().amax()  # (1, tokens)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"{name} cannot run many streams in one step ({error}); {ALONE}.") from error
    # in half precision a near-tie among a mixture's experts may send a single token another way
    exact = like.dtype in (torch.float32, torch.float64)
    if not bool(off.max() <= 1e-3 if exact else off.median() <= 0.05):
        raise InputError(f"{name} gives other results when streams share a step; {ALONE}.")
    return [layer.entry_bytes for layer in caches[1][0].layers]
