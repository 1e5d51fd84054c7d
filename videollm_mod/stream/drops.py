"""Which frames a slow consumer sees: a bounded queue with a named policy, and a count of what was dropped and why.

    newest    when the queue is full the oldest frame gives way: what is seen is never older than the queue is long
    all       no frame is dropped: whoever has a frame for a full queue waits, or is told
    adaptive  the fuller the queue, the fewer of the coming frames are taken, evenly spread: the frame rate goes down
              and up smoothly, where `newest` drops runs of frames

A queue may hold other things than frames, in their order among the frames; those are never dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from videollm_mod.types import InputError

POLICIES = ("newest", "all", "adaptive")
SMOOTH = 0.2  # how far the share of frames that `adaptive` takes moves at each frame towards what the queue says


class FrameQueue:
    """At most `limit` frames, and what stands between them. Not thread-safe: its owner locks.

    dropped: reason -> frames; the reasons of this queue are the names of the policies that drop.
    """

    def __init__(self, policy: str, limit: int) -> None:
        if policy not in POLICIES:
            raise InputError(f"drop policy '{policy}' is unknown; take one of {', '.join(POLICIES)}.")
        if limit < 1:
            raise InputError(f"a queue of {limit} frames holds nothing; give 1 or more.")
        self.policy, self.limit = policy, limit
        self.frames = 0  # that wait
        self.share = 1.0  # of the coming frames, that `adaptive` takes
        self.dropped: dict[str, int] = {}
        self._credit = 0.5  # below 1, so that no rounding takes a frame too many
        self._items: deque[tuple[bool, Any]] = deque()  # (whether it is a frame, the item)

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return self.frames >= self.limit

    def offer(self, frame: Any) -> bool:
        """Put a frame at the end; returns whether it was taken. `all` does not take one while the queue is full."""
        if self.policy == "all" and self.full:
            return False
        if self.policy == "adaptive" and not self._wanted():
            self.drop("adaptive")
            return False
        self._items.append((True, frame))
        self.frames += 1
        self._make_room()
        return True

    def _wanted(self) -> bool:
        """Whether the share that is taken comes to this frame."""
        late = max(self.frames - 1, 0) / max(self.limit - 1, 1)  # one that waits is no lag yet
        self.share += SMOOTH * (1 - late - self.share)
        self._credit += self.share
        if self.full or self._credit < 1:
            self._credit = min(self._credit, 1.0)
            return False
        self._credit -= 1
        return True

    def _make_room(self) -> None:
        while self.policy == "newest" and self.frames > self.limit:
            oldest = next(place for place, (is_frame, _) in enumerate(self._items) if is_frame)
            del self._items[oldest]
            self.frames -= 1
            self.drop("newest")

    def drop(self, reason: str, frames: int = 1) -> None:
        """Count frames that nobody will see."""
        self.dropped[reason] = self.dropped.get(reason, 0) + frames

    def note(self, item: Any) -> None:
        """Put something at the end that is no frame."""
        self._items.append((False, item))

    def waiting(self) -> list[Any]:
        """All frames, in their order."""
        return [item for is_frame, item in self._items if is_frame]

    def head(self, most: int) -> list[Any]:
        """The frames that are next, at most so many; none if something else stands before them."""
        found: list[Any] = []
        for is_frame, item in self._items:
            if not is_frame or len(found) == most:
                break
            found.append(item)
        return found

    def take(self, count: int) -> list[Any]:
        """Take the first `count` items out, frames or not."""
        taken = []
        for _ in range(count):
            is_frame, item = self._items.popleft()
            self.frames -= is_frame
            taken.append(item)
        return taken

    def put_back(self, frames: list[Any]) -> None:
        """Frames that were taken, to the front again, in their order."""
        self._items.extendleft((True, frame) for frame in reversed(frames))
        self.frames += len(frames)
        self._make_room()
