"""Our own format for streams, JSONL: one object a line, a video and what is said over it, as typed segments with times.

    {"id": "desk", "video": "desk.mp4", "segments": [
        {"kind": "user", "time": 9.0, "text": "How many cups are there?"},
        {"kind": "assistant", "time": 9.0, "text": "One."}]}

docs/data.md is the whole specification. `read_streams` and `write_streams` are inverse; readers of data sets yield the
same `Stream`. Files of the first version, whose segments have "role" in place of "kind", are read as well.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from videollm_mod.files import atomic_write
from videollm_mod.types import InputError

KINDS = ("system", "user", "assistant", "stream")
MAX_SECONDS = 1e6  # eleven days: a longer video is a mistaken unit
MAX_LINE = 64 * 2**20  # characters
TOLERANCE = 1e-4  # of a frame: times in files are rounded
STREAM_KEYS = ("id", "video", "features", "fps", "duration", "segments", "meta")
SEGMENT_KEYS = ("kind", "time", "start", "end", "text", "learn", "meta")


@dataclass(frozen=True, slots=True)  # a data set has millions
class Segment:
    """A text that somebody says, or a stretch that is watched. All times are seconds of the video.

    kind       system: what the model is told first · user: a question · assistant: a reply · stream: what is watched
    time       of a text: when it is said, that is, behind the first frame at or after it
    start, end of a stream: its first and its last frame are the first ones at or after them; of a text, if given: the
               stretch that it speaks of
    learn      whether a reply's words, or a stream's decisions to speak, are learned
    """

    kind: str
    time: float | None = None
    start: float | None = None
    end: float | None = None
    text: str = ""
    learn: bool = True
    meta: dict[str, Any] = field(default_factory=dict)  # labels, such as {"verb": 0, "noun": 2}


@dataclass(frozen=True)
class Stream:
    """A video, or its features, with its segments in the order of the conversation.

    Without a segment of kind "stream" the whole video is watched. Texts in front of the first one are said before the
    first frame; all others have their places by their times. Streams ascend; a frame is shown once.
    """

    id: str
    segments: tuple[Segment, ...]
    video: Path | None = None
    features: Path | None = None  # a file that `extract` wrote
    fps: float | None = None  # frames per second that its times were made for; None = any
    duration: float | None = None  # of the video, seconds
    meta: dict[str, Any] = field(default_factory=dict)  # of the data set: split, labels, ...

    def of(self, kind: str) -> list[Segment]:
        """The segments of a kind, in order."""
        return [segment for segment in self.segments if segment.kind == kind]

    @property
    def replies(self) -> list[Segment]:
        """What the assistant says."""
        return self.of("assistant")

    @property
    def span(self) -> tuple[float, float | None]:
        """From where to where the video is watched, seconds; the end is None if nobody knows how long the video is."""
        watched = self.of("stream")
        if not watched:
            return 0.0, self.duration
        return float(watched[0].start or 0.0), watched[-1].end


def frame_at(time: float, fps: float) -> int:
    """The number of the first frame at or after a time."""
    return math.ceil(time * fps - TOLERANCE)


def frame_count(duration: float, fps: float) -> int:
    """Frames of a video of so many seconds: 0, 1 / fps, ... before its end; at least one."""
    return max(1, math.floor(duration * fps + TOLERANCE))


Bad = Callable[[int, InputError], None]


def read_streams(path: str | Path, bad: Bad | None = None) -> Iterator[Stream]:
    """The streams of a file, one at a time. Paths in it are relative to its folder; whether they exist is not asked.

    bad: is told each line that is not right, (number from 1, error), which is then skipped. Without it, the first one
    raises InputError, which names file, line and mend.
    """
    for _, stream in numbered_streams(path, bad):
        yield stream


def numbered_streams(path: str | Path, bad: Bad | None = None) -> Iterator[tuple[int, Stream]]:
    """As `read_streams`, each with the number of its line, from 1."""
    path = Path(path)
    seen: dict[str, int] = {}
    for number, line in _lines(path):
        try:
            if len(line) > MAX_LINE:
                raise InputError(f"it has {len(line)} characters; give at most {MAX_LINE}, a stream a line.")
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"it is no JSON ({error}); write one object, {{...}}, a line.") from error
            stream = parse_stream(values, path.parent, default_id=f"line-{number}")
            if stream.id in seen and "id" not in values:  # several lines about one video
                stream = replace(stream, id=f"{stream.id}-{number}")
            if stream.id in seen:
                raise InputError(f"its id '{stream.id}' is that of line {seen[stream.id]}; give each stream its own.")
            seen[stream.id] = number
        except InputError as error:
            told = InputError(f"{path}, line {number}: {error}")
            if bad is None:
                raise told from error
            bad(number, told)
            continue
        yield number, stream


def write_streams(path: str | Path, streams: Iterable[Stream]) -> int:
    """Write streams, one a line; the file appears when it is complete. Returns how many.

    Paths within the file's folder are written relative to it, others absolute.
    """
    count = 0
    with atomic_write(path) as file:
        for stream in streams:
            file.write(json.dumps(stream_record(stream, Path(path).parent), ensure_ascii=False) + "\n")
            count += 1
    return count


def stream_record(stream: Stream, folder: Path | None = None) -> dict[str, Any]:
    """A stream as plain JSON values; what is as usual is left out."""
    record: dict[str, Any] = {"id": stream.id}
    record["video"] = _portable(stream.video, folder)
    if stream.features is not None:
        record["features"] = _portable(stream.features, folder)
    for name in ("fps", "duration"):
        if getattr(stream, name) is not None:
            record[name] = _rounded(getattr(stream, name))
    record["segments"] = [_segment_record(segment) for segment in stream.segments]
    if stream.meta:
        record["meta"] = stream.meta
    return record


def parse_stream(values: Any, folder: Path, default_id: str = "stream") -> Stream:
    """A stream from JSON values, checked. Raises InputError, which names what is wrong and the mend."""
    if not isinstance(values, dict) or not isinstance(values.get("segments"), list):
        raise InputError('a line is {"video": "NAME", "segments": [...]}; this one is not.')
    _check_keys(values, STREAM_KEYS, "it")
    video, features = (_path(values.get(name), name, folder) for name in ("video", "features"))
    named = values.get("id", (video or features or Path(default_id)).stem)
    if not isinstance(named, str) or not named.strip():
        raise InputError(f"its id is {named!r}; give a name.")
    if not isinstance(values.get("meta", {}), dict):
        raise InputError(f"its meta is {values['meta']!r}; give an object, {{...}}, or leave it out.")
    fps, duration = (_above_zero(values.get(name), name) for name in ("fps", "duration"))
    segments = tuple(_segment(number, segment) for number, segment in enumerate(values["segments"]))
    _check_order(segments, duration)
    return Stream(named, segments, video, features, fps, duration, values.get("meta", {}))


# -- one segment -------------------------------------------------------------------------------------------------------


def _segment(number: int, values: Any) -> Segment:
    known: dict[str, Any] = values if isinstance(values, dict) else {}
    name = f"segment {number}"
    first_version = "role" in known  # whose "kind" is the kind of event that a sentence tells of
    kind: Any = known.get("role", known.get("kind"))
    if kind not in (("assistant", "user") if first_version else KINDS):
        mend = "assistant or user" if first_version else ", ".join(KINDS[:-1]) + f" or {KINDS[-1]}"
        raise InputError(f"{name} has {'role' if first_version else 'kind'} {kind!r}; give {mend}.")
    _check_keys(known, (*SEGMENT_KEYS, "role"), name)
    time, start, end = (_seconds(known.get(key), f"{name} has {key}") for key in ("time", "start", "end"))
    if start is not None and end is not None and end < start:
        raise InputError(f"{name} has start {start:g} and end {end:g}; the end must not lie before the start.")
    learn, meta, text = known.get("learn", True), known.get("meta", {}), known.get("text", "")
    if not isinstance(learn, bool):
        raise InputError(f"{name} has learn {learn!r}; give true or false.")
    if not isinstance(meta, dict):
        raise InputError(f"{name} has meta {meta!r}; give an object, {{...}}, or leave it out.")
    if kind == "stream":
        if start is None or end is None or time is not None:
            raise InputError(f'{name}, a stream, needs "start" and "end" in seconds, and no "time".')
        if text:
            raise InputError(f"{name}, a stream, has text {text!r}; give the text a segment of its own.")
        return Segment(kind, None, start, end, "", learn, meta)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{name} has text {text!r}; give a sentence.")
    if time is None:
        time = start
    if first_version and time is None:
        raise InputError(f"{name} has time None; give seconds from the video's beginning.")
    # lines of a text count (a numbered list of steps is one), spaces do not
    text = "\n".join(filter(None, (" ".join(line.split()) for line in text.splitlines())))
    return Segment(kind, time, start, end, text, learn, meta)


def _segment_record(segment: Segment) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": segment.kind}
    for name in ("time", "start", "end"):
        if getattr(segment, name) is not None:
            record[name] = _rounded(getattr(segment, name))
    if segment.kind != "stream":
        record["text"] = segment.text
    if not segment.learn:
        record["learn"] = False
    if segment.meta:
        record["meta"] = segment.meta
    return record


# -- what must hold of all of them -------------------------------------------------------------------------------------


def _check_order(segments: tuple[Segment, ...], duration: float | None) -> None:
    watched: Segment | None = None
    streams = any(segment.kind == "stream" for segment in segments)
    for number, segment in enumerate(segments):
        if segment.kind == "system" and number > 0:
            raise InputError(f"segment {number} is a system text; only the first segment can be one.")
        if segment.kind == "stream":
            assert segment.start is not None and segment.end is not None
            if watched is not None and segment.start < (watched.end or 0.0):
                raise InputError(
                    f"segment {number} is watched from {segment.start:g} s on, and the one before it until "
                    f"{watched.end:g} s; let streams follow each other."
                )
            watched = segment
        elif segment.kind != "system" and segment.time is None and (watched is not None or not streams):
            raise InputError(f'segment {number} has no "time"; give seconds from the video\'s beginning.')
        for name in ("time", "start"):
            value = getattr(segment, name)
            if duration is not None and value is not None and value > duration + 1:
                raise InputError(
                    f"segment {number} has {name} {value:g}, but the video's duration is {duration:g} s; correct one."
                )


def _check_keys(values: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            mend = f"did you mean '{near[0]}'?" if near else "put it into meta, or leave it out."
            raise InputError(f"{what} has an unknown entry '{key}'; {mend}")


def _seconds(value: Any, what: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_SECONDS:
        raise InputError(f"{what} {value!r}; give seconds from the video's beginning.")
    return float(value)


def _above_zero(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= MAX_SECONDS:
        unit = "seconds" if name == "duration" else "frames per second"
        raise InputError(f"{name} {value!r} is no number of {unit}; correct it or leave it out.")
    return float(value)


def _path(value: Any, name: str, folder: Path) -> Path | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value or "\0" in value:
        raise InputError(f"its {name} is {value!r}; give a path, relative to the folder of this file.")
    return folder / value


def _portable(path: Path | None, folder: Path | None) -> str | None:
    if path is None or folder is None:
        return None if path is None else str(path)
    absolute, home = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return str(absolute.relative_to(home)) if absolute.is_relative_to(home) else str(absolute)


def _rounded(value: float) -> float:
    """To a microsecond, so that files stay readable; whole numbers as such."""
    rounded = round(float(value), 6)
    return int(rounded) if math.isfinite(rounded) and rounded == int(rounded) else rounded


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except FileNotFoundError as error:
        raise InputError(
            f"there is no file {path}; give a file of streams, as `videollm-mod data make` writes."
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSONL ({error}); give a file with a video a line.") from error
