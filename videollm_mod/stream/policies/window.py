"""System text, the newest words, the newest seconds of video: to the model the stream began there.

In the manner of StreamingVLM (attention sink + recent text + recent vision), with one difference: keys are turned to
where their tokens now stand, so that the model sees what it saw in training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from videollm_mod.stream.memory import Clearing, Memory


@dataclass(frozen=True)
class Window:
    """Once the oldest frame is two windows old, all frames but those of the newest window go.

    seconds: of the window; inf where only a budget bounds it. words: tokens of what was said that stay at most; what
    was said within the kept frames stays in any case, and older words only as far as there is room beside it.
    If the bounds are too narrow for a window, it is shorter.
    """

    seconds: float = math.inf
    words: int = 512
    name = "window"

    def due(self, memory: Memory, now: float) -> bool:
        oldest = memory.oldest_whole
        return oldest is not None and now - oldest >= 2 * self.seconds

    def clear(self, room: Clearing) -> None:
        old = [number for number in room.frames if room.pieces[number].time <= room.now - self.seconds]
        for number in old:
            room.forget(number)
        left = room.frames[len(old) :] + room.newest
        while True:
            room.bound_words(self.words, before=left[0] if left else None)
            if room.fits() or len(left) < 2:
                return
            room.forget(left.pop(0))
