"""Timed sentences as people have them: CSV tables, and SRT or WebVTT subtitles."""

from __future__ import annotations

import csv
import html
import io
import re
from pathlib import Path
from typing import Any

from videollm_mod.data.reading import seconds
from videollm_mod.data.segments import Segment
from videollm_mod.types import InputError

SUBTITLES = (".srt", ".vtt")
MORE = "\0"  # what csv calls the values of a line that has more of them than there are columns
_TIME = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)")
_CUE = re.compile(rf"^\s*({_TIME.pattern})\s*-->\s*({_TIME.pattern})")
_MARKUP = re.compile(r"<[^>]*>|\{\\[^}]*\}")


def parse_time(text: str) -> float:
    """Seconds of "83.45", "1:23.45" or "00:01:23,450"; ValueError for anything else."""
    text = text.strip()
    found = _TIME.fullmatch(text)
    if found:
        hours, minutes, rest = found.groups()
        return seconds(round(3600 * int(hours or 0) + 60 * int(minutes) + float(rest.replace(",", ".")), 6))
    try:
        return seconds(float(text))
    except ValueError:
        raise ValueError(f"'{text}' is no time; write seconds, such as 83.45, or 00:01:23.450") from None


def read_subtitles(path: Path, at: str = "start") -> list[Segment]:
    """The cues of an SRT or WebVTT file as narrations, said at their `at`: "start" or "end"."""
    segments: list[Segment] = []
    lines = [*_text(path).splitlines(), ""]
    for number, line in enumerate(lines, start=1):
        found = _CUE.match(line)
        if not found:
            if "-->" in line:
                raise InputError(
                    f"{path}, line {number}: '{line.strip()}' is no cue; write 00:00:01,000 --> 00:00:02,500."
                )
            continue
        words: list[str] = []
        for said in lines[number:]:
            if not said.strip():
                break
            if "-->" in said:  # no blank line between two cues: their number is no word
                words = words[:-1] if words and words[-1].strip().isdecimal() else words
                break
            words.append(_MARKUP.sub("", said))
        text = " ".join(" ".join(words).split())
        if path.suffix.lower() == ".vtt":
            text = html.unescape(text)
        try:
            start, end = parse_time(found[1]), parse_time(found[5])
            if end < start:
                raise ValueError(f"the cue ends at {end:g} s, before it starts")
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}.") from error
        if text:
            segments.append(Segment("assistant", start if at == "start" else end, start, end, text))
    if not segments:
        raise InputError(f'{path} has no subtitle; a cue is a line "00:00:01,000 --> 00:00:02,500" and its text below.')
    return segments


def read_table(path: Path, at: str = "start") -> dict[str, list[Segment]]:
    """The rows of a CSV file by their video, "" where it has no such column.

    Columns: time, or start and end; text; and, if wanted, video, and kind (assistant or user).
    """
    found: dict[str, list[Segment]] = {}
    rows = csv.DictReader(io.StringIO(_text(path), newline=""), restkey=MORE, skipinitialspace=True, strict=True)
    try:
        columns = {(name or "").strip().lower(): name for name in rows.fieldnames or ()}
    except csv.Error as error:
        raise InputError(f"{path}, line 1: {error}.") from error
    if "text" not in columns or not columns.keys() & {"time", "start"}:
        raise InputError(
            f"{path} has the columns {', '.join(columns) or '(none)'}; it needs text, and time, or start and end; "
            "video and kind if wanted."
        )
    try:
        for row in rows:
            if MORE in row:
                raise ValueError(
                    f"it has {len(columns) + len(row[MORE])} values for {len(columns)} columns; put a text with a "
                    "comma into quotes"
                )
            values = {name: (row.get(told) or "").strip() for name, told in columns.items()}
            if any(values.values()):
                found.setdefault(values.get("video", ""), []).append(_row(values, at))
    except csv.Error as error:  # of the row that begins behind the last whole one
        raise InputError(f"{path}, line {rows.line_num + 1}: {error}; check its quotes.") from error
    except ValueError as error:
        raise InputError(f"{path}, line {rows.line_num}: {str(error).rstrip('.')}.") from error
    return found


def _row(values: dict[str, Any], at: str) -> Segment:
    times = {name: parse_time(values[name]) for name in ("time", "start", "end") if values.get(name)}
    start, end = times.get("start"), times.get("end")
    if start is not None and end is not None and end < start:
        raise ValueError(f"it ends at {end:g} s, before it starts at {start:g} s")
    time = times.get("time", end if at == "end" and end is not None else start)
    if time is None:
        raise ValueError("it has no time")
    kind, text = values.get("kind") or "assistant", " ".join(values["text"].split())
    if kind not in ("assistant", "user"):
        raise ValueError(f"its kind is '{kind}'; give assistant or user")
    if not text:
        raise ValueError("it has no text")
    return Segment(kind, time, start, end, text)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); save it as UTF-8.") from error
