"""Questions about videos in JSONL or JSON, one answer each: MSVD-QA, ActivityNet-QA and what looks like them.

    {"video": "v_1.mp4", "question": "what is the man doing", "answer": "cooking"}

"video" may be "video_id", "video_name" or "vid", with or without an ending; "time" is when it is asked, by default at
the video's end; "type" is counted apart; "options" make it a multiple-choice question, whose "answer" is a letter.
Files whose answers are apart (ActivityNet-QA's test_q.json and test_a.json) are joined by question_id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videollm_mod.data.reading import VIDEOS, Source, seconds, sentence
from videollm_mod.data.segments import Segment, Stream
from videollm_mod.types import InputError

VIDEO_KEYS = ("video", "video_id", "video_name", "vid")


def read_video_qa(source: Source) -> Iterator[Stream]:
    """One stream a question, each with the whole video, or what comes before its time."""
    file = source.root.name
    answers = _answers(source)
    for place, values in enumerate(_records(source.root)):
        asked = None
        with source.record(file, _name(values, place)):
            asked = _question(values, answers)
        if asked is None:
            continue
        video, question, answer, meta = asked
        found = _place(source, video)
        if found is None:
            continue
        with source.record(file, _name(values, place)):
            length = _length(values.get("duration"), found.get("video"))
            end = seconds(values["time"]) if values.get("time") is not None else length
            if end is None:
                raise ValueError('nobody knows how long it is; add "duration" or "time" in seconds')
            segments = (
                Segment("stream", start=0.0, end=end),
                Segment("user", end, text=source.instruction or question),
                Segment("assistant", end, text=answer, meta=meta),
            )
            about = {"data": source.name, "split": source.split, "video": video}
            stream = Stream(_name(values, place), segments, fps=source.fps, duration=length, meta=about, **found)
            yield stream


def _question(values: Any, answers: dict[Any, dict[str, Any]]) -> tuple[str, str, str, dict[str, Any]]:
    """(video, question, true answer, meta) of a record."""
    if not isinstance(values, dict):
        raise ValueError("it is no object, {...}")
    values = {**answers.get(values.get("question_id"), {}), **values}
    key = next((key for key in VIDEO_KEYS if key in values), "video")
    question, answer = sentence(values["question"], "its question"), sentence(str(values["answer"]), "its answer")
    meta: dict[str, Any] = {"task": "question"}
    if values.get("options"):
        options = [str(option) for option in values["options"]]
        listed = "\n".join(f"{chr(65 + place)}. {option}" for place, option in enumerate(options))
        question = f"{question}\n{listed}\nAnswer with the letter."
        meta["options"] = options
    return str(values[key]), question, answer, meta


def _place(source: Source, video: str) -> dict[str, Path | None] | None:
    """As Source.place, by the name without its ending; ActivityNet's files have "v_" before theirs."""
    name = Path(video).stem if Path(video).suffix.lower() in VIDEOS else video
    try:
        found = source.place(name)
    except InputError:
        found = source.place(f"v_{name}")
    if found is None:
        source.missing.discard(name)
        found = source.place(f"v_{name}")
    return found


def _length(given: Any, path: Path | None) -> float | None:
    """Seconds, as the record or the video says."""
    if given is not None:
        return seconds(given, "its duration")
    if path is None:
        return None
    from videollm_mod.video import open_video

    with open_video(path) as source:
        return source.duration


def _records(path: Path) -> Iterator[Any]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            yield from (json.loads(line) for line in text.splitlines() if line.strip())
            return
        values = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON or JSONL ({error}); give a file of questions.") from error
    if not isinstance(values, list):
        raise InputError(f"{path} is no list of questions; give [{{...}}, ...], or one object a line in a .jsonl file.")
    yield from values


def _answers(source: Source) -> dict[Any, dict[str, Any]]:
    """question_id -> answer, of the file of answers beside a file of questions."""
    path = source.root
    if not path.stem.endswith("_q"):
        return {}
    other = path.with_name(path.stem[:-2] + "_a" + path.suffix)
    if not other.is_file():
        raise InputError(f"{path} has the questions only; put {other.name}, which has the answers, beside it.")
    return {values.get("question_id"): values for values in _records(other) if isinstance(values, dict)}


def _name(values: Any, place: int) -> str:
    known = values if isinstance(values, dict) else {}
    return str(known.get("question_id", known.get("id", place)))
