"""A live stream as the server holds it: what waits, what is in the engine, who listens; and how a client is refused."""

from __future__ import annotations

import asyncio
import io
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from videollm_mod.serve import protocol

LISTENER_QUEUE = 256  # messages to a client that does not read
FPS_SECONDS = 5.0  # over which frames per second are counted
JPEG_QUALITY = 85


class Refusal(Exception):
    """Something a client asked for is not had; `code` as in the message `error`."""

    def __init__(self, code: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after

    def failure(self, fatal: bool = True) -> protocol.Failure:
        return protocol.Failure(code=self.code, message=self.message, fatal=fatal, retry_after=self.retry_after)  # type: ignore[arg-type]


class Listener:
    """Somebody who is told what happens in a stream."""

    def __init__(self, *, events_only: bool = False) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue(LISTENER_QUEUE)
        self.events_only, self.cut_off = events_only, False

    def tell(self, message: Any) -> None:
        if self.cut_off or (self.events_only and not isinstance(message, protocol.Event | protocol.Closed)):
            return
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.cut_off = True  # what it missed is in the store
            while not self.queue.empty():
                self.queue.get_nowait()
            self.queue.put_nowait(None)


@dataclass
class Waiting:
    """A picture that is not watched yet."""

    time: float
    picture: bytes | np.ndarray
    arrived: float  # monotonic


@dataclass
class Live:
    """A stream that is alive."""

    id: str
    client: str
    stream: Any  # the engine's
    policy: str
    threshold: float
    window: float | None
    kept: bool  # whether kept tokens are sent
    store_frames: bool
    source: str | None = None
    number: int = 0  # of the newest event; the scribe's
    taken: float = -1.0  # time of the newest picture taken
    watched: float = 0.0  # time of the newest frame watched
    frames: int = 0
    pushed: int = 0
    dropped: int = 0
    lag: float = 0.0
    seen: int = 0
    kv_bytes: int = 0
    kv_bytes_dense: int = 0
    questions: int = 0  # waiting
    mailbox: deque[Waiting] = field(default_factory=deque)
    in_engine: deque[Waiting] = field(default_factory=deque)
    feeding: bool = False
    ended: bool = False
    room: asyncio.Event = field(default_factory=asyncio.Event)
    done: deque[float] = field(default_factory=lambda: deque(maxlen=512))  # when the newest frames were watched
    listeners: set[Listener] = field(default_factory=set)
    owner: Listener | None = None  # the connection that feeds it
    alone_since: float = field(default_factory=time.monotonic)
    state: protocol.State | None = None
    newest: bytes | np.ndarray | None = None  # the newest picture of a server-side source

    def tell(self, message: Any) -> None:
        for listener in list(self.listeners):
            listener.tell(message)

    @property
    def alone(self) -> bool:
        """Whether nobody feeds a stream that somebody should."""
        return self.source is None and self.owner is None

    def fps(self) -> float:
        """Frames watched per second, over the last few."""
        now = time.monotonic()
        return sum(now - moment <= FPS_SECONDS for moment in self.done) / FPS_SECONDS


def encode_jpeg(image: np.ndarray) -> bytes:
    """(height, width, 3) uint8 -> JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
