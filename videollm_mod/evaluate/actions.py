"""Sequences and classes of actions: edit distance at Z and the area under it (LTA), top-k, mean-class recall."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from videollm_mod.types import InputError

Z = 20  # actions to foresee in long-term anticipation


def edit_distance(candidates: Sequence[Sequence[Hashable]], true: Sequence[Hashable], z: int = Z) -> float:
    """ED@z: the Levenshtein distance of the first z actions to the true ones, divided by z, of the best candidate.

    What lies behind z counts for nothing; a candidate that is too short pays for each action that it lacks.
    """
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise InputError("edit distances need rapidfuzz; pip install 'videollm-mod[eval]'.") from error
    return min(int(Levenshtein.distance(list(said[:z]), list(true[:z]))) for said in candidates) / z


def edit_curve(candidates: Sequence[Sequence[Hashable]], true: Sequence[Hashable]) -> np.ndarray:
    """ED@1 to ED@Z, (Z,) float64."""
    return np.array([edit_distance(candidates, true, z) for z in range(1, Z + 1)])


def area_under(curve: np.ndarray, *, compat: bool = False) -> float:
    """The mean of ED@1 to ED@Z, in which each z counts once.

    compat: the trapezoid rule divided by Z - 1, in which the first and the last z count by half, as in the code of
    VideoLLM-online and of Ego4D's benchmark.
    """
    if compat:
        return float((curve[:-1] + curve[1:]).sum() / 2 / (len(curve) - 1))
    return float(curve.mean())


def in_top(ranked: Sequence[Hashable], true: Hashable, k: int) -> bool:
    """Whether the truth is among the first k different answers."""
    return true in list(dict.fromkeys(ranked))[:k]


def class_recall(hits: np.ndarray, counts: np.ndarray) -> float | None:
    """Mean over the classes that occur of the share of their samples that was right: hits, counts (classes,)."""
    there = counts > 0
    return float((hits[there] / counts[there]).mean()) if there.any() else None
