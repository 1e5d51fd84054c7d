"""One stream = one state machine: push frames, ask at any time. No threads, no UI.

The machine proposes what it wants to run next, and receives the logits; who runs the model is another matter. A
`StreamSession` that is pushed to runs it itself; an `Engine` runs the steps of many sessions at once.

What it puts into the model's context is token for token what `StreamTemplate.encode` gives for the same conversation,
and a step never splits a frame, so a session equals one pass over that conversation, for as long as it forgets nothing
(memory.py). Not thread-safe: one caller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from videollm_mod.attention import use_stream_attention
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
    policy: str  # who forgets
    budget: int | None  # bytes that kv_bytes never exceeds
    forgotten: dict[str, int]  # what has gone, by kind: memory.FORGOTTEN


@dataclass(frozen=True)
class Step:
    """What a session wants to run next: the text that waits, then frames, or none."""

    ids: list[int]
    numbers: list[int]  # of each id: -1 = text, else the number of its frame
    ends: list[int]  # places in `ids` whose logits it needs: the end of each frame, or of the text
    times: tuple[float, ...]  # of the frames, seconds


@dataclass(frozen=True)
class Decision:
    """What a session thought of one frame."""

    time: float  # of the frame, seconds
    silence: float  # the probability of silence; it speaks if that is below the threshold
    kept: dict[int, np.ndarray]  # if recorded: layer -> (1 + h * w,) bool, the tokens that went through


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
    said: str = ""  # the words that have been told so far
    event: StreamEvent | None = None  # set when it is finished


def check_time(time: float) -> None:
    """Raise InputError for a frame's time that is none."""
    if not math.isfinite(time):
        raise InputError(f"a frame's time is {time}; give seconds from the start of the stream.")


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
    system: what it is told first; the model's own words if None.
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
        system: str | None = None,
    ) -> None:
        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"threshold {threshold} is outside [0, 1]; it is a probability.")
        self.model, self.template, self.settings = model, model.template, model.settings
        pack_linears(model)  # on a CPU, two to four times as fast
        use_stream_attention(model.lm)
        self.threshold = self.settings.threshold if threshold is None else threshold
        self.grid: tuple[int, int] = model.encoder.grid
        self.image_size: int = model.encoder.tower.image_size
        self.kept: dict[int, np.ndarray] = {}  # layer -> (1 + h * w,) bool, of the newest frame
        own = math.inf if self.settings.window is None else self.settings.window
        self.window = own if window is None else window
        self.context: list[int] = []  # every id that it remembers, placeholders included
        self.silence = 1.0  # the probability of silence at the newest frame
        self._unspeakable = torch.tensor(self.template.unspeakable(model.lm.config.vocab_size), device=model.device)
        self.pick: Callable[[torch.Tensor], int] | None = None  # the next word, given its logits; None = the likeliest
        self.records = record_kept  # whether `kept` is kept up to date
        self._cache = RaggedCache(model.num_layers, model.kv if kv is None else kv)
        self._cache.live = True
        if model.reducing is not None:
            model.reducing.check_stream(system)
        chosen = policy_of(policy, window, own=self.settings.window, words=words, budget=budget)
        reach = reach_of(model, self.window)
        # text not yet run through the model
        self._pending = self.template.system(self.settings.system if system is None else system)
        self.memory = Memory(model, self._cache, self.context, chosen, self._pending, budget=budget, reach=reach)
        self._stream_open = False
        self._frames = 0
        self._time = 0.0
        self._reply: _Reply | None = None

    # -- the public face -----------------------------------------------------------------------------------------------

    def push(self, frame: Frame) -> list[StreamEvent]:
        """Watch one frame: [] while the model keeps silent, else what it says about it."""
        return [item for item in self.push_iter(frame) if isinstance(item, StreamEvent)]

    def push_iter(self, frame: Frame | FrameTokens) -> Iterator[str | StreamEvent]:
        """As `push`, but yields the reply word by word as it is made, then its event.

        Between two words anything may be done with the session: a question finishes the reply first.
        """
        yield from self._push(frame if isinstance(frame, FrameTokens) else self.encode(frame))

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
        self._finish()
        self.hear(text, time)
        yield from self._speak()

    def tell(self, text: str) -> None:
        """Put a question that is not answered at once: the model does when it decides to speak, or by `reply`."""
        if not text.strip():
            raise InputError("the question is empty; ask something.")
        self._finish()
        self._close()
        self._pending += self.template.user(text)

    def reply(self) -> StreamEvent:
        """Make it speak now, as if it had decided to: an answer to what it was told last."""
        self._finish()
        self.begin()
        for item in self._speak():
            if isinstance(item, StreamEvent):
                return item
        raise AssertionError("a reply always ends with its event")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is asked and said within leaves no trace: the cache goes back in every layer. Frames may not come in.

        Nothing is forgotten meanwhile, so a budget may be exceeded by what is asked and said.
        """
        self._finish()
        length, pending, is_open, frames = len(self.context), list(self._pending), self._stream_open, self._frames
        try:
            with self.memory.at_rest():
                yield
        finally:
            if self._frames != frames:
                raise InputError("frames came in while something was asked aside; push them before or after.")
            self._reply = None
            self._cache.crop_to(length)
            del self.context[length:]
            self._pending, self._stream_open = pending, is_open

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

    def recall(self, said: Sequence[StreamEvent], most: float = math.inf) -> int:
        """Before the first frame: put into its context what it said in an earlier life, as text alone.

        Of too much for its bounds, or for `most` tokens, the newest stays and the rest counts as forgotten. Returns
        how many tokens were put there.
        """
        if self._frames or self.speaking:
            raise InputError("the session has begun already; recall what was said before its first frame.")
        words: list[int] = []
        most = min(most, self.memory.room_for_words())
        for number, event in reversed(list(enumerate(said))):
            ids = [] if event.question is None else self.template.user(event.question)
            ids = [*ids, *self.template.reply_prompt(), *self.template.reply(event.text), *self.template.after_reply]
            if len(words) + len(ids) > most:
                self.memory.never_knew(said[: number + 1])
                break
            words = ids + words
        self._pending += words
        return len(words)

    # -- the machine: for whoever runs the model -----------------------------------------------------------------------

    @property
    def speaking(self) -> bool:
        """Whether a reply is being made: then the next step can only be its next token."""
        return self._reply is not None

    def hear(self, text: str, time: float | None = None) -> None:
        """Begin the answer to a question; not while it is speaking. Raises InputError for an empty one."""
        if not text.strip():
            raise InputError("the question is empty; ask something.")
        assert not self.speaking
        self.memory.check_question(self.template.user(text))
        self._begin("answer", text, self._time if time is None else time)

    def begin(self) -> None:
        """Begin to speak, as if it had decided to, about what it was told last; not while it is speaking."""
        assert not self.speaking
        self._begin("answer", None, None)

    @torch.inference_mode()
    def propose(self, times: Sequence[float] = ()) -> Step:
        """What to run next: the next token of the reply, or the frames that wait, `times` being theirs in seconds.

        It takes as many of them as may share a step: up to one before which something is to be forgotten. What is due
        now is forgotten here; else nothing changes until `receive`, and a step that failed may be proposed again.
        """
        ids, numbers, ends, taken = list(self._pending), [-1] * len(self._pending), [], 0
        for time in times:
            frame, vision = self.template.frame(first=not self._stream_open and taken == 0)
            more = [self._frames + taken if each else -1 for each in vision]
            if taken and not self.memory.has_room([*numbers, *more], time, behind=times[0]):
                break
            ids += frame
            numbers += more
            ends.append(len(ids) - 1)
            taken += 1
            if taken == 1:
                self.memory.make_room(numbers, time)
        if not times:
            self.memory.make_room(numbers, self._time)
        return Step(ids, numbers, ends or [len(ids) - 1], tuple(times[:taken]))

    def judge(self, logits: torch.Tensor, *, pick: bool = True) -> tuple[list[float], list[int]]:
        """Logits (ends, vocabulary) -> of each the probability of silence, and the likeliest token that can be said.

        The same for all sessions of a model, but for those that `pick`; without, one of them is asked for all.
        """
        silence = logits.float().softmax(-1)[:, self.template.interval_id]
        speakable = logits.index_fill(1, self._unspeakable, -torch.inf)
        choose = self.pick if pick else None
        words = speakable.argmax(-1).tolist() if choose is None else [choose(row) for row in speakable]
        return silence.tolist(), words

    @torch.inference_mode()
    def receive(
        self,
        step: Step,
        silence: Sequence[float],
        words: Sequence[int],
        kept: Mapping[int, np.ndarray] | None = None,
    ) -> list[Decision | str | StreamEvent]:
        """Take what a step gave, as `judge` read it at its ends; returns decisions on frames, or words, or an event.

        kept: routed layer -> (ids,) bool, which tokens went through. The first frame that makes it speak is the last
        that it has seen, whatever came after it in the step: that is rolled back, to be proposed again.
        """
        if not step.times:
            self._remember(step.ids, step.numbers, ())
            self._pending = []
            return self._say(words[0])
        decisions: list[Decision | str | StreamEvent] = []
        numbers = np.array(step.numbers)
        for place, time in enumerate(step.times):
            self.kept = {layer: row[numbers == self._frames] for layer, row in (kept or {}).items()}
            self.silence = silence[place]
            self._frames += 1
            self._time = time
            decisions.append(Decision(time, self.silence, self.kept))
            if self.silence < self.threshold:
                break
        end = step.ends[len(decisions) - 1] + 1
        if end < len(step.ids):
            self._cache.crop_to(self._cache.seen - (len(step.ids) - end))
        self._remember(step.ids[:end], step.numbers[:end], step.times[: len(decisions)])
        self._pending, self._stream_open = [], True
        if self.silence < self.threshold:
            self._begin("narration", None, None, probability=1 - self.silence)
        return decisions

    def _remember(self, ids: list[int], numbers: list[int], times: Sequence[float]) -> None:
        """What has gone through the model."""
        self.context += ids
        self.memory.note(ids, numbers, times)

    def _say(self, token: int) -> list[Decision | str | StreamEvent]:
        """One more token of the reply. The end, or the bound on its length, closes it with EOS."""
        reply = self._reply
        assert reply is not None
        going_on = token != self.template.eos_id and len(reply.ids) < self.settings.max_reply_tokens
        if going_on:
            reply.ids.append(token)
            self._pending = [token]
        told: list[Decision | str | StreamEvent] = []
        text = self.template.decode(reply.ids)
        if len(text) > len(reply.said) and text.startswith(reply.said):  # a character may still be half-made
            told.append(text[len(reply.said) :])
            reply.said = text
        if going_on:
            return told
        self._pending = [self.template.eos_id, *self.template.after_reply]  # through the model with what comes next
        self._reply = None
        reply.event = StreamEvent(
            time=reply.time,
            kind=reply.kind,
            text=text,
            frame=reply.frame,
            question=reply.question,
            asked=reply.asked,
            probability=reply.probability,
        )
        return [*told, reply.event]

    def _close(self) -> None:
        if self._stream_open:
            self._pending += self.template.close()
            self._stream_open = False

    def _begin(self, kind: str, question: str | None, asked: float | None, probability: float = 1.0) -> None:
        self._close()
        if question is not None:
            self._pending += self.template.user(question)
        self._pending += self.template.reply_prompt()
        time = self._time if asked is None else max(self._time, asked)
        self._reply = _Reply(kind, question, asked, time, self._frames - 1, probability, [])

    # -- its own driver ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def encode(self, frame: Frame) -> FrameTokens:
        """What `push` makes of a frame first; for whoever does that in a thread of his own."""
        square = letterbox(frame.image[None], self.image_size)  # (1, size, size, 3) uint8
        tokens = self.model.encoder(square.to(self.model.device))[0]  # (tokens, width)
        return FrameTokens(tokens, self.grid, frame.time, frame.index)

    def check_tokens(self, frame: FrameTokens) -> None:
        """Raise InputError for tokens or scores that are no frame of this model's."""
        rows, width = self.model.encoder.tokens_per_frame, self.model.feature_width
        shape = tuple(frame.tokens.shape)
        if shape != (rows, width):
            raise InputError(f"a frame's tokens are {shape}; this model's encoder makes them ({rows}, {width}).")
        if frame.scores is None and self.model.plan.scorer == "given":
            raise InputError("the plan's scorer is 'given', and the frame has no scores; give FrameTokens some.")
        if frame.scores is not None and tuple(frame.scores.shape) != (rows,):
            raise InputError(f"a frame's scores are {tuple(frame.scores.shape)}; give one for each of {rows} tokens.")

    def _push(self, frame: FrameTokens) -> Iterator[str | StreamEvent]:
        self.check_tokens(frame)
        check_time(frame.time)
        self._finish()
        if self._frames and frame.time <= self._time:
            raise InputError(
                f"frame at {frame.time:.3f} s after one at {self._time:.3f} s: frames come in order of time."
            )
        scores = None if frame.scores is None else frame.scores[None]
        self.run(self.propose([frame.time]), frame.tokens[None], scores)
        if self.speaking:
            yield from self._speak()

    def _speak(self) -> Iterator[str | StreamEvent]:
        """Make the current reply, one token at a time."""
        reply, said = self._reply, ""
        assert reply is not None
        while reply.event is None:
            for item in self.run(self.propose()):
                if isinstance(item, str):
                    said += item
                    yield item
        if len(reply.event.text) > len(said):  # a question came in between and had it finished
            yield reply.event.text[len(said) :]
        yield reply.event

    def _finish(self) -> None:
        """Complete a reply whose reader went away or was interrupted, so that the context stays well formed."""
        while self.speaking:
            self.run(self.propose())

    @torch.inference_mode()
    def run(
        self, step: Step, features: torch.Tensor | None = None, scores: torch.Tensor | None = None
    ) -> list[Decision | str | StreamEvent]:
        """Run a step that it proposed, of one frame at most, and receive what it gave: as an engine does for many.

        features: (1, 1 + h * w, width) of the frame; scores: (1, 1 + h * w), for a plan with the scorer `given`.
        """
        kept: dict[int, torch.Tensor] | None = {} if self.records and step.times else None
        before = self._cache.seen
        try:
            out = self.model(
                torch.tensor([step.ids], device=self.model.device),
                torch.tensor([step.numbers]),  # read on the CPU, where it is
                features,
                frame_scores=scores,
                past_key_values=self._cache,
                use_cache=True,
                kept_out=kept,
            )
            judged = self.judge(out.logits[0])
        except BaseException:  # the decoder may be through, and what comes after it not
            self._cache.crop_to(before)
            raise
        rows = {layer: row[0].cpu().numpy() for layer, row in (kept or {}).items()}
        return self.receive(step, *judged, rows)
