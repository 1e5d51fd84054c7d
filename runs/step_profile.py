"""Where a streamed frame's step and a training step go on a CPU, dense and routed: products, attention, the rest.

    python runs/step_profile.py --out docs/results/step_profile.json      # on a quiet machine, 10 GB
    python runs/step_profile.py --quick                                   # to see that it works

The decoders are those of `bench stream`, on the same random weights, each stream `--frames` frames old. Both are
stepped in turn under PyTorch's profiler; only operators that a step calls itself count, not those within them. Beside
the milliseconds stand what the products and the attention do a second, in FLOPs and in bytes of weights and of stored
keys and values, and what the machine reaches in a large product and in reading a large tensor.

The training step is that of `bench train` with logits at labels; there an operator counts by the time that it spends
itself, wherever it is called, for the backward pass is not called by the step. The last stdout line is the JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
import tyro
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from videollm_mod.bench.front import DecoderSizes, finished, on_threads
from videollm_mod.bench.measure import environment, progress, time_in_turn
from videollm_mod.bench.models import (
    DENSE,
    Competitor,
    Stream,
    competitors,
    decoder_config,
    parse_route,
    train_step,
    training_sample,
    weights_read,
)
from videollm_mod.depth import flops

PRODUCTS = {"mkldnn::_linear_pointwise", "aten::linear"}
PRODUCTS_ITSELF = {"mkldnn::_linear_pointwise", "aten::mm", "aten::addmm", "aten::bmm"}
TRAIN_TOKENS = 50, 60  # of a frame, of text, in the training step's sample
KINDS = ("products", "attention", "operators", "python")
ATTENTION = {"aten::scaled_dot_product_attention", "aten::matmul", "aten::softmax", "aten::masked_fill_"}


@dataclass(frozen=True)
class StepProfile(DecoderSizes):
    """Where a streamed frame's step goes on a CPU, dense and routed; random weights."""

    llm: str = ""
    """A published size or the path of a config.json, instead of the sizes below."""
    route: str = "interleaved@0.2"
    """The plan beside the dense one, LAYERS@KEEP."""
    tokens: tuple[int, ...] = (10, 50)
    """Vision tokens per frame; one interval token comes on top."""
    frames: int = 600
    """How old the streams are."""
    repeats: int = 9
    """Profiled steps of each; medians count."""
    train_frames: int = 20
    """Frames of 50 tokens in the training step's sample, with 60 tokens of text."""
    train_repeats: int = 5
    """Profiled training steps of each."""


def parts_of(streams: dict[str, Stream], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, by kind: medians over the repeats, streams in turn."""
    for stream in streams.values():
        stream.step()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            for name, stream in streams.items():
                with record_function(f"step {name}"):
                    stream.step()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in streams}
    for event in profiler.events():
        if not event.name.startswith("step "):
            continue
        parts = dict.fromkeys(KINDS[:3], 0.0)
        for child in event.cpu_children:
            kind = "products" if child.name in PRODUCTS else "attention" if child.name in ATTENTION else "operators"
            parts[kind] += child.time_range.elapsed_us() / 1e3
        whole = event.time_range.elapsed_us() / 1e3
        found[event.name.removeprefix("step ")].append(parts | {"python": whole - sum(parts.values()), "step": whole})
    return {name: _medians(steps) for name, steps in found.items()}


def training_parts(rivals: dict[str, Competitor], sample: tuple[Tensor, Tensor], repeats: int) -> dict[str, Any]:
    """The same of a training step on `sample`, (ids, index); rivals in turn. Gradients are added up in place."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in rivals}
    for turn in range(1 + repeats):
        for name, rival in rivals.items():
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                start = time.perf_counter()
                train_step(rival.model, *sample)
                whole = 1e3 * (time.perf_counter() - start)
            parts = dict.fromkeys(KINDS[:3], 0.0)
            for event in profiler.key_averages():
                attends = "scaled_dot_product" in event.key
                kind = "attention" if attends else "products" if event.key in PRODUCTS_ITSELF else "operators"
                parts[kind] += event.self_cpu_time_total / 1e3
            if turn:  # the first ones warm up
                found[name].append(parts | {"python": max(whole - sum(parts.values()), 0.0), "step": whole})
    return {name: _medians(steps) for name, steps in found.items()}


def _medians(steps: list[dict[str, float]]) -> dict[str, float]:
    return {kind: statistics.median(step[kind] for step in steps) for kind in steps[0]}


def _ratios(told: dict[str, dict[str, float]], route: str) -> dict[str, float]:
    return {kind: told[route][kind] / told[DENSE][kind] for kind in ("step", *KINDS)}


def work_of(stream: Stream, plan: Any, tokens: int) -> dict[str, float]:
    """FLOPs of products and of attention, bytes of weights and of stored entries, in one step."""
    llm, step = stream.model.config, flops.Step(1, (tokens,), 1)
    old = flops.kv_entries(llm, plan, stream.frame, stream.frame, tokens)
    products = flops.step_flops(llm, plan, step, [0] * len(old))
    return {
        "products_flops": products,  # with the attention of the step's own few rows among themselves: next to nothing
        "attention_flops": flops.step_flops(llm, plan, step, old) - products,
        "weights_bytes": weights_read(stream.model),
        "kv_bytes": stream.cache.kv_bytes,
    }


@torch.inference_mode()
def reached(megabytes: int = 1024, side: int = 2048) -> dict[str, float]:
    """What this machine does a second at best: FLOPs of a large product, bytes of a tensor that no cache holds."""
    large, factor = torch.randn(megabytes * 2**18), torch.randn(side, side)
    timing = time_in_turn({"read": lambda: large.sum(), "product": lambda: factor @ factor}, 9)
    return {
        "bytes_per_second": 1e3 * large.nbytes / timing["read"].wall_ms,
        "flops_per_second": 2e3 * side**3 / timing["product"].wall_ms,
    }


def measure(config: StepProfile) -> dict[str, Any]:
    """{"steps": {tokens: {dense, route, "ratio": {kind: ...}}}, "reached": ...}, and what it was measured on."""
    llm = decoder_config(config)
    rivals = {rival.name: rival for rival in competitors(llm, {config.route: parse_route(config.route)})}
    steps: dict[str, Any] = {}
    for tokens in config.tokens:
        streams = {name: Stream.of(rivals[name], tokens, config.frames) for name in (DENSE, config.route)}
        told = steps[str(tokens)] = parts_of(streams, config.repeats)
        for name, stream in streams.items():
            work, ms = work_of(stream, rivals[name].plan, tokens), told[name]
            ms |= work
            ms["products_flops_per_second"] = 1e3 * work["products_flops"] / ms["products"]
            ms["products_bytes_per_second"] = 1e3 * work["weights_bytes"] / ms["products"]
            ms["attention_flops_per_second"] = 1e3 * work["attention_flops"] / ms["attention"]
            ms["attention_bytes_per_second"] = 1e3 * work["kv_bytes"] / ms["attention"]
            parts = ", ".join(f"{kind} {ms[kind]:.1f}" for kind in KINDS)
            progress(f"{tokens} tokens, {name}: {ms['step']:.1f} ms; {parts}")
        told["ratio"] = _ratios(told, config.route)
    setup = {name: value for name, value in asdict(config).items() if name not in ("out", "threads", "quick")}
    train = measure_training(config, {name: rivals[name] for name in (DENSE, config.route)})
    return {"reached": reached(), "steps": steps, "train": train, "setup": setup, **environment()}


def measure_training(config: StepProfile, rivals: dict[str, Competitor]) -> dict[str, Any]:
    """{dense, route, "ratio": {kind: ...}} of a training step, with the FLOPs of each and of its attention alone."""
    llm, frames, (tokens, text) = rivals[DENSE].model.config, config.train_frames, TRAIN_TOKENS
    for rival in rivals.values():
        rival.model.train().requires_grad_(True)
    for weight in rivals[DENSE].model.parameters():  # the gradients of all, which share them
        weight.grad = torch.zeros_like(weight)
    told = training_parts(rivals, training_sample(frames, tokens, text, llm.vocab_size), config.train_repeats)
    for name, rival in rivals.items():
        told[name]["flops"] = flops.train_flops(llm, rival.plan, text + frames, frames, tokens, text + frames)
        told[name]["flops_per_second"] = 1e3 * told[name]["flops"] / told[name]["step"]
        progress(f"training step, {name}: " + ", ".join(f"{kind} {told[name][kind]:.0f} ms" for kind in KINDS))
    return {**told, "ratio": _ratios(told, config.route)}


def main(config: StepProfile) -> None:
    if config.quick:
        config = replace(
            config,
            width=64,
            inner=160,
            layers=4,
            heads=4,
            vocabulary=300,
            frames=50,
            repeats=2,
            train_frames=4,
            train_repeats=2,
        )
    result = on_threads(config.threads, lambda: measure(config))
    print(json.dumps(finished(config, result)))


if __name__ == "__main__":
    main(tyro.cli(StepProfile))
