"""From watched streams to the numbers: counts per stream, pooled metrics, bootstrap intervals over streams.

Counts are pooled over all streams before dividing; LM-PPL, TimeDiff, Fluency and LM-Correctness are means over a
stream's narrations, then over streams.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videollm_mod.evaluate.events import EVENTS, events_told
from videollm_mod.evaluate.events import TOLERANCE as EVENT_TOLERANCE
from videollm_mod.evaluate.metrics import (
    Said,
    false_alarms,
    match,
    mean,
    precision_recall_f1,
    quiet_seconds,
    share,
)
from videollm_mod.evaluate.self_conditioned import SelfConditioned
from videollm_mod.evaluate.streams import Watched
from videollm_mod.evaluate.teacher_forced import TeacherForced
from videollm_mod.world import Narrated, narrations
from videollm_mod.world.camera import CameraStream

RESAMPLES = 1000
LATE = 100  # frames, after which the public code of VideoLLM-online babbles
DIGITS = 4


@dataclass(frozen=True)
class Spoken:
    """What a session said about one stream, against the truth."""

    said: tuple[Said, ...]
    true: tuple[Said, ...]
    right: tuple[tuple[int, int], ...]  # pairs in time and with the right sentence: (index in said, index in true)
    in_time: tuple[tuple[int, int], ...]  # pairs in time, whatever was said
    alarms: tuple[int, ...]  # indices in `said` with nothing true near
    answered: tuple[bool, ...]  # per question: exactly right
    events: tuple[int, int, int] = (0, 0, 0)  # of a fixed camera, names apart (events.py): right, told, true


@dataclass(frozen=True)
class Tally:
    """One stream in numbers."""

    said: int
    true: int
    right: int
    in_time: int
    alarms: int
    quiet_minutes: float
    late_alarms: int  # after LATE frames
    late_quiet_minutes: float
    questions: int
    answered: int
    forced: tuple[int, int, int]  # teacher-forced: right, spoken, true; see TeacherForced.counts
    lm_ppl: float | None  # means over the stream's narrations; None without any
    time_diff: float | None
    fluency: float | None
    lm_correctness: float | None
    events: tuple[int, int, int] = (0, 0, 0)  # as in Spoken


def true_narration(stream: Narrated) -> tuple[Said, ...]:
    """What is to be said, at the times at which it becomes visible (not of the frames that show it)."""
    return tuple(Said(narration.time, narration.text) for narration in narrations(stream))


def compare(said: Sequence[Said], answers: Sequence[str], stream: Narrated) -> Spoken:
    """Hold what was said against a stream's truth. `answers` are those to its questions, in order."""
    true = true_narration(stream)
    return Spoken(
        said=tuple(said),
        true=true,
        right=tuple(match(said, true)),
        in_time=tuple(match(said, true, by_text=False)),
        alarms=tuple(false_alarms(said, true)),
        answered=tuple(text == question.answer for text, question in zip(answers, stream.questions, strict=True)),
        events=_events(said, stream) if isinstance(stream, CameraStream) else (0, 0, 0),
    )


def _events(said: Sequence[Said], stream: CameraStream) -> tuple[int, int, int]:
    told, true = events_told(said), _true_events(stream)
    return len(match(told, true, tolerance=EVENT_TOLERANCE)), len(told), len(true)


def _true_events(stream: CameraStream) -> list[Said]:
    return events_told([Said(event.time, event.text) for event in stream.events])


def spoken(watched: Watched) -> Spoken:
    """`compare` for a watched stream."""
    said = [Said(event.time, event.text) for event in watched.own.narrations]
    return compare(said, watched.own.answers, watched.stream)


def tally(watched: Watched, threshold: float) -> Tally:
    """One stream's numbers."""
    stream, result = watched.stream, spoken(watched)
    late = LATE / stream.config.fps
    scores = [turn.scores(threshold, stream.config.fps) for turn in watched.truth.narrations]
    return Tally(
        said=len(result.said),
        true=len(result.true),
        right=len(result.right),
        in_time=len(result.in_time),
        alarms=len(result.alarms),
        quiet_minutes=quiet_seconds(result.true, stream.config.seconds) / 60,
        late_alarms=sum(result.said[i].time >= late for i in result.alarms),
        late_quiet_minutes=quiet_seconds(result.true, stream.config.seconds, late) / 60,
        questions=len(result.answered),
        answered=sum(result.answered),
        forced=watched.truth.counts(threshold),
        lm_ppl=mean(score["lm_ppl"] for score in scores),
        time_diff=mean(score["time_diff"] for score in scores),
        fluency=mean(score["fluency"] for score in scores),
        lm_correctness=mean(score["lm_correctness"] for score in scores),
        events=result.events,
    )


def metrics_of(tallies: Sequence[Tally]) -> dict[str, float | None]:
    """The main metrics of several streams; None where nothing was there to be measured."""
    said, true = sum(t.said for t in tallies), sum(t.true for t in tallies)
    right, in_time = sum(t.right for t in tallies), sum(t.in_time for t in tallies)
    quiet, questions = sum(t.quiet_minutes for t in tallies), sum(t.questions for t in tallies)
    late = sum(t.late_quiet_minutes for t in tallies)
    events = [sum(t.events[i] for t in tallies) for i in range(3)]
    precision, recall, f1 = precision_recall_f1(right, said, true)
    return {
        "f1": f1,
        "precision": precision,
        "recall": recall,
        "f1_kind_and_side": precision_recall_f1(*events)[2] if any(events) else None,
        "timing_f1": precision_recall_f1(in_time, said, true)[2],
        "content_accuracy": right / in_time if in_time else None,
        "false_alarms_per_minute": sum(t.alarms for t in tallies) / quiet if quiet else None,
        "late_false_alarms_per_minute": sum(t.late_alarms for t in tallies) / late if late else None,
        "question_accuracy": sum(t.answered for t in tallies) / questions if questions else None,
        "f1_teacher_forced": precision_recall_f1(*(sum(t.forced[i] for t in tallies) for i in range(3)))[2],
        "lm_ppl": mean(t.lm_ppl for t in tallies),
        "time_diff": mean(t.time_diff for t in tallies),
        "fluency": mean(t.fluency for t in tallies),
        "lm_correctness": mean(t.lm_correctness for t in tallies),
    }


def intervals(tallies: Sequence[Tally], resamples: int = RESAMPLES, seed: int = 0) -> dict[str, list[float] | None]:
    """95 % percentile bootstrap over streams: metric -> [low, high]; repeatable."""
    rng = random.Random(seed)
    drawn: dict[str, list[float]] = {name: [] for name in metrics_of(tallies)}
    for _ in range(resamples):
        for name, value in metrics_of(rng.choices(tallies, k=len(tallies))).items():
            if value is not None:
                drawn[name].append(value)
    found: dict[str, list[float] | None] = {}
    for name, values in drawn.items():
        values.sort()
        ends = (0.025, 0.975)
        found[name] = [round(values[round(end * (len(values) - 1))], DIGITS) for end in ends] if values else None
    return found


def summarise(watched: Sequence[Watched], threshold: float) -> dict[str, Any]:
    """Plain JSON of one split: the metrics, `intervals`, `by_kind` (of event), `by_question` (kind), and sizes."""
    tallies = [tally(stream, threshold) for stream in watched]
    return {
        **{name: None if value is None else round(value, DIGITS) for name, value in metrics_of(tallies).items()},
        "intervals": intervals(tallies),
        "by_kind": _by_kind(watched),
        "by_kind_and_side": _by_kind_and_side(watched),
        "by_question": _by_question(watched),
        "streams": len(watched),
        "frames": sum(len(item.own.silence) for item in watched),
        "seconds": sum(item.stream.config.seconds for item in watched),
        "events": sum(t.true for t in tallies),
        "questions": sum(t.questions for t in tallies),
    }


FORCED = ("f1_teacher_forced", "lm_ppl", "time_diff", "fluency", "lm_correctness")


def summarise_own(told: Sequence[tuple[Narrated, SelfConditioned]]) -> dict[str, Any]:
    """As `summarise`, for what was said without a teacher-forced pass: a baseline, or a model in a hurry."""
    empty = [Watched(stream, TeacherForced(np.ones(len(stream.times)), ()), own) for stream, own in told]
    summary = summarise(empty, threshold=0.0)
    for name in FORCED:
        del summary[name], summary["intervals"][name]
    return summary


def _by_kind(watched: Sequence[Watched]) -> dict[str, dict[str, float]]:
    """Kind of event -> how many, which share was told rightly and in time, which share was told of in time at all."""
    counts: dict[str, list[int]] = {}
    for item in watched:
        result = spoken(item)
        right, in_time = {j for _, j in result.right}, {j for _, j in result.in_time}
        for index, narration in enumerate(narrations(item.stream)):
            row = counts.setdefault(narration.kind, [0, 0, 0])
            for place, hit in enumerate((True, index in right, index in in_time)):
                row[place] += hit
    return {
        kind: {"events": n, "recall": round(share(right, n), DIGITS), "timing_recall": round(share(timed, n), DIGITS)}
        for kind, (n, right, timed) in sorted(counts.items())
    }


def _by_kind_and_side(watched: Sequence[Watched]) -> dict[str, dict[str, float]]:
    """Of fixed cameras, names apart: event ("enter left") -> how many, how often it was told, which share in time."""
    counts: dict[str, list[int]] = {}
    for item in watched:
        if not isinstance(item.stream, CameraStream):
            continue
        told = events_told([Said(event.time, event.text) for event in item.own.narrations])
        true = _true_events(item.stream)
        right = {j for _, j in match(told, true, tolerance=EVENT_TOLERANCE)}
        for j, event in enumerate(true):
            row = counts.setdefault(event.text, [0, 0, 0])
            row[0] += 1
            row[1] += j in right
        for event in told:
            if event.text in EVENTS:
                counts.setdefault(event.text, [0, 0, 0])[2] += 1
    return {
        event: {"events": n, "told": told_of, "recall": round(share(right, n), DIGITS)}
        for event, (n, right, told_of) in sorted(counts.items())
    }


def _by_question(watched: Sequence[Watched]) -> dict[str, dict[str, float]]:
    """Kind of question -> how many, and which share was answered exactly right."""
    counts: dict[str, list[int]] = {}
    for item in watched:
        for question, right in zip(item.stream.questions, spoken(item).answered):
            row = counts.setdefault(question.kind, [0, 0])
            row[0] += 1
            row[1] += right
    return {
        kind: {"questions": n, "accuracy": round(share(right, n), DIGITS)}
        for kind, (n, right) in sorted(counts.items())
    }
