"""Trains and measures the cells of the tables, one after another; what is there already is not done again.

A cell's result is written as soon as it is there, and its training resumes where it was stopped, so tables fill up over
several sittings.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from videollm_mod.bench.measure import PeakMemory, rounded, time_in_turn
from videollm_mod.depth import flops
from videollm_mod.evaluate.calibrate import calibrate
from videollm_mod.evaluate.result import provenance
from videollm_mod.evaluate.spread import per_stream
from videollm_mod.evaluate.streams import Watched, run_streams, watch_both
from videollm_mod.evaluate.summary import summarise, tally
from videollm_mod.files import atomic_write, temporary_name
from videollm_mod.model import StreamingVideoLM, load
from videollm_mod.tables.cells import Cell, key, values_of
from videollm_mod.train.build import build
from videollm_mod.train.data import StreamSample, stream_sample
from videollm_mod.train.devices import in_bf16
from videollm_mod.train.loop import StreamStage, stored_as, train
from videollm_mod.train.recipe import Recipe
from videollm_mod.world import WorldConfig, make_stream

Say = Callable[[str], None]


@dataclass(frozen=True)
class Measure:
    """What a trained cell is calibrated and measured on."""

    world: WorldConfig
    others: dict[str, WorldConfig] = dataclasses.field(default_factory=dict)  # for cells that are measured there, too
    calibration: int = 64  # streams of the validation split
    test: int = 200  # streams of the test split

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: a result belongs to its cell only while they are the same."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return values


def slug(name: str) -> str:
    """A file's name for a cell's."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def base_path(recipe: Recipe, results: Path) -> Path:
    """Where the dense model is that all cells start from.

    It stays with the results: another machine that fills more cells starts them from the very same weights.
    """
    return results / f"base-{key(recipe)}" / "model"


def fill_base(recipe: Recipe, measure: Measure, home: Path, results: Path, *, workers: int, say: Say) -> Path:
    """Train and calibrate the dense model that all cells start from, unless it is there; returns its folder."""
    place = base_path(recipe, results)
    kept, run = place.parent, home / place.parent.name
    if not kept.is_dir():
        if not (run / "model").is_dir():
            say(f"base: {recipe.steps} steps")
            train(recipe, run, resume=True, workers=workers, show=_short(say))
        results.mkdir(parents=True, exist_ok=True)
        unfinished = temporary_name(kept)
        shutil.copytree(run / "model", unfinished / "model")
        model = calibrated(load(run / "model"), measure, workers=workers)
        model.save_pretrained(unfinished / "model", dtype=stored_as(model))
        shutil.copy2(run / "log.jsonl", unfinished)
        os.replace(unfinished, kept)
    return place


def calibrated(model: StreamingVideoLM, measure: Measure, *, workers: int) -> StreamingVideoLM:
    """The model, with the threshold that is best on the measure's validation streams."""
    held = [make_stream("validation", number, measure.world) for number in range(measure.calibration)]
    threshold, _ = calibrate(model, held, workers=workers)
    model.settings = dataclasses.replace(model.settings, threshold=threshold)
    return model


def result_path(results: Path, cell: Cell, seed: int) -> Path:
    """Where a cell's result is."""
    return results / f"{slug(cell.name)}-s{seed}.json"


def known(results: Path, cell: Cell, seed: int, recipe: Recipe, measure: Measure) -> dict[str, Any] | None:
    """A cell's result, if it is there, of this very recipe and measured on these streams."""
    path = result_path(results, cell, seed)
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    return found if is_current(found, recipe, measure) else None


def is_current(result: Mapping[str, Any], recipe: Recipe, measure: Measure) -> bool:
    """Whether a cell's result is of this very recipe, measured on these streams."""
    return (result["key"], result["measure"]) == (key(recipe), measure.to_dict())


def fill_cell(
    cell: Cell,
    recipe: Recipe,
    measure: Measure,
    home: Path,
    results: Path,
    *,
    workers: int,
    say: Say,
) -> dict[str, Any]:
    """Train, calibrate on the validation split, measure on the test split, write; or take what is there."""
    found = known(results, cell, recipe.seed, recipe, measure)
    if found is not None:
        return found
    folder = home / f"{slug(cell.name)}-s{recipe.seed}-{key(recipe)}"
    say(f"{cell.name}, seed {recipe.seed}: {recipe.steps} steps")
    trained = load(train(recipe, folder, resume=True, workers=workers, show=_short(say)))
    model = calibrated(trained, measure, workers=workers)
    threshold = model.settings.threshold
    worlds = {"": measure.world, **(measure.others if cell.everywhere else {})}
    watched = {}
    for name, world in worlds.items():
        streams = [make_stream("test", number, world) for number in range(measure.test)]
        watched[name] = run_streams(model, watch_both, streams, workers=workers, title=f"{cell.name} {name}".strip())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    found = {
        **provenance({item.stream.name: item.stream.times for item in watched[""]}),
        "key": key(recipe),
        "measure": measure.to_dict(),
        "cell": cell.name,
        "tables": list(cell.tables),
        "seed": recipe.seed,
        "threshold": threshold,
        **_numbers(watched.pop(""), threshold),
        "others": {name: _numbers(items, threshold) for name, items in watched.items()},
        "cost": rounded(analytic_cost(recipe)),
        "validation": [row for row in log if row["stage"] == "validation"],
        "arithmetic": "bfloat16" if in_bf16(recipe) else "float32",
        "train_seconds": log[-1]["seconds"],
        "recipe": values_of(recipe),
    }
    results.mkdir(parents=True, exist_ok=True)
    with atomic_write(result_path(results, cell, recipe.seed)) as file:
        lines = (f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
        file.write("{\n" + ",\n".join(lines) + "\n}\n")  # a line each: short enough to keep, and to look at
    say(f"{cell.name}, seed {recipe.seed}: F1 {found['f1']:.3f}, LM-PPL {found['lm_ppl']:.3f}")
    return found


def _numbers(watched: Sequence[Watched], threshold: float) -> dict[str, Any]:
    return {
        **summarise(watched, threshold),
        "per_stream": per_stream([tally(item, threshold) for item in watched]),
    }


def _short(say: Say) -> Callable[[dict[str, Any]], None]:
    """Of a run's log, the validation alone."""

    def show(line: dict[str, Any]) -> None:
        if line["stage"] == "validation":
            say(f"  step {line['step']}: loss {line['loss']:.3f}, sentences right {line['sentences_right']:.2f}")

    return show


# -- what a cell costs -------------------------------------------------------------------------------------------------


def analytic_cost(recipe: Recipe) -> dict[str, float]:
    """FLOPs of a training step and bytes of the KV cache on the recipe's first stream, by formula."""
    stage, item = StreamStage(build(recipe), recipe), _first(recipe)
    example = stage.model.template.encode(item.segments)
    frames, tokens = len(item.frames), 1 + recipe.grid[0] * recipe.grid[1]
    text = int((example.frame_index < 0).sum())
    labels = int((example.labels >= 0).sum())
    config = stage.model.lm.config
    return {
        "train_flops": flops.train_flops(config, recipe.plan, text, frames, tokens, labels),
        "kv_bytes": flops.kv_bytes(config, recipe.plan, text, frames, tokens),
    }


def measure_costs(recipes: dict[str, Recipe], dense: str, repeats: int, say: Say) -> dict[str, dict[str, float]]:
    """Time and activation peak of a training step on one stream, as ratios to the recipe called `dense`.

    Each is timed in turn with the dense one, in this process; nothing else should run.
    """
    found = {}
    for name in recipes:
        pair = {which: _step(recipes[which]) for which in (dense, name)}
        peaks = {}
        for which, step in pair.items():
            with PeakMemory() as memory:
                step()
            peaks[which] = memory.peak
        timing = time_in_turn(pair, repeats)
        found[name] = {
            "step_time": timing[name].wall_ms / timing[dense].wall_ms,
            "activation_peak": peaks[name] / peaks[dense],
        }
        say(f"{name}: step {found[name]['step_time']:.3f}, peak {found[name]['activation_peak']:.3f} of {dense}")
    return found


def _step(recipe: Recipe) -> Callable[[], None]:
    stage, item = StreamStage(build(recipe), recipe).train(), _first(recipe)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bf16(recipe)):
            loss, _ = stage([item], recipe.steps - 1)
        loss.backward()
        stage.zero_grad()

    return run


def _first(recipe: Recipe) -> StreamSample:
    return stream_sample("validation", 0, recipe.phases[-1], recipe)
