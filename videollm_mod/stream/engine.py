"""Many sessions in one model: whatever waits in any of them, frames, questions, words, goes through in one step.

    engine = vm.Engine(model)
    stream = engine.open()                  # any number, at any time; any thread may push and ask
    stream.push(frame)
    stream.ask("What is in view?")
    while engine.waiting:
        for output in engine.step():        # one thread steps
            print(output.stream, output.delta, output.event, output.decision)

A stream is a `StreamSession` whose steps the engine runs: linear layers once over the tokens of all streams, attention
stream by stream (depth/step.py). What it says and keeps is what it would alone. Frames of one stream that wait share a
step, too; if one of them makes the model speak, those behind it are rolled back and wait again.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest

import numpy as np
import torch

from videollm_mod.depth.cache import RaggedCache
from videollm_mod.depth.plan import keep_count
from videollm_mod.depth.step import try_together
from videollm_mod.depth.swap import find_decoder
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.drops import FrameQueue
from videollm_mod.stream.memory import Policy, bytes_of_entries
from videollm_mod.stream.policies.carrier import Carrier
from videollm_mod.stream.session import Decision, SessionState, Step, StreamSession, check_time
from videollm_mod.stream.together import Given, Share, frames_at_once, run_together
from videollm_mod.types import Frame, FrameTokens, InputError, StreamEvent
from videollm_mod.video import letterbox

QUEUE = 8  # frames of one stream that wait, unless `open` is told otherwise
QUESTIONS = 16  # questions of one stream that wait
PICTURES = 64  # that `encode_ahead` makes tokens of at a time: a step that needs one of them waits for them all


class EngineFull(InputError):
    """No memory is left in the engine's budget; close a stream, or come back later."""


class QueueFull(InputError):
    """A stream that may drop no frame has no room for one; step, then push it again."""


@dataclass(frozen=True)
class EngineOutput:
    """Something that a step gave: one of delta, event, decision."""

    stream: EngineStream
    delta: str | None = None  # the next words of the reply that is being made
    event: StreamEvent | None = None  # a reply that is finished
    decision: tuple[float, float] | None = None  # on a frame: its time, seconds, and the probability of silence
    kept: dict[int, np.ndarray] | None = None  # with a decision, if recorded: layer -> (1 + h * w,) bool


@dataclass(frozen=True)
class EngineState(SessionState):
    """Where a stream of an engine stands. In the middle of a step numbers may be those before or after it."""

    queued: int = 0  # frames and questions that wait
    dropped: dict[str, int] = field(
        default_factory=dict
    )  # reason -> frames: "newest" and "adaptive" as in drops.py, "memory" beyond the budget


@dataclass
class _Frame:
    """A frame that waits, and its tokens once they are made."""

    time: float
    square: torch.Tensor | None  # (size, size, 3) uint8, on the CPU
    tokens: torch.Tensor | None  # (1 + h * w, width)
    scores: torch.Tensor | None  # (1 + h * w,)


@dataclass(frozen=True)
class _Question:
    text: str
    time: float | None


@dataclass(frozen=True)
class _Turn:
    """One stream's part of a step."""

    stream: EngineStream
    step: Step
    frames: list[_Frame]


class EngineStream:
    """One stream of an engine; made by `Engine.open`. All methods may be called from any thread."""

    def __init__(self, engine: Engine, session: StreamSession, queue: FrameQueue) -> None:
        self.engine, self.closed = engine, False
        self._session, self._queue = session, queue
        self._newest: float | None = None  # time of the newest frame that was pushed, dropped ones included
        self._questions = 0  # that wait
        self._longest = 0  # tokens of the longest that is not answered yet
        self._least = 0  # bytes of the engine's budget that are its own as long as it is open
        self._room = 0  # and those that are its own now: never less than it uses
        self._for_answers = 0  # of them, those for questions that are not answered yet
        self.grid, self.threshold = session.grid, session.threshold

    def push(self, frame: Frame) -> bool:
        """Queue a frame; returns whether it was taken, which it may later have to give way to others.

        Raises InputError for a frame that is not later than the one before, QueueFull if nothing may be dropped.
        """
        # here, in the caller's thread, and so that a picture that waits is small
        square = letterbox(frame.image[None], self._session.image_size)[0]
        return self._offer(_Frame(frame.time, square, None, None))

    def push_tokens(self, tokens: FrameTokens) -> bool:
        """As `push`, for a frame whose tokens `model.encoder` has made already."""
        self._session.check_tokens(tokens)
        return self._offer(_Frame(tokens.time, None, tokens.tokens, tokens.scores))

    def ask(self, text: str, time: float | None = None) -> None:
        """Queue a question behind the frames that wait. `time`, in seconds, is when it was asked, if not then.

        Raises InputError for an empty one, one that the stream's bounds never hold, or if too many wait, and
        EngineFull if there is no memory for an answer.
        """
        if not text.strip():
            raise InputError("the question is empty; ask something.")
        with self.engine._arrived:
            self._refuse_closed()
            if self._questions >= QUESTIONS:
                raise InputError(f"{QUESTIONS} questions wait for an answer already; ask again later.")
            ids = self._session.template.user(text)
            self._session.memory.check_question(ids, behind=self._longest)  # here, not in the step of all streams
            self.engine._reserve_answer(self, len(ids))
            self._questions += 1
            self._longest = max(self._longest, len(ids))
            self._queue.note(_Question(text, time))
            self.engine._arrived.notify_all()

    def recall(self, said: Sequence[StreamEvent]) -> None:
        """As of `StreamSession`, as much as the engine's budget has room for; before anything is pushed."""
        with self.engine._arrived:
            self.engine._recall(self, said)

    def state(self) -> EngineState:
        """Time, frames, tokens seen and stored, bytes, what waits, what was dropped."""
        with self.engine._arrived:
            queued, dropped = len(self._queue), dict(self._queue.dropped)
        return EngineState(**asdict(self._session.state()), queued=queued, dropped=dropped)

    def close(self) -> None:
        """Leave the engine; what waits is forgotten, and the memory free again. May be called again."""
        with self.engine._arrived:
            if not self.closed:
                self.closed = True
                self.engine._streams.remove(self)

    @property
    def kept(self) -> dict[int, np.ndarray]:
        """If recorded: layer -> (1 + h * w,) bool, the tokens of the newest frame that went through."""
        return self._session.kept

    def _offer(self, frame: _Frame) -> bool:
        check_time(frame.time)
        with self.engine._arrived:
            self._refuse_closed()
            if self._newest is not None and frame.time <= self._newest:
                raise InputError(
                    f"frame at {frame.time:.3f} s after one at {self._newest:.3f} s: frames come in order of time."
                )
            taken = self._queue.offer(frame)
            if not taken and self._queue.policy == "all":
                raise QueueFull(f"{self._queue.limit} frames wait and none may be dropped; step, then push again.")
            self._newest = frame.time
            self.engine._arrived.notify_all()
            return taken

    def _refuse_closed(self) -> None:
        if self.closed:
            raise InputError("the stream is closed; open another.")

    @property
    def waiting(self) -> bool:
        """Whether a frame or a question waits, or a sentence is in the making."""
        return self._session.speaking or len(self._queue) > 0


class Engine:
    """Runs any number of streams through one model, a step at a time.

    max_bytes: of KV entries in use, all streams together (buffers are up to 1.5 times as large); None: no bound. It is
        never exceeded: a stream is opened only if there is room for two windows of frames (without a window: for one
        frame) and a reply, which is then its own, and frames beyond the budget are dropped.

    A token reduction may be in the model (`with reduction.on(model):`, around all that the engine does), one that acts
    before the decoder; those that act in it or on its cache have one stream at a time.

    Raises InputError for a decoder, or a reduction, that cannot run many streams in one step.
    """

    def __init__(self, model: StreamingVideoLM, max_bytes: int | None = None) -> None:
        if max_bytes is not None and max_bytes < 1:
            raise InputError(f"max_bytes {max_bytes} holds nothing; give a number of bytes, or None.")
        self.model, self.max_bytes = model, max_bytes
        vision = model.encoder.tokens_per_frame
        if model.reducing is not None:
            model.reducing.check_stream()
            model.reducing.check_shared()
            vision = model.reducing.left_of_frame()
        self._decoder = find_decoder(model.lm)
        self._streams: list[EngineStream] = []
        self._arrived = threading.Condition()  # guards queues and the list of streams
        self._stepping = threading.Lock()
        self._tower = threading.Lock()  # has one caller at a time
        try_together(self._decoder)
        entry = bytes_of_entries(self._decoder, RaggedCache(model.num_layers, model.kv))
        template, settings = model.template, model.settings
        self._token_bytes = sum(entry)  # of one token of text
        self._vision_bytes = sum(  # of the vision tokens of one frame
            size * (vision if layer.depth_ratio is None else keep_count(layer.depth_ratio, vision))
            for size, layer in zip(entry, self._decoder.layers)
        )
        around = len(template.close()) + len(template.reply_prompt()) + 1 + len(template.after_reply)
        self._reply_bytes = self._token_bytes * (around + settings.max_reply_tokens)
        # the text beside a frame: the first one's, and that of those which follow
        first, later = (len(template.frame(first=at)[0]) - model.encoder.tokens_per_frame for at in (True, False))
        opening = len(template.system(settings.system)) + first + 1 + len(template.after_reply)
        self._frame_bytes = self._token_bytes * opening + self._vision_bytes  # with all text that may come before it
        self._next_bytes = self._token_bytes * later + self._vision_bytes

    # -- streams -------------------------------------------------------------------------------------------------------

    def open(
        self,
        threshold: float | None = None,
        window: float | None = None,
        record_kept: bool = False,
        *,
        policy: str | Policy | None = None,
        budget: int | None = None,
        drop: str = "newest",
        queue: int = QUEUE,
    ) -> EngineStream:
        """A new stream; the first five as of `StreamSession`.

        drop: what happens to frames that come faster than they are seen, `newest`, `all` or `adaptive`: see drops.py.
        queue: frames that may wait. Raises EngineFull when the budget has no room for another stream.
        """
        session = StreamSession(
            self.model, threshold=threshold, window=window, policy=policy, budget=budget, record_kept=record_kept
        )
        stream = EngineStream(self, session, FrameQueue(drop, queue))
        frames = math.ceil(2 * session.window * self.model.settings.fps) if session.window < math.inf else 0
        least = self._frame_bytes + frames * self._next_bytes + self._reply_bytes
        if isinstance(session.memory.policy, Carrier):  # its carriers stay, each a token and the text beside its frame
            least += session.memory.policy.most * (self._next_bytes - self._vision_bytes + self._token_bytes)
        stream._least = stream._room = least if budget is None else budget
        with self._arrived:
            left = self._left()
            if stream._room > left:
                raise EngineFull(
                    f"{len(self._streams)} streams leave {left:,.0f} of {self.max_bytes:,} bytes, and another needs "
                    f"{stream._room:,}; close one, or raise max_bytes."
                )
            self._streams.append(stream)
        return stream

    @property
    def streams(self) -> tuple[EngineStream, ...]:
        """Those that are open."""
        with self._arrived:
            return tuple(self._streams)

    @property
    def waiting(self) -> bool:
        """Whether a step would have something to do."""
        with self._arrived:
            return any(stream.waiting for stream in self._streams)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until something waits, or for `timeout` seconds; returns whether something does."""
        with self._arrived:
            return self._arrived.wait_for(lambda: any(stream.waiting for stream in self._streams), timeout)

    @property
    def kv_bytes(self) -> int:
        """KV entries in use, all streams."""
        return sum(stream._session._cache.kv_bytes for stream in self.streams)

    # -- the budget ----------------------------------------------------------------------------------------------------

    def _left(self) -> float:
        """Bytes of the budget that are nobody's."""
        return math.inf if self.max_bytes is None else self.max_bytes - sum(stream._room for stream in self._streams)

    def _recall(self, stream: EngineStream, said: Sequence[StreamEvent]) -> None:
        if stream._session.memory.budget is not None:  # all of which is its own already
            stream._session.recall(said)
            return
        more = self._token_bytes * stream._session.recall(said, most=self._left() / self._token_bytes)
        stream._least += more
        stream._room += more

    def _reserve_answer(self, stream: EngineStream, question: int) -> None:
        """Make room for the answer to a question of so many tokens."""
        need = self._reply_bytes + self._token_bytes * question
        if need > self._left():
            raise EngineFull(f"an answer may take {need:,} bytes, more than is left; close a stream, or ask later.")
        stream._room += need
        stream._for_answers += need

    def _reserve_frames(self, stream: EngineStream, step: Step) -> bool:
        """Make room for a step with frames, and for what may be said about them, if the budget has it."""
        if self.max_bytes is None:
            return True
        more = step.numbers.count(-1) * self._token_bytes + len(step.times) * self._vision_bytes
        with self._arrived:
            need = stream._session._cache.kv_bytes + more + self._reply_bytes + stream._for_answers
            if stream._session.memory.budget is not None:  # it forgets in time
                need = min(need, stream._session.memory.budget)
            if need > stream._room + self._left():
                return False
            stream._room = max(need, stream._least)  # less than before, if it has forgotten something
            return True

    @torch.inference_mode()
    def encode_ahead(self) -> int:
        """Make the tokens of pictures that wait, in another thread than the one that steps; returns of how many.

        So the tower works while the decoder does, where the device has room for both; a step makes itself what is not
        ready, and waits for what is being made only if it lacks a picture's tokens. The oldest of each stream come
        first, PICTURES of all at most: call it until it returns 0. Pictures that later give way to newer ones are made
        in vain.
        """
        with self._arrived:
            queues = [stream._queue.waiting() for stream in self._streams]
        in_turn = [frame for row in zip_longest(*queues) for frame in row if frame is not None and frame.tokens is None]
        return self._encode(in_turn[:PICTURES])

    # -- a step --------------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[EngineOutput]:
        """Run everything that waits, as far as one step goes: of each stream its frames, or its next word.

        Returns what came of it, [] if nothing waits. A step that fails leaves all streams as they were before it.
        """
        with self._stepping:
            turns = self._turns()
            if not turns:
                return []
            try:
                given = self._run(turns)
            except BaseException:
                self._give_back(turns)
                raise
            return [output for turn, one in zip(turns, given) for output in self._receive(turn, one)]

    def _turns(self) -> list[_Turn]:
        """What each stream wants to run; none of those that have nothing to do."""
        with self._arrived:
            streams = [stream for stream in self._streams if stream.waiting]
            watching = sum(stream._queue.frames > 0 for stream in streams)
        chunk = frames_at_once(self.model, watching)
        turns: list[_Turn] = []
        try:
            for stream in streams:
                turn = self._turn(stream, chunk)
                turns += [] if turn is None else [turn]
        except BaseException:
            self._give_back(turns)
            raise
        return turns

    def _give_back(self, turns: Sequence[_Turn]) -> None:
        """Frames of a step that failed wait again."""
        with self._arrived:
            for turn in turns:
                turn.stream._queue.put_back(turn.frames)

    def _turn(self, stream: EngineStream, chunk: int) -> _Turn | None:
        session, queue = stream._session, stream._queue
        while not session.speaking:
            with self._arrived:
                frames = queue.take(len(queue.head(chunk)))
                question = None if frames or not len(queue) else queue.take(1)[0]
                stream._questions -= question is not None
            if question is not None:
                session.hear(question.text, question.time)
                break
            if not frames:
                return None
            times = [frame.time for frame in frames]
            try:
                step = session.propose(times)
                while step.times and not self._reserve_frames(stream, step):
                    step = session.propose(times[: len(step.times) - 1])
            except BaseException:
                with self._arrived:
                    queue.put_back(frames)
                raise
            with self._arrived:
                if step.times:
                    queue.put_back(frames[len(step.times) :])
                    return _Turn(stream, step, frames[: len(step.times)])
                queue.drop("memory", len(frames))
        return _Turn(stream, session.propose(), [])

    def _run(self, turns: list[_Turn]) -> list[Given]:
        """The model's step."""
        self._encode([frame for turn in turns for frame in turn.frames])
        shares = [
            Share(
                turn.stream._session,
                turn.step,
                [frame.tokens for frame in turn.frames if frame.tokens is not None],
                [frame.scores for frame in turn.frames if frame.scores is not None],
            )
            for turn in turns
        ]
        return run_together(self.model, self._decoder, shares)

    def _encode(self, frames: Sequence[_Frame]) -> int:
        """Make the tokens that are not there yet, all in one call of the tower; returns how many.

        Words, and frames that are ready, do not wait for what the tower is making for others.
        """
        if all(frame.tokens is not None for frame in frames):
            return 0
        with self._tower:
            raw = [frame for frame in frames if frame.tokens is None]  # still: another thread may have made them
            squares = [frame.square for frame in raw if frame.square is not None]
            if squares:
                made = self.model.encoder(torch.stack(squares).to(self.model.device))
                if made.device.type == "cuda":  # whoever takes them may be on another stream of the device
                    torch.cuda.current_stream(made.device).synchronize()
                for frame, tokens in zip(raw, made):
                    frame.tokens, frame.square = tokens, None
        return len(squares)

    def _receive(self, turn: _Turn, given: Given) -> list[EngineOutput]:
        stream, session = turn.stream, turn.stream._session
        items = session.receive(turn.step, given.silence, given.words, given.kept)
        with self._arrived:
            if turn.frames:
                stream._queue.put_back(turn.frames[len(items) :])  # those behind the one that made it speak
            if stream._for_answers and not session.speaking and stream._questions == 0:
                stream._for_answers = stream._longest = 0
                stream._room = min(stream._room, max(session._cache.kv_bytes + self._reply_bytes, stream._least))
            if stream.closed:
                return []
        outputs = []
        for item in items:
            if isinstance(item, Decision):
                kept_of_frame = item.kept if session.records else None
                outputs.append(EngineOutput(stream, decision=(item.time, item.silence), kept=kept_of_frame))
            elif isinstance(item, StreamEvent):
                outputs.append(EngineOutput(stream, event=item))
            else:
                outputs.append(EngineOutput(stream, delta=item))
        return outputs
