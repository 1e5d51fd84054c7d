"""Fills the cells of `bench reductions`: what a model says with a reduction in it, as it is and adapted; before that,
what it costs (reductions_costs.py).

Quality is that of the world's test split, as `eval world` has it; a live session runs a method's causal form, and each
cell's threshold is calibrated on validation streams. An adapted cell has learned a little more, from the same weights,
with the method in place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from recipes import reduced
from videollm_mod.bench.measure import environment, progress, rounded
from videollm_mod.bench.reductions_cells import DENSE, Cell, cells
from videollm_mod.bench.reductions_command import BenchReductions
from videollm_mod.bench.reductions_costs import LOOKED_AT, Numbers, measure_cost, measure_kept
from videollm_mod.evaluate.calibrate import calibrate
from videollm_mod.evaluate.spread import estimate, per_stream
from videollm_mod.evaluate.streams import run_streams, watch_both
from videollm_mod.evaluate.summary import summarise, tally
from videollm_mod.evaluate.world import world_of
from videollm_mod.files import atomic_write
from videollm_mod.loading import described, find
from videollm_mod.model import load
from videollm_mod.reductions import from_dict, reducing
from videollm_mod.train.build import like_start
from videollm_mod.train.loop import train
from videollm_mod.train.recipe import Phase
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig, WorldStream, make_stream

METRICS = ("f1", "timing_f1", "lm_ppl", "question_accuracy", "false_alarms_per_minute")
Known = dict[str, Numbers]  # key -> what was measured


def fingerprint(model: str) -> str:
    """Of a model's weights: a result belongs to them, not to a name."""
    digest = hashlib.sha256()
    for path in sorted(find(model).glob("*.safetensors")):
        with path.open("rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()[:12]


def fill(config: BenchReductions) -> Numbers:
    """All cells, from `config.out` where they are there; `{"cells": [...], ...}`. Costs first: they want it quiet."""
    weights, model = fingerprint(config.model), load(config.model)
    experts = model.plan.layers != "full" and model.plan.scorer == "learned"
    config_of_tower: Any = getattr(getattr(model.encoder.tower, "model", None), "config", None)
    blocks = getattr(config_of_tower, "num_hidden_layers", 0)  # the conv tower has none
    height, width = model.encoder.grid
    about = (
        f"frames of {height} x {width} cells and a CLS, {blocks} blocks in the tower, {model.num_layers} decoder layers"
    )
    told = json.loads(config.out.read_text(encoding="utf-8")) if config.out.is_file() else {}
    known: Known = told.get("known", {})
    wanted = list(cells(config, experts=experts, blocks=blocks))
    size = [config.frames, config.repeats]
    cost_keys = [_key("cost", weights, *cell.setting, *size) for cell in wanted]
    kept_keys = [_key("kept", weights, *cell.setting, config.streams, config.seconds, config.dials) for cell in wanted]
    judged = [config.streams, config.calibration, config.seconds, config.dials]
    keys = [_key("said", weights, *cell.setting, cell.steps, *judged) for cell in wanted]

    def result() -> Numbers:
        found: list[Numbers] = []
        for cell, *places in zip(wanted, keys, cost_keys, kept_keys):
            found.append({**dataclasses.asdict(cell), "plan": cell.plan.to_dict()})
            for place in places:
                found[-1] |= known.get(place, {})
        streams = [row.pop("per_stream", None) for row in found]
        questions = next((int(sum(own["questions"])) for own in streams if own is not None), 0)
        dense = {row["steps"]: own for row, own in zip(found, streams) if row["name"] == "dense"}
        for row, own in zip(found, streams):
            other = dense.get(row["steps"])  # as it is, or adapted just as long
            if own is not None and other is not None:
                difference = estimate({0: {"per_stream": own}}, {0: {"per_stream": other}})["f1"]
                row["f1_difference"] = rounded(list(difference))
        return {
            "cells": [row for row in found if "f1" in row or "refused" in row],
            "missing": sum("f1" not in row and "refused" not in row for row in found),
            "model": config.model,
            "about": about,
            "questions": questions,
            "looked_at": min(LOOKED_AT, config.streams),
            "streams": config.streams,
            "seconds": config.seconds,
            "dials": list(config.dials),
            "adapt": config.adapt,
            "quick": config.quick,
            "costs": told.get("costs") or environment(),
            "known": known,
        }

    def keep(key: str, numbers: Numbers) -> None:
        known[key] = numbers
        write(config.out, result())

    if config.page_only:
        return result()
    costly = {key: cell for key, cell in zip(cost_keys, wanted) if config.costs or key not in known}
    if costly:
        told["costs"] = environment()
    for key, cell in costly.items():
        keep(key, _or_refused(measure_cost, cell, config))
        progress(_cost_line(cell, known[key]))
    for key, cell in zip(kept_keys, wanted):
        if key not in known and cell.reduction is not None and cell.plan == DENSE and not config.costs:
            keep(key, _or_refused(measure_kept, cell, config))
    for key, cell in zip(keys, wanted):
        if key not in known and not config.costs:
            keep(key, _or_refused(measure_quality, cell, config))
            progress(_line(cell, known[key]))
    return result()


def write(path: Path, result: Numbers) -> None:
    """One line a cell, and one a measurement: a file to keep."""
    known = result["known"]
    rest = {name: value for name, value in result.items() if name not in ("cells", "known")}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in rest.items()]
    lines.append(' "cells": [\n' + ",\n".join(f"  {json.dumps(cell)}" for cell in result["cells"]) + "\n ]")
    rows = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in known.items())
    lines.append(' "known": {\n' + ",\n".join(rows) + "\n }")
    with atomic_write(path) as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def _key(*setting: Any) -> str:
    """A fingerprint: a result belongs to its setting only while this is the same."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]


def _or_refused(measure: Callable[[Cell, BenchReductions], Numbers], cell: Cell, config: BenchReductions) -> Numbers:
    """A cell's numbers, or why it has none: the model's tower, or a live stream, cannot give what the method needs."""
    try:
        return measure(cell, config)
    except InputError as error:
        return {"refused": str(error)}


# -- what it says ------------------------------------------------------------------------------------------------------


def measure_quality(cell: Cell, config: BenchReductions) -> Numbers:
    """A cell's numbers on the test split, at the threshold that is best on validation streams."""
    settings, _, size = described(config.model)
    world = world_of("medium", config.dials, seconds=config.seconds, fps=settings.fps, size=size)
    began = time.monotonic()
    model = load(_adapted(cell, config, world) if cell.steps else config.model, depth=cell.plan)
    trained = time.monotonic()
    with reducing(model, cell.reduction) as within:
        if within is not None:
            within.check_stream()
        threshold, _ = calibrate(model, _streams("validation", config.calibration, world), workers=config.workers)
        model.settings = replace(model.settings, threshold=threshold)
        films = _streams("test", config.streams, world)
        watched = run_streams(model, watch_both, films, workers=config.workers, title=cell.name)
    summary = summarise(watched, threshold)
    return {
        "threshold": threshold,
        **rounded({name: summary[name] for name in METRICS}),
        "f1_interval": rounded(summary["intervals"]["f1"]),
        "per_stream": per_stream([tally(item, threshold) for item in watched]),
        "train_seconds": round(trained - began) if cell.steps else None,
    }


def _streams(split: str, count: int, world: WorldConfig) -> list[WorldStream]:
    return [make_stream(split, number, world) for number in range(count)]


def _adapted(cell: Cell, config: BenchReductions, world: WorldConfig) -> Path:
    """The model after a short training with the method in place, in the form in which it will stream."""
    reduction = cell.reduction and from_dict(cell.reduction).causal().to_dict()
    phase = Phase(cell.steps, 4, replace(world, questions=10))
    recipe = replace(
        reduced.recipe(),
        start=str(find(config.model)),
        plan=cell.plan,
        reduction=reduction,
        phases=(phase,),
        warmup=min(20, cell.steps),
        accumulate=4,  # what acts on a cache takes one conversation at a time
        validate_every=cell.steps,
        validation_streams=8,
    )
    folder = config.home / _key(fingerprint(config.model), *cell.setting, cell.steps, dataclasses.asdict(world))
    if (folder / "model").is_dir():
        return folder / "model"
    progress(f"{cell.name}: {cell.steps} steps of adaptation")
    return train(like_start(recipe), folder, resume=True, workers=0 if config.workers == 1 else 1)


def _line(cell: Cell, numbers: Numbers) -> str:
    name = f"{cell.name}, {cell.steps} steps" if cell.steps else cell.name
    if "refused" in numbers:
        return f"{name}: refused: {numbers['refused']}"
    return f"{name}: F1 {numbers['f1']:.3f}, LM-PPL {numbers['lm_ppl']:.3f}"


def _cost_line(cell: Cell, numbers: Numbers) -> str:
    if "refused" in numbers:
        return f"{cell.name}: refused: {numbers['refused']}"
    return f"{cell.name}: {numbers['time_share']:.2f} of the dense time a frame, KV {numbers['kv_share']:.2f}"
