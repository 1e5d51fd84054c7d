"""A stream of a data set, truly streamed: its frames go through a session in order, questions come at their times.

Two passes over the same frames. On the model's own words it decides itself when to speak; what it says stays in its
context. Given the true words before each place (teacher_forced.py) it is judged turn by turn.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videollm_mod.data.conversation import Conversation, converse
from videollm_mod.data.frames import frame_total, vectors
from videollm_mod.data.segments import Stream
from videollm_mod.evaluate.metrics import Said
from videollm_mod.evaluate.teacher_forced import Turn, teacher_forced
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import FrameTokens

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


def play(model: StreamingVideoLM, job: tuple[Stream, How]) -> tuple[str, Result]:
    """Watch a stream; returns its id and what became of it.

    narrate: whatever it says is a narration, its answer to an instruction too.
    answer: a question right before its reply is asked aside at its time, so that questions do not disturb each other;
        one that comes before its frames is answered when the model decides to, at the latest after the last of them.
    proactive: the question is put, and the model answers when it is time to; besides, it is asked every second whether
        it is, as StreamingBench does.
    """
    stream, how = job
    fps = model.settings.fps
    laid = lay_out(stream, fps, how.limit)
    shown: list[Tensor] = []
    times: list[float] = []
    for tokens, time in frames_of(model, stream, laid, fps):
        shown.append(tokens)
        times.append(time)
    features = torch.stack(shown)
    said, answers = _PROTOCOLS[how.protocol](model, stream, laid, features, times, how)
    turns: tuple[Turn, ...] = ()
    if how.forced:
        conversation = laid.dialogue(model.settings.system)
        turns = tuple(turn for turn in teacher_forced(model, conversation, features).turns if turn.right)
    result = Result(len(times), times[0], times[-1], fps, hash_times(times), tuple(said), tuple(answers), turns)
    return stream.id, result


def hash_times(times: list[float]) -> str:
    """Of frame times in seconds, to a tenth of a millisecond: runs with the same hash have seen the same frames."""
    return hashlib.sha256(np.round(np.array(times) * 1e4).astype("<i8").tobytes()).hexdigest()[:16]


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


def _narrate(
    model: StreamingVideoLM, stream: Stream, laid: Conversation, features: Tensor, times: list[float], how: How
) -> tuple[list[Said], list[Answer | None]]:
    session = _session(model, laid, how)
    said: list[Said] = []
    texts = [(place, text) for place, text in laid.said if text.kind != "system"]
    asked = 0

    def ask(shown: int) -> None:
        """What is said to it behind so many frames."""
        nonlocal asked
        while asked < len(texts) and texts[asked][0] <= shown:
            place, text = texts[asked]
            asked += 1
            if text.kind != "user":
                continue
            following = texts[asked] if asked < len(texts) else None
            if following is not None and following[0] == place and following[1].kind == "assistant" and shown:
                event = session.ask(text.text)
                said.append(Said(times[shown - 1], event.text))
            else:
                session.tell(text.text)

    ask(0)
    for index in range(len(times)):
        for event in _watch(session, features, times, index, silent=not laid.learn[index]):
            said.append(Said(event.time, event.text))
        ask(index + 1)
    return said, [None for _ in stream.replies]


def _answer(
    model: StreamingVideoLM, stream: Stream, laid: Conversation, features: Tensor, times: list[float], how: How
) -> tuple[list[Said], list[Answer | None]]:
    session = _session(model, laid, how)
    said: list[Said] = []
    answers: list[Answer | None] = []
    texts = [(place, text) for place, text in laid.said if text.kind != "system"]
    done, told = 0, False  # told: a question waits for its answer
    for shown in range(len(times) + 1):
        if shown:
            for event in _watch(session, features, times, shown - 1, silent=how.compat and told):
                if told:
                    answers.append(Answer((event.text,), event.time, own=True))
                    told = False
                else:
                    said.append(Said(event.time, event.text))
        while done < len(texts) and texts[done][0] <= shown:
            place, text = texts[done]
            done += 1
            now = times[shown - 1] if shown else 0.0
            if text.kind == "user":
                following = texts[done] if done < len(texts) else None
                if following is not None and following[0] == place and following[1].kind == "assistant":
                    answers.append(Answer(_aside(session, text.text, how), now))
                    done += 1
                else:
                    session.tell(text.text)
                    told = True
            elif told:  # it is time for the answer, and none came
                answers.append(Answer(_aside(session, None, how), now))
                told = False
        if done == len(texts):
            break  # nothing more is asked
    if told:  # a question whose reply is unknown, of a test split
        answers.append(Answer(_aside(session, None, how), times[-1]))
    return said, answers


def _proactive(
    model: StreamingVideoLM, stream: Stream, laid: Conversation, features: Tensor, times: list[float], how: How
) -> tuple[list[Said], list[Answer | None]]:
    """Two answers: of its own accord, and polled. None where it never thought that it was time."""
    question = stream.of("user")[0]
    session = _session(model, laid, how)
    session.tell(question.text)
    own = None
    for index in range(len(times)):
        for event in _watch(session, features, times, index):
            own = Answer((event.text,), event.time, own=True)
        if own is not None:
            break
    polled = None
    session = _session(model, laid, how)
    begin = question.time or 0.0
    due = begin + 1
    for index in range(len(times)):
        _watch(session, features, times, index, silent=True)
        following = times[index + 1] if index + 1 < len(times) else math.inf
        if following < due:
            continue
        while due <= following and polled is None and due <= times[-1] + 1:
            with session.aside():
                now = session.ask(str(question.meta["poll"])).text
            if "yes" in now.lower():
                polled = Answer(_aside(session, str(question.meta["ask"]), how), due)
            due += 1
        if polled is not None:
            break
    return [], [own, polled]


_PROTOCOLS = {"narrate": _narrate, "answer": _answer, "proactive": _proactive}


def _watch(
    session: StreamSession, features: Tensor, times: list[float], index: int, *, silent: bool = False
) -> list[Any]:
    """Push a frame; `silent`: it may not speak."""
    threshold = session.threshold
    if silent:
        session.threshold = 0.0
    try:
        return session.push_tokens(FrameTokens(features[index], session.grid, times[index], index))
    finally:
        session.threshold = threshold


def _aside(session: StreamSession, question: str | None, how: How) -> tuple[str, ...]:
    """Candidates for an answer, which leave no trace; without a question, to what it was told last."""
    found = []
    for number in range(how.candidates):
        generator = torch.Generator().manual_seed(1000 * how.seed + number)
        greedy = session.pick
        if number:
            session.pick = _sampler(generator)
        try:
            with session.aside():
                found.append((session.reply() if question is None else session.ask(question)).text)
        finally:
            session.pick = greedy
    return tuple(found)


def _sampler(generator: torch.Generator) -> Any:
    def pick(logits: Tensor) -> int:
        chances = (logits.float().cpu() / TEMPERATURE).softmax(-1)
        return int(torch.multinomial(chances, 1, generator=generator))

    return pick
