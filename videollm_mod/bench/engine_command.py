"""`videollm-mod bench engine`: its flags, what is refused, where the result goes. `bench.engine` measures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from videollm_mod.bench.front import DecoderSizes, finished, keep, on_threads, refuse_nonsense
from videollm_mod.bench.fronts import LLM
from videollm_mod.flags import PLANS


@dataclass(frozen=True)
class BenchEngine(DecoderSizes):
    """Many sessions in one engine against the same in turn, on a Llama-like decoder with random weights."""

    sessions: tuple[int, ...] = (1, 4, 16, 64)
    """How many streams at once; measured for each."""
    llm: Annotated[str, tyro.conf.arg(help=f"{LLM} Instead of the sizes above.")] = ""
    plan: Annotated[str, tyro.conf.arg(help=f"Which layers route: {PLANS}.")] = "interleaved"
    keep: float = 0.2
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]."""
    tokens: int = 10
    """Vision tokens per frame, 1 + a square; one interval token comes on top."""
    frames: int = 100
    """Frames that each stream has seen before it is timed."""
    steps: int = 5
    """Timed rounds of one frame of every stream, engine and in turn alternating; the median counts."""
    seconds: float = 8.0
    """Length of the stretch at --fps, with frames that come one by one, in which latency is measured."""
    fps: float = 2.0
    """Frames per second of each stream there."""
    device: str = "cpu"
    """Where to run: cpu or cuda."""
    dtype: str = "float32"
    """Type of weights and arithmetic: float32, bfloat16 or float16."""


def small(config: BenchEngine) -> BenchEngine:
    """What `quick` measures."""
    return replace(
        config,
        sessions=tuple(n for n in config.sessions if n <= 4) or (1, 4),
        llm="",
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
    """Run all measurements; returns the JSON object whose keys `docs/` and others rely on. --out has it as it grows."""
    refuse_nonsense(config)
    from videollm_mod.types import InputError

    if math.isqrt(config.tokens - 1) ** 2 != config.tokens - 1 or config.tokens < 2:
        raise InputError(f"--tokens {config.tokens} is not 1 + a square; give 10 or 50, for grids of 3x3 or 7x7.")
    from videollm_mod.bench.engine import measure
    from videollm_mod.bench.measure import progress

    if config.quick:
        config = small(config)
        progress("--quick: a small model and few streams, to see that it works; the ratios below mean nothing")
    return finished(config, on_threads(config.threads, lambda: measure(config, lambda told: keep(config, told))))
