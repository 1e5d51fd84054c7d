"""A source, the vision tower and the decoder at work at the same time: each in its own thread, bounded queues between.

    with Pipeline(video, drop="newest", realtime=True, encode=encode) as frames:
        for ready in frames:
            session.push_iter(ready.tokens or ready.frame)

Pictures are decoded in one thread and, if `encode` is given, made tokens in another, while the caller's runs the
decoder. No queue grows: what happens when the caller is slow is the drop policy (drops.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from videollm_mod.stream.drops import FrameQueue
from videollm_mod.types import Frame, FrameTokens

AHEAD = 4  # frames that are decoded, or encoded, ahead of who takes them
ADAPTIVE = 8  # frames that wait at most with the policy `adaptive`: enough to tell a little lag from much


@dataclass(frozen=True)
class Ready:
    """A frame that somebody may look at."""

    frame: Frame
    due: float  # on the monotonic clock: when it came, or is to be shown
    tokens: FrameTokens | None = None  # if the pipeline encodes


class Pipeline:
    """Iterate over the frames of a source, once.

    drop: `newest`, `all` or `adaptive`; see drops.py.
    live: frames come at their own pace, and are due when they come. Else each is due at its time after the first.
    realtime: frames are worth nothing long after they are due. A file that is not played in real time has no frame that
        is late, so none is dropped, whatever the policy.
    encode: makes a frame's tokens, in a thread of its own. Worth it on a GPU, which has work for both threads; on a CPU
        tower and decoder would only take the cores from one another.
    """

    def __init__(
        self,
        video: Iterable[Frame],
        *,
        drop: str = "all",
        live: bool = False,
        realtime: bool = False,
        encode: Callable[[Frame], FrameTokens] | None = None,
    ) -> None:
        FrameQueue(drop, 1)  # refuses an unknown policy
        self.drop = drop if live or realtime else "all"
        waiting = {"newest": 1, "all": AHEAD, "adaptive": ADAPTIVE}[self.drop]
        self.live, self._encode = live, encode
        self._channels = [_Channel(self.drop, waiting)]
        stages: list[tuple[str, Callable[[], None]]] = [("source", lambda: self._read(video))]
        if encode is not None:
            # of what is encoded, too, only the newest is worth having; a rate need not be lowered twice
            self._channels.append(_Channel("newest", 1) if self.drop == "newest" else _Channel("all", 2))
            stages.append(("tower", self._make_tokens))
        # daemons: a camera that has died keeps its thread inside the driver, and must not keep the program alive
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in stages]

    def __enter__(self) -> Pipeline:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            channel.leave()
        for thread in self._threads:
            thread.join(timeout=2.0)

    def __iter__(self) -> Iterator[Ready]:
        """Frames as they are ready. What goes wrong in a thread is raised here, after the frames before it."""
        yield from self._channels[-1]

    @property
    def dropped(self) -> dict[str, int]:
        """reason -> frames that nobody will see"""
        total: dict[str, int] = {}
        for channel in self._channels:
            for reason, count in channel.dropped.items():
                total[reason] = total.get(reason, 0) + count
        return total

    def _read(self, video: Iterable[Frame]) -> None:
        channel, zero = self._channels[0], None
        with channel:
            for frame in video:
                now = time.monotonic()
                zero = now - frame.time if zero is None else zero
                due = now if self.live else zero + frame.time
                if self.drop != "all":  # late is what is behind its time, not what a file could show at once
                    channel.sleep(due - now)
                if not channel.put(Ready(frame, due)):
                    return

    def _make_tokens(self) -> None:
        source, channel = self._channels
        assert self._encode is not None
        with channel:
            for ready in source:
                if not channel.put(Ready(ready.frame, ready.due, self._encode(ready.frame))):
                    return


class _Channel:
    """A queue between two threads, that ends when its writer ends and tells it when its reader has left."""

    def __init__(self, policy: str, limit: int) -> None:
        self._queue = FrameQueue(policy, limit)
        self._changed = threading.Condition()
        self._ended = self._left = False
        self._failure: BaseException | None = None

    def put(self, item: Any) -> bool:
        """Queue an item, or drop one as the policy says; waits if none may be dropped. False: nobody reads any more."""
        with self._changed:
            if self._queue.policy == "all":
                self._changed.wait_for(lambda: self._left or not self._queue.full)
            if self._left:
                return False
            self._queue.offer(item)
            self._changed.notify_all()
            return True

    def sleep(self, seconds: float) -> None:
        """Wait, unless the reader leaves."""
        with self._changed:
            self._changed.wait_for(lambda: self._left, timeout=max(seconds, 0.0))

    def __enter__(self) -> None:
        """Held by the writer: at its end, or when it fails, the reader comes to an end, too."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        with self._changed:
            self._ended, self._failure = True, error
            self._changed.notify_all()
        return True  # it is raised where the frames are taken

    def leave(self) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._left or self._ended or len(self._queue) > 0)
                if self._left:
                    return
                if not len(self._queue):
                    if self._failure is not None:
                        raise self._failure
                    return
                (item,) = self._queue.take(1)
                self._changed.notify_all()
            yield item

    @property
    def dropped(self) -> dict[str, int]:
        with self._changed:
            return dict(self._queue.dropped)
