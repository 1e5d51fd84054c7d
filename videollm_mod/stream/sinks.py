"""Where a stream's events go: JSON lines and SubRip subtitles (the annotated video is `show.overlay.VideoSink`).

A sink is a context manager with `.frame(frame, session)` and `.event(event)`. Both files here are written in place, one
whole line or cue at a time, flushed as said: they can be followed with `tail -f` and are valid whenever the program
stops. Nothing is created before the first frame or event, so a source that cannot be opened leaves no file behind and
an older file of that name untouched.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TextIO

from videollm_mod.types import Frame, StreamEvent


class Sink(Protocol):
    """What `watch` hands frames and events to. `session` is the StreamSession that has just seen the frame."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def frame(self, frame: Frame, session: Any) -> None: ...

    def event(self, event: StreamEvent) -> None: ...


def event_to_json(event: StreamEvent) -> str:
    """One event as one line of JSON (no line break), times rounded to milliseconds.

    `time` is when it was said: of an answer never before `asked`, though `frame`, the newest seen, may be older.
    """
    return json.dumps(
        {
            "time": round(event.time, 3),
            "kind": event.kind,
            "text": event.text,
            "frame": event.frame,
            "question": event.question,
            "asked": None if event.asked is None else round(event.asked, 3),
            "probability": round(event.probability, 6),
        },
        ensure_ascii=False,
    )


class _TextSink:
    """A text file that comes into being with the first frame or event."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: TextIO | None = None

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def frame(self, frame: Frame, session: Any = None) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self._file is None:
            # newline="\n": the same bytes on every system
            self._file = self.path.open("w", encoding="utf-8", newline="\n")
        if text:
            self._file.write(text)
            self._file.flush()


class JsonlSink(_TextSink):
    """One JSON object a line: time, kind, text, frame, question, asked, probability."""

    def event(self, event: StreamEvent) -> None:
        self._write(event_to_json(event) + "\n")


def srt_time(seconds: float) -> str:
    """Seconds as SubRip writes them, `HH:MM:SS,mmm`, rounded to milliseconds; before zero is zero."""
    total = max(0, round(seconds * 1000))
    return f"{total // 3_600_000:02d}:{total // 60_000 % 60:02d}:{total // 1000 % 60:02d},{total % 1000:03d}"


class SrtSink(_TextSink):
    """SubRip subtitles. Each lasts until the next one, at most `longest` seconds.

    A cue can be written only when its end is known, that is with the next event or at the end. Events at the same
    millisecond share a cue, and one that arrives with an earlier time than the cue before joins that cue: cues stay in
    order and none has zero length.
    """

    def __init__(self, path: str | Path, longest: float = 4.0) -> None:
        super().__init__(path)
        self.longest = longest
        self._number = 0
        self._start = 0.0  # of the cue being collected
        self._lines: list[str] = []

    def event(self, event: StreamEvent) -> None:
        text = " ".join(event.text.split())  # a blank line would end the cue
        if event.question is not None:
            text = f"Q: {' '.join(event.question.split())} A: {text}"
        if self._lines and round(event.time * 1000) > round(self._start * 1000):
            self._finish_cue(event.time)
        if not self._lines:
            self._start = max(0.0, event.time)
        self._lines.append(text)
        self._write("")

    def _finish_cue(self, next_start: float) -> None:
        end = min(next_start, self._start + self.longest)
        self._number += 1
        text = "\n".join(line or "…" for line in self._lines)
        self._write(f"{self._number}\n{srt_time(self._start)} --> {srt_time(end)}\n{text}\n\n")
        self._lines = []

    def close(self) -> None:
        if self._lines:
            self._finish_cue(self._start + self.longest)
        super().close()
