"""StreamingBench (arXiv 2411.03628, github.com/THUNLP-MT/StreamingBench): questions_{real,omni,sqa,proactive}.json.

Multiple-choice questions at their times; sequential ones (sqa) with the questions and true answers before them; and
proactive ones ("when the score is 3, output 3"), which are put at a time and answered when it is time to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from videollm_mod.data.reading import Source, as_written, clock, sentence
from videollm_mod.data.segments import Segment, Stream
from videollm_mod.types import InputError

FILES = ("questions_real.json", "questions_omni.json", "questions_sqa.json", "questions_proactive.json")
GROUPS = {
    "real_time": (
        "Object Recognition",
        "Causal Reasoning",
        "Clips Summarize",
        "Attribute Recognition",
        "Event Understanding",
        "Text-Rich Understanding",
        "Prospective Reasoning",
        "Spatial Understanding",
        "Action Recognition",
        "Counting",
    ),
    "omni": ("Emotion Recognition", "Scene Understanding", "Source Discrimination", "Multimodal Alignment"),
    "contextual": (
        "Misleading Context Understanding",
        "Anomaly Context Understanding",
        "Sequential Question Answering",
    ),
    "proactive_own": ("proactive own time", "proactive own words"),
    "proactive_polled": ("proactive polled time", "proactive polled words"),
}
# What is asked, as the benchmark prescribes it, letter by letter (src/benchmark/*.py there)
CHOICE = (
    "You are an advanced video question-answering AI assistant. You have been provided with some frames from the "
    "video and a multiple-choice question related to the video. Your task is to carefully analyze the video and "
    "provide the best answer to question, choosing from the four options provided. Respond with only the letter (A, "
    "B, C, or D) of the correct option.\n\nQuestion: {}\n\nOptions:\n{}\n\nThe best option is:"
)
SEQUENTIAL = (
    "You are an advanced video question-answering AI assistant. You have been provided with a video and a "
    "multiple-choice question related to the video. Your task is to carefully analyze the video and the provided "
    "context to answer the question, choosing from the four options provided. Respond with only the letter (A, B, C, "
    "or D) of the correct option.\n\n{}\n\n"
    "Here is the question. Answer it and don't confuse it with the previous conversation.\nQuestion: {}\n\nOptions:\n"
    "{}\n\nThe best option is:"
)
CONTEXT = (
    "Here are the contextual information related to the video. Please answer the questions based on the contextual "
    "information: "
)
TOLD = "At timestamp {}, the following question and answer occurred: Question: {}; Options: {}; Answer: {}; "
PROACTIVE = (
    "You are an advanced image question-answering AI assistant. You have been provided with images and a question "
    "related to the images. Your task is to carefully analyze the images and provide the answer to the question. You "
    "need to carefully confirm whether the images content meet the conditions of the question, and then output the "
    "correct content.\n\nQuestion: {}\n\nThe answer is:\n"
)
POLL = '{} Is it the right time to output "{}"? You can only answer yes or no.'
POLLED = 4.0  # seconds that a proactive question is polled beyond its true time


def read_streamingbench(source: Source) -> Iterator[Stream]:
    """One stream a video of choices, then one for each proactive question. Files that are not there are left out."""
    there = [file for file in FILES if source.find(file, needed=False) is not None]
    if not there:
        raise InputError(
            f"{source.name} needs {FILES[0]} or another of its files, which {source.root} has not; get them with: "
            f"{source.page}."
        )
    for file in there:
        proactive = "proactive" in file
        videos: dict[str, list[dict[str, Any]]] = {}
        for place, group in enumerate(source.json(file, of=list)):
            before: list[str] = []
            for entry in group if isinstance(group, list) else [group]:
                with source.record(file, place):
                    video = sentence(entry["video_path"], "its video_path")
                    for question in entry["questions"]:
                        one = dict(question)
                        if isinstance(group, list):
                            one["before"] = list(before)
                            before.append(_told(question))
                        videos.setdefault(video, []).append(one)
        for video, questions in videos.items():
            found = source.place(video.rsplit("/", 1)[-1].rsplit(".", 1)[0])
            if found is None:
                continue
            about = {"data": source.name, "split": source.split, "video": video}
            if proactive:
                yield from _proactive(source, file, video, questions, about, found)
                continue
            asked: list[tuple[float, Segment, Segment]] = []
            for place, question in enumerate(questions):
                with source.record(file, f"{video}, question {place}"):
                    asked.append(_choice(question))
            asked.sort(key=lambda one: one[0])
            if asked:
                texts = [segment for _, user, reply in asked for segment in (user, reply)]
                segments = (Segment("stream", start=0.0, end=asked[-1][0]), *texts)
                yield Stream(f"{file}:{video}", segments, fps=source.fps, duration=None, meta=about, **found)


def _choice(question: dict[str, Any]) -> tuple[float, Segment, Segment]:
    time, options = _time(question["time_stamp"]), _options(question["options"])
    answer = question["answer"]
    if not isinstance(answer, str) or not 0 <= ord(answer) - 65 < len(options):
        raise ValueError(f"its answer is {answer!r}, none of its options")
    if question["task_type"] not in {task for tasks in GROUPS.values() for task in tasks}:
        raise ValueError(f"its task_type is {question['task_type']!r}, none of StreamingBench's")
    asked, listed = as_written(question["question"], "its question"), "\n".join(options)
    if "before" in question:
        told = "".join(question["before"])
        text = SEQUENTIAL.format(CONTEXT + told if told else "", asked, listed)
    else:
        text = CHOICE.format(asked, listed)
    meta = {"task": question["task_type"], "options": options}
    return time, Segment("user", time, text=text), Segment("assistant", time, text=answer, meta=meta)


def _proactive(
    source: Source, file: str, video: str, questions: list[dict[str, Any]], about: dict[str, Any], found: dict[str, Any]
) -> Iterator[Stream]:
    for place, question in enumerate(questions):
        with source.record(file, f"{video}, question {place}"):
            asked, due = _time(question["time_stamp"]), _time(question["ground_truth_time_stamp"])
            text = as_written(question["question"], "its question")
            output = as_written(question["ground_truth_output"], "its output")
            polls = {"poll": PROACTIVE.format(POLL.format(text, output)), "ask": PROACTIVE.format(text)}
            if due < asked:
                raise ValueError(f"it is to be answered at {due:g} s, before it is asked at {asked:g} s")
            segments = (
                Segment("user", asked, text=text, meta=polls),
                Segment("stream", start=asked, end=due + POLLED),
                Segment("assistant", due, text=output),
            )
            meta = about | {"proactive": True}
            yield Stream(f"{file}:{video}:{place}", segments, fps=source.fps, duration=None, meta=meta, **found)


def _options(values: Any) -> list[str]:
    """ "A. one", "B. two", ...; some have no letters of their own, some files keep a list as text."""
    if isinstance(values, str):
        values = json.loads(values.replace("'", '"'))
    options = [str(value) for value in values]  # one of the published ones is empty
    if options and not options[0].startswith("A."):
        options = [f"{chr(65 + place)}. {option}" for place, option in enumerate(options)]
    return options


def _told(question: dict[str, Any]) -> str:
    """What questions that come later hear of this one."""
    options = ", ".join(_options(question["options"]))
    return TOLD.format(question["time_stamp"], question["question"], options, question["answer"])


def _time(text: Any) -> float:
    """Seconds of "00:03:10", "03:10" or "00:03:10.5"."""
    parts = sentence(text, "a time").split(":")
    return clock(":".join(["00"] * (3 - len(parts)) + parts))
