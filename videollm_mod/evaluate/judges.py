"""From what was said and answered to sums per stream, and from sums to metrics: one judge for each kind of benchmark.

A judge holds what all streams share (labels, tolerances). `tally` gives one dict of sums for each stream, `measure`
turns their total into numbers: so bootstrap.py can draw videos without judging anything twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from videollm_mod.data.segments import Segment, Stream
from videollm_mod.evaluate.actions import Z, area_under, class_recall, edit_curve, in_top
from videollm_mod.evaluate.bootstrap import Sums, ratio
from videollm_mod.evaluate.captions import cider, meteor, rouge_l
from videollm_mod.evaluate.labels import ActionSpace, LabelSpace, plain, step_hits, steps
from videollm_mod.evaluate.metrics import Said, false_alarms, match, precision_recall_f1, quiet_seconds
from videollm_mod.evaluate.playing import Answer, Result
from videollm_mod.evaluate.timed import duplicates, flownar_alignment, flownar_pairs, match_spans, repeats, spans

Pair = tuple[Stream, Result]
FORCED = ("lm_ppl", "time_diff", "fluency", "lm_correctness")
PROACTIVE_TOLERANCE = 2.0  # seconds, StreamingBench's


class Judge(Protocol):
    """What a benchmark counts."""

    def tally(self, pairs: Sequence[Pair]) -> Iterable[Sums]:
        """The sums of each stream, all with the same names; some can be had once only."""
        ...

    def measure(self, sums: Sums) -> dict[str, float | None]:
        """The metrics of a total; None where there is nothing to measure."""
        ...


# -- teacher-forced ----------------------------------------------------------------------------------------------------


def forced_sums(result: Result, threshold: float, compat: bool) -> dict[str, float]:
    """Means over a stream's turns, each with the number of streams (1 or 0) that it counts for; exact replies.

    LM-PPL and LM-Correctness are of all turns, TimeDiff and Fluency of those in which it decided to speak.
    """
    every: dict[str, list[float]] = {name: [] for name in FORCED}
    for place, turn in enumerate(result.turns):
        scores = turn.scores(threshold, result.fps, compat=compat, last=place == len(result.turns) - 1)
        for name, value in scores.items():
            if turn.narrates or name in ("lm_ppl", "lm_correctness"):
                every[name].append(value)
    sums: dict[str, float] = {}
    for name, values in every.items():
        sums[name] = sum(values) / len(values) if values else 0.0
        sums[f"{name}_n"] = float(bool(values))
    sums["exact"], sums["turns"] = float(sum(turn.exact for turn in result.turns)), float(len(result.turns))
    return sums


def forced_metrics(sums: Sums) -> dict[str, float | None]:
    """LM-PPL, TimeDiff, Fluency, LM-Correctness, and the share of replies that greedy decoding gets word for word."""
    values = {name: ratio(sums[name], sums[f"{name}_n"]) for name in FORCED}
    return values | {"exact_replies": ratio(sums["exact"], sums["turns"])}


# -- narration ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Narration:
    """Timed sentences: teacher-forced metrics, and what it says on its own words against the truth.

    compat: the public code of VideoLLM-online for the first, FlowNar's for the second.
    """

    threshold: float
    tolerance: float = 2.0  # seconds that a sentence may be off
    compat: bool = False
    use_meteor: bool = False

    def tally(self, pairs: Sequence[Pair]) -> list[Sums]:
        rows: list[dict[str, Any]] = []
        words: list[tuple[int, tuple[str, str]]] = []  # (stream, said and true)
        for number, (stream, result) in enumerate(pairs):
            said, true = list(result.said), true_sentences(stream)
            start = result.start
            before = start - 1 / result.fps  # what the first frame shows has a length, too
            ours, theirs = spans(said, before), spans(true, before)
            met = match_spans(ours, theirs)
            near = match(said, true, by_text=False, tolerance=self.tolerance)
            exact = match(said, true, tolerance=self.tolerance)
            row: dict[str, Any] = forced_sums(result, self.threshold, self.compat)
            row |= {"said": len(said), "true": len(true), "met": len(met), "near": len(near), "same": len(exact)}
            row["alarms"] = len(false_alarms(said, true, tolerance=self.tolerance))
            quiet = quiet_seconds(true, result.end, start, tolerance=self.tolerance)
            row["quiet_hours"] = quiet / 3600
            row["duplicates"] = len(duplicates(said, true, self.tolerance))
            row["repeats"] = len(repeats(said))
            row["videos"] = 1
            for name, value in zip(("p", "r", "f"), flownar_alignment(ours, theirs)):
                row[f"flownar_{name}"] = value
            compared = flownar_pairs(ours, theirs) if self.compat else met
            words += [(number, (said[i].text, true[j].text)) for i, j in compared]
            rows.append(row | {"pairs": len(compared)})
        texts = [pair for _, pair in words]
        compat = self.compat
        scores: dict[str, list[float]] = {
            "cider": cider(texts, compat=compat),
            "rouge_l": rouge_l(texts, compat=compat),
        }
        if self.use_meteor and (found := meteor(texts, compat=compat)) is not None:
            scores["meteor"] = found
        for name, each in scores.items():
            for row in rows:
                row[name] = 0.0
            for (number, _), value in zip(words, each):
                rows[number][name] += value
        return rows  # type: ignore[return-value]

    def measure(self, sums: Sums) -> dict[str, float | None]:
        said, true, videos = sums["said"], sums["true"], sums["videos"]
        precision, recall, f1 = precision_recall_f1(sums["met"], said, true)
        if self.compat:
            precision, recall, f1 = (sums[f"flownar_{name}"] / videos for name in "prf")
        near = precision_recall_f1(sums["near"], said, true)
        found = forced_metrics(sums) | {
            "iou_precision": precision,
            "iou_recall": recall,
            "iou_f1": f1,
            "time_precision": near[0],
            "time_recall": near[1],
            "time_f1": near[2],
            "sentence_f1": precision_recall_f1(sums["same"], said, true)[2],
            "false_alarms_per_quiet_hour": ratio(sums["alarms"], sums["quiet_hours"]),
            "duplicates": ratio(sums["duplicates"], said),
            "repeats": ratio(sums["repeats"], said),
            "cider": ratio(100 * sums["cider"], sums["pairs"]),  # as papers print it: 28.04 is a CIDEr-D of 0.2804
            "rouge_l": ratio(sums["rouge_l"], sums["pairs"]),
        }
        if "meteor" in sums:
            found["meteor"] = ratio(sums["meteor"], sums["pairs"])
        return {name: None if value is None else float(value) for name, value in found.items()}


def true_sentences(stream: Stream) -> list[Said]:
    """What is to be said, by time."""
    return sorted((Said(float(one.time or 0.0), one.text) for one in stream.replies), key=lambda one: one.time)


# -- answers -----------------------------------------------------------------------------------------------------------


def answered(stream: Stream, result: Result) -> list[tuple[Segment, Answer | None]]:
    """Each true reply with what was answered."""
    given = (*result.answers, *[None] * len(stream.replies))
    return list(zip(stream.replies, given))


def _own(stream: Stream, result: Result) -> dict[str, float]:
    given = [answer for _, answer in answered(stream, result)]
    return {"asked": len(given), "own": sum(answer is not None and answer.own for answer in given)}


@dataclass(frozen=True)
class Labels:
    """One label: exact, or the nearest of all labels (COIN's step, next and task)."""

    space: LabelSpace
    threshold: float
    compat: bool = False

    def tally(self, pairs: Sequence[Pair]) -> list[Sums]:
        texts = [first_text(answer) for stream, result in pairs for _, answer in answered(stream, result)]
        nearest = iter(self.space.nearest([plain(text) for text in texts]))
        rows = []
        for stream, result in pairs:
            right = exact = 0
            for reply, answer in answered(stream, result):
                label, given, near = truth(reply), plain(first_text(answer)), next(nearest)
                right += bool(given) and near == label
                exact += given == label
            rows.append(
                {"right": right, "exact_right": exact}
                | _own(stream, result)
                | forced_sums(result, self.threshold, self.compat)
            )
        return rows  # type: ignore[return-value]

    def measure(self, sums: Sums) -> dict[str, float | None]:
        found = {
            "accuracy": ratio(sums["right"], sums["asked"]),
            "accuracy_exact": ratio(sums["exact_right"], sums["asked"]),
        }
        return found | {"answered_itself": ratio(sums["own"], sums["asked"])} | forced_metrics(sums)


@dataclass(frozen=True)
class Procedure:
    """The steps that follow, place by place; a missing one is wrong (COIN's procedure)."""

    space: LabelSpace
    threshold: float
    compat: bool = False

    def tally(self, pairs: Sequence[Pair]) -> list[Sums]:
        rows = []
        for stream, result in pairs:
            right = counted = 0
            for reply, answer in answered(stream, result):
                true = [plain(str(label)) for label in reply.meta.get("labels", steps(reply.text))]
                said = self.space.nearest(steps(first_text(answer), compat=self.compat)[: len(true)])
                hits = step_hits(said, true, compat=self.compat)
                right, counted = right + hits[0], counted + hits[1]
            row = {"right": right, "counted": counted} | _own(stream, result)
            rows.append(row | forced_sums(result, self.threshold, self.compat))
        return rows  # type: ignore[return-value]

    def measure(self, sums: Sums) -> dict[str, float | None]:
        found = {"accuracy": ratio(sums["right"], sums["counted"])}
        return found | {"answered_itself": ratio(sums["own"], sums["asked"])} | forced_metrics(sums)


@dataclass(frozen=True)
class Anticipation:
    """Twenty actions to come: edit distance of the best candidate at Z = 20, and the area under it (LTA)."""

    space: ActionSpace
    threshold: float
    compat: bool = False
    fill: tuple[int, int] = (0, 0)  # for an answer that lists nothing

    def tally(self, pairs: Sequence[Pair]) -> list[Sums]:
        rows = []
        for stream, result in pairs:
            row: dict[str, Any] = {f"{part}_curve": np.zeros(Z) for part in ("verb", "noun", "action")}
            row["counted"] = 0
            verbs, nouns = stream.meta.get("verbs"), stream.meta.get("nouns")
            if verbs and nouns:
                answer = next(iter(result.answers), None)
                texts = answer.texts if answer is not None else ("",)
                found = [self.space.sequence(text, Z, self.fill, compat=self.compat) for text in texts]
                row["verb_curve"] = edit_curve([[verb for verb, _ in one] for one in found], list(verbs))
                row["noun_curve"] = edit_curve([[noun for _, noun in one] for one in found], list(nouns))
                row["action_curve"] = edit_curve(found, list(zip(verbs, nouns)))
                row["counted"] = 1
            rows.append(row | _own(stream, result) | forced_sums(result, self.threshold, self.compat))
        return rows  # type: ignore[return-value]

    def measure(self, sums: Sums) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for part in ("verb", "noun", "action"):
            curve = sums[f"{part}_curve"] / sums["counted"] if sums["counted"] else None
            found[f"{part}_ed"] = None if curve is None else float(curve[-1])
            found[f"{part}_area"] = None if curve is None else area_under(curve, compat=self.compat)
        return found | {"answered_itself": ratio(sums["own"], sums["asked"])} | forced_metrics(sums)


@dataclass(frozen=True)
class Classes:
    """Top-1 and mean-class recall, and mean top-5 recall, of one or several labels of an answer.

    kinds: names of the labels. read: an answer -> its number for each of them.
    """

    kinds: Sequence[str]
    read: Any  # Callable[[str], Mapping[str, int]]
    true: Any  # Callable[[Segment], Mapping[str, int]]
    threshold: float
    top: int = 1  # 5 where the benchmark wants top-5 recall
    compat: bool = False

    def tally(self, pairs: Sequence[Pair]) -> Iterator[Sums]:
        """One stream at a time: of EPIC-KITCHENS' actions there are 29,585, of its videos' 97,000 chances."""
        places: dict[str, dict[int, int]] = {kind: {} for kind in self.kinds}  # class -> place, of those that occur
        for stream, _ in pairs:
            for reply in stream.replies:
                for kind, label in self.true(reply).items():
                    places[kind].setdefault(label, len(places[kind]))
        for stream, result in pairs:
            row: dict[str, Any] = {}
            for kind in self.kinds:
                count = len(places[kind])
                row |= {f"{kind}_{part}": np.zeros(count, dtype=np.float32) for part in ("hits", "top", "counts")}
            for reply, answer in answered(stream, result):
                true = self.true(reply)
                texts = answer.texts if answer is not None else ()
                ranked = [self.read(text) if plain(text) else None for text in texts]  # no answer is of no class
                for kind in self.kinds:
                    label, given = true[kind], [None if one is None else one[kind] for one in ranked]
                    place = places[kind][label]
                    row[f"{kind}_counts"][place] += 1
                    row[f"{kind}_hits"][place] += given[:1] == [label]
                    row[f"{kind}_top"][place] += in_top(given, label, self.top)
            yield row | _own(stream, result) | forced_sums(result, self.threshold, self.compat)

    def measure(self, sums: Sums) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for kind in self.kinds:
            hits, top, counts = (np.asarray(sums[f"{kind}_{part}"]) for part in ("hits", "top", "counts"))
            found[f"{kind}_top1"] = ratio(hits.sum(), counts.sum())
            found[f"{kind}_recall"] = class_recall(hits, counts)
            if self.top > 1:
                found[f"{kind}_recall_top{self.top}"] = class_recall(top, counts)
        return found | {"answered_itself": ratio(sums["own"], sums["asked"])} | forced_metrics(sums)


# -- choices, counts, yes and no, free answers -------------------------------------------------------------------------


_LETTER = re.compile(r"\b([A-H])\b")


def chosen(text: str, options: Sequence[str], *, compat: bool = False) -> str | None:
    """The letter of an answer to a multiple-choice question: said as such, else that of the option that it spells out.

    compat: the answer's first character, as StreamingBench's code takes it.
    """
    if compat:
        return text[:1] or None
    found = _LETTER.search(text)
    if found and ord(found[1]) - 65 < len(options):
        return found[1]
    said = plain(text)
    for place, option in enumerate(options):
        if said and plain(re.sub(r"^[A-H][.)]\s*", "", option)) == said:
            return chr(65 + place)
    return None


def right_answer(reply: Segment, text: str, *, compat: bool = False) -> bool:
    """Whether an answer is right. What kind it is stands in the reply's meta: "options", "count", "yes"; else words."""
    meta = reply.meta
    if "options" in meta:
        if compat and meta.get("style") == "ovo":
            return reply.text in text  # any "A" in the answer
        return chosen(text, meta["options"], compat=compat) == reply.text
    numbers = re.findall(r"\d+", text)
    if "count" in meta:
        if compat:
            return "".join(numbers) == str(meta["count"])
        return bool(numbers) and int(numbers[0]) == meta["count"]
    if "yes" in meta:
        wanted = "Yes" if meta["yes"] else "No"
        if compat:
            return text == wanted[0] or wanted in text
        words = re.findall(r"[a-z]+", text.lower())
        return bool(words) and words[0] in (wanted.lower(), wanted[0].lower())
    return plain(text) == plain(reply.text)


@dataclass(frozen=True)
class Tasks:
    """Accuracy of each task and of groups of tasks; the groups are means over their tasks, the total over groups.

    groups: name -> its tasks. Tasks that the data lacks do not count.
    """

    groups: Mapping[str, Sequence[str]]
    threshold: float
    compat: bool = False
    tasks: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(task for group in self.groups.values() for task in group))

    def tally(self, pairs: Sequence[Pair]) -> list[Sums]:
        rows = []
        for stream, result in pairs:
            right, counted = np.zeros(len(self.tasks)), np.zeros(len(self.tasks))
            for reply, answer in self._answers(stream, result):
                place = self.tasks.index(str(reply.meta.get("task", self.tasks[0])))
                counted[place] += 1
                right[place] += answer
            rows.append({"right": right, "counted": counted})
        return rows  # type: ignore[return-value]

    def _answers(self, stream: Stream, result: Result) -> list[tuple[Segment, bool]]:
        if "proactive" in stream.meta:
            return proactive_answers(stream, result, self.compat)
        return [
            (reply, answer is not None and right_answer(reply, answer.texts[0], compat=self.compat))
            for reply, answer in answered(stream, result)
        ]

    def measure(self, sums: Sums) -> dict[str, float | None]:
        each = {task: ratio(r, n) for task, r, n in zip(self.tasks, sums["right"], sums["counted"])}
        found: dict[str, float | None] = {}
        for group, tasks in self.groups.items():
            there = [value for task in tasks if (value := each[task]) is not None]
            found[group] = sum(there) / len(there) if there else None
        groups = [value for name, value in found.items() if value is not None and not name.startswith("proactive")]
        found = {"accuracy": sum(groups) / len(groups) if groups else None} | found
        if len(self.tasks) > 1:
            found |= {f"task {task}": value for task, value in each.items()}
        return found


def proactive_answers(stream: Stream, result: Result, compat: bool) -> list[tuple[Segment, bool]]:
    """For each of the two ways, of its own accord and polled: right in time, and with the right words besides."""
    reply = stream.replies[0]
    due = float(reply.time or 0.0)
    rows = []
    for way, answer in zip(("own", "polled"), (*result.answers, None, None)):
        timely = answer is not None and abs(answer.time - due) <= PROACTIVE_TOLERANCE + 1e-6
        if compat and answer is None:  # its code takes the last poll, and that is beyond the tolerance
            timely = False
        worded = timely and answer is not None and reply.text.lower() in answer.texts[0].lower()
        if compat:
            worded = timely and answer is not None and reply.text in answer.texts[0]
        for what, right in (("time", timely), ("words", worded)):
            rows.append((Segment("assistant", due, text=reply.text, meta={"task": f"proactive {way} {what}"}), right))
    return rows


def first_text(answer: Answer | None) -> str:
    return "" if answer is None else answer.texts[0]


def truth(reply: Segment) -> str:
    """The label of a reply, to compare."""
    labels = reply.meta.get("labels")
    return plain(str(labels[0])) if labels else plain(reply.text)


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else value
