"""COIN (coin-dataset.github.io): questions at the end of a step or of a whole video, as VideoLLM-online asks them.

Five tasks: step (what is this?), task (what is it all about?), next, procedure (the next steps, up to five), and
procedure with the goal told. Questions come before the frames; their words are VideoLLM-online's
(github.com/showlab/videollm-online, data/coin), so that its checkpoints are asked what they were taught.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from videollm_mod.data.reading import Source, length, sentence, stretch
from videollm_mod.data.segments import Segment, Stream

FILE = "COIN.json"
SUBSETS = {"train": "training", "test": "testing"}
STEPS_AHEAD = 5
BRIEF = "Format your answer concisely. No extra text output."
LISTED = "Format your answer concisely, listing each action on a new line with a number prefix. No extra text output."
# labels with a comma in them, which would look like two
RENAMED = {
    "process (crop, fold) paper": "crop and fold paper",
    "try to press gun head, spray residual old grease": "try to press gun head to spray residual old grease",
}
_WORD = re.compile(r"TV|CD|SIM|NBA|SSD|RJ45|[A-Z]?[^A-Z]+|[A-Z]")


def class_words(name: str) -> str:
    """ "PutOnHairExtensions" -> "put on hair extensions"; the known abbreviations stay together and large."""
    words = _WORD.findall(name)
    return " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in words)


def said(text: str) -> str:
    """A label as an answer: "Wash hair." As published, all but the first letter is small."""
    return text.capitalize() + "."


def read_step(source: Source) -> Iterator[Stream]:
    """One stream a step: its frames, then what it is."""
    for video, class_name, steps in _videos(source):
        for i, step in enumerate(steps):
            question = f"What is the action in the video? {BRIEF}"
            yield from _ask(source, video, i, step[:2], question, said(step[2]), [step[2]], class_name)


def read_task(source: Source) -> Iterator[Stream]:
    """One stream a video: all of what was annotated, then what it is about."""
    for name, values in _database(source):
        with source.record(FILE, name):
            task, span = class_words(sentence(values["class"], "its class")), stretch(values["start"], values["end"])
            question = f"What is the overall activity in the video? {BRIEF}"
            found = list(_ask(source, (name, values), 0, span, question, said(task), [task], task))
            yield from found


def read_next(source: Source) -> Iterator[Stream]:
    """One stream a step but the last: its frames, then what comes next."""
    for video, class_name, steps in _videos(source):
        for i, (step, following) in enumerate(zip(steps, steps[1:])):
            question = f"What is the next action for the video? {BRIEF}"
            yield from _ask(source, video, i, step[:2], question, said(following[2]), [following[2]], class_name)


def read_procedure(source: Source, goal: bool = False) -> Iterator[Stream]:
    """One stream a step but the last: its frames, then the steps that follow, up to five."""
    for video, class_name, steps in _videos(source):
        for i in range(len(steps) - 1):
            coming = [step[2] for step in steps[i + 1 : i + 1 + STEPS_AHEAD]]
            count = len(coming)
            asked = "what is the next action" if count == 1 else f"what is the next {count} actions"
            asked = f"To {class_name}, {asked}" if goal else asked[:1].upper() + asked[1:]
            question = f"{asked} for the video? {BRIEF if count == 1 else LISTED}"
            answer = said(coming[0])
            if count > 1:
                answer = "\n".join(f"{place}. {said(text)}" for place, text in enumerate(coming, start=1))
            yield from _ask(source, video, i, steps[i][:2], question, answer, coming, class_name)


def read_procedure_goal(source: Source) -> Iterator[Stream]:
    """As `read_procedure`; the question tells what it is all about."""
    return read_procedure(source, goal=True)


def labels(source: Source) -> dict[str, list[str]]:
    """{"steps", "tasks"}: all that is said of any video, of both subsets, sorted. What an answer is compared with."""
    steps, tasks = set[str](), set[str]()
    for name, values in source.inside(source.json(FILE, "coin.json"), "database", FILE, of=dict).items():
        with source.record(FILE, name):
            tasks.add(class_words(sentence(values["class"], "its class")))
            steps.update(_label(step["label"]) for step in values["annotation"])
    return {"steps": sorted(steps), "tasks": sorted(tasks)}


_Step = tuple[float, float, str]  # start, end, label
_Video = tuple[str, dict[str, Any]]  # its name, its record


def _database(source: Source) -> Iterator[_Video]:
    """The videos of the split."""
    database = source.inside(source.json(FILE, "coin.json"), "database", FILE, of=dict)
    for name, values in database.items():
        wanted = False
        with source.record(FILE, name):
            subset = values["subset"]
            if subset not in SUBSETS.values():
                raise ValueError(f"its subset is {subset!r}, neither training nor testing")
            if values.get("duration") is not None:
                length(values["duration"])
            wanted = subset == SUBSETS[source.split]
        if wanted:
            yield name, values


def _videos(source: Source) -> Iterator[tuple[_Video, str, list[_Step]]]:
    for name, values in _database(source):
        steps: list[_Step] = []
        with source.record(FILE, name):
            class_name = class_words(sentence(values["class"], "its class"))
            steps = [(*stretch(*step["segment"]), _label(step["label"])) for step in values["annotation"]]
        if steps:
            yield (name, values), class_name, steps


def _label(text: Any) -> str:
    text = sentence(text, "a label")
    return RENAMED.get(text, text)


def _ask(
    source: Source,
    video: _Video,
    place: int,
    span: tuple[float, float],
    question: str,
    answer: str,
    labels: list[str],
    class_name: str,
) -> Iterator[Stream]:
    name, values = video
    found = source.place(name)
    if found is None:
        return
    start, end = span
    segments = (
        Segment("user", text=source.instruction or question),
        Segment("stream", start=start, end=end),
        Segment("assistant", end, start, end, answer, meta={"labels": labels}),
    )
    duration = values.get("duration")
    yield Stream(
        f"{source.name}/{name}/{place}",  # so that the tasks' files can be put together
        segments,
        fps=source.fps,
        duration=float(duration) if duration is not None and duration >= end else None,
        meta={"data": source.name, "split": source.split, "video": name, "task": class_name},
        **found,
    )
