"""EPIC-KITCHENS-100 (epic-kitchens.github.io): narrations as a stream, and what comes next.

Files as github.com/epic-kitchens/epic-kitchens-100-annotations has them: EPIC_100_train.csv,
EPIC_100_validation.csv, the classes of verbs and nouns, and, if it is there, EPIC_100_video_info.csv, which knows how
long videos are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from videollm_mod.data.reading import Source, clock, length, number, sentence
from videollm_mod.data.segments import Segment, Stream

COLUMNS = (
    "narration_id",
    "video_id",
    "narration_timestamp",
    "start_timestamp",
    "stop_timestamp",
    "narration",
    "verb_class",
    "noun_class",
)
AHEAD = 1.0  # seconds between what is seen and the action that is anticipated, as in the challenge
SEEN = 30.0  # seconds that are seen before
INPUTS, FUTURE = 8, 20  # actions of the long-term set, as in Ego4D's: seen, to come


@dataclass(frozen=True)
class Action:
    """A row."""

    id: str
    time: float  # when it was told, seconds
    start: float
    end: float
    text: str
    verb: int
    noun: int


def read_narration(source: Source) -> Iterator[Stream]:
    """One stream a video: the whole of it, with every narration at the time at which it was spoken."""
    for video, actions, duration in _videos(source):
        found = source.place(video)
        if found is None:
            continue
        end = duration or max(max(action.end, action.time) for action in actions)
        told = [  # some were spoken after the video had ended
            Segment(
                "assistant", min(a.time, end), a.start, a.end, said(a.text),
                meta={"verb": a.verb, "noun": a.noun, "id": a.id},
            )
            for a in sorted(actions, key=lambda action: action.time)
        ]  # fmt: skip
        segments = (Segment("stream", start=0.0, end=end), *told)
        yield Stream(video, segments, fps=source.fps, duration=duration, meta=_meta(source, video), **found)


def read_anticipation(source: Source) -> Iterator[Stream]:
    """One stream an action: up to half a minute that ends a second before it starts, then what it will be.

    An action that starts within the first second is anticipated from the first frame alone.
    """
    verbs, nouns = classes(source)
    for video, actions, duration in _videos(source):
        found = source.place(video)
        if found is None:
            continue
        for a in actions:
            with source.record(_file(source), a.id):
                answer = said(f"{verbs[a.verb]} {nouns[a.noun]}")
                end = max(0.0, math.floor((a.start - AHEAD) * source.fps + 1e-6) / source.fps)  # nothing of the second
                segments = (
                    Segment(
                        "user",
                        text=source.instruction or "What will the camera wearer do next? Answer with verb and noun.",
                    ),
                    Segment("stream", start=max(0.0, end - SEEN), end=end),
                    Segment("assistant", end, a.start, a.end, answer, meta={"verb": a.verb, "noun": a.noun}),
                )
                made = Stream(a.id, segments, fps=source.fps, duration=duration, meta=_meta(source, video), **found)
                yield made


def read_lta(source: Source) -> Iterator[Stream]:
    """One stream for each run of 28 actions: 8 that are seen, then the 20 to come, as in Ego4D's benchmark."""
    verbs, nouns = classes(source)
    for video, actions, duration in _videos(source):
        found = source.place(video)
        if found is None:
            continue
        for first in range(len(actions) - INPUTS - FUTURE + 1):
            seen = actions[first : first + INPUTS]
            coming = actions[first + INPUTS : first + INPUTS + FUTURE]
            with source.record(_file(source), seen[0].id):
                start, end = seen[0].start, max(action.end for action in seen)
                names = [said(f"{verbs[action.verb]} {nouns[action.noun]}") for action in coming]
                segments = (
                    Segment("user", text=source.instruction or question(FUTURE)),
                    Segment("stream", start=start, end=end),
                    Segment("assistant", end, text="\n".join(f"{i}. {name}" for i, name in enumerate(names, start=1))),
                )
                meta = _meta(source, video) | {"verbs": [a.verb for a in coming], "nouns": [a.noun for a in coming]}
                made = Stream(f"{video}/{first}", segments, fps=source.fps, duration=duration, meta=meta, **found)
                yield made


def classes(source: Source) -> tuple[dict[int, str], dict[int, str]]:
    """Verbs and nouns by their number, in words: "turn-on" -> "turn on", "board:chopping" -> "chopping board"."""
    verbs, nouns = {}, {}
    for row in source.table("EPIC_100_verb_classes.csv", columns=("id", "key")):
        verbs[number(row["id"], "a verb's id")] = row["key"].replace("-", " ")
    for row in source.table("EPIC_100_noun_classes_v2.csv", "EPIC_100_noun_classes.csv", columns=("id", "key")):
        head, *rest = row["key"].split(":")  # the thing itself stands first, what kind of it behind
        nouns[number(row["id"], "a noun's id")] = " ".join([*rest, head]).replace("-", " ")
    return verbs, nouns


def question(count: int) -> str:
    """What long-term anticipation asks for."""
    return f"What are the next {count} actions? List each on a line of its own with its number, as verb and noun."


def said(text: str) -> str:
    """ "put down plate" -> "Put down plate." """
    text = text.strip(" .,")
    return text[:1].upper() + text[1:] + "."


def _videos(source: Source) -> Iterator[tuple[str, list[Action], float | None]]:
    """(video, its actions by start, its duration in seconds if known), videos in the order of the file."""
    file = _file(source)
    durations: dict[str, float] = {}
    for row in source.table("EPIC_100_video_info.csv", columns=("video_id", "duration"), needed=False):
        with source.record("EPIC_100_video_info.csv", row["video_id"]):
            durations[row["video_id"]] = length(float(row["duration"]))
    videos: dict[str, list[Action]] = {}
    for line, row in enumerate(source.table(file, columns=COLUMNS), start=2):
        with source.record(file, row.get("narration_id") or f"line {line}"):
            action = _action(row)
            videos.setdefault(sentence(row["video_id"], "its video_id"), []).append(action)
    for video, actions in videos.items():
        actions.sort(key=lambda action: (action.start, action.end))
        yield video, actions, durations.get(video)


def _action(row: dict[str, str]) -> Action:
    start = clock(row["start_timestamp"], "start_timestamp")
    end = clock(row["stop_timestamp"], "stop_timestamp")
    if end < start:
        raise ValueError(f"it stops at {end:g} s, before it starts at {start:g} s")
    told = row["narration_timestamp"]
    time = clock(told, "narration_timestamp") if told else start  # a few rows of the training file have none
    verb, noun = number(row["verb_class"], "verb_class"), number(row["noun_class"], "noun_class")
    return Action(row["narration_id"], time, start, end, sentence(row["narration"], "narration"), verb, noun)


def _file(source: Source) -> str:
    return f"EPIC_100_{source.split}.csv"


def _meta(source: Source, video: str) -> dict[str, str]:
    return {"data": source.name, "split": source.split, "video": video}
