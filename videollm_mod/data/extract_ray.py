"""Extraction on Ray Data: videos are decoded by tasks on CPUs while actors, one on each accelerator, encode.

Rows of frames stream from one to the other through the object store, which bounds how far decoding runs ahead; features
come back to the driver, which writes each video's file as soon as its last frame has come. Any cluster will do:
`ray.init()` joins the one whose address is in RAY_ADDRESS, or starts one on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from videollm_mod.data.extract import Job, Outcome, encode, ends_early, frames_of
from videollm_mod.data.features import DTYPES, Kind, write_features
from videollm_mod.types import InputError
from videollm_mod.vision import FrameEncoder, tower_from_config

ROWS = 32  # frames at a time
END, BROKEN = -1, -2  # in place of a frame's number


def extract_all_ray(
    jobs: Sequence[Job],
    encoder: FrameEncoder,
    kind: Kind,
    outcome: Outcome,
    advance: Callable[[Job], None],
    encoders: int = 1,
) -> None:
    """As `extract_all`, with `encoders` actors. Raises InputError when Ray is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        from videollm_mod.doctor import install_command

        raise InputError(f"--ray needs Ray, which is not installed; run {install_command(extra='cluster')}.") from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    size, on_gpu = encoder.tower.image_size, torch.accelerator.is_available()
    weights: Any = ray.put({name: tensor.cpu() for name, tensor in encoder.state_dict().items()})

    def decode(row: dict[str, Any]) -> Iterator[dict[str, np.ndarray]]:
        yield from _rows(int(row["job"][0]), Path(str(row["video"][0])), kind.fps, size)

    class Encode:
        def __init__(self) -> None:
            self.encoder = FrameEncoder(tower_from_config(kind.tower), kind.grid)
            self.encoder.load_state_dict(ray.get(weights))
            self.encoder.eval()
            if on_gpu:
                self.encoder.to(torch.accelerator.current_accelerator())

        def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            vectors = encode(self.encoder, torch.from_numpy(np.ascontiguousarray(rows.pop("frame"))), kind.dtype)
            # numpy has no bfloat16: its bits travel
            rows["features"] = vectors.view(torch.int16).numpy() if kind.dtype == "bf16" else vectors.numpy()
            return rows

    items = [{"job": number, "video": str(job.video)} for number, job in enumerate(jobs)]
    # Stages that ask for the same resources are fused into one, and nothing would overlap: these two differ.
    asked: dict[str, Any] = {"num_cpus": 0, "num_gpus": 1} if on_gpu else {"num_cpus": 0.5}
    stream = (
        ray.data.from_items(items, override_num_blocks=len(items))
        .map_batches(decode, batch_size=1, num_cpus=1)
        .map_batches(Encode, batch_size=ROWS, concurrency=encoders, **asked)
    )
    gathered = _Gathered(jobs, kind, outcome, advance)
    for rows in stream.iter_batches(batch_size=None, batch_format="numpy"):
        gathered.add(rows)
    for number, job in enumerate(jobs):
        if number not in gathered.finished:  # its task died, with its machine
            outcome.failed[job.name] = "its task ended before the video did; run again"
            advance(job)


class _Gathered:
    """What has come of each video, until it is whole."""

    def __init__(self, jobs: Sequence[Job], kind: Kind, outcome: Outcome, advance: Callable[[Job], None]) -> None:
        self.jobs, self.kind, self.outcome, self.advance = jobs, kind, outcome, advance
        self.rows: dict[int, dict[int, tuple[float, np.ndarray]]] = {}  # job -> frame -> (time, features)
        self.ends: dict[int, tuple[int, float]] = {}  # job -> (frames, duration)
        self.finished: set[int] = set()

    def add(self, rows: dict[str, np.ndarray]) -> None:
        for place, job in enumerate(rows["job"].tolist()):
            number, time = int(rows["number"][place]), float(rows["time"][place])
            if number == BROKEN:
                self._finish(job, str(rows["told"][place]))
            elif number == END:
                self.ends[job] = (int(rows["told"][place]), time)
            else:
                self.rows.setdefault(job, {})[number] = (time, rows["features"][place])
            if job in self.ends and len(self.rows.get(job, {})) == self.ends[job][0] and job not in self.finished:
                self._write(job)

    def _write(self, job: int) -> None:
        rows, about = [row for _, row in sorted(self.rows[job].items())], self.jobs[job]
        vectors = torch.from_numpy(np.stack([vector for _, vector in rows]))
        if self.kind.dtype == "bf16":
            vectors = vectors.view(DTYPES["bf16"])
        times, duration = [time for time, _ in rows], self.ends[job][1]
        try:
            size = write_features(about.out, self.kind, vectors, times, duration=duration, video=about.name)
        except InputError as error:
            self._finish(job, str(error))
            return
        self.outcome.done, self.outcome.bytes = self.outcome.done + 1, self.outcome.bytes + size
        self.outcome.frames += len(rows)
        if (early := ends_early(times, self.kind.fps, duration)) is not None:
            self.outcome.short[about.name] = early
        self._finish(job, None)

    def _finish(self, job: int, why: str | None) -> None:
        self.finished.add(job)
        self.rows.pop(job, None)
        if why is not None:
            self.outcome.failed[self.jobs[job].name] = why
        self.advance(self.jobs[job])


def _rows(job: int, video: Path, fps: float, size: int) -> Iterator[dict[str, np.ndarray]]:
    """A video's frames with their numbers, and a last row that says how many there were; or why it is broken."""
    count, duration = 0, 0.0
    blank = np.zeros((1, size, size, 3), np.uint8)

    def rows(frames: np.ndarray, first: int, times: list[float], told: str) -> dict[str, np.ndarray]:
        numbers = np.arange(first, first + len(frames)) if first >= 0 else np.full(len(frames), first)
        return {
            "job": np.full(len(frames), job),
            "number": numbers,
            "time": np.asarray(times, np.float64),
            "told": np.asarray([told] * len(frames)),
            "frame": frames,
        }

    try:
        for frames, times, known in frames_of(video, fps, size, ROWS):
            yield rows(frames.numpy(), count, times, "")
            count, duration = count + len(times), known
        yield rows(blank, END, [duration], str(count))
    except (InputError, OSError, ValueError) as error:
        yield rows(blank, BROKEN, [0.0], str(error))
