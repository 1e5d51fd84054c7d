"""The cells of `bench reductions`: what a model says with a reduction in it, as it is and adapted, and what that costs.

Quality is that of the world's test split, as `eval world` has it; a live session runs a method's causal form, and each
cell's threshold is calibrated on validation streams. An adapted cell has learned a little more, from the same weights,
with the method in place. Costs are those of the newest frames of one long silent stream, pictures in, decision out,
timed in turn with the dense model. A method's signals and choice are part of that, and told apart: by the tower with
and without, and by the choice alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from recipes import reduced
from videollm_mod.bench.measure import Timing, environment, progress, rounded, time_in_turn
from videollm_mod.bench.reductions_command import BenchReductions
from videollm_mod.depth import DepthPlan
from videollm_mod.evaluate.calibrate import calibrate
from videollm_mod.evaluate.spread import estimate, per_stream
from videollm_mod.evaluate.streams import run_streams, watch_both
from videollm_mod.evaluate.summary import summarise, tally
from videollm_mod.evaluate.world import world_of
from videollm_mod.files import atomic_write
from videollm_mod.loading import described, find
from videollm_mod.model import StreamingVideoLM, load
from videollm_mod.packed import unpack_linears
from videollm_mod.reductions import from_dict, methods, reducing
from videollm_mod.stream.session import StreamSession
from videollm_mod.train.build import like_start
from videollm_mod.train.loop import train
from videollm_mod.train.recipe import Phase
from videollm_mod.types import Frame, InputError
from videollm_mod.world import WorldConfig, WorldStream, make_stream

METRICS = ("f1", "timing_f1", "lm_ppl", "question_accuracy", "false_alarms_per_minute")
DENSE, ROUTED = DepthPlan("full"), DepthPlan("interleaved", keep=0.2)
EVEN = DepthPlan("interleaved", keep=0.2, scorer="uniform", gate="identity")
Numbers = dict[str, Any]
Known = dict[str, Numbers]  # key -> what was measured


@dataclass(frozen=True)
class Cell:
    """One setting: a reduction, or none, and a depth plan."""

    name: str
    keep: float
    plan: DepthPlan
    reduction: dict[str, Any] | None  # as `Reduction.to_dict` has it
    steps: int = 0  # of adaptation; 0: the model as it is

    @property
    def setting(self) -> list[Any]:
        """What its costs hang on; adapted or not, the sizes are the same."""
        return [self.plan.to_dict(), self.reduction]


def cells(config: BenchReductions, *, experts: bool, blocks: int) -> Iterator[Cell]:
    """No reduction; depth routing; every method by itself; every method with depth routing; then the adapted ones.

    experts: whether the model has learned some. If not, depth routing chooses evenly until it has been adapted.
    blocks: of its tower.
    """
    yield from _cells(config, config.keep, ROUTED if experts else EVEN, blocks)
    if config.adapt:
        yield from _cells(config, (config.pairs,), ROUTED, blocks, steps=config.adapt)


def _cells(
    config: BenchReductions, keeps: tuple[float, ...], routed: DepthPlan, blocks: int, steps: int = 0
) -> Iterator[Cell]:
    yield Cell("dense", 1.0, DENSE, None, steps)
    for keep in keeps:
        yield Cell(f"depth routing {keep:g}", keep, replace(routed, keep=keep), None, steps)
    wanted = [name for name in methods() if not config.only or name in config.only]
    for name in wanted:
        for keep in keeps:
            yield Cell(f"{name} {keep:g}", keep, DENSE, _fitted(name, keep, blocks), steps)
    for name in wanted:
        words = f"{name} {config.pairs:g} + depth routing {routed.keep:g}"
        yield Cell(words, config.pairs, routed, _fitted(name, config.pairs, blocks), steps)


def _fitted(name: str, keep: float, blocks: int) -> dict[str, Any]:
    """A method with its authors' settings. HiPrune's middle layer is the 9th of CLIP's 24: as far into this tower."""
    more = {"layer": max(1, round(9 / 24 * blocks))} if name == "hi_prune" else {}
    return methods()[name](keep=keep, **more).to_dict()


def fingerprint(model: str) -> str:
    """Of a model's weights: a result belongs to them, not to a name."""
    digest = hashlib.sha256()
    for path in sorted(find(model).glob("*.safetensors")):
        with path.open("rb") as file:
            for part in iter(lambda: file.read(1 << 20), b""):
                digest.update(part)
    return digest.hexdigest()[:12]


def fill(config: BenchReductions) -> Numbers:
    """All cells, from `config.out` where they are there; `{"cells": [...], ...}`. Costs first: they want it quiet."""
    weights, model = fingerprint(config.model), load(config.model)
    experts = model.plan.layers != "full" and model.plan.scorer == "learned"
    config_of_tower: Any = getattr(getattr(model.encoder.tower, "model", None), "config", None)
    blocks = getattr(config_of_tower, "num_hidden_layers", 0)  # the conv tower has none
    told = json.loads(config.out.read_text(encoding="utf-8")) if config.out.is_file() else {}
    known: Known = told.get("known", {})
    wanted = list(cells(config, experts=experts, blocks=blocks))
    size = [config.frames, config.repeats]
    cost_keys = [_key("cost", weights, *cell.setting, *size) for cell in wanted]
    judged = [config.streams, config.calibration, config.seconds, config.dials]
    keys = [_key("said", weights, *cell.setting, cell.steps, *judged) for cell in wanted]

    def result() -> Numbers:
        found = [
            {**dataclasses.asdict(cell), "plan": cell.plan.to_dict(), **known.get(key, {}), **known.get(cost_key, {})}
            for cell, key, cost_key in zip(wanted, keys, cost_keys)
        ]
        streams = [cell.pop("per_stream", None) for cell in found]
        dense = {cell["steps"]: own for cell, own in zip(found, streams) if cell["name"] == "dense"}
        for cell, own in zip(found, streams):
            other = dense.get(cell["steps"])  # as it is, or adapted just as long
            if own is not None and other is not None:
                difference = estimate({0: {"per_stream": own}}, {0: {"per_stream": other}})["f1"]
                cell["f1_difference"] = rounded(list(difference))
        return {
            "cells": [cell for cell in found if "f1" in cell or "refused" in cell],
            "missing": sum("f1" not in cell and "refused" not in cell for cell in found),
            "model": config.model,
            "streams": config.streams,
            "seconds": config.seconds,
            "dials": list(config.dials),
            "adapt": config.adapt,
            "quick": config.quick,
            "costs": told.get("costs") or environment(),
            "known": known,
        }

    def keep(key: str, numbers: Numbers) -> None:
        known[key] = numbers
        write(config.out, result())

    if config.page_only:
        return result()
    costly = {key: cell for key, cell in zip(cost_keys, wanted) if config.costs or key not in known}
    if costly:
        told["costs"] = environment()
    for key, cell in costly.items():
        keep(key, _or_refused(measure_cost, cell, config))
        progress(_cost_line(cell, known[key]))
    for key, cell in zip(keys, wanted):
        if key not in known and not config.costs:
            keep(key, _or_refused(measure_quality, cell, config))
            progress(_line(cell, known[key]))
    return result()


def write(path: Path, result: Numbers) -> None:
    """One line a cell, and one a measurement: a file to keep."""
    known = result["known"]
    rest = {name: value for name, value in result.items() if name not in ("cells", "known")}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in rest.items()]
    lines.append(' "cells": [\n' + ",\n".join(f"  {json.dumps(cell)}" for cell in result["cells"]) + "\n ]")
    rows = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in known.items())
    lines.append(' "known": {\n' + ",\n".join(rows) + "\n }")
    with atomic_write(path) as file:
        file.write("{\n" + ",\n".join(lines) + "\n}\n")


def _key(*setting: Any) -> str:
    """A fingerprint: a result belongs to its setting only while this is the same."""
    return hashlib.sha256(json.dumps(setting, sort_keys=True).encode()).hexdigest()[:16]


def _or_refused(measure: Callable[[Cell, BenchReductions], Numbers], cell: Cell, config: BenchReductions) -> Numbers:
    """A cell's numbers, or why it has none: the model's tower, or a live stream, cannot give what the method needs."""
    try:
        return measure(cell, config)
    except InputError as error:
        return {"refused": str(error)}


# -- what it says ------------------------------------------------------------------------------------------------------


def measure_quality(cell: Cell, config: BenchReductions) -> Numbers:
    """A cell's numbers on the test split, at the threshold that is best on validation streams."""
    settings, _, size = described(config.model)
    world = world_of("medium", config.dials, seconds=config.seconds, fps=settings.fps, size=size)
    began = time.monotonic()
    model = load(_adapted(cell, config, world) if cell.steps else config.model, depth=cell.plan)
    trained = time.monotonic()
    with reducing(model, cell.reduction) as within:
        if within is not None:
            within.check_stream()
        threshold, _ = calibrate(model, _streams("validation", config.calibration, world), workers=config.workers)
        model.settings = replace(model.settings, threshold=threshold)
        films = _streams("test", config.streams, world)
        watched = run_streams(model, watch_both, films, workers=config.workers, title=cell.name)
    summary = summarise(watched, threshold)
    return {
        "threshold": threshold,
        **rounded({name: summary[name] for name in METRICS}),
        "f1_interval": rounded(summary["intervals"]["f1"]),
        "per_stream": per_stream([tally(item, threshold) for item in watched]),
        "train_seconds": round(trained - began) if cell.steps else None,
    }


def _streams(split: str, count: int, world: WorldConfig) -> list[WorldStream]:
    return [make_stream(split, number, world) for number in range(count)]


def _adapted(cell: Cell, config: BenchReductions, world: WorldConfig) -> Path:
    """The model after a short training with the method in place, in the form in which it will stream."""
    reduction = cell.reduction and from_dict(cell.reduction).causal().to_dict()
    phase = Phase(cell.steps, 4, replace(world, questions=10))
    recipe = replace(
        reduced.recipe(),
        start=str(find(config.model)),
        plan=cell.plan,
        reduction=reduction,
        phases=(phase,),
        warmup=min(20, cell.steps),
        accumulate=4,  # what acts on a cache takes one conversation at a time
        validate_every=cell.steps,
        validation_streams=8,
    )
    folder = config.home / _key(fingerprint(config.model), *cell.setting, cell.steps, dataclasses.asdict(world))
    if (folder / "model").is_dir():
        return folder / "model"
    progress(f"{cell.name}: {cell.steps} steps of adaptation")
    return train(like_start(recipe), folder, resume=True, workers=0 if config.workers == 1 else 1)


# -- what it costs -----------------------------------------------------------------------------------------------------


def measure_cost(cell: Cell, config: BenchReductions) -> Numbers:
    """Time and FLOPs of the newest frames of a silent stream, KV bytes behind them, each as a share of the dense
    model's too; and what the reduction itself takes of that time."""
    models = {"dense": load(config.model, depth=DENSE), "own": load(config.model, depth=cell.plan)}
    film = _film(models["dense"], config)
    with reducing(models["own"], cell.reduction) as within:
        if within is not None:
            within.check_stream()
        sessions = {name: StreamSession(model, threshold=0.0, window=float("inf")) for name, model in models.items()}
        for session in sessions.values():
            _push(session, film[: -config.repeats - 1])
        timing = _in_turn(sessions, film[-config.repeats - 1 : -1])
        flops = {name: _flops(models[name], session, film[-1]) for name, session in sessions.items()}
        kv = {name: session.state().kv_bytes for name, session in sessions.items()}
        own = measure_own(models["own"], film[0], config.repeats) if within is not None else {}
    return rounded(
        {
            "ms_per_frame": timing["own"].wall_ms,
            "ms_dense": timing["dense"].wall_ms,
            "time_share": timing["own"].wall_ms / timing["dense"].wall_ms,
            "flops_per_frame": flops["own"],
            "flops_share": flops["own"] / flops["dense"],
            "kv_bytes": kv["own"],
            "kv_share": kv["own"] / kv["dense"],
            **own,
        }
    )


def _push(session: StreamSession, film: Iterable[Frame]) -> None:
    for frame in film:
        session.push(frame)


def _in_turn(sessions: dict[str, StreamSession], film: Iterable[Frame]) -> dict[str, Timing]:
    """Each frame to one session, then to the other: whatever else the machine does hits both alike."""
    wall: dict[str, list[float]] = {name: [] for name in sessions}
    for number, frame in enumerate(film):
        for name in list(sessions)[:: 1 - 2 * (number % 2)]:
            began = time.perf_counter()
            sessions[name].push(frame)
            wall[name].append(1e3 * (time.perf_counter() - began))
    return {name: Timing(tuple(times), ()) for name, times in wall.items()}


def _flops(model: StreamingVideoLM, session: StreamSession, frame: Frame) -> int:
    unpack_linears(model)  # whose products, and the CPU's fast attention, the counter does not know
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        session.push(frame)
    return counter.get_total_flops()


def measure_own(model: StreamingVideoLM, frame: Frame, repeats: int) -> dict[str, float]:
    """What the reduction itself takes per frame, ms: `signals_ms` in the tower (less than nothing where it prunes
    there), `choice_ms` before the decoder. What it does inside the decoder is in the frame's time alone."""
    within = model.reducing
    assert within is not None
    square = torch.from_numpy(frame.image)[None]
    own = type(model.encoder).forward
    runs: dict[str, Callable[[], Any]] = {
        "without": lambda: own(model.encoder, square),
        "with": lambda: model.encoder(square),
    }
    with torch.inference_mode():
        timing = time_in_turn(runs, repeats)
        features = model.encoder(square)
        ids, vision = model.template.frame(first=True)
        index = torch.tensor([[0 if is_vision else -1 for is_vision in vision]])
        embeds = model.embed(torch.tensor([ids]), index, features)
        choice = time_in_turn({"choice": lambda: within.enter(embeds, index, features, None)}, repeats)
    return {
        "signals_ms": timing["with"].wall_ms - timing["without"].wall_ms,
        "choice_ms": choice["choice"].wall_ms,
    }


def _film(model: StreamingVideoLM, config: BenchReductions) -> list[Frame]:
    size, fps = model.encoder.tower.image_size, model.settings.fps
    world = world_of("medium", config.dials, seconds=max(config.frames / fps, 1.0), fps=fps, size=size)
    stream = make_stream("test", 0, world)
    return [Frame(image, time, i) for i, (image, time) in enumerate(zip(stream.frames(), stream.times.tolist()))]


def _line(cell: Cell, numbers: Numbers) -> str:
    name = f"{cell.name}, {cell.steps} steps" if cell.steps else cell.name
    if "refused" in numbers:
        return f"{name}: refused: {numbers['refused']}"
    return f"{name}: F1 {numbers['f1']:.3f}, LM-PPL {numbers['lm_ppl']:.3f}"


def _cost_line(cell: Cell, numbers: Numbers) -> str:
    if "refused" in numbers:
        return f"{cell.name}: refused: {numbers['refused']}"
    return f"{cell.name}: {numbers['time_share']:.2f} of the dense time a frame, KV {numbers['kv_share']:.2f}"
