"""Ego4D v2 (ego4d-data.org): the narration stream, raw and refined, GoalStep's live chat, long-term anticipation.

As VideoLLM-online makes them (github.com/showlab/videollm-online, data/ego4d): the same cleaning, splits, roundings to
frames and questions, so that numbers can be compared.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Iterator
from typing import Any

from videollm_mod.data.reading import Source, length, number, seconds, sentence, stretch
from videollm_mod.data.segments import Segment, Stream, frame_at
from videollm_mod.types import InputError

NARRATIONS = "all_narrations_redacted.json"
LIVE_CHAT = "goalstep_livechat_trainval_filtered_21k.json"
# the benchmarks whose videos are held out, and where their files keep the records
BENCHMARKS = {
    "goalstep": "videos",
    "fho_lta": "clips",
    "nlq": "videos",
    "moments": "videos",
    "av": "videos",
    "fho_oscc-pnr": "clips",
    "fho_sta": "annotations",
    "vq": "videos",
}
NARRATE = "Please concisely narrate the video in real time."
NARRATE_TAGGED = (
    f"{NARRATE} Use the tag 'C' to denote the camera wearer, and other letter tags, such as 'X', to denote other "
    "individuals in the scene."
)
INPUTS, FUTURE = 8, 20  # actions of the long-term set: seen, to come
WAITING = 20  # frames of a live chat before its first question, at most
_TAGS = re.compile(r"#unsure|#[co]|@c|#", re.IGNORECASE)


def clean(text: str) -> str:
    """ "#C C picks a cup. " -> "C picks a cup.": without tags, one full stop, spaces in order, the first word large.

    "" where less than two words are left: a person and a verb is the least.
    """
    words = (_TAGS.sub("", text).strip("., \n") + ".").split()
    if len(words) < 2:
        return ""
    return " ".join([words[0].capitalize(), *words[1:]])


# -- narration ---------------------------------------------------------------------------------------------------------


def read_narration(source: Source) -> Iterator[Stream]:
    """One stream for each pass of an annotator over a video, of the split that the benchmarks leave."""
    videos = source.inside(source.json(NARRATIONS), "videos", NARRATIONS, of=dict)
    durations = _durations(source)
    wanted = split_videos(source, videos)
    for video in videos:
        if video not in wanted:
            continue
        passes: dict[str, list[tuple[float, str]]] = {}
        for place, narration in enumerate(_list(source, NARRATIONS, video, videos[video], "narrations")):
            with source.record(NARRATIONS, f"{video}/{place}"):
                time, text = seconds(narration["time"]), clean(sentence(narration["text"]))
                if text:
                    passes.setdefault(str(narration["_annotation_uid"]), []).append((time, text))
        yield from _streams(source, video, passes, durations, NARRATE_TAGGED)


def read_refined(source: Source) -> Iterator[Stream]:
    """The same from VideoLLM-online's refined file: {video: {pass: [{"time", "text"}]}}, in whole sentences."""
    file = f"refined_narration_stream_{source.split}.json"
    durations = _durations(source)
    for video, values in source.json(file).items():
        passes: dict[str, list[tuple[float, str]]] = {}
        names: list[str] = []
        with source.record(file, video):
            names = list(values.keys())
        for name in names:
            for place, one in enumerate(_list(source, file, video, values, name)):
                with source.record(file, f"{video}/{name}/{place}"):
                    passes.setdefault(name, []).append((seconds(one["time"]), sentence(one["text"])))
        yield from _streams(source, video, passes, durations, NARRATE)


def split_videos(source: Source, videos: Iterable[str]) -> set[str]:
    """Those of a split: validation has all that any benchmark validates on, test what they test on besides."""
    held: dict[str, set[str]] = {"val": set(), "test_unannotated": set()}
    for benchmark, key in BENCHMARKS.items():
        for part, found in held.items():
            file = f"{benchmark}_{part}.json"
            records = source.inside(source.json(file), key, file)
            for place, values in enumerate(records):
                with source.record(file, place):
                    found.add(values["video_uid"])
    validation, test = held["val"], held["test_unannotated"] - held["val"]
    every = set(videos)
    return {"train": every - validation - test, "val": every & validation, "test": every & test}[source.split]


def narration_segments(told: list[tuple[float, str]], fps: float, instruction: str) -> tuple[Segment, ...]:
    """A pass as a conversation: one frame, the instruction, the first narration, then each at its frame.

    What repeats the sentence before it is left out; of two on one frame the later one stays.
    """
    kept: list[tuple[float, str]] = []
    last = ""
    for time, text in sorted(told, key=lambda narration: narration[0]):
        if text == last:
            continue
        if kept and frame_at(kept[-1][0], fps) == frame_at(time, fps):
            kept.pop()
        kept.append((time, text))
        last = text
    if not kept:
        return ()
    first = kept[0][0]
    replies = [Segment("assistant", time, text=text) for time, text in kept]
    opening = (
        Segment("stream", start=first, end=first, learn=False),
        Segment("user", first, text=instruction),
        replies[0],
    )
    if len(kept) == 1:
        return opening
    return (*opening, Segment("stream", start=first, end=kept[-1][0]), *replies[1:])


def _streams(
    source: Source,
    video: str,
    passes: dict[str, list[tuple[float, str]]],
    durations: dict[str, float],
    instruction: str,
) -> Iterator[Stream]:
    if not any(passes.values()):
        return
    found = source.place(video)
    if found is None:
        return
    duration = durations.get(video)
    for name, told in passes.items():
        if duration is not None:  # a narration of what is no longer to be seen stands on the last frame
            told = [(min(time, duration), text) for time, text in told]
        segments = narration_segments(told, source.fps, source.instruction or instruction)
        if segments:
            meta = _meta(source, video) | {"pass": name}
            yield Stream(f"{video}/{name}", segments, fps=source.fps, duration=duration, meta=meta, **found)


# -- live chat ---------------------------------------------------------------------------------------------------------


def read_live_chat(source: Source) -> Iterator[Stream]:
    """One stream a conversation: [{"video_uid", "conversation": [{"role", "content", "time"}]}], from up to twenty
    frames before its first question on."""
    durations = _durations(source)
    for place, values in enumerate(source.json(LIVE_CHAT, of=list)):
        segments: tuple[Segment, ...] = ()
        video = ""
        with source.record(LIVE_CHAT, place):
            video = sentence(values["video_uid"], "video_uid")
            messages = [
                (m["role"], sentence(m["content"], "content"), seconds(m["time"])) for m in values["conversation"]
            ]
            segments = chat_segments(messages, source.fps, durations.get(video, math.inf), f"{video}/{place}")
        found = source.place(video) if segments else None
        if found is not None:
            duration, meta = durations.get(video), _meta(source, video)
            yield Stream(f"{video}/{place}", segments, fps=source.fps, duration=duration, meta=meta, **found)


def chat_segments(
    messages: list[tuple[str, str, float]], fps: float, duration: float, seed: str
) -> tuple[Segment, ...]:
    """A conversation's (role, text, time) as segments; () if it is none.

    A question stands on the frame before its time, a reply on the one after; a reply at the time of its question is its
    answer, one on an earlier reply's frame is left out. What goes back in time, or beyond the video's end, ends it.
    """
    if not messages or messages[0][0] != "user" or not 0 < messages[0][2] <= duration:
        return ()
    asked = math.floor(messages[0][2] * fps + 1e-6)  # numbers of frames from here on
    waiting = random.Random(seed).randint(0, min(WAITING, asked))
    segments: list[Segment] = []
    if waiting > 1:
        segments.append(Segment("stream", start=(asked - waiting + 1) / fps, end=(asked - 1) / fps))
    if waiting:  # whether to speak where somebody asks is nothing to learn
        segments.append(Segment("stream", start=asked / fps, end=asked / fps, learn=False))
    segments.append(Segment("user", asked / fps, text=messages[0][1]))
    texts: list[Segment] = []
    shown, last = asked, messages[0]
    for role, text, time in messages[1:]:
        if time > duration or time < last[2] or (time == last[2] and role == "user"):
            break
        if time == last[2]:
            if last[0] == "assistant":
                texts.pop()
            texts.append(Segment("assistant", shown / fps, text=text))
            last = (role, text, time)
            continue
        frame = max(shown, math.floor(time * fps + 1e-6) if role == "user" else frame_at(time, fps))
        if role == "user" or frame > shown:
            texts.append(Segment("user" if role == "user" else "assistant", frame / fps, text=text))
            shown, last = frame, (role, text, time)
    while texts and texts[-1].kind == "user":  # nobody answers
        texts.pop()
    if not texts:
        return ()
    end = max(text.time or 0.0 for text in texts)
    if frame_at(end, fps) > asked:
        segments.append(Segment("stream", start=(asked + 1) / fps, end=end))
    elif not waiting:  # a question, and nothing to see
        segments.append(Segment("stream", start=asked / fps, end=asked / fps, learn=False))
    return (*segments, *texts)


# -- long-term anticipation --------------------------------------------------------------------------------------------


def read_lta(source: Source) -> Iterator[Stream]:
    """One stream for each run of 28 actions of a clip: 8 that are seen, the 20 to come are the answer.

    The split test_unannotated has no answers.
    """
    file = f"fho_lta_{source.split}.json"
    verbs, nouns = taxonomy(source)
    durations = _durations(source)
    clips: dict[str, list[dict[str, Any]]] = {}
    for place, values in enumerate(source.inside(source.json(file), "clips", file)):
        with source.record(file, place):
            start = seconds(values["clip_parent_start_sec"], "clip_parent_start_sec")
            span = stretch(start + values["action_clip_start_sec"], start + values["action_clip_end_sec"])
            action = {"video": values["video_uid"], "index": number(values["action_idx"], "action_idx"), "span": span}
            if source.split != "test_unannotated":
                action["verb"] = number(values["verb_label"], "verb_label")
                action["noun"] = number(values["noun_label"], "noun_label")
                for what, names in (("verb", verbs), ("noun", nouns)):
                    if action[what] >= len(names):
                        raise ValueError(f"its {what}_label is {action[what]}, and the taxonomy has {len(names)}")
            clips.setdefault(values["clip_uid"], []).append(action)
    for clip, actions in clips.items():
        actions.sort(key=lambda action: action["index"])
        if len(actions) < INPUTS + FUTURE:
            continue
        found = source.place(actions[0]["video"])
        if found is None:
            continue
        for first in range(len(actions) - INPUTS - FUTURE + 1):
            seen, coming = actions[first : first + INPUTS], actions[first + INPUTS : first + INPUTS + FUTURE]
            start, end = (round(time * source.fps) / source.fps for time in (seen[0]["span"][0], seen[-1]["span"][1]))
            end = max(start, end)
            frames = round((end - start) * source.fps) + 1
            segments = [
                Segment("user", text=source.instruction or question(frames)),
                Segment("stream", start=start, end=end),
            ]
            meta: dict[str, Any] = _meta(source, seen[0]["video"])
            meta |= {"clip": clip, "last_visible_action": seen[-1]["index"]}
            if source.split != "test_unannotated":
                names = [f"{verbs[one['verb']].capitalize()} {nouns[one['noun']]}." for one in coming]
                answer = "\n".join(f"{place}. {name}" for place, name in enumerate(names, start=1))
                segments.append(Segment("assistant", end, text=answer))
                meta |= {"verbs": [one["verb"] for one in coming], "nouns": [one["noun"] for one in coming]}
            yield Stream(
                f"{clip}/{seen[-1]['index']}",
                tuple(segments),
                fps=source.fps,
                duration=durations.get(seen[0]["video"]),
                meta=meta,
                **found,
            )


def question(frames: int) -> str:
    """What VideoLLM-online asks for."""
    return (
        f"After {frames} video frames, anticipate the next {FUTURE} actions. Format your answer concisely, listing "
        "each action on a new line with a number prefix. No extra text output."
    )


def taxonomy(source: Source) -> tuple[list[str], list[str]]:
    """Verbs and nouns in words, each different from the others."""
    file = "fho_lta_taxonomy.json"
    values = source.json(file)
    found: list[list[str]] = []
    for key in ("verbs", "nouns"):
        names = source.inside(values, key, file)
        if not all(isinstance(name, str) and name for name in names):  # a label is a place in this list: none can go
            raise InputError(f"{file} has {key} that are no names; get it again with: {source.page}.")
        found.append([class_words(name) for name in names])
    return found[0], found[1]


# names whose first word is another class's, too
_DISTINCT = {
    "pot_(planter)": "flowerpot",
    "bat_(sports)": "sport bat",
    "bat_(tool)": "bat",
    "nut_(food)": "nuts",
    "nut_(tool)": "nut",
    "chip_(food)": "snack",
    "chip_(wood'_metal),": "chips",
    "chip_(wood,_metal)": "chip",
}


def class_words(name: str) -> str:
    """ "turn_on_(switch,_start)" -> "turn on": the name before its synonyms, in words."""
    return _DISTINCT.get(name) or name.split("(")[0].rstrip("_").replace("_", " ")


# -- all of them -------------------------------------------------------------------------------------------------------


def _durations(source: Source) -> dict[str, float]:
    """Seconds of each video, if ego4d.json, the metadata that comes with the videos, is there."""
    if source.find("ego4d.json", needed=False) is None:
        return {}
    found = {}
    for place, values in enumerate(source.inside(source.json("ego4d.json"), "videos", "ego4d.json")):
        with source.record("ego4d.json", values.get("video_uid", place) if isinstance(values, dict) else place):
            found[values["video_uid"]] = length(values["duration_sec"], "duration_sec")
    return found


def _list(source: Source, file: str, video: str, values: Any, key: str) -> list[Any]:
    """A video's records; none if it has none."""
    with source.record(file, video):
        found = values.get(key, [])
        if not isinstance(found, list):
            raise ValueError(f"its {key} is no list")
        return found
    return []


def _meta(source: Source, video: str) -> dict[str, Any]:
    return {"data": source.name, "split": source.split, "video": video}
