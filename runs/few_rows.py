"""Where a small frame's step goes on a CPU: linear layers and attention of few rows, each in several ways, in turn.

    python runs/few_rows.py --out docs/results/few_rows.json     # on a quiet machine
    python runs/few_rows.py --layers 2 --keys 500 --repeats 5    # to see that it works

A streamed frame of 10 tokens has 11 rows, 3 of which a routed layer keeps (padded to 4: depth/layout.py, ROW_BLOCK).
All weights and caches of several layers are gone through, so that nothing stays in the processor's cache. Times are per
layer; CPU time beside wall time, because a busy machine disturbs it less. The last stdout line is the JSON.

    linear      the seven products of a Llama layer: as PyTorch has them, and laid out beforehand (packed.py)
    attention   Transformers' `sdpa` with the mask that a step has, and ours (attention.py); heads with keys of
                their own, and four that share them; `read` is a sum over all keys and values: no attention is faster
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from videollm_mod.attention import stream_attention
from videollm_mod.bench.front import finished
from videollm_mod.bench.measure import environment, progress, time_in_turn
from videollm_mod.packed import pack_linears


def linears(layers: int, width: int, inner: int) -> list[nn.ModuleList]:
    """q, k, v, o, gate, up, down of each layer."""
    shapes = [*[(width, width)] * 4, (width, inner), (width, inner), (inner, width)]
    return [nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes) for _ in range(layers)]


@torch.inference_mode()
def through(layers: list[nn.ModuleList], x: Tensor, wide: Tensor) -> None:
    for layer in layers:
        for linear in layer:
            linear(wide if linear.in_features == wide.shape[-1] else x)


def attention(
    rows: int, keys: int, shared: int, caches: list[tuple[Tensor, Tensor]]
) -> dict[str, Callable[[], object]]:
    """Of `rows` queries over `keys` entries; each head of keys serves `shared` heads of queries."""
    heads, e = caches[0][0].shape[1], caches[0][0].shape[3]
    module = nn.Module()
    module.num_key_value_groups = shared  # type: ignore[assignment]  # what Transformers' function asks its layer for
    q = torch.randn(1, heads, rows, e)
    mask = torch.ones(1, 1, rows, keys, dtype=torch.bool).tril(keys - rows)
    views = [(k[:, : heads // shared, :keys], v[:, : heads // shared, :keys]) for k, v in caches]

    @torch.inference_mode()
    def run(how: Callable[..., object]) -> None:
        for k, v in views:
            how(module, q, k, v, mask)

    @torch.inference_mode()
    def read() -> None:
        for k, v in views:  # a sum of everything: what reading alone takes
            k.sum(), v.sum()

    return {"transformers": lambda: run(sdpa_attention_forward), "ours": lambda: run(stream_attention), "read": read}


def time_linears(flags: argparse.Namespace) -> dict[str, Any]:
    """Each number of rows through all layers, plain and laid out."""
    plain = linears(flags.layers, flags.width, flags.inner)
    packed = linears(flags.layers, flags.width, flags.inner)
    for layer in packed:
        pack_linears(layer)
    runs: dict[str, Callable[[], object]] = {}
    for rows in flags.rows:
        x, wide = torch.randn(1, rows, flags.width), torch.randn(1, rows, flags.inner)
        runs[f"packed {rows}"] = partial(through, packed, x, wide)
        runs[f"plain {rows}"] = partial(through, plain, x, wide)
    found = per_layer(runs, flags.layers, flags.repeats)
    for name, told in found.items():
        progress(f"linear {name:<10} {told['ms']:.3f} ms a layer, {told['cpu_ms']:.3f} of CPU")
    return found


def per_layer(runs: dict[str, Callable[[], object]], layers: int, repeats: int) -> dict[str, Any]:
    timing = time_in_turn(runs, repeats)
    return {
        name: {"ms": t.wall_ms / layers, "cpu_ms": t.cpu_ms / layers, "least_cpu_ms": min(t.cpu) / layers}
        for name, t in timing.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2816)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--keys", type=int, nargs="+", default=[1100, 1800, 3300, 6600])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 3, 4, 8, 11, 12])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(0)
    result: dict[str, Any] = {"linear": time_linears(flags)}
    e = flags.width // flags.heads
    shape = 1, flags.heads, max(flags.keys), e
    caches = [(torch.randn(shape), torch.randn(shape)) for _ in range(flags.layers)]
    result["attention"] = {}
    for shared in (1, 4):
        ages: dict[str, dict[str, Any]] = {}
        result["attention"][f"{shared} heads share keys"] = ages
        for keys, rows in itertools.product(flags.keys, flags.rows):
            told = per_layer(attention(rows, keys, shared, caches), flags.layers, flags.repeats)
            ages.setdefault(str(keys), {})[str(rows)] = told
            shown = ", ".join(f"{name} {value['ms']:.3f} ({value['cpu_ms']:.3f})" for name, value in told.items())
            progress(f"attention, {rows} rows, {keys} keys, shared by {shared}: {shown} ms a layer (CPU)")
    result["setup"] = {key: value for key, value in vars(flags).items() if key != "out"}
    print(json.dumps(finished(flags, result | environment())))


if __name__ == "__main__":
    main()
