"""`videollm-mod train RECIPE`: run a recipe, then calibrate its threshold; --resume goes on where it stopped.

The same words under torchrun or `accelerate launch` train in several processes, of which the first one speaks.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import runpy
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from videollm_mod.flags import PLANS, check_keep, check_least, parse_values

if TYPE_CHECKING:
    from videollm_mod.depth import DepthPlan
    from videollm_mod.train.paper import PaperRecipe
    from videollm_mod.train.recipe import Recipe


@dataclass(frozen=True)
class TrainConfig:
    """Flags of `train`."""

    recipe: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")]
    """A recipe of the folder recipes/, such as tiny, or a .py file of your own with a function `recipe`."""
    out: str = "out/train"
    """Folder of the run: its log, its checkpoint, the finished model."""
    resume: bool = False
    """Go on with the run in that folder."""
    threads: int = 1
    """CPU threads of the training itself; the processes that draw frames come on top."""
    workers: int = 1
    """Processes that draw frames; 0 draws them in the training process."""
    seed: int = 0
    """Of the fresh weights; the same seed gives the same run."""
    plan: Annotated[str | None, tyro.conf.arg(help=f"Which layers route: {PLANS}; the recipe's own if not given.")] = (
        None
    )
    keep: float | None = None
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]; the recipe's own if not given."""
    scorer: str | None = None
    """Who is kept: learned, random, uniform, or given (an oracle: what the world says matters); the recipe's own if
    nothing is said."""
    gate: str | None = None
    """What the score does to a kept token: salience, straight, relative, output, update, tanh or identity; the recipe's
    own if not given."""
    reduction: str | None = None
    """A token reduction that is in place while the model learns, such as faster_vlm=0.25 (its share of tokens)."""
    start: str | None = None
    """A model to go on from: tiny, camera, or a folder."""
    data: Path | None = None
    """A JSONL file of streams instead of the generated world: of your own videos (`videollm-mod data make`), a line
    each, {"video": "desk.mp4", "segments": [{"kind": "assistant", "time": 3.2, "text": "A cup is placed."}]}; or of a
    data set (`videollm-mod data build`), of features, too (`videollm-mod extract`)."""
    sharding: str | None = None
    """Of several processes, ddp: each has the whole model, or fsdp2: they share it out; the recipe's own if nothing is
    said."""
    dry_run: bool = False
    """Train nothing: tell, without weights, what a run takes: memory per device, FLOPs, tokens, steps."""
    devices: int | None = None
    """For --dry-run: processes to reckon with; the recipe's own number if not given."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Other values of the recipe, such as lr=0.0005 corrupt=0.5; train/recipe.py lists them."""


def train_command(config: TrainConfig) -> dict[str, Any]:
    """Train, and return what came out. Raises InputError for what the user can mend, before anything is written."""
    from videollm_mod.train.devices import rank_of_launch
    from videollm_mod.types import InputError

    if config.dry_run:
        from videollm_mod.train.dry_run import dry_run

        return dry_run(_checked(config), config.devices)
    rank, _ = rank_of_launch()
    if rank == 0:
        return _train(config)
    sys.stdout = open(os.devnull, "w")  # the result is told once, by the first process
    try:
        return _train(config)
    except InputError as error:  # so is what is wrong
        raise SystemExit(2) from error


def _train(config: TrainConfig) -> dict[str, Any]:
    recipe = _checked(config)
    import torch
    from rich.console import Console

    from videollm_mod.arithmetic import NO_BF16
    from videollm_mod.train.devices import in_bf16, leave, rank_of_launch
    from videollm_mod.train.loop import train
    from videollm_mod.train.recipe import Recipe

    assert isinstance(recipe, Recipe)
    torch.set_num_threads(config.threads)
    rank, processes = rank_of_launch()
    console = Console(stderr=True, quiet=rank > 0)
    if config.resume and not any(Path(config.out).glob("**/checkpoint/*-*")):
        console.print(f"{config.out} has no checkpoint yet; the run begins anew", highlight=False, markup=False)
    if recipe.bf16 and not in_bf16(recipe):
        console.print(f"{NO_BF16}; this run computes in float32", highlight=False, markup=False)
    last: dict[str, Any] = {}

    def show(line: dict[str, Any]) -> None:
        earlier, _, stage = line["stage"].rpartition(" ")
        shown = recipe
        for _ in earlier.split():  # "first first": the run before the one before
            shown = shown.first or shown
        if line["stage"] == "validation":
            last.update(line)
        total = shown.tower_stage.steps if stage == "tower" and shown.tower_stage else shown.steps
        numbers = "  ".join(f"{key} {value:.4g}" for key, value in line.items() if key not in ("stage", "step"))
        console.print(f"{line['stage']:>12} {line['step']}/{total}  {numbers}", highlight=False, soft_wrap=True)

    try:
        model = train(recipe, Path(config.out), resume=config.resume, workers=config.workers, show=show)
    except KeyboardInterrupt:
        leave(130)
        again = f"stopped; `{_again(config)}` goes on from the last checkpoint"
        if processes > 1:
            again += ", under the same launcher"
        console.print(again, highlight=False, markup=False, soft_wrap=True)
        return {"interrupted": True, "out": config.out, "last_validation": last}
    leave()
    console.print("calibrating the threshold on validation streams", highlight=False)
    threshold = _calibrate(model, recipe, config.threads + config.workers)
    return {
        "model": str(model),
        "bytes": sum(path.stat().st_size for path in model.glob("*.safetensors")),  # one; of LoRA, the adapter alone
        "best": str(Path(config.out) / "best"),
        "curves": str(Path(config.out) / "curves.png"),
        "steps": recipe.steps,
        "threshold": threshold,
        "last_validation": last,
    }


def _checked(config: TrainConfig) -> Recipe | PaperRecipe:
    """The recipe with the changes that flags ask for; InputError for a flag that cannot be right."""
    from videollm_mod.depth.plan import parse_layers
    from videollm_mod.train.paper import PaperRecipe
    from videollm_mod.types import InputError

    if config.devices is not None and not config.dry_run:
        raise InputError("--devices is for --dry-run; how many processes train, torchrun or accelerate launch says.")
    if importlib.util.find_spec("accelerate") is None and not config.dry_run:
        from videollm_mod.doctor import install_command

        raise InputError(f"training needs accelerate, which is not installed; run {install_command(extra='train')}.")
    check_least(1, threads=config.threads, devices=config.devices)
    check_least(0, workers=config.workers, seed=config.seed)
    if config.seed >= 2**63:
        raise InputError(f"--seed {config.seed} is too large; give less than {2**63}.")
    check_keep(config.keep)
    layers = parse_layers(config.plan)
    from videollm_mod.train.build import like_start

    make = _find_recipe(config.recipe)
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give the name of a folder.")
    if config.resume and not any((folder / "recipe.json").is_file() for folder in (out, out / "first")):
        raise InputError(f"--resume finds no run in {out}; give the --out of a run, or begin one without --resume.")
    recipe = make()
    changes: dict[str, Any] = {"layers": layers, "keep": config.keep, "scorer": config.scorer, "gate": config.gate}
    plan = dataclasses.replace(recipe.plan, **{key: value for key, value in changes.items() if value is not None})
    plain = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe) if field.name != "seed"}
    values: dict[str, Any] = parse_values("--set", config.set, plain)
    if config.reduction is not None:
        if isinstance(recipe, PaperRecipe):
            raise InputError(f"--reduction does not go with {recipe.name}: its tokens are the paper's.")
        from videollm_mod.reductions import parse_reduction

        values["reduction"] = parse_reduction(config.reduction)
    if config.sharding is not None:
        values["sharding"] = config.sharding
    recipe = dataclasses.replace(recipe, plan=plan, seed=config.seed, **values)
    if isinstance(recipe, PaperRecipe):
        return _of_data(recipe, config)
    if config.start is not None:
        # a tower stage that was planned for a fresh tower is not due
        stage = None if recipe.start is None else recipe.tower_stage
        recipe = dataclasses.replace(recipe, start=config.start, first=None, tower_stage=stage)
    recipe = _seeded(recipe, config.seed, plan, values)
    recipe = like_start(recipe)
    if config.data is not None:
        from videollm_mod.data.own import has_features

        stored = has_features(config.data)  # refuses what cannot be read
        # where there are no frames the tower cannot learn
        rate = 0.0 if stored and "tower_lr" not in values else recipe.tower_lr
        recipe = dataclasses.replace(recipe, data=str(config.data), tower_lr=rate)
        if recipe.first is not None:
            recipe = dataclasses.replace(recipe, first=_taught(recipe.first, str(config.data), rate))
    if recipe.start is None:
        plan.ratios(recipe.lm.layers)  # refuses layers that the recipe's decoder does not have
    elif recipe.data is None and recipe.name == "own":
        raise InputError("this recipe learns from your own videos; give them as --data FILE.jsonl.")
    return recipe


def _seeded(recipe: Recipe, seed: int, plan: DepthPlan, values: dict[str, Any]) -> Recipe:
    """Flags are for all runs of a chain; each sees other streams than the ones before it, by another seed."""
    if recipe.first is None:
        return dataclasses.replace(recipe, seed=seed)
    first = _seeded(dataclasses.replace(recipe.first, plan=plan, **values), seed, plan, values)
    return dataclasses.replace(recipe, first=first, seed=first.seed + 1)


def _taught(recipe: Recipe, data: str, tower_lr: float) -> Recipe:
    """A run and all before it, on a file of streams."""
    first = None if recipe.first is None else _taught(recipe.first, data, tower_lr)
    return dataclasses.replace(recipe, first=first, data=data, tower_lr=tower_lr)


def _of_data(paper: PaperRecipe, config: TrainConfig) -> Recipe | PaperRecipe:
    """A paper's run on a file of streams; as it is, with the file's number of samples, for --dry-run."""
    from videollm_mod.data.own import read_videos, split_videos
    from videollm_mod.train.build import like_start
    from videollm_mod.train.devices import rank_of_launch
    from videollm_mod.train.paper import as_recipe
    from videollm_mod.types import InputError

    if config.dry_run:
        if config.start is not None:
            raise InputError(f"--start does not go with {paper.name} --dry-run, which reckons with its own models.")
        paper.plan.ratios(paper.lm.config.num_hidden_layers)
        if config.data is not None:
            paper = dataclasses.replace(paper, samples=len(split_videos(read_videos(config.data), "train")))
        return paper
    if config.data is None:
        raise InputError(paper.missing())
    size = int(paper.tower.architecture["image_size"])
    return like_start(as_recipe(paper, config.data, start=config.start, size=size, processes=rank_of_launch()[1]))


def _find_recipe(name: str) -> Callable[[], Recipe | PaperRecipe]:
    """The function behind a recipe's name or file."""
    from videollm_mod.train.paper import PaperRecipe
    from videollm_mod.train.recipe import Recipe
    from videollm_mod.types import InputError

    if not name.endswith(".py"):
        known = _known_recipes()
        if name not in known:
            names = ", ".join(sorted(known))
            raise InputError(f"there is no recipe '{name}'; take one of {names}, or a .py file of your own.")
        return known[name]
    if not Path(name).is_file():
        raise InputError(f"there is no recipe file {name}; check the path.")
    scope = runpy.run_path(name)
    if not callable(scope.get("recipe")) or not isinstance(made := scope["recipe"](), Recipe | PaperRecipe):
        raise InputError(f"{name} has no function `recipe` that returns a Recipe; see recipes/tiny.py.")
    return lambda: made


def _known_recipes() -> dict[str, Callable[[], Recipe | PaperRecipe]]:
    """By name: a module of recipes/ with a function `recipe`, or several of those that it lists as RECIPES."""
    found = {}
    for stem in sorted(path.stem for path in Path(importlib.import_module("recipes").__path__[0]).glob("[a-z]*.py")):
        module = importlib.import_module(f"recipes.{stem}")
        if hasattr(module, "RECIPES"):
            found.update({f"{stem}.{make.__name__}": make for make in module.RECIPES})
        else:
            found[stem] = module.recipe
    return found


def _again(config: TrainConfig) -> str:
    """The command that goes on with a stopped run: the flags that make its recipe must come again."""
    words = ["videollm-mod", "train", config.recipe]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in ("recipe", "resume", "dry_run") and (value != field.default or field.name == "out"):
            words += [f"--{field.name}", *(value if isinstance(value, tuple) else [str(value)])]
    return shlex.join([*words, "--resume"])


def _calibrate(folder: Path, recipe: Recipe, workers: int) -> float:
    """Store with the finished model the threshold at which it does best on validation streams; returns it."""
    import torch

    from videollm_mod.evaluate.calibrate import calibrate
    from videollm_mod.loading import has_adapter
    from videollm_mod.model import load
    from videollm_mod.reductions import reducing
    from videollm_mod.train.build import frozen_dtype
    from videollm_mod.train.data import any_stream
    from videollm_mod.train.loop import stored_as
    from videollm_mod.train.recipe import Phase
    from videollm_mod.world import WorldConfig
    from videollm_mod.world.camera import CameraConfig

    # of LoRA the decoder as it was trained, and where it was: it may be large
    adapted = has_adapter(folder)
    model = load(folder, dtype=frozen_dtype(recipe) if adapted else torch.float32, learned=torch.float32)
    if adapted and torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    fps, size = model.settings.fps, model.encoder.tower.image_size
    camera = CameraConfig(fps=fps, size=size) if recipe.has_cameras else None
    phase = Phase(0, 0, WorldConfig(fps=fps, size=size), camera, recipe.phases[-1].camera_share)
    streams = [any_stream("validation", number, phase, recipe) for number in range(recipe.calibration_streams)]
    streams = [stream for stream in streams if recipe.data is None or stream.events]
    if not streams:  # answers alone: nobody decides when to speak
        return model.settings.threshold
    with reducing(model, recipe.reduction):  # which stays in this process
        workers = 1 if recipe.reduction else workers
        threshold, table = calibrate(model, streams, workers=workers, names=recipe.calibrate_names)
    model.settings = dataclasses.replace(model.settings, threshold=threshold)
    model.save_pretrained(folder, dtype=stored_as(model))
    (folder / "calibration.json").write_text(json.dumps([dataclasses.asdict(row) for row in table], indent=2) + "\n")
    return threshold
