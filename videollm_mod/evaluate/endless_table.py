"""The table of `eval endless`: what a policy loses from the first minutes of an hour to the last, and what it holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from videollm_mod.evaluate.bootstrap import Sums, bootstrap, ratio
from videollm_mod.evaluate.metrics import Said, match, precision_recall_f1, share
from videollm_mod.evaluate.summary import true_narration

if TYPE_CHECKING:
    from videollm_mod.evaluate.endless import Job, Watched
    from videollm_mod.world import WorldStream


def summarise(watched: Sequence[tuple[WorldStream, Watched]], job: Job, edge: float) -> dict[str, Any]:
    """One row: pooled over its streams."""
    spans: dict[str, dict[str, Any]] = {}
    for name in ("first", "last"):
        spans[name] = _span(watched, edge, last=name == "last")
    if job.begin:
        spans["first"] = dict.fromkeys(spans["first"])  # nobody watched all of it
    first, last = spans["first"]["f1"], spans["last"]["f1"]
    answers = [answer for _, each in watched for answer in each.answers]
    kinds = sorted({answer["kind"] for answer in answers if "frame_held" in answer})
    memory = {kind: _memory([answer for answer in answers if answer["kind"] == kind]) for kind in kinds}
    forgotten: dict[str, int] = {}
    for _, each in watched:
        for kind, count in each.forgotten.items():
            forgotten[kind] = forgotten.get(kind, 0) + count
    return {
        "policy": job.policy,
        "budget": job.budget,
        "kv_bytes": max(each.kv_bytes for _, each in watched),
        "positions": max(each.positions for _, each in watched),
        **spans,
        "f1_lost": round(first - last, 4) if first is not None and last is not None else None,
        "f1_lost_interval": None if job.begin else _interval(watched, edge),
        "memory": memory,
        "forgotten": forgotten,
        "seconds": round(sum(each.seconds for _, each in watched), 1),
    }


def _span(watched: Sequence[tuple[WorldStream, Watched]], edge: float, last: bool) -> dict[str, Any]:
    """The first or last `edge` seconds, at most half, of every stream."""
    right = in_time = said = true = asked = answered = 0
    for stream, each in watched:
        ours, theirs, begin, end = _end_of(stream, each, edge, last)
        right += len(match(ours, theirs))
        in_time += len(match(ours, theirs, by_text=False))
        said, true = said + len(ours), true + len(theirs)
        mine = [a for a in each.answers if "frame_held" not in a and begin <= a["time"] < end]
        asked, answered = asked + len(mine), answered + sum(answer["right"] for answer in mine)
    return {
        "f1": round(precision_recall_f1(right, said, true)[2], 4) if said or true else None,
        "timing_f1": round(precision_recall_f1(in_time, said, true)[2], 4) if said or true else None,
        "question_accuracy": round(share(answered, asked), 4) if asked else None,
        "said": said,
        "events": true,
        "questions": asked,
    }


def _interval(watched: Sequence[tuple[WorldStream, Watched]], edge: float) -> list[float] | None:
    """95 % of the bootstrap over minutes, of how much F1 is lost from the first `edge` seconds to the last.

    An hour is long: its minutes, not whole streams, are what is drawn, as if they were independent of each other.
    """
    minutes = [
        {
            **dict.fromkeys(("right", "whole", "last_right", "last_whole"), 0),
            f"{prefix}right": right,
            f"{prefix}whole": whole,
        }
        for prefix, last in (("", False), ("last_", True))
        for stream, each in watched
        for right, whole in _minutes(stream, each, edge, last)
    ]

    def lost(sums: Sums) -> dict[str, float | None]:
        first, then = (ratio(2 * sums[f"{prefix}right"], sums[f"{prefix}whole"]) for prefix in ("", "last_"))
        return {"lost": None if first is None or then is None else first - then}

    found = bootstrap(minutes, lost)["lost"]
    return None if found["low"] is None or found["high"] is None else [round(found["low"], 4), round(found["high"], 4)]


def _minutes(stream: WorldStream, each: Watched, edge: float, last: bool) -> list[tuple[int, int]]:
    """Of every minute of one end of a stream: how many narrations are right, and how many there are, said and true."""
    ours, theirs, begin, _ = _end_of(stream, each, edge, last)
    count = math.ceil(min(edge, stream.config.seconds / 2) / 60)
    found = [[0, 0] for _ in range(count)]

    def minute(time: float) -> list[int]:
        return found[min(int((time - begin) / 60), count - 1)]

    for _, j in match(ours, theirs):
        minute(theirs[j].time)[0] += 1
    for one in (*ours, *theirs):
        minute(one.time)[1] += 1
    return [(right, whole) for right, whole in found]


def _end_of(stream: WorldStream, each: Watched, edge: float, last: bool) -> tuple[list[Said], list[Said], float, float]:
    """What was said and what is true in the first or last `edge` seconds, at most half; when they begin, and end."""
    length = stream.config.seconds
    begin = max(length - edge, length / 2) if last else 0.0
    end = length + 1 if last else min(edge, length / 2)
    ours = [Said(*item) for item in each.said if begin <= item[0] < end]
    return ours, [item for item in true_narration(stream) if begin <= item.time < end], begin, end


def _memory(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of questions about what is long past: how many, and the shares answered rightly and still to be found."""
    shares = {
        key: round(sum(answer[name] for answer in answers) / len(answers), 4)
        for key, name in (("accuracy", "right"), ("frame_held", "frame_held"), ("words_held", "words_held"))
    }
    return {"questions": len(answers), **shares}


def table(result: dict[str, Any]) -> str:
    """The rows as Markdown."""
    kinds = sorted({kind for row in result["rows"] for kind in row["memory"]})
    edge = f"{result['edge_minutes']:g} min"
    head = ["policy", "budget MB", "used MB", "positions", f"F1, first {edge}", f"F1, last {edge}", "lost"]
    head += [f"questions, first {edge}", f"last {edge}", *(f"{kind}: right / frame / words" for kind in kinds)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    for row in result["rows"]:
        budget = "" if row["budget"] is None else f"{row['budget'] / 1e6:g}"
        cells = [row["policy"], budget, f"{row['kv_bytes'] / 1e6:.1f}"]
        cells += [str(row["positions"]), number(row["first"]["f1"]), number(row["last"]["f1"])]
        interval = row["f1_lost_interval"]
        cells += [number(row["f1_lost"]) + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")]
        cells += [number(row[span]["question_accuracy"]) for span in ("first", "last")]
        for kind in kinds:
            memory = row["memory"].get(kind)
            keys = ("accuracy", "frame_held", "words_held")
            cells.append("" if memory is None else " / ".join(f"{memory[key]:.2f}" for key in keys))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
