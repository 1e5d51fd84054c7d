"""The cells of `bench reductions`: what a model says with a reduction in it, what that costs, and the plot.

Quality is that of the world's test split, as `eval world` has it; a live session runs a method's causal form. Time,
FLOPs and KV bytes are those of the newest frames of one long silent stream, pictures in, decision out. A method's
signals and choice are part of that, and told apart: by the tower with and without, and by the choice alone.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videollm_mod.bench.measure import environment, progress, rounded, time_in_turn
from videollm_mod.bench.reductions_command import BenchReductions
from videollm_mod.depth import DepthPlan
from videollm_mod.evaluate.programs import alone
from videollm_mod.evaluate.streams import Watched, run_jobs, watch_both
from videollm_mod.evaluate.summary import summarise
from videollm_mod.files import atomic_write
from videollm_mod.loading import find
from videollm_mod.model import StreamingVideoLM, load
from videollm_mod.packed import unpack_linears
from videollm_mod.reductions import methods, reducing
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame, InputError
from videollm_mod.world import WorldConfig, WorldStream, make_stream

METRICS = ("f1", "timing_f1", "lm_ppl", "question_accuracy", "false_alarms_per_minute")
DENSE, ROUTED = DepthPlan("full"), DepthPlan("interleaved", keep=0.2)


@dataclass(frozen=True)
class Cell:
    """One setting: a reduction, or none, and a depth plan."""

    name: str
    keep: float
    plan: DepthPlan
    reduction: dict[str, Any] | None  # as `Reduction.to_dict` has it


def cells(config: BenchReductions) -> Iterator[Cell]:
    """No reduction; depth routing; every method by itself; every method with depth routing."""
    yield Cell("dense", 1.0, DENSE, None)
    for keep in config.keep:
        yield Cell(f"depth routing {keep:g}", keep, replace(ROUTED, keep=keep), None)
    wanted = {name: kind for name, kind in methods().items() if not config.only or name in config.only}
    for name, kind in wanted.items():
        for keep in config.keep:
            yield Cell(f"{name} {keep:g}", keep, DENSE, kind(keep=keep).to_dict())
    for name, kind in wanted.items():
        reduction = kind(keep=config.pairs).to_dict()
        yield Cell(f"{name} {config.pairs:g} + depth routing 0.2", config.pairs, ROUTED, reduction)


def fingerprint(model: str) -> str:
    """Of a model's weights: a result belongs to them, not to a name."""
    digest = hashlib.sha256()
    for path in sorted(find(model).glob("*.safetensors")):
        with path.open("rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()[:12]


def fill(config: BenchReductions) -> dict[str, Any]:
    """All cells, from their files where they are there; `{"cells": [...], ...}`."""
    found, missing, weights = [], 0, fingerprint(config.model)
    for cell in cells(config):
        path = config.home / f"{_key(cell, config, weights)}.json"
        if path.is_file():
            found.append(json.loads(path.read_text(encoding="utf-8")))
        elif config.page_only:
            missing += 1
        else:
            found.append(_measure(cell, config))
            config.home.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(found[-1], indent=1) + "\n")
            progress(_line(found[-1]))
    return {
        "cells": found,
        "missing": missing,
        "model": config.model,
        "streams": config.streams,
        "seconds": config.seconds,
        "quick": config.quick,
        **environment(),
    }


def _key(cell: Cell, config: BenchReductions, weights: str) -> str:
    """A cell's fingerprint: its result belongs to it only while this is the same."""
    plan = cell.plan.to_dict()
    setting = [weights, cell.name, plan, cell.reduction, config.streams, config.seconds, config.frames]
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]


def _measure(cell: Cell, config: BenchReductions) -> dict[str, Any]:
    """A cell's numbers, or why it has none."""
    told = {"name": cell.name, "keep": cell.keep, "plan": cell.plan.to_dict(), "reduction": cell.reduction}
    model = load(config.model, depth=cell.plan)
    try:
        with reducing(model, cell.reduction) as within:
            if within is not None:
                within.check_stream()
            cost = measure_cost(model, config)
            if within is not None:
                cost |= measure_own(model, config)
        world = WorldConfig(seconds=config.seconds, fps=model.settings.fps, size=model.encoder.tower.image_size)
        jobs = [(make_stream("test", number, world), cell.reduction) for number in range(config.streams)]
        watched = run_jobs(model, watch_reduced, jobs, workers=config.workers, title=cell.name)
    except InputError as error:  # the model's tower, or a live stream, cannot give what the method needs
        return {**told, "refused": str(error)}
    summary = summarise(watched, model.settings.threshold)
    numbers = {name: summary[name] for name in METRICS}
    return rounded({**told, **numbers, "f1_interval": summary["intervals"]["f1"], **cost})


def watch_reduced(model: StreamingVideoLM, job: tuple[WorldStream, dict[str, Any] | None]) -> Watched:
    """`watch_both` with a reduction in the model, which acts on one stream at a time; for worker processes, too."""
    stream, reduction = job
    with reducing(model, reduction):
        return alone(watch_both(model, stream))


# -- what it costs -----------------------------------------------------------------------------------------------------


def measure_cost(model: StreamingVideoLM, config: BenchReductions) -> dict[str, Any]:
    """Time and FLOPs of the newest frame of a silent stream, KV bytes behind it and as a share of the dense cache's."""
    film = _film(model, config)
    session = StreamSession(model, threshold=0.0, window=float("inf"))
    for frame in film[: -config.repeats - 1]:
        session.push(frame)
    seconds = []
    for frame in film[-config.repeats - 1 : -1]:
        began = time.perf_counter()
        session.push(frame)
        seconds.append(time.perf_counter() - began)
    unpack_linears(model)  # whose products, and the CPU's fast attention, the counter does not know
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        session.push(film[-1])
    state = session.state()
    return {
        "ms_per_frame": 1e3 * statistics.median(seconds),
        "flops_per_frame": counter.get_total_flops(),
        "kv_bytes": state.kv_bytes,
        "kv_share": state.kv_bytes / state.kv_bytes_dense,
    }


def measure_own(model: StreamingVideoLM, config: BenchReductions) -> dict[str, float]:
    """What the reduction itself takes per frame, ms: `signals_ms` in the tower (less than nothing where it prunes
    there), `choice_ms` before the decoder. What it does inside the decoder is in the frame's time alone."""
    within = model.reducing
    assert within is not None
    square = torch.from_numpy(_film(model, config)[0].image)[None]
    own = type(model.encoder).forward
    runs: dict[str, Callable[[], Any]] = {
        "without": lambda: own(model.encoder, square),
        "with": lambda: model.encoder(square),
    }
    with torch.inference_mode():
        timing = time_in_turn(runs, config.repeats)
        features = model.encoder(square)
        ids, vision = model.template.frame(first=True)
        index = torch.tensor([[0 if is_vision else -1 for is_vision in vision]])
        embeds = model.embed(torch.tensor([ids]), index, features)
        choice = time_in_turn({"choice": lambda: within.enter(embeds, index, features, None)}, config.repeats)
    return {
        "signals_ms": timing["with"].wall_ms - timing["without"].wall_ms,
        "choice_ms": choice["choice"].wall_ms,
    }


def _film(model: StreamingVideoLM, config: BenchReductions) -> list[Frame]:
    size, fps = model.encoder.tower.image_size, model.settings.fps
    world = WorldConfig(seconds=max(config.frames / fps, 1.0), fps=fps, size=size)
    stream = make_stream("test", 0, world)
    return [Frame(image, time, i) for i, (image, time) in enumerate(zip(stream.frames(), stream.times.tolist()))]


def _line(cell: dict[str, Any]) -> str:
    if "refused" in cell:
        return f"{cell['name']}: refused: {cell['refused']}"
    return (
        f"{cell['name']}: F1 {cell['f1']:.3f}, LM-PPL {cell['lm_ppl']:.3f}, {cell['ms_per_frame']:.1f} ms a frame, "
        f"KV {cell['kv_share']:.2f}"
    )


# -- the plot ----------------------------------------------------------------------------------------------------------


def draw_plot(result: dict[str, Any], path: Path) -> None:
    """F1 against measured ms per frame: a line per method over its shares, depth routing and the dense one too."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[tuple[float, float]]] = {}
    for cell in result["cells"]:
        if "refused" not in cell and "+" not in cell["name"]:
            name = cell["name"].rsplit(" ", 1)[0] if cell["name"] != "dense" else "dense"
            lines.setdefault(name, []).append((cell["ms_per_frame"], cell["f1"]))
    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for number, (name, points) in enumerate(lines.items()):
        heavy = name in ("dense", "depth routing")
        axes.plot(
            *zip(*points),
            marker="*" if heavy else "osD^v<>Ph"[number % 9],
            linewidth=2.5 if heavy else 1,
            markersize=11 if heavy else 5,
            color="black" if heavy else None,
            label=name,
        )
    axes.set_xlabel("milliseconds per frame, measured")
    axes.set_ylabel("event F1")
    axes.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=140)
    pyplot.close(figure)
