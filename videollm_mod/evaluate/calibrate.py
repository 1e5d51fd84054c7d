"""The threshold for silence, chosen on held-out streams: the one at which a model, on its own words, has the best F1.

Running sessions is what costs, so the search starts where the teacher-forced F1 is best (one pass per stream serves all
thresholds) and climbs from there among neighbouring thresholds on self-conditioned F1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from videollm_mod.evaluate.metrics import Said, precision_recall_f1
from videollm_mod.evaluate.streams import Film, features_of, run_jobs, run_streams, watch_own, watch_truth
from videollm_mod.evaluate.summary import compare
from videollm_mod.model import StreamingVideoLM
from videollm_mod.types import InputError
from videollm_mod.world import Narrated

HELD = 1 << 30  # bytes of frames' vectors that wait for the next threshold
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class Tried:
    """One threshold."""

    threshold: float
    f1_teacher_forced: float
    f1: float | None  # self-conditioned, names apart if they do not count; None if the search did not get there


def calibrate(
    model: StreamingVideoLM,
    streams: Sequence[Narrated],
    *,
    grid: Sequence[float] = GRID,
    workers: int = 1,
    names: bool = True,
) -> tuple[float, list[Tried]]:
    """The best threshold of an ascending grid, and what was measured at each of them. The model is not changed.

    names: whether the whole sentence must be right; else, of fixed cameras, kind and side (events.py).

    Raises:
        InputError: no streams, or a grid that is empty, does not ascend or leaves [0, 1].
    """
    if not streams:
        raise InputError("calibration got 0 streams; give some of the validation split.")
    if not grid or list(grid) != sorted(set(grid)) or not 0 <= grid[0] <= grid[-1] <= 1:
        raise InputError(
            f"calibration grid {list(grid)} does not ascend within [0, 1]; give for example 0.3, 0.5, 0.7."
        )
    films = _films(model, streams, workers)
    judged = run_jobs(model, watch_truth, films, workers=workers, title="calibrating: true context")
    forced = []
    for threshold in grid:
        counts = [stream.counts(threshold) for stream in judged]
        forced.append(precision_recall_f1(*(sum(count[i] for count in counts) for i in range(3)))[2])

    def own_f1(place: int) -> float:
        jobs = [(film, grid[place]) for film in films]
        title = f"calibrating: own words, threshold {grid[place]:g}"
        results = [
            compare([Said(event.time, event.text) for event in own.narrations], own.answers, stream)
            for stream, own in zip(streams, run_streams(model, watch_own, jobs, workers=workers, title=title))
        ]
        if names:
            counts = [(len(result.right), len(result.said), len(result.true)) for result in results]
        else:
            counts = [result.events for result in results]
        return precision_recall_f1(*(sum(count[i] for count in counts) for i in range(3)))[2]

    peak = [place for place, score in enumerate(forced) if score == max(forced)]
    best, measured = climb(own_f1, peak[len(peak) // 2], len(grid))
    table = [Tried(threshold, score, measured.get(i)) for i, (threshold, score) in enumerate(zip(grid, forced))]
    return grid[best], table


def _films(model: StreamingVideoLM, streams: Sequence[Narrated], workers: int) -> list[Film]:
    """The streams with their frames' vectors, so that the tower does not see each of them once for every threshold.

    Without, where they would be too much, or would have to be handed to other processes again and again.
    """
    frames = sum(len(stream.times) for stream in streams)
    size = 4 * frames * model.encoder.tokens_per_frame * model.feature_width
    if workers > 1 or size > HELD:
        return [(stream, None) for stream in streams]
    return list(zip(streams, run_jobs(model, features_of, streams, title="calibrating: pictures")))


def climb(measure: Callable[[int], float], start: int, places: int) -> tuple[int, dict[int, float]]:
    """The place in range(places) of the highest measure found by going uphill from `start`; and all that was measured.

    Both neighbours of the best place have been measured when it ends. Of equals, the first one found is the best.
    """
    measured: dict[int, float] = {}
    best, ahead = start, [start, start - 1, start + 1]
    while ahead:
        for place in ahead:
            measured[place] = measure(place) if 0 <= place < places else -1.0
            best = place if measured[place] > measured[best] else best
        ahead = [place for place in (best - 1, best + 1) if place not in measured]
    return best, {place: value for place, value in measured.items() if 0 <= place < places}
