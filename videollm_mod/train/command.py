"""`videollm-mod train RECIPE`: run a recipe, then calibrate its threshold; --resume goes on where it stopped."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from videollm_mod.types import InputError


@dataclass
class TrainConfig:
    """Flags of `train`."""

    recipe: Annotated[str, tyro.conf.Positional]  # a recipe of recipes/, such as tiny
    out: str = "out/train"  # folder of the run: log, checkpoint, result
    resume: bool = False  # go on with the run in that folder
    threads: int = 1  # of the training itself; frames are drawn by one more process
    workers: int = 1  # processes that draw frames
    seed: int = 0
    plan: str | None = None  # other layers than the recipe's: full, interleaved, early-exit, ...
    keep: float | None = None  # other keep ratio
    scorer: str | None = None  # learned, random, uniform
    gate: str | None = None  # output, update, tanh, straight


def train_command(config: TrainConfig) -> dict[str, Any]:
    """Train, and return what came out."""
    import torch
    from rich.console import Console

    from videollm_mod.train.loop import train

    if importlib.util.find_spec(f"recipes.{config.recipe}") is None:
        known = sorted(
            path.stem for path in Path(str(importlib.import_module("recipes").__path__[0])).glob("[a-z]*.py")
        )
        raise InputError(f"there is no recipe '{config.recipe}'; take one of {', '.join(known)}.")
    recipe = importlib.import_module(f"recipes.{config.recipe}").recipe()
    changes = {"layers": config.plan, "keep": config.keep, "scorer": config.scorer, "gate": config.gate}
    plan = dataclasses.replace(recipe.plan, **{key: value for key, value in changes.items() if value is not None})
    recipe = dataclasses.replace(recipe, plan=plan, seed=config.seed)
    torch.set_num_threads(config.threads)
    console = Console(stderr=True)
    last: dict[str, Any] = {}

    def show(line: dict[str, Any]) -> None:
        if line["stage"] == "validation":
            last.update(line)
        total = recipe.tower_stage.steps if line["stage"] == "tower" else recipe.steps
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in line.items() if key not in ("stage", "step"))
        console.print(f"{line['stage']:>10} {line['step']}/{total}  {numbers}", highlight=False, soft_wrap=True)

    try:
        model = train(recipe, Path(config.out), resume=config.resume, workers=config.workers, show=show)
    except KeyboardInterrupt:
        again = f"videollm-mod train {config.recipe} --out {config.out} --resume"
        console.print(f"stopped; `{again}` goes on from the last checkpoint", highlight=False, soft_wrap=True)
        return {"interrupted": True, "out": config.out, "last_validation": last}
    console.print("calibrating the threshold on validation streams", highlight=False)
    threshold = _calibrate(model, recipe.calibration_streams, config.threads + config.workers)
    return {
        "model": str(model),
        "bytes": os.path.getsize(model / "model.safetensors"),
        "steps": recipe.steps,
        "threshold": threshold,
        "last_validation": last,
    }


def _calibrate(folder: Path, streams: int, workers: int) -> float:
    """Store with the finished model the threshold at which it does best on validation streams; returns it."""
    import torch

    from videollm_mod.evaluate.calibrate import calibrate
    from videollm_mod.model import load
    from videollm_mod.world import WorldConfig, make_stream

    model = load(folder)
    world = WorldConfig(fps=model.settings.fps, size=model.encoder.tower.image_size)
    threshold, table = calibrate(
        model, [make_stream("validation", number, world) for number in range(streams)], workers=workers
    )
    model.settings = dataclasses.replace(model.settings, threshold=threshold)
    model.save_pretrained(folder, dtype=torch.float16)
    (folder / "calibration.json").write_text(json.dumps([dataclasses.asdict(row) for row in table], indent=2) + "\n")
    return threshold
