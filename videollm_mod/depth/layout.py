"""Where the vision tokens of one step are: frame by frame, computed once per forward from `frame_index`.

Everything downstream takes its shapes from here and never from scores, so a routed layer needs no device
synchronisation, and runs on the meta device.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from videollm_mod.depth.plan import keep_count
from videollm_mod.types import InputError

# A CPU multiplies 4 rows faster than 3 (80 ms against 100 for the matrix products of 16 layers at d 1024), and
# a streamed frame of 10 tokens keeps 2 besides its interval token. So few rows are padded to a multiple of ROW_BLOCK.
ROW_BLOCK, FEW_ROWS = 4, 16


class FrameSpan(NamedTuple):
    """A frame's place in a row: tokens begin..end-1."""

    begin: int
    end: int
    number: int


@dataclass(frozen=True)
class FrameGroup:
    """All frames of the step with the same number n of tokens."""

    tokens: Tensor  # (frames, n) int64: position in the flattened (batch * tokens) step, ascending
    number: Tensor  # (frames,) int64: the frame's number in its stream
    rows: tuple[int, ...]  # batch row of each frame


@dataclass(frozen=True)
class KeptShape:
    """How many tokens each row keeps at one keep ratio, and how they are padded to a rectangle."""

    counts: tuple[int, ...]  # kept tokens per batch row, text included
    # None where nothing is padded:
    source: Tensor | None  # (batch, width) int64: index into the ascending list of kept tokens
    real: Tensor | None  # (batch, width) bool: not padding
    back: Tensor | None  # (kept,) int64: index into the flattened padded rectangle


@dataclass
class FrameLayout:
    """The frames of one step: `batch` rows of `tokens` tokens each, of which some are vision."""

    batch: int
    tokens: int
    device: torch.device
    text: Tensor  # (texts,) int64: flattened positions of real (not padded) tokens that are no vision
    text_counts: tuple[int, ...]  # per row
    groups: list[FrameGroup]
    vision: Tensor  # (batch * tokens,) bool
    spans: tuple[tuple[FrameSpan, ...], ...]  # per row: where its frames stand
    given: Tensor | None = None  # (batch * tokens,) scores from outside, for the scorer `given`
    ordinal: Tensor | None = None  # where padding stands between a row's tokens: see `window_mask`
    thinned: bool = False  # whether some vision tokens go through no layer (any more): see `thin`
    # what a reduction between layers reads: layer -> place in the row of each token that went through, (batch, kept),
    # and slot of each key, (batch, stored); only of layers that did not take all
    ran: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _shapes: dict[float, KeptShape] = field(default_factory=dict)
    _windows: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)
    _frames: tuple[Tensor, int] | None = None  # which frame each token is of, from 1 on, and one more than the last

    @classmethod
    def of(
        cls, frame_index: Tensor, attention_mask: Tensor | None = None, device: torch.device | None = None
    ) -> FrameLayout:
        """Read a layout off `frame_index` (batch, tokens): -1 = text, else the number of the token's frame.

        A frame's tokens stand side by side and numbers rise along a row: InputError otherwise. `attention_mask` (batch,
        at least tokens), if 2-D, tells padding; its last columns belong to this step. The index is read on the CPU:
        leave it there, and no device waits. `device` is where the hidden states are; by default where the index is.
        """
        device, index = device or frame_index.device, frame_index.cpu().long()
        batch, tokens = index.shape
        vision = (index >= 0).flatten()
        padded = attention_mask is not None and attention_mask.dim() == 2
        if not padded and not bool(vision.any()):  # words alone: every token that is generated comes this way
            every = torch.arange(batch * tokens, device=device)
            nothing = torch.zeros(batch * tokens, dtype=torch.bool, device=device)
            return cls(batch, tokens, device, every, (tokens,) * batch, [], nothing, ((),) * batch)
        text, ordinal = ~vision, None
        if attention_mask is not None and attention_mask.dim() == 2:
            whole = (attention_mask != 0).cpu()  # (batch, seen + tokens)
            real = whole[:, -tokens:].flatten()
            count = whole.cumsum(1)
            if bool((~whole & (count > 0) & (count < count[:, -1:])).any()):
                ordinal = torch.where(whole, count, -count).to(device)
            text &= real
            if bool((vision & ~real).any()):
                raise InputError("a vision token is masked out by attention_mask; padding must have frame_index -1.")
        before = nn.functional.pad(index[:, :-1], (1, 0), value=-1)
        begins = ((index >= 0) & (index != before)).flatten()  # the first token of each frame
        starts = begins.nonzero().squeeze(1)  # (frames,)
        sizes = torch.bincount(begins.cumsum(0)[vision] - 1, minlength=len(starts))
        numbers, rows, inside = index.flatten()[starts], starts // tokens, starts % tokens
        spans: list[list[FrameSpan]] = [[] for _ in range(batch)]
        for row, *span in zip(rows.tolist(), inside.tolist(), (inside + sizes).tolist(), numbers.tolist()):
            if spans[row] and span[2] <= spans[row][-1].number:
                raise InputError(
                    f"frame_index goes from frame {spans[row][-1].number} to frame {span[2]} in row {row}: "
                    "a frame's tokens stand side by side, and numbers rise."
                )
            spans[row].append(FrameSpan(*span))
        groups = []
        for size in sizes.unique().tolist():
            members = sizes == size
            places = starts[members, None] + torch.arange(size)  # (frames, n)
            groups.append(FrameGroup(places.to(device), numbers[members].to(device), tuple(rows[members].tolist())))
        return cls(
            batch=batch,
            tokens=tokens,
            device=device,
            text=text.nonzero().squeeze(1).to(device),
            text_counts=tuple(text.view(batch, tokens).sum(1).tolist()),
            groups=groups,
            vision=vision.to(device),
            spans=tuple(map(tuple, spans)),
            ordinal=ordinal,
        )

    @property
    def all_text(self) -> bool:
        """Whether every token of the step is a word: then every layer takes all of them, as they stand."""
        return not self.groups and len(self.text) == self.batch * self.tokens

    def window_mask(self, window: int, like: Tensor) -> Tensor:
        """The mask of a sliding window that counts a row's own tokens: (batch, 1, tokens, seen + tokens), bool, or
        additive, whichever `like` is.

        Rows that stream side by side are padded between their steps. Transformers counts such padding as tokens, and a
        row would see less of its past than it does alone. `ordinal` (batch, seen + tokens) int64: the how-manieth token
        of its row each is, from 1; of padding, minus the tokens before it.
        """
        if (window, like.dtype) not in self._windows:
            assert self.ordinal is not None
            key, place = self.ordinal[:, None, :], torch.arange(self.ordinal.shape[1], device=self.device)
            query = self.ordinal[:, -self.tokens :, None].abs()  # what pads a row looks at something, too
            sees = (key > 0) & (place <= place[-self.tokens :, None]) & (query - key < window)
            if like.dtype != torch.bool:
                sees = torch.zeros_like(sees, dtype=like.dtype).masked_fill_(~sees, torch.finfo(like.dtype).min)
            self._windows[window, like.dtype] = sees[:, None]
        return self._windows[window, like.dtype]

    def frames_of(self, places: Tensor) -> tuple[Tensor, int]:
        """Which frame of the step each token at `places` (flattened positions) is of, from 1 on, and 0 for text; and
        the highest such number plus one."""
        if self._frames is None:
            frames = torch.zeros(self.batch * self.tokens, dtype=torch.int64, device=self.device)
            first = 1
            for group in self.groups:
                frames[group.tokens] = torch.arange(first, first + len(group.tokens), device=self.device)[:, None]
                first += len(group.tokens)
            self._frames = frames, first
        return self._frames[0][places], self._frames[1]

    def alive(self) -> Tensor:
        """(batch * tokens,) bool: the vision tokens that go through layers."""
        found = torch.zeros(self.batch * self.tokens, dtype=torch.bool, device=self.device)
        for group in self.groups:
            found[group.tokens.flatten()] = True
        return found

    def thin(self, alive: Tensor) -> None:
        """From here on only vision tokens that are alive, (batch * tokens,) bool, go through layers; text always does.

        Of a frame's tokens, routed layers then keep their share of those that are left.
        """
        alive, groups = alive.cpu(), []
        for group in self.groups:
            tokens = group.tokens.cpu()
            stays = alive[tokens]  # (frames, n)
            counts = stays.sum(1)
            for size in counts.unique().tolist():
                members = counts == size
                if size:
                    left = tokens[members][stays[members]].view(-1, size)
                    rows = tuple(row for row, member in zip(group.rows, members.tolist()) if member)
                    number = group.number[members.to(group.number.device)]
                    groups.append(FrameGroup(left.to(self.device), number, rows))
        self.groups, self.thinned, self._frames = groups, True, None
        self._shapes.clear()

    def shape(self, ratio: float) -> KeptShape:
        """The rectangle that the kept tokens of this step fill at keep ratio `ratio`; remembered per ratio."""
        if ratio in self._shapes:
            return self._shapes[ratio]
        counts = list(self.text_counts)
        for group in self.groups:
            for row in group.rows:
                counts[row] += keep_count(ratio, group.tokens.shape[1])
        source = real = back = None
        width = max(counts)
        if self.device.type == "cpu" and 1 < width < min(self.tokens, FEW_ROWS):
            width = min(-(-width // ROW_BLOCK) * ROW_BLOCK, self.tokens)
        if len(set(counts)) > 1 or width > counts[0]:
            starts = torch.tensor([0, *counts]).cumsum(0)
            place = torch.arange(width)
            real = place < torch.tensor(counts)[:, None]
            # padding repeats the row's last kept token: harmless to compute, and never written back
            last = (starts[1:, None] - 1).clamp(min=0)
            source = torch.where(real, starts[:-1, None] + place, last).to(self.device)
            back = real.flatten().nonzero().squeeze(1).to(self.device)
            real = real.to(self.device)
        self._shapes[ratio] = KeptShape(tuple(counts), source, real, back)
        return self._shapes[ratio]
