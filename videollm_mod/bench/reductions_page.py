"""docs/reductions.md: one row per method, from the registry and from what was measured."""

from __future__ import annotations

import inspect
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from videollm_mod.reductions import Reduction, from_dict, methods
from videollm_mod.reductions.base import HERE, name_of

BLIND = 0.1  # an event F1 below which next to nothing is seen
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
USE = """import videollm_mod as vm

model = vm.load("tiny")
with vm.reductions.Uniform(keep=0.25).on(model):  # goes in, and always comes out again
    session = vm.StreamSession(model)

both = vm.Compose([vm.reductions.FasterVLM(keep=0.5), vm.reductions.QuickVideo(keep=0.5)])
with both.on(model):
    session = vm.StreamSession(model)

question = "Is there a red square?"  # some methods must know it before they see anything
with vm.reductions.TransPrune(keep=0.25).on(model, question=question):
    session = vm.StreamSession(model, system=question)

routed = vm.load("tiny", depth=vm.DepthPlan("interleaved", keep=0.2))  # goes with any of them
for_good = vm.load("tiny", reduction="grt=0.5+faster_vlm=0.25")  # and so does `--reduction`"""
JSON = '{"name": "fo_pru", "keep": 0.25, "rule": "row"}'
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
        *USE.splitlines(),
        "```",
        "",
        "`watch`, `show`, `serve`, `eval world`, `clips`, `endless` and every benchmark take `--reduction NAME=SHARE`, "
        f"or JSON for a method's other fields, such as `--reduction '{JSON}'`; pictures of kept tokens show what "
        "it leaves. Methods that act before the decoder (stages frames, tower, tokens) run many streams in one step, "
        "in an `Engine` and so in `serve`; those within it or on its cache have one stream at a time.",
        "",
        "A dropped token keeps its place and position and goes through no layer of the decoder. A frame's CLS is never "
        "dropped. `keep` is the share of a frame's other tokens that is left, rounded up; behind another one in a "
        "`Compose`, of what that has left. Of some the number depends on the picture or on its grid "
        f"({_names(lambda one: not one.exact)}): what is left in the end is measured below.",
        "",
        "A method that needs the question ranks by the attention of what stands in the stream, so the session begins "
        "with it, as above. `load(..., reduction=)` and the flag give such methods the system text instead.",
        "",
        "The bundled models have a conv tower. Its one attention, which pools a frame's CLS, stands for CLS attention "
        f"and received attention; whoever asks a tower for more is refused there by name: "
        f"{_names(_of_transformers)}. With CLIP and SigLIP towers all of them work.",
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
            ["method", "where", "signals", "live streams", "prunes or merges", "trained for it", "meant for"],
            [_capabilities(name, kind) for name, kind in methods().items()],
        ),
        "",
        "## Beside the authors' code",
        "",
        "The same random tensors into their selection functions and ours (`runs/reduction_fidelity*.py`). FoPru, ToDRE "
        "and Zero-TPrune have published no code; of GRT the file with its gate was at hand, without its commit. Not "
        "run beside theirs, but tried on examples by hand: AIM's cuts from layer to layer, VFlowOpt's in the decoder, "
        "and whom HoliTom's merging in the decoder folds.",
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
    about = f" ({result['about']})" if result.get("about") else ""
    asked = f"; {result['questions']} questions" if result.get("questions") else ""
    dense_ms, (chance, harness) = _dense_ms(measured), _of_nobody(measured)
    even = any(cell["plan"]["scorer"] == "uniform" for cell in measured)
    evenly = "Depth routing that has not been adapted has no experts, and keeps evenly spaced tokens. " if even else ""
    if result.get("quick"):
        lines += ["**Of a trial with `--quick`: these numbers mean nothing.**", ""]
    if result.get("missing"):
        lines += [f"{result['missing']} settings are not measured yet; `runs/bench_reductions.sh` goes on.", ""]
    lines += [
        f"Model `{result['model']}`{about}, {result['streams']} test streams of {result['seconds']:g} s, "
        f"{dials}{asked}. All rows have the same weights, and each its own threshold, chosen on validation streams. "
        f"*Adapted*: after {result['adapt']} steps of training with the method in place, from those weights; that is "
        "done at one share, and in the pairs with depth routing. Against dense, in brackets 95 % of the paired "
        "bootstrap over streams: as it is, against the dense model as it is; adapted, against the dense model trained "
        f"just as long. {evenly}Methods that need a question beforehand get the system text. A method that sees whole "
        "videos streams in its causal form: all but its LM-PPL and threshold, which are of one pass, is that form's.",
        "",
        "F1 (event F1 on its own words) and questions (share answered right): higher is better; LM-PPL: lower is. "
        f"{_guessed(measured)}",
        "",
        f"Left, of {result.get('looked_at', 'some')} of the streams: the share of a frame's cells that is left where "
        "the method has done all it does; of things: of the cells that things lie on, for which the column before is "
        "chance. Merged cells count once, though they tell of several. What acts on a cache drops nothing from a step, "
        f"only from what later steps look at: see KV bytes. {_more_than_asked(measured)}",
        "",
        "Time, FLOPs and KV bytes: of the newest frames of a long stream, picture to decision, as shares of the dense "
        f"model's, timed in turn ({where['cpu']}, {where['threads']} thread(s), torch {where['torch']}); the machine's "
        f"speed drifts, so ms a frame is that share of {dense_ms:.1f} ms, the dense model's median over all rows. How "
        "far such shares differ by chance is the dense row's own. Signals + choice, part of that time: what the "
        f"tower takes longer because of the method (shorter where it spares the tower work; {chance}), and "
        f"what the method does ahead of the decoder, {harness}. What it does within the decoder or on a cache is in "
        "the share alone.",
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
        ("mixes, " if kind.prepare is not Reduction.prepare else "") + ("merges" if one.merges else "prunes"),
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
    head += ["left", "of things", "ms a frame", "of dense", "signals + choice, ms"]
    head += ["FLOPs, of dense", "KV bytes, of dense"]
    rows, dense_ms = [], _dense_ms(cells)
    for name in dict.fromkeys(cell["name"] for cell in cells if "refused" not in cell):
        both = [
            [cell for cell in cells if cell["name"] == name and bool(cell["steps"]) == learned] for learned in (0, 1)
        ]
        free, adapted = (found[0] if found and "f1" in found[0] else {} for found in both)
        cost = free or adapted
        own = [cost[key] for key in ("signals_ms", "choice_ms") if key in cost]
        seen = free if "kept" in free or "things" in free else adapted
        row = [name, *_f1(free), *_f1(adapted)]
        for metric in ("lm_ppl", "question_accuracy"):
            row += [_number(found.get(metric), 3) for found in (free, adapted)]
        row += [_number(seen.get("kept"), 2), _number(seen.get("things"), 2)]
        share = cost.get("time_share")
        row += [_number(share and share * dense_ms, 1), _number(share, 2)]
        row += [" + ".join(f"{ms:.1f}" for ms in own) or "-"]
        rows.append([*row, *(_number(cost.get(share), 2) for share in ("flops_share", "kv_share"))])
    return head, rows


def _dense_ms(cells: Sequence[dict[str, Any]]) -> float:
    """What a frame takes the dense model, ms: each row was timed in turn with it."""
    found = [cell["ms_dense"] for cell in cells if "ms_dense" in cell]
    return statistics.median(found) if found else 0.0


def _guessed(cells: Sequence[dict[str, Any]]) -> str:
    blind = [cell for cell in cells if cell.get("f1", 1) < BLIND and cell.get("question_accuracy") is not None]
    least = min((cell["question_accuracy"] for cell in blind), default=None)
    return "" if least is None else f"Who sees next to nothing still answers {least:.2f} of the questions right."


def _of_nobody(cells: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """What signals take of those who ask the tower for none, and the least that a choice takes: two half-sentences."""
    own = [cell for cell in cells if "signals_ms" in cell and cell["reduction"] is not None]
    silent = [abs(cell["signals_ms"]) for cell in own if not _asks_tower(from_dict(cell["reduction"]))]
    least = min((cell["choice_ms"] for cell in own), default=0.0)
    by_chance = f"by chance up to {max(silent):.1f} ms either way" if silent else "and by chance"
    return by_chance, f"{least:.1f} ms of which are there whatever it does"


def _asks_tower(one: Reduction) -> bool:
    return one.stage == "tower" or any(layer != HERE for _, layer in one.needs)


def _more_than_asked(cells: Sequence[dict[str, Any]]) -> str:
    """Whose share is not what a row's name says, in the short streams in which quality is measured."""
    more = [cell["name"].rpartition(" ")[0] for cell in cells if cell.get("kept", 0) > cell["keep"] + 0.2]
    if not more:
        return ""
    names = ", ".join(dict.fromkeys(f"`{name}`" for name in more))
    return (
        f"In streams as short as these {names} let nearly all stay, so that quality there is that of a whole frame, "
        "while FLOPs and KV bytes are of a longer stream, of which more goes."
    )


def _names(which: Callable[[Reduction], bool]) -> str:
    return ", ".join(f"`{name}`" for name, kind in methods().items() if which(kind()))


def _of_transformers(one: Reduction) -> bool:
    """Whether it asks a tower for what the conv tower has not: blocks, or other attention than its last one."""
    plain = ("cls_attention", "received_attention")
    more = any(name.startswith("tower_") or (name in plain and 0 <= layer < HERE) for name, layer in one.needs)
    return one.stage == "tower" or more


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
