"""Where a small frame's step goes on a CPU: linear layers and attention of few rows, each in several ways, in turn.

    python runs/few_rows.py --out docs/results/few_rows.json     # two minutes, on a quiet machine
    python runs/few_rows.py --layers 2 --keys 500 --repeats 5    # to see that it works

A streamed frame of 10 tokens has 11 rows, 3 of which a routed layer keeps (padded to 4: depth/layout.py, ROW_BLOCK).
All weights and caches of several layers are gone through, so that nothing stays in the processor's cache. Times are per
layer; CPU time beside wall time, because a busy machine disturbs it less. The last stdout line is the JSON.

    linear      the seven products of a Llama layer: as PyTorch has them, and laid out beforehand (packed.py)
    attention   `sdpa`: with the mask that a routed or dense layer gives it; `matmul`: two products and a softmax, and
                only the step's own keys masked, since every query sees all older ones
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
from torch import Tensor, nn

from videollm_mod.bench.measure import environment, progress, rounded, time_in_turn
from videollm_mod.files import atomic_write
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


def with_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """(1, heads, rows, e) x (1, heads, keys, e); mask (1, 1, rows, keys) bool."""
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def with_matmul(q: Tensor, k: Tensor, v: Tensor, own: Tensor) -> Tensor:
    """The same; own (rows, rows): 0 where a query sees a key of its own step, -inf where not."""
    scores = torch.matmul(q * (1 / math.sqrt(q.shape[-1])), k.transpose(-1, -2))  # (1, heads, rows, keys)
    scores[..., -own.shape[1] :] += own
    return torch.matmul(scores.softmax(-1), v)


def attention(rows: int, keys: int, caches: list[tuple[Tensor, Tensor]]) -> dict[str, Callable[[], object]]:
    heads, e = caches[0][0].shape[1], caches[0][0].shape[3]
    q = torch.randn(1, heads, rows, e)
    own = torch.full((rows, rows), -math.inf).triu(1)
    mask = torch.ones(1, 1, rows, keys, dtype=torch.bool)
    mask[..., -rows:] = own == 0
    views = [(k[:, :, :keys], v[:, :, :keys]) for k, v in caches]

    @torch.inference_mode()
    def run(how: Callable[..., Tensor], seen: Tensor) -> None:
        for k, v in views:
            how(q, k, v, seen)

    @torch.inference_mode()
    def read() -> None:
        for k, v in views:  # a sum of everything: what reading alone takes
            k.sum(), v.sum()

    return {"sdpa": lambda: run(with_sdpa, mask), "matmul": lambda: run(with_matmul, own), "read": read}


def time_linears(flags: argparse.Namespace) -> dict[str, Any]:
    """Each number of rows through all layers, plain and laid out."""
    plain = linears(flags.layers, flags.width, flags.inner)
    packed = linears(flags.layers, flags.width, flags.inner)
    for layer in packed:
        pack_linears(layer)
    runs: dict[str, Callable[[], object]] = {}
    for rows in flags.rows:
        x, wide = torch.randn(1, rows, flags.width), torch.randn(1, rows, flags.inner)
        runs[f"packed {rows}"] = lambda x=x, wide=wide: through(packed, x, wide)
        runs[f"plain {rows}"] = lambda x=x, wide=wide: through(plain, x, wide)
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
    caches = [torch.randn(2, 1, flags.heads, max(flags.keys), e).unbind() for _ in range(flags.layers)]
    result["attention"] = {}
    for keys in flags.keys:
        result["attention"][str(keys)] = {}
        for rows in flags.rows:
            told = per_layer(attention(rows, keys, caches), flags.layers, flags.repeats)
            result["attention"][str(keys)][str(rows)] = told
            shown = ", ".join(f"{name} {value['ms']:.3f} ({value['cpu_ms']:.3f})" for name, value in told.items())
            progress(f"attention, {rows} rows, {keys} keys: {shown} ms a layer (CPU)")
    result["setup"] = {key: value for key, value in vars(flags).items() if key != "out"}
    result |= environment()
    result = rounded(result)
    if flags.out is not None:
        with atomic_write(flags.out) as file:
            file.write(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
