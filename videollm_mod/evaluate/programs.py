"""What is done with a session, written as a generator, so that many of them can share the model's steps.

    def program(session, frames):                         # it yields what its session wants to run next
        told = yield from watch(session, frames)
        answer = yield from ask(session, "What is in view?")
        return told, answer

    alone(program(StreamSession(model), frames))          # each step by itself
    run_programs(model, programs, most=8, done=...)       # up to 8 at a time, all that wait in one step

Both give the same, within rounding (law 4 of the core). Where a model's streams cannot share a step (a reduction
acts in its decoder, or attention of a kind of its own), programs run one after another.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from videollm_mod.depth.step import try_together
from videollm_mod.depth.swap import find_decoder
from videollm_mod.evaluate.names import BATCH
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import Decision, StreamSession
from videollm_mod.stream.together import Share, frames_at_once, run_together
from videollm_mod.types import FrameTokens, InputError, StreamEvent

Result = TypeVar("Result")
Items = list[Decision | str | StreamEvent]  # what a step gave, as `StreamSession.receive` tells it


@dataclass(frozen=True)
class Wish:
    """What a program waits for: that some of these frames are seen, one at least; without any, the next word."""

    session: StreamSession
    frames: Sequence[FrameTokens] = ()


Program = Generator[Wish, Items, Result]


# -- what programs are made of -----------------------------------------------------------------------------------------


def watch(session: StreamSession, frames: Sequence[FrameTokens]) -> Program[list[Decision | StreamEvent]]:
    """See frames in order; returns the decision at each, and behind it what was said then."""
    told: list[Decision | StreamEvent] = []
    seen = 0
    while seen < len(frames):
        for item in (yield Wish(session, frames[seen:])):
            assert isinstance(item, Decision)
            told.append(item)
            seen += 1
        if session.speaking:  # about the newest of them; those behind it were rolled back
            told.append((yield from speak(session)))
    return told


def ask(session: StreamSession, text: str) -> Program[StreamEvent]:
    """Put a question now; returns the answer."""
    session.hear(text)
    return (yield from speak(session))


def reply(session: StreamSession) -> Program[StreamEvent]:
    """Make it speak now; returns what it says."""
    session.begin()
    return (yield from speak(session))


def speak(session: StreamSession) -> Program[StreamEvent]:
    """The rest of the reply that it makes."""
    while True:
        for item in (yield Wish(session)):
            if isinstance(item, StreamEvent):
                return item


# -- who runs them -----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def alone(program: Program[Result]) -> Result:
    """Run a program by itself, a frame or a word at a time, as a session that is pushed to does."""
    try:
        wish = next(program)
        while True:
            wish = program.send(_step(wish))
    except StopIteration as end:
        result: Result = end.value
        return result


@torch.inference_mode()
def run_programs(
    model: StreamingVideoLM,
    programs: Iterable[Program[Result]],
    *,
    most: int = BATCH,
    done: Callable[[int, Result], None],
) -> None:
    """Run all programs, `most` at a time; `done` gets the number of each and what it returned, as soon as it has.

    The next one is begun when one has ended, so what a program loads first is there only while it runs.
    """
    if most <= 1 or not shares_steps(model):
        for number, program in enumerate(programs):
            done(number, alone(program))
        return
    decoder = find_decoder(model.lm)
    waiting: dict[int, tuple[Program[Result], Wish]] = {}
    ahead = enumerate(programs)

    def go_on(number: int, program: Program[Result], items: Items | None) -> bool:
        """Whether the program waits for something more."""
        try:
            waiting[number] = program, next(program) if items is None else program.send(items)
        except StopIteration as end:
            waiting.pop(number, None)
            done(number, end.value)
            return False
        return True

    try:
        while True:
            while len(waiting) < most and (following := next(ahead, None)) is not None:
                go_on(*following, None)
            if not waiting:
                return
            here = list(waiting.items())
            for (number, (program, _)), items in zip(here, _steps(model, decoder, [wish for _, (_, wish) in here])):
                go_on(number, program, items)
    finally:
        for program, _ in waiting.values():
            program.close()


def shares_steps(model: StreamingVideoLM) -> bool:
    """Whether sessions of this model can share a step."""
    if model.reducing is not None and not model.reducing.shares_steps:
        return False
    try:
        try_together(find_decoder(model.lm))
    except InputError:
        return False
    return True


def _step(wish: Wish) -> Items:
    """One session's step, of one frame at most."""
    session = wish.session
    if not wish.frames:
        return session.run(session.propose())
    frame = wish.frames[0]
    scores = None if frame.scores is None else frame.scores[None]
    return session.run(session.propose([frame.time]), frame.tokens[None], scores)


def _steps(model: StreamingVideoLM, decoder: Any, wishes: Sequence[Wish]) -> list[Items]:
    """One step for all of them."""
    chunk = frames_at_once(model, sum(bool(wish.frames) for wish in wishes))
    shares = []
    for wish in wishes:
        step = wish.session.propose([frame.time for frame in wish.frames[:chunk]])
        frames = wish.frames[: len(step.times)]
        scores = [frame.scores for frame in frames if frame.scores is not None]
        shares.append(Share(wish.session, step, [frame.tokens for frame in frames], scores))
    try:
        given = run_together(model, decoder, shares)
    except torch.OutOfMemoryError as error:
        raise InputError(f"{len(wishes)} streams at a time need more memory than there is; lower --batch.") from error
    return [share.session.receive(share.step, one.silence, one.words, one.kept) for share, one in zip(shares, given)]
