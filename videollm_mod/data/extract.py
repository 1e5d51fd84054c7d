"""Frames of many videos -> files of features, one video after another: resumable, and no broken video stops the rest.

Decoding runs in a thread ahead of encoding. `extract_ray.py` does the same over many processes and machines.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from videollm_mod.data.features import DTYPES, Kind, open_features, write_features
from videollm_mod.data.reading import VIDEOS
from videollm_mod.data.segments import Stream, read_streams
from videollm_mod.types import InputError
from videollm_mod.video import letterbox, open_video
from videollm_mod.vision import FrameEncoder

BATCH = 64  # frames
EARLY = 2.0  # seconds that a video's pictures may end before the video does; sound may outlast them
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """A video and the file that its features go to."""

    video: Path
    out: Path
    name: str  # of the video, for people
    seconds: float  # how long it is, as far as it tells


@dataclass
class Outcome:
    """How a run went."""

    done: int = 0
    skipped: int = 0  # were there already
    failed: dict[str, str] = field(default_factory=dict)  # name -> why
    short: dict[str, str] = field(default_factory=dict)  # of those done, name -> where its pictures end too early
    frames: int = 0
    bytes: int = 0


def find_videos(sources: Sequence[Path], out: Path) -> list[tuple[Path, Path, str]]:
    """(video, its features file, its name) of files, folders at any depth, and .jsonl files of streams; by name.

    The place of a video below its folder is that of its features below `out`. Raises InputError when there is none, or
    two of them go to one file.
    """
    found: dict[Path, tuple[Path, str]] = {}
    for source in sources:
        if source.is_dir():
            paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in VIDEOS and p.is_file())
            home = source
        elif source.suffix == ".jsonl":
            paths = sorted({stream.video for stream in read_streams(source) if stream.video is not None})
            home = source.parent
        elif source.is_file():
            paths, home = [source], source.parent
        else:
            raise InputError(f"there is no video, folder or .jsonl file {source}; check the path.")
        for path in paths:
            name = path.relative_to(home) if path.is_relative_to(home) and ".." not in path.parts else Path(path.name)
            target = out / name.with_suffix(".safetensors")
            before = found.get(target)
            if before is not None and before[0].resolve() != path.resolve():
                raise InputError(
                    f"{before[0]} and {path} would both go to {target}; rename one, or extract them apart."
                )
            found.setdefault(target, (path, str(name)))
    if not found:
        raise InputError(
            f"no video in {', '.join(map(str, sources))}; give files, folders or a .jsonl file of streams."
        )
    return sorted(((path, target, name) for target, (path, name) in found.items()), key=lambda one: one[2])


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of "i/n", from 1/n to n/n. Raises InputError for anything else."""
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts) <= 100_000):
        raise InputError(f"--shard '{text}' is no share; give i/n, from 1/n to n/n, such as 3/8.")
    return int(part), int(parts)


def frames_of(video: Path, fps: float, size: int, batch: int = BATCH) -> Iterator[tuple[Tensor, list[float], float]]:
    """(frames (b, size, size, 3) uint8, their times, the video's duration as far as known) until it ends; b <= batch.

    Letterboxed, as a live session sees them.
    """
    with open_video(video, fps=fps) as source:
        images: list[np.ndarray] = []
        times: list[float] = []
        for frame in source:
            images.append(letterbox(frame.image[None], size)[0].numpy())
            times.append(frame.time)
            if len(images) == batch:
                yield torch.from_numpy(np.stack(images)), times, source.duration or times[-1]
                images, times = [], []
        if images:
            yield torch.from_numpy(np.stack(images)), times, source.duration or times[-1]


@torch.inference_mode()
def encode(encoder: FrameEncoder, frames: Tensor, dtype: str) -> Tensor:
    """(b, S, S, 3) uint8 -> (b, 1 + h * w, width) of `dtype`, on the CPU."""
    device = next(encoder.parameters()).device
    return encoder(frames.to(device)).to(DTYPES[dtype]).cpu()


def ends_early(times: Sequence[float], fps: float, duration: float) -> str | None:
    """What is to be told of a video whose pictures end long before it does, as those of a download that was cut off."""
    end = times[-1] + 1 / fps
    return f"its pictures end at {end:.1f} s of {duration:.1f}" if end < duration - EARLY else None


def extract_video(job: Job, encoder: FrameEncoder, kind: Kind, batch: int = BATCH) -> tuple[int, int, str | None]:
    """One video's file; returns (frames, bytes, see `ends_early`). Raises InputError when it cannot be read."""
    parts: list[Tensor] = []
    times: list[float] = []
    duration = 0.0
    batches = frames_of(job.video, kind.fps, encoder.tower.image_size, batch)
    with ThreadPoolExecutor(1) as ahead:  # a video belongs to one thread
        try:
            coming = ahead.submit(next, batches, None)
            while (part := coming.result()) is not None:
                coming = ahead.submit(next, batches, None)
                parts.append(encode(encoder, part[0], kind.dtype))
                times += part[1]
                duration = part[2]
        finally:
            ahead.submit(batches.close)  # type: ignore[attr-defined]
    size = write_features(job.out, kind, torch.cat(parts), times, duration=duration, video=job.name)
    return len(times), size, ends_early(times, kind.fps, duration)


def extract_all(
    jobs: Iterable[Job], encoder: FrameEncoder, kind: Kind, outcome: Outcome, advance: Callable[[Job], None]
) -> None:
    """All of them in this process; `advance` is told each video that has been dealt with."""
    for job in jobs:
        try:
            frames, size, early = extract_video(job, encoder, kind)
            if early is not None:
                outcome.short[job.name] = early
            outcome.done, outcome.frames, outcome.bytes = (
                outcome.done + 1,
                outcome.frames + frames,
                outcome.bytes + size,
            )
        except (InputError, OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                raise  # of the rest nothing could be written either
            outcome.failed[job.name] = str(error)
        advance(job)


def is_done(out: Path, kind: Kind) -> bool:
    """Whether a video's features are there. Raises InputError when they are there, but of another kind."""
    if not out.exists():
        return False
    try:
        there = open_features(out).kind
    except InputError as error:
        raise InputError(f"{out} is broken, or no features file of ours; remove it, and extract again.") from error
    for name in ("fps", "grid", "tower", "weights", "dtype"):
        if _plain(getattr(there, name)) != _plain(getattr(kind, name)):
            was, now = (str(_plain(getattr(one, name)))[:60] for one in (there, kind))
            raise InputError(f"{out} was extracted with {name} {was}, not {now}; give another --out.")
    return True


def probe(video: Path) -> float:
    """How many seconds a video is; 0 if it does not tell. Raises InputError when it cannot be opened."""
    with open_video(video) as source:
        return source.duration or 0.0


def with_features(streams_file: Path, out: Path) -> tuple[list[Stream], int]:
    """The streams of a file with the features files that are there, and how many have none."""
    by_video = {video.resolve(): target for video, target, _ in find_videos([streams_file], out)}
    streams: list[Stream] = []
    without = 0
    for stream in read_streams(streams_file):
        target = by_video.get(stream.video.resolve()) if stream.video is not None else None
        if target is None or not target.exists():
            without += 1
            streams.append(stream)
            continue
        duration = stream.duration or open_features(target).duration
        streams.append(replace(stream, features=target, duration=duration))
    return streams, without


def _plain(value: object) -> object:
    return json.loads(json.dumps(value))
