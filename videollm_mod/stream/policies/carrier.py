"""After a while a frame shrinks to one token that has looked at all of it, as in VideoScan (LyliAgave/VideoScan).

VideoScan appends a trained carrier token to each frame and drops the frame's own at once. Here nothing is trained: a
token that is there already carries, and frames stay whole for a while. Of more than 64 carriers VideoScan deletes the
earlier one of the two most alike; here the oldest goes. A bound there must be: the bundled model, which has never seen
carriers, speaks as well as ever behind 64 of them, and no longer behind 256 (runs/carriers.py, docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from videollm_mod.stream.memory import Clearing, Memory
from videollm_mod.types import InputError

TOKENS = ("last", "cls", "chosen")


@dataclass(frozen=True)
class Carrier:
    """Frames older than `after` seconds keep one token each.

    token: who carries. `last`: the frame's last token, which makes the decision: the interval token where the model has
    one behind every frame (then all vision tokens go), else the last vision token. `cls`: the first vision token.
    `chosen`: the vision token that the most layers hold, the later one if they are alike; what a routed layer did not
    let through it cannot hold, so `last` and `cls` may be missing in some.
    words: tokens of what was said that stay at most.
    most: carriers that stay at most.
    """

    after: float = 30.0
    token: str = "last"
    words: int = 512
    most: int = 64
    name = "carrier"

    def __post_init__(self) -> None:
        if self.token not in TOKENS:
            raise InputError(f"a frame has no token '{self.token}' to carry it; take one of {', '.join(TOKENS)}.")
        if not self.after > 0:
            raise InputError(f"after {self.after} is no time; give seconds, such as 30.")
        if self.most < 1:
            raise InputError(f"at most {self.most} carriers are none; give 1 or more, or take the policy 'window'.")

    def due(self, memory: Memory, now: float) -> bool:
        oldest = memory.oldest_whole
        return oldest is not None and now - oldest >= 2 * self.after

    def clear(self, room: Clearing) -> None:
        carriers = [number for number in room.frames if not room.pieces[number].whole]
        whole = [number for number in room.frames if room.pieces[number].whole]
        while whole and room.pieces[whole[0]].time <= room.now - self.after:
            self._shrink(room, whole[0])
            carriers.append(whole.pop(0))
        while len(carriers) > self.most:
            room.forget(carriers.pop(0))
        room.bound_words(self.words)
        left = sum(self._size(room, number) for number in carriers)
        still = sum(room.pieces[number].size for number in whole + room.newest)
        while not room.fits() and (carriers or whole):
            if carriers and (left >= still or not whole):  # neither starves the other
                left -= self._size(room, carriers[0])
                room.forget(carriers.pop(0))
            else:
                still -= room.pieces[whole[0]].size
                self._shrink(room, whole[0])
                left += self._size(room, whole[0])
                carriers.append(whole.pop(0))

    def _shrink(self, room: Clearing, number: int) -> None:
        room.shrink(number, self._keep(room, number))

    def _keep(self, room: Clearing, number: int) -> int | None:
        """Which of a frame's vision tokens stays; None if the interval token behind them carries."""
        piece = room.pieces[number]
        if self.token == "last":
            return piece.vision - 1 if piece.lead + piece.vision == piece.size else None
        if self.token == "cls":
            return 0
        begin = int(room.begin[number]) + piece.lead
        held = room.held[begin : begin + piece.vision]
        return int(np.flatnonzero(held == held.max())[-1])

    def _size(self, room: Clearing, number: int) -> int:
        """Tokens of a frame that has shrunk."""
        piece = room.pieces[number]
        return piece.size - piece.vision + 1 if piece.whole else piece.size
