"""One stream = one state machine: push frames, ask at any time. No threads, no UI.

What it puts into the model's context is token for token what `StreamTemplate.encode` gives for the same conversation,
and a step never splits a frame, so a session equals one pass over that conversation, for as long as it forgets nothing
(`window`). Not thread-safe: one caller.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from videollm_mod.depth import RaggedCache
from videollm_mod.depth.layer import find_decoder, turned, turns
from videollm_mod.model import StreamingVideoLM
from videollm_mod.packed import pack_linears
from videollm_mod.types import Frame, FrameTokens, InputError, StreamEvent
from videollm_mod.video import letterbox


@dataclass(frozen=True)
class SessionState:
    """Where a session stands."""

    time: float  # of the newest frame, seconds; 0 before the first
    frames: int  # pushed so far
    seen: int  # tokens that went through the model's ears and eyes
    stored: list[int]  # KV entries per layer
    kv_bytes: int  # in use
    kv_bytes_dense: int  # what the tokens that it remembers take without routing


@dataclass
class _Reply:
    """A reply in the making."""

    kind: str
    question: str | None
    asked: float | None
    time: float
    frame: int
    probability: float
    ids: list[int]
    event: StreamEvent | None = None  # set when it is finished


class StreamSession:
    """A live stream through a model.

    threshold: speak when the probability of silence falls below it; the model's own, calibrated one if None.
    window: seconds of video that it remembers at least, so that memory and positions stay bounded; the model's own if
    None, math.inf to forget nothing. When its oldest frame is two windows old, a session forgets all but the system
    text and the newest window, replies included: to the model the stream then began there.
    record_kept: keep `kept` up to date, which tokens of the newest frame each routed layer kept.
    """

    def __init__(
        self,
        model: StreamingVideoLM,
        *,
        threshold: float | None = None,
        window: float | None = None,
        record_kept: bool = False,
    ) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold {threshold} is outside [0, 1]; it is a probability.")
        if window is not None and not window > 0:
            raise InputError(f"window {window} is no time; give seconds of video, such as 30.")
        self.model, self.template, self.settings = model, model.template, model.settings
        pack_linears(model)  # on a CPU, two to four times as fast
        self.threshold = self.settings.threshold if threshold is None else threshold
        self.grid: tuple[int, int] = model.encoder.grid
        self.image_size: int = model.encoder.tower.image_size
        self.kept: dict[int, np.ndarray] = {}  # layer -> (1 + h * w,) bool, of the newest frame
        own = math.inf if self.settings.window is None else self.settings.window
        self.window = own if window is None else window
        if self.window < math.inf and not turns(find_decoder(model.lm)):
            kind = type(model.lm).__name__
            raise InputError(f"{kind} cannot forget: its keys do not turn with the position; give window=inf.")
        self.context: list[int] = []  # every id that it remembers, placeholders included
        self.silence = 1.0  # the probability of silence at the newest frame
        self._unspeakable = torch.tensor(self.template.unspeakable(model.lm.config.vocab_size), device=model.device)
        self._record_kept = record_kept
        if model.reducing is not None:
            model.reducing.check_stream()
        self._cache = RaggedCache(model.num_layers)
        self._cache.live = True
        self._pending = self.template.system(self.settings.system)  # text not yet run through the model
        self._stream_open = False
        self._frames = 0
        self._times: deque[float] = deque()  # of the frames that it remembers
        self._forgotten = 0  # tokens
        self._time = 0.0
        self._reply: _Reply | None = None

    # -- the public face -----------------------------------------------------------------------------------------------

    def push(self, frame: Frame) -> list[StreamEvent]:
        """Watch one frame: [] while the model keeps silent, else what it says about it."""
        return [item for item in self.push_iter(frame) if isinstance(item, StreamEvent)]

    def push_iter(self, frame: Frame) -> Iterator[str | StreamEvent]:
        """As `push`, but yields the reply word by word as it is made, then its event.

        Between two words anything may be done with the session: a question finishes the reply first.
        """
        yield from self._push(self._encode(frame))

    def push_tokens(self, tokens: FrameTokens) -> list[StreamEvent]:
        """As `push`, for a frame whose tokens `model.encoder` has made already: many frames at once are cheaper."""
        return [item for item in self._push(tokens) if isinstance(item, StreamEvent)]

    def ask(self, text: str, time: float | None = None) -> StreamEvent:
        """Put a question now, also while a narration is being made (it is finished first); returns the answer."""
        for item in self.ask_iter(text, time):
            if isinstance(item, StreamEvent):
                return item
        raise AssertionError("a reply always ends with its event")

    def ask_iter(self, text: str, time: float | None = None) -> Iterator[str | StreamEvent]:
        """As `ask`, but yields the answer word by word, then its event.

        `time` (s) is when it was asked, if not now. Between two frames that is after the newest: the event's time is
        then `time`, as no answer comes before its question; its `frame` is still the newest one seen.
        """
        if not text.strip():
            raise InputError("the question is empty; ask something.")
        self._finish()
        self._begin("answer", text, self._time if time is None else time)
        yield from self._speak()

    def state(self) -> SessionState:
        """Time, frames, tokens seen and stored, bytes."""
        cache = self._cache
        entry = sum(layer.entry_bytes for layer in cache.layers)
        stored = [rows[0] if rows else 0 for rows in cache.stored]
        seen = cache.seen + self._forgotten
        return SessionState(self._time, self._frames, seen, stored, cache.kv_bytes, cache.seen * entry)

    # -- the machine ---------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _encode(self, frame: Frame) -> FrameTokens:
        square = letterbox(frame.image[None], self.image_size)  # (1, size, size, 3) uint8
        tokens = self.model.encoder(square.to(self.model.device))[0]  # (tokens, width)
        return FrameTokens(tokens, self.grid, frame.time, frame.index)

    def _push(self, frame: FrameTokens) -> Iterator[str | StreamEvent]:
        self._finish()
        if self._frames and frame.time <= self._time:
            raise InputError(
                f"frame at {frame.time:.3f} s after one at {self._time:.3f} s: frames come in order of time."
            )
        self._forget(frame.time)
        self.silence = self._watch(frame)
        if self.silence >= self.threshold:
            return
        self._begin("narration", None, None, probability=1 - self.silence)
        yield from self._speak()

    @torch.inference_mode()
    def _forget(self, now: float) -> None:
        """Before a frame at `now`: if the oldest frame is two windows old, forget all but the newest window.

        From the first frame on everything goes, up to the first frame that stays: before that one there is then the "["
        of the first. The newest frame stays in any case.
        """
        if len(self._times) < 2 or now - self._times[0] < 2 * self.window:
            return
        spans = self._cache.frames[0]
        gone = min(sum(time <= now - self.window for time in self._times), len(spans) - 1)
        begin, end = spans[0].begin, spans[gone].begin
        decoder = find_decoder(self.model.lm)
        self._cache.forget(begin, end, lambda keys, by: turned(decoder, keys, by))
        del self.context[begin:end]
        for _ in range(gone):
            self._times.popleft()
        self._forgotten += end - begin

    @torch.inference_mode()
    def _watch(self, frame: FrameTokens) -> float:
        """Run one frame and all text that waits before it, in one step; returns the probability of silence."""
        ids, mask = self.template.frame(first=not self._stream_open)
        text = self._take_pending()
        numbers = [-1] * len(text) + [self._frames if vision else -1 for vision in mask]
        kept: dict[int, torch.Tensor] | None = {} if self._record_kept else None
        scores = None if frame.scores is None else frame.scores[None]
        logits = self._run([*text, *ids], numbers, frame.tokens[None], scores, kept)
        if kept is not None:
            where = torch.tensor(numbers) >= 0
            self.kept = {layer: row[0].cpu()[where].numpy() for layer, row in kept.items()}
        self._stream_open = True
        self._frames += 1
        self._time = frame.time
        self._times.append(frame.time)
        return float(logits.float().softmax(-1)[self.template.interval_id])

    def _begin(self, kind: str, question: str | None, asked: float | None, probability: float = 1.0) -> None:
        if self._stream_open:
            self._pending += self.template.close()
            self._stream_open = False
        if question is not None:
            self._pending += self.template.user(question)
        self._pending += self.template.reply_prompt()
        time = self._time if asked is None else max(self._time, asked)
        self._reply = _Reply(kind, question, asked, time, self._frames - 1, probability, [])

    def _speak(self) -> Iterator[str | StreamEvent]:
        """Make the current reply, one token at a time."""
        reply, said = self._reply, ""
        assert reply is not None
        while reply.event is None:
            self._advance()
            text = self.template.decode(reply.ids)
            if len(text) > len(said) and text.startswith(said):  # a character may still be half-made
                new, said = text[len(said) :], text
                yield new
        if len(reply.event.text) > len(said):  # a question came in between and had it finished
            yield reply.event.text[len(said) :]
        yield reply.event

    def _finish(self) -> None:
        """Complete a reply whose reader went away or was interrupted, so that the context stays well formed."""
        while self._reply is not None:
            self._advance()

    @torch.inference_mode()
    def _advance(self) -> None:
        """One more token of the reply; greedy. The end, or the bound on its length, closes it with EOS."""
        reply = self._reply
        assert reply is not None
        text = self._take_pending()
        logits = self._run(text, [-1] * len(text))
        token = int(logits.index_fill(0, self._unspeakable, -torch.inf).argmax())
        if token != self.template.eos_id and len(reply.ids) < self.settings.max_reply_tokens:
            reply.ids.append(token)
            self._pending = [token]
            return
        self._pending = [self.template.eos_id, *self.template.after_reply]  # through the model with what comes next
        self._reply = None
        reply.event = StreamEvent(
            time=reply.time,
            kind=reply.kind,
            text=self.template.decode(reply.ids),
            frame=reply.frame,
            question=reply.question,
            asked=reply.asked,
            probability=reply.probability,
        )

    def _take_pending(self) -> list[int]:
        text, self._pending = self._pending, []
        return text

    def _run(
        self,
        ids: list[int],
        numbers: list[int],
        features: torch.Tensor | None = None,
        scores: torch.Tensor | None = None,
        kept: dict[int, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """One step of the model; returns the logits of its last position, (vocabulary,)."""
        self.context += ids
        device = self.model.device
        out = self.model(
            torch.tensor([ids], device=device),
            torch.tensor([numbers]),  # read on the CPU, where it is
            features,
            frame_scores=scores,
            past_key_values=self._cache,
            use_cache=True,
            kept_out=kept,
        )
        return out.logits[0, -1]
