"""LoRA: what is trained, what is frozen, what is saved, and that a model comes back from it in another process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from stream_cases import frames, tiny_model
from test_model import TALKS, batch_of
from torch import Tensor
from transformers import LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

import videollm_mod as vm
from videollm_mod.adapters import LoraSettings, apply_lora, has_lora
from videollm_mod.depth import DepthPlan, apply_depth, remove_depth
from videollm_mod.model import StreamingVideoLM
from videollm_mod.types import InputError
from videollm_mod.vision import Connector, FrameEncoder, TransformersTower

ROUTED = DepthPlan("interleaved", 0.4, gate="tanh", keep_last=True)
SMALL = LoraSettings(rank=4, alpha=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole streaming model, routed."""
    folder = tmp_path_factory.mktemp("base") / "m"
    tiny_model(ROUTED).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A decoder and a tower as Transformers saves them, each in a folder of its own."""
    folder = tmp_path_factory.mktemp("parts")
    lm = remove_depth(tiny_model(DepthPlan("full")).float().lm)
    lm.save_pretrained(folder / "lm")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=32, patch_size=16)).save_pretrained(folder / "tower")
    return {"lm": str(folder / "lm"), "tower": str(folder / "tower")}


def of_parts(parts: dict[str, str], plan: DepthPlan) -> StreamingVideoLM:
    tower = TransformersTower.from_pretrained(parts["tower"])
    lm = LlamaForCausalLM.from_pretrained(parts["lm"])
    tokenizer = tiny_model(plan).template.tokenizer
    return StreamingVideoLM(FrameEncoder(tower, (2, 2)), Connector(16, 32), lm, tokenizer, plan).eval()


def logits(model: StreamingVideoLM) -> Tensor:
    batch, features = batch_of(model, *TALKS)
    with torch.no_grad():
        out: Tensor = model(batch.input_ids, batch.frame_index, features, logits_to_keep=0).logits
    return out


def train_two_steps(model: StreamingVideoLM) -> None:
    batch, features = batch_of(model, *TALKS)
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0)
    for _ in range(2):
        out = model(batch.input_ids, batch.frame_index, features.detach(), labels=batch.labels, decision=batch.decision)
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
    model.eval()


def test_lora_changes_nothing_at_first_and_leaves_lora_connector_and_experts_to_be_trained(base: Path) -> None:
    model = vm.load(base)
    before = logits(model)
    apply_lora(model, SMALL)
    assert torch.equal(logits(model), before)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert all(".lora_" in name or name.startswith("connector.") or ".depth_expert." in name for name in trained)
    for part in ("connector.inner.weight", "lm.model.layers.1.depth_expert.weight", "lm.lm_head.lora_A.default.weight"):
        assert part in trained
    each = {name.split(".")[-4] for name in trained if "layers.2" in name}
    assert each == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_defaults_are_those_of_the_paper() -> None:
    settings = LoraSettings()
    assert (settings.rank, settings.alpha, settings.dropout) == (128, 256, 0.05)


@pytest.mark.slow
def test_after_two_steps_another_process_loads_the_same_logits_from_an_empty_folder(base: Path, tmp_path: Path) -> None:
    model = apply_lora(vm.load(base), SMALL)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_two_steps(model)
    for name, tensor in model.state_dict().items():
        moved = not torch.equal(tensor, start[name])
        # A's gradient is 0 at the first step and not at the second; nothing moves but what is trained
        assert moved == (".lora_" in name or name.startswith("connector.") or ".depth_expert." in name), name
    model.save_pretrained(tmp_path / "adapter")
    batch, features = batch_of(model, *TALKS)
    given = {"ids": batch.input_ids, "frames": batch.frame_index, "features": features.detach().contiguous()}
    save_file({**given, "logits": logits(model)}, tmp_path / "case.safetensors")
    program = """
import sys, torch
import videollm_mod as vm
from safetensors.torch import load_file
torch.set_num_threads(1)
case = load_file(sys.argv[2])
model = vm.load(sys.argv[1])
with torch.no_grad():
    out = model(case["ids"], case["frames"], case["features"], logits_to_keep=0).logits
print((out - case["logits"]).abs().max().item(), model.lm.model.layers[1].depth_ratio)
"""
    (tmp_path / "empty").mkdir()
    words = [sys.executable, "-c", program, str(tmp_path / "adapter"), str(tmp_path / "case.safetensors")]
    root = {"PYTHONPATH": str(Path(vm.__file__).parents[1])}
    done = subprocess.run(words, cwd=tmp_path / "empty", env=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    difference, ratio = map(float, done.stdout.split())
    assert difference < 1e-6 and ratio == 0.4


def test_the_folder_holds_adapter_connector_experts_and_config_but_no_weight_of_the_base(
    base: Path, tmp_path: Path
) -> None:
    model = apply_lora(vm.load(base), SMALL)
    model.save_pretrained(tmp_path / "a")
    there = {path.relative_to(tmp_path / "a").as_posix() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    assert {name for name in there if not name.startswith("tokenizer/")} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "config.json",
    }
    weights = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert all(".lora_" in name or ".depth_expert." in name or ".connector." in name for name in weights), (
        "peft itself would add the base's head, as LoRA is on it"
    )
    assert "base_model.model.connector.0.weight" in weights
    assert "base_model.model.model.layers.1.depth_expert.weight" in weights
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["base"] == {"model": str(base)}


def test_a_decoder_and_a_tower_from_elsewhere_are_named_and_not_saved(parts: dict[str, str], tmp_path: Path) -> None:
    model = apply_lora(of_parts(parts, ROUTED), SMALL)
    train_two_steps(model)
    model.save_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["base"] == parts
    assert not any("tower" in name for name in load_file(tmp_path / "a" / "adapter_model.safetensors"))
    back = vm.load(tmp_path / "a")
    assert torch.allclose(logits(back), logits(model), atol=1e-6)
    back.save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "config.json").read_text() == (tmp_path / "a" / "config.json").read_text()


def test_a_tower_that_was_trained_too_is_saved_too(parts: dict[str, str], tmp_path: Path) -> None:
    model = apply_lora(of_parts(parts, ROUTED), SMALL)
    model.encoder.requires_grad_(True)
    with torch.no_grad():
        for weight in model.encoder.parameters():
            weight.add_(0.1)
    model.save_pretrained(tmp_path)
    assert torch.allclose(logits(vm.load(tmp_path)), logits(model), atol=1e-6)


def test_a_base_that_has_moved_is_found_where_the_caller_says(parts: dict[str, str], tmp_path: Path) -> None:
    apply_lora(of_parts(parts, ROUTED), SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["base"] = {"lm": "/gone/lm", "tower": "/gone/tower"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="base model folder '/gone/lm' does not exist"):
        vm.load(tmp_path)
    assert has_lora(vm.load(tmp_path, base=parts["lm"], tower=parts["tower"]))


def test_lora_before_or_after_routing_is_the_same_model(parts: dict[str, str]) -> None:
    torch.manual_seed(1)
    first = apply_lora(of_parts(parts, ROUTED), SMALL)
    second = apply_lora(of_parts(parts, DepthPlan("full")), SMALL)
    apply_depth(second.lm, ROUTED)
    assert second.lm.model.layers[1].depth_expert.weight.requires_grad
    second.load_state_dict(first.state_dict())
    assert torch.equal(logits(first), logits(second))
    remove_depth(second.lm)
    assert has_lora(second) and not any("depth" in name for name in second.state_dict())


@pytest.mark.parametrize("routed_first", [True, False])
def test_peft_alone_works_on_a_routed_decoder_too(parts: dict[str, str], routed_first: bool) -> None:
    lm = LlamaForCausalLM.from_pretrained(parts["lm"])
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["depth_expert"] if routed_first else None)
    if routed_first:
        wrapped = peft.get_peft_model(apply_depth(lm, ROUTED), config)
    else:
        wrapped = peft.get_peft_model(lm, config)
        apply_depth(wrapped.get_base_model(), ROUTED)
    index = torch.tensor([[-1, 0, 0, 0, 0, -1]])
    wrapped(input_ids=torch.arange(6)[None], frame_index=index).logits.sum().backward()
    experts = [p for name, p in wrapped.named_parameters() if "depth_expert" in name and p.requires_grad]
    assert experts and experts[0].grad is not None and experts[0].grad.abs().sum() > 0


def test_a_folder_is_of_one_kind_whatever_was_in_it_before(base: Path, tmp_path: Path) -> None:
    whole, adapted = vm.load(base), apply_lora(vm.load(base), SMALL)
    for model in (whole, adapted, whole, adapted):
        model.save_pretrained(tmp_path)
        assert has_lora(vm.load(tmp_path)) == has_lora(model)


def test_experts_of_another_plan_are_drawn_with_a_warning(base: Path, tmp_path: Path) -> None:
    apply_lora(vm.load(base), SMALL).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"layers \[0, 2\] were never trained"):
        assert vm.load(tmp_path, depth="all").plan.layers == "all"


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_lora_twice_or_without_a_layer_to_be_on_is_refused(base: Path) -> None:
    model = apply_lora(vm.load(base), SMALL)
    with pytest.raises(InputError, match="has LoRA already"):
        apply_lora(model, SMALL)
    with pytest.raises(InputError, match=r"LlamaForCausalLM has none of LoRA's targets"):
        apply_lora(vm.load(base), dataclasses.replace(SMALL, targets=("no_such_proj",)))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"rank": 0}, "rank of LoRA is 0"), ({"dropout": 1.0}, "dropout of LoRA is 1.0"), ({"targets": ()}, "targets")],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        dataclasses.replace(SMALL, **change)  # type: ignore[arg-type]


def test_a_base_without_a_name_is_refused_when_its_adapter_is_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="saved without its base, which has no name"):
        apply_lora(tiny_model(ROUTED), SMALL).save_pretrained(tmp_path)


def test_an_adapter_of_another_kind_is_refused(base: Path, tmp_path: Path) -> None:
    apply_lora(vm.load(base), SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "peft_type": "IA3"}))
    with pytest.raises(InputError, match="peft_type is 'IA3'; only LORA can be loaded"):
        vm.load(tmp_path)


def test_a_streamed_session_runs_on_a_model_with_lora(base: Path) -> None:
    model = apply_lora(vm.load(base), SMALL)
    session = vm.StreamSession(model, threshold=0.0)
    for frame in frames(3):
        assert session.push(frame) == []
    assert session.ask("What happened?").kind == "answer"
