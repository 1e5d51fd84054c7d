"""Training: a killed run goes on as if nothing had happened, experts learn, and the tower is taught the truth."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import videollm_mod as vm
from recipes.tiny import recipe as tiny_recipe
from videollm_mod.adapters import LoraSettings
from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import IGNORE
from videollm_mod.train.build import build, like_start
from videollm_mod.train.changes import CHANGES, ChangeHead, token_changes
from videollm_mod.train.data import StreamSamples, cell_truth
from videollm_mod.train.loop import StreamStage, forward, train, validate
from videollm_mod.train.recipe import LMSizes, Phase, Recipe, TowerStage
from videollm_mod.train.run import Run
from videollm_mod.types import InputError
from videollm_mod.vision import ConvTowerConfig
from videollm_mod.world import COLOURS, SHAPES, VisibleThing, WorldConfig, make_stream


def small_recipe(**changes: object) -> Recipe:
    """Seconds instead of an hour: 48 px, 1 + 3x3 tokens, two layers of 32."""
    world = WorldConfig(seconds=4, size=48, events_per_minute=18, questions=6)
    small = Recipe(
        name="small",
        phases=(Phase(4, 2, world), Phase(3, 1, dataclasses.replace(world, seconds=8))),
        plan=DepthPlan("interleaved", 0.3, gate="tanh", keep_last=True),
        tower=ConvTowerConfig(image_size=48, channels=(8, 8, 16), heads=2),
        grid=(3, 3),
        lm=LMSizes(width=32, layers=2, heads=2, kv_heads=1, head_dim=16, mlp=32),
        tower_stage=TowerStage(steps=12, streams=1, frames=4),
        validate_every=3,
        validation_streams=2,
        checkpoint_every=0.0,
    )
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


def stream_lines(folder: Path) -> list[dict[str, float]]:
    """The log without clock times."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


RUN = textwrap.dedent(
    """
    import sys, torch
    sys.path[:0] = sys.argv[2:]
    from pathlib import Path
    from test_train import small_recipe
    from videollm_mod.train.loop import train
    torch.set_num_threads(1)
    train(small_recipe(), Path(sys.argv[1]), workers=0)
    """
)


def newest_step(folder: Path, stage: str) -> int:
    """Steps done in the newest checkpoint of a stage; -1 without any."""
    names = [path.name for path in (folder / "checkpoint").glob(f"{stage}-*")]
    return max((int(name.split("-")[1]) for name in names), default=-1)


def stop_a_run(folder: Path, at: tuple[str, int], by: signal.Signals) -> int:
    """Start the small recipe in a process of its own, and send it a signal once its checkpoint is that far.

    Returns the step of its newest checkpoint of that stage.
    """
    here = Path(__file__).parent
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), str(here), str(here.parent)], stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while run.poll() is None and time.monotonic() < deadline and newest_step(folder, at[0]) < at[1]:
        time.sleep(0.002)
    run.send_signal(by)
    run.communicate()
    return newest_step(folder, at[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an unbroken run of the small recipe."""
    folder = tmp_path_factory.mktemp("whole")
    train(small_recipe(), folder, workers=0)
    return folder


@pytest.mark.parametrize("stage", ["stream", pytest.param("tower", marks=pytest.mark.slow)])
@pytest.mark.parametrize("by", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_stopped_in_the_middle_resumes_to_the_same_weights_validation_and_log(
    tmp_path: Path, whole: Path, stage: str, by: signal.Signals
) -> None:
    broken = tmp_path / "broken"
    assert 2 <= stop_a_run(broken, (stage, 2), by) < {"tower": 12, "stream": 7}[stage]
    train(small_recipe(), broken, workers=0, resume=True)
    assert newest_step(whole, "stream") == newest_step(broken, "stream") == 7
    ours, theirs = (load_file(folder / "checkpoint" / "stream-7" / "model.safetensors") for folder in (whole, broken))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert stream_lines(whole) == stream_lines(broken), "no line is lost, and none is there twice"


def test_ctrl_c_loses_no_step(tmp_path: Path) -> None:
    seen: list[tuple[str, int]] = []

    def interrupt(line: dict[str, Any]) -> None:
        seen.append((line["stage"], line["step"]))
        if line["stage"] == "validation":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(small_recipe(checkpoint_every=1e9), tmp_path, workers=1, show=interrupt)
    assert seen[-1] == ("validation", 3) and newest_step(tmp_path, "stream") == 3


@pytest.mark.slow
def test_with_lora_a_checkpoint_holds_what_is_learned_alone_and_the_run_goes_on_from_it(
    tmp_path: Path, whole: Path
) -> None:
    recipe = small_recipe(
        start=str(whole / "model"), tower_stage=None, lora=LoraSettings(rank=2), tower_lr=0.0, checkpoint_every=1e9
    )
    train(recipe, tmp_path / "unbroken", workers=0)

    def interrupt(line: dict[str, Any]) -> None:
        if line["stage"] == "validation":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "broken", workers=0, show=interrupt)
    train(recipe, tmp_path / "broken", workers=0, resume=True)
    runs = [tmp_path / "unbroken", tmp_path / "broken"]
    ours, theirs = (load_file(run / "checkpoint" / "stream-7" / "model.safetensors") for run in runs)
    assert all(any(part in name for part in ("lora_", "connector", "depth_expert", "head.")) for name in ours)
    assert any("lora_B" in name and tensor.any() for name, tensor in ours.items())
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert stream_lines(runs[0]) == stream_lines(runs[1])


@pytest.mark.slow
def test_the_best_model_is_kept_beside_the_last_and_the_curves_are_drawn(tmp_path: Path) -> None:
    last = train(small_recipe(), tmp_path, workers=0)
    losses = {row["step"]: row["loss"] for row in stream_lines(tmp_path) if row["stage"] == "validation"}
    assert sorted(losses) == [3, 6, 7]
    stage = StreamStage(vm.load(tmp_path / "best"), small_recipe())
    assert validate(stage.model, stage.recipe)["loss"] == pytest.approx(min(losses.values()), abs=2e-3)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (1400, 800)
    assert last.name == "model" and not list(tmp_path.glob("*.writing"))


@pytest.mark.slow
def test_a_resumed_run_forgets_no_best_model(tmp_path: Path) -> None:
    """The first validation is made to look the best there can be; no later one may take its place."""
    train(small_recipe(), tmp_path, workers=0)
    log = tmp_path / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    next(line for line in lines if line["stage"] == "validation")["loss"] = 0.0
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Run(small_recipe(), tmp_path, resume=True)
    assert run.best_loss == 0.0
    run.log("validation", 8, loss=1.0)
    assert run.best_loss == 0.0


@pytest.mark.slow
def test_drawing_in_another_process_changes_no_sample(tmp_path: Path) -> None:
    alone, helped = tmp_path / "alone", tmp_path / "helped"
    train(small_recipe(), alone, workers=0)
    train(small_recipe(), helped, workers=1)
    assert stream_lines(alone) == stream_lines(helped)


def test_the_finished_model_loads_and_its_experts_have_moved(tmp_path: Path) -> None:
    recipe = small_recipe(warmup=1)
    fresh = build(recipe).state_dict()
    trained = vm.load(train(recipe, tmp_path, workers=0)).state_dict()
    assert set(fresh) == set(trained)
    moved = [
        name for name in fresh if "depth_expert.weight" in name and (fresh[name] - trained[name]).abs().max() > 1e-3
    ]
    assert moved == ["lm.model.layers.1.depth_expert.weight"]


def test_a_folder_that_holds_a_run_is_neither_overwritten_nor_mixed_with_another_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(small_recipe().to_dict()))
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        train(small_recipe(), tmp_path, workers=0)
    with pytest.raises(InputError, match="recipe differs in 'lr'"):
        train(small_recipe(lr=0.5), tmp_path, workers=0, resume=True)


@pytest.mark.slow
def test_a_recipe_with_a_first_run_equals_two_runs_one_after_the_other(tmp_path: Path, whole: Path) -> None:
    both, lines = tmp_path / "both", list[dict[str, Any]]()
    recipe = small_recipe(first=small_recipe(), tower_stage=None, seed=1)
    train(recipe, both, workers=0, show=lines.append)
    train(small_recipe(start=str(whole / "model"), tower_stage=None, seed=1), tmp_path / "second", workers=0)
    for ours, theirs in ((both / "first", whole), (both, tmp_path / "second")):
        weights = load_file(ours / "model" / "model.safetensors"), load_file(theirs / "model" / "model.safetensors")
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert lines[0]["stage"] == "first tower" and lines[-1]["stage"] == "validation"


@pytest.mark.slow
@pytest.mark.parametrize("run", ["first", "second"])
def test_a_recipe_with_a_first_run_goes_on_in_the_run_in_which_it_was_stopped(tmp_path: Path, run: str) -> None:
    recipe = small_recipe(first=small_recipe(checkpoint_every=0.0), tower_stage=None, checkpoint_every=0.0)
    seen: list[str] = []

    def stop(line: dict[str, Any]) -> None:
        seen.append(line["stage"])
        if line["stage"] == ("first validation" if run == "first" else "validation"):
            raise KeyboardInterrupt

    train(recipe, tmp_path / "unbroken", workers=0)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "run", workers=0, show=stop)
    with pytest.raises(InputError, match="holds a run already; add --resume"):
        train(recipe, tmp_path / "run", workers=0)
    seen.clear()
    train(recipe, tmp_path / "run", workers=0, resume=True, show=lambda line: seen.append(line["stage"]))
    assert "first tower" not in seen and ("first stream" in seen) == (run == "first")
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "unbroken"))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step \d"):
        train(small_recipe(lr=1e30, clip=1e30, warmup=1, bf16=False), tmp_path, workers=0)
    assert (tmp_path / "bad_batch.safetensors").exists()


def test_no_step_of_a_run_sees_a_stream_twice() -> None:
    recipe = small_recipe()
    samples = StreamSamples(recipe)
    films = [samples[n].frames.sum().item() for n in range(len(samples))]
    assert len(samples) == 4 * 2 + 3
    assert len(set(films)) == len(films)
    with pytest.raises(IndexError):
        samples[len(samples)]


def test_learning_lowers_the_loss_on_a_batch_it_sees_again() -> None:
    stage = StreamStage(build(small_recipe(warmup=1, bf16=False)).train(), small_recipe())
    items, optimiser = [stage.samples()[0], stage.samples()[1]], stage.optimiser()
    for group in optimiser.param_groups:
        group["lr"] = 1e-2
    steps = []
    for _ in range(25):
        optimiser.zero_grad()
        loss, numbers = stage(items, 0)
        loss.backward()
        optimiser.step()
        steps.append(numbers)
    assert steps[-1]["loss"] < 0.3 * steps[0]["loss"]
    assert steps[-1]["change_loss"] < 0.3 * steps[0]["change_loss"]


def test_a_frozen_tower_gets_no_gradient_and_a_trained_one_does() -> None:
    recipe = small_recipe()
    model, items = build(recipe), [StreamSamples(recipe)[0]]
    for trained in (False, True):
        model.zero_grad()
        loss = forward(model, items, train_tower=trained)[0].loss
        assert loss is not None
        loss.backward()
        gradients = [p.grad for p in model.encoder.parameters()]
        assert any(g is not None and g.abs().max() > 0 for g in gradients) == trained


def test_the_tower_is_taught_what_covers_each_cell_and_where_its_centre_is() -> None:
    thing = VisibleThing((0.25, 0.25, 0.75, 0.45), (0.5, 0.35), "red", "star", "large", False, 1.0, "thing")
    hand = VisibleThing((0.75, 0.5, 1.0, 1.0), (0.9, 0.75), "skin", "hand", "", True, 1.0, "hand")
    truth = cell_truth(torch.zeros(1, 8, 8, 3, dtype=torch.uint8), [[thing, hand]], torch.zeros(1, 3), (4, 4))
    covered = torch.zeros(4, 4)
    covered[1, 1] = covered[1, 2] = 1  # x 0.25 to 0.75 is columns 1 and 2, y 0.25 to 0.45 most of row 1
    assert torch.equal(truth.cover[0, ..., 0], covered)
    assert truth.cover[0, ..., 1].nonzero().tolist() == [[2, 3], [3, 3]]
    assert (truth.colour[0] >= 0).float().equal(covered) and truth.colour[0, 1, 1] == 0
    assert truth.centre[0].nonzero().tolist() == [[1, 2]]
    assert truth.offset[0, 1, 2].tolist() == pytest.approx([0.0, 0.4], abs=1e-6)
    assert truth.count.tolist() == [1]


def test_every_event_shows_as_a_change_of_its_token() -> None:
    seen: dict[str, set[str]] = {}
    for number in range(40):
        stream = make_stream("validation", number, WorldConfig(seconds=20, events_per_minute=18))
        labels = token_changes(stream, (7, 7))
        assert labels.shape == (40, 50, 3) and (labels[0] == IGNORE).all()
        for event in stream.events:
            if event.kind in ("enters", "leaves"):  # a thing may move more than a cell in the frame of its event
                continue
            token, frames = 0, [event.frame]
            if event.thing is not None:
                thing = stream.script.things[event.thing]
                # a hand is gone when it is told; what is taken or disappears is looked for where it was last
                frames = {"placed": [event.frame - 1, event.frame], "taken": [event.frame - 1]}.get(event.kind, frames)
                last = float(stream.times[event.frame - (event.kind in ("disappears", "taken"))])
                x, y = thing.leg(last).at(last)
                if not (0 <= x < 1 and 0 <= y < 1):  # carried out of the picture
                    continue
                token = 1 + int(y * 7) * 7 + int(x * 7)
            for at in frames:
                label = int(labels[at, token, 0])
                seen.setdefault(event.kind, set()).add("nothing" if label == IGNORE else CHANGES[label])
    moving = {"left", "right", "up", "down"}
    assert seen == {
        "cut": {"new"},
        "appears": {"new"},
        "disappears": {"gone"},
        "turns": {"turned"},
        "starts": moving,
        "stops": {"rests"},  # told at the first frame in which the thing is where it was before
        "placed": {"held", "rests"},
        "taken": {"held"},
    }


def test_what_is_gone_or_has_turned_is_told_as_it_was_and_nothing_else_is() -> None:
    told: set[str] = set()
    for number in range(20):
        stream = make_stream("validation", number, WorldConfig(seconds=20, events_per_minute=18))
        labels = token_changes(stream, (7, 7))
        changes, colours, shapes = labels.unbind(-1)
        was = (changes == CHANGES.index("gone")) | (changes == CHANGES.index("turned"))
        assert torch.equal(colours != IGNORE, was) and torch.equal(shapes != IGNORE, was)
        for event in stream.events:
            if event.kind not in ("disappears", "turns") or event.thing is None:
                continue
            thing, before = stream.script.things[event.thing], float(stream.times[event.frame - 1])
            seen = before if event.kind == "disappears" else float(stream.times[event.frame])
            x, y = thing.leg(seen).at(seen)
            _, colour, shape = labels[event.frame, 1 + int(y * 7) * 7 + int(x * 7)].tolist()
            look = thing.look(before)
            assert (COLOURS[colour], SHAPES[shape]) == (look.colour, look.shape)
            told.add(event.kind)
    assert told == {"disappears", "turns"}


def test_an_oracle_shows_a_training_step_what_matters() -> None:
    losses = []
    for plan in (DepthPlan("all", 0.3, scorer="given"), DepthPlan("all", 0.3, scorer="uniform")):
        recipe = small_recipe(plan=plan, bf16=False)
        items = [StreamSamples(recipe)[n] for n in range(2)]
        kept: dict[int, torch.Tensor] = {}
        model = build(recipe).eval()
        with torch.no_grad():
            output, batch = forward(model, items, kept_out=kept)
        losses.append(output.loss)
        if plan.scorer == "given":
            vision = batch.frame_index >= 0
            scores = torch.cat([item.matter for item in items])  # (F, 1 + 3x3)
            chosen = kept[0][vision].view_as(scores)
            best = scores.sort(dim=1, descending=True, stable=True).indices[:, :3]
            assert torch.equal(chosen, torch.zeros_like(chosen).scatter(1, best, True))
    assert losses[0] != losses[1]


def test_the_change_head_reads_vision_tokens_only_and_only_those_with_a_label() -> None:
    recipe = small_recipe()
    model, items = build(recipe), [StreamSamples(recipe)[0], StreamSamples(recipe)[1]]
    head = ChangeHead(model)
    with head.listening(model) as heard:
        _, batch = forward(model, items)
    assert len(heard) == 1 and heard[0].shape[:2] == batch.frame_index.shape
    hidden = heard[0].detach().requires_grad_()
    labels = torch.cat([item.changes for item in items])
    torch.nn.init.normal_(head.linear.weight)
    head.loss(hidden, batch.frame_index, labels)[0].backward()
    assert hidden.grad is not None
    touched = hidden.grad.abs().sum(-1) > 0  # (batch, tokens)
    assert torch.equal(touched[batch.frame_index >= 0], (labels != IGNORE).any(-1).flatten())
    assert not touched[batch.frame_index < 0].any()
    nothing, _ = head.loss(hidden, batch.frame_index, torch.full_like(labels, IGNORE))
    assert nothing.item() == 0


def test_every_recipe_builds_a_model_whose_routed_layers_can_learn() -> None:
    recipes = Path(__file__).parents[1] / "recipes"
    for name in sorted(path.stem for path in recipes.glob("[a-z]*.py")):
        module = importlib.import_module(f"recipes.{name}")
        if hasattr(module, "RECIPES"):  # the paper's, which are not built here: see test_train_dry_run.py
            continue
        recipe = module.recipe()
        if recipe.as_start or recipe.first:  # it goes on from a model that has to be given, or trained first
            recipe = like_start(dataclasses.replace(recipe, start="tiny", first=None))
        model = build(recipe)
        assert recipe.name == name and recipe.steps > 0
        # nothing reads a vision token that leaves the last layer, unless it is one that decides
        assert model.plan.keep_last or model.num_layers - 1 not in model.plan.routed(model.num_layers)
        # in use a session remembers up to two windows: beyond what it has seen at a time a model babbles
        if recipe.settings.window is not None:
            seen, run = 0.0, module.recipe()
            while run is not None:  # it, or a run before it
                seen, run = max(seen, *(phase.world.seconds for phase in run.phases)), run.first
            assert 2 * recipe.settings.window <= seen


def test_the_bundled_model_is_the_recipes() -> None:
    model, recipe = vm.load("tiny"), tiny_recipe()
    assert model.plan == recipe.plan
    assert model.settings == dataclasses.replace(recipe.settings, threshold=model.settings.threshold)
    fresh = build(recipe)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in fresh.state_dict().items()
    }
    for setting in ("rope_parameters", "num_attention_heads", "vocab_size"):
        assert getattr(model.lm.config, setting) == getattr(fresh.lm.config, setting)
    assert model.encoder.tokens_per_frame == 50
