"""What learns is float32 while the frozen base is bf16: a step of training is smaller than what bf16 can tell apart."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from data_cases import write_coin, write_coin_videos
from online_cases import write_checkpoint
from safetensors.torch import load_file
from stream_cases import tiny_model

import videollm_mod as vm
from recipes.convert import recipe as convert
from recipes.paper import coin
from videollm_mod.adapters import LoraSettings, apply_lora, is_learned
from videollm_mod.cli import main
from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamingVideoLM
from videollm_mod.train.build import build, like_start
from videollm_mod.train.devices import in_bf16
from videollm_mod.train.loop import train
from videollm_mod.train.paper import as_recipe
from videollm_mod.train.recipe import Phase, Recipe

ROOT = Path(__file__).parents[1]
SMALL = LoraSettings(rank=2, alpha=4)
EXACT = LoraSettings(rank=2, alpha=4, dropout=0.0)  # two processes drop out otherwise than one
ROUTED = DepthPlan("interleaved", 0.4)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of VideoLLM-online's, its base and tower; one of ours over the same base; COIN's streams."""
    folder = tmp_path_factory.mktemp("places")
    places = write_checkpoint(folder, with_tokenizer=False)
    ours = vm.load(places["checkpoint"], tower=places["tower"])
    ours.save_pretrained(folder / "ours")
    tiny_model(DepthPlan("full")).float().save_pretrained(folder / "whole")
    write_coin(folder, videos=4)
    write_coin_videos(folder / "videos", videos=4)
    words = ["data", "build", "coin-step", "--root", str(folder), "--split", "train"]
    assert main([*words, "--videos", str(folder / "videos"), "--out", str(folder / "coin.jsonl")]) == 0
    return {**places, "ours": folder / "ours", "whole": folder / "whole", "data": folder / "coin.jsonl"}


def published(places: dict[str, Path], **changes: object) -> Recipe:
    """The paper's run, bf16 as it is, over a tiny decoder and tower; two steps, each validated."""
    paper = dataclasses.replace(
        coin(),
        lm=dataclasses.replace(coin().lm, id=str(places["base"])),
        tower=dataclasses.replace(coin().tower, id=str(places["tower"])),
    )
    made = as_recipe(paper, Path(places["data"]), size=48)
    assert made.bf16 and made.lora == LoraSettings()
    phases = (Phase(2, 2, made.phases[0].world),)
    small = {"phases": phases, "lora": SMALL, "accumulate": 1, "validate_every": 1, "validation_streams": 1}
    return dataclasses.replace(made, **{**small, "calibration_streams": 1, **changes})  # type: ignore[arg-type]


def going_on(places: dict[str, Path], start: str, **changes: object) -> Recipe:
    return like_start(dataclasses.replace(convert(), start=str(places[start]), **changes))  # type: ignore[arg-type]


def assert_learned_in_float32_over_bf16(model: StreamingVideoLM) -> None:
    for name, parameter in model.named_parameters():
        learns = is_learned(name)
        assert parameter.requires_grad == learns, name
        assert parameter.dtype == (torch.float32 if learns else torch.bfloat16), name


def test_lora_on_a_model_in_bf16_learns_in_float32_and_changes_nothing_at_first() -> None:
    model = tiny_model(ROUTED).to(torch.bfloat16)
    ids, index = torch.arange(6)[None], torch.tensor([[-1, 0, 0, 0, 0, -1]])
    with torch.no_grad():
        before = model.lm(input_ids=ids, frame_index=index).logits
        apply_lora(model, SMALL)
        assert torch.equal(model.lm(input_ids=ids, frame_index=index).logits, before)
    learned = {p.dtype for name, p in model.named_parameters() if is_learned(name)}
    assert learned == {torch.float32} and model.lm.dtype == torch.bfloat16


def test_over_a_published_decoder_what_learns_is_float32(places: dict[str, Path]) -> None:
    assert_learned_in_float32_over_bf16(build(published(places)))
    assert {p.dtype for p in build(published(places, bf16=False)).parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:the LayerExperts of layers")
def test_adapters_that_are_gone_on_with_are_read_to_the_bit_over_a_base_in_bf16(places: dict[str, Path]) -> None:
    recipe = going_on(places, "ours", data=str(places["data"]))
    model = build(recipe)
    assert_learned_in_float32_over_bf16(model)
    assert in_bf16(recipe), "or the base would meet float32, on a CPU without bf16"
    stored = load_file(places["ours"] / "adapter_model.safetensors")
    name = "self_attn.q_proj.lora_B"
    ours = model.state_dict()[f"lm.model.layers.0.{name}.default.weight"]
    assert torch.equal(ours, stored[f"base_model.model.model.layers.0.{name}.weight"])
    assert not torch.equal(ours, ours.bfloat16().float()), "in bf16 it would be another"


def test_lora_that_is_new_on_a_whole_model_leaves_the_connector_as_it_was(places: dict[str, Path]) -> None:
    model = build(going_on(places, "whole", lora=SMALL, plan=ROUTED))
    assert_learned_in_float32_over_bf16(model)
    assert torch.equal(model.connector.inner.weight, vm.load(places["whole"]).connector.inner.weight)


def test_a_tower_that_learns_beside_lora_is_float32(places: dict[str, Path]) -> None:
    model = build(published(places, tower_lr=1e-4))
    assert {p.dtype for p in model.encoder.parameters()} == {torch.float32}
    frozen = {p.dtype for p in model.lm.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}


def test_a_public_checkpoint_is_read_in_two_precisions(places: dict[str, Path]) -> None:
    both = vm.load(places["checkpoint"], tower=places["tower"], dtype=torch.bfloat16, learned=torch.float32)
    for name, parameter in both.named_parameters():
        own = name.startswith("lm.") and not is_learned(name)
        assert parameter.dtype == (torch.bfloat16 if own else torch.float32), name
    alone = vm.load(places["checkpoint"], tower=places["tower"], dtype=torch.bfloat16)
    assert {p.dtype for p in alone.parameters()} == {torch.bfloat16}, "for inference"


def test_the_papers_run_in_bf16_learns_and_is_saved_as_it_learned(places: dict[str, Path], tmp_path: Path) -> None:
    recipe = published(places, lr=1e-3, warmup=0)
    start = build(recipe).state_dict()
    folder = train(recipe, tmp_path / "run", workers=0)
    stored = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float32}
    model = vm.load(folder, dtype=torch.bfloat16, learned=torch.float32)
    for name, tensor in model.state_dict().items():
        moved = not torch.equal(tensor.to(start[name].dtype), start[name])
        assert moved == is_learned(name), name
    checkpoint = load_file(next((tmp_path / "run" / "checkpoint").iterdir()) / "model.safetensors")
    assert all(is_learned(name.removeprefix("model.")) or name.startswith("head.") for name in checkpoint)


@pytest.mark.slow
def test_two_processes_train_lora_in_bf16_as_one_does_shared_out_or_not(
    places: dict[str, Path], tmp_path: Path
) -> None:
    weights = {}
    for name, sharding, launcher in (
        ("alone", "ddp", []),
        ("ddp", "ddp", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]),
        ("fsdp2", "fsdp2", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]),
    ):
        mine = tmp_path / f"{name}.py"
        there = {key: str(place) for key, place in places.items()}
        mine.write_text(
            f"import sys\nsys.path.insert(0, {str(ROOT / 'tests')!r})\n"
            "from test_lora_precision import EXACT, published\n"
            f"def recipe(): return published({there!r}, lora=EXACT, lr=1e-3, warmup=0, sharding={sharding!r})\n"
        )
        words = [sys.executable, "-m", *launcher, "videollm_mod", "train", str(mine), "--workers", "0"]
        run = subprocess.run(
            [*words, "--out", str(tmp_path / name)],
            capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr[-3000:]
        adapter = tmp_path / name / "model" / "adapter_model.safetensors"
        told = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
        assert [line["bytes"] for line in told] == [adapter.stat().st_size]
        weights[name] = load_file(adapter)
    for name in ("ddp", "fsdp2"):
        for key, tensor in weights["alone"].items():
            torch.testing.assert_close(weights[name][key], tensor, rtol=0, atol=1e-3)  # what is computed is bf16
