"""A run's log as one picture: what was learned, validation beside it, and the gradients of the experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videollm_mod.files import atomic_write

Rows = list[dict[str, Any]]


def draw_curves(log: Path, picture: Path) -> None:
    """log: lines of log.jsonl -> a PNG of 1400 x 800 pixels. A log without steps gives empty axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows: Rows = [json.loads(line) for line in log.read_text().splitlines()]
    tower, stream, validation = ([r for r in rows if r["stage"] == s] for s in ("tower", "stream", "validation"))
    figure = Figure(figsize=(14, 8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2)
    _lines(panels[0, 0], tower, ("colour", "shape", "size", "count"), "tower: share named right")
    _lines(panels[0, 1], stream, ("lm_loss", "stream_loss", "change_loss"), "streams: loss")
    for name, colour in (("lm_loss", "C0"), ("stream_loss", "C1")):
        points = [(row["step"], row[name]) for row in validation if name in row]
        if points:
            panels[0, 1].plot(*zip(*points), "o", color=colour, label=f"{name}, validation")
    panels[0, 1].set_yscale("log")
    words = ("speak_recall", "speak_precision", "sentences_right")
    _lines(panels[1, 0], validation, words, "validation, in the true context", marker="o")
    _lines(panels[1, 1], stream, ("gradient", "expert_gradient"), "gradient norms: all, and of an expert")
    panels[1, 1].set_yscale("log")
    for panel in panels.flat:
        panel.set_xlabel("step")
        panel.grid(alpha=0.3)
        if panel.get_legend_handles_labels()[1]:
            panel.legend(fontsize=8)
    with atomic_write(picture, binary=True) as file:
        figure.savefig(file, format="png", dpi=100)


def _lines(panel: Any, rows: Rows, names: tuple[str, ...], title: str, marker: str = "") -> None:
    panel.set_title(title, fontsize=10)
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            panel.plot(*zip(*points), marker=marker, label=name)
