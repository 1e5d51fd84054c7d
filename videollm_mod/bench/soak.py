"""`videollm-mod bench soak`: does a stream cost the same after hours? Milliseconds per frame, memory and cache bytes.

One session, 100,000 frames: fourteen hours at two frames per second. The frames are five minutes of the world, rendered
and through the tower once, then shown again and again as tokens: so the decoder and its cache are what is measured, the
model sees things that it knows, and memory is the session's. It speaks when it wants to, and is asked now and then.

    videollm-mod bench soak --frames 3000 --every 500 --out /dev/null
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from videollm_mod.flags import POLICY_NAMES, check_least, parse_size

if TYPE_CHECKING:
    from torch import Tensor

    from videollm_mod.model import StreamingVideoLM
    from videollm_mod.stream.session import StreamSession


@dataclass(frozen=True)
class BenchSoak:
    """Cost per frame and memory of one endless stream."""

    frames: int = 100_000
    """Frames of the stream."""
    model: str = "tiny"
    """A bundled model, tiny (coloured shapes) or camera (what fixed cameras see), or a model's folder."""
    policy: Annotated[str | None, tyro.conf.arg(help=f"What is forgotten: {POLICY_NAMES}.")] = "window"
    budget: Annotated[str | None, tyro.conf.arg(metavar="SIZE")] = None
    """Bytes that the entries of the KV cache never exceed, such as 8MB; no bound if not given."""
    window: float | None = None
    """Seconds of video that the model remembers whole; the model's own if not given."""
    every: int = 1000
    """Frames of a point: their median counts."""
    film: int = 600
    """World frames that are shown again and again."""
    ask_every: int = 250
    """Frames between two questions."""
    threads: int = 1
    """CPU threads of PyTorch."""
    out: Path | None = None
    """Write the JSON here, too, after every point."""
    plot: Path | None = None
    """Draw the curves here (png)."""


def bench_soak(config: BenchSoak) -> dict[str, Any]:
    """Run it; returns the JSON object. Ctrl-C ends it early, with what is there; a kill leaves --out at the last point.

    A stopped run is not gone on with: what is measured is one process that lives long.
    """
    _check(config)
    import torch

    from videollm_mod.bench.measure import environment, progress, rounded
    from videollm_mod.files import atomic_write
    from videollm_mod.model import load
    from videollm_mod.stream.session import StreamSession

    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        model = load(config.model)
        budget = parse_size("--budget", config.budget)
        session = StreamSession(model, policy=config.policy, budget=budget, window=config.window)
        progress(f"rendering {config.film} frames of the world and making their tokens")
        run = Soak(session, _film(model, config.film), model.settings.fps, config.every, config.ask_every)

        def kept(interrupted: bool) -> dict[str, Any]:
            """What there is, in --out as well."""
            result: dict[str, Any] = rounded(
                {
                    **run.summary(),
                    "policy": session.state().policy,
                    "budget": budget,
                    "forgotten": session.state().forgotten,
                    "model": config.model,
                    "film": config.film,
                    "ask_every": config.ask_every,
                    "interrupted": interrupted,
                    **environment(),
                }
            )
            if config.out is not None:
                with atomic_write(config.out) as file:
                    file.write(json.dumps(result, indent=2) + "\n")
            return result

        def tell(line: str) -> None:
            progress(line)
            kept(interrupted=True)

        result = kept(run.watch(config.frames, tell))
    finally:
        torch.set_num_threads(before)
    if config.plot is not None and result["points"]:
        draw(result, config.plot)
    return result


class Soak:
    """A session that watches `film` (frames, tokens per frame, width) over and over, and what that takes."""

    def __init__(self, session: StreamSession, film: Tensor, fps: float, every: int, ask_every: int) -> None:
        self.session, self.film, self.fps = session, film, fps
        self.every, self.ask_every = every, ask_every
        self.points: list[dict[str, Any]] = []  # one for every `every` frames
        self.events = 0

    def watch(self, frames: int, tell: Callable[[str], None]) -> bool:
        """Watch so many frames; True if Ctrl-C came in between."""
        from videollm_mod.types import FrameTokens

        wall: list[float] = []
        cpu: list[float] = []
        cache_bytes = 0
        try:
            for number in range(frames):
                tokens = self.film[number % len(self.film)]
                frame = FrameTokens(tokens, self.session.grid, number / self.fps, number)
                start, start_cpu = time.perf_counter(), time.process_time()
                self.events += len(self.session.push_tokens(frame))
                wall.append(1e3 * (time.perf_counter() - start))
                cpu.append(1e3 * (time.process_time() - start_cpu))
                cache_bytes = max(cache_bytes, self.session.state().kv_bytes)
                if (number + 1) % self.ask_every == 0:
                    self.session.ask("What happened last?")
                if len(wall) == self.every:
                    self._point(number + 1, wall, cpu, cache_bytes)
                    point = self.points[-1]
                    tell(
                        f"{number + 1} frames: {point['ms']:.2f} ms a frame (p99 {point['ms_p99']:.1f}), resident "
                        f"{point['rss'] / 2**20:.0f} MiB, cache up to {point['kv_bytes'] / 2**20:.2f} MiB"
                    )
                    wall, cpu, cache_bytes = [], [], 0
        except KeyboardInterrupt:
            return True
        return False

    def _point(self, frames: int, wall: list[float], cpu: list[float], cache_bytes: int) -> None:
        self.points.append(
            {
                "frames": frames,
                "ms": statistics.median(wall),
                "ms_mean": statistics.fmean(wall),
                "ms_p99": sorted(wall)[math.ceil(0.99 * len(wall)) - 1],
                "cpu_ms": statistics.median(cpu),
                "rss": resident_bytes(),
                "kv_bytes": cache_bytes,  # the most in use after any of these frames
                "allocated_bytes": self.session.memory.cache.allocated_bytes,
            }
        )

    def summary(self) -> dict[str, Any]:
        """The last point against the second: by then buffers have grown and all code has run. None with too few."""

        def ratio(key: str) -> float | None:
            enough = len(self.points) > 2 and self.points[1][key]
            return self.points[-1][key] / self.points[1][key] if enough else None

        growth = ratio("rss")
        return {
            "slowdown": ratio("ms"),
            "slowdown_cpu": ratio("cpu_ms"),
            "slowdown_mean": ratio("ms_mean"),
            "rss_growth": None if growth is None else growth - 1,
            "kv_bytes_max": max((point["kv_bytes"] for point in self.points), default=0),
            "frames": self.points[-1]["frames"] if self.points else 0,
            "every": self.every,
            "events": self.events,
            "points": self.points,
        }


def resident_bytes() -> int:
    """Resident memory of this process; its maximum so far where the system tells nothing else."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        import resource
        import sys

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def draw(result: dict[str, Any], picture: Path) -> None:
    """Three panels over frames: milliseconds, resident memory, cache."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from videollm_mod.files import atomic_write

    points, mib = result["points"], 2**20
    frames = [point["frames"] for point in points]
    figure = Figure(figsize=(9, 8), layout="constrained")
    FigureCanvasAgg(figure)
    time_of, memory, cache = figure.subplots(3, 1, sharex=True)
    for key, name in (("ms", "median"), ("ms_mean", "mean"), ("ms_p99", "99th percentile")):
        time_of.plot(frames, [point[key] for point in points], label=name)
    time_of.set_ylabel("ms per frame")
    memory.plot(frames, [point["rss"] / mib for point in points], label="resident memory")
    memory.set_ylabel("MiB")
    cache.plot(frames, [point["kv_bytes"] / mib for point in points], label="cache entries in use, at most")
    cache.plot(frames, [point["allocated_bytes"] / mib for point in points], label="their buffers")
    if result["budget"] is not None:
        cache.axhline(result["budget"] / mib, color="grey", linestyle="--", label="budget")
    cache.set_ylabel("MiB")
    cache.set_xlabel("frames")
    slowdown = "" if result["slowdown"] is None else f", slowdown {result['slowdown']:.3f}"
    time_of.set_title(f"policy {result['policy']}{slowdown}", fontsize=10)
    for panel in (time_of, memory, cache):
        panel.set_ylim(0, 1.2 * panel.dataLim.ymax)  # a flat line would lie on the frame
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    with atomic_write(picture, binary=True) as file:
        figure.savefig(file, format="png", dpi=100)


def _film(model: StreamingVideoLM, frames: int) -> Tensor:
    """Tokens of world frames, (frames, tokens per frame, width), from the model's tower."""
    from videollm_mod.evaluate.streams import features_of
    from videollm_mod.world import WorldConfig, make_stream

    fps = model.settings.fps
    world = WorldConfig(seconds=max(frames / fps, 1.0), fps=fps, size=model.encoder.tower.image_size)
    return features_of(model, make_stream("test", 0, world))[:frames].clone()


def _check(config: BenchSoak) -> None:
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError
    from videollm_mod.watch import check_policy

    counts = {name: getattr(config, name) for name in ("frames", "every", "film", "ask_every", "threads")}
    check_least(1, **counts)
    if config.film > 7200:
        raise InputError(f"--film {config.film} is too long; a world stream has at most 7200 frames.")
    check_policy(config.policy, config.window, parse_size("--budget", config.budget))
    for path in (config.out, config.plot):
        if path is not None:
            check_writable(path)
    if config.plot is not None and config.plot.suffix.lower() != ".png":
        raise InputError(f"--plot {config.plot} is not a picture's name; end it in .png.")
