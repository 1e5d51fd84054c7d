"""The face of the many-sessions engine over one StreamSession per stream: every step advances each stream by one token
or one frame, in turn. Stands in until the engine proper is there.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import SessionState, StreamSession
from videollm_mod.types import Frame, FrameTokens, InputError, StreamEvent

TEXT_SHARE = 1.25  # of a stream's KV bytes: text beside its frames
UNBOUNDED = 600.0  # seconds of video that a stream without a window is reckoned with


class EngineFull(InputError):
    """A stream does not fit."""


@dataclass(frozen=True)
class EngineOutput:
    """Something that came of a step: one of delta, event, decision."""

    stream: Stream
    delta: str | None = None
    event: StreamEvent | None = None
    decision: tuple[float, float] | None = None  # (time of the frame, probability of silence)
    kept: dict[int, np.ndarray] | None = None  # with a decision, if recorded


class Stream:
    """One stream in the engine; `push` and `ask` only queue and may be called from any thread."""

    def __init__(self, engine: Engine, session: StreamSession, cost: int, record_kept: bool) -> None:
        self._engine, self._session, self.cost, self._record = engine, session, cost, record_kept
        self._queue: deque[Frame | FrameTokens | tuple[str, float | None]] = deque()
        self._running: Iterator[str | StreamEvent] | None = None
        self._frame: float | None = None  # time of the frame that runs
        self.closed = False

    def push(self, frame: Frame) -> None:
        self._queue.append(frame)

    def push_tokens(self, tokens: FrameTokens) -> None:
        self._queue.append(tokens)

    def ask(self, text: str, time: float | None = None) -> None:
        if not text.strip():
            raise InputError("the question is empty; ask something.")
        self._queue.append((text, time))

    def state(self) -> SessionState:
        return self._session.state()

    def close(self) -> None:
        self._engine._close(self)

    @property
    def busy(self) -> bool:
        return self._running is not None or bool(self._queue)

    def advance(self) -> list[EngineOutput]:
        """One token, or one frame."""
        outputs: list[EngineOutput] = []
        if self._running is None:
            item = self._queue.popleft()
            if isinstance(item, tuple):
                self._running, self._frame = self._session.ask_iter(*item), None
            else:
                push = self._session.push_iter if isinstance(item, Frame) else self._session._push
                self._running, self._frame = push(item), item.time  # type: ignore[operator]
        said = next(self._running, None)
        if self._frame is not None:
            kept = dict(self._session.kept) if self._record else None
            outputs.append(EngineOutput(self, decision=(self._frame, self._session.silence), kept=kept))
            self._frame = None
        if said is None:
            self._running = None
        elif isinstance(said, str):
            outputs.append(EngineOutput(self, delta=said))
        else:
            outputs.append(EngineOutput(self, event=said))
        return outputs


class Engine:
    """Many streams over one model, in one thread."""

    def __init__(self, model: StreamingVideoLM, max_bytes: int | None = None) -> None:
        self.model, self.max_bytes = model, max_bytes
        self._streams: list[Stream] = []
        self._lock = threading.Lock()

    def open(self, threshold: float | None = None, window: float | None = None, record_kept: bool = False) -> Stream:
        session = StreamSession(self.model, threshold=threshold, window=window, record_kept=record_kept)
        cost = self._cost(session.window)
        with self._lock:
            used = sum(stream.cost for stream in self._streams)
            if self.max_bytes is not None and used + cost > self.max_bytes:
                raise EngineFull(f"{len(self._streams)} streams fill the memory set apart for them; try again later.")
            stream = Stream(self, session, cost, record_kept)
            self._streams.append(stream)
        return stream

    @property
    def waiting(self) -> int:
        return sum(stream.busy for stream in self._streams)

    def step(self) -> list[EngineOutput]:
        outputs: list[EngineOutput] = []
        for stream in list(self._streams):
            if stream.busy and not stream.closed:
                outputs += stream.advance()
        return outputs

    def _close(self, stream: Stream) -> None:
        stream.closed = True
        with self._lock:
            if stream in self._streams:
                self._streams.remove(stream)

    def _cost(self, window: float) -> int:
        """KV bytes that a stream may come to: two windows of frames, routed, and some text."""
        config = self.model.lm.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        entry = 2 * heads * width * next(self.model.lm.parameters()).element_size()
        tokens = self.model.encoder.tokens_per_frame
        per_frame = sum(math.ceil(ratio * tokens) for ratio in self.model.plan.ratios(self.model.num_layers))
        seconds = UNBOUNDED if window == math.inf else 2 * window
        return int(TEXT_SHARE * seconds * self.model.settings.fps * per_frame * entry)
