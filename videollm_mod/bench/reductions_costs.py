"""What a reduction costs, and what it keeps: the part of `bench reductions` that asks no question of what is said.

Time is that of the newest frames of one long silent stream, pictures in, decision out, in turn with the dense model. A
method's signals and choice are part of that, and told apart: by the tower with and without, and by the choice alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from videollm_mod.bench.measure import Timing, rounded, time_in_turn
from videollm_mod.bench.reductions_cells import DENSE, Cell
from videollm_mod.bench.reductions_command import BenchReductions
from videollm_mod.evaluate.world import world_of
from videollm_mod.loading import described
from videollm_mod.model import StreamingVideoLM, load
from videollm_mod.packed import unpack_linears
from videollm_mod.reductions import reducing
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame
from videollm_mod.world import WorldStream, make_stream, matter

LOOKED_AT = 8  # test streams on which it is counted what is kept
Numbers = dict[str, Any]


def measure_kept(cell: Cell, config: BenchReductions) -> Numbers:
    """Of the cells of test streams' frames, what share is `kept` where the method has done all that it does, and what
    share of those `things` lie on; nothing for what acts on a cache."""
    settings, _, size = described(config.model)
    world = world_of("medium", config.dials, seconds=config.seconds, fps=settings.fps, size=size)
    model = load(config.model, depth=cell.plan, reduction=cell.reduction)
    if not model.told_layers:
        return {}
    last, kept, matters = model.told_layers[-1], [], []
    for number in range(min(LOOKED_AT, config.streams)):
        stream = make_stream("test", number, world)
        session = StreamSession(model, threshold=0.0, record_kept=True)
        for frame in frames_of(stream):
            session.push(frame)
            kept.append(torch.from_numpy(session.kept[last][1:]))
        matters.append(torch.from_numpy(matter(stream, model.encoder.grid)[:, 1:] > 0))
    stays, things = torch.stack(kept), torch.cat(matters)  # (frames, h * w)
    share = float(stays[things].float().mean()) if bool(things.any()) else None
    return rounded({"kept": float(stays.float().mean()), "things": share})


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
    return frames_of(make_stream("test", 0, world))


def frames_of(stream: WorldStream) -> list[Frame]:
    """Its pictures with their times."""
    return [Frame(image, time, i) for i, (image, time) in enumerate(zip(stream.frames(), stream.times.tolist()))]
