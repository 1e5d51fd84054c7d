"""`videollm-mod bench engine`: its flags, what is refused, where the result goes. `bench.engine` measures."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from videollm_mod.flags import PLANS, check_keep, check_least


@dataclass(frozen=True)
class BenchEngine:
    """Many sessions in one engine against the same in turn, on a Llama-like decoder with random weights."""

    sessions: tuple[int, ...] = (1, 4, 16, 64)
    """How many streams at once; measured for each."""
    plan: Annotated[str, tyro.conf.arg(help=f"Which layers route: {PLANS}.")] = "interleaved"
    keep: float = 0.2
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]."""
    tokens: int = 10
    """Vision tokens per frame, 1 + a square; one interval token comes on top."""
    width: int = 1024
    """Hidden size d."""
    inner: int = 2816
    """Width of the gated MLP."""
    layers: int = 16
    """Decoder layers."""
    heads: int = 16
    """Attention heads, of queries and of keys."""
    vocabulary: int = 4096
    """Words that the decoder knows."""
    frames: int = 100
    """Frames that each stream has seen before it is timed."""
    steps: int = 5
    """Timed rounds of one frame of every stream, engine and in turn alternating; the median counts."""
    seconds: float = 8.0
    """Length of the stretch at --fps, with frames that come one by one, in which latency is measured."""
    fps: float = 2.0
    """Frames per second of each stream there."""
    threads: int = min(2, os.cpu_count() or 1)
    """CPU threads of PyTorch."""
    quick: bool = False
    """A small model and few streams, to see that it works; its ratios mean nothing."""
    out: Path | None = None
    """Write the JSON here, too."""


def small(config: BenchEngine) -> BenchEngine:
    """What `quick` measures."""
    return replace(
        config,
        sessions=tuple(n for n in config.sessions if n <= 4) or (1, 4),
        plan="full" if config.plan == "full" else "interleaved",
        width=64,
        inner=176,
        layers=2,
        heads=2,
        vocabulary=64,
        frames=5,
        steps=2,
        seconds=1.0,
    )


def bench_engine(config: BenchEngine) -> dict[str, Any]:
    """Run all measurements; returns the JSON object whose keys `docs/` and others rely on."""
    _refuse_nonsense(config)  # before minutes are spent
    import torch

    from videollm_mod.bench.engine import measure
    from videollm_mod.bench.measure import progress, rounded
    from videollm_mod.files import atomic_write

    if config.quick:
        config = small(config)
        progress("--quick: a small model and few streams, to see that it works; the ratios below mean nothing")
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        result = {**rounded(measure(config)), "quick": config.quick}
    finally:
        torch.set_num_threads(before)
    if config.out is not None:
        with atomic_write(config.out) as file:
            file.write(json.dumps(result, indent=2) + "\n")
    return result


def _refuse_nonsense(config: BenchEngine) -> None:
    from videollm_mod.depth.plan import DepthPlan, parse_layers
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError

    if not config.sessions:
        raise InputError("--sessions is empty; give one number or more.")
    check_least(1, **{name: value for name, value in asdict(config).items() if type(value) is int})
    check_least(1, sessions=min(config.sessions))
    check_keep(config.keep)
    for name, value, most in (("seconds", config.seconds, 3600), ("fps", config.fps, 1000)):
        if not 0 < value <= most:
            raise InputError(f"--{name} {value:g} is out of range; give a number above 0, up to {most}.")
    if math.isqrt(config.tokens - 1) ** 2 != config.tokens - 1 or config.tokens < 2:
        raise InputError(f"--tokens {config.tokens} is not 1 + a square; give 10 or 50, for grids of 3x3 or 7x7.")
    if config.width % (2 * config.heads):
        raise InputError(
            f"--width {config.width} does not split into {config.heads} heads of even size; "
            f"give a multiple of {2 * config.heads}, or other --heads."
        )
    layers = parse_layers(config.plan)
    assert layers is not None  # only None stays None
    DepthPlan(layers, config.keep).routed(config.layers)
    if config.out is not None:
        check_writable(config.out)
