"""`videollm-mod eval world`: a model on streams of the synthetic world, as JSON and as a report with its worst cases.

    videollm-mod eval world --split test --streams 50 --report scratch/report
    videollm-mod eval world --world cameras --dials objects=1

Flags and outputs are checked before the model is loaded; heavy modules are imported where they are used.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from videollm_mod.evaluate.names import BATCH
from videollm_mod.flags import (
    PLANS,
    REDUCTION_HELP,
    check_keep,
    check_least,
    check_probability,
    parse_values,
    reduced_by,
    stored_as,
)

if TYPE_CHECKING:
    from videollm_mod.world import WorldConfig, WorldStream
    from videollm_mod.world.camera import CameraConfig, CameraStream

FEW_STREAMS = 10  # with fewer, an interval over streams is hardly one
SHOWN = "f1 f1_kind_and_side timing_f1 f1_teacher_forced false_alarms_per_minute".split()  # on the terminal
SHOWN += "question_accuracy lm_ppl time_diff fluency lm_correctness".split()


@dataclass(frozen=True)
class EvalWorldConfig:
    """Which model, and on which streams."""

    model: str = "tiny"
    """A bundled model, tiny (coloured shapes) or camera (what fixed cameras see), or a model's folder."""
    world: Literal["shapes", "cameras"] = "shapes"
    """Coloured shapes, or what fixed cameras see; the latter has neither difficulties nor held-out combinations."""
    split: Literal["test", "validation", "heldout"] = "test"
    """The streams: unseen ones like those of training, or with combinations of colour and shape that it never shows."""
    streams: int = 50
    """How many streams of the split, from number 0 on."""
    heldout: int = 20
    """How many streams with held-out combinations besides; 0 for none."""
    difficulty: Literal["easy", "medium", "hard"] = "medium"
    """How small, fast and hidden things are: `world/config.py` says which dials each turns."""
    dials: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Other dials of the world, such as clutter=12 events_per_minute=0.5; `world/config.py` and
    `world/camera/config.py` list them."""
    seconds: float = 30.0
    """Length of each stream, seconds, from 1 to 3600."""
    report: Path = Path("out/report")
    """The folder of the report: index.html with the ten worst streams, and their pictures."""
    json: Path | None = None
    """Write the result here too."""
    journal: Path | None = None
    """Keep each stream's result in this file as soon as it is there; the same command then goes on from it."""
    workers: int | None = None
    """Processes, one thread each; one per CPU core if not given. 1 stays in this process, with all threads."""
    batch: int = BATCH
    """Streams of each process that share the model's steps: the same result, sooner. 1: one after another."""
    threshold: float | None = None
    """Speak when the probability of silence falls below this; the model's own if not given."""
    keep: float | None = None
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]; the model's own if not given."""
    plan: Annotated[str | None, tyro.conf.arg(help=f"Which layers route: {PLANS}; the model's own if not given.")] = (
        None
    )
    reduction: Annotated[str | None, tyro.conf.arg(metavar="NAME=SHARE", help=REDUCTION_HELP)] = None
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """How the model's weights are stored; the last two round the decoder's, with torchao (`[quant]`)."""
    kv: Literal["int8", "fp8"] | None = None
    """How keys and values are stored; as they are if not given."""


def evaluate_world(config: EvalWorldConfig) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""
    workers = _check(config)
    from rich.console import Console

    from videollm_mod.depth.plan import parse_layers
    from videollm_mod.evaluate.journal import watch_streams
    from videollm_mod.evaluate.report import write_report
    from videollm_mod.evaluate.result import provenance
    from videollm_mod.evaluate.summary import summarise
    from videollm_mod.files import atomic_write
    from videollm_mod.model import load

    wishes: dict[str, Any] = {"keep": config.keep, "threshold": config.threshold} | reduced_by(config.reduction)
    model = load(config.model, plan=parse_layers(config.plan), **wishes, **stored_as(config.dtype, config.kv))
    threshold = model.settings.threshold
    size = model.encoder.tower.image_size
    world = _dialled(config, seconds=config.seconds, fps=model.settings.fps, size=size)
    streams = [_stream(config.split, number, world) for number in range(config.streams)]
    more = 0 if config.split == "heldout" or config.world == "cameras" else config.heldout
    besides = [_stream("heldout", number, world) for number in range(more)]
    began = time.monotonic()
    title = f"world, {config.split}"
    watched, new = watch_streams(
        model, streams + besides, config.journal, workers=workers, batch=config.batch, title=title
    )
    wall = time.monotonic() - began
    ours, others = watched[: len(streams)], watched[len(streams) :]
    main = summarise(ours, threshold)
    heldout = main if config.split == "heldout" else summarise(others, threshold) if others else None
    frames = new * world.frame_count
    few = [_streams(count) for count in (len(ours), len(others)) if 0 < count < FEW_STREAMS]
    result = {
        **main,
        "f1_heldout": heldout["f1"] if heldout else None,
        "heldout": heldout,
        "world": config.world,
        "split": config.split,
        "difficulty": config.difficulty,
        "dials": list(config.dials),
        "description": f"{config.world}, streams {streams[0].name} to {streams[-1].name}, {config.difficulty}, "
        f"{world.seconds:g} s at {world.fps:g} frames per second, {world.size} px",
        "model": config.model,
        "threshold": threshold,
        "plan": model.plan.to_dict(),
        "dtype": config.dtype,
        "kv": config.kv,
        "reduction": reduced_by(config.reduction).get("reduction"),
        "samples": main["events"],
        **provenance({stream.name: stream.times for stream in streams + besides}),
        "workers": workers,
        "wall_seconds": round(wall, 2),
        "frames_per_second": round(frames / wall, 2),  # of what was not in the journal
        "warnings": _warnings(few, world.seconds, model.settings.window),
    }
    result["report"] = str(write_report(config.report, result, ours, threshold))
    if config.json is not None:
        with atomic_write(config.json) as file:
            json.dump(result, file, ensure_ascii=False, indent=2)
            file.write("\n")
    console = Console(stderr=True)
    console.print(table(result), highlight=False, markup=False, soft_wrap=True)
    console.print(f"the worst streams, in pictures: {result['report']}", highlight=False, markup=False, soft_wrap=True)
    return result


def _warnings(few: Sequence[str], seconds: float, window: float | None) -> list[str]:
    found = [f"intervals from {' and '.join(few)} say little; give {FEW_STREAMS} or more."] if few else []
    if window is not None and seconds > 2 * window + 2:
        found.append(
            f"the teacher-forced numbers are of one pass over all {seconds:g} s, and a session of this model remembers "
            f"{2 * window:g}: they say how it does beyond what it has learned, not how it does in use."
        )
    return found


OWN_FLAGS = ("seconds", "fps", "size")  # dials that have flags of their own, or are the model's


def world_of(name: str, dials: Sequence[str], **more: float) -> WorldConfig:
    """The world of flags: a difficulty, its dials as NAME=VALUE, and what has flags of its own."""
    from videollm_mod.world import WorldConfig, difficulty

    return difficulty(name, **parse_values("--dials", dials, _dials(WorldConfig())), **more)


def _dialled(config: EvalWorldConfig, **more: float) -> WorldConfig | CameraConfig:
    """The dials of the flags' world."""
    from videollm_mod.types import InputError
    from videollm_mod.world.camera import CameraConfig

    if config.world == "shapes":
        return world_of(config.difficulty, config.dials, **more)
    if config.difficulty != "medium":
        raise InputError(f"--difficulty {config.difficulty} is of the shapes' world; turn the cameras' --dials.")
    if config.split == "heldout":
        raise InputError("--split heldout is of the shapes' world; the cameras' splits are test and validation.")
    values: dict[str, Any] = {**parse_values("--dials", config.dials, _dials(CameraConfig())), **more}
    return CameraConfig(**values)


def _dials(defaults: WorldConfig | CameraConfig) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(defaults).items() if name not in OWN_FLAGS}


def _stream(split: str, number: int, world: WorldConfig | CameraConfig) -> WorldStream | CameraStream:
    from videollm_mod.world import WorldConfig, make_stream
    from videollm_mod.world.camera import make_camera_stream

    if isinstance(world, WorldConfig):
        return make_stream(split, number, world)
    return make_camera_stream(split, number, world)


def table(result: dict[str, Any]) -> str:
    """The main numbers for the eye, with their 95 % intervals, and the warnings: some lines of text."""
    from videollm_mod.evaluate.report import NAMES

    columns = [(f"{result['split']} ({_streams(result['streams'])})", result)]
    if result["heldout"] and result["split"] != "heldout":
        columns.append((f"heldout ({_streams(result['heldout']['streams'])})", result["heldout"]))
    rows = [["", *(name for name, _ in columns)]]
    for key in SHOWN:
        if key == "f1_kind_and_side" and result["world"] != "cameras":
            continue
        row = [NAMES[key]]
        for _, values in columns:
            ends = values["intervals"][key]
            between = f"  [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
            row.append("none" if values[key] is None else f"{values[key]:.3f}{between}")
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, *(f"warning: {message}" for message in result["warnings"])])


def _streams(count: int) -> str:
    return f"{count} stream{'' if count == 1 else 's'}"


def _check(config: EvalWorldConfig) -> int:
    """Raise InputError for a flag that cannot be right or an output that cannot be written; returns the workers."""
    from videollm_mod.depth.plan import parse_layers
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError

    check_least(1, streams=config.streams, workers=config.workers, batch=config.batch)
    check_least(0, heldout=config.heldout)
    if not 1 <= config.seconds <= 3600:  # what WorldConfig takes; also refuses NaN
        raise InputError(f"--seconds {config.seconds:g} is out of range; give a number from 1 to 3600.")
    check_probability(threshold=config.threshold)
    check_keep(config.keep)
    parse_layers(config.plan)
    _dialled(config)
    for path in (config.json, config.journal):
        if path is not None:
            check_writable(path)
    if config.report.is_file():
        raise InputError(f"--report {config.report} is a file; give the name of a folder.")
    try:
        config.report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = (error.strerror or "cannot be made").lower()
        raise InputError(f"cannot write --report {config.report}: {reason}; give another folder.") from error
    check_writable(config.report / "index.html")
    return config.workers or os.cpu_count() or 1
