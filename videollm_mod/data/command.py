"""`videollm-mod data ...`: check a file of streams, make one of your own footage, count or build those of a data set.

videollm-mod data check mine.jsonl
videollm-mod data make clips/ --out mine.jsonl
videollm-mod data stats epic-narration --root annotations/
videollm-mod data build coin-step --root annotations/ --split train --videos videos/ --out coin.jsonl
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from videollm_mod.data.reading import Source
    from videollm_mod.data.segments import Stream
    from videollm_mod.types import InputError

SHOWN = 20  # problems told one by one


# -- check -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CheckConfig:
    """Flags of `data check`."""

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.jsonl")]
    """A file of streams; docs/data.md says what it is like."""
    all: bool = False
    """Tell all problems, not the first twenty."""


def check(config: CheckConfig) -> dict[str, Any]:
    """Tell what is wrong with a file, line by line, with the mend; and count what is in it."""
    from videollm_mod.data.segments import numbered_streams
    from videollm_mod.data.stats import count

    problems: list[str] = []
    unanswered = 0
    lengths: dict[Path, float | InputError] = {}

    def bad(number: int, error: InputError) -> None:
        problems.append(str(error))

    def looked_through() -> Iterator[Stream]:
        nonlocal unanswered
        for number, stream in numbered_streams(config.file, bad):
            problems.extend(f"{config.file}, line {number}: {told}" for told in _file_problems(stream, lengths))
            unanswered += len(unanswered_questions(stream))
            yield stream

    total, videos = count(looked_through())
    if unanswered:
        print(f"questions without a reply behind them: {unanswered}; `train own` wants one for each", file=sys.stderr)
    for line in problems if config.all else problems[:SHOWN]:
        print(line, file=sys.stderr)
    if len(problems) > SHOWN and not config.all:
        print(f"... and {len(problems) - SHOWN} more; --all tells them", file=sys.stderr)
    counted = {"videos": len(videos), **total.to_dict(), "unanswered": unanswered}
    return {"ok": not problems and total.streams > 0, "problems": len(problems), **counted}


def _file_problems(stream: Stream, lengths: dict[Path, float | InputError]) -> list[str]:
    """What is wrong with a stream's video and features, and which of its times are beyond them.

    lengths: of the files that were opened before, seconds, or why they cannot be.
    """
    from videollm_mod.data.extract import probe
    from videollm_mod.data.features import open_features
    from videollm_mod.types import InputError

    if stream.video is None and stream.features is None:
        return ["it has neither video nor features; add one of them."]
    told: list[str] = []
    for what, path in (("video", stream.video), ("features file", stream.features)):
        if path is None:
            continue
        if not path.exists():
            told.append(f"its {what} {path} is not there; give the path relative to the folder of this file.")
            continue
        if path not in lengths:
            try:
                lengths[path] = probe(path) if what == "video" else open_features(path).duration
            except InputError as error:
                lengths[path] = error
        length = lengths[path]
        if isinstance(length, InputError):
            told.append(str(length))
            continue
        late = [
            (number, name, value)
            for number, segment in enumerate(stream.segments)
            for name in ("time", "start")
            if (value := getattr(segment, name)) is not None and 0 < length + 1 < value
        ]
        if late and stream.duration is None:  # else its times were held to that
            number, name, value = late[0]
            told.append(f"segment {number} has {name} {value:g}, but its {what} ends at {length:g} s; correct one.")
    return told


def unanswered_questions(stream: Stream) -> list[float]:
    """The times of the questions that no reply follows."""
    texts = [segment for segment in stream.segments if segment.kind in ("user", "assistant")]
    followed = zip(texts, [*texts[1:], None])
    return [
        text.time or 0.0
        for text, after in followed
        if text.kind == "user" and (after is None or after.kind != "assistant")
    ]


# -- make --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MakeConfig:
    """Flags of `data make`."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """A folder of videos. The sentences of NAME.mp4 are in NAME.srt, NAME.vtt or NAME.csv beside it, unless --table is
    given. Columns of a CSV: time, or start and end; text; and, if wanted, kind (assistant, or user for a question)."""
    out: Path
    """The file to write."""
    table: Path | None = None
    """One CSV for all videos, with a column video besides: its file name."""
    at: Literal["start", "end"] = "start"
    """When a sentence with start and end is said."""


def make(config: MakeConfig) -> dict[str, Any]:
    """Videos and timed sentences as a file of streams, to train on with `train own --data FILE`."""
    from videollm_mod.data.reading import VIDEOS
    from videollm_mod.data.segments import Stream, write_streams
    from videollm_mod.data.sentences import read_table
    from videollm_mod.data.stats import count
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError
    from videollm_mod.video import open_video

    check_writable(config.out)
    if not config.folder.is_dir():
        raise InputError(f"there is no folder {config.folder}; give one with videos in it.")
    paths = sorted(path for path in config.folder.rglob("*") if path.suffix.lower() in VIDEOS and path.is_file())
    if not paths:
        raise InputError(f"{config.folder} has no video in it; give a folder with files such as NAME.mp4.")
    told = read_table(config.table, config.at) if config.table is not None else None
    if told is not None:
        known = {name for path in paths for name in _names(path, config.folder)}
        for name in told:
            if name not in known:
                raise InputError(f"{config.table} tells of the video '{name}', which is not in {config.folder}.")
    beside = _beside(config.folder) if told is None else {}
    streams: list[Stream] = []
    silent: list[str] = []
    failed: list[str] = []
    for path in paths:
        name = str(path.relative_to(config.folder))
        segments = _sentences_of(path, config, told, beside)
        if not segments:
            silent.append(name)
            continue
        try:
            with open_video(path) as video:
                duration = video.duration
        except InputError as error:
            failed.append(name)
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        late = [s for s in segments if duration is not None and (s.time or 0.0) > duration]
        if late:
            raise InputError(
                f"a sentence of {name} is at {late[0].time:g} s, but the video ends at {duration:g} s; correct it."
            )
        identity = str(path.relative_to(config.folder).with_suffix(""))
        streams.append(Stream(identity, tuple(segments), path, duration=duration))
    if silent:
        print(f"without sentences, and left out: {', '.join(silent[:SHOWN])}", file=sys.stderr)
    if not streams:
        raise InputError(
            f"no video in {config.folder} has sentences; put NAME.srt or NAME.csv beside NAME.mp4, or give --table."
        )
    _twice(streams)
    write_streams(config.out, streams)
    total, videos = count(streams)
    counted = {"videos": len(videos), **total.to_dict()}
    return {"out": str(config.out), **counted, "without_sentences": len(silent), "failed": len(failed)}


def _names(path: Path, folder: Path) -> tuple[str, ...]:
    """How a table may call a video."""
    inside = path.relative_to(folder)
    return str(inside), path.name, str(inside.with_suffix("")), path.stem


def _beside(folder: Path) -> dict[Path, Path]:
    """Videos without their endings -> their sentences: NAME.srt before NAME.vtt before NAME.csv, in any case."""
    from videollm_mod.data.sentences import SUBTITLES

    found: dict[Path, Path] = {}
    for ending in (*SUBTITLES, ".csv"):
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() == ending and file.is_file():
                found.setdefault(file.with_suffix(""), file)
    return found


def _sentences_of(
    path: Path, config: MakeConfig, told: dict[str, list[Any]] | None, beside: dict[Path, Path]
) -> list[Any]:
    """The segments of a video, ascending."""
    from videollm_mod.data.sentences import SUBTITLES, read_subtitles, read_table
    from videollm_mod.types import InputError

    segments: list[Any] = []
    if told is not None:
        for name in dict.fromkeys(_names(path, config.folder)):
            segments += told.get(name, [])
    else:
        file = beside.get(path.with_suffix(""))
        if file is not None and file.suffix.lower() in SUBTITLES:
            segments = read_subtitles(file, config.at)
        elif file is not None:
            for name, rows in read_table(file, config.at).items():
                if name and name not in _names(path, config.folder):
                    raise InputError(f"{file} tells of the video '{name}'; give one table for all with --table.")
                segments += rows
    return sorted(segments, key=lambda segment: segment.time or 0.0)


def _twice(streams: list[Stream]) -> None:
    from videollm_mod.types import InputError

    seen = set()
    for stream in streams:
        if stream.id in seen:
            raise InputError(f"two videos are called '{stream.id}'; rename one of them.")
        seen.add(stream.id)


# -- stats and build ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatsConfig:
    """Flags of `data stats`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A data set, such as epic-narration, or a .jsonl file of streams. `videollm-mod data list` names them all."""
    root: Path | None = None
    """The folder of the data set's annotation files."""
    split: str | None = None
    """Which part of it; the one that is evaluated if not given."""
    videos: Path | None = None
    """The folder of its videos: those that are not there are told."""
    fps: float = 2.0
    """Frames per second, by which some data sets leave sentences out that share a frame."""
    skip_bad: bool = False
    """Skip and count records that are not as they should be."""
    skip_missing: bool = False
    """Skip and count videos that are not there."""
    json: Path | None = None
    """Write the result here too, and with it the counts of every video."""


def stats(config: StatsConfig) -> dict[str, Any]:
    """Count the videos, sentences and seconds of a data set."""
    from videollm_mod.data.stats import count
    from videollm_mod.files import atomic_write, check_writable

    if config.json is not None:
        check_writable(config.json)
    began = time.monotonic()
    streams, source = _open(config.name, config.root, config)
    total, videos = count(streams)
    result = {"name": config.name, "split": source.split if source else None, "videos": len(videos)}
    result |= total.to_dict() | _left_out(source) | {"took": round(time.monotonic() - began, 2)}
    if config.json is not None:
        per_video = {name: one.to_dict() for name, one in sorted(videos.items())}
        with atomic_write(config.json) as file:
            file.write(json.dumps({**result, "per_video": per_video}, indent=1) + "\n")
    return result


@dataclass(frozen=True)
class BuildConfig:
    """Flags of `data build`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A data set, such as coin-step; `videollm-mod data list` names them all."""
    root: Path
    """The folder of the data set's annotation files."""
    out: Path
    """The file to write, JSONL."""
    split: str | None = None
    """Which part of it; the one that is evaluated if not given."""
    videos: Path | None = None
    """The folder of its videos, at any depth."""
    features: Path | None = None
    """The folder of features that `extract` wrote of them."""
    fps: float = 2.0
    """Frames per second at which the streams will be watched."""
    instruction: str | None = None
    """What the user asks for, in place of the data set's usual words."""
    skip_bad: bool = False
    """Skip and count records that are not as they should be."""
    skip_missing: bool = False
    """Skip and count videos that are not there."""


def build(config: BuildConfig) -> dict[str, Any]:
    """A data set's streams as JSONL, to train on with --data or to evaluate."""
    from videollm_mod.data.segments import write_streams
    from videollm_mod.data.stats import Count, video_of
    from videollm_mod.files import check_writable

    check_writable(config.out)
    streams, source = _open(config.name, config.root, config)
    total, videos = Count(), set()

    def counted() -> Iterator[Stream]:
        for stream in streams:
            total.add(stream)
            videos.add(video_of(stream))
            yield stream

    write_streams(config.out, counted())
    result = {"out": str(config.out), "name": config.name, "split": source.split if source else None}
    return {**result, "videos": len(videos), **total.to_dict(), **_left_out(source)}


@dataclass(frozen=True)
class ListConfig:
    """No flags."""


def list_data(config: ListConfig) -> dict[str, Any]:
    """The data sets that can be read, the files that each needs, and what gives them."""
    from videollm_mod.data.registry import DATA_SETS

    for entry in DATA_SETS.values():
        print(f"{entry.name:<24} {entry.about}", file=sys.stderr)
        print(f"{'':<24}   files: {', '.join(entry.files)}; splits: {', '.join(entry.splits)}", file=sys.stderr)
        print(f"{'':<24}   annotations: {entry.page}\n{'':<24}   videos: {entry.video_page}", file=sys.stderr)
    return {
        entry.name: {
            "about": entry.about,
            "files": list(entry.files),
            "splits": list(entry.splits),
            "annotations": entry.page,
            "videos": entry.video_page,
        }
        for entry in DATA_SETS.values()
    }


def _open(name: str, root: Path | None, config: StatsConfig | BuildConfig) -> tuple[Iterator[Stream], Source | None]:
    """The streams of a data set or of a file, and the former's source."""
    from videollm_mod.data.registry import data_set
    from videollm_mod.data.segments import read_streams
    from videollm_mod.types import InputError

    if name.endswith(".jsonl"):
        if root is not None or config.split is not None:
            raise InputError(f"{name} is a file of streams; --root and --split are for a data set by name.")
        return read_streams(name), None
    entry = data_set(name)
    if root is None:
        raise InputError(f"--root is missing; give the folder with {', '.join(entry.files)} ({entry.page}).")
    if not 0 < config.fps <= 1000:
        raise InputError(f"--fps {config.fps:g} is no frame rate; give frames per second, such as 2.")
    options = {
        option: getattr(config, option)
        for option in ("videos", "features", "fps", "instruction", "skip_bad", "skip_missing")
        if hasattr(config, option)
    }
    source = entry.source(root, config.split, **options)
    return entry.read(source), source


def _left_out(source: Source | None) -> dict[str, int]:
    """How many were skipped, the first of them told."""
    if source is None:
        return {}
    for line in source.skipped[:SHOWN]:
        print(f"skipped: {line}", file=sys.stderr)
    if source.missing:
        print(f"not there: {', '.join(sorted(source.missing)[:SHOWN])}", file=sys.stderr)
    return {"skipped": len(source.skipped), "missing_videos": len(source.missing)}
