"""When the budget is full, vision entries go by the norm of their key, layer by layer, after QuickVideo.

QuickVideo (TIGER-AI-Lab/QuickVideo) keeps, of each group of frames, the entries whose keys have the smallest L2 norm
over all heads and channels, as it enters the cache. Here the choice falls later, among all that is old, when room is
needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from videollm_mod.stream.memory import LOW, Clearing, Memory


@dataclass(frozen=True)
class Norm:
    """Of the vision entries older than `recent` seconds every layer gives up the same share; then of all but the newest
    frame's.

    smallest: keep small norms, as QuickVideo has it; False keeps large ones. words: tokens of what was said that stay
    at most. A token without an entry left in any layer is gone, and a frame without tokens with it; where positions
    run out, tokens that the fewest layers hold go, the oldest first.
    """

    recent: float = 4.0
    smallest: bool = True
    words: int = 512
    name = "norm"

    def due(self, memory: Memory, now: float) -> bool:
        return False

    def clear(self, room: Clearing) -> None:
        room.bound_words(self.words)
        for age in (self.recent, -math.inf):
            old = [number for number in room.frames if room.pieces[number].time <= room.now - age]
            for number in old:  # whose tokens have gone before
                if not room.pieces[number].vision:
                    room.forget(number)
            if not room.fits():
                self._thin(room, old)
            if not room.fits():
                self._close(room, old)
            for number in old:
                span = room.span(number)
                # tokens that a reduction dropped have had no entry from the first
                left = room.vision[span] & ~room.partly[span] & (room.held[span] > 0)
                if not room.out[number] and not left.any():
                    room.forget(number)

    def _thin(self, room: Clearing, frames: list[int]) -> None:
        """The same share of every layer's entries of these frames goes, as much as the budget is short of."""
        memory = room.memory
        excess = room.bytes - LOW * (math.inf if memory.budget is None else memory.budget)
        mine = self._tokens(room, frames)
        entries = [
            np.flatnonzero(mine[slots] & ~room.thinned.get(layer, np.zeros(len(slots), dtype=bool)))
            for layer, slots in enumerate(room.slots)
        ]
        there = sum(len(found) * each for found, each in zip(entries, memory.entry_bytes))
        if excess <= 0 or not there:
            return
        for layer, found in enumerate(entries):
            count = math.ceil(len(found) * min(excess / there, 1.0))
            if not count:
                continue
            norms = memory.cache.layers[layer].key_norms(0).cpu().numpy()[found]
            order = np.argsort(-norms if self.smallest else norms, kind="stable")
            room.thin(layer, found[order[:count]])

    def _close(self, room: Clearing, frames: list[int]) -> None:
        """Whole tokens of these frames go until positions fit."""
        excess = math.ceil(room.tokens - LOW * room.memory.reach)
        tokens = np.flatnonzero(self._tokens(room, frames))
        if excess > 0:
            for token in tokens[np.argsort(room.held[tokens], kind="stable")][:excess]:
                room.forget_token(int(token))

    def _tokens(self, room: Clearing, frames: list[int]) -> np.ndarray:
        """(seen,) bool: the vision tokens of frames that are still there."""
        mine = np.zeros(len(room.vision), dtype=bool)
        for number in frames:
            if not room.out[number]:
                mine[room.span(number)] = True
        return mine & room.vision & ~room.partly
