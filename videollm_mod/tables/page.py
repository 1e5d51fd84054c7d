"""The tables as a page: Markdown with one plot per table, from the results that are there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videollm_mod.evaluate.spread import estimate
from videollm_mod.files import atomic_write
from videollm_mod.tables.cells import MOD, all_cells
from videollm_mod.tables.claims import all_claims
from videollm_mod.world.config import DIFFICULTIES

TITLES = {
    "policies": "What the vision tokens skip",
    "plans": "Which layers route",
    "scorers": "Who is kept",
    "ours": "Gates and options",
}
COLUMNS = {  # metric -> its name
    "f1": "event F1",
    "question_accuracy": "questions",
    "f1_teacher_forced": "F1, true context",
    "false_alarms_per_minute": "false alarms per quiet minute",
    "lm_ppl": "LM-PPL",
    "time_diff": "TimeDiff s",
    "fluency": "Fluency",
    "lm_correctness": "LM-Correctness",
}
COSTS = {"train_flops": "FLOPs", "step_time": "step time", "activation_peak": "activation peak", "kv_bytes": "KV bytes"}

Results = dict[str, dict[int, dict[str, Any]]]  # cell -> seed -> its JSON


def write_page(results: Path, current: Callable[[dict[str, Any]], bool] = lambda result: True) -> Path:
    """Write README.md and a PNG per table into the folder of results; returns the page's path.

    current: whether a result is still of its cell as it is now; others count as not there.
    """
    found = read_results(results, current)
    costs = json.loads((results / "costs.json").read_text()) if (results / "costs.json").exists() else {}
    parts = [
        "# The paper's tables in miniature",
        "Made by `runs/paper_tables.sh` from the JSON files beside this page. F1 and questions on the model's own "
        f"words; in brackets 95 % intervals over seeds and test streams; ΔF1 against `{MOD}`, with the same seeds and "
        "streams for both. With fewer than three seeds an interval says little of what another seed would give.",
        "## What the paper claims",
        _claims(found),
    ]
    results.mkdir(parents=True, exist_ok=True)
    for table, title in TITLES.items():
        names = [cell.name for cell in all_cells() if table in cell.tables]
        there = [name for name in names if name in found]
        parts.append(f"## {title}")
        missing = [name for name in names if name not in found]
        if there:
            _plot(results / f"{table}.png", {name: found[name] for name in there})
            shown = "Event F1 of each cell with its interval; its validation loss over its steps"
            parts += [_table(there, found, costs), f"![{shown}]({table}.png)"]
        if missing:
            parts.append(f"Not there yet: {'; '.join(missing)}.")
    everywhere = [cell.name for cell in all_cells() if cell.everywhere and cell.name in found]
    if everywhere:
        parts += [
            "## Three difficulties",
            "The same models, trained in the middle one, watch test streams of all three (smaller, faster things among "
            "more clutter, noise and compression): event F1.",
            _difficulties(everywhere, found),
        ]
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


def read_results(results: Path, current: Callable[[dict[str, Any]], bool] = lambda result: True) -> Results:
    """All results of a folder that are current."""
    found: Results = {}
    for path in sorted(results.glob("*-s*.json")):
        result = json.loads(path.read_text())
        if not current(result):
            continue
        found.setdefault(result["cell"], {})[result["seed"]] = result
    return found


def _table(names: Sequence[str], found: Results, costs: dict[str, dict[str, float]]) -> str:
    heads = ["cell", "seeds", *COLUMNS.values(), "ΔF1", *COSTS.values()]
    rows = [heads, ["---"] * len(heads)]
    dense = next(iter(found["full"].values()))["cost"] if "full" in found else {}
    for name in names:
        seeds = found[name]
        row = [name, str(len(seeds))]
        known = estimate(seeds)
        row += ["{:.3f} [{:.3f}, {:.3f}]".format(*known[key]) for key in COLUMNS]
        row.append(_difference(name, found))
        cost = {**next(iter(seeds.values()))["cost"], **costs.get(name, {})}
        for key in COSTS:
            value = cost[key] / dense[key] if key in dense else cost.get(key) if key in costs.get(name, {}) else None
            row.append("" if value is None else f"{value:.2f}")
        rows.append(row)
    return _rows(rows)


def _difficulties(names: Sequence[str], found: Results) -> str:
    rows = [["cell", *DIFFICULTIES], ["---"] * (1 + len(DIFFICULTIES))]
    for name in names:
        row = [name]
        for world in DIFFICULTIES:
            there = {
                seed: result if world == "medium" else result["others"].get(world)
                for seed, result in found[name].items()
            }
            there = {seed: result for seed, result in there.items() if result is not None}
            row.append("{:.3f} [{:.3f}, {:.3f}]".format(*estimate(there)["f1"]) if there else "")
        rows.append(row)
    return _rows(rows)


def _rows(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _difference(name: str, found: Results) -> str:
    if name == MOD or not set(found[name]) & set(found.get(MOD, {})):
        return ""
    return _signed(estimate(found[name], found[MOD])["f1"])


def _signed(values: tuple[float, float, float]) -> str:
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(*values)


def _claims(found: Results) -> str:
    """Each claim beside the difference in F1 that speaks for or against it, as far as its cells are there."""
    rows = [["claim", "difference in F1", "seeds", "seen?"], ["---"] * 4]
    for claim in all_claims():
        row = [claim.sentence, "", "", ""]
        seeds = set(found.get(claim.cell, {})) & set(found.get(claim.other, {}))
        if seeds:
            values = estimate(found[claim.cell], found[claim.other])["f1"]
            row[1:] = [_signed(values), str(len(seeds)), claim.verdict(*values[1:])]
        rows.append(row)
    return _rows(rows)


def _plot(path: Path, cells: Results) -> None:
    """Left each cell's F1, its interval and seeds; right its validation loss over steps, a thin line per seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, max(4.5, 0.32 * len(cells))), layout="constrained")
    scores, curves = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for number, (name, seeds) in enumerate(cells.items()):
        colour, style = f"C{number % 10}", "-" if number < 10 else "--"
        value, low, high = estimate(seeds)["f1"]
        scores.plot([low, high], [number, number], color=colour, linewidth=3, alpha=0.4)
        scores.plot([estimate({seed: result})["f1"][0] for seed, result in seeds.items()], [number] * len(seeds), "|k")
        scores.plot(value, number, "o", color=colour)
        lines = [[(row["step"], row["loss"]) for row in result["validation"]] for result in seeds.values()]
        for line in lines:
            curves.plot(*zip(*line), color=colour, alpha=0.3, linewidth=0.8)
        mean = [(rows[0][0], sum(loss for _, loss in rows) / len(rows)) for rows in zip(*lines)]
        curves.plot(*zip(*mean), color=colour, label=name, linestyle=style)
    scores.set_yticks(range(len(cells)), list(cells))
    scores.invert_yaxis()
    scores.set_xlabel("event F1, 95 % interval; marks: seeds")
    scores.grid(alpha=0.3, axis="x")
    curves.set_yscale("log")
    curves.set_ylabel("validation loss")
    _finish(figure, curves, path)


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
        figure.savefig(file, format="png", dpi=100)
