"""The report of `eval world`: index.html with the metrics and the ten worst streams, and a PNG strip per mistake.

Everything it needs is in its folder; it follows the reader's light or dark setting.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from videollm_mod.evaluate.mistakes import Mistake, worst
from videollm_mod.evaluate.streams import Watched
from videollm_mod.evaluate.summary import spoken
from videollm_mod.files import atomic_write

AROUND = 1.5  # seconds of frames shown before and after a mistake
GAP = 4  # pixels between frames of a strip
TRUE, SAID = (38, 166, 91), (220, 60, 60)  # outlines: the frame at which it should have spoken, at which it spoke
NAMES = {
    "f1": "Event F1, own words (±0.5 s, right sentence)",
    "precision": "Precision",
    "recall": "Recall",
    "f1_kind_and_side": "Event F1, kind and side right (±1 s, names apart)",
    "timing_f1": "Timing F1 (any sentence)",
    "content_accuracy": "Right sentence, of those in time",
    "false_alarms_per_minute": "False alarms per minute of quiet",
    "late_false_alarms_per_minute": "The same after 100 frames",
    "question_accuracy": "Questions answered exactly right",
    "f1_teacher_forced": "Event F1, true context (to the frame)",
    "lm_ppl": "LM-PPL",
    "time_diff": "TimeDiff, s",
    "fluency": "Fluency",
    "lm_correctness": "LM-Correctness",
}
PLOT = (800, 130)  # pixels of a plot; its curve lies between TOP and BOTTOM
TOP, BOTTOM = 22, 100

STYLE = """
:root { --page: #fff; --ink: #1b1f24; --soft: #667080; --line: #d9dee5; --panel: #f5f7f9; --curve: #2563c9;
  --true: #26a65b; --said: #dc3c3c; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e9ee; --soft: #98a2b0; --line: #323943;
  --panel: #1c2026; --curve: #7aa7ff; --true: #4cc47c; --said: #ff7a70; } }
body { background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); font-size: .87em; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--line); font-weight: normal; }
thead th { color: var(--soft); } td { font-variant-numeric: tabular-nums; }
.tables { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem; }
.scroll { overflow-x: auto; } svg { display: block; min-width: 40rem; width: 100%; }
.case { background: var(--panel); border-radius: 6px; padding: .6rem .8rem; margin: .6rem 0; }
.case img { display: block; } .times { display: grid; gap: 4px; color: var(--soft); font-size: .8em; }
.true { color: var(--true); } .said { color: var(--said); } b { font-weight: 600; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; } .rule { stroke: var(--line); }
.curve { fill: none; stroke: var(--curve); stroke-width: 1.6; } .forced { stroke-dasharray: 3 3; opacity: .55; }
.limit { stroke: var(--soft); stroke-dasharray: 6 4; }
.mark-true { fill: var(--true); } .mark-said { fill: var(--said); }
"""


def write_report(folder: Path, result: dict[str, Any], watched: Sequence[Watched], threshold: float) -> Path:
    """Write the report into an existing folder; returns the page's path. The page appears when all else is there.

    result: the JSON of `eval world`. watched: the streams of its split.
    """
    cases = []
    for rank, (item, mistakes) in enumerate(worst(watched), start=1):
        frames = item.stream.frames()
        strips = []
        for number, mistake in enumerate(mistakes, start=1):
            name = f"worst_{rank:02d}_{number:02d}.png"
            shown = _frames_around(mistake, item.stream.times)
            with atomic_write(folder / name, binary=True) as file:
                file.write(_strip(frames, shown, mistake, item.stream.times))
            strips.append(_case(mistake, name, item.stream.times[shown], frames.shape[2]))
        many = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
        cases.append(
            f"<h3>{rank}. {escape(item.stream.name)}: {many}</h3>\n{_plot(item, threshold)}\n" + "\n".join(strips)
        )
    page = folder / "index.html"
    with atomic_write(page) as file:
        file.write(_page(result, cases))
    return page


def _page(result: dict[str, Any], cases: Sequence[str]) -> str:
    plan = ", ".join(f"{key} {value}" for key, value in result["plan"].items() if value is not None)
    split = escape(result["split"])
    found = "\n".join(cases) if cases else "<p>No stream has a mistake.</p>"
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>videollm-mod on the world: {split}</title><style>{STYLE}</style>
<h1>How well {escape(result["model"])} narrates the synthetic world</h1>
<p>{escape(result["description"])}: {result["streams"]} streams,
{result["events"]} events, {result["questions"]} questions.</p>
<p class="soft">It speaks when the probability of silence is below {result["threshold"]:g}. Depth plan: {escape(plan)}.
{result["frames_per_second"]:g} frames per second with {result["workers"]} process(es), all measurements included.</p>
{_metrics_table(result)}
<div class="tables">
{_kinds_table("event", result["by_kind"], (("recall", "right"), ("timing_recall", "in time")))}
{_kinds_table("question", result["by_question"], (("accuracy", "right"),))}
</div>
<h2>The worst streams</h2>
<p class="soft">The curve is the probability of speaking, frame by frame: solid on its own words, dotted given the true
context. Above the dashed line it speaks. <span class="true">▲ what happened</span>,
<span class="said">▼ what it said that was wrong</span>, <span class="true">▼ what it said that was right</span>.
In the strips the <span class="true">green</span> frame is where it should have spoken, the
<span class="said">red</span> one where it spoke.</p>
{found}
</html>
"""


def _metrics_table(result: dict[str, Any]) -> str:
    columns = [(result["split"], result)]
    if result["heldout"] and result["split"] != "heldout":
        columns.append((f"heldout ({result['heldout']['streams']} streams)", result["heldout"]))
    head = "".join(f"<th>{escape(name)}</th><th>95 % interval</th>" for name, _ in columns)
    rows = []
    for key, name in NAMES.items():
        cells = []
        for _, values in columns:
            ends = values["intervals"][key]
            between = f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""
            cells.append(f'<td>{_number(values[key])}</td><td class="soft">{between}</td>')
        rows.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>{"".join(rows)}</table></div>'


def _kinds_table(what: str, kinds: dict[str, dict[str, float]], columns: Sequence[tuple[str, str]]) -> str:
    head = "".join(f"<th>{name}</th>" for _, name in columns)
    rows = "".join(
        f"<tr><th>{escape(kind)}</th><td>{values[what + 's']}</td>"
        + "".join(f"<td>{values[key]:.2f}</td>" for key, _ in columns)
        + "</tr>"
        for kind, values in kinds.items()
    )
    return f"<table><thead><tr><th>{what}</th><th>number</th>{head}</tr></thead>{rows}</table>"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


# -- one stream --------------------------------------------------------------------------------------------------------


def _plot(item: Watched, threshold: float) -> str:
    """The probability of speaking over time, with what happened below and what was said above: inline SVG."""
    result, seconds = spoken(item), item.stream.config.seconds
    left, width = 34, PLOT[0] - 54

    def x(time: float) -> float:
        return round(left + width * time / seconds, 1)

    def y(probability: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * probability, 1)

    def curve(silence: np.ndarray, style: str) -> str:
        points = " ".join(f"{x(time)},{y(1 - p)}" for time, p in zip(item.stream.times, silence.tolist()))
        return f'<polyline class="{style}" points="{points}"/>'

    parts = [f'<line class="rule" x1="{left}" x2="{left + width}" y1="{y(p)}" y2="{y(p)}"/>' for p in (0, 1)]
    parts += [f'<text x="{left - 6}" y="{y(p) + 4}" text-anchor="end">{p}</text>' for p in (0, 1)]
    parts.append(
        f'<line class="limit" x1="{left}" x2="{left + width}" y1="{y(1 - threshold)}" y2="{y(1 - threshold)}"/>'
    )
    step = max(1, round(seconds / 6))
    parts += [
        f'<text x="{x(time)}" y="{PLOT[1] - 4}" text-anchor="middle">{time} s</text>'
        for time in range(0, int(seconds) + 1, step)
    ]
    parts += [curve(item.truth.silence, "curve forced"), curve(item.own.silence, "curve")]
    for time, text in result.true:
        at = x(time)
        shape = f"{at - 5},{BOTTOM + 13} {at + 5},{BOTTOM + 13} {at},{BOTTOM + 3}"
        parts.append(
            f'<polygon class="mark-true" points="{shape}"><title>{time:.1f} s: {escape(text)}</title></polygon>'
        )
    right = {i for i, _ in result.right}
    for i, (time, text) in enumerate(result.said):
        at, style = x(time), "mark-true" if i in right else "mark-said"
        shape = f"{at - 5},{TOP - 14} {at + 5},{TOP - 14} {at},{TOP - 4}"
        parts.append(f'<polygon class="{style}" points="{shape}"><title>{time:.1f} s: {escape(text)}</title></polygon>')
    label = f"probability of speaking in {item.stream.name}"
    box = f'viewBox="0 0 {PLOT[0]} {PLOT[1]}" role="img" aria-label="{escape(label)}"'
    return f'<div class="scroll"><svg {box}>{"".join(parts)}</svg></div>'


def _frames_around(mistake: Mistake, times: np.ndarray) -> np.ndarray:
    """Numbers of the frames to show, ascending."""
    first, last = mistake.times[0] - AROUND, mistake.times[-1] + AROUND
    return np.flatnonzero((times >= first - 1e-6) & (times <= last + 1e-6))


def _strip(frames: np.ndarray, shown: np.ndarray, mistake: Mistake, times: np.ndarray) -> bytes:
    """Frames (F, S, S, 3) side by side as a PNG, with the frames of the truth and of what was said outlined."""
    size = frames.shape[2]
    strip = Image.new("RGBA", (len(shown) * (size + GAP) - GAP, size))  # transparent gaps suit light and dark pages
    draw = ImageDraw.Draw(strip)
    for place, number in enumerate(shown):
        strip.paste(Image.fromarray(frames[number]), (place * (size + GAP), 0))
        for item, colour, inset in ((mistake.true, TRUE, 0), (mistake.said, SAID, 3)):
            # the first frame at or after a time is the one that shows it
            if item is not None and number == min(np.searchsorted(times, item.time - 1e-6), len(times) - 1):
                left = place * (size + GAP) + inset
                draw.rectangle((left, inset, left + size - 1 - 2 * inset, size - 1 - inset), outline=colour, width=3)
    file = io.BytesIO()
    strip.save(file, "PNG")
    return file.getvalue()


def _case(mistake: Mistake, picture: str, times: np.ndarray, size: int) -> str:
    asked = f"<p>asked: {escape(mistake.question)}</p>" if mistake.question else ""
    lines = "".join(
        f'<p class="{style}"><span class="soft">{label}{item.time:.1f} s</span> {escape(item.text)}</p>'
        for label, style, item in (("true, ", "true", mistake.true), ("said, ", "said", mistake.said))
        if item is not None
    )
    labels = "".join(f"<span>{time:.1f} s</span>" for time in times)
    alt = f"{len(times)} frames from {times[0]:.1f} s to {times[-1]:.1f} s"
    return f"""<div class="case"><p><b>{mistake.kind}</b></p>{asked}{lines}
<div class="scroll"><img src="{picture}" alt="{alt}">
<div class="times" style="grid-template-columns: repeat({len(times)}, {size}px)">{labels}</div></div></div>"""
