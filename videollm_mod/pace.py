"""The clock of `watch`, and Ctrl-C between frames."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videollm_mod.video import VideoSource


def sleep_until(moment: float) -> None:
    left = moment - time.monotonic()
    if left > 0:
        time.sleep(left)


def close_source(video: VideoSource) -> None:
    try:
        video.close()
    except ValueError:  # the thread of a dead camera still holds it; both end with the program
        pass


class Interrupts:
    """Ctrl-C and SIGTERM as KeyboardInterrupt, but never in the middle of a frame: there it waits until the end of it.

    A second signal does not wait.
    """

    def __init__(self) -> None:
        self.shield = False
        self.requested = False

    def handle(self, number: int, stack: Any) -> None:
        """The signal handler."""
        again, self.requested = self.requested, True
        if again or not self.shield:
            raise KeyboardInterrupt

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block that the first signal does not cut short; after an error the shield stays up, for files to close."""
        self.shield = True
        yield
        self.shield = False
        if self.requested:
            raise KeyboardInterrupt


@contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Installs the handler, and puts back what was there before."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
