"""`videollm-mod bench depth`: its flags, what is refused, where the result goes. `bench.depth` measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from videollm_mod.bench.front import DecoderSizes, finished, on_threads, refuse_nonsense
from videollm_mod.flags import PLANS


@dataclass(frozen=True)
class BenchDepth(DecoderSizes):
    """Dense against routed: time, memory and FLOPs of a Llama-like decoder with random weights."""

    plan: Annotated[str, tyro.conf.arg(help=f"Which layers route: {PLANS}.")] = "interleaved"
    keep: float = 0.2
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]."""
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
    refuse_nonsense(config)
    from videollm_mod.bench.depth import measure
    from videollm_mod.bench.measure import progress

    if config.quick:
        config = small(config)
        progress("--quick: a small model and short streams, to see that it works; the ratios below mean nothing")
    return finished(config, on_threads(config.threads, lambda: measure(config)))
