"""`videollm-mod bench depth`: its flags, what is refused, where the result goes. `bench.depth` measures."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from videollm_mod.flags import PLANS, check_keep, check_least


@dataclass(frozen=True)
class BenchDepth:
    """Dense against routed: time, memory and FLOPs of a Llama-like decoder with random weights."""

    plan: Annotated[str, tyro.conf.arg(help=f"Which layers route: {PLANS}.")] = "interleaved"
    keep: float = 0.2
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]."""
    width: int = 1024
    """Hidden size d."""
    inner: int = 2816
    """Width of the gated MLP."""
    layers: int = 16
    """Decoder layers."""
    heads: int = 16
    """Attention heads, of queries and of keys."""
    vocabulary: int = 4096
    """Words that the decoder knows; they weigh in the training step's logits."""
    train_frames: int = 20
    """Frames of the training sample, of 50 tokens; each is followed by an interval token."""
    train_text: int = 60
    """Text tokens of the training sample; they and the interval tokens are the labels."""
    train_steps: int = 5
    """Timed training steps of each; the median counts."""
    tokens: tuple[int, ...] = (10, 50)
    """Vision tokens per frame of the streams; one interval token comes on top."""
    frames: tuple[int, ...] = (100, 300, 600)
    """Where in a stream a frame is timed: after that many frames."""
    stream_steps: int = 5
    """Timed frames up to each of these points, for each filling."""
    fillings: int = 5
    """How often the caches are filled anew for each point: where they lie in memory moves a ratio by some hundredths.
    The median of all timed frames counts."""
    threads: int = min(2, os.cpu_count() or 1)
    """CPU threads of PyTorch."""
    quick: bool = False
    """A small model and short streams, to see that it works; its ratios mean nothing."""
    out: Path | None = None
    """Write the JSON here, too."""


def small(config: BenchDepth) -> BenchDepth:
    """What `quick` measures: two layers, or as many as the plan names."""
    from videollm_mod.depth.plan import parse_layers

    named = parse_layers(config.plan)
    needed = max(named) + 1 if isinstance(named, tuple) else 0
    return replace(
        config,
        width=64,
        inner=176,
        layers=min(max(2, needed), config.layers),
        heads=2,
        vocabulary=64,
        train_frames=2,
        train_steps=3,
        frames=(5, 10),
        stream_steps=2,
        fillings=2,
    )


def bench_depth(config: BenchDepth) -> dict[str, Any]:
    """Run all measurements; returns the JSON object whose keys `docs/` and others rely on."""
    _refuse_nonsense(config)  # before minutes are spent
    import torch

    from videollm_mod.bench.depth import measure
    from videollm_mod.bench.measure import progress, rounded
    from videollm_mod.files import atomic_write

    if config.quick:
        config = small(config)
        progress("--quick: a small model and short streams, to see that it works; the ratios below mean nothing")
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        result = {**rounded(measure(config)), "quick": config.quick}
    finally:
        torch.set_num_threads(before)
    if config.quick:
        progress("--quick: the ratios above mean nothing; leave --quick out to measure")
    if config.out is not None:
        with atomic_write(config.out) as file:
            file.write(json.dumps(result, indent=2) + "\n")
    return result


def _refuse_nonsense(config: BenchDepth) -> None:
    from videollm_mod.depth.plan import DepthPlan, parse_layers
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError

    for name, value in asdict(config).items():
        if isinstance(value, tuple):
            if not value:
                raise InputError(f"--{name} is empty; give one number or more.")
            check_least(1, **{name: min(value)})
        elif type(value) is int:
            check_least(1, **{name: value})
    check_keep(config.keep)
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
