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

Turn = Callable[[Tensor, Tensor], Tensor]  # see `RaggedCache.compact`
GROWTH = 1.5  # a full buffer grows by this factor: appending n entries one by one copies O(n) in all


class RaggedLayer(CacheLayerMixin):
    """Keys and values of one layer in growable buffers (batch, heads, capacity, head_dim).

    Rows fill independently: row b holds `lengths[b]` entries, in the order of their slots; what is behind is garbage.
    """

    is_compileable = False
    is_sliding = False  # entries outside a sliding window stay: the mask hides them, and one can still roll back
    is_croppable = True
    buffers: tuple[str, ...] = ("keys", "values")  # attributes that hold a tensor (batch, heads, capacity, some width)

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
        buffer = self._grown(name)
        _write(buffer, states.detach(), old, counts)
        view = buffer[:, :, : max(self.lengths)]
        if torch.is_grad_enabled() and states.requires_grad:
            view = view.clone()  # the buffer itself will be written again and must not be part of a graph
            _write(view, states, old, counts)
        return view

    def _grown(self, name: str) -> Tensor:
        """A buffer with room for all slots."""
        assert self.slots is not None
        buffer: Tensor = getattr(self, name)
        capacity = self.slots.shape[1]
        if buffer.shape[2] < capacity:
            # zeros: rows of different length leave gaps, and a masked NaN of raw memory would still be a NaN
            grown = buffer.new_zeros((*buffer.shape[:2], capacity, buffer.shape[3]))
            grown[:, :, : buffer.shape[2]] = buffer
            setattr(self, name, grown)
            buffer = grown
        return buffer

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
        self.seen, self._pending = min(self.seen, position), None
        if self.slots is None:
            return
        stay = (self.slots >= 0) & (self.slots < position)  # (batch, capacity); slots ascend, so a prefix of each row
        self.lengths = stay.sum(1).tolist()
        self.slots = self.slots.masked_fill(~stay, -1)

    def compact(self, gone: Tensor, before: Tensor, places: Tensor, turn: Turn) -> None:
        """As `RaggedCache.compact`, for this layer alone; before (seen + 1,): how many that go stand before each token,
        places (seen + 1,): by how many positions it moves down."""
        self.seen -= int(before[-1])
        for row, length in enumerate(self.lengths):
            assert self.slots is not None
            slots = self.slots[row, :length]
            shift = before.to(slots.device)[slots]  # (entries,)
            moved = int((shift == 0).sum())  # slots ascend: what stands before the first gap stays where it is
            stay = (~gone.to(slots.device)[slots]).nonzero()[:, 0]
            self._gather(row, stay, moved, shift[stay], -places.to(slots.device)[slots][stay], turn)

    def keep_entries(self, row: int, stay: Tensor) -> None:
        """Keep only the entries of a row with the numbers `stay` (entries,) int64, ascending; nothing else moves.

        What was seen stays seen: positions are as before, and rolling back works as ever.
        """
        self._gather(row, stay, 0)

    def _gather(
        self,
        row: int,
        stay: Tensor,
        first: int,
        shift: Tensor | None = None,
        by: Tensor | None = None,
        turn: Turn | None = None,
    ) -> None:
        """Close ranks in place: entries `stay` of a row, of which those from number `first` on move down by `shift`
        slots and their keys turn `by` positions (entries that stay,).

        In place, for what an endless stream gives up it soon needs again.
        """
        assert self.slots is not None
        late = stay[stay >= first]  # what is before is untouched, for nothing goes there
        start, end = len(stay) - len(late), len(stay)
        slots = self.slots[row, late]
        if shift is not None:
            slots = slots - shift[start:]
        self.slots[row, start:end] = slots
        self.slots[row, end:] = -1
        self.lengths[row] = end
        if self.is_initialized and len(late):
            self._move(row, late, slice(start, end), None if by is None else by[start:], turn)

    def _move(self, row: int, source: Tensor, to: slice, by: Tensor | None, turn: Turn | None) -> None:
        """Write entries `source` of a row to `to`, their keys turned by so many positions each (None: not at all)."""
        for buffer in self._buffers():
            states = buffer[row, :, source]  # a copy
            if buffer is self.keys and by is not None and turn is not None:
                states = turn(states, by)
            buffer[row, :, to] = states

    @property
    def complete(self) -> bool:
        """Whether every token seen has an entry: so in a layer that is not routed, unless entries were dropped."""
        return all(length == self.seen for length in self.lengths)

    def key_norms(self, row: int) -> Tensor:
        """L2 norm of each stored key over all heads and channels, (entries,) float32; turning does not change it."""
        return self.stored_keys(row).float().square().sum((0, 2)).sqrt()

    def stored_keys(self, row: int) -> Tensor:
        """The stored keys of a row, (heads, entries, head_dim)."""
        assert self.keys is not None
        return self.keys[row, :, : self.lengths[row]]

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
            for name in self.buffers:
                setattr(self, name, getattr(self, name).index_select(0, rows.to(self.device)))

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
        """Bytes of one entry: key and value, all heads, and their scales if they are stored in fewer bits."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in self._buffers())

    def _buffers(self) -> tuple[Tensor, ...]:
        """Keys and values with their growing room; none before the first update."""
        return tuple(getattr(self, name) for name in self.buffers) if self.is_initialized else ()


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

    def __init__(self, num_layers: int, kv: str | None = None) -> None:
        """kv: store keys and values as "int8" or "fp8" (quantised.py); None = as they come, exactly."""
        from videollm_mod.depth.quantised import layer_of  # which imports this

        super().__init__(layers=[layer_of(kv) for _ in range(num_layers)])
        self.kv = kv
        self.frames: list[list[FrameSpan]] = []  # per row: the frames seen, by slot
        # what a token reduction remembers, per row: number of a frame -> its memory behind it, so that it rolls back
        self.memory: dict[int, dict[int, Any]] = {}
        self.evicted: dict[int, int] = {}  # per row: the newest frame behind which a reduction has looked
        # per row: slots of tokens that a reduction has dropped and whose positions their successors have; ascending
        self.dropped: dict[int, list[int]] = {}
        self.live = False  # whether it is a session's: no frame is rolled back but those of its newest step

    def empty(self) -> RaggedCache:
        """Another one of the same kind, with nothing in it."""
        return RaggedCache(len(self.layers), self.kv)

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
        for row in self.frames:
            del row[bisect_left(row, (position, 0, 0)) :]  # the frames that begin at `position` or later
            if row:
                row[-1] = row[-1]._replace(end=min(row[-1].end, position))
        # what is remembered goes with its frame, also where a step failed before its frames were noted
        newest = {at: row[-1].number for at, row in enumerate(self.frames) if row}
        self.evicted = {at: min(number, newest[at]) for at, number in self.evicted.items() if at in newest}
        for at, kept in self.memory.items():
            self.memory[at] = {number: value for number, value in kept.items() if number <= newest.get(at, -1)}
        self.dropped = {row: [slot for slot in slots if slot < position] for row, slots in self.dropped.items()}
        for layer in self.layers:
            layer.crop_to(position)

    def forget(self, begin: int, end: int, turn: Turn) -> None:
        """Forget the tokens begin..end-1 as if they had never been: what comes after them moves down into the gap.

        As `compact`, for one range. Raises InputError for a range that is not within what was seen, or that cuts a
        frame in two.
        """
        if not 0 <= begin <= end <= self.seen:
            raise InputError(f"cannot forget tokens {begin} to {end} of {self.seen}; give a range within them.")
        for row in self.frames:
            for span in row:
                if span.begin < end and span.end > begin and not (span.begin >= begin and span.end <= end):
                    raise InputError(f"cannot forget tokens {begin} to {end}: they cut frame {span.number} in two.")
        gone = torch.zeros(self.seen, dtype=torch.bool)
        gone[begin:end] = True
        self.compact(gone, turn)

    def compact(self, gone: Tensor, turn: Turn) -> None:
        """Forget tokens, gone (seen,) bool on the CPU, in every layer and row; what comes after them closes the gaps.

        turn: (heads, entries, head_dim) keys and (entries,) int64 numbers of positions -> the keys as if their tokens
        stood so many positions further on (`turned` in turning.py). What was computed from forgotten tokens stays in
        the others. A frame may lose some of its tokens, or all.
        """
        before = torch.cat([torch.zeros(1, dtype=torch.long), gone.long().cumsum(0)])  # (seen + 1,)
        if not int(before[-1]):
            return
        for number, row in enumerate(self.frames):
            moved = [(s.begin - int(before[s.begin]), s.end - int(before[s.end]), s.number) for s in row]
            self.frames[number] = [FrameSpan(*span) for span in moved if span[0] < span[1]]
        places = before  # how far positions move: less than slots, where dropped tokens had none of their own
        if self.dropped.get(0):
            own = torch.ones_like(gone)
            own[torch.tensor(self.dropped[0])] = False
            places = torch.cat([before[:1], (gone & own).long().cumsum(0)])
        for at, slots in self.dropped.items():
            self.dropped[at] = [slot - int(before[slot]) for slot in slots if not gone[slot]]
        for layer in self.layers:
            layer.compact(gone, before, places, turn)

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
            self.dropped = {new: list(self.dropped[old]) for new, old in enumerate(rows) if old in self.dropped}
            self.evicted = {new: self.evicted[old] for new, old in enumerate(rows) if old in self.evicted}
