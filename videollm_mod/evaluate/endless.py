"""`videollm-mod eval endless`: world streams of an hour under every cache policy; what is lost, and what is kept.

    videollm-mod eval endless --minutes 2 --ago 0.5 1 --ask-every 15 --policies window carrier

Frames are drawn, watched and dropped one by one, so that nothing grows with the stream but what the policy keeps. Event
F1 of the first minutes stands beside that of the last. Besides the world's own questions some ask what happened five
minutes ago, half an hour ago, and first. The bundled model never learned to answer them, nor knows all their words; so
they are asked aside, where an answer leaves no trace, and the table also says whether it was still there to be found:
the event's frame (`frame_held`), or what was said of it (`words_held`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from videollm_mod.flags import REDUCTION_HELP, check_least, check_probability, parse_size, reduced_by, stored_as

if TYPE_CHECKING:
    from torch import Tensor

    from videollm_mod.model import StreamingVideoLM
    from videollm_mod.stream.memory import Memory, Policy
    from videollm_mod.types import StreamEvent
    from videollm_mod.world import WorldQuestion, WorldStream

NAMES = ("own", "window", "carrier", "carrier-cls", "carrier-chosen", "norm", "full")
UNBOUNDED = ("own", "full")  # they run without a budget
BATCH = 32  # frames that go through the tower together


@dataclass(frozen=True)
class EvalEndless:
    """Which model, which streams, and who forgets."""

    model: str = "tiny"
    """A bundled model, tiny (coloured shapes) or camera (what fixed cameras see), or a model's folder."""
    policies: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ("own", "window", "carrier", "norm")
    """Of own (the model's own window, whose words go with their frames), window, carrier, carrier-cls, carrier-chosen,
    norm, and full, which has no bounds and slows down."""
    budgets: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SIZE")] = ("8MB",)
    """Bytes that the entries of the KV cache never exceed; each policy but own and full runs with each."""
    window: float | None = None
    """Seconds of video that stay whole; the model's own if not given, and all of them under full."""
    minutes: float = 60.0
    """Length of each stream, from 0.1 to 60."""
    streams: int = 1
    """How many streams of the split, from number 0 on."""
    split: Literal["test", "validation"] = "test"
    """Which streams."""
    edge: float = 10.0
    """Minutes at the beginning and at the end that are compared; at most half of the stream."""
    begin: float = 0.0
    """Minute of the streams at which sessions begin to watch: what a young session makes of the last minutes."""
    ago: tuple[float, ...] = (5.0, 30.0)
    """How many minutes back questions reach."""
    ask_every: float = 60.0
    """Seconds between two of those questions."""
    threshold: float | None = None
    """Speak when the probability of silence falls below this; the model's own if not given."""
    reduction: Annotated[str | None, tyro.conf.arg(metavar="NAME=SHARE", help=REDUCTION_HELP)] = None
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """How the model's weights are stored; the last two round the decoder's, with torchao (`[quant]`)."""
    kv: Literal["int8", "fp8"] | None = None
    """How keys and values are stored; as they are if not given."""
    workers: int | None = None
    """Processes, one thread each; one per CPU core if not given. 1 stays in this process, with all threads."""
    json: Path | None = None
    """Write the result here too."""
    markdown: Path | None = None
    """Write the table here."""
    journal: Path | None = None
    """Keep each stream's result in this file as soon as it is there; the same command then goes on from it."""


@dataclass(frozen=True)
class Job:
    """One stream under one policy."""

    stream: WorldStream
    policy: str
    budget: int | None
    window: float | None
    threshold: float | None
    ago: tuple[float, ...]
    ask_every: float
    begin: float = 0.0  # minute at which its session begins

    @property
    def key(self) -> str:
        asked = f"{self.ask_every} {' '.join(f'{ago:g}' for ago in self.ago)}"
        begun = f" from {self.begin:g}" if self.begin else ""
        return f"{self.stream.name} {self.policy} {self.budget} {self.window} {self.threshold} aside {asked}{begun}"

    @property
    def first(self) -> int:
        """The first frame that its session sees."""
        return math.ceil(60 * self.begin * self.stream.config.fps)


@dataclass(frozen=True)
class Watched:
    """What came of it; plain values, as the journal has them."""

    said: list[tuple[float, str]]  # time (s) and text of every narration
    answers: list[dict[str, Any]]  # kind, time, right; of long memory also frame_held and words_held
    kv_bytes: int  # the most in use after any frame
    positions: int  # likewise
    forgotten: dict[str, int]
    seconds: float  # that it took, rendering and tower included


def evaluate_endless(config: EvalEndless) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""
    _check(config)
    from rich.console import Console

    from videollm_mod.evaluate.endless_table import summarise, table
    from videollm_mod.evaluate.result import provenance
    from videollm_mod.evaluate.streams import run_jobs
    from videollm_mod.files import atomic_write
    from videollm_mod.model import load
    from videollm_mod.world import WorldConfig, make_stream

    model = load(config.model, **stored_as(config.dtype, config.kv), **reduced_by(config.reduction))
    size, fps = model.encoder.tower.image_size, model.settings.fps
    world = WorldConfig(seconds=60 * config.minutes, fps=fps, size=size)
    streams = [make_stream(config.split, number, world) for number in range(config.streams)]
    jobs = [
        Job(
            stream,
            policy,
            budget,
            _window(policy, config.window),
            config.threshold,
            config.ago,
            config.ask_every,
            config.begin,
        )
        for policy in config.policies
        for budget in _budgets(policy, config.budgets)
        for stream in streams
    ]
    kept = Kept(config.journal, model, streams)
    workers = config.workers or os.cpu_count() or 1
    title = f"{config.minutes:g} minutes"
    new = [job for job in jobs if job.key not in kept.done]
    run_jobs(model, watch_endless, new, workers=workers, title=title, done=kept.add)
    rows = []
    for policy, budget in dict.fromkeys((job.policy, job.budget) for job in jobs):
        mine = [job for job in jobs if (job.policy, job.budget) == (policy, budget)]
        rows.append(summarise([(job.stream, kept.done[job.key]) for job in mine], mine[0], 60 * config.edge))
    bounded = [row for row in rows if row["policy"] != "full" and row["f1_lost"] is not None]
    result = {
        "rows": rows,
        "least_lost": min(bounded, key=lambda row: row["f1_lost"])["policy"] if bounded else None,
        "model": config.model,
        "dtype": config.dtype,
        "kv": config.kv,
        "reduction": reduced_by(config.reduction).get("reduction"),
        "minutes": config.minutes,
        "streams": [stream.name for stream in streams],
        "begin_minutes": config.begin,
        "edge_minutes": min(config.edge, config.minutes / 2),
        "ago_minutes": list(config.ago),
        "plan": model.plan.to_dict(),
        "samples": sum(len(stream.events) for stream in streams),
        **provenance({stream.name: stream.times for stream in streams}),
    }
    text = table(result)
    for path, content in ((config.json, json.dumps(result, indent=2) + "\n"), (config.markdown, text)):
        if path is not None:
            with atomic_write(path) as file:
                file.write(content)
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)
    return result


# -- one stream --------------------------------------------------------------------------------------------------------


def watch_endless(model: StreamingVideoLM, job: Job) -> tuple[str, Watched]:
    """A stream from beginning to end, its questions at their times; what it is known by, and what came of it."""
    from videollm_mod.stream.session import StreamSession
    from videollm_mod.types import FrameTokens
    from videollm_mod.world.questions import ask_ago

    began = time.monotonic()
    stream, fps = job.stream, job.stream.config.fps
    policy = policy_named(job.policy, job.window)
    session = StreamSession(model, threshold=job.threshold, policy=policy, budget=job.budget, window=job.window)
    far = ask_ago(stream.script, stream.config, job.ago, job.ask_every)
    waiting = [question for question in (*stream.questions, *far) if question.frame >= job.first]
    waiting.sort(key=lambda question: question.frame)
    said: list[tuple[float, str]] = []
    answers: list[dict[str, Any]] = []
    most = positions = 0
    for index, tokens in enumerate(_tokens(model, stream, job.first), job.first):
        events: list[StreamEvent] = session.push_tokens(FrameTokens(tokens, session.grid, index / fps, index))
        said += [(event.time, event.text) for event in events]
        while waiting and waiting[0].frame <= index:
            question = waiting.pop(0)
            held = _held(session.memory, question, fps)
            with session.aside() if question.about is not None else nullcontext():
                right = session.ask(question.question).text == question.answer
            answers.append({"kind": question.kind, "time": question.time, "right": right, **held})
        state = session.state()
        most, positions = max(most, state.kv_bytes), max(positions, session.memory.cache.seen)
    took = round(time.monotonic() - began, 1)
    return job.key, Watched(said, answers, most, positions, session.state().forgotten, took)


def policy_named(name: str, window: float | None) -> str | Policy | None:
    """A row's policy, as a session takes it."""
    if not name.startswith("carrier-"):
        return None if name == "own" else name
    from videollm_mod.stream.policies.carrier import Carrier

    return Carrier(Carrier.after if window is None else window, name.removeprefix("carrier-"))


def _tokens(model: StreamingVideoLM, stream: WorldStream, first: int) -> Iterator[Tensor]:
    """Tower vectors of one frame after another from `first` on, (1 + h * w, width); some frames ahead at most."""
    import numpy as np

    from videollm_mod.evaluate.teacher_forced import encode_frames
    from videollm_mod.video import letterbox

    frames = islice(stream.each_frame(), first, None)
    while batch := list(islice(frames, BATCH)):
        yield from encode_frames(model, letterbox(np.stack(batch), model.encoder.tower.image_size))


def _held(memory: Memory, question: WorldQuestion, fps: float) -> dict[str, bool]:
    """Whether the frame that shows what is asked about is still there, whole or in part, and what was said of it."""
    if question.about is None:
        return {}
    if not memory.bounded:
        return {"frame_held": True, "words_held": True}
    shown = question.about / fps
    frames = [piece for piece in memory.frames if abs(piece.time - shown) < 1e-6]
    told = [p for p in memory.pieces if p.kind == "narration" and abs(p.time - shown) <= 0.5 + 1e-6]
    return {"frame_held": bool(frames), "words_held": bool(told)}


class Kept:
    """What has been watched, in a file of lines if one is given: the first says of what, each other holds one job.

    Raises InputError for a file of another model, world or settings.
    """

    def __init__(self, path: Path | None, model: StreamingVideoLM, streams: Sequence[WorldStream]) -> None:
        from videollm_mod.evaluate.journal import subject, whole_lines
        from videollm_mod.files import atomic_write
        from videollm_mod.types import InputError

        self.done: dict[str, Watched] = {}
        self._path = path
        if path is None:
            return
        about = subject(model, streams)
        lines = whole_lines(path)
        if lines and lines[0]["about"] != about:
            raise InputError(f"the journal {path} is of another model or world; give another file.")
        for line in lines[1:]:
            values = {**line["watched"], "said": [tuple(item) for item in line["watched"]["said"]]}
            self.done[line["job"]] = Watched(**values)
        with atomic_write(path) as file:  # without a line that a kill has cut off
            file.write("".join(json.dumps(line) + "\n" for line in [{"about": about}, *lines[1:]]))

    def add(self, result: tuple[str, Watched]) -> None:
        """Take a job's result; it is on the disk when this returns."""
        key, watched = result
        self.done[key] = watched
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps({"job": key, "watched": dataclasses.asdict(watched)}) + "\n")
                file.flush()
                os.fsync(file.fileno())


def _window(policy: str, window: float | None) -> float | None:
    """Seconds that a policy keeps whole, if it is told; `full` keeps all."""
    return None if policy == "full" else window


def _budgets(policy: str, budgets: Sequence[str]) -> list[int | None]:
    """In bytes, those that a policy runs with."""
    return [None] if policy in UNBOUNDED else [parse_size("--budgets", budget) for budget in budgets]


def _check(config: EvalEndless) -> None:
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError
    from videollm_mod.watch import check_policy

    check_least(1, streams=config.streams, workers=config.workers)
    check_probability(threshold=config.threshold)
    if not 0.1 <= config.minutes <= 60:  # what WorldConfig takes; also refuses NaN
        raise InputError(f"--minutes {config.minutes:g} is out of range; give a number from 0.1 to 60.")
    if not 0 <= config.begin < config.minutes:
        raise InputError(f"--begin {config.begin:g} is no minute of the streams; give less than {config.minutes:g}.")
    for name, value in [("edge", config.edge), ("ask-every", config.ask_every)] + [("ago", n) for n in config.ago]:
        if not value > 0:
            raise InputError(f"--{name} {value:g} is no time; give more than 0.")
    for name in config.policies:
        if name not in NAMES:
            raise InputError(f"--policies '{name}' is unknown; take of {', '.join(NAMES)}.")
    for budget in config.budgets:
        for name in config.policies:
            if name not in UNBOUNDED:
                check_policy(name.split("-")[0], config.window, parse_size("--budgets", budget))
    for path in (config.json, config.markdown, config.journal):
        if path is not None:
            check_writable(path)
