"""A stream of a data set, truly streamed: its frames go through a session in order, questions come at their times.

Two passes over the same frames. On the model's own words it decides itself when to speak; what it says stays in its
context. Given the true words before each place (teacher_forced.py) it is judged turn by turn.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videollm_mod.data.conversation import Conversation, converse
from videollm_mod.data.frames import frame_total, vectors
from videollm_mod.data.segments import Stream
from videollm_mod.evaluate.metrics import Said
from videollm_mod.evaluate.programs import Program, ask, reply, watch
from videollm_mod.evaluate.result import hash_times
from videollm_mod.evaluate.teacher_forced import Turn, teacher_forced
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import FrameTokens, StreamEvent

AT_ONCE = 256  # frames that are read together; the session still gets them one by one
TEMPERATURE = 0.7  # of the candidates after the first, which is greedy
POLL_AFTER = 4.0  # seconds that a proactive question is polled beyond its true time, as StreamingBench does


@dataclass(frozen=True)
class How:
    """How streams are played; the same for all of a run."""

    protocol: str  # "narrate", "answer" or "proactive": see `play`
    candidates: int = 1  # answers to each question
    tokens: int | None = None  # of a reply at most; the model's own bound if None
    limit: int | None = None  # frames of a stream at most
    forced: bool = True  # whether the teacher-forced pass is made, too
    compat: bool = False  # it keeps silent until it is asked to answer, as in the public code
    seed: int = 0  # of the candidates


@dataclass(frozen=True)
class Answer:
    """What was answered to the question of one of the stream's replies."""

    texts: tuple[str, ...]  # candidates, the first one greedy
    time: float  # seconds of the video
    own: bool = False  # whether the model decided itself when to answer


@dataclass(frozen=True)
class Result:
    """What became of one stream."""

    frames: int
    start: float  # time of the first frame, seconds of the video
    end: float
    fps: float
    times: str  # hash of the times of all frames
    said: tuple[Said, ...] = ()  # of its own accord
    answers: tuple[Answer | None, ...] = ()  # one for each reply of the stream; None where nothing was asked
    turns: tuple[Turn, ...] = ()  # teacher-forced

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self) | {"said": [list(item) for item in self.said]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """What `to_dict` gave."""
        answers = [
            None if one is None else Answer(tuple(one["texts"]), one["time"], one["own"]) for one in values["answers"]
        ]
        turns = tuple(_turn(turn) for turn in values["turns"])
        said = tuple(Said(*item) for item in values["said"])
        return cls(**{**values, "said": said, "answers": tuple(answers), "turns": turns})


def _turn(values: dict[str, Any]) -> Turn:
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Turn(**plain)


def play(model: StreamingVideoLM, job: tuple[Stream, How]) -> Program[tuple[str, Result]]:
    """Watch a stream; returns its id and what became of it. A program (programs.py).

    narrate: whatever it says is a narration, its answer to an instruction too.
    answer: a question right before its reply is asked aside at its time, so that questions do not disturb each other;
        one that comes before its frames is answered when the model decides to, at the latest after the last of them.
    proactive: the question is put, and the model answers when it is time to; besides, it is asked every second whether
        it is, as StreamingBench does.
    """
    stream, how = job
    fps = model.settings.fps
    laid = lay_out(stream, fps, how.limit)
    grid = model.encoder.grid
    shown = frames_of(model, stream, laid, fps)
    film = [FrameTokens(tokens, grid, time, index) for index, (tokens, time) in enumerate(shown)]
    times = [frame.time for frame in film]
    said, answers = yield from _PROTOCOLS[how.protocol](model, stream, laid, film, how)
    turns: tuple[Turn, ...] = ()
    if how.forced:
        conversation, features = laid.dialogue(model.settings.system), torch.stack([frame.tokens for frame in film])
        turns = tuple(turn for turn in teacher_forced(model, conversation, features).turns if turn.right)
    result = Result(len(times), times[0], times[-1], fps, hash_times(times), tuple(said), tuple(answers), turns)
    return stream.id, result


# -- frames ------------------------------------------------------------------------------------------------------------


def lay_out(stream: Stream, fps: float, limit: int | None = None) -> Conversation:
    """The frames that a stream shows and what is said between them; asks its features or its video how long they are,
    where the stream does not say."""
    asked = stream.features is not None or (stream.duration is None and not stream.of("stream"))
    return converse(stream, fps, frames=frame_total(stream, fps) if asked else None, limit=limit)


def frames_of(
    model: StreamingVideoLM, stream: Stream, laid: Conversation, fps: float
) -> Iterator[tuple[Tensor, float]]:
    """(tokens (1 + h * w, width), time in seconds) of each frame of a conversation, in order."""
    for begin in range(0, len(laid.frames), AT_ONCE):
        numbers = laid.frames[begin : begin + AT_ONCE]
        for number, tokens in zip(numbers, vectors(stream, numbers, fps, model.encoder)):
            yield tokens, number / fps


# -- protocols ---------------------------------------------------------------------------------------------------------


def _session(model: StreamingVideoLM, laid: Conversation, how: How) -> StreamSession:
    """A session that has heard the stream's own system text. One that is asked before its frames forgets nothing, for
    with the oldest frames the question would go."""
    system = laid.said[0][1].text if laid.said and laid.said[0][1].kind == "system" else None
    asked_first = any(place == 0 and text.kind == "user" for place, text in laid.said)
    session = StreamSession(model, system=system, window=math.inf if asked_first else None)
    if how.tokens is not None:
        session.settings = dataclasses.replace(session.settings, max_reply_tokens=how.tokens)
    return session


Told = Program[tuple[list[Said], list[Answer | None]]]  # what it said of its own accord, and its answers


def _narrate(model: StreamingVideoLM, stream: Stream, laid: Conversation, film: list[FrameTokens], how: How) -> Told:
    session = _session(model, laid, how)
    said: list[Said] = []
    texts = [(place, text) for place, text in laid.said if text.kind != "system"]
    shown = 0

    def show(until: int) -> Program[None]:
        """Frames up to this one. At those that are not learned it may not speak."""
        nonlocal shown
        while shown < until:
            end = shown
            while end < until and laid.learn[end] == laid.learn[shown]:
                end += 1
            for event in (yield from _watch(session, film[shown:end], silent=not laid.learn[shown])):
                said.append(Said(event.time, event.text))
            shown = end

    for number, (place, text) in enumerate(texts):
        yield from show(place)
        if text.kind != "user":
            continue
        following = texts[number + 1] if number + 1 < len(texts) else None
        if following is not None and following[0] == place and following[1].kind == "assistant" and shown:
            event = yield from ask(session, text.text)
            said.append(Said(film[shown - 1].time, event.text))
        else:
            session.tell(text.text)
    yield from show(len(film))
    return said, [None for _ in stream.replies]


def _answer(model: StreamingVideoLM, stream: Stream, laid: Conversation, film: list[FrameTokens], how: How) -> Told:
    session = _session(model, laid, how)
    said: list[Said] = []
    answers: list[Answer | None] = []
    texts = [(place, text) for place, text in laid.said if text.kind != "system"]
    shown, told = 0, False  # told: a question waits for its answer

    def show(until: int) -> Program[None]:
        nonlocal shown, told
        for event in (yield from _watch(session, film[shown:until], silent=how.compat and told)):
            if told:
                answers.append(Answer((event.text,), event.time, own=True))
                told = False
            else:
                said.append(Said(event.time, event.text))
        shown = until

    done = 0
    while done < len(texts):
        place, text = texts[done]
        done += 1
        yield from show(place)
        now = film[place - 1].time if place else 0.0
        if text.kind == "user":
            following = texts[done] if done < len(texts) else None
            if following is not None and following[0] == place and following[1].kind == "assistant":
                answers.append(Answer((yield from _aside(session, text.text, how)), now))
                done += 1
            else:
                session.tell(text.text)
                told = True
        elif told:  # it is time for the answer, and none came
            answers.append(Answer((yield from _aside(session, None, how)), now))
            told = False
    if told:  # a question whose reply is unknown, of a test split: it sees all there is
        yield from show(len(film))
    if told:
        answers.append(Answer((yield from _aside(session, None, how)), film[-1].time))
    return said, answers


def _proactive(model: StreamingVideoLM, stream: Stream, laid: Conversation, film: list[FrameTokens], how: How) -> Told:
    """Two answers: of its own accord, and polled. None where it never thought that it was time."""
    question = stream.of("user")[0]
    session = _session(model, laid, how)
    session.tell(question.text)
    own = None
    for frame in film:
        for event in (yield from _watch(session, [frame])):
            own = Answer((event.text,), event.time, own=True)
        if own is not None:
            break
    polled = None
    session = _session(model, laid, how)
    begin = question.time or 0.0
    due = begin + 1
    for index, frame in enumerate(film):
        yield from _watch(session, [frame], silent=True)
        following = film[index + 1].time if index + 1 < len(film) else math.inf
        if following < due:
            continue
        while due <= following and polled is None and due <= film[-1].time + 1:
            with session.aside():
                now = (yield from ask(session, str(question.meta["poll"]))).text
            if "yes" in now.lower():
                polled = Answer((yield from _aside(session, str(question.meta["ask"]), how)), due)
            due += 1
        if polled is not None:
            break
    return [], [own, polled]


_PROTOCOLS = {"narrate": _narrate, "answer": _answer, "proactive": _proactive}


def _watch(
    session: StreamSession, frames: Sequence[FrameTokens], *, silent: bool = False
) -> Program[list[StreamEvent]]:
    """See frames; returns what was said. `silent`: it may not speak."""
    threshold = session.threshold
    if silent:
        session.threshold = 0.0
    try:
        return [item for item in (yield from watch(session, frames)) if isinstance(item, StreamEvent)]
    finally:
        session.threshold = threshold


def _aside(session: StreamSession, question: str | None, how: How) -> Program[tuple[str, ...]]:
    """Candidates for an answer, which leave no trace; without a question, to what it was told last."""
    found = []
    for number in range(how.candidates):
        generator = torch.Generator().manual_seed(1000 * how.seed + number)
        greedy = session.pick
        if number:
            session.pick = _sampler(generator)
        try:
            with session.aside():
                event = yield from (reply(session) if question is None else ask(session, question))
                found.append(event.text)
        finally:
            session.pick = greedy
    return tuple(found)


def _sampler(generator: torch.Generator) -> Any:
    def pick(logits: Tensor) -> int:
        chances = (logits.float().cpu() / TEMPERATURE).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=generator))

    return pick
