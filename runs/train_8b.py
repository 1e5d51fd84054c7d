"""One training step of a Llama-3-8B with random weights, dense and routed: time, peak memory, share of the FLOPs bound.

The decoder is frozen in bf16; what learns is LoRA of rank 128 on all linear maps of every layer, and the experts, in
float32; with gradient checkpointing, as the paper trains, and without. 600 frames of 10 tokens, 128 of 50. On a GPU,
at true size, a quarter of an hour:

    python runs/train_8b.py --out docs/results/train_8b.json
    python runs/train_8b.py --toy      # laptop-sized, on a CPU: to see that it works; its ratios mean nothing

The paper has -42 % time and -30 % memory. The last line on stdout is the JSON that is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from recipes.paper import LLAMA_3_8B
from videollm_mod.adapters import LoraSettings, wrap_linears
from videollm_mod.bench.measure import PeakMemory, environment, progress, rounded, time_in_turn
from videollm_mod.depth import DepthPlan, apply_depth
from videollm_mod.files import atomic_write
from videollm_mod.train.cost import Sample, Setting, activation_bytes, decoder_flops
from videollm_mod.train.devices import checkpoint_layers

ROUTED = DepthPlan("interleaved", keep=0.2)
DENSE = DepthPlan("full")
TOY = {
    **LLAMA_3_8B.architecture,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}


def build(architecture: dict[str, Any], adapter: LoraSettings, device: str) -> Any:
    """A decoder with random weights, frozen in bf16, and LoRA and experts that learn."""
    config = dataclasses.replace(LLAMA_3_8B, architecture=architecture).config
    torch.manual_seed(0)
    with torch.device(device):
        lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).requires_grad_(False)
    wrap_linears(lm, adapter)
    apply_depth(lm, ROUTED)
    for name, parameter in lm.named_parameters():
        learns = "depth_expert" in name or ".lora_" in name
        parameter.requires_grad_(learns)
        if learns:
            parameter.data = parameter.data.float()
    return lm.train()


def step_of(lm: Any, sample: Sample, optimiser: torch.optim.Optimizer, device: str) -> Callable[[], None]:
    """Forward, backward, AdamW. An interval token follows each frame; labels are those and the last text tokens."""
    frames = [[number] * sample.tokens_per_frame + [-1] for number in range(sample.frames)]
    words = sample.text - sample.frames
    index = torch.tensor([[-1] * (words // 2) + [*chain(*frames)] + [-1] * (words - words // 2)])
    ids = torch.randint(lm.config.vocab_size, index.shape, device=device)
    learned = (index[0] < 0).nonzero().squeeze(1)[-sample.labels :].to(device)
    embeds = torch.randn(1, index.shape[1], lm.config.hidden_size, device=device, dtype=torch.bfloat16)

    def step() -> None:
        inputs = embeds.clone().requires_grad_(True)  # as from the connector
        with torch.autocast(device, torch.bfloat16):
            logits = lm(inputs_embeds=inputs, frame_index=index, use_cache=False, logits_to_keep=learned).logits
        nn.functional.cross_entropy(logits[0].float(), ids[0, learned]).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def peak_of(step: Callable[[], None], device: str) -> dict[str, int]:
    """Bytes at most: on a GPU in all, and above what was there before; on a CPU the latter alone."""
    if device != "cuda":
        with PeakMemory() as memory:
            step()
        return {"activations": memory.peak}
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    peak = torch.cuda.max_memory_allocated()
    return {"all": peak, "activations": peak - before}


def measure(lm: Any, sample: Sample, setting: Setting, repeats: int, device: str) -> dict[str, Any]:
    """Dense and routed in turn, on the same weights."""
    if setting.checkpointing:
        checkpoint_layers(lm)
    experts = {name: module for name, module in lm.named_modules() if name.endswith("depth_expert")}
    optimiser = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-5)
    step = step_of(lm, sample, optimiser, device)
    plans = {"dense": DENSE, "routed": ROUTED}

    def run(name: str) -> Callable[[], None]:
        ratios = plans[name].ratios(lm.config.num_hidden_layers)

        def act() -> None:  # a plan is which layers have a ratio: to switch costs nothing, and the experts stay
            for layer, ratio in zip(lm.model.layers, ratios):
                layer.depth_ratio = ratio
            step()

        return act

    runs = {name: run(name) for name in plans}
    for act in runs.values():  # AdamW makes its moments at the first step
        act()
    peak = {name: peak_of(act, device) for name, act in runs.items()}
    timing = time_in_turn(runs, repeats)
    cost = {name: decoder_flops(lm.config, plan, sample, setting) for name, plan in plans.items()}
    ratio, bound = timing["routed"].wall_ms / timing["dense"].wall_ms, cost["routed"] / cost["dense"]
    found = {
        "time": ratio,
        "flops_bound": bound,
        "share_of_bound_reached": (1 - ratio) / (1 - bound),
        "memory": {kind: peak["routed"][kind] / peak["dense"][kind] for kind in peak["dense"]},
        "estimated_activations": {
            name: activation_bytes(lm.config, plan, sample, setting) for name, plan in plans.items()
        },
        "dense_ms": timing["dense"].wall_ms,
        "routed_ms": timing["routed"].wall_ms,
        "dense_bytes": peak["dense"],
        "routed_bytes": peak["routed"],
        "dense_flops": cost["dense"],
        "routed_flops": cost["routed"],
        "tokens": sample.tokens,
        "experts": len(experts),
    }
    if not math.isfinite(ratio):
        raise RuntimeError("the clock gave no time")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true", help="a small decoder, few frames, one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    if flags.device != "cuda" and not flags.toy:
        parser.error("a decoder of this size needs a GPU; add --toy for a small one on a CPU")
    many, few, words, replies = (6, 2, 6, 4) if flags.toy else (600, 128, 630, 400)
    adapter = LoraSettings(rank=4, alpha=8) if flags.toy else LoraSettings()
    samples = {
        "600x10": Sample(many, 10, many + words, many + replies),
        "128x50": Sample(few, 50, few + words, few + replies),
    }
    progress(f"building a decoder on {flags.device}")
    began = time.monotonic()
    lm = build(TOY if flags.toy else LLAMA_3_8B.architecture, adapter, flags.device)
    result: dict[str, Any] = {"toy": flags.toy, "device": flags.device, **environment()}
    if flags.device == "cuda":
        result["gpu"] = torch.cuda.get_device_name()
    for checkpointing in (False, True):
        key = "checkpointing" if checkpointing else "plain"
        result[key] = {}
        for name, sample in samples.items():
            setting = Setting(adapter, checkpointing, bf16=True)
            try:
                found = measure(lm, sample, setting, 1 if flags.toy else flags.repeats, flags.device)
            except torch.OutOfMemoryError:
                found = {"failed": "out of memory"}
                lm.zero_grad(set_to_none=True)
                torch.cuda.empty_cache()
            result[key][name] = found
            told = {what: found[what] for what in ("time", "flops_bound", "memory", "failed") if what in found}
            progress(f"{key}, {name} tokens: {json.dumps(rounded(told))}")
    result["seconds"] = time.monotonic() - began
    text = json.dumps(rounded(result))
    if flags.out is not None:
        with atomic_write(flags.out) as file:
            file.write(json.dumps(rounded(result), indent=2) + "\n")
    print(text)


if __name__ == "__main__":
    main()
