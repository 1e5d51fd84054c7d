"""What was said on the model's own context against what is true, as stretches of time: IoU, pairs, repeats.

Narrations have a time, not a stretch. As in FlowNar (arXiv 2606.00620), which brought this protocol, a sentence tells
of what was seen since the one before it: its span goes from there, or from the beginning, to its own time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from videollm_mod.evaluate.metrics import Said, match, share

IOU = 0.5  # temporal intersection over union from which two spans are the same
Span = tuple[float, float]


def spans(said: Sequence[Said], start: float) -> list[Span]:
    """Seconds (from, to) that each sentence tells of; `said` ascends by time, the first begins at `start`."""
    times = [start, *(item.time for item in said)]
    return [(min(a, b), b) for a, b in zip(times, times[1:])]


def iou(ours: Sequence[Span], theirs: Sequence[Span]) -> np.ndarray:
    """Temporal intersection over union of all pairs: (ours, theirs) float64. Empty spans have 0 with everything."""
    a, b = (np.array(part, dtype=float).reshape(-1, 2) for part in (ours, theirs))
    shared = np.clip(np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0]), 0, None)
    union = (a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def match_spans(ours: Sequence[Span], theirs: Sequence[Span], least: float = IOU) -> list[tuple[int, int]]:
    """One-to-one pairs (index in ours, index in theirs) with an IoU of at least `least`; the best overlaps go first."""
    overlap = iou(ours, theirs)
    pairs, taken, met = [], set(), set()
    for flat in np.argsort(-overlap, axis=None, kind="stable").tolist():
        i, j = divmod(flat, len(theirs))
        if overlap[i, j] < least:
            break
        if i not in taken and j not in met:
            pairs.append((i, j))
            taken.add(i)
            met.add(j)
    return sorted(pairs)


def flownar_alignment(ours: Sequence[Span], theirs: Sequence[Span], least: float = IOU) -> tuple[float, float, float]:
    """Precision, recall and F1 of one video as FlowNar's code counts: a true span may stand for several of ours, and
    one of ours for several true ones."""
    if not ours or not theirs:
        return 0.0, 0.0, 0.0
    near = iou(ours, theirs) >= least
    precision, recall = float(near.any(1).mean()), float(near.any(0).mean())
    return precision, recall, share(2 * precision * recall, precision + recall)  # type: ignore[arg-type]


def flownar_pairs(ours: Sequence[Span], theirs: Sequence[Span]) -> list[tuple[int, int]]:
    """Pairs whose words FlowNar's code compares: every true span with that of ours that lies nearest (generalised IoU),
    whether they overlap or not."""
    if not ours or not theirs:
        return []
    a, b = (np.array(part, dtype=float) for part in (ours, theirs))
    shared = np.clip(np.minimum(a[:, None, 1], b[None, :, 1]) - np.maximum(a[:, None, 0], b[None, :, 0]), 0, None)
    union = np.clip((a[:, 1] - a[:, 0])[:, None] + (b[:, 1] - b[:, 0])[None] - shared, 1e-8, None)
    around = np.maximum(a[:, None, 1], b[None, :, 1]) - np.minimum(a[:, None, 0], b[None, :, 0])
    general = shared / union - (around - union) / np.clip(around, 1e-8, None)
    return [(int(i), j) for j, i in enumerate(general.argmax(0))]


def duplicates(said: Sequence[Said], true: Sequence[Said], tolerance: float) -> list[int]:
    """Indices in `said` of what was told of something true that another sentence tells of already: it is near a true
    sentence, but no one-to-one pairing in time has room for it."""
    paired = {i for i, _ in match(said, true, by_text=False, tolerance=tolerance)}
    near = tolerance + 1e-6
    return [
        i
        for i, item in enumerate(said)
        if i not in paired and any(abs(item.time - other.time) <= near for other in true)
    ]


def repeats(said: Sequence[Said]) -> list[int]:
    """Indices of sentences that say, word for word, what the one before them said."""
    return [i for i in range(1, len(said)) if said[i].text == said[i - 1].text]
