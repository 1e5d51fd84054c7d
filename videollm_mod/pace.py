"""The clock of `watch`, and Ctrl-C between frames."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType

    from videollm_mod.video import VideoSource

AGAIN = 0.005  # seconds until a signal that came in the middle of an import is looked at again


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

    A second signal does not wait. In the middle of an import every signal waits: an exception raised there may come
    out inside C++, which ends the program without a word, or in a module that takes it for a missing package.
    """

    def __init__(self) -> None:
        self.shield = False
        self.requested = False
        self._imports = _imports(sys._getframe())  # that were under way already: who calls may be imported itself

    def handle(self, number: int, stack: FrameType | None) -> None:
        """The signal handler."""
        if _imports(stack) > self._imports:
            _put_off.add(number)
            _thread.start_new_thread(_try_again, (number,))  # no threading.Thread: its locks may be held here
        else:
            _put_off.discard(number)
            self._take()

    def _take(self) -> None:
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


_put_off: set[int] = set()  # signals that came in the middle of an import


def safe_point() -> None:
    """Raise KeyboardInterrupt if a signal has been put off; for moments at which nothing can break."""
    if _put_off:
        _put_off.clear()
        raise KeyboardInterrupt


def _try_again(number: int) -> None:
    """Later, for imports may follow one another so closely that `safe_point` is a long way off."""
    time.sleep(AGAIN)
    if number in _put_off:
        _thread.interrupt_main(signal.Signals(number))


def _imports(stack: FrameType | None) -> int:
    """How many frames of a stack belong to Python's import."""
    count = 0
    while stack is not None:
        count += stack.f_code.co_filename == "<frozen importlib._bootstrap>"
        stack = stack.f_back
    return count


@contextmanager
def catch_interrupts(numbers: Sequence[int] = (signal.SIGINT, signal.SIGTERM)) -> Iterator[Interrupts]:
    """Installs the handler, and puts back what was there before."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.handle) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
