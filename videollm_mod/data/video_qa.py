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

from videollm_mod.data.reading import VIDEOS, Source, length, seconds, sentence
from videollm_mod.data.segments import Segment, Stream
from videollm_mod.types import InputError

PREFIXES = ("", "v_", "vid", "video")  # of files' names: none, ActivityNet's, MSVD's, MSRVTT's, whose ids are numbers
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
            duration = _length(values.get("duration"), found)
            end = seconds(values["time"]) if values.get("time") is not None else duration
            if end is None and not any(found.values()):
                end = 0.0  # nothing is to be watched
            if end is None:
                raise ValueError('nobody knows how long it is; add "duration" or "time" in seconds')
            segments = (
                Segment("stream", start=0.0, end=end),
                Segment("user", end, text=source.instruction or question),
                Segment("assistant", end, text=answer, meta=meta),
            )
            about = {"data": source.name, "split": source.split, "video": video}
            stream = Stream(_name(values, place), segments, fps=source.fps, duration=duration, meta=about, **found)
            yield stream


def _question(values: Any, answers: dict[Any, dict[str, Any]]) -> tuple[str, str, str, dict[str, Any]]:
    """(video, question, true answer, meta) of a record."""
    if not isinstance(values, dict):
        raise ValueError("it is no object, {...}")
    values = {**answers.get(str(values.get("question_id")), {}), **values}
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
    """As Source.place, by the name without its ending, or behind one of PREFIXES."""
    name = Path(video).stem if Path(video).suffix.lower() in VIDEOS else video
    return source.place(next((f"{before}{name}" for before in PREFIXES if source.has(f"{before}{name}")), name))


def _length(given: Any, found: dict[str, Path | None]) -> float | None:
    """Seconds, as the record, the features or the video says."""
    if given is not None:
        return length(given)
    from videollm_mod.data.extract import probe
    from videollm_mod.data.frames import features_of_file

    if found["features"] is not None:
        return features_of_file(found["features"]).duration
    return (probe(found["video"]) or None) if found["video"] is not None else None


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
    return {str(values.get("question_id")): values for values in _records(other) if isinstance(values, dict)}


def _name(values: Any, place: int) -> str:
    known = values if isinstance(values, dict) else {}
    named = next((known[key] for key in ("question_id", "id") if known.get(key) not in (None, "")), place)
    return str(named)
