"""`bench stream`: milliseconds per frame and KV bytes at several ages of a stream, every plan paired with dense.

A step is a frame of N vision tokens and its interval token through the decoder, and the head's one decision. Each plan
is timed in turn with dense, both with caches filled anew several times: all caches of a long stream at once would need
more memory than a small machine has. So each pair has a dense of its own; `dense` pools them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from videollm_mod.bench.fronts import BenchStream
from videollm_mod.bench.measure import (
    Timing,
    ceilings,
    environment,
    free_memory,
    progress,
    time_in_turn,
    wait_for,
)
from videollm_mod.bench.models import (
    DENSE,
    Competitor,
    Stream,
    against,
    competitors,
    decoder_config,
    fill_up,
    parse_route,
    weights_read,
)
from videollm_mod.depth import flops

SPARE = 2**29  # bytes that a pair of streams needs besides its caches


@dataclass
class Pair:
    """What one competitor took, and dense beside it."""

    own: list[Timing] = field(default_factory=list)
    dense: list[Timing] = field(default_factory=list)
    growing: list[float] = field(default_factory=list)  # ms of a step in which every buffer had to grow


def measure(config: BenchStream, keep: Callable[[dict[str, Any]], object] = lambda result: None) -> dict[str, Any]:
    """{"stream": {tokens: {frames: {competitor: ratio}}}, "points": the same with everything}.

    `keep` is called after every point with what there is until then, "interrupted": the whole may take hours.
    """
    llm = decoder_config(config)
    progress(f"building decoders of {llm.num_hidden_layers} layers, width {llm.hidden_size}, on {config.device}")
    rivals = competitors(llm, {word: parse_route(word) for word in config.routes}, config.device, config.dtype)
    # on a card, whose bandwidth and peak are known; two cores of a CPU reach now this, now that
    reached = {"ceilings": ceilings(config.device, config.dtype)} if config.device != "cpu" else {}
    points: dict[str, dict[str, Any]] = {}

    def told(**more: Any) -> dict[str, Any]:
        return {
            "stream": {
                tokens: {
                    frames: {name: told["ratio"] for name, told in point.items() if "ratio" in told}
                    for frames, point in ages.items()
                }
                for tokens, ages in points.items()
            },
            "points": points,
            "setup": {name: value for name, value in asdict(config).items() if name not in ("out", "threads", "quick")},
            **reached,
            **environment(config.device),
            **more,
        }

    for tokens in config.tokens:
        ages = points.setdefault(str(tokens), {})
        for frames in config.frames:
            progress(
                f"{tokens} tokens per frame, up to frame {frames}: {config.fillings} x {config.steps} frames of each"
            )
            ages[str(frames)] = measure_point(config, rivals, tokens, frames)
            if reached:
                add_floors(ages[str(frames)], weights_read(rivals[0].model), **reached["ceilings"])
            keep(told(interrupted=True))
    return told()


def add_floors(point: dict[str, Any], weights: int, bytes_per_second: float, flops_per_second: float) -> None:
    """Beside each time the least that it could be: to read the weights alone, and all that the step must do.

    point: competitor -> what was told of it; weights: bytes that a step reads.
    """
    for told in point.values():
        if "left_out" not in told:
            read = 1e3 * (weights + told["kv_bytes"]) / bytes_per_second
            told["weights_ms"] = 1e3 * weights / bytes_per_second
            told["floor_ms"] = max(read, 1e3 * told["flops"] / flops_per_second)
            told["times_weights"], told["times_floor"] = (told["p50"] / told[f"{of}_ms"] for of in ("weights", "floor"))


def measure_point(config: BenchStream, rivals: list[Competitor], tokens: int, frames: int) -> dict[str, Any]:
    """All competitors at one age, each paired with dense; what does not fit into memory says so."""
    llm = rivals[0].model.config
    by_name = {rival.name: rival for rival in rivals}
    dense, point, pooled = by_name[DENSE], {}, []
    for name in (name for name in by_name if name != DENSE):
        needed = sum(cache_bytes(config, llm, by_name[who], tokens, frames) for who in (name, DENSE)) + SPARE
        free = free_memory(config.device)
        if needed > free:
            point[name] = {"left_out": f"needs {needed / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free"}
            progress(f"  {name:<18} left out: {point[name]['left_out']}")
            continue
        pair = Pair()
        for _ in range(config.fillings):
            time_pair(config, by_name[name], dense, tokens, frames, pair)
        pooled += pair.dense
        point[name] = told = told_of(config, by_name[name], pair, tokens, frames)
        progress(
            f"  {name:<18} {told['p50']:8.1f} ms (p99 {told['p99']:.1f}), dense {told['dense_p50']:.1f}: ratio "
            f"{told['ratio']:.3f}, FLOPs {told['flops_bound']:.3f}, {told['times_bound']:.3f} of the bound; KV bytes "
            f"{told['kv_bytes_ratio']:.3f}"
        )
    if pooled:
        point = {DENSE: told_of(config, dense, Pair(pooled, pooled), tokens, frames), **point}
    return point


def time_pair(config: BenchStream, rival: Competitor, dense: Competitor, tokens: int, frames: int, pair: Pair) -> None:
    """One filling: the last frames before `frames` of both, in turn; then one in which all buffers grow."""
    past = max(frames - config.steps - 1, 0)  # one warm-up frame, then the timed ones
    streams = {who.name: Stream.of(who, tokens, past) for who in (rival, dense)}
    wait = wait_for(config.device)
    timing = time_in_turn({name: stream.step for name, stream in streams.items()}, config.steps, wait=wait)
    pair.own.append(timing[rival.name])
    pair.dense.append(timing[dense.name])
    own = streams.pop(rival.name)
    streams.clear()  # a growing buffer is twice there for a moment
    if rival.plan is None:
        return  # its cache grows at every step
    llm, seen = rival.model.config, own.frame
    stored = flops.kv_bytes(
        llm, rival.plan, seen, seen, tokens, bytes_per_value=own.cache.layers[0].keys.element_size()
    )
    if own.cache.kv_bytes != stored:
        raise RuntimeError(f"{rival.name} holds {own.cache.kv_bytes} bytes of cache; the formula says {stored}")
    fill_up(own.cache)
    pair.growing.append(time_in_turn({"grow": own.step}, 1, warmup=0, wait=wait)["grow"].wall_ms)


def told_of(config: BenchStream, rival: Competitor, pair: Pair, tokens: int, frames: int) -> dict[str, Any]:
    """The numbers of one competitor at one age; its ratio is to the dense it was paired with."""
    llm, past = rival.model.config, max(frames - 1, 0)
    own, dense = Timing.pooled(pair.own), Timing.pooled(pair.dense)
    step, size = flops.Step(1, (tokens,), 1), {"float32": 4}.get(config.dtype, 2)
    entries = {
        who: flops.kv_entries(llm, plan, past, past, tokens) for who, plan in (("own", rival.plan), ("dense", None))
    }
    cost = {
        who: flops.step_flops(llm, plan, step, entries[who]) for who, plan in (("own", rival.plan), ("dense", None))
    }
    kv = {
        who: flops.kv_bytes(llm, plan, frames, frames, tokens, bytes_per_value=size)
        for who, plan in (("own", rival.plan), ("dense", None))
    }
    weights = weights_read(rival.model)
    told = {
        **against(own.wall_ms / dense.wall_ms, cost["own"] / cost["dense"]),
        "ratio_cpu_time": own.cpu_ms / dense.cpu_ms,
        "ratio_of_each_filling": sorted(a.wall_ms / b.wall_ms for a, b in zip(pair.own, pair.dense)),
        "bytes_bound": (weights + kv["own"]) / (weights + kv["dense"]),
        "p50": own.percentile(50),
        "p95": own.percentile(95),
        "p99": own.percentile(99),
        "dense_p50": dense.percentile(50),
        "timed_frames": len(own.wall),
        "kv_bytes": kv["own"],
        "kv_bytes_ratio": kv["own"] / kv["dense"],
        "flops": cost["own"],
    }
    if pair.growing:
        told["growing_ms"] = max(pair.growing)
    return told


def cache_bytes(config: BenchStream, llm: Any, rival: Competitor, tokens: int, frames: int) -> float:
    """What a stream's buffers may take: an eighth more than is filled in (`Stream.filled`), and one layer that is twice
    there, while it grows or is concatenated."""
    size = {"float32": 4}.get(config.dtype, 2)
    used = flops.kv_bytes(llm, rival.plan, frames, frames, tokens, bytes_per_value=size)
    return 1.2 * used
