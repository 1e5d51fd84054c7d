"""Metrics as pure functions: the teacher-forced ones of VideoLLM-online per turn, and matching of what was said.

A turn is one reply with the S frames since the reply before it. L is the number of its text labels (EOS included), c
the index of the first of them that the argmax misses (L if none), j the first of its S frames at which it speaks.
`compat=True` gives what the public code of VideoLLM-online gives; docs/metrics.md says where and why that differs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

TOLERANCE = 0.5  # seconds that something said may be off
_ROUNDING = 1e-6  # times are sums of floats: 2.0 - 1.5 may not exceed 0.5


# -- per turn, given the true context ----------------------------------------------------------------------------------


def lm_ppl(cross_entropies: Sequence[float]) -> float:
    """LM-PPL: exp of the mean cross-entropy (nats) over a turn's text labels."""
    return math.exp(sum(cross_entropies) / len(cross_entropies))


def first_wrong(right: Sequence[bool]) -> int:
    """c: how many text labels the argmax gets right before its first mistake; all of them if it makes none."""
    return next((index for index, ok in enumerate(right) if not ok), len(right))


def lm_correctness(right: Sequence[bool]) -> float:
    """LM-Correctness: c / L."""
    return first_wrong(right) / len(right)


def frames_off(speaks: Sequence[bool], later: Sequence[bool] = (), *, compat: bool = False) -> int:
    """d, in frames: positive = too early, 0 = the right frame, negative = too late.

    speaks: whether the model speaks at each of the turn's S frames; the last is the right one.
    later: if it speaks at none, whether it speaks at each of the frames shown after that. With no hit there either it
        is as late as it was watched, and at least one frame: a reply that never comes is not a timely one.
    compat: a reply that was missed counts as timely when no frame could be shown after it.
    """
    if any(speaks):
        return len(speaks) - 1 - list(speaks).index(True)
    if any(later):
        return -(list(later).index(True) + 1)
    return -max(len(later), 0 if compat else 1)


def time_diff(off: int, fps: float) -> float:
    """TimeDiff: |d| in seconds."""
    return abs(off) / fps


def fluency(frames: int, labels: int, correct: int, off: int, *, compat: bool = False) -> float:
    """Fluency: the share of a turn's S + L predictions that are right before the first mistake.

    frames, labels, correct, off: S, L, c and d. An early model was rightly silent at j = S - d - 1 frames, a late one
    at all S - 1 that wanted silence.
    compat: an early reply is credited with j + 1.
    """
    if off == 0:
        return (frames + correct) / (frames + labels)
    credit = 1 if compat and off > 0 else 0
    return (frames - max(off, 0) - 1 + credit) / (frames + labels)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of what is there; None if nothing is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


# -- what was said against what is true, both in time ------------------------------------------------------------------


class Said(NamedTuple):
    """A sentence and its time, said or true."""

    time: float  # seconds
    text: str


def match(
    said: Sequence[Said], true: Sequence[Said], *, by_text: bool = True, tolerance: float = TOLERANCE
) -> list[tuple[int, int]]:
    """One-to-one pairs (index in said, index in true) that are at most `tolerance` seconds apart, as many as possible.

    by_text: the sentences must be exactly the same. Both lists ascend by time; in doubt the earlier ones are paired.
    """
    pairs: list[tuple[int, int]] = []
    texts = {item.text for item in said} if by_text else {None}
    for text in texts:
        ours = [i for i, item in enumerate(said) if text is None or item.text == text]
        theirs = [i for i, item in enumerate(true) if text is None or item.text == text]
        # On a line with one tolerance for all, pairing the earliest that can be paired gives a maximum matching.
        while ours and theirs:
            apart = said[ours[0]].time - true[theirs[0]].time
            if abs(apart) <= tolerance + _ROUNDING:
                pairs.append((ours.pop(0), theirs.pop(0)))
            elif apart < 0:
                ours.pop(0)
            else:
                theirs.pop(0)
    return sorted(pairs)


def false_alarms(said: Sequence[Said], true: Sequence[Said], *, tolerance: float = TOLERANCE) -> list[int]:
    """Indices in `said` of what was said with no true sentence of any kind within `tolerance`."""
    near = tolerance + _ROUNDING
    return [i for i, item in enumerate(said) if all(abs(item.time - other.time) > near for other in true)]


def quiet_seconds(true: Sequence[Said], seconds: float, start: float = 0.0, *, tolerance: float = TOLERANCE) -> float:
    """How long, from `start` to `seconds`, a stream is further than `tolerance` from any true sentence."""
    quiet, end = 0.0, start
    for time in sorted(item.time for item in true):
        quiet += max(min(time - tolerance, seconds) - end, 0.0)
        end = max(end, time + tolerance)
    return quiet + max(seconds - end, 0.0)


def share(part: int, whole: int, *, empty: float = 0.0) -> float:
    """part / whole; `empty` where there is nothing to divide by."""
    return part / whole if whole else empty


def precision_recall_f1(right: int, said: int, true: int) -> tuple[float, float, float]:
    """Precision, recall and F1 of `right` pairs. Silence with something to say has precision 0, with nothing 1."""
    nothing = 1.0 if said == true == 0 else 0.0
    return (
        share(right, said, empty=nothing),
        share(right, true, empty=nothing),
        share(2 * right, said + true, empty=nothing),
    )
