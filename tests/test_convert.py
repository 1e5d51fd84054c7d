"""A dense streaming model becomes a routed one: it begins as it was, and ends keeping a fifth."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from stream_cases import tiny_model
from test_train import small_recipe

import videollm_mod as vm
from recipes.convert import recipe
from videollm_mod import cli
from videollm_mod.adapters import LoraSettings, apply_lora, has_lora
from videollm_mod.depth import DepthPlan
from videollm_mod.train.build import build, like_start
from videollm_mod.train.loop import StreamStage, forward, train
from videollm_mod.train.recipe import Recipe
from videollm_mod.types import InputError


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of 48 px, 1 + 3x3 tokens, three layers, as the training of another recipe leaves it."""
    small = small_recipe()
    base = dataclasses.replace(small, plan=DepthPlan("full"), lm=dataclasses.replace(small.lm, layers=3))
    folder = tmp_path_factory.mktemp("dense") / "model"
    build(base).save_pretrained(folder)
    return folder


def toy(dense: Path, **changes: object) -> Recipe:
    """The recipe itself at toy size: 4 steps, the keep ratio falling over 2 of them."""
    short = dataclasses.replace(recipe(), start=str(dense), keep_warmup=2, validate_every=4, validation_streams=1)
    (phase,) = short.phases
    world = dataclasses.replace(phase.world, seconds=4)
    steps = dataclasses.replace(phase, steps=4, streams=1, world=world)
    return like_start(dataclasses.replace(short, phases=(steps,), bf16=False, **changes))  # type: ignore[arg-type]


def test_grid_settings_rate_and_size_are_the_models_own(dense: Path) -> None:
    converted, known = toy(dense), vm.load(dense)
    assert (converted.grid, converted.settings) == ((3, 3), known.settings)
    assert (converted.phases[0].world.size, converted.phases[0].world.fps) == (48, known.settings.fps)
    assert (converted.plan.layers, converted.plan.keep, converted.plan.gate) == ("interleaved", 0.2, "salience")


def test_at_the_first_step_the_model_is_the_dense_one_and_the_ratio_falls_to_the_plans(dense: Path) -> None:
    converted = toy(dense)
    stage = StreamStage(build(converted), converted)
    item = stage.samples()[0]
    with torch.no_grad():
        plain, _ = forward(vm.load(dense), [item])
        _, numbers = stage([item], 0)
        assert numbers["loss"] == pytest.approx(float(plain.loss), abs=1e-6)  # type: ignore[arg-type]
        ratios = []
        for step in range(4):
            stage([item], step)
            ratios.append(stage.model.lm.model.layers[1].depth_ratio)
    assert ratios == [1.0, pytest.approx(0.6), pytest.approx(0.2), pytest.approx(0.2)]


def test_what_comes_out_is_routed_and_its_experts_have_learned(dense: Path, tmp_path: Path) -> None:
    converted = toy(dense, lr=1e-2, warmup=1)
    before = build(converted).state_dict()
    model = vm.load(train(converted, tmp_path, workers=0))
    assert model.plan == converted.plan and model.plan.routed(3) == (1,)
    name = "lm.model.layers.1.depth_expert.weight"
    assert not torch.allclose(model.state_dict()[name], before[name], atol=1e-4)


def test_experts_of_the_model_to_go_on_from_are_taken_or_left_behind(tmp_path: Path) -> None:
    tiny_model(DepthPlan("interleaved", 0.4)).float().save_pretrained(tmp_path / "routed")
    recipe = toy(tmp_path / "routed", plan=DepthPlan("interleaved", 0.2))
    stored, taken = vm.load(tmp_path / "routed").state_dict(), build(recipe).state_dict()
    left = build(dataclasses.replace(recipe, fresh_experts=True)).state_dict()
    assert set(left) == set(taken) == set(stored)
    for name, tensor in stored.items():
        assert torch.equal(taken[name], tensor)
        assert torch.equal(left[name], tensor) != ("depth_expert" in name), name


@pytest.mark.slow
def test_a_model_with_lora_goes_on_with_it_and_its_base_stays_as_it_is(dense: Path, tmp_path: Path) -> None:
    adapted = apply_lora(vm.load(dense), LoraSettings(rank=2))
    adapted.save_pretrained(tmp_path / "adapter")
    converted = toy(tmp_path / "adapter")
    model = vm.load(train(converted, tmp_path / "run", workers=0))
    assert has_lora(model) and model.plan == converted.plan
    files = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert files == {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.json", "tokenizer"}
    base = vm.load(dense).state_dict()
    assert torch.equal(
        model.state_dict()["lm.model.layers.0.mlp.up_proj.base_layer.weight"],
        base["lm.model.layers.0.mlp.up_proj.weight"],
    )


def test_a_recipe_may_ask_for_lora_on_the_model_it_goes_on_from(dense: Path) -> None:
    model = build(toy(dense, lora=LoraSettings(rank=2)))
    assert has_lora(model) and model.base == {"model": str(dense)}
    assert not model.lm.get_input_embeddings().weight.requires_grad


def test_lora_on_a_model_that_must_learn_new_words_is_refused(tmp_path: Path) -> None:
    tiny_model(DepthPlan("full")).float().save_pretrained(tmp_path / "few")  # knows ten words
    few = dataclasses.replace(small_recipe(), start=str(tmp_path / "few"), grid=(2, 2), lora=LoraSettings(rank=2))
    few = dataclasses.replace(few, settings=dataclasses.replace(few.settings, system="Quite other words."))
    with pytest.raises(InputError, match="LoRA cannot teach a word-level model new words"):
        build(few)


def test_without_a_model_to_start_from_the_command_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["train", "convert", "--out", str(tmp_path / "run")]) == cli.BAD_INPUT
    assert "the recipe convert goes on from a trained model; give it as --start FOLDER." in capsys.readouterr().err


def test_runs_from_before_these_entries_can_still_be_gone_on_with() -> None:
    values = json.loads(json.dumps(small_recipe().to_dict()))
    assert not {"as_start", "lora"} & values.keys() and "template" not in values["settings"]
    assert "lora" in dataclasses.replace(small_recipe(), lora=LoraSettings()).to_dict()
