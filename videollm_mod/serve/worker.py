"""The thread that owns the model, and the thread that writes down what it said.

The model's thread steps the engine over all streams that have something waiting; its outputs go to the scribe's thread,
which commits the events and then hands everything on, in order. So a slow disk delays what clients are shown, but not
the model, and nobody is shown an event that is not stored.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
log = logging.getLogger("videollm_mod.serve")

IDLE = 0.5  # s between two looks for work that nobody announced
BACKLOG = 64  # steps whose outputs may wait for the disk; then the model waits
STUMBLES = 3  # failed steps in a row after which the worker calls itself broken


class Worker:
    """Steps an engine. `handle(outputs, seconds)` is called in the scribe's thread with what a step gave.

    ahead: another thread makes the tokens of pictures that wait while a step runs. For a model on a GPU: on a CPU both
    would want the same cores.
    """

    def __init__(self, engine: Any, handle: Callable[[list[Any], float], None], *, ahead: bool = False) -> None:
        self.engine = engine
        self._handle = handle
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._said: queue.Queue[tuple[list[Any], float] | Future[None] | None] = queue.Queue(BACKLOG)
        self._wake = threading.Event()
        self._stopping = False
        self._failures = 0
        self._model = threading.Thread(target=self._run, name="model", daemon=True)
        self._scribe = threading.Thread(target=self._write, name="scribe", daemon=True)
        self._pushed = threading.Event()
        self._tower = threading.Thread(target=self._encode, name="tower", daemon=True) if ahead else None

    def start(self) -> None:
        self._scribe.start()
        self._model.start()
        if self._tower is not None:
            self._tower.start()

    def stop(self) -> None:
        """End all threads; what was said is written down first."""
        self._stopping = True
        self.wake()
        self._model.join(timeout=30)
        if self._tower is not None:
            self._tower.join(timeout=30)
        self._said.put(None)
        self._scribe.join(timeout=30)

    @property
    def healthy(self) -> bool:
        """Whether both threads live and steps succeed."""
        return self._model.is_alive() and self._scribe.is_alive() and self._failures < STUMBLES

    def wake(self) -> None:
        """Something has been pushed or asked."""
        self._wake.set()
        self._pushed.set()

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function in the model's thread, between two steps."""
        future: Future[T] = Future()
        self._calls.put((function, future))
        self.wake()
        return future

    def settle(self) -> Future[None]:
        """Done when all that the model has said until now is written down and handed on."""
        future: Future[None] = Future()
        self.call(lambda: self._said.put(future))
        return future

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            self._answer_calls()
            began = time.perf_counter()
            try:
                outputs = self.engine.step()
            except Exception:  # one step's failure must not end the server; a row of them is told by /readyz
                log.exception("a step of the model failed")
                self._failures += 1
                self._wake.wait(min(2.0**self._failures * 0.05, 5.0))
                continue
            if outputs:
                self._failures = 0
                self._said.put((outputs, time.perf_counter() - began))
            elif not self.engine.waiting:
                self._wake.wait(IDLE)
        self._answer_calls()

    def _encode(self) -> None:
        while not self._stopping:
            self._pushed.clear()
            try:
                made = self.engine.encode_ahead()
            except Exception:  # the step that needs it will try again, and be told of
                log.exception("pictures could not be encoded ahead")
                made = 0
            if not made:
                self._pushed.wait(IDLE)

    def _answer_calls(self) -> None:
        while True:
            try:
                function, future = self._calls.get_nowait()
            except queue.Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

    def _write(self) -> None:
        while (item := self._said.get()) is not None:
            if isinstance(item, Future):
                item.set_result(None)
                continue
            try:
                self._handle(*item)
            except Exception:
                log.exception("what the model said could not be handed on")
