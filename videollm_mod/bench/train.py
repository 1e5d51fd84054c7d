"""`bench train`: a training step of every plan against dense, in turn, with logits at the labels and at all positions.

Forward and backward of one sample, gradients added up in place, as with accumulation. The optimiser is left out: its
work is the same for all, and with accumulation it runs once in many samples.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from videollm_mod.bench.fronts import BenchTrain
from videollm_mod.bench.measure import PeakMemory, environment, progress, time_in_turn, wait_for
from videollm_mod.bench.models import (
    DENSE,
    Competitor,
    against,
    competitors,
    decoder_config,
    parse_route,
    train_step,
    training_sample,
)
from videollm_mod.depth import flops


def measure(config: BenchTrain) -> dict[str, Any]:
    """{"train": {"labels" | "all": {competitor: ...}}}, and what it was measured on."""
    llm = decoder_config(config)
    progress(f"building decoders of {llm.num_hidden_layers} layers, width {llm.hidden_size}, on {config.device}")
    rivals = competitors(llm, {word: parse_route(word) for word in config.routes}, config.device, config.dtype)
    for rival in rivals:
        rival.model.train()
    for weight in rivals[0].model.parameters():  # the gradients of all, which share them
        weight.grad = torch.zeros_like(weight)
    ids, index = training_sample(config.frames, config.tokens, config.text, llm.vocab_size)
    ids = ids.to(config.device)  # the index is read on the CPU
    found = {}
    for logits in ("labels", "all"):
        progress(f"timing {config.steps} training steps of {index.shape[1]} tokens, {len(rivals)} in turn, "
                 f"logits at {'labels only' if logits == 'labels' else 'all positions'}")  # fmt: skip
        found[logits] = measure_steps(config, rivals, ids, index, all_logits=logits == "all")
    setup = {name: value for name, value in asdict(config).items() if name not in ("out", "threads", "quick")}
    return {
        "train": found,
        "optimiser": "none: forward and backward, gradients accumulated in place",
        "setup": {**setup, "sample": index.shape[1], "labels": config.frames + config.text},
        **environment(config.device),
    }


def measure_steps(
    config: BenchTrain, rivals: list[Competitor], ids: Tensor, index: Tensor, *, all_logits: bool
) -> dict[str, dict[str, Any]]:
    """Every competitor against dense: time, activation peak, FLOPs."""
    llm, text = rivals[0].model.config, config.frames + config.text
    shape = (text, config.frames, config.tokens, index.shape[1] if all_logits else text)

    def step_of(rival: Competitor) -> Callable[[], None]:
        return lambda: train_step(rival.model, ids, index, depth=rival.plan is not None, all_logits=all_logits)

    runs = {rival.name: step_of(rival) for rival in rivals}
    peak = {}
    for name, run in runs.items():  # which also warms up
        with PeakMemory() as memory:
            run()
        peak[name] = memory.peak
    timing = time_in_turn(runs, config.steps, warmup=0, wait=wait_for(config.device))
    cost = {rival.name: flops.train_flops(llm, rival.plan, *shape) for rival in rivals}
    found = {}
    for name in runs:
        turns = timing[name].ratios_to(timing[DENSE])
        found[name] = {
            **against(statistics.median(turns), cost[name] / cost[DENSE]),
            "ratio_of_each_turn": sorted(turns),
            "ratio_cpu_time": timing[name].cpu_ms / timing[DENSE].cpu_ms,
            "ms": timing[name].wall_ms,
            "flops": cost[name],
            "flops_per_second": 1e3 * cost[name] / timing[name].wall_ms,
            "activation_peak": peak[name] / peak[DENSE],
            "activation_peak_mib": peak[name] / 2**20,
        }
        told = found[name]
        progress(
            f"  {name:<18} {told['ms']:8.0f} ms, ratio {told['ratio']:.3f}, FLOPs {told['flops_bound']:.3f}, "
            f"{told['times_bound']:.3f} of the bound; activation peak {told['activation_peak']:.3f}"
        )
    return found
