"""The tables as a page: Markdown with one plot per table, from the results that are there.

Intervals are 95 % bootstrap intervals over seeds and, within them, over test streams; a difference to the reference
cell is resampled with the same seeds and streams for both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollm_mod.evaluate.summary import Tally, metrics_of
from videollm_mod.files import atomic_write
from videollm_mod.tables.cells import MOD, all_cells

RESAMPLES = 500
TITLES = {
    "policies": "What the vision tokens skip",
    "plans": "Which layers route",
    "scorers": "Who is kept",
    "ours": "Gates and options",
}
COLUMNS = {  # metric -> its name and digits
    "f1": ("event F1", 3),
    "question_accuracy": ("questions", 3),
    "f1_teacher_forced": ("F1, true context", 3),
    "lm_ppl": ("LM-PPL", 3),
    "time_diff": ("TimeDiff s", 3),
    "fluency": ("Fluency", 3),
    "lm_correctness": ("LM-Correctness", 3),
}
COSTS = {"train_flops": "FLOPs", "step_time": "step time", "activation_peak": "activation peak", "kv_bytes": "KV bytes"}

Results = dict[str, dict[int, dict[str, Any]]]  # cell -> seed -> its JSON


def write_page(results: Path) -> Path:
    """Write README.md and a PNG per table into the folder of results; returns the page's path."""
    found = read_results(results)
    costs = json.loads((results / "costs.json").read_text()) if (results / "costs.json").exists() else {}
    parts = [
        "# The paper's tables in miniature",
        "Made by `runs/paper_tables.sh` from the JSON files beside this page. F1 and questions on the model's own "
        f"words; in brackets 95 % intervals; ΔF1 against `{MOD}`, with the same seeds and streams for both.",
    ]
    results.mkdir(parents=True, exist_ok=True)
    for table, title in TITLES.items():
        names = [cell.name for cell in all_cells() if table in cell.tables]
        there = [name for name in names if name in found]
        parts.append(f"## {title}")
        missing = [name for name in names if name not in found]
        if there:
            _plot(results / f"{table}.png", {name: found[name] for name in there})
            parts += [_table(there, found, costs), f"![Validation loss of each cell over its steps]({table}.png)"]
        if missing:
            parts.append(f"Not there yet: {', '.join(missing)}.")
    if MOD in found:
        _plot_things(results / "experts.png", found[MOD])
        parts += [
            "## What the experts keep",
            f"Of the vision tokens that each routed layer of `{MOD}` keeps (CLS apart), the share that lies on a thing "
            "or a hand, on validation streams; dashed, what chance would keep.",
            "![Share of kept tokens on things, per routed layer, over the steps](experts.png)",
        ]
    page = results / "README.md"
    with atomic_write(page) as file:
        file.write("\n\n".join(parts) + "\n")
    return page


def read_results(results: Path) -> Results:
    """All results of a folder."""
    found: Results = {}
    for path in sorted(results.glob("*-s*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["cell"], {})[result["seed"]] = result
    return found


def _table(names: Sequence[str], found: Results, costs: dict[str, dict[str, float]]) -> str:
    heads = ["cell", "seeds", *(title for title, _ in COLUMNS.values()), "ΔF1", *COSTS.values()]
    rows = [heads, ["---"] * len(heads)]
    dense = next(iter(found["full"].values()))["cost"] if "full" in found else {}
    for name in names:
        seeds = found[name]
        row = [name, str(len(seeds))]
        for key, (_, digits) in COLUMNS.items():
            low, high = interval([seeds], key)
            mean = sum(result[key] for result in seeds.values()) / len(seeds)
            row.append(f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
        row.append(_difference(name, found))
        cost = {**next(iter(seeds.values()))["cost"], **costs.get(name, {})}
        for key in COSTS:
            value = cost[key] / dense[key] if key in dense else cost.get(key) if key in costs.get(name, {}) else None
            row.append("" if value is None else f"{value:.2f}")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _difference(name: str, found: Results) -> str:
    shared = sorted(set(found[name]) & set(found.get(MOD, {})))
    if name == MOD or not shared:
        return ""
    mine, reference = ({seed: found[cell][seed] for seed in shared} for cell in (name, MOD))
    mean = sum(mine[seed]["f1"] - reference[seed]["f1"] for seed in shared) / len(shared)
    low, high = interval([mine, reference], "f1")
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def interval(cells: Sequence[dict[int, dict[str, Any]]], key: str) -> tuple[float, float]:
    """95 % of a metric of one cell, or of the difference of two with the same seeds: seed -> result, with tallies."""
    rng = random.Random(0)
    tallies = [{seed: [Tally(**row) for row in result["tallies"]] for seed, result in cell.items()} for cell in cells]
    seeds = sorted(tallies[0])
    streams = len(tallies[0][seeds[0]])
    drawn = []
    for _ in range(RESAMPLES):
        some_seeds = rng.choices(seeds, k=len(seeds))
        some_streams = rng.choices(range(streams), k=streams)
        values = []
        for cell in tallies:
            each = [metrics_of([cell[seed][stream] for stream in some_streams])[key] for seed in some_seeds]
            numbers = [value for value in each if value is not None]
            values.append(sum(numbers) / max(len(numbers), 1))
        drawn.append(values[0] - values[1] if len(values) == 2 else values[0])
    drawn.sort()
    return drawn[round(0.025 * (RESAMPLES - 1))], drawn[round(0.975 * (RESAMPLES - 1))]


def _plot(path: Path, cells: Results) -> None:
    """Validation loss over steps, a line per cell: the mean over seeds, and a thin one per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, seeds) in enumerate(cells.items()):
        colour = f"C{number % 10}"
        curves = [[(row["step"], row["loss"]) for row in result["validation"]] for result in seeds.values()]
        for curve in curves:
            axes.plot(*zip(*curve), color=colour, alpha=0.3, linewidth=0.8)
        mean = [(rows[0][0], sum(loss for _, loss in rows) / len(rows)) for rows in zip(*curves)]
        axes.plot(*zip(*mean), color=colour, label=name, linestyle="-" if number < 10 else "--")
    axes.set_ylabel("validation loss")
    _finish(figure, axes, path)


def _plot_things(path: Path, seeds: dict[int, dict[str, Any]]) -> None:
    """Of one cell: the share of kept tokens on things over steps, a line per routed layer, a thin one per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    rows = [row for result in seeds.values() for row in result["validation"]]
    layers = sorted({int(key.removeprefix("things_")) for row in rows for key in row if key[7:].isdigit()})
    for number, layer in enumerate(layers):
        curves = [[(row["step"], row[f"things_{layer}"]) for row in seed["validation"]] for seed in seeds.values()]
        for curve in curves:
            axes.plot(*zip(*curve), color=f"C{number}", alpha=0.3, linewidth=0.8)
        mean = [(points[0][0], sum(share for _, share in points) / len(points)) for points in zip(*curves)]
        axes.plot(*zip(*mean), color=f"C{number}", label=f"layer {layer}")
    chance = sum(row["things_chance"] for row in rows) / len(rows)
    axes.axhline(chance, color="grey", linestyle="--", label="chance")
    axes.set_ylabel("kept tokens on things")
    _finish(figure, axes, path)


def _finish(figure: Any, axes: Any, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=110)
