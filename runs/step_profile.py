"""Where a streamed frame's step goes on a CPU, dense and routed: products, attention, small operators, Python.

    python runs/step_profile.py --out docs/results/step_profile.json      # on a quiet machine, 10 GB
    python runs/step_profile.py --layers 2 --frames 50 --repeats 2        # to see that it works

The decoders are those of `bench stream`, on the same random weights, each stream `--frames` frames old. Both are
stepped in turn under PyTorch's profiler; only operators that a step calls itself count, not those within them. Beside
the milliseconds stand what the products and the attention do a second, in FLOPs and in bytes of weights and of stored
keys and values, and what the machine reaches in a large product and in reading a large tensor. The last stdout line is
the JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import LlamaConfig

from videollm_mod.bench.measure import environment, progress, rounded, time_in_turn
from videollm_mod.bench.models import DENSE, Stream, competitors, parse_route, weights_read
from videollm_mod.depth import flops
from videollm_mod.files import atomic_write

PRODUCTS = {"mkldnn::_linear_pointwise", "aten::linear"}
ATTENTION = {"aten::scaled_dot_product_attention", "aten::matmul", "aten::softmax", "aten::masked_fill_"}


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
        parts = dict.fromkeys(("products", "attention", "operators"), 0.0)
        for child in event.cpu_children:
            kind = "products" if child.name in PRODUCTS else "attention" if child.name in ATTENTION else "operators"
            parts[kind] += child.time_range.elapsed_us() / 1e3
        whole = event.time_range.elapsed_us() / 1e3
        found[event.name.removeprefix("step ")].append(parts | {"python": whole - sum(parts.values()), "step": whole})
    return {
        name: {kind: statistics.median(step[kind] for step in steps) for kind in steps[0]}
        for name, steps in found.items()
    }


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2816)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--route", default="interleaved@0.2")
    parser.add_argument("--tokens", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    llm = LlamaConfig(
        hidden_size=flags.width,
        intermediate_size=flags.inner,
        num_hidden_layers=flags.layers,
        num_attention_heads=flags.heads,
        num_key_value_heads=flags.heads,
        vocab_size=4096,
    )
    rivals = {rival.name: rival for rival in competitors(llm, {flags.route: parse_route(flags.route)})}
    result: dict[str, Any] = {"reached": reached(), "steps": {}}
    for tokens in flags.tokens:
        streams = {name: Stream.of(rivals[name], tokens, flags.frames) for name in (DENSE, flags.route)}
        told = parts_of(streams, flags.repeats)
        for name, stream in streams.items():
            work, ms = work_of(stream, rivals[name].plan, tokens), told[name]
            ms |= work
            ms["products_flops_per_second"] = 1e3 * work["products_flops"] / ms["products"]
            ms["products_bytes_per_second"] = 1e3 * work["weights_bytes"] / ms["products"]
            ms["attention_flops_per_second"] = 1e3 * work["attention_flops"] / ms["attention"]
            ms["attention_bytes_per_second"] = 1e3 * work["kv_bytes"] / ms["attention"]
            parts = ", ".join(f"{kind} {ms[kind]:.1f}" for kind in ("products", "attention", "operators", "python"))
            progress(f"{tokens} tokens, {name}: {ms['step']:.1f} ms; {parts}")
        told["ratio"] = {kind: told[flags.route][kind] / of_dense for kind, of_dense in told[DENSE].items()}
        result["steps"][str(tokens)] = told
    result["setup"] = {key: value for key, value in vars(flags).items() if key != "out"}
    result |= environment()
    result = rounded(result)
    if flags.out is not None:
        with atomic_write(flags.out) as file:
            file.write(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
