"""docs/reductions.md: one row per method, from the registry and from what was measured."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from videollm_mod.reductions import Reduction, methods
from videollm_mod.reductions.base import name_of

WHERE = {
    "frames": "by pixels, before the decoder",
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
OWN = '''@dataclass
class FirstCells(Reduction):
    """The first k cells of each frame."""

    keep: float = 0.25  # hyper-parameters are fields

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        return tokens.take(torch.arange(self.count(len(tokens))))'''


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
        'routed = vm.load("tiny", depth=vm.DepthPlan("interleaved", keep=0.2))  # goes with any of them',
        'for_good = vm.load("tiny", reduction="grt=0.5+faster_vlm=0.25")  # and so does `--reduction`',
        "```",
        "",
        "`watch`, `show`, `serve`, `eval world`, `clips`, `endless` and every benchmark take `--reduction NAME=SHARE`, "
        "or JSON for a method's other fields; pictures of kept tokens show what it leaves. Methods that act before the "
        "decoder (stages frames, tower, tokens) run many streams in one step, in an `Engine` and so in `serve`; those "
        "within it or on its cache have one stream at a time.",
        "",
        "A dropped token keeps its place and position and goes through no layer of the decoder. A frame's CLS is never "
        "dropped. `keep` is the share of a frame's other tokens that is left, rounded up, in every method; behind "
        "another one in a `Compose`, of what that has left. A method that needs the question ranks by the attention of "
        "what stands in the stream: begin the session with it, `StreamSession(model, system=question)`.",
        "",
        "One of your own is a file in that folder, or a class anywhere; `base.py` there says what it is given:",
        "",
        "```python",
        "from dataclasses import dataclass",
        "",
        "import torch",
        "",
        "from videollm_mod.reductions import Reduction, Signals, Tokens",
        "",
        "",
        *OWN.splitlines(),
        "```",
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
    if result.get("quick"):
        lines += ["**Of a trial with `--quick`: these numbers mean nothing.**", ""]
    if result.get("missing"):
        lines += [f"{result['missing']} settings are not measured yet; `runs/bench_reductions.sh` goes on.", ""]
    lines += [
        f"Model `{result['model']}`, {result['streams']} test streams of {result['seconds']:g} s, {dials}. All rows "
        "have the same weights, and each its own threshold, chosen on validation streams. *Adapted*: after "
        f"{result['adapt']} steps of training with the method in place, from those weights. Against dense, in brackets "
        "95 % of the paired bootstrap over streams: as it is, against the dense model as it is; adapted, against the "
        f"dense model trained just as long. {evenly}Methods that need a question beforehand get the system text. A "
        "method that sees whole videos streams in its causal form: all but its LM-PPL, which is of one pass, is that "
        "form's.",
        "",
        "F1 (event F1 on its own words) and questions (share answered right): higher is better; LM-PPL: lower is.",
        "",
        "Things kept: of the cells that things lie on, the share that is left where the method has done all it does; "
        "chance is the share of all cells. A method that merges may have part of a thing in a cell beside it, and a "
        "model that has never missed background may miss that, too.",
        "",
        "Time, FLOPs and KV bytes: of the newest frames of a long stream, picture to decision, and as shares of the "
        f"dense model's, timed in turn ({where['cpu']}, {where['threads']} thread(s), torch {where['torch']}). How far "
        "such times differ by chance is the dense row's own share. Signals + choice, part of the time before: what the "
        "method's signals take in the tower (less than nothing where it spares the tower work), and what it does ahead "
        "of the decoder.",
        "",
    ]
    lines += [f"![F1 against measured time a frame]({plot})", ""] if plot else []
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
    if kind.streamable == "whole" and kind.causal is not Reduction.causal:
        streams = f"as `{name_of(type(one.causal()))}`: as published, {kind.why_not}"
    elif kind.streamable == "whole" and kind.why_not:
        streams = f"no: {kind.why_not}"
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
    head += ["things kept", "ms a frame", "of dense", "signals + choice, ms", "FLOPs, of dense", "KV bytes, of dense"]
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
        row += [_number(free.get("things", adapted.get("things")), 2)]
        row += [_number(cost.get("ms_per_frame"), 1), _number(cost.get("time_share"), 2)]
        row += [" + ".join(f"{ms:.2f}" for ms in own) or "-"]
        rows.append([*row, *(_number(cost.get(share), 2) for share in ("flops_share", "kv_share"))])
    return head, rows


def _f1(cell: dict[str, Any]) -> list[str]:
    if "f1_difference" not in cell:
        return [_number(cell.get("f1"), 3), "-"]
    value, low, high = cell["f1_difference"]
    same = cell["name"] == "dense"  # which is held against itself
    return [_number(cell["f1"], 3), "" if same else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    safe = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(
        ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in safe)]
    )
