"""docs/reductions.md and its plot: one row per method, from the registry and from what was measured."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollm_mod.files import atomic_write
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
    where, dials = result["costs"], ", ".join(result["dials"]) or "the usual dials"
    even = any(cell["plan"]["scorer"] == "uniform" for cell in measured)
    evenly = "Depth routing that has not been adapted has no experts, and keeps evenly spaced tokens. " if even else ""
    lines += [
        f"Model `{result['model']}`, {result['streams']} test streams of {result['seconds']:g} s, {dials}. All rows "
        "have the same weights, and each its own threshold, chosen on validation streams. *Adapted*: after "
        f"{result['adapt']} steps of training with the method in place, from those weights. Brackets: 95 % of the "
        f"paired bootstrap over streams, against the dense model as it is. {evenly}Methods that need a question "
        "beforehand get the system text.",
        "",
        "Time, FLOPs and KV bytes: of the newest frames of a long stream, picture to decision, as shares of the dense "
        f"model's, timed in turn ({where['cpu']}, {where['threads']} thread(s), torch {where['torch']}). Own cost: of "
        "the method's signals in the tower and of its choice, ms, part of the time before.",
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


def _numbers(cells: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    head = ["", "F1", "against dense", "adapted", "against dense", "LM-PPL", "adapted", "questions", "adapted"]
    head += ["time", "own cost, ms", "FLOPs", "KV bytes"]
    rows = []
    for name in dict.fromkeys(cell["name"] for cell in cells if "refused" not in cell):
        both = [
            [cell for cell in cells if cell["name"] == name and bool(cell["steps"]) == learned] for learned in (0, 1)
        ]
        free, adapted = (found[0] if found and "f1" in found[0] else {} for found in both)
        cost = free or adapted
        own = [cost[key] for key in ("signals_ms", "choice_ms") if key in cost]
        row = [name, *_f1(free), *_f1(adapted)]
        for metric in ("lm_ppl", "question_accuracy"):
            row += [_number(found.get(metric), 3) for found in (free, adapted)]
        row += [_number(cost.get("time_share"), 2), " + ".join(f"{ms:.2f}" for ms in own) or "-"]
        rows.append([*row, *(_number(cost.get(share), 2) for share in ("flops_share", "kv_share"))])
    return head, rows


def _f1(cell: dict[str, Any]) -> list[str]:
    if "f1_difference" not in cell:
        return [_number(cell.get("f1"), 3), "-"]
    value, low, high = cell["f1_difference"]
    return [_number(cell["f1"], 3), "" if value == low == high == 0 else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def draw_plot(result: dict[str, Any], path: Path) -> None:
    """F1 against measured time, as a share of the dense model's: as it is, a line per method over its shares; and
    adapted, a point each, alone and with depth routing."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(13, 6), sharey=True, layout="constrained")
    found = [cell for cell in result["cells"] if "f1" in cell and "time_share" in cell]
    names = list(dict.fromkeys(cell["name"].split(" + ")[0].rsplit(" ", 1)[0] for cell in found))
    for number, name in enumerate(names):
        heavy = name in ("dense", "depth routing")
        style: dict[str, Any] = {
            "marker": "*" if heavy else "osD^v<>Ph"[number % 9],
            "markersize": 12 if heavy else 6,
            "color": ("black" if name == "dense" else "crimson") if heavy else pyplot.get_cmap("tab20")(number % 20),
        }
        of_name = [cell for cell in found if cell["name"].split(" + ")[0].rsplit(" ", 1)[0] == name]
        alone = [_place(cell) for cell in of_name if not cell["steps"] and "+" not in cell["name"]]
        panels[0].plot(*zip(*alone), linewidth=2.5 if heavy else 1, label=name, **style) if alone else None
        for paired in (False, True):
            learned = [_place(cell) for cell in of_name if cell["steps"] and ("+" in cell["name"]) == paired]
            if learned:
                panels[1].plot(*zip(*learned), linestyle="", fillstyle="none" if paired else "full", **style)
    share = next((cell["keep"] for cell in found if cell["steps"] and cell["name"] != "dense"), "")
    panels[0].set_title("the model as it is, shares of each method joined")
    panels[1].set_title(
        f"after {result['adapt']} steps with the method in place, share {share}; hollow: with depth routing 0.2"
    )
    panels[0].set_ylabel("event F1 on its own words")
    for axes in panels:
        axes.set_xlabel("time a frame, measured, as a share of the dense model's")
        axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def _place(cell: dict[str, Any]) -> tuple[float, float]:
    return cell["time_share"], cell["f1"]


def _table(head: list[str], rows: list[list[str]]) -> str:
    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in safe)]
    )
