"""Where a stream's events go: JSON lines and SubRip subtitles (the annotated video is `show.overlay.VideoSink`).

A sink is a context manager with `.frame(frame, session)`, `.event(event)` and, when all is said, `.finish()`. Both
files here grow as NAME.part, one whole line or cue at a time, flushed as said: there they can be followed with
`tail -f`, and are whatever stops the program. They get their names when the block ends well or by Ctrl-C; after an
error an older file of that name is as it was. Nothing is created before the first frame or event, so a source that
cannot be opened leaves no file behind.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Protocol

from videollm_mod.files import atomic_write, naming
from videollm_mod.types import Frame, StreamEvent


class Sink(Protocol):
    """What `watch` hands frames and events to. `session` is the StreamSession that has just seen the frame."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def frame(self, frame: Frame, session: Any) -> None: ...

    def event(self, event: StreamEvent) -> None: ...

    def finish(self) -> None:
        """Write what is left, so that of all outputs what can fail has not failed when the first gets its name."""
        ...


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


class FileSink:
    """A sink's file: what is opened on `_stack` gets its name when the block ends well or by Ctrl-C."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stack = ExitStack()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.finish()
        self._stack.__exit__(kind, error, trace)

    def finish(self) -> None:
        """Nothing is left to write."""


class _TextSink(FileSink):
    """A text file that comes into being with the first frame or event."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._file: IO[str] | None = None

    def frame(self, frame: Frame, session: Any = None) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self.path, keep_on_interrupt=True, follow=True))
        if text:
            with naming(self.path):
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

    def finish(self) -> None:
        """The last cue."""
        if self._lines:
            self._finish_cue(self._start + self.longest)
