"""One stream = one state machine: push frames, ask at any time. No threads, no UI.

What it puts into the model's context is token for token what `StreamTemplate.encode` gives for the same conversation,
and a step never splits a frame, so a session equals one pass over that conversation, for as long as it forgets nothing
(memory.py). Not thread-safe: one caller.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from videollm_mod.depth import RaggedCache
from videollm_mod.model import StreamingVideoLM
from videollm_mod.packed import pack_linears
from videollm_mod.stream.memory import Memory, Policy, reach_of
from videollm_mod.stream.policies import policy_of
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
    policy: str = "full"  # who forgets
    budget: int | None = None  # bytes that kv_bytes never exceeds
    forgotten: dict[str, int] = field(default_factory=dict)  # what has gone, by kind: memory.FORGOTTEN


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
    window: seconds of video that it remembers whole; the model's own if None, math.inf to forget nothing.
    policy: who forgets what is older, by name or as an object (policies/): `full`, `window`, `carrier`, `norm`. If
    None: `window` where there is one, and words go with their frames: to the model the stream began there.
    words: tokens of what was said that outlive their frames; 512 under a policy that is named.
    kv: how keys and values are stored: None = as they are, "int8" or "fp8"; the model's own if not given.
    budget: bytes of cache entries, never exceeded; None = no bound.
    record_kept: keep `kept` up to date, which tokens of the newest frame each routed layer kept.
    """

    def __init__(
        self,
        model: StreamingVideoLM,
        *,
        threshold: float | None = None,
        window: float | None = None,
        policy: str | Policy | None = None,
        budget: int | None = None,
        words: int | None = None,
        kv: str | None = None,
        record_kept: bool = False,
    ) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold {threshold} is outside [0, 1]; it is a probability.")
        self.model, self.template, self.settings = model, model.template, model.settings
        pack_linears(model)  # on a CPU, two to four times as fast
        self.threshold = self.settings.threshold if threshold is None else threshold
        self.grid: tuple[int, int] = model.encoder.grid
        self.image_size: int = model.encoder.tower.image_size
        self.kept: dict[int, np.ndarray] = {}  # layer -> (1 + h * w,) bool, of the newest frame
        own = math.inf if self.settings.window is None else self.settings.window
        self.window = own if window is None else window
        self.context: list[int] = []  # every id that it remembers, placeholders included
        self.silence = 1.0  # the probability of silence at the newest frame
        self._unspeakable = torch.tensor(self.template.unspeakable(model.lm.config.vocab_size), device=model.device)
        self._record_kept = record_kept
        self._cache = RaggedCache(model.num_layers, model.kv if kv is None else kv)
        chosen = policy_of(policy, window, own=self.settings.window, words=words, budget=budget)
        reach = reach_of(model, self.window)
        self.memory = Memory(model, self._cache, self.context, chosen, budget=budget, reach=reach)
        self._pending = self.template.system(self.settings.system)  # text not yet run through the model
        self._stream_open = False
        self._frames = 0
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
        self.memory.check_question(self.template.user(text))
        self._begin("answer", text, self._time if time is None else time)
        yield from self._speak()

    def state(self) -> SessionState:
        """Time, frames, tokens seen and stored, bytes."""
        cache, memory = self._cache, self.memory
        entry = sum(layer.entry_bytes for layer in cache.layers)
        stored = [rows[0] if rows else 0 for rows in cache.stored]
        return SessionState(
            time=self._time,
            frames=self._frames,
            seen=memory.seen,
            stored=stored,
            kv_bytes=cache.kv_bytes,
            kv_bytes_dense=cache.seen * entry,
            policy=memory.policy.name,
            budget=memory.budget,
            forgotten=dict(memory.forgotten),
        )

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
        self.silence = self._watch(frame)
        if self.silence >= self.threshold:
            return
        self._begin("narration", None, None, probability=1 - self.silence)
        yield from self._speak()

    @torch.inference_mode()
    def _watch(self, frame: FrameTokens) -> float:
        """Run one frame and all text that waits before it, in one step; returns the probability of silence."""
        ids, mask = self.template.frame(first=not self._stream_open)
        text = self._take_pending()
        numbers = [-1] * len(text) + [self._frames if vision else -1 for vision in mask]
        kept: dict[int, torch.Tensor] | None = {} if self._record_kept else None
        scores = None if frame.scores is None else frame.scores[None]
        logits = self._run([*text, *ids], numbers, frame.tokens[None], scores, kept, frame.time)
        if kept is not None:
            where = torch.tensor(numbers) >= 0
            self.kept = {layer: row[0].cpu()[where].numpy() for layer, row in kept.items()}
        self._stream_open = True
        self._frames += 1
        self._time = frame.time
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
        time: float | None = None,
    ) -> torch.Tensor:
        """One step of the model, with a frame at `time` if it has one; returns its last position's logits, (words,)."""
        self.memory.make_room(ids, numbers, () if time is None else (time,))
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
