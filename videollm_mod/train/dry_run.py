"""`train --dry-run`: what a run takes, reckoned in seconds on the meta device, where tensors have shapes, no numbers.

Parameters are counted on the model itself. Memory is that of one process, in bytes: weights (under FSDP2 a share of
all, and the two layers and the rest of the decoder that are whole at a time), gradients and AdamW's two moments in
float32, activations by `cost.py` (an estimate: `tests/test_train_dry_run.py` says how good), nothing for buffers of
kernels and of communication.
"""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from videollm_mod.adapters import LoraSettings
from videollm_mod.depth import DepthPlan, apply_depth, flops
from videollm_mod.depth.swap import find_decoder
from videollm_mod.dialogue import IGNORE
from videollm_mod.train.build import build
from videollm_mod.train.cost import Sample, Setting, activation_bytes, adapter_parameters, decoder_flops
from videollm_mod.train.data import stream_sample
from videollm_mod.train.paper import PaperRecipe
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.vision import Connector, FrameEncoder, TransformersTower

DENSE = DepthPlan("full")
HOW = (
    "parameters counted on the meta device; memory of one process: weights, gradients, AdamW's moments exact, "
    "activations by the formulas of train/cost.py; "
    "FLOPs of decoder and connector, of a frozen tower beside them: "
    "nothing, where the frames' features were extracted beforehand"
)


@dataclass(frozen=True)
class Workload:
    """What is trained on what."""

    encoder: FrameEncoder
    connector: nn.Module
    lm: nn.Module
    plan: DepthPlan
    setting: Setting
    sample: Sample
    streams: int  # per step, of all processes
    tower_learns: bool
    experts_learn: bool

    @property
    def config(self) -> Any:
        return find_decoder(self.lm).config


def dry_run(recipe: Recipe | PaperRecipe, devices: int | None = None) -> dict[str, Any]:
    """Everything as plain data; a few lines of it for the eye on stderr."""
    work, run = _of_paper(recipe) if isinstance(recipe, PaperRecipe) else _of_world(recipe)
    count: int = devices or (recipe.devices if isinstance(recipe, PaperRecipe) else 1)
    streams = -(-work.streams // (count * recipe.accumulate))  # of one process at a time
    parameters, learning = _parameters(work)
    tower, connector = _frame_flops(work)
    front = connector + (tower if work.tower_learns else 0)
    cost = {
        name: work.streams * (work.sample.frames * front + decoder_flops(work.config, plan, work.sample, work.setting))
        for name, plan in (("dense", DENSE), ("routed", work.plan))
    }
    weights = _weights(work, count, recipe.sharding)
    share = count if recipe.sharding == "fsdp2" else 1
    memory = {}
    for name, plan in (("dense", DENSE), ("routed", work.plan)):
        parts = {
            "weights": weights,
            "gradients": -(-4 * learning // share),
            "optimiser": -(-8 * learning // share),
            "activations": activation_bytes(work.config, plan, work.sample, work.setting, streams)
            + streams * _front_bytes(work),
        }
        memory[name] = {**parts, "total": sum(parts.values())}
    shape = (work.sample.text, work.sample.frames, work.sample.tokens_per_frame)
    cache = {
        name: flops.kv_bytes(work.config, plan, *shape) for name, plan in (("dense", DENSE), ("routed", work.plan))
    }
    found = {
        "recipe": recipe.name,
        "devices": count,
        "sharding": recipe.sharding,
        "accumulate": recipe.accumulate,
        "checkpointing": recipe.checkpointing,
        "parameters": {"total": sum(parameters.values()), "trainable": learning, **parameters},
        "tokens_per_sample": {
            "vision": work.sample.vision,
            "text": work.sample.text,
            "learned": work.sample.labels,
            "frames": work.sample.frames,
        },
        "streams_per_step": work.streams,
        "streams_at_a_time": streams,
        "flops_per_step": {
            **cost,
            "ratio": round(cost["routed"] / cost["dense"], 4),
            "frozen_tower": 0 if work.tower_learns else work.streams * work.sample.frames * tower,
        },
        "memory_per_device": {
            **memory,
            "ratio": round(memory["routed"]["total"] / memory["dense"]["total"], 4),
        },
        "kv_cache_of_a_stream": {**cache, "ratio": round(cache["routed"] / cache["dense"], 4)},
        **run,
        "how": HOW,
    }
    _show(found)
    return found


def _of_world(recipe: Recipe) -> tuple[Workload, dict[str, Any]]:
    """Of the phase whose steps hold the most frames; of the runs before it the number of steps."""
    before, first = 0, recipe
    while first.first is not None:
        first = first.first
        before += first.steps
    if first.start is not None:  # sizes, tower and words are those of the model with which it all begins
        recipe = dataclasses.replace(recipe, start=first.start, first=None)
    with torch.device("meta") if recipe.start is None else nullcontext():  # one to go on from has its weights
        model = build(recipe)
    phase: Phase = max(recipe.phases, key=lambda phase: phase.streams * phase.world.seconds)
    item = stream_sample("train", 0, phase, recipe)
    example = model.template.encode(item.segments)
    text, labels = int((example.frame_index < 0).sum()), int((example.labels != IGNORE).sum())
    sample = Sample(example.frames, model.encoder.tokens_per_frame, text, labels)
    setting = Setting(_adapter_of(model.lm), recipe.checkpointing, recipe.bf16)
    work = Workload(
        model.encoder, model.connector, model.lm, recipe.plan, setting, sample, phase.streams,
        tower_learns=recipe.tower_lr > 0, experts_learn=recipe.train_experts,
    )  # fmt: skip
    return work, {
        "samples": None,
        "steps_per_epoch": None,
        "steps": recipe.steps,
        "steps_of_first_run": before,
        "missing": None,
    }


def _of_paper(recipe: PaperRecipe) -> tuple[Workload, dict[str, Any]]:
    with torch.device("meta"):
        tower = TransformersTower.build(recipe.tower.config)
        lm = apply_depth(AutoModelForCausalLM.from_config(recipe.lm.config, dtype=torch.bfloat16), recipe.plan)
        connector = Connector(tower.width, find_decoder(lm).config.hidden_size)
    text, labels = recipe.text + recipe.frames, recipe.replies + recipe.frames * recipe.narrated
    sample = Sample(recipe.frames, recipe.tokens_per_frame, text, labels)
    setting = Setting(recipe.adapter, recipe.checkpointing, recipe.bf16)
    work = Workload(
        FrameEncoder(tower, recipe.grid), connector, lm, recipe.plan, setting, sample, recipe.streams,
        tower_learns=False, experts_learn=True,
    )  # fmt: skip
    each = -(-recipe.samples // recipe.streams) if recipe.samples else None
    return work, {
        "samples": recipe.samples or None,
        "steps_per_epoch": each,
        "steps": each * recipe.epochs if each else None,
        "missing": recipe.missing(),
    }


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _named(lm: nn.Module, part: str) -> int:
    return sum(parameter.numel() for name, parameter in lm.named_parameters() if part in name)


def _adapter_of(lm: Any) -> LoraSettings | None:
    """The LoRA that a decoder has, as `cost.py` reckons with it."""
    if not getattr(lm, "peft_config", None):
        return None
    found = next(iter(lm.peft_config.values()))
    there = {name.rpartition(".lora_A")[0].rpartition(".")[2] for name, _ in lm.named_modules() if ".lora_A." in name}
    return LoraSettings(found.r, found.lora_alpha, found.lora_dropout, tuple(sorted(there)))


def _parameters(work: Workload) -> tuple[dict[str, int], int]:
    """How many the parts have, and how many learn."""
    adapter, experts, there = work.setting.adapter, _named(work.lm, "depth_expert"), _named(work.lm, ".lora_")
    parts = {
        "decoder": _count(work.lm) - experts - there,
        "tower": _count(work.encoder),
        "connector": _count(work.connector),
        "experts": experts,
        "adapter": there or (adapter_parameters(work.config, adapter) if adapter is not None else 0),
    }
    learning = parts["connector"] + parts["adapter"]
    learning += parts["decoder"] if adapter is None else 0
    learning += parts["tower"] if work.tower_learns else 0
    learning += parts["experts"] if work.experts_learn else 0
    return parts, learning


def _weights(work: Workload, devices: int, sharding: str) -> int:
    """Bytes of weights in one process: what is frozen beside an adapter in the arithmetic's, the rest in float32."""
    frozen = work.setting.hidden
    parts, _ = _parameters(work)
    everything = frozen * (parts["decoder"] + parts["tower"])
    everything += 4 * (parts["connector"] + parts["experts"] + parts["adapter"])
    if sharding != "fsdp2" or devices == 1:
        return everything
    layers = [frozen * _count(layer) for layer in find_decoder(work.lm).layers]
    rest = everything - sum(layers) - frozen * parts["tower"]
    return -(-everything // devices) + 2 * max(layers) + rest


def _frame(encoder: FrameEncoder) -> Tensor:
    """(1, S, S, 3) where the tower is."""
    where = next(encoder.parameters()).device
    return torch.zeros(1, encoder.tower.image_size, encoder.tower.image_size, 3, dtype=torch.uint8, device=where)


def _frame_flops(work: Workload) -> tuple[int, int]:
    """FLOPs of one frame in the tower, forward, and backward if it learns; and in the connector, both ways."""
    frame = _frame(work.encoder)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = work.encoder(frame)
    tower = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        work.connector(features.float())  # which learns, beside a tower that may be bf16
    return (3 if work.tower_learns else 1) * tower, 3 * counter.get_total_flops()


def _front_bytes(work: Workload) -> int:
    """Bytes kept for the backward pass of one stream's frames by connector and tower: what autograd saves."""
    weights = {p.untyped_storage() for part in (work.encoder, work.connector) for p in part.parameters()}
    saved = set()

    def keep(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage())
        return tensor

    frame = _frame(work.encoder)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        with torch.set_grad_enabled(work.tower_learns):
            features = work.encoder(frame)
        work.connector(features.float())
    return work.sample.frames * sum(storage.nbytes() for storage in saved - weights) * work.setting.compute // 4


def _show(found: dict[str, Any]) -> None:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    parameters, memory, cost = found["parameters"], found["memory_per_device"], found["flops_per_step"]
    tokens = found["tokens_per_sample"]
    console.print(f"{found['recipe']}: {found['devices']} device(s), {found['sharding']}")
    console.print(f"  parameters   {parameters['total']:,}, of which {parameters['trainable']:,} learn")
    console.print(
        f"  a sample     {tokens['frames']} frames, {tokens['vision']} vision and {tokens['text']} text tokens"
    )
    each = found["steps_per_epoch"]
    known = f"; {each} steps an epoch" if each is not None else ""
    console.print(f"  a step       {found['streams_per_step']} streams{known}")
    for name in ("dense", "routed"):
        parts = "  ".join(f"{part} {size / 2**30:.2f}" for part, size in memory[name].items())
        console.print(f"  {name:<7}      {cost[name] / 1e12:.4g} TFLOP a step; GiB per device: {parts}")
    if found["missing"]:
        console.print(f"  {found['missing']}")
