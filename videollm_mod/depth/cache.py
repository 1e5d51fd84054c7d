"""A KV cache whose layers hold different numbers of entries.

Each layer remembers for every entry its *slot*: the number of the token in the whole sequence. What was *seen* (all
tokens, the same for all layers) and what is *stored* (per layer and row) are different numbers: Transformers asks for
the first to set positions and masks, and only we use the second. Rolling back works by slot, in every layer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from videollm_mod.depth.layout import FrameLayout, FrameSpan
from videollm_mod.types import InputError

GROWTH = 1.5  # a full buffer grows by this factor: appending n entries one by one copies O(n) in all


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer in growable buffers (batch, heads, capacity, head_dim).

    Rows fill independently: row b holds `lengths[b]` entries, in the order of their slots; what is behind is garbage.
    """

    is_compileable = False
    is_sliding = False  # entries outside a sliding window stay: the mask hides them, and one can still roll back
    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.lengths: list[int] = []
        self.slots: Tensor | None = None  # (batch, capacity) int64; -1 = no entry
        self._pending: list[int] | None = None  # entries per row that `expect` announced to the next `update`

    # --- what a routed layer does before it runs -------------------------------------------------------------------

    def expect(self, tokens: int, slots: Tensor, counts: list[int]) -> Tensor:
        """Announce that of `tokens` new tokens those with `slots` (batch, width) will be stored, counts[b] in row b.

        Returns the slots of all entries after that, (batch, longest row) int64, -1 where a row has no entry. It must be
        followed by the attention that calls `update`, unless nothing at all is stored.
        """
        self._reserve(slots, counts)
        assert self.slots is not None
        for row, (start, count) in enumerate(zip(self.lengths, counts)):
            self.slots[row, start : start + count] = slots[row, :count]
        self.seen += tokens
        self._pending = counts if max(counts) > 0 else None
        return self.slots[:, : max(start + count for start, count in zip(self.lengths, counts))]

    def _reserve(self, slots: Tensor, counts: list[int]) -> None:
        if self.slots is None:
            self.lengths = [0] * slots.shape[0]
            self.slots = slots.new_full((slots.shape[0], 0), -1)
        need, have = max(length + count for length, count in zip(self.lengths, counts)), self.slots.shape[1]
        if need > have:
            more = max(need, int(have * GROWTH), 64) - have
            self.slots = torch.cat([self.slots, self.slots.new_full((self.slots.shape[0], more), -1)], dim=1)

    # --- what Transformers calls -----------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty((*key_states.shape[:2], 0, key_states.shape[-1]))
        self.values = value_states.new_empty((*value_states.shape[:2], 0, value_states.shape[-1]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store (batch, heads, new, head_dim) and return all stored keys and values, (batch, heads, longest row, ...).

        Without an `expect` before it, all new tokens are stored, as in any dense layer.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._pending is None:
            batch, _, new, _ = key_states.shape
            slots = torch.arange(self.seen, self.seen + new, device=key_states.device).expand(batch, -1)
            self.expect(new, slots, [new] * batch)
        counts, self._pending = self._pending, None
        assert counts is not None and self.slots is not None
        old = list(self.lengths)
        self.lengths = [length + count for length, count in zip(old, counts)]
        return (
            self._append("keys", key_states, old, counts),
            self._append("values", value_states, old, counts),
        )

    def _append(self, name: str, states: Tensor, old: list[int], counts: list[int]) -> Tensor:
        """Write the new states behind each row's entries; returns the view of all that is stored."""
        assert self.slots is not None
        buffer: Tensor = getattr(self, name)
        capacity = self.slots.shape[1]
        if buffer.shape[2] < capacity:
            # zeros: rows of different length leave gaps, and a masked NaN of raw memory would still be a NaN
            grown = buffer.new_zeros((*buffer.shape[:2], capacity, buffer.shape[3]))
            grown[:, :, : buffer.shape[2]] = buffer
            setattr(self, name, grown)
            buffer = grown
        _write(buffer, states.detach(), old, counts)
        view = buffer[:, :, : max(self.lengths)]
        if torch.is_grad_enabled() and states.requires_grad:
            view = view.clone()  # the buffer itself will be written again and must not be part of a graph
            _write(view, states, old, counts)
        return view

    def get_seq_length(self) -> int:
        """Tokens SEEN: this number sets default positions and mask sizes. What is stored is in `lengths`."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.__init__()  # type: ignore[misc]

    def crop_to(self, position: int) -> None:
        """Forget every entry of a token at `position` or later."""
        self.seen = min(self.seen, position)
        if self.slots is None:
            return
        stay = (self.slots >= 0) & (self.slots < position)  # (batch, capacity); slots ascend, so a prefix of each row
        self.lengths = stay.sum(1).tolist()
        self.slots = self.slots.masked_fill(~stay, -1)

    def forget(self, begin: int, end: int, turn: Callable[[Tensor, int], Tensor]) -> None:
        """As `RaggedCache.forget`, for this layer alone."""
        self.seen -= end - begin
        if self.slots is None or not self.is_initialized:
            return
        rows = []  # of each: which entries stay, and how many of them stand before the gap
        for row, length in enumerate(self.lengths):
            slots = self.slots[row, :length]
            stay = ((slots < begin) | (slots >= end)).nonzero()[:, 0]
            rows.append((stay, int((slots[stay] < begin).sum())))
        self.lengths = [len(stay) for stay, _ in rows]
        slots, buffers = self.slots.new_full((len(rows), max(self.lengths)), -1), []
        for row, (stay, before) in enumerate(rows):
            slots[row, : len(stay)] = self.slots[row, stay]
            slots[row, before : len(stay)] -= end - begin
        for old in self._buffers():  # new ones, so that the memory of the old ones is free again
            new = old.new_zeros((*old.shape[:2], max(self.lengths), old.shape[3]))
            for row, (stay, before) in enumerate(rows):
                new[row, :, : len(stay)] = old[row, :, stay]
                if old is self.keys and before < len(stay):
                    new[row, :, before : len(stay)] = turn(new[row, :, before : len(stay)], begin - end)
            buffers.append(new)
        self.slots, (self.keys, self.values) = slots, buffers

    def evict(self, entries: Tensor) -> None:
        """Drop entries (gone,) int64 of a batch of one; the tokens remain seen."""
        assert self.slots is not None and len(self.lengths) == 1
        stay = torch.ones(self.lengths[0], dtype=torch.bool, device=self.slots.device)
        stay[entries] = False
        at, count = stay.nonzero()[:, 0], int(stay.sum())
        for buffer in (self.slots[0], *(each[0].transpose(0, 1) for each in self._buffers())):  # (capacity, ...)
            buffer[:count] = buffer[at]
        self.slots[0, count:] = -1
        self.lengths = [count]

    def crop(self, tokens_to_remove: int) -> None:
        """As `RaggedCache.crop`, for this layer alone."""
        if tokens_to_remove:
            self.crop_to(self.seen + tokens_to_remove if tokens_to_remove < 0 else tokens_to_remove)

    def _select_rows(self, rows: Tensor) -> None:
        if self.slots is None:
            return
        self.lengths = [self.lengths[row] for row in rows.tolist()]
        self.slots = self.slots.index_select(0, rows.to(self.slots.device))
        if self.is_initialized:
            self.keys, self.values = (t.index_select(0, rows.to(self.device)) for t in self._buffers())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select_rows(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select_rows(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.slots is not None:
            self._select_rows(torch.arange(len(self.lengths))[indices.cpu()])

    # --- bytes -----------------------------------------------------------------------------------------------------

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry: key and value, all heads."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in self._buffers())

    def _buffers(self) -> tuple[Tensor, ...]:
        """Keys and values with their growing room; none before the first update."""
        return tuple(t for t in (self.keys, self.values) if t is not None)


def _write(buffer: Tensor, states: Tensor, starts: list[int], counts: list[int]) -> None:
    """buffer[b, :, starts[b] : starts[b] + counts[b]] = states[b, :, : counts[b]] for every row b."""
    if len(set(zip(starts, counts))) == 1:
        buffer[:, :, starts[0] : starts[0] + counts[0]] = states[:, :, : counts[0]]
        return
    for row, (start, count) in enumerate(zip(starts, counts)):
        buffer[row, :, start : start + count] = states[row, :, :count]


class RaggedCache(Cache):
    """The cache of a routed model: one `RaggedLayer` per decoder layer.

    A Transformers `Cache` in every respect (generation, beams, crop); besides, `seen`, `stored`, `crop_to`, `kv_bytes`.
    """

    layers: list[RaggedLayer]  # type: ignore[assignment]

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[RaggedLayer() for _ in range(num_layers)])
        self.frames: list[list[FrameSpan]] = []  # per row: the frames seen, by slot
        # what a token reduction remembers, per row: number of a frame -> its memory behind it, so that it rolls back
        self.memory: dict[int, dict[int, Any]] = {}
        self.evicted: dict[
            int, int
        ] = {}  # per row: the newest frame behind which a reduction has looked at the entries
        # per row: slots of tokens that a reduction has dropped and whose positions their successors have; ascending
        self.dropped: dict[int, list[int]] = {}
        self.live = False  # whether it is a session's: frames come one by one, and nothing rolls back

    # --- a frame is atomic: its kept set depends on all of its tokens ------------------------------------------------

    def refuse_split_frames(self, layout: FrameLayout) -> None:
        """Raise InputError if a frame of the step began in an earlier one, or its number is not higher."""
        for row, new in zip(self.frames, layout.spans):
            if row and new and new[0].number <= row[-1].number:
                raise InputError(
                    f"frame {new[0].number} comes after frame {row[-1].number}: a frame's tokens must come in one "
                    "step, with rising numbers."
                )

    def remember_frames(self, layout: FrameLayout, first: int) -> None:
        """Note the frames of a step whose first token has slot `first`."""
        self.frames = self.frames or [[] for _ in layout.spans]
        for row, new in zip(self.frames, layout.spans):
            row.extend(FrameSpan(span.begin + first, span.end + first, span.number) for span in new)

    @property
    def seen(self) -> int:
        """Tokens that went by, stored or not: the next token's slot, and by default its position."""
        return self.layers[0].get_seq_length()

    @property
    def stored(self) -> list[list[int]]:
        """Entries in use: [layer][row]."""
        return [list(layer.lengths) for layer in self.layers]

    @property
    def kv_bytes(self) -> int:
        """Bytes of the entries in use, all layers and rows (buffers are up to 1.5 times as large)."""
        return sum(sum(layer.lengths) * layer.entry_bytes for layer in self.layers)

    @property
    def allocated_bytes(self) -> int:
        """Bytes of the buffers, growing room included."""
        return sum(t.nbytes for layer in self.layers for t in layer._buffers())

    def crop_to(self, position: int) -> None:
        """Roll back to the state after the first `position` tokens: no later entry stays in any layer.

        A frame cut in two stays cut: what it keeps was chosen with all of its tokens, so the rest of it is refused.
        """
        position = max(position, 0)
        for at, row in enumerate(self.frames):
            del row[bisect_left(row, (position, 0, 0)) :]  # the frames that begin at `position` or later
            if row:
                row[-1] = row[-1]._replace(end=min(row[-1].end, position))
            if self.evicted.get(at, -1) > (row[-1].number if row else -1):
                del self.evicted[at]
            for number in [n for n in self.memory.get(at, {}) if not row or n > row[-1].number]:
                del self.memory[at][number]
        self.dropped = {row: [slot for slot in slots if slot < position] for row, slots in self.dropped.items()}
        for layer in self.layers:
            layer.crop_to(position)

    def forget(self, begin: int, end: int, turn: Callable[[Tensor, int], Tensor]) -> None:
        """Forget the tokens begin..end-1 as if they had never been: what comes after them moves down into the gap.

        turn: (heads, entries, head_dim) keys and a number of positions -> the keys as if their tokens stood so many
        positions further on (`turned` in layer.py). What was computed from the forgotten tokens stays in the others.
        Raises InputError for a range that is not within what was seen, or that cuts a frame in two.
        """
        if not 0 <= begin <= end <= self.seen:
            raise InputError(f"cannot forget tokens {begin} to {end} of {self.seen}; give a range within them.")
        for row in self.frames:
            for span in row:
                if span.begin < end and span.end > begin and not (span.begin >= begin and span.end <= end):
                    raise InputError(f"cannot forget tokens {begin} to {end}: they cut frame {span.number} in two.")
        for number, row in enumerate(self.frames):
            early = [span for span in row if span.end <= begin]
            late = [span for span in row if span.begin >= end]
            moved = [FrameSpan(span.begin + begin - end, span.end + begin - end, span.number) for span in late]
            self.frames[number] = early + moved
        vacant = sum(begin <= slot < end for slot in self.dropped.get(0, ()))  # they had no positions of their own
        for at, slots in self.dropped.items():
            left = [slot for slot in slots if not begin <= slot < end]
            self.dropped[at] = [slot if slot < begin else slot + begin - end for slot in left]
        for layer in self.layers:
            layer.forget(begin, end, (lambda keys, by: turn(keys, by + vacant)) if vacant else turn)

    def crop(self, tokens_to_remove: int) -> None:
        """Transformers' form: -n removes the newest n tokens seen; n > 0 keeps n, as in older versions."""
        if tokens_to_remove:
            self.crop_to(self.seen + tokens_to_remove if tokens_to_remove < 0 else tokens_to_remove)

    def reset(self) -> None:
        super().reset()
        self.frames, self.memory, self.evicted, self.dropped = [], {}, {}, {}

    # --- rows --------------------------------------------------------------------------------------------------------

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._select_frames(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._select_frames([row for row in range(len(self.frames)) for _ in range(repeats)])

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select_frames(torch.arange(len(self.frames))[indices.cpu()].tolist() if self.frames else [])

    def _select_frames(self, rows: list[int]) -> None:
        if self.frames:
            self.frames = [list(self.frames[row]) for row in rows]
            self.memory = {new: dict(self.memory[old]) for new, old in enumerate(rows) if old in self.memory}
