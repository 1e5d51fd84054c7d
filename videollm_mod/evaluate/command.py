"""`videollm-mod eval NAME`: one of the field's benchmarks, truly streamed, on the model's own words and on true ones.

    videollm-mod eval coin-step --data COIN/ --videos COIN/videos --out results/coin-step.json
    videollm-mod eval coin-step --data COIN/ --chance
    videollm-mod eval coin-step --data COIN/ --videos COIN/videos --journal j.jsonl --shard 1/4    # and 2/4, 3/4, 4/4
    videollm-mod eval coin-step --data COIN/ --videos COIN/videos --journal j.jsonl                # puts them together

Flags and outputs are checked before the model is loaded; heavy modules are imported where they are used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from videollm_mod.evaluate.names import BATCH, BENCHMARK_NAMES
from videollm_mod.flags import (
    PLANS,
    REDUCTION_HELP,
    check_keep,
    check_least,
    check_probability,
    reduced_by,
    stored_as,
)

if TYPE_CHECKING:
    from videollm_mod.data.reading import Source
    from videollm_mod.data.segments import Stream
    from videollm_mod.evaluate.benchmarks import Benchmark
    from videollm_mod.evaluate.playing import How, Result
    from videollm_mod.model import StreamingVideoLM


@dataclass(frozen=True)
class BenchmarkConfig:
    """Which data, which model, and how."""

    data: Path
    """The folder of the annotation files as published; for video-qa and narration, the file."""
    model: str = "tiny"
    """The bundled model "tiny", a model's folder, or a hub id."""
    videos: Path | None = None
    """The folder of the videos, at any depth."""
    features: Path | None = None
    """Instead, a folder of features that `videollm-mod extract` wrote."""
    split: str | None = None
    """Of the data; the one that is evaluated if not given."""
    out: Path | None = None
    """Write the result into this file; `eval report` makes tables of a folder of them."""
    journal: Path | None = None
    """Keep each stream's result in this file as soon as it is there; the same command then goes on from it."""
    shard: str | None = None
    """i/n: every n-th video from the i-th on, for n jobs of any scheduler, into a journal of its own beside --journal.
    The same command without --shard puts them together."""
    workers: int | None = None
    """Processes, one thread each; one per CPU core if not given. 1, and a model on a GPU, stay in this process, with
    all threads."""
    batch: int = BATCH
    """Streams of each process that share the model's steps: the same result, sooner. 1: one after another."""
    chance: bool = False
    """Measure the chance baseline on the same data instead of a model."""
    compat: bool = False
    """Count as the public code does, quirks included: docs/metrics.md lists them."""
    streams: int | None = None
    """Only the first so many streams; all if not given."""
    frames: int | None = None
    """Frames of a stream at most (the paper trains on 1200); all if not given."""
    tolerance: float = 2.0
    """Seconds that a narration may be off."""
    candidates: int | None = None
    """Answers to each question, of which the best counts where the benchmark says so; its own number if not given."""
    threshold: float | None = None
    """Speak when the probability of silence falls below this; the model's own if not given."""
    keep: float | None = None
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]; the model's own if not given."""
    plan: Annotated[str | None, tyro.conf.arg(help=f"Which layers route: {PLANS}; the model's own if not given.")] = (
        None
    )
    reduction: Annotated[str | None, tyro.conf.arg(metavar="NAME=SHARE", help=REDUCTION_HELP)] = None
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """How the model's weights are stored; the last two round the decoder's, with torchao (`[quant]`)."""
    kv: Literal["int8", "fp8"] | None = None
    """How keys and values are stored; as they are if not given."""
    seed: int = 0
    """Of candidates, chance and bootstrap."""
    skip_bad: bool = False
    """Leave out records that are not right; they are counted."""
    skip_missing: bool = False
    """Leave out videos that are not there; they are counted."""
    meteor: bool = False
    """METEOR as well, which needs Java."""


def evaluate(name: str, config: BenchmarkConfig) -> dict[str, Any]:
    """Run the benchmark; returns the final JSON. Raises InputError for what the user can mend."""
    shard = _check(config)
    from rich.console import Console

    from videollm_mod.evaluate.benchmarks import BENCHMARKS, Settings
    from videollm_mod.evaluate.bootstrap import add, bootstrap
    from videollm_mod.evaluate.judges import FORCED, finite
    from videollm_mod.evaluate.result import FORMAT, hash_frames, versions, warnings_for, write_result
    from videollm_mod.types import InputError

    benchmark = BENCHMARKS[name]
    source, reading = benchmark.read(
        config.data,
        config.split,
        videos=None if config.chance else config.videos,
        features=None if config.chance else config.features,
        skip_bad=config.skip_bad,
        skip_missing=config.skip_missing,
    )
    streams = [stream for stream in reading if config.chance or _is_there(stream, source)]
    twice = next((name for name, count in Counter(stream.id for stream in streams).items() if count > 1), None)
    if twice is not None:  # results are kept by these names
        raise InputError(f"two streams of {config.data} are called '{twice}'; give each a name of its own.")
    streams = _of_shard(streams[: config.streams], shard)
    if not streams:
        raise InputError(f"{name} has no streams in {config.data}; check the split and the videos.")
    model = _load(config)
    began = time.monotonic()
    rounds, new = (
        _chance(benchmark, config, model, streams)
        if config.chance
        else _watch(benchmark, config, model, streams, shard)
    )
    wall = time.monotonic() - began
    threshold = model.settings.threshold
    judge = benchmark.judge(source, Settings(threshold, config.tolerance, config.compat, config.meteor))
    pairs = [(stream, result) for stream, results in zip(streams, rounds) for result in results]
    videos: dict[str, Any] = {}
    for (stream, _), sums in zip(pairs, judge.tally(pairs)):
        before = videos.get(_video(stream))
        videos[_video(stream)] = sums if before is None else add([before, sums])
    metrics = bootstrap(list(videos.values()), judge.measure, seed=config.seed)
    if config.chance:  # nothing was put into its mouth
        metrics = {key: value for key, value in metrics.items() if key not in (*FORCED, "exact_replies")}
    for value in metrics.values():
        value.update({key: finite(number) for key, number in value.items()})
    first = [results[0] for results in rounds]
    result: dict[str, Any] = {
        "format": FORMAT,
        "benchmark": name,
        "model": "chance" if config.chance else config.model,
        "chance": config.chance,
        "compat": config.compat,
        "metrics": metrics,
        "main": [key for key in benchmark.main if key in metrics],
        "teacher_forced": [key for key in (*FORCED, "exact_replies") if key in metrics],
        "samples": sum(len(stream.replies) for stream in streams),
        "streams": len(streams),
        "videos": len(videos),
        "frames": sum(one.frames for one in first),
        "frame_times": hash_frames({stream.id: one.times for stream, one in zip(streams, first)}),
        "seed": config.seed,
        "split": source.split,
        "data": str(config.data),
        "plan": None if config.chance else model.plan.to_dict(),
        "dtype": None if config.chance else config.dtype,
        "kv": None if config.chance else config.kv,
        "reduction": None if config.chance else reduced_by(config.reduction).get("reduction"),
        "threshold": None if config.chance else threshold,
        "fps": model.settings.fps,
        "tolerance": config.tolerance,
        "candidates": config.candidates or benchmark.candidates,
        "shard": config.shard,
        "versions": versions(),
        "skipped": len(source.skipped),
        "missing": len(source.missing),
        "warnings": warnings_for(len(videos), source.missing, source.skipped),
        "wall_seconds": round(wall, 2),
        "frames_per_second": round(new / wall, 2) if new and wall else None,
    }
    if config.out is not None:
        write_result(config.out, result)
    console = Console(stderr=True)
    console.print(table(result), highlight=False, markup=False, soft_wrap=True)
    return result


def _is_there(stream: Stream, source: Source) -> bool:
    """Whether a stream's file is; raises InputError if it is not and must be."""
    from videollm_mod.types import InputError

    file = stream.features or stream.video
    if file is None:
        page = f"; get them with: {source.video_page}" if source.video_page else ""
        raise InputError(
            f"stream '{stream.id}' of {source.name} has neither video nor features; give --videos or --features{page}."
        )
    if file.exists():
        return True
    if not source.skip_missing:
        raise InputError(f"stream '{stream.id}' needs {file}, which is not there; correct it, or add --skip-missing.")
    source.missing.add(str(file))
    return False


def _load(config: BenchmarkConfig) -> StreamingVideoLM:
    from videollm_mod.depth.plan import parse_layers
    from videollm_mod.model import load

    wishes = stored_as(config.dtype, config.kv) | reduced_by(config.reduction)
    return load(config.model, plan=parse_layers(config.plan), keep=config.keep, threshold=config.threshold, **wishes)


def _watch(
    benchmark: Benchmark,
    config: BenchmarkConfig,
    model: StreamingVideoLM,
    streams: list[Stream],
    shard: tuple[int, int] | None,
) -> tuple[list[list[Result]], int]:
    """One result for each stream, and how many frames were watched anew."""
    from videollm_mod.evaluate.benchmarks import protocol_of
    from videollm_mod.evaluate.journal import Journal, model_subject, read_journal
    from videollm_mod.evaluate.playing import Result, play
    from videollm_mod.evaluate.streams import run_streams
    from videollm_mod.types import InputError

    workers = config.workers or os.cpu_count() or 1
    hows = {protocol: _how(benchmark, config, protocol) for protocol in ("narrate", "answer", "proactive")}
    about = model_subject(model) | {"benchmark": benchmark.name, "how": hows[benchmark.protocol].__dict__}
    known: dict[str, dict[str, Any]] = {}
    kept = None
    if config.journal is not None:
        own = _journal_of(config.journal, shard)
        for path in (
            [] if shard else sorted(config.journal.parent.glob(_journal_of(config.journal, None, "*-of-*").name))
        ):
            known |= read_journal(path, about)
        kept = Journal(own, about)
        known |= kept.done
    for stream in streams:
        if known.get(stream.id, {}).get("of") not in (None, _digest(stream)):
            raise InputError(
                f"the journal {config.journal} is of other data, which has another stream '{stream.id}'; give another "
                "file."
            )
    jobs = [(stream, hows[protocol_of(benchmark, stream)]) for stream in streams if stream.id not in known]
    jobs.sort(key=lambda job: -_seconds(job[0]))  # those that share steps should end together, and the longest begin
    found: dict[str, Result] = {}
    digests = {stream.id: _digest(stream) for stream, _ in jobs}

    def done(one: tuple[str, Result]) -> None:
        found[one[0]] = one[1]
        if kept is not None:
            kept.add(one[0], one[1].to_dict() | {"of": digests[one[0]]})

    try:
        run_streams(model, play, jobs, workers=workers, batch=config.batch, title=benchmark.name, done=done)
    finally:
        if kept is not None:
            kept.__exit__()
    results = [
        found.get(stream.id)
        or Result.from_dict({k: v for k, v in known[stream.id].items() if k not in ("stream", "of")})
        for stream in streams
    ]
    return [[result] for result in results], sum(result.frames for result in found.values())


def _digest(stream: Stream) -> str:
    """Of what is said in a stream and when, wherever its video lies."""
    from videollm_mod.data.segments import stream_record

    record = stream_record(dataclasses.replace(stream, video=None, features=None, meta={}))
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()[:16]


def _seconds(stream: Stream) -> float:
    start, end = stream.span
    return (end or math.inf) - start


def _how(benchmark: Benchmark, config: BenchmarkConfig, protocol: str) -> How:
    from videollm_mod.evaluate.playing import How

    return How(
        protocol,
        config.candidates or benchmark.candidates,
        benchmark.tokens,
        config.frames,
        benchmark.forced and protocol != "proactive",
        config.compat,
        config.seed,
    )


def _chance(
    benchmark: Benchmark, config: BenchmarkConfig, model: StreamingVideoLM, streams: list[Stream]
) -> tuple[list[list[Result]], int]:
    from videollm_mod.evaluate.benchmarks import protocol_of
    from videollm_mod.evaluate.chance import chance_results

    protocols = [protocol_of(benchmark, stream) for stream in streams]
    candidates = config.candidates or benchmark.candidates
    return chance_results(streams, protocols, model.settings.fps, candidates, config.seed), 0


def table(result: dict[str, Any]) -> str:
    """The metrics for the eye, the main ones first, with their 95 % intervals, and the warnings: some lines of text."""
    metrics = result["metrics"]
    order = [*result["main"], *(key for key in metrics if key not in result["main"])]
    rows = [(key, _shown(metrics[key])) for key in order]
    width = max(len(key) for key, _ in rows)
    lines = [f"{key:<{width}}  {value}" for key, value in rows]
    return "\n".join([*lines, *(f"warning: {message}" for message in result["warnings"])])


def _shown(value: dict[str, float | None]) -> str:
    if value["value"] is None:
        return "none"
    between = "" if value["low"] is None else f"  [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['value']:.3f}{between}"


# -- shards ------------------------------------------------------------------------------------------------------------


def _video(stream: Stream) -> str:
    return str(stream.meta.get("video", stream.video or stream.id))


def _of_shard(streams: list[Stream], shard: tuple[int, int] | None) -> list[Stream]:
    """Those of every n-th video."""
    if shard is None:
        return streams
    numbers = {video: place for place, video in enumerate(dict.fromkeys(map(_video, streams)))}
    return [stream for stream in streams if numbers[_video(stream)] % shard[1] == shard[0]]


def _journal_of(path: Path, shard: tuple[int, int] | None, mark: str = "") -> Path:
    mark = f"{shard[0] + 1}-of-{shard[1]}" if shard else mark
    return path.with_name(f"{path.stem}.{mark}{path.suffix}") if mark else path


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """ "1/4" -> (0, 4); None stays None. Raises InputError for anything else."""
    from videollm_mod.types import InputError

    if text is None:
        return None
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count) <= 100_000):
        raise InputError(f"--shard {text} is none; give i/n, such as 1/4, with i from 1 to n.")
    return int(number) - 1, int(count)


def _check(config: BenchmarkConfig) -> tuple[int, int] | None:
    """Raise InputError for a flag that cannot be right or an output that cannot be written; returns the shard."""
    from videollm_mod.depth.plan import parse_layers
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError

    check_least(1, streams=config.streams, workers=config.workers, batch=config.batch)
    check_least(1, frames=config.frames, candidates=config.candidates)
    check_probability(threshold=config.threshold)
    check_keep(config.keep)
    parse_layers(config.plan)
    if not 0 < config.tolerance <= 3600:
        raise InputError(f"--tolerance {config.tolerance:g} is out of range; give up to 3600 seconds.")
    if config.candidates is not None and config.candidates > 100:
        raise InputError(f"--candidates {config.candidates} is too large; give up to 100.")
    shard = parse_shard(config.shard)
    if shard and config.journal is None and not config.chance:
        raise InputError("--shard needs --journal, which the shards are put together from; give a file.")
    for path in (config.out, config.journal):
        if path is not None:
            check_writable(path)
    return shard


# -- a function for each line of the table, as cli.py wants them -------------------------------------------------------


def _command(name: str) -> Callable[[BenchmarkConfig], dict[str, Any]]:
    def run(config: BenchmarkConfig) -> dict[str, Any]:
        return evaluate(name, config)

    return run


def __getattr__(name: str) -> Callable[[BenchmarkConfig], dict[str, Any]]:
    """`evaluate.command.coin_step` is the command `eval coin-step`."""
    benchmark = name.replace("_", "-")
    if benchmark not in BENCHMARK_NAMES:
        raise AttributeError(name)
    return _command(benchmark)
