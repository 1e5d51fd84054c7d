"""One engine with many sessions against the same sessions taken in turn. `bench.engine_command` is its front.

Both run the very same sessions, of the same age, and alternate: a round is one frame of every stream. The model is a
`StreamingVideoLM` with random weights that keeps silent; frames come as ready tokens, so that decoders are compared and
not the tower that both share. How long a step takes depends on shapes alone.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from videollm_mod.bench.engine_command import BenchEngine
from videollm_mod.bench.measure import environment, progress, time_in_turn, wait_for
from videollm_mod.bench.models import decoder_config, random_decoder
from videollm_mod.depth import DepthPlan, flops
from videollm_mod.depth.plan import parse_layers
from videollm_mod.dialogue import word_tokenizer
from videollm_mod.model import StreamingVideoLM, StreamSettings
from videollm_mod.stream.drops import FrameQueue
from videollm_mod.stream.engine import QUEUE, Engine, EngineStream
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import FrameTokens
from videollm_mod.vision import Connector, ConvTower, ConvTowerConfig, FrameEncoder

WIDTH = 16  # of a frame token as the tower gives it
PROFILED = 16  # sessions, at most, whose step is looked into
LATE = 0.5  # seconds: a stream is sustained if 99 of 100 decisions come sooner, and no frame is dropped


def measure(config: BenchEngine, keep: Callable[[dict[str, Any]], object] = lambda result: None) -> dict[str, Any]:
    """All measurements; a line on stderr for each number of sessions.

    `keep` is called after each with what there is until then, "interrupted": a larger number may not fit into memory.
    """
    model = build(config)
    llm = model.lm.config
    progress(
        f"a decoder of {llm.num_hidden_layers} layers, width {llm.hidden_size}; {torch.get_num_threads()} thread(s)"
    )
    results: dict[str, Any] = {}
    for count in sorted(set(config.sessions)):
        results[str(count)] = point = measure_count(config, model, count)
        late = " and ".join(f"{name} p99 {point[name]['p99_ms']:.0f} ms" for name in ("engine", "in_turn"))
        progress(
            f"{count} sessions: {point['engine']['frames_per_second']:.1f} frames per second in one engine, "
            f"{point['in_turn']['frames_per_second']:.1f} in turn, speedup {point['speedup']:.2f}; "
            f"at {config.fps:g} fps each, {late}"
        )
        keep({**told(config, results), "interrupted": True})
    return told(config, results)


def told(config: BenchEngine, results: dict[str, Any]) -> dict[str, Any]:
    """The JSON object; results: sessions -> what was measured of so many."""
    return {
        "speedup": {count: point["speedup"] for count, point in results.items()},
        "frames_per_second": {count: point["engine"]["frames_per_second"] for count, point in results.items()},
        "p99_ms": {count: point["engine"]["p99_ms"] for count, point in results.items()},
        f"sustained_{config.fps:g}fps": {
            name: max((int(count) for count, point in results.items() if point[name]["sustained"]), default=0)
            for name in ("engine", "in_turn")
        },
        "sessions": results,
        "setup": {name: value for name, value in asdict(config).items() if name not in ("out", "threads")},
        **environment(config.device),
    }


def build(config: BenchEngine) -> StreamingVideoLM:
    """A streaming model of the size asked for, with random weights."""
    side = math.isqrt(config.tokens - 1)
    tower = ConvTower(ConvTowerConfig(image_size=16 * max(side, 1), channels=(4, 8, WIDTH), heads=1))
    settings = StreamSettings(system="Watch.")
    tokenizer = word_tokenizer([settings.system])
    llm = decoder_config(config)
    llm.vocab_size = max(llm.vocab_size, len(tokenizer))
    llm.max_position_embeddings = 1 << 20  # positions beyond what a model was trained for take as long
    layers = parse_layers(config.plan)
    assert layers is not None  # only None stays None
    plan = DepthPlan(layers, config.keep, scorer="learned", gate="straight")
    lm = random_decoder(llm, config.device, config.dtype)
    encoder, connector = FrameEncoder(tower, (side, side)), Connector(WIDTH, llm.hidden_size)
    made = StreamingVideoLM(encoder, connector, lm, tokenizer, plan, settings).eval()
    return made.to(device=config.device, dtype=getattr(torch, config.dtype))


@dataclass
class Streams:
    """Sessions that can be run in one engine and in turn, and the frames that they get."""

    config: BenchEngine
    engine: Engine
    streams: list[EngineStream]
    number: int = 0  # of the next frame of each

    @classmethod
    def of(cls, config: BenchEngine, model: StreamingVideoLM, count: int) -> Streams:
        engine = Engine(model)
        streams = [engine.open(threshold=0.0, window=math.inf) for _ in range(count)]
        for stream in streams:
            grow_old(stream._session, config.frames)
        return cls(config, engine, streams, config.frames)

    def frame(self) -> FrameTokens:
        """The next frame, random."""
        self.number += 1
        side = math.isqrt(self.config.tokens - 1)
        like = next(self.engine.model.parameters())
        tokens = torch.randn(self.config.tokens, WIDTH, device=like.device, dtype=like.dtype)
        return FrameTokens(tokens, (side, side), float(self.number), self.number)

    def together(self) -> None:
        """One frame of every stream through the engine."""
        for stream in self.streams:
            stream.push_tokens(self.frame())
        while self.engine.waiting:
            self.engine.step()

    def in_turn(self) -> None:
        """One frame of every stream, each as a session alone would take it."""
        for stream in self.streams:
            stream._session.push_tokens(self.frame())


def grow_old(session: StreamSession, frames: int) -> None:
    """Leave a fresh session as `frames` silent frames would: caches of the very same sizes, of random entries."""
    config, tokens = session.model.lm.config, session.model.encoder.tokens_per_frame
    cache, opening = session._cache, len(session._pending)
    heads = config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    like = next(session.model.parameters())
    # the last frame apart: it makes the buffers grow, so that they have room and need not grow while they are timed
    for first, last in ((0, frames - 1), (frames - 1, frames)):
        text = last - first + (opening if first == 0 else 0)
        before = 0 if first == 0 else opening + first * (tokens + 1)
        span = text + (last - first) * tokens
        entries = flops.kv_entries(config, session.model.plan, text, last - first, tokens)
        for layer, count in zip(cache.layers, entries):
            slots = before + torch.arange(count, device=like.device) * span // max(count, 1)
            layer.expect(span, slots[None], [count])
            if count:
                # one entry, repeated: to draw them all takes long
                keys, values = torch.randn(2, 1, heads, 1, width, device=like.device, dtype=like.dtype)
                layer.update(keys.expand(-1, -1, count, -1), values.expand(-1, -1, count, -1))
    session.context = [0] * cache.seen
    session._pending, session._stream_open = [], True
    session._frames, session._time = frames, float(frames)


def measure_count(config: BenchEngine, model: StreamingVideoLM, count: int) -> dict[str, Any]:
    """Throughput of rounds, then latency of frames that come one by one, of `count` sessions."""
    streams = Streams.of(config, model, count)
    wait = wait_for(config.device)
    timing = time_in_turn({"engine": streams.together, "in_turn": streams.in_turn}, config.steps, wait=wait)
    point: dict[str, Any] = {"speedup": timing["in_turn"].wall_ms / timing["engine"].wall_ms}
    point["speedup_cpu_time"] = timing["in_turn"].cpu_ms / timing["engine"].cpu_ms
    ratios = [turn / engine for turn, engine in zip(timing["in_turn"].wall, timing["engine"].wall)]
    point["speedup_of_each_round"] = sorted(ratios)
    plan, llama = model.plan, model.lm.config
    age = streams.streams[0].state().frames
    past = flops.kv_entries(llama, plan, age, age, config.tokens)
    profiled = max((n for n in config.sessions if n <= PROFILED), default=0)
    if count == profiled and config.device == "cpu":  # on a GPU operators are only begun in the time that they tell
        point["profile"] = shares_of_a_step(streams)
    point["gflop_per_frame"] = flops.step_flops(llama, plan, flops.Step(1, (config.tokens,), 1), past) / 1e9
    for name, run in (("engine", take_together), ("in_turn", take_in_turn)):
        ms = timing[name].wall_ms
        rate = 1e3 * count / ms
        reached = rate * point["gflop_per_frame"]
        point[name] = {"round_ms": ms, "frames_per_second": rate, "gflops": reached, **run(streams)}
    point["kv_mib"] = streams.engine.kv_bytes / 2**20
    return point


# --- latency ---------------------------------------------------------------------------------------------------------


def arrivals(config: BenchEngine, count: int) -> list[tuple[float, int]]:
    """(seconds, stream) of all frames: each stream at its own phase, evenly spread."""
    period = 1 / config.fps
    times = [
        (period * (k + n / count), n) for n in range(count) for k in range(max(1, round(config.seconds * config.fps)))
    ]
    return sorted(times)


def take_together(streams: Streams) -> dict[str, Any]:
    """Frames come by a clock that stands still but for the steps' own time, so that idling costs nothing."""
    coming = deque(arrivals(streams.config, len(streams.streams)))
    came: dict[EngineStream, dict[float, float]] = {stream: {} for stream in streams.streams}  # frame time -> arrival
    before = sum(stream.state().dropped.get("newest", 0) for stream in streams.streams)
    clock, late = 0.0, []
    while coming or streams.engine.waiting:
        if not streams.engine.waiting:
            clock = max(clock, coming[0][0])
        while coming and coming[0][0] <= clock:
            moment, number = coming.popleft()
            frame, stream = streams.frame(), streams.streams[number]
            came[stream][frame.time] = moment
            stream.push_tokens(frame)
        start = time.perf_counter()
        outputs = streams.engine.step()
        clock += time.perf_counter() - start
        late += [clock - came[output.stream][output.decision[0]] for output in outputs if output.decision is not None]
    dropped = sum(stream.state().dropped.get("newest", 0) for stream in streams.streams) - before
    return summary(late, dropped)


def take_in_turn(streams: Streams) -> dict[str, Any]:
    """The same for sessions alone, with the same queues: the frame that has waited longest comes first."""
    coming = deque(arrivals(streams.config, len(streams.streams)))
    queues = [FrameQueue("newest", QUEUE) for _ in streams.streams]
    clock, late = 0.0, []
    while coming or any(queue.frames for queue in queues):
        if not any(queue.frames for queue in queues):
            clock = max(clock, coming[0][0])
        while coming and coming[0][0] <= clock:
            moment, number = coming.popleft()
            queues[number].offer(moment)
        number = min((n for n, queue in enumerate(queues) if queue.frames), key=lambda n: queues[n].head(1)[0])
        (moment,) = queues[number].take(1)
        frame = streams.frame()
        start = time.perf_counter()
        streams.streams[number]._session.push_tokens(frame)
        clock += time.perf_counter() - start
        late.append(clock - moment)
    return summary(late, sum(queue.dropped.get("newest", 0) for queue in queues))


def summary(late: list[float], dropped: int) -> dict[str, Any]:
    """Latencies in seconds, from a frame's arrival to its decision -> what is reported."""
    p50, p99 = (float(np.percentile(late, q)) for q in (50, 99))
    return {"p50_ms": 1e3 * p50, "p99_ms": 1e3 * p99, "dropped": dropped, "sustained": p99 <= LATE and dropped == 0}


# --- where the time goes ---------------------------------------------------------------------------------------------

KINDS = {  # of PyTorch's operators, by what their names hold; the first that fits counts
    "attention": ("scaled_dot_product", "flash_attention"),
    "linear": ("linear", "addmm", "aten::mm", "aten::bmm", "matmul"),
    "copies": ("copy_", "cat", "index", "gather", "scatter", "fill", "clone", "stack"),
}


def shares_of_a_step(streams: Streams) -> dict[str, float]:
    """Share of the operators' own time in one round of the engine, by kind; and of the round, outside of operators."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        streams.together()
        wall = time.perf_counter() - start
    times = dict.fromkeys([*KINDS, "other"], 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), "other")
        times[kind] += event.self_cpu_time_total / 1e6
    total = sum(times.values())
    return {**{kind: seconds / total for kind, seconds in times.items()}, "outside": max(0.0, 1 - total / wall)}
