"""World streams through a model, one or many at a time: the jobs that `eval world` and the calibration hand out.

Workers are processes with one thread each: a small model gains nothing from sharing one stream among threads. In each
of them several streams share the model's steps (programs.py).
"""

from __future__ import annotations

import math
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from videollm_mod.data.own import Own
from videollm_mod.dialogue import Segment
from videollm_mod.evaluate.names import BATCH
from videollm_mod.evaluate.programs import Program, run_programs
from videollm_mod.evaluate.self_conditioned import SelfConditioned, self_conditioned
from videollm_mod.evaluate.teacher_forced import TeacherForced, encode_frames, teacher_forced
from videollm_mod.model import StreamingVideoLM
from videollm_mod.packed import pack_linears
from videollm_mod.quiet import hushed
from videollm_mod.reductions.runner import put_again
from videollm_mod.types import InputError
from videollm_mod.video import letterbox
from videollm_mod.world import Narrated, WorldStream, matter
from videollm_mod.world.conversation import segments

Job = TypeVar("Job")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Watched:
    """A stream, judged in its true context, and what a session said of it."""

    stream: Narrated
    truth: TeacherForced
    own: SelfConditioned


def features_of(model: StreamingVideoLM, stream: Narrated) -> Tensor:
    """Tower vectors of all frames of a stream, (F, 1 + h * w, width); of its features file, if it has one."""
    stored = stream.features() if isinstance(stream, Own) else None
    if stored is not None:
        return stored.to(model.device, next(model.connector.parameters()).dtype)
    return encode_frames(model, letterbox(stream.frames(), model.encoder.tower.image_size))


def conversation_of(model: StreamingVideoLM, stream: Narrated) -> list[Segment]:
    """The true conversation: a sample of a data set has its own, of any other stream it is made."""
    system = model.settings.system
    return stream.conversation(system) if isinstance(stream, Own) else segments(stream, system)


def scores_of(model: StreamingVideoLM, stream: Narrated) -> Tensor | None:
    """What an oracle keeps, (F, 1 + h * w), for a plan whose scorer is `given`; else None."""
    if model.plan.scorer != "given":
        return None
    if not isinstance(stream, WorldStream):
        raise InputError(f"nobody knows what matters in {stream.name}; take another scorer than 'given'.")
    return torch.from_numpy(matter(stream, model.encoder.grid))


def watch_both(model: StreamingVideoLM, stream: Narrated) -> Program[Watched]:
    """Both protocols, at the model's own threshold."""
    pack_linears(model)  # as a session does, so that all streams go the same way
    features, scores = features_of(model, stream), scores_of(model, stream)
    truth = teacher_forced(model, conversation_of(model, stream), features, scores=scores)
    return Watched(stream, truth, (yield from self_conditioned(model, stream, features, scores=scores)))


Film = tuple[Narrated, Tensor | None]  # a stream, and its frames' tower vectors if they have been made already


def watch_truth(model: StreamingVideoLM, film: Film) -> TeacherForced:
    """The teacher-forced protocol alone."""
    pack_linears(model)
    stream, features = film
    features = features_of(model, stream) if features is None else features
    return teacher_forced(model, conversation_of(model, stream), features, scores=scores_of(model, stream))


def watch_own(model: StreamingVideoLM, job: tuple[Film, float]) -> Program[SelfConditioned]:
    """The self-conditioned protocol alone, for a stream and a threshold."""
    (stream, features), threshold = job
    features = features_of(model, stream) if features is None else features
    scores = scores_of(model, stream)
    return (yield from self_conditioned(model, stream, features, scores=scores, threshold=threshold))


def run_jobs(
    model: StreamingVideoLM,
    work: Callable[[StreamingVideoLM, Job], Result],
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    title: str = "streams",
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """`[work(model, job) for job in jobs]`, over processes if `workers` > 1, with a progress bar on stderr.

    `done` gets every result as soon as it is there, in whatever order.
    Processes are spawned: `work` must be a function of a module, and a script that calls this needs the usual
    `if __name__ == "__main__":`. A model on a GPU, or with rounded weights, stays in this process, whatever `workers`
    says. A reduction that is in the model is in theirs, too.

    Raises:
        InputError: workers below 1.
    """
    return _spread(model, partial(_each, work), jobs, workers, 1, title, done)


def run_streams(
    model: StreamingVideoLM,
    program: Callable[[StreamingVideoLM, Job], Program[Result]],
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    batch: int = BATCH,
    title: str = "streams",
    done: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """As `run_jobs`, for programs (programs.py): in each process up to `batch` of them share the model's steps.

    From another process `done` gets the results of a group of `batch` together.

    Raises:
        InputError: workers or batch below 1.
    """
    if batch < 1:
        raise InputError(f"batch is {batch}; give 1 or more streams at a time.")
    return _spread(model, partial(_together, program, batch), jobs, workers, batch, title, done)


Run = Callable[[StreamingVideoLM, Sequence[Job], Callable[[int, Result], None]], None]  # all jobs; numbered results


def _each(
    work: Callable[[StreamingVideoLM, Job], Result],
    model: StreamingVideoLM,
    jobs: Sequence[Job],
    done: Callable[[int, Result], None],
) -> None:
    for number, job in enumerate(jobs):
        done(number, work(model, job))


def _together(
    program: Callable[[StreamingVideoLM, Job], Program[Result]],
    batch: int,
    model: StreamingVideoLM,
    jobs: Sequence[Job],
    done: Callable[[int, Result], None],
) -> None:
    run_programs(model, (program(model, job) for job in jobs), most=batch, done=done)


def _spread(
    model: StreamingVideoLM,
    run: Run[Job, Result],
    jobs: Sequence[Job],
    workers: int,
    batch: int,
    title: str,
    done: Callable[[Result], None],
) -> list[Result]:
    """Run all jobs here, or in groups of `batch` in other processes."""
    if workers < 1:
        raise InputError(f"workers is {workers}; give 1 or more processes.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=len(jobs))
        results: dict[int, Result] = {}

        def take(number: int, result: Result) -> None:
            results[number] = result
            done(result)
            progress.advance(task)

        if min(workers, len(jobs)) <= 1 or model.device.type != "cpu" or model.weights is not None:
            training = model.training
            model.eval()
            run(model, jobs, take)
            model.train(training)
            return [results[number] for number in range(len(jobs))]
        groups = _groups(len(jobs), workers, batch)
        with tempfile.TemporaryDirectory(prefix="videollm-mod-") as folder:
            model.save_pretrained(folder)  # a routed model cannot be pickled: its layers' classes are made at run time
            stored = next(model.lm.parameters()).dtype, next(model.connector.parameters()).dtype
            first = (__name__, _prepare.__name__, folder, *stored, model.kv, model.reducing and model.reducing.made_of)
            pool = ProcessPoolExecutor(min(workers, len(groups)), multiprocessing.get_context("spawn"), hushed, first)
            try:
                futures: dict[Future[list[Any]], range] = {
                    pool.submit(_work, run, [jobs[number] for number in group]): group for group in groups
                }
                waiting = set(futures)
                while waiting:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in ready:
                        for number, result in zip(futures[future], future.result()):  # the first failure ends it all
                            take(number, result)
                return [results[number] for number in range(len(jobs))]
            finally:
                pool.shutdown(cancel_futures=True)


def _groups(jobs: int, workers: int, batch: int) -> list[range]:
    """The numbers of all jobs in groups of at most `batch`: as equal ones as can be, and as many for each worker."""
    count = min(jobs, workers * math.ceil(jobs / (workers * batch)))
    ends = [jobs * place // count for place in range(count + 1)]
    return [range(begin, end) for begin, end in zip(ends, ends[1:])]


_model: StreamingVideoLM | None = None  # of a worker process


def _prepare(
    folder: str, dtype: torch.dtype, learned: torch.dtype, kv: str | None, reduction: dict[str, Any] | None
) -> None:
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _model = StreamingVideoLM.from_pretrained(folder, dtype=dtype, learned=learned, kv=kv)
    if reduction is not None:
        put_again(_model, reduction)  # until the process ends


def _work(run: Run[Job, Result], jobs: Sequence[Job]) -> list[Result]:
    assert _model is not None
    found: dict[int, Result] = {}
    run(_model, jobs, found.__setitem__)
    return [found[number] for number in range(len(jobs))]
