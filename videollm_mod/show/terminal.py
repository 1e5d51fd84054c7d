"""What `watch` and `show` write for the eye, on stderr: sentences as they are said, and one status line below them.

On a terminal a sentence grows word by word and the status line is redrawn in place; elsewhere sentences come whole, and
the status now and then as a plain line.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from videollm_mod.show.clock import clock

if TYPE_CHECKING:
    from videollm_mod.stream.session import StreamSession
    from videollm_mod.types import StreamEvent
    from videollm_mod.watch import Tally

REDRAW = 0.1  # seconds between redraws of the status line
REPEAT = 10.0  # seconds between plain status lines
DONE, AHEAD = "━", "·"  # of the bar: told apart without colour, too
TOLD = ("frames", "shrunk", "narrations", "answers")  # of what a session has forgotten


def size_text(count: int) -> str:
    """Bytes for people: 812 B, 14.2 kB, 3.1 MB."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError


class Terminal:
    """A context manager, so that the cursor always comes back."""

    def __init__(self, source: str, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        # FORCE_COLOR makes a terminal of every log in rich's eyes
        self._redraws = self.console.is_terminal and (console is not None or sys.stderr.isatty())
        self._redraws = self._redraws and not self.console.is_dumb_terminal
        self.source = source
        self._live: Live | None = None
        self._span: tuple[float, float | None] = (0.0, None)
        self._shown = 0.0
        self._status = Text()
        self._saying = ""

    def __enter__(self) -> Terminal:
        if self._redraws:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
            self._live.update(Text(f"opening {self.source}", style="dim"), refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def begin(self, start: float, end: float | None) -> None:
        """The stretch of the source that will be watched, seconds; end None if unknown."""
        self._span = (start, end)
        span = f", {clock(start)} to {clock(end)}" if end is not None else f", from {clock(start)}" if start else ""
        self._print(Text(f"{self.source}{span}", style="bold"))

    def word(self, piece: str, time: float, question: str | None = None) -> None:
        """Show a sentence that is being said, with its next piece; at `time`, perhaps in reply to `question`."""
        self._saying += piece
        if self._live is not None:
            self._live.update(Group(_line(time, question, self._saying + " ..."), self._status), refresh=True)

    def event(self, event: StreamEvent) -> None:
        """Print what was said, whole."""
        self._saying = ""
        if self._live is not None:
            self._live.update(self._status, refresh=True)
        self._print(_line(event.time, event.question, event.text))

    def note(self, message: str) -> None:
        self._print(Text(message))

    def warn(self, message: str) -> None:
        self._print(Text(f"warning: {message}", style="yellow"))

    def progress(self, tally: Tally, session: StreamSession) -> None:
        """Renew the status line, if it is time to."""
        now = time.monotonic()
        if now - self._shown < (REPEAT if self._live is None else REDRAW):
            return
        first, self._shown = self._shown == 0.0, now
        if self._live is not None:
            self._status = self.status(tally, session)
            self._live.update(self._status, refresh=True)
        elif not first:  # a plain log needs no status before anything has happened
            self._print(self.status(tally, session))

    def status(self, tally: Tally, session: StreamSession) -> Text:
        """The status line: time, bar, speed, lag, KV bytes against dense, what was forgotten, drops."""
        start, end = self._span
        state = session.state()
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(clock(tally.last), style="bold")
        if end is not None:
            done = round(20 * min(1.0, max(0.0, (tally.last - start) / max(end - start, 1e-9))))
            line.append(f" / {clock(end)}")
            if self._live is not None:
                line.append(" " + DONE * done, style="green").append(AHEAD * (20 - done), style="dim")
        line.append(f"  {tally.frames / max(tally.wall_seconds, 1e-9):.1f} fps  lag {tally.lag:.2f} s")
        ratio = state.kv_bytes / max(state.kv_bytes_dense, 1)
        line.append(f"  KV {size_text(state.kv_bytes)} of {size_text(state.kv_bytes_dense)} dense ({ratio:.2f}x)")
        gone = [
            f"{count} {kind.removesuffix('s') if count == 1 else kind}"
            for kind, count in state.forgotten.items()
            if count and kind in TOLD
        ]
        if gone:
            line.append(f"  forgot {', '.join(gone)}", style="dim")
        if tally.dropped:
            line.append(f"  dropped {tally.dropped}", style="red")
        return line

    def _print(self, line: Text) -> None:
        self.console.print(line, soft_wrap=not self.console.is_terminal)


def _line(time: float, question: str | None, said: str) -> Text:
    line = Text(f"{clock(time):>9}  ", style="cyan")
    if question is not None:
        line.append(f"{question} ", style="yellow")
    return line.append(said, style="default")
