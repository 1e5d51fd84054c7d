"""`videollm-mod eval report FOLDER`: a folder of results as tables in Markdown and HTML, a plot for each benchmark.

On its own words and teacher-forced stand side by side: the second flatters a model whose own mistakes mislead it.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import tyro

OWN, FORCED = "on its own words", "teacher-forced"
LESS_IS_BETTER = {
    "lm_ppl",
    "time_diff",
    "false_alarms_per_quiet_hour",
    "duplicates",
    "repeats",
    "false_alarms_per_minute",
}


@dataclass(frozen=True)
class ReportConfig:
    """Which results, and where to."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder of the results, which `eval NAME --out FILE` wrote; folders in it count, too."""
    out: Path | None = None
    """Write report.md, report.html and the plots into this folder; into FOLDER if not given."""


def report(config: ReportConfig) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""
    from videollm_mod.evaluate.result import read_results
    from videollm_mod.files import atomic_write
    from videollm_mod.types import InputError

    results = read_results(config.folder)
    out = config.out or config.folder
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write --out {out}: {error.strerror}; give another folder.") from error
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(str(result["benchmark"]), []).append(result)
    plots = {}
    for name, group in groups.items():
        plots[name] = f"{name}.png"
        with atomic_write(out / plots[name], binary=True) as file:
            file.write(plot(name, group))
    pictures = {name: (out / file).read_bytes() for name, file in plots.items()}
    for name, text in (("report.md", markdown(groups, plots)), ("report.html", page(groups, pictures))):
        with atomic_write(out / name) as file:
            file.write(text)
    return {
        "results": len(results),
        "benchmarks": list(groups),
        "markdown": str(out / "report.md"),
        "html": str(out / "report.html"),
    }


# -- what a table holds ------------------------------------------------------------------------------------------------


def columns(results: Sequence[dict[str, Any]], side: str) -> list[str]:
    """The metrics of one side, a benchmark's main ones in front; what no result has a number for is left out."""
    order: dict[str, None] = {}
    for result in results:
        for key in [*result.get("main", ()), *result["metrics"]]:
            forced = key in result.get("teacher_forced", ())
            if forced == (side == FORCED) and result["metrics"].get(key, {}).get("value") is not None:
                order[key] = None
    return list(order)


def name_of(result: dict[str, Any]) -> str:
    """A row's name: the model, its plan, and what was special."""
    parts = [str(result.get("model"))]
    plan = result.get("plan") or {}
    if plan.get("layers") and plan.get("layers") != "full":
        parts.append(f"{plan['layers']} {plan.get('keep', '')}".strip())
    elif plan:
        parts.append("full")
    parts += [word for word in ("compat",) if result.get(word)]
    if result.get("shard"):
        parts.append(f"shard {result['shard']}")
    return ", ".join(parts)


def cell(value: dict[str, Any] | None) -> str:
    """ "0.84 [0.82, 0.87]"."""
    if value is None or value.get("value") is None:
        return ""
    shown = _number(value["value"])
    if value.get("low") is None or value.get("high") is None:
        return shown
    return f"{shown} [{_number(value['low'])}, {_number(value['high'])}]"


def _number(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def heading(key: str) -> str:
    """A metric's name, with an arrow where less is better."""
    return key + (" ↓" if key in LESS_IS_BETTER or key.endswith(("_ed", "_area")) else "")


def _rows(results: Sequence[dict[str, Any]], side: str) -> list[list[str]]:
    keys = columns(results, side)
    if not keys:
        return []
    head = ["", *map(heading, keys), "samples", "videos"]
    return [
        head,
        *(
            [
                name_of(result),
                *(cell(result["metrics"].get(key)) for key in keys),
                str(result.get("samples")),
                str(result.get("videos")),
            ]
            for result in results
        ),
    ]


def _notes(results: Sequence[dict[str, Any]]) -> list[str]:
    """What else a reader must know of each row: how to get it again."""
    notes = []
    for result in results:
        versions = result.get("versions") or {}
        decoder = versions.get("decoder") or {}
        facts = [
            f"{key} {result[key]}"
            for key in ("split", "seed", "threshold", "frame_times")
            if result.get(key) is not None
        ]
        facts += [f"{key} {versions[key]}" for key in ("videollm_mod", "torch", "transformers") if versions.get(key)]
        facts += [f"decoded by {decoder['name']} {decoder['version']}"] if decoder else []
        told = [f"warning: {message}" for message in result.get("warnings") or ()]
        notes.append(f"{result['file']}: {'; '.join([*facts, *told])}")
    hashes = {result.get("frame_times") for result in results} - {None}
    seen = {result.get("frame_times") for result in results if not result.get("chance")} - {None}
    if len(seen) > 1 and len(hashes) > 1:
        notes.append("these rows did not see the same frames (frame_times differ): compare with care.")
    return notes


# -- Markdown and HTML -------------------------------------------------------------------------------------------------


def markdown(groups: dict[str, list[dict[str, Any]]], plots: dict[str, str]) -> str:
    """All benchmarks; values with their 95 % intervals over videos."""
    lines = ["# Results", "", "Values with 95 % intervals from a bootstrap over videos.", ""]
    for name, results in groups.items():
        lines += [f"## {name}", "", f"![{name}]({plots[name]})", ""]
        for side in (OWN, FORCED):
            rows = _rows(results, side)
            if not rows:
                continue
            safe = [[text.replace("|", "\\|") for text in row] for row in rows]
            lines += [f"**{side}**", "", "| " + " | ".join(safe[0]) + " |", "|" + "---|" * len(safe[0])]
            lines += ["| " + " | ".join(row) + " |" for row in safe[1:]] + [""]
        lines += [f"- {note}" for note in _notes(results)] + [""]
    return "\n".join(lines)


STYLE = """
:root { --page: #fff; --ink: #1b1f24; --soft: #667080; --line: #d9dee5; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e9ee; --soft: #98a2b0; --line: #323943; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 80rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: .6rem 0; } caption { text-align: left; font-weight: 600; }
th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); font-weight: normal; }
td { font-variant-numeric: tabular-nums; } .soft { color: var(--soft); font-size: .85em; }
.sides { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start; } .scroll { overflow-x: auto; }
img { max-width: 100%; background: #fff; border-radius: 6px; }
"""


def page(groups: dict[str, list[dict[str, Any]]], pictures: dict[str, bytes]) -> str:
    """The same as one HTML file that needs no other."""
    parts = []
    for name, results in groups.items():
        tables = []
        for side in (OWN, FORCED):
            rows = _rows(results, side)
            if rows:
                head = "".join(f"<th>{escape(text)}</th>" for text in rows[0])
                body = "".join(
                    f"<tr><th>{escape(row[0])}</th>" + "".join(f"<td>{escape(text)}</td>" for text in row[1:]) + "</tr>"
                    for row in rows[1:]
                )
                tables.append(
                    f'<div class="scroll"><table><caption>{side}</caption><thead><tr>{head}</tr></thead>{body}'
                    "</table></div>"
                )
        notes = "".join(f"<li>{escape(note)}</li>" for note in _notes(results))
        data = base64.b64encode(pictures[name]).decode()
        parts.append(
            f'<h2>{escape(name)}</h2><img alt="{escape(name)}" src="data:image/png;base64,{data}">'
            f'<div class="sides">{"".join(tables)}</div><ul class="soft">{notes}</ul>'
        )
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Results</title><style>{STYLE}</style><h1>Results</h1>"
        '<p class="soft">Values with 95 % intervals from a bootstrap over videos; ↓ less is better.</p>'
        f"{''.join(parts)}</html>\n"
    )


# -- plots -------------------------------------------------------------------------------------------------------------

SHOWN = 4  # metrics of a side in a plot, at most


def plot(name: str, results: Sequence[dict[str, Any]]) -> bytes:
    """A PNG: for each metric a panel with one bar and its interval per result, own words left, teacher-forced right."""
    from matplotlib.figure import Figure

    panels = [(side, key) for side in (OWN, FORCED) for key in columns(results, side)[:SHOWN]]
    figure = Figure(figsize=(2.3 * max(len(panels), 1), 2.2 + 0.25 * len(results)), layout="constrained")
    figure.suptitle(name, fontsize=10)
    axes = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    places = list(range(len(results)))[::-1]
    for column, (side, key) in enumerate(panels):
        axis = axes[column]
        for place, result in zip(places, results):
            value = result["metrics"].get(key) or {}
            if value.get("value") is None:
                continue
            low, high = (value.get(end) if value.get(end) is not None else value["value"] for end in ("low", "high"))
            error = [[max(value["value"] - low, 0)], [max(high - value["value"], 0)]]
            axis.barh(
                place,
                value["value"],
                color="#b9c0ca" if result.get("chance") else "#2563c9" if side == OWN else "#26a65b",
            )
            axis.errorbar(value["value"], place, xerr=error, color="#1b1f24", capsize=2, linewidth=1)
        axis.set_title(f"{heading(key)}\n{side}", fontsize=8)
        axis.set_yticks(
            places, [name_of(result) for result in results] if column == 0 else [""] * len(results), fontsize=7
        )
        axis.set_ylim(-0.6, len(results) - 0.4)
        axis.tick_params(axis="x", labelsize=7)
        for edge in ("top", "right"):
            axis.spines[edge].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
