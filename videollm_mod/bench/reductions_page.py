"""docs/reductions.md: one row per method, from the registry and from what was measured; nothing is typed in."""

from __future__ import annotations

import inspect
from typing import Any

from videollm_mod.reductions import Reduction, methods

WHERE = {
    "frames": "pixels, before the tower",
    "tower": "between the tower's blocks",
    "tokens": "before the decoder",
    "layer": "between decoder layers",
    "cache": "KV cache, behind a frame",
}
STREAMS = {
    "causal": "yes",
    "lookahead": "no",
    "question": "with the question given beforehand",
    "whole": "no",
}


def page(result: dict[str, Any] | None = None, fidelity: dict[str, Any] | None = None, plot: str | None = None) -> str:
    """The page, Markdown. `result`: of `bench reductions`; `fidelity`: of runs/reduction_fidelity.py."""
    measured = (result or {}).get("cells", [])
    lines = [
        "# Other ways to spend fewer vision tokens",
        "",
        "Written by `videollm-mod bench reductions --page docs/reductions.md` from the methods themselves "
        "(`videollm_mod/reductions/`, one file each) and from what was measured. Do not edit.",
        "",
        "```python",
        "import videollm_mod as vm",
        "",
        "with vm.reductions.Uniform(keep=0.25).on(model):  # goes in, and always comes out again",
        "    session = vm.StreamSession(model)",
        "    ...",
        "",
        "both = vm.Compose([vm.reductions.FasterVLM(keep=0.5), vm.reductions.QuickVideo(keep=0.5)])",
        "```",
        "",
        "A dropped token keeps its place and position and goes through no layer of the decoder. A frame's CLS is never "
        "dropped. `keep` is the share of a frame's other tokens that is left, rounded up, in every method.",
        "",
        "## What each can do",
        "",
        _table(
            ["method", "where", "signals", "live streams", "prunes or merges", "trained for it", "when to use it"],
            [_capabilities(name, kind) for name, kind in methods().items()],
        ),
        "",
        "## Beside the authors' code",
        "",
        "The same random tensors into their selection functions and ours (`runs/reduction_fidelity*.py`).",
        "",
        _table(["authors' code", "what", "the same in"], _fidelity(fidelity or {})),
        "",
        "What each takes, and where it differs on purpose:",
        "",
        *(line for kind in methods().values() for line in _about(kind)),
        "## Measured",
        "",
    ]
    if not measured:
        return "\n".join([*lines, "Not measured yet: `runs/bench_reductions.sh`.", ""])
    assert result is not None
    lines += [
        f"Model `{result['model']}`, {result['streams']} test streams of {result['seconds']:g} s, {result['cpu']}, "
        f"{result['threads']} thread(s), torch {result['torch']}. The weights are the same in every row: nothing is "
        "trained. ms, FLOPs: of the newest frame of a long stream, picture to decision. Own cost: of the method's "
        "signals in the tower and of its choice, ms, part of the ms before.",
        "",
    ]
    lines += [f"![F1 against milliseconds per frame]({plot})", ""] if plot else []
    lines += [_table(*_numbers(measured)), ""]
    refused = [cell for cell in measured if "refused" in cell]
    if refused:
        lines += ["Refused by this model:", ""]
        lines += [f"- {why}" for why in dict.fromkeys(cell["refused"] for cell in refused)]
        lines += [""]
    return "\n".join(lines)


def _capabilities(name: str, kind: type[Reduction]) -> list[str]:
    one = kind()
    needs = ", ".join(dict.fromkeys(signal.replace("_", " ") for signal, _ in one.needs)) or "none"
    title = f"[{kind.title}]({kind.paper})" if kind.paper else kind.title
    streams = STREAMS[kind.streamable]
    if kind.streamable == "whole":
        streams = f"no: {kind.why_not}" if kind.why_not else streams
    return [
        f"{title} `{name}`",
        WHERE[kind.stage],
        needs + (", the question" if kind.needs_query else ""),
        streams,
        "merges" if kind.merges else "prunes",
        "yes" if kind.trained else "no",
        kind.when,
    ]


def _fidelity(told: dict[str, Any]) -> list[list[str]]:
    rows = []
    for peer, found in told.items():
        version = f" ({found['version']})" if found.get("version") else ""
        rows += [[f"{peer}{version}", what, same] for what, same in found.items() if what != "version"]
    return rows or [["none compared yet", "", ""]]


def _about(kind: type[Reduction]) -> list[str]:
    """A method's own words on what it takes and where it differs, as one paragraph."""
    document = inspect.getdoc(kind) or ""
    return [f"**{kind.title}**", "", "```", document, "```", ""]


def _numbers(cells: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["", "F1", "LM-PPL", "questions", "ms a frame", "own cost", "MFLOP a frame", "KV share"]
    rows = []
    for cell in cells:
        if "refused" in cell:
            continue
        own = [cell[name] for name in ("signals_ms", "choice_ms") if name in cell]
        rows.append(
            [
                cell["name"],
                _number(cell["f1"], 3),
                _number(cell["lm_ppl"], 3),
                _number(cell["question_accuracy"], 3),
                _number(cell["ms_per_frame"], 1),
                " + ".join(f"{ms:.2f}" for ms in own) or "-",
                _number(cell["flops_per_frame"] / 1e6, 0),
                _number(cell["kv_share"], 2),
            ]
        )
    return head, rows


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in safe)]
    )
