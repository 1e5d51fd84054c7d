"""`videollm-mod eval leaderboard`: models beside what needs no model, on the same streams of the world."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from videollm_mod.flags import check_least

SHOWN = ("f1", "timing_f1", "false_alarms_per_minute", "question_accuracy")


@dataclass(frozen=True)
class LeaderboardConfig:
    """Which models, and on which streams."""

    models: tuple[str, ...] = ("tiny",)
    """Bundled models, tiny or camera, or models' folders."""
    split: Literal["test", "validation", "heldout"] = "test"
    """The streams: unseen ones like those of training, or with combinations of colour and shape that it never shows."""
    streams: int = 200
    """How many streams of the split, from number 0 on."""
    difficulty: Literal["easy", "medium", "hard"] = "medium"
    """How small, fast and hidden things are: `world/config.py` says which dials each turns."""
    dials: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Other dials of the world, such as clutter=12 events_per_minute=0.5; `world/config.py` lists them."""
    seconds: float = 30.0
    """Length of each stream, seconds, from 1 to 3600."""
    workers: int | None = None
    """Processes, one thread each; one per CPU core if not given. 1 stays in this process, with all threads."""
    json: Path | None = None
    """Write the result here too."""


def leaderboard(config: LeaderboardConfig) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""
    _check(config)
    from rich.console import Console

    from videollm_mod.evaluate.baselines import BASELINES
    from videollm_mod.evaluate.result import provenance
    from videollm_mod.evaluate.streams import run_streams, watch_own
    from videollm_mod.evaluate.summary import summarise_own
    from videollm_mod.evaluate.world import world_of
    from videollm_mod.files import atomic_write
    from videollm_mod.model import load
    from videollm_mod.world import make_stream

    console = Console(stderr=True)
    models = {name: load(name) for name in config.models}
    rows: dict[str, dict[str, Any]] = {}
    world = world_of(config.difficulty, config.dials, seconds=config.seconds)
    streams = [make_stream(config.split, number, world) for number in range(config.streams)]
    for name, baseline in BASELINES.items():
        console.print(f"{name}: {len(streams)} streams", highlight=False)
        rows[name] = summarise_own([(stream, baseline(stream)) for stream in streams])
    for name, model in models.items():
        seen = dataclasses.replace(world, fps=model.settings.fps, size=model.encoder.tower.image_size)
        own = [make_stream(config.split, number, seen) for number in range(config.streams)]
        jobs = [((stream, None), model.settings.threshold) for stream in own]
        workers = config.workers or os.cpu_count() or 1
        told = run_streams(model, watch_own, jobs, workers=workers, title=name)
        rows[name] = summarise_own(list(zip(own, told))) | {"plan": model.plan.to_dict()}
    result = {
        "rows": rows,
        "split": config.split,
        "difficulty": config.difficulty,
        "dials": list(config.dials),
        **provenance({stream.name: stream.times for stream in streams}),
        "description": f"world streams {streams[0].name} to {streams[-1].name}, {world.seconds:g} s",
    }
    if config.json is not None:
        with atomic_write(config.json) as file:
            json.dump(result, file, ensure_ascii=False, indent=2)
            file.write("\n")
    console.print(table(rows), highlight=False, markup=False, soft_wrap=True)
    return result


def table(rows: dict[str, dict[str, Any]]) -> str:
    """A line per row, with 95 % intervals, the best event F1 last."""
    from videollm_mod.evaluate.report import NAMES

    lines = [["", *(NAMES[key] for key in SHOWN)]]
    for name, values in sorted(rows.items(), key=lambda item: item[1]["f1"]):
        cells = []
        for key in SHOWN:
            ends = values["intervals"][key]
            between = f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else ""
            cells.append("none" if values[key] is None else f"{values[key]:.2f}{between}")
        lines.append([name, *cells])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in lines)


def _check(config: LeaderboardConfig) -> None:
    from videollm_mod.evaluate.world import world_of
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError

    check_least(1, streams=config.streams, workers=config.workers)
    if not 1 <= config.seconds <= 3600:  # what WorldConfig takes; also refuses NaN
        raise InputError(f"--seconds {config.seconds:g} is out of range; give a number from 1 to 3600.")
    world_of(config.difficulty, config.dials)
    if config.json is not None:
        check_writable(config.json)
