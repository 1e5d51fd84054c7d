"""`videollm-mod bench flops`, `train`, `stream`, `decode`, `predict`, `report`: their flags, and what is refused.

What measures stands in the module of the same name; torch is imported when a command runs, not when its help is read.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from videollm_mod.bench.front import DecoderSizes, finished, keep, on_threads, refuse_nonsense
from videollm_mod.flags import PLANS

ROUTES = ("interleaved@0.1", "interleaved@0.2", "interleaved@0.5", "early-exit", "layer-skip")
LLM = "A published size such as llama-3-8b or qwen3-4b, or the path of a config.json."
ROUTE = f"Plans to compare with the dense one, each LAYERS@KEEP; LAYERS is one of {PLANS}."


@dataclass(frozen=True)
class BenchFlops:
    """What a pass, a training step and a stream cost, by formula and as PyTorch counts it, at true size."""

    llm: Annotated[str, tyro.conf.arg(help=LLM)] = "llama-3-8b"
    routes: Annotated[tuple[str, ...], tyro.conf.arg(help=ROUTE)] = ROUTES
    frames: int = 600
    """Frames of the pass, of the training sample and of the stream."""
    tokens: tuple[int, ...] = (10, 50)
    """Vision tokens per frame; one interval token comes on top."""
    text: int = 100
    """Text tokens besides the interval tokens; they and those are the labels of the training step."""
    out: Path | None = None
    """Write the JSON here, too."""


@dataclass(frozen=True)
class BenchTrain(DecoderSizes):
    """A training step: dense, routed at several ratios, early-exit, layer-skip, Transformers' own; random weights."""

    routes: Annotated[tuple[str, ...], tyro.conf.arg(help=ROUTE)] = ROUTES
    llm: Annotated[str, tyro.conf.arg(help=f"{LLM} Instead of the sizes below.")] = ""
    frames: int = 20
    """Frames of the sample; an interval token follows each."""
    tokens: int = 50
    """Vision tokens of a frame."""
    text: int = 60
    """Text tokens besides the interval tokens; they and those are the labels."""
    steps: int = 5
    """Timed steps of each; the median counts."""
    device: str = "cpu"
    """Where to run: cpu or cuda."""
    dtype: str = "float32"
    """Type of weights and arithmetic: float32, bfloat16 or float16."""


@dataclass(frozen=True)
class BenchStream(DecoderSizes):
    """Milliseconds per frame and KV bytes, early and late in a stream, for every plan against dense; random weights."""

    routes: Annotated[tuple[str, ...], tyro.conf.arg(help=ROUTE)] = ROUTES
    llm: Annotated[str, tyro.conf.arg(help=f"{LLM} Instead of the sizes below.")] = ""
    tokens: tuple[int, ...] = (10, 50)
    """Vision tokens per frame; one interval token comes on top."""
    frames: tuple[int, ...] = (100, 300, 600, 1200)
    """Where in a stream frames are timed: the last ones before that many."""
    steps: int = 10
    """Timed frames of each, for each filling."""
    fillings: int = 5
    """How often the caches are filled anew for each point; where they lie in memory moves a ratio a little."""
    device: str = "cpu"
    """Where to run: cpu or cuda."""
    dtype: str = "float32"
    """Type of weights and arithmetic: float32, bfloat16 or float16."""


@dataclass(frozen=True)
class BenchDecode:
    """Frames per second of our video reader on generated clips, against plain PyAV and, if it loads, torchcodec."""

    codecs: tuple[str, ...] = ("h264", "hevc", "vp9", "av1", "mpeg4", "mjpeg")
    """Codecs of the clips, of h264, hevc, vp8, vp9, av1, mpeg4, mjpeg."""
    sizes: tuple[str, ...] = ("640x360", "1280x720", "1920x1080")
    """Widths and heights of the clips."""
    seconds: float = 5.0
    """Length of each clip."""
    rate: int = 30
    """Frames per second of each clip."""
    fps: float = 2.0
    """What a model asks for; every frame is read in a second comparison."""
    repeats: int = 5
    """How often each reader reads each clip; the median counts."""
    threads: int = 0
    """Threads of FFmpeg for the two others that let one say so; 0: as it likes."""
    quick: bool = False
    """One small clip, to see that it works; its ratios mean nothing."""
    out: Path | None = None
    """Write the JSON here, too."""


@dataclass(frozen=True)
class BenchPredict:
    """What a model and a camera of your own will cost, by arithmetic: FLOPs, bytes, floors of latency, sessions."""

    llm: Annotated[str, tyro.conf.arg(help=LLM)] = "llama-3-8b"
    tokens: int = 10
    """Vision tokens of a frame; one interval token comes on top."""
    fps: float = 2.0
    """Frames per second of each camera."""
    hours: float = 1.0
    """How old the streams get; nothing is forgotten."""
    sessions: int = 1
    """Streams at the same time."""
    plan: Annotated[str, tyro.conf.arg(help=f"Which layers route: {PLANS}.")] = "interleaved"
    keep: float = 0.2
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]."""
    dtype: str = "bfloat16"
    """Weights: float32, bfloat16, float16, fp8, int8 or int4."""
    kv_dtype: str = ""
    """Caches, as --dtype; if not given, that of the weights, or bfloat16 where those are quantised."""
    card: str = ""
    """A card of bench/cards.py, such as h200, a100-80gb or rtx-4090; without one there are no floors."""
    memory: float | None = None
    """Memory of a card of your own, or what is left of it, in GB (1e9 bytes)."""
    bandwidth: float | None = None
    """Its memory bandwidth, in GB per second."""
    flops: float | None = None
    """Its peak of matrix products, in TFLOPS, of the type that is computed in."""
    out: Path | None = None
    """Write the JSON here, too."""


@dataclass(frozen=True)
class BenchReport:
    """Plots and one Markdown page of all results that are there."""

    results: Path = Path("docs/results")
    """Folder of the JSON files that the benches wrote."""
    out: Path = Path("docs/bench.md")
    """The page; its pictures go into a folder of that name beside it. Or a folder, which gets README.md."""


# --- commands --------------------------------------------------------------------------------------------------------


def bench_flops(config: BenchFlops) -> dict[str, Any]:
    """Analytic and counted, each plan against dense."""
    refuse_nonsense(config)
    from videollm_mod.bench.flops import measure

    return finished(config, measure(config))


def bench_train(config: BenchTrain) -> dict[str, Any]:
    """All competitors in one run, in turn."""
    if config.quick:
        config = replace(
            config, llm="", width=64, inner=176, layers=4, heads=2, vocabulary=64, frames=2, text=6, steps=2
        )
    refuse_nonsense(config)
    from videollm_mod.bench.train import measure

    return finished(config, on_threads(config.threads, lambda: measure(config)))


def bench_stream(config: BenchStream) -> dict[str, Any]:
    """Every plan paired with dense, point by point; --out has each point as soon as it is measured."""
    if config.quick:
        config = replace(
            config, llm="", width=64, inner=176, layers=4, heads=2, vocabulary=64, frames=(5, 10), steps=2, fillings=2
        )
    refuse_nonsense(config)
    from videollm_mod.bench.stream import measure

    return finished(config, on_threads(config.threads, lambda: measure(config, lambda told: keep(config, told))))


def bench_decode(config: BenchDecode) -> dict[str, Any]:
    """All readers on all clips, in turn."""
    if config.quick:
        config = replace(config, codecs=config.codecs[:1], sizes=("160x120",), seconds=1.0, rate=10, repeats=2)
    refuse_nonsense(config)
    from videollm_mod.bench.decode import measure

    return finished(config, measure(config))


def bench_predict(config: BenchPredict) -> dict[str, Any]:
    """Arithmetic alone; the statement goes to stderr, too."""
    refuse_nonsense(config)
    from videollm_mod.bench.llms import llm_config
    from videollm_mod.bench.measure import progress
    from videollm_mod.bench.predict import BYTES, Camera, predict
    from videollm_mod.depth.plan import DepthPlan, parse_layers
    from videollm_mod.types import InputError

    kv_dtype = config.kv_dtype or (config.dtype if config.dtype in ("float32", "float16") else "bfloat16")
    for flag, dtype in (("dtype", config.dtype), ("kv-dtype", kv_dtype)):
        if dtype not in BYTES:
            raise InputError(f"--{flag} '{dtype}' is unknown; take one of {', '.join(BYTES)}.")
    layers = parse_layers(config.plan)
    assert layers is not None  # only None stays None
    card, camera = _card(config), Camera(config.tokens, config.fps, config.hours)
    llm = llm_config(config.llm)
    found = predict(llm, DepthPlan(layers, config.keep), camera, config.sessions, card, config.dtype, kv_dtype)
    found["card"] = asdict(card) if card is not None else None
    if "statement" in found:
        progress(found["statement"])
    setup = {name: value for name, value in asdict(config).items() if name != "out"}
    return finished(config, {**found, "setup": {**setup, "kv_dtype": kv_dtype, "frames": camera.frames}})


def bench_report(config: BenchReport) -> dict[str, Any]:
    """The page's path, and of which results it tells."""
    from videollm_mod.bench.report import write_report

    return write_report(config.results, config.out)


def _card(config: BenchPredict) -> Any:
    """The card by name, with what was given by hand instead; or one of one's own; or None."""
    from videollm_mod.bench.cards import CARDS, Card
    from videollm_mod.types import InputError

    own = {"memory": config.memory, "bandwidth": config.bandwidth, "flops": config.flops}
    given = {name: value for name, value in own.items() if value is not None}
    for name, value in given.items():
        if not 0 < value < math.inf:  # also refuses NaN
            raise InputError(f"--{name} {value} is no size; give a number above 0.")
    scaled = {name: value * (1e12 if name == "flops" else 1e9) for name, value in given.items()}
    if not config.card:
        if not given:
            return None
        if len(given) < len(own):
            missing = next(name for name in own if name not in given)
            raise InputError(f"--{missing} is missing: a card of your own needs --memory, --bandwidth and --flops.")
        return Card(**scaled, source="given by hand")
    if config.card.lower() not in CARDS:
        names = ", ".join(CARDS)
        raise InputError(f"--card '{config.card}' is unknown; take one of {names}, or --memory, --bandwidth, --flops.")
    card = CARDS[config.card.lower()]
    if config.dtype == "float32" and config.flops is None:
        raise InputError(
            f"--card {config.card} is known by its FLOPs of bf16 alone; for --dtype float32 give --flops as well."
        )
    return (
        replace(card, **scaled, source=card.source + "; " + ", ".join(f"{name} by hand" for name in scaled))
        if (scaled)
        else card
    )
