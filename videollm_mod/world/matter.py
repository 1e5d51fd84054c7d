"""Which vision tokens matter: what an oracle would keep. It needs the truth, so it is a bound, not a method."""

from __future__ import annotations

import numpy as np

from videollm_mod.world.stream import WorldStream

CENTRE, CLS = 2.0, 1.5  # above every share of a cell, which is at most 1


def matter(stream: WorldStream, grid: tuple[int, int]) -> np.ndarray:
    """How much each vision token of a stream matters: (F, 1 + h * w) float32, 0 = not at all.

    First the cells with the centre of a thing or a hand's tip, now or one frame ago (what disappeared was there), then
    CLS, then cells by the share that a thing or a hand covers. Clutter and background matter not at all.
    """
    h, w = grid
    scores = np.zeros((len(stream.times), h, w), dtype=np.float32)
    before: list[tuple[int, int]] = []
    for frame, time in enumerate(stream.times):
        centres = []
        for seen in stream.visible(float(time)):
            if seen.role == "clutter":
                continue
            x0, y0, x1, y1 = seen.box
            scores[frame] = np.maximum(scores[frame], np.outer(_shares(y0, y1, h), _shares(x0, x1, w)))
            x, y = seen.centre
            if 0 <= x < 1 and 0 <= y < 1:
                centres.append((int(y * h), int(x * w)))
        for place in (*before, *centres):
            scores[frame][place] = CENTRE
        before = centres
    return np.concatenate([np.full((len(scores), 1), CLS, np.float32), scores.reshape(len(scores), -1)], axis=1)


def _shares(low: float, high: float, parts: int) -> np.ndarray:
    """Of each of `parts` equal parts of 0..1, the share that lies between low and high: (parts,)."""
    edges = np.arange(parts + 1) / parts
    return np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None) * parts
