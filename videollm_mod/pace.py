"""The clock of `watch`: frames when they are due, the newest of a live source, and Ctrl-C between frames.

A file loses no frame, however late; of a live source a slow reader gets the newest frame, and the others are counted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from videollm_mod.types import Frame
    from videollm_mod.video import VideoSource


def paced(video: Iterable[Frame]) -> Iterator[tuple[Frame, float]]:
    """Frames of a file, none dropped, each with the time on the monotonic clock at which it is due."""
    zero: float | None = None
    for frame in video:
        if zero is None:
            zero = time.monotonic() - frame.time
        yield frame, zero + frame.time


def newest(video: Iterable[Frame], on_drop: Callable[[int], None]) -> Iterator[tuple[Frame, float]]:
    """Frames of a live source, each with its arrival: read in a thread, and only the newest kept for a slow reader.

    `on_drop` is told, in that thread, how many frames had to give way (0 or 1) whenever one comes.
    """
    slot: list[tuple[Frame, float]] = []  # at most one
    failure: list[BaseException] = []
    changed = threading.Condition()
    leaving = threading.Event()

    def read() -> None:
        try:
            for frame in video:
                with changed:
                    on_drop(len(slot))
                    slot[:] = [(frame, time.monotonic())]
                    changed.notify()
                if leaving.is_set():
                    return
        except BaseException as error:  # raised again where the frames are taken
            failure.append(error)

    # a daemon: a camera that has died keeps its thread inside the driver, and must not keep the program alive
    thread = threading.Thread(target=read, name="live source", daemon=True)
    thread.start()
    try:
        while slot or thread.is_alive():
            with changed:
                if not slot:
                    changed.wait(timeout=0.1)
                taken = slot[:]
                slot.clear()
            yield from taken
        if failure:
            raise failure[0]
    finally:
        leaving.set()
        thread.join(timeout=2.0)


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
