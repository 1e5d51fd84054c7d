"""Two processes train what one would train alone: shared out as DDP and FSDP2 do, in parts, stopped, killed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from device_cases import shared_recipe
from safetensors.torch import load_file
from torch import Tensor

import videollm_mod as vm
from videollm_mod.cli import main
from videollm_mod.dialogue import Assistant, System, User
from videollm_mod.train.build import build
from videollm_mod.train.data import StreamSample, TowerSamples
from videollm_mod.train.devices import World, checkpoint_layers
from videollm_mod.train.loop import StreamStage, train
from videollm_mod.train.recipe import Recipe
from videollm_mod.train.run import Run
from videollm_mod.train.stage import Order, Stage
from videollm_mod.train.tower import TowerStage
from videollm_mod.types import InputError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
BOTH = pytest.mark.parametrize("name", ["ddp", "fsdp2"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which device_cases.py has left all runs."""
    home = tmp_path_factory.mktemp("devices")
    words = [sys.executable, str(ROOT / "tests" / "device_cases.py"), str(home)]
    places = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places}, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (home / "stderr").write_text(done.stderr)
    return home


def codes(runs: Path, name: str) -> list[int]:
    found: list[int] = json.loads((runs / "codes.json").read_text())[name]
    assert name.endswith(("killed", "stopped")) or not any(found), (runs / "stderr").read_text()[-3000:]
    return found


def lines(folder: Path) -> list[dict[str, float]]:
    """The log without clock times, and without the recalls of changes: those of parts are not quite those of all."""
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if key != "seconds" and not key.endswith("_recall")} for row in log]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "checkpoint" / "stream-5" / "model.safetensors")


@BOTH
def test_two_processes_have_the_loss_curve_and_the_weights_of_one(runs: Path, name: str) -> None:
    assert codes(runs, "alone") == [0] and codes(runs, name) == [0, 0]
    alone, shared = lines(runs / "alone"), lines(runs / name)
    assert len(alone) == len(shared) == 3 + 5 + 2
    for one, two in zip(alone, shared):
        assert one.pop("stage") == two.pop("stage")
        assert two == pytest.approx(one, rel=1e-4, abs=1.01e-4)  # the log is rounded to four decimals
    ours, theirs = weights(runs / "alone"), weights(runs / name)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, rtol=0, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@BOTH
def test_a_run_killed_in_the_middle_goes_on_to_the_very_same_end(runs: Path, name: str) -> None:
    assert codes(runs, f"{name} killed")[0] == -9 and codes(runs, f"{name} killed")[1] not in (0, 130)
    assert codes(runs, f"{name} resumed") == [0, 0]
    assert lines(runs / name) == lines(runs / f"{name} resumed")
    whole, resumed = weights(runs / name), weights(runs / f"{name} resumed")
    assert whole.keys() == resumed.keys() and all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())


@BOTH
def test_what_is_written_is_whole_and_the_same_as_by_one_process(runs: Path, name: str) -> None:
    for part in ("model", "best"):
        ours, theirs = (vm.load(runs / which / part).state_dict() for which in ("alone", name))
        for key, tensor in ours.items():
            assert torch.allclose(tensor, theirs[key], atol=1e-3), key  # half precision
    states = [torch.load(runs / which / "checkpoint" / "stream-5" / "optimizer.pt") for which in ("alone", name)]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for number, values in states[0]["state"].items():
        for key, tensor in values.items():
            assert states[1]["state"][number][key].shape == tensor.shape
    names = {path.name for path in (runs / name).iterdir()}
    assert names == {"best", "checkpoint", "curves.png", "log.jsonl", "model", "recipe.json"}


def test_one_process_that_is_told_to_stop_stops_all_and_no_step_is_lost(runs: Path) -> None:
    assert codes(runs, "stopped") == [130, 130]
    assert [path.name for path in (runs / "stopped" / "checkpoint").iterdir()] == ["stream-3"]
    assert lines(runs / "stopped")[-1]["stage"] == "validation"
    assert all(row["balance_loss"] > 0 for row in lines(runs / "stopped")[:-1]), "scores are told"


def test_a_run_of_two_processes_goes_on_in_one(runs: Path, tmp_path: Path) -> None:
    """Weights and the optimiser's state are whole on disk, and how a run is computed is not part of what it is."""
    folder = tmp_path / "run"
    subprocess.run(["cp", "-r", str(runs / "stopped"), str(folder)], check=True)
    recipe = shared_recipe(tower_stage=None, checkpoint_every=1e9, balance=0.1)
    train(recipe, folder, workers=0, resume=True)
    assert lines(folder)[-1]["step"] == 5
    with pytest.raises(InputError, match="recipe differs in 'lr'"):
        Run(dataclasses.replace(recipe, lr=0.5), folder, resume=True)


# -- losses, without any process ---------------------------------------------------------------------------------------


def stream_stage(**changes: object) -> StreamStage:
    recipe = shared_recipe(**changes)
    return StreamStage(build(recipe).train(), recipe)


def tower_stage() -> TowerStage:
    recipe = shared_recipe()
    return TowerStage(build(recipe).encoder, recipe)


def gradients(stage: Stage) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in stage.named_parameters() if p.grad is not None}
    stage.zero_grad()
    return found


@pytest.mark.parametrize("make", [stream_stage, tower_stage])
def test_the_parts_of_a_step_add_up_to_the_step(make: type) -> None:
    """Uneven parts, and one without any sample: each loss is divided by what the whole step has of its labels."""
    stage: Stage = make()
    items = [stage.samples()[number] for number in range(3)]
    loss, numbers = stage(items, 0)
    loss.backward()
    whole = gradients(stage)
    parts = [items[:1], [], items[1:]]
    counts = [stage.counts(part) for part in parts]
    assert counts[0] != counts[2] and not any(counts[1].values())
    total = {name: sum(count[name] for count in counts) for name in counts[0]}
    assert total == stage.counts(items)
    sums: dict[str, float] = {}
    for part in parts:
        loss, own = stage(part, 0, total)
        loss.backward()
        for name, value in own.items():
            sums[name] = sums.get(name, 0.0) + value
    told = {"loss", "lm_loss", "stream_loss", "change_loss", "cell_loss", "colour", "offset", "count"}
    for name in told & numbers.keys():
        assert sums[name] == pytest.approx(numbers[name], rel=1e-5), name
    summed = gradients(stage)
    assert whole.keys() == summed.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-4, atol=1e-6)


def speechless(stage: StreamStage) -> StreamSample:
    """A conversation without a frame."""
    side, tokens = stage.model.encoder.tower.image_size, stage.model.encoder.tokens_per_frame
    return StreamSample(
        torch.zeros(0, side, side, 3, dtype=torch.uint8),
        [System("Say what happens."), User("What?"), Assistant("Nothing.")],
        torch.zeros(0, tokens),
        torch.zeros(0, tokens, 3, dtype=torch.int64),
    )


@pytest.mark.parametrize("frames", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_whatever_a_part_lacks_every_weight_gets_a_gradient(frames: bool, checkpointing: bool) -> None:
    """Processes wait for each other's gradients; a batch without any frame, or without anything, holds up nobody."""
    stage = stream_stage(balance=0.1)
    if checkpointing:
        checkpoint_layers(stage.model.lm)
    elsewhere = stage.counts([stage.samples()[0]])
    part = [speechless(stage)] if frames else []
    own = stage.counts(part)
    loss, _ = stage(part, 0, {name: count + own[name] for name, count in elsewhere.items()})
    loss.backward()
    assert loss.isfinite() and (loss > 0) == frames
    found = gradients(stage)
    assert found.keys() == {name for name, _ in stage.named_parameters()}
    assert all(gradient.isfinite().all() for gradient in found.values())
    assert any(gradient.any() for gradient in found.values()) == frames


def test_a_batch_without_any_frame_is_learned_from(tmp_path: Path) -> None:
    stage = stream_stage()
    loss, numbers = stage([speechless(stage)], 0)
    assert loss.isfinite() and numbers["stream_loss"] == 0 and math.isfinite(numbers["lm_loss"])


def test_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointing in (False, True):
        stage = stream_stage(balance=0.1)
        if checkpointing:
            checkpoint_layers(stage.model.lm)
        loss, _ = stage([stage.samples()[0]], 0)
        loss.backward()
        found.append(gradients(stage))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


# -- who takes what ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("processes", "parts"), [(1, 1), (1, 4), (2, 1), (3, 2), (8, 8)])
def test_every_sample_of_a_step_is_taken_once_by_one_process(processes: int, parts: int) -> None:
    order = [list(range(64)), [64, 65, 66], [67]]
    worlds = [World(rank, processes) for rank in range(processes)]
    taken = [list(Order(order, parts, world)) for world in worlds]
    assert all(len(own) == len(Order(order, parts)) == 3 * parts for own in taken)
    for step, samples in enumerate(order):
        hands = [hand for own in taken for hand in own[step * parts : (step + 1) * parts]]
        assert sorted(number for hand in hands for number in hand) == samples
        assert max(map(len, hands)) - min(map(len, hands)) <= 1


def test_how_a_run_is_computed_is_told_only_where_it_is_not_usual() -> None:
    usual = shared_recipe().to_dict()
    assert not {"accumulate", "checkpointing", "sharding"} & usual.keys()
    changed = shared_recipe(accumulate=2, sharding="fsdp2").to_dict()
    assert {key: changed[key] for key in changed.keys() - usual.keys()} == {"accumulate": 2, "sharding": "fsdp2"}


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--sharding", "zero"], "sharding 'zero' is unknown; take one of ddp, fsdp2."),
        (["--set", "accumulate=0"], "accumulate is 0; give the number of parts of a step's share, 1 or more."),
        (
            ["--devices", "8"],
            "--devices is for --dry-run; how many processes train, torchrun or accelerate launch says.",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "tiny", "--out", str(tmp_path / "out"), *flags]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_deepspeed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="DeepSpeed is not supported"):
        train(shared_recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# -- the launchers -----------------------------------------------------------------------------------------------------

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "videollm_mod"]
ACCELERATE = [
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "videollm_mod"),
]


def recipe_file(folder: Path, recipe: str) -> Path:
    path = folder / "mine.py"
    here = str(ROOT / "tests")
    path.write_text(
        f"import sys\nsys.path.insert(0, {here!r})\nfrom device_cases import shared_recipe\n"
        "from videollm_mod.model import StreamSettings\nfrom videollm_mod.train.recipe import Phase\n"
        "from videollm_mod.world import WorldConfig\n"
        f"def recipe(): return {recipe}\n"
    )
    return path


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_the_command_runs_unchanged_under_a_launcher(tmp_path: Path, launcher: list[str]) -> None:
    mine = recipe_file(
        tmp_path,
        "shared_recipe(phases=(Phase(2, 2, WorldConfig(seconds=3, size=48)),), tower_stage=None, validation_streams=1, "
        "calibration_streams=1, settings=StreamSettings(max_reply_tokens=1))",
    )
    words = ["train", str(mine), "--workers", "0", "--out", str(tmp_path / "out")]
    words += ["--sharding", "fsdp2"] if launcher is TORCHRUN else []
    run = subprocess.run(
        [sys.executable, "-m", *launcher, *words],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    told = [line for line in run.stdout.splitlines() if line.startswith("{")]
    assert len(told) == 1 and json.loads(told[0])["steps"] == 2, "one of the processes speaks"
    assert vm.load(tmp_path / "out" / "model").plan == dataclasses.replace(shared_recipe().plan)


def test_samples_of_the_tower_are_counted_by_kind() -> None:
    recipe: Recipe = shared_recipe()
    assert recipe.tower_stage is not None
    truth = TowerSamples(recipe.tower_stage, recipe.phases[0], recipe.grid, 0)[0]
    counts = tower_stage().counts([truth, truth])
    assert counts["frames"] == 4 and counts["colour"] == 2 * int((truth.colour >= 0).sum())
