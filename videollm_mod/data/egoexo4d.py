"""Ego-Exo4D (ego-exo4d-data.org): atomic descriptions as a narration stream, and which keystep a stretch shows.

Files as docs.ego-exo4d-data.org has them: annotations/atomic_descriptions_{split}.json,
annotations/keystep_{split}.json, and takes.json, which knows names and durations of the takes. The video of a take is
that of its glasses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videollm_mod.data.ego4d import NARRATE_TAGGED, clean, narration_segments
from videollm_mod.data.reading import Source, length, number, seconds, sentence, stretch
from videollm_mod.data.segments import Segment, Stream

GLASSES = "_214-1"  # in the name of the colour camera's video: takes/NAME/frame_aligned_videos/.../aria01_214-1.mp4


def read_narration(source: Source) -> Iterator[Stream]:
    """One stream for each annotator of a take, as of Ego4D; those of rejected jobs are left out."""
    file = f"atomic_descriptions_{source.split}.json"
    takes = _takes(source)
    for take, passes in source.inside(source.json(file), "annotations", file, of=dict).items():
        name, duration = takes.get(take, (take, None))
        found: dict[str, Path | None] | None = None
        looked = False
        for place, values in enumerate(passes if isinstance(passes, list) else [passes]):
            told: list[tuple[float, str]] = []
            annotation = str(place)
            descriptions: list[Any] = []
            with source.record(file, f"{take}/{place}"):
                if values.get("rejected"):
                    continue
                annotation = str(values.get("annotation_uid", place))
                descriptions = list(values["descriptions"])
            for each, one in enumerate(descriptions):
                with source.record(file, f"{take}/{place}/{each}"):
                    text, time = clean(sentence(one["text"])), seconds(one["timestamp"], "timestamp")
                    if text:
                        told.append((time if duration is None else min(time, duration), text))
            segments = narration_segments(told, source.fps, source.instruction or NARRATE_TAGGED)
            if not segments:
                continue
            if not looked:
                found, looked = source.place(name, GLASSES), True
            if found is not None:
                meta = _meta(source, take, name) | {"pass": annotation}
                yield Stream(f"{take}/{annotation}", segments, fps=source.fps, duration=duration, meta=meta, **found)


def read_keystep(source: Source) -> Iterator[Stream]:
    """One stream a segment: its frames, then the name of its keystep."""
    file = f"keystep_{source.split}.json"
    takes = _takes(source)
    for take, values in source.inside(source.json(file), "annotations", file, of=dict).items():
        rows: list[tuple[float, float, str, int]] = []
        name, duration = takes.get(take, (take, None))
        parts: list[Any] = []
        scenario = None
        with source.record(file, take):
            name, scenario = sentence(values.get("take_name", name), "its take_name"), values.get("scenario")
            parts = list(values["segments"])
        for each, one in enumerate(parts):
            with source.record(file, f"{take}/{each}"):
                step = number(one["step_unique_id"], "step_unique_id")
                rows.append(
                    (*stretch(one["start_time"], one["end_time"]), sentence(one["step_name"], "step_name"), step)
                )
        found = source.place(name, GLASSES) if rows else None
        if found is None:
            continue
        for place, (start, end, text, step) in enumerate(rows):
            asked = source.instruction or "What is the keystep in the video? Format your answer concisely."
            segments = (
                Segment("user", text=asked),
                Segment("stream", start=start, end=end),
                Segment("assistant", end, start, end, said(text), meta={"step": step}),
            )
            meta = _meta(source, take, name) | {"task": scenario}
            yield Stream(f"{take}/{place}", segments, fps=source.fps, duration=duration, meta=meta, **found)


def labels(source: Source) -> dict[int, str]:
    """All keysteps, by their number: what an answer is compared with."""
    file = f"keystep_{source.split}.json"
    vocabulary = source.inside(source.json(file), "vocabulary", file, of=dict)
    found: dict[int, str] = {}
    for key, name in vocabulary.items():
        with source.record(file, f"vocabulary/{key}"):
            found[number(key, "a step's number")] = said(sentence(name, "its name"))
    return found


def said(text: str) -> str:
    """A keystep as an answer."""
    text = " ".join(text.split()).rstrip(".")
    return text[:1].upper() + text[1:] + "."


def _takes(source: Source) -> dict[str, tuple[str, float | None]]:
    """(name, duration in seconds) of each take, if takes.json is there."""
    if source.find("takes.json", needed=False) is None:
        return {}
    found: dict[str, tuple[str, float | None]] = {}
    for place, values in enumerate(source.json("takes.json", of=list)):
        with source.record("takes.json", place):
            duration = values.get("duration_sec")
            found[values["take_uid"]] = values["take_name"], None if duration is None else length(duration)
    return found


def _meta(source: Source, take: str, name: str) -> dict[str, Any]:
    return {"data": source.name, "split": source.split, "video": name, "take": take}
