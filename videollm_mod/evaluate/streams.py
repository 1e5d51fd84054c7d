"""World streams through a model, one or many at a time: the jobs that `eval world` and the calibration hand out.

Workers are processes with one thread each: a small model gains nothing from sharing one stream among threads.
"""

from __future__ import annotations

import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from videollm_mod.data.own import Own
from videollm_mod.dialogue import Segment
from videollm_mod.evaluate.self_conditioned import SelfConditioned, self_conditioned
from videollm_mod.evaluate.teacher_forced import TeacherForced, encode_frames, teacher_forced
from videollm_mod.model import StreamingVideoLM
from videollm_mod.packed import pack_linears
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


def watch_both(model: StreamingVideoLM, stream: Narrated) -> Watched:
    """Both protocols, at the model's own threshold."""
    pack_linears(model)  # as a session does, so that all streams go the same way
    features, scores = features_of(model, stream), scores_of(model, stream)
    truth = teacher_forced(model, conversation_of(model, stream), features, scores=scores)
    return Watched(stream, truth, self_conditioned(model, stream, features, scores=scores))


def watch_truth(model: StreamingVideoLM, stream: Narrated) -> TeacherForced:
    """The teacher-forced protocol alone."""
    pack_linears(model)
    features, scores = features_of(model, stream), scores_of(model, stream)
    return teacher_forced(model, conversation_of(model, stream), features, scores=scores)


def watch_own(model: StreamingVideoLM, job: tuple[Narrated, float]) -> SelfConditioned:
    """The self-conditioned protocol alone, for a stream and a threshold."""
    stream, threshold = job
    features, scores = features_of(model, stream), scores_of(model, stream)
    return self_conditioned(model, stream, features, scores=scores, threshold=threshold)


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
    `if __name__ == "__main__":`. A model on a GPU stays in this process, whatever `workers` says.

    Raises:
        InputError: workers below 1.
    """
    if workers < 1:
        raise InputError(f"workers is {workers}; give 1 or more processes.")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=len(jobs))
        results: list[Result] = []
        if min(workers, len(jobs)) <= 1 or model.device.type != "cpu":
            training = model.training
            model.eval()
            for job in jobs:
                results.append(work(model, job))
                done(results[-1])
                progress.advance(task)
            model.train(training)
            return results
        with tempfile.TemporaryDirectory(prefix="videollm-mod-") as folder:
            model.save_pretrained(folder)  # a routed model cannot be pickled: its layers' classes are made at run time
            dtype = next(model.lm.parameters()).dtype
            pool = ProcessPoolExecutor(
                min(workers, len(jobs)), multiprocessing.get_context("spawn"), _prepare, (folder, dtype)
            )
            try:
                futures: list[Future[Any]] = [pool.submit(_work, work, job) for job in jobs]
                waiting = set(futures)
                while waiting:
                    ready, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in ready:
                        done(future.result())  # the first failure ends it all
                    progress.advance(task, len(ready))
                return [future.result() for future in futures]
            finally:
                pool.shutdown(cancel_futures=True)


_model: StreamingVideoLM | None = None  # of a worker process


def _prepare(folder: str, dtype: torch.dtype) -> None:
    global _model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    torch.set_num_threads(1)
    _model = StreamingVideoLM.from_pretrained(folder, dtype=dtype)


def _work(work: Callable[[StreamingVideoLM, Job], Result], job: Job) -> Result:
    assert _model is not None
    return work(_model, job)
