"""How sure a cell's numbers are: 95 % bootstrap intervals over its seeds and, within them, over test streams.

Two cells are compared seed by seed and stream by stream: both get the same draws. With one seed an interval is that of
streams alone; with three, resampling them tells less than they vary, so differences near an interval's end stay open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from videollm_mod.evaluate.summary import Tally

RESAMPLES = 1000
COUNTS = ("said", "true", "right", "alarms", "quiet_minutes", "questions", "answered")
FORCED = ("forced_right", "forced_said", "forced_true")
MEANS = ("lm_ppl", "time_diff", "fluency", "lm_correctness")  # of a stream's narrations, then of streams
Array = NDArray[np.float64]
Seeds = Mapping[int, Mapping[str, Any]]  # of a cell: seed -> its JSON


def per_stream(tallies: Sequence[Tally]) -> dict[str, list[float | None]]:
    """What a cell's JSON keeps of its streams, to resample them: name -> a number per stream, None where there is none.

    Rounded to four decimals.
    """
    found = {name: [getattr(tally, name) for tally in tallies] for name in (*COUNTS, *MEANS)}
    found |= {name: [tally.forced[place] for tally in tallies] for place, name in enumerate(FORCED)}
    return {name: [None if value is None else round(value, 4) for value in values] for name, values in found.items()}


def _columns(kept: Mapping[str, Sequence[float | None]]) -> dict[str, Array]:
    """What adds up over streams: name -> (streams,)."""
    found = {name: np.array(values, dtype=float) for name, values in kept.items()}  # None -> nan
    for name in MEANS:
        found[f"{name}_streams"] = np.isfinite(found[name]).astype(float)
        found[name] = np.nan_to_num(found[name])
    return found


_RATIOS: dict[str, Callable[[Mapping[str, Array]], tuple[Array, Array]]] = {
    "f1": lambda sums: (2 * sums["right"], sums["said"] + sums["true"]),
    "f1_teacher_forced": lambda sums: (2 * sums["forced_right"], sums["forced_said"] + sums["forced_true"]),
    "question_accuracy": lambda sums: (sums["answered"], sums["questions"]),
    "false_alarms_per_minute": lambda sums: (sums["alarms"], sums["quiet_minutes"]),
    **{name: lambda sums, name=name: (sums[name], sums[f"{name}_streams"]) for name in MEANS},  # type: ignore[misc]
}
METRICS = tuple(_RATIOS)


def estimate(cell: Seeds, other: Seeds | None = None) -> dict[str, tuple[float, float, float]]:
    """metric -> (value, low, high): a cell's mean over seeds; minus that of another, over the seeds that both have."""
    seeds = sorted(cell if other is None else set(cell) & set(other))
    parts = [_draw(cell, seeds), *([_draw(other, seeds)] if other is not None else [])]
    found = {}
    for metric in METRICS:
        values = parts[0][metric] - (parts[1][metric] if len(parts) == 2 else 0.0)
        low, high = np.quantile(values[1:], (0.025, 0.975)).tolist()
        found[metric] = (float(values[0]), low, high)
    return found


def _draw(cell: Seeds, seeds: Sequence[int]) -> dict[str, Array]:
    """metric -> (1 + RESAMPLES,): as it is, and of each resample. Repeatable: the same for all cells of a size."""
    columns = [_columns(cell[seed]["per_stream"]) for seed in seeds]
    streams, rng = len(columns[0]["said"]), np.random.default_rng(0)
    some_streams = rng.multinomial(streams, np.full(streams, 1 / streams), size=RESAMPLES)
    some_seeds = rng.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=RESAMPLES)
    weights = np.concatenate([np.ones((1, streams)), some_streams]).astype(float)
    of_seeds = np.concatenate([np.ones((1, len(seeds))), some_seeds]).T / len(seeds)  # (seeds, 1 + RESAMPLES)
    sums = [{name: weights @ values for name, values in column.items()} for column in columns]
    found = {}
    for metric, parts in _RATIOS.items():
        each = [part / np.maximum(whole, 1e-9) for part, whole in map(parts, sums)]
        found[metric] = (np.stack(each) * of_seeds).sum(0)
    return found
