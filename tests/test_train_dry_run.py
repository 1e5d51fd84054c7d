"""`train --dry-run`: what a run takes, by formulas that are held against what PyTorch counts; and the paper's runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

import videollm_mod as vm
from recipes.paper import LLAMA_3_8B, RECIPES, coin, ego4d_narration
from recipes.tiny import recipe as tiny_recipe
from videollm_mod.adapters import LoraSettings, apply_lora
from videollm_mod.bench.measure import PeakMemory
from videollm_mod.cli import main
from videollm_mod.depth import DepthPlan, apply_depth
from videollm_mod.train.build import build
from videollm_mod.train.cost import Sample, Setting, activation_bytes, adapter_parameters, decoder_flops
from videollm_mod.train.devices import checkpoint_layers
from videollm_mod.train.dry_run import dry_run

ROOT = Path(__file__).parents[1]
SMALL = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4}
PLANS = {"dense": DepthPlan("full"), "routed": DepthPlan("interleaved", keep=0.2)}
SAMPLE = Sample(frames=12, tokens_per_frame=20, text=40, labels=16)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


# -- the formulas ------------------------------------------------------------------------------------------------------


def frame_index() -> Tensor:
    words = SAMPLE.text - SAMPLE.frames
    frames = [place for number in range(SAMPLE.frames) for place in (*[number] * SAMPLE.tokens_per_frame, -1)]
    return torch.tensor([[*frames, *[-1] * words]])


def forward(lm: Any, bf16: bool = False) -> Tensor:
    index = frame_index()
    ids = torch.arange(index.shape[1])[None] % lm.config.vocab_size
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = lm(input_ids=ids, frame_index=index, use_cache=False, logits_to_keep=SAMPLE.labels)
    return nn.functional.cross_entropy(out.logits[0].float(), ids[0, : SAMPLE.labels])


SETTINGS = {
    "fp32": Setting(None, checkpointing=False, bf16=False),
    "bf16": Setting(None, checkpointing=False, bf16=True),
    # without dropout, whose mask is one byte a number on a GPU and four on a CPU
    "lora": Setting(LoraSettings(rank=4, alpha=8, dropout=0.0), checkpointing=False, bf16=True),
}


def decoder(script: Any, setting: Setting) -> Any:
    """A decoder of four layers, as `setting` trains it."""
    torch.manual_seed(0)
    if setting.adapter is not None:
        lm = script.build({**script.TOY, "vocab_size": 97}, setting.adapter, "cpu")
        lm.get_input_embeddings().requires_grad_(True)  # as the connector's tokens do
    else:
        lm = LlamaForCausalLM(LlamaConfig(**SMALL, num_key_value_heads=2, vocab_size=97))
    if setting.checkpointing:
        checkpoint_layers(lm)
    return lm.train()


def peak_bytes(lm: Any, bf16: bool) -> int:
    """Of forward and backward, beyond weights and their gradients, which are there from a step before."""
    forward(lm, bf16).backward()
    lm.zero_grad(set_to_none=False)
    with PeakMemory() as memory:
        forward(lm, bf16).backward()
    return memory.peak


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_activations_take_about_what_a_step_has_at_its_peak(
    script: Any, plan: DepthPlan, name: str, checkpointing: bool
) -> None:
    setting = dataclasses.replace(SETTINGS[name], checkpointing=checkpointing)
    lm = apply_depth(decoder(script, setting), plan)
    formula = activation_bytes(lm.config, plan, SAMPLE, setting)
    assert formula == pytest.approx(peak_bytes(lm, setting.bf16), rel=0.15)


@pytest.fixture(scope="module")
def script() -> Any:
    """runs/train_8b.py as a module."""
    spec = importlib.util.spec_from_file_location("train_8b", ROOT / "runs" / "train_8b.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_flops_with_low_rank_maps_are_what_pytorch_counts(
    script: Any, plan: DepthPlan, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videollm_mod.depth.layout.ROW_BLOCK", 1)
    adapter = LoraSettings(rank=4, alpha=8)
    lm = apply_depth(script.build(script.TOY, adapter, "cpu").float(), plan)
    low_rank = sum(p.numel() for name, p in lm.named_parameters() if ".lora_" in name)
    assert low_rank == adapter_parameters(lm.config, adapter)
    if checkpointing:
        checkpoint_layers(lm)
    lm.get_input_embeddings().requires_grad_(True)  # as the connector's tokens do
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        forward(lm).backward()
    formula = decoder_flops(lm.config, plan, SAMPLE, Setting(adapter, checkpointing, bf16=True))
    assert formula == pytest.approx(counter.get_total_flops(), rel=0.01)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_run_of_the_paper_is_reckoned_without_weights(capsys: pytest.CaptureFixture[str]) -> None:
    seen = set()
    for make in RECIPES:
        found = dry_run(make())
        seen.add(found["recipe"])
        assert found["recipe"] == f"paper.{make.__name__}" and found["devices"] == 8
        assert found["flops_per_step"]["ratio"] < 0.75 and found["kv_cache_of_a_stream"]["ratio"] < 0.75
        assert found["memory_per_device"]["ratio"] <= 1 and found["streams_at_a_time"] == 1
        assert found["parameters"]["trainable"] < 0.1 * found["parameters"]["total"]
        assert "cannot run yet" in found["missing"]
    assert len(seen) == 8
    assert not capsys.readouterr().out


def test_llama_3_8b_is_counted_to_the_number(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "paper.ego4d_narration", "--dry-run"]) == 0
    found = last_line(capsys)
    parameters = found["parameters"]
    assert parameters["decoder"] == 8_030_261_248  # as its card has it
    assert parameters["adapter"] == 128 * (32 * (4 * 4096 + 2 * 1024 + 2 * 4096 + 3 * 4096 + 3 * 14336) + 4096 + 128256)
    assert parameters["connector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert parameters["experts"] == 16 * 4097
    assert parameters["trainable"] == parameters["adapter"] + parameters["connector"] + parameters["experts"]
    assert found["tokens_per_sample"] == {"vision": 6000, "text": 1230, "learned": 1000, "frames": 600}
    assert found["steps_per_epoch"] == -(-113_000 // 64) and found["steps"] == 2 * found["steps_per_epoch"]
    memory = found["memory_per_device"]["routed"]
    assert memory["optimiser"] == 8 * parameters["trainable"] and memory["gradients"] == 4 * parameters["trainable"]
    assert 16e9 < memory["weights"] < 20e9
    per_frame = {name: size / 600 for name, size in found["kv_cache_of_a_stream"].items() if name != "ratio"}
    assert per_frame["dense"] > 1.375 * 2**20 and per_frame["routed"] > 0.875 * 2**20


@pytest.mark.slow
def test_sharing_out_and_more_devices_take_less_memory_each(capsys: pytest.CaptureFixture[str]) -> None:
    taken = []
    for flags in (["--sharding", "ddp"], ["--sharding", "fsdp2"], ["--sharding", "fsdp2", "--devices", "64"]):
        assert main(["train", "paper.coin", "--dry-run", *flags]) == 0
        taken.append(last_line(capsys)["memory_per_device"]["routed"]["total"])
    assert taken[0] > taken[1] > taken[2]


def test_values_of_the_recipe_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "paper.ego4d_lta", "--dry-run", "--set", "frames=1200", "samples=640", "--plan", "full"]
    assert main(words) == 0
    found = last_line(capsys)
    assert found["tokens_per_sample"]["vision"] == 12_000 and found["steps_per_epoch"] == 10
    assert found["flops_per_step"]["ratio"] == 1 and found["parameters"]["experts"] == 0


def test_without_checkpointing_routing_saves_activations(capsys: pytest.CaptureFixture[str]) -> None:
    taken = []
    for value in ("true", "false"):
        assert main(["train", "paper.coin", "--dry-run", "--set", f"checkpointing={value}"]) == 0
        memory = last_line(capsys)["memory_per_device"]
        taken.append(memory["routed"]["activations"] / memory["dense"]["activations"])
    assert taken[0] > 0.9 and taken[1] < 0.75


def test_a_recipe_of_ours_is_reckoned_too(capsys: pytest.CaptureFixture[str]) -> None:
    found = dry_run(tiny_recipe())
    model = build(tiny_recipe())
    total = sum(p.numel() for p in model.parameters())
    assert found["parameters"]["total"] == found["parameters"]["trainable"] == total
    assert found["steps"] == 1100 and found["steps_of_first_run"] == 4440
    assert found["missing"] is None and found["devices"] == 1
    assert found["flops_per_step"]["routed"] < found["flops_per_step"]["dense"]


def test_a_model_to_go_on_from_with_lora_is_reckoned_as_it_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = apply_lora(vm.load("tiny"), LoraSettings(rank=2, alpha=4, targets=("q_proj", "down_proj")))
    model.save_pretrained(tmp_path / "a")
    assert main(["train", "convert", "--start", str(tmp_path / "a"), "--dry-run"]) == 0
    found = last_line(capsys)["parameters"]
    low_rank = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    whole = sum(p.numel() for p in vm.load("tiny").lm.parameters())
    assert found["adapter"] == low_rank and found["decoder"] == whole - found["experts"]
    assert found["trainable"] == low_rank + found["connector"] + found["experts"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["paper.coin"], "paper.coin cannot run yet, without its data: give it as --data FILE.jsonl"),
        (
            ["paper.coin", "--dry-run", "--plan", "33"],
            "layer 33, but the model has layers 0 to 31; name some of those.",
        ),
        (["paper.coin", "--dry-run", "--devices", "0"], "--devices 0 is too small; give 1 or more."),
        (["paper.coin", "--dry-run", "--start", "tiny"], "--start does not go with paper.coin --dry-run"),
        (["paper.coin", "--dry-run", "--sharding", "zero"], "sharding 'zero' is unknown"),
        (["paper.nothing", "--dry-run"], "no recipe 'paper.nothing'; take one of camera, convert, own, paper.coin"),
        (["paper", "--dry-run"], "there is no recipe 'paper'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *words]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_the_papers_settings_are_those_of_the_paper() -> None:
    narration, learned = ego4d_narration(), coin()
    assert (narration.epochs, narration.lr, learned.lr, narration.streams) == (2, 2e-4, 1e-4, 8 * 1 * 8)
    assert (narration.adapter.rank, narration.adapter.alpha, narration.adapter.dropout) == (128, 256, 0.05)
    assert narration.plan == DepthPlan("interleaved", keep=0.2) and narration.tokens_per_frame == 10
    assert {make().lm.id for make in RECIPES} == {LLAMA_3_8B.id, "Qwen/Qwen3-4B"}


@pytest.mark.slow
def test_the_8b_step_runs_at_toy_size(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "runs" / "train_8b.py"), "--toy", "--out", str(tmp_path / "toy.json")]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found == json.loads((tmp_path / "toy.json").read_text()) and found["toy"]
    for kind in ("checkpointing", "plain"):
        for sample in ("600x10", "128x50"):
            assert 0 < found[kind][sample]["flops_bound"] < 1 and found[kind][sample]["memory"]["activations"] > 0


def test_launch_files_are_shell() -> None:
    for name in ("train_8gpu.sh", "train_slurm.sbatch"):
        subprocess.run(["bash", "-n", str(ROOT / "runs" / name)], check=True)
