"""`videollm-mod extract`: frames of videos -> features of a vision tower, one safetensors file a video.

    videollm-mod extract videos/ --out features/ --tower google/siglip-large-patch16-384 --grid 3x3
    videollm-mod extract mine.jsonl --out features/ --streams mine_features.jsonl     # with the bundled model's tower
    videollm-mod extract videos/ --out features/ --shard 3/8                          # the third of eight jobs

The same command again goes on where it stopped.
"""

from __future__ import annotations

import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from videollm_mod.flags import check_least

if TYPE_CHECKING:
    from videollm_mod.data.extract import Job, Outcome
    from videollm_mod.data.features import Kind
    from videollm_mod.vision import FrameEncoder

SHOWN = 20  # broken videos told in the result


@dataclass(frozen=True)
class ExtractConfig:
    """Which videos, which tower, where to."""

    sources: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE...", help_behavior_hint="")
    ]
    """Video files, folders of them at any depth, or .jsonl files of streams."""
    out: Path
    """The folder of the features; a video's place below its folder is that of its file here."""
    model: str = "tiny"
    """Whose tower: the bundled model "tiny", or a model's folder or hub id."""
    tower: str | None = None
    """A published tower instead: a folder or hub id of SigLIP, SigLIP 2, CLIP, DINOv2 or DINOv3."""
    grid: str | None = None
    """Tokens of a frame beside its CLS, such as 3x3; the model's own if not given, 3x3 for a published tower."""
    fps: float | None = None
    """Frames per second; the model's own if not given, 2 for a published tower."""
    dtype: Literal["fp16", "bf16", "fp32"] = "fp16"
    """Numbers in the files."""
    shard: str = "1/1"
    """i/n: every n-th video from the i-th on, for n jobs of any scheduler."""
    ray: bool = False
    """On Ray Data: decoding on its CPUs, encoding on its accelerators."""
    encoders: int = 1
    """With --ray: processes that encode, one on each accelerator."""
    streams: Path | None = None
    """With one .jsonl source: write its streams here, with their features, to train and evaluate on."""
    dry_run: bool = False
    """Only tell how much there is to do, and how many bytes it will take."""


def extract(config: ExtractConfig) -> dict[str, Any]:
    """Extract, and count what was done, skipped and failed. Raises InputError for what the user can mend."""
    from videollm_mod.data.extract import Outcome, extract_all, find_videos, shard_of
    from videollm_mod.data.features import expected_bytes
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError

    check_least(1, encoders=config.encoders)
    part, parts = shard_of(config.shard)
    if config.fps is not None and not (math.isfinite(config.fps) and 0 < config.fps <= 240):
        raise InputError(f"--fps {config.fps:g} is no frame rate; give frames per second, such as 2.")
    if config.streams is not None:
        check_writable(config.streams)
        if len(config.sources) != 1 or config.sources[0].suffix != ".jsonl":
            raise InputError("--streams goes with one source, a .jsonl file of streams; give that alone.")
    if config.out.exists() and not config.out.is_dir():
        raise InputError(f"--out {config.out} is a file; give the name of a folder.")
    found = find_videos(config.sources, config.out)[part - 1 :: parts]
    encoder, kind = _encoder(config)
    outcome = Outcome()
    jobs = _jobs(found, kind, outcome)
    seconds = sum(job.seconds for job in jobs)
    size = expected_bytes(seconds, kind.fps, kind.tokens, encoder.width, kind.dtype)
    _say(
        f"{len(jobs)} videos of {seconds / 3600:.2f} h to do ({outcome.skipped} done before): {kind.fps:g} frames per "
        f"second, 1 + {kind.grid[0]}x{kind.grid[1]} tokens of {encoder.width} in {kind.dtype}, about {_amount(size)}"
    )
    result: dict[str, Any] = {"out": str(config.out), "expected_bytes": size, "seconds": round(seconds, 3)}
    if config.dry_run:
        return {**result, "videos": len(jobs), "skipped": outcome.skipped, "failed": len(outcome.failed)}
    config.out.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(config.out).free
    if size > free:
        raise InputError(
            f"the features will take about {_amount(size)}, but {config.out} has {_amount(free)} free; give another "
            "--out, fewer --fps, a smaller --grid or --dtype fp16."
        )
    interrupted = False
    try:
        with _progress(jobs) as advance:
            if config.ray and jobs:
                from videollm_mod.data.extract_ray import extract_all_ray

                extract_all_ray(jobs, encoder, kind, outcome, advance, config.encoders)
            else:
                extract_all(jobs, encoder, kind, outcome, advance)
    except KeyboardInterrupt:
        interrupted = True
        _say("stopped; the same command goes on from here")
    for name, why in list(outcome.failed.items())[:SHOWN]:
        _say(f"failed: {name}: {why}")
    for name, early in list(outcome.short.items())[:SHOWN]:
        _say(f"short: {name}: {early}")
    if config.streams is not None and not interrupted:
        result |= _write_streams(config)
    return {
        **result,
        "done": outcome.done,
        "skipped": outcome.skipped,
        "failed": len(outcome.failed),
        "failures": dict(list(outcome.failed.items())[:SHOWN]),
        "short": dict(list(outcome.short.items())[:SHOWN]),
        "frames": outcome.frames,
        "bytes": outcome.bytes,
        "interrupted": interrupted,
    }


def _encoder(config: ExtractConfig) -> tuple[FrameEncoder, Kind]:
    """The tower with its grid, on the accelerator if there is one, and what its files have in common."""
    import torch

    from videollm_mod.data.features import DTYPES, Kind, tower_digest
    from videollm_mod.model import load
    from videollm_mod.vision import FrameEncoder, TransformersTower, VisionTower

    tower: VisionTower
    if config.tower is not None:
        tower, grid, fps = TransformersTower.from_pretrained(config.tower), (3, 3), 2.0
    else:
        # the tower as it is; of a large decoder, which is not used, half the memory
        model = load(config.model, dtype=torch.bfloat16, learned=torch.float32)
        tower, grid, fps = model.encoder.tower, model.encoder.grid, model.settings.fps
    encoder = FrameEncoder(tower.float(), _grid(config.grid) if config.grid is not None else grid).eval()
    encoder.requires_grad_(False)
    kind = Kind(config.fps or fps, encoder.grid, tower.to_config(), tower_digest(encoder), config.dtype)
    if torch.accelerator.is_available():
        encoder.to(torch.accelerator.current_accelerator(), DTYPES[config.dtype])
    return encoder, kind


def _grid(text: str) -> tuple[int, int]:
    from videollm_mod.types import InputError

    found = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text)
    if not found:
        raise InputError(f"--grid '{text}' is no grid; give rows x columns, such as 3x3.")
    return int(found[1]), int(found[2])


def _jobs(found: list[tuple[Path, Path, str]], kind: Kind, outcome: Outcome) -> list[Job]:
    """What is to be done; what is done already, and what cannot be opened, is counted."""
    from videollm_mod.data.extract import Job, is_done, probe
    from videollm_mod.types import InputError

    jobs = []
    for video, out, name in found:
        if is_done(out, kind):
            outcome.skipped += 1
            continue
        try:
            jobs.append(Job(video, out, name, probe(video)))
        except (InputError, OSError) as error:
            outcome.failed[name] = str(error)
    return jobs


def _write_streams(config: ExtractConfig) -> dict[str, Any]:
    from videollm_mod.data.extract import with_features
    from videollm_mod.data.segments import write_streams

    assert config.streams is not None
    streams, without = with_features(config.sources[0], config.out)
    write_streams(config.streams, streams)
    return {"streams": str(config.streams), "streams_without_features": without}


def _progress(jobs: list[Job]) -> Any:
    """A context: `advance(job)` moves a bar with an ETA on stderr, by seconds of video."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    @contextmanager
    def shown() -> Any:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("seconds of video", total=max(1, round(sum(job.seconds for job in jobs))))
            yield lambda job: progress.advance(task, round(job.seconds))

    return shown()


def _amount(size: int) -> str:
    """Bytes for people, powers of ten as disks are sold."""
    for unit, power in (("TB", 12), ("GB", 9), ("MB", 6)):
        if size >= 10**power:
            return f"{size / 10**power:.2f} {unit}"
    return f"{size / 1000:.1f} kB"


def _say(line: str) -> None:
    print(line, file=sys.stderr)
