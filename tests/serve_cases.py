"""A server on loopback, in a thread with a tiny random model or as a process, for the tests of serve/."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image
from stream_cases import tiny_model
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as open_socket

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamingVideoLM
from videollm_mod.serve import protocol
from videollm_mod.serve.app import Server, make_app
from videollm_mod.serve.auth import Doors
from videollm_mod.serve.command import settings
from videollm_mod.serve.hub import Hub
from videollm_mod.serve.limits import Bounds
from videollm_mod.serve.store import Store

PATIENCE = 120.0  # s; a machine may be busy
STARTING = 600.0  # s
get, post = (functools.partial(method, timeout=PATIENCE) for method in (httpx.get, httpx.post))


class Listening:
    """An application in a thread of this process."""

    def __init__(self, app: Any, bounds: Bounds, listening: socket.socket | None = None) -> None:
        self._socket = listening or socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._uvicorn = uvicorn.Server(settings(app, bounds))
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        until = time.monotonic() + PATIENCE
        while not self._uvicorn.started and time.monotonic() < until:
            time.sleep(0.005)
        assert self._uvicorn.started

    def stop(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(PATIENCE)
        self._socket.close()

    def socket(self, **options: Any) -> ClientConnection:
        options = {"compression": None, "max_size": 2**22, "close_timeout": 0.5, "open_timeout": PATIENCE, **options}
        return open_socket(f"ws://127.0.0.1:{self.port}/live", **options)


class Running(Listening):
    """A server."""

    def __init__(self, server: Server, listening: socket.socket | None = None) -> None:
        self.server, self.hub = server, server.hub
        super().__init__(make_app(server), server.hub.bounds, listening)

    def stop(self) -> None:
        super().stop()
        self.hub.store.close()


@contextlib.contextmanager
def serving(
    folder: Path,
    *,
    doors: Doors | None = None,
    rules: Any = None,
    model: Any = None,
    store: str | None = None,
    **hub: Any,
) -> Iterator[Running]:
    """A running server whose events go to a new file in `folder`, or to the one that is there, or to `store`."""
    model = model or random_model()
    made = Hub(model, Store(store or str(folder / "events.db")), **hub)
    running = Running(Server(made, doors or Doors("127.0.0.1", {}), **({} if rules is None else {"rules": rules})))
    try:
        yield running
    finally:
        running.stop()


@functools.cache
def random_model() -> StreamingVideoLM:
    """One for all servers: it is only read."""
    return tiny_model(DepthPlan("interleaved", keep=0.4))


def picture(seed: int = 0, size: tuple[int, int] = (48, 32), kind: str = "JPEG") -> bytes:
    """An image file of noise, (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def frame(when: float, seed: int = 0) -> bytes:
    """A binary message with a picture."""
    return protocol.pack_frame(when, picture(seed))


def say(connection: ClientConnection, **message: Any) -> None:
    connection.send(json.dumps(message))


def hear(connection: ClientConnection, kind: str, timeout: float = PATIENCE) -> dict[str, Any]:
    """The next message of a kind; others before it are passed over."""
    until = time.monotonic() + timeout
    while True:
        message = json.loads(connection.recv(timeout=max(0.01, until - time.monotonic())))
        if message["type"] == kind:
            return dict(message)


def opened(connection: ClientConnection, **wishes: Any) -> dict[str, Any]:
    """Open a stream; returns the welcome. With threshold 1 the model speaks of every frame, with 0 of none."""
    say(connection, type="open", version=1, **wishes)
    return hear(connection, "welcome")


def until(check: Any, timeout: float = PATIENCE) -> Any:
    """Wait until something holds; returns it."""
    end = time.monotonic() + timeout
    while not (value := check()):
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)
    return value


class Cable:
    """A port that leads to a server's, until it is cut: what goes through it is broken off, and nobody answers."""

    def __init__(self, to: int) -> None:
        self._to, self._whole = to, True
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Cable:
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()
        self._listening.close()

    def cut(self) -> None:
        self._whole = False
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def mend(self, to: int) -> None:
        self._to, self._whole = to, True

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:  # it is closed
                return
            if not self._whole:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._ends += [near, far]
            for source, drain in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, drain), daemon=True).start()

    def _carry(self, source: socket.socket, drain: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                drain.sendall(data)
        for end in (source, drain):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


class Process:
    """`videollm-mod serve` as it is run."""

    def __init__(self, folder: Path, *flags: str, store: str | None = None) -> None:
        where = store or str(folder / "events.db")
        words = [sys.executable, "-m", "videollm_mod", "serve", "--port", "0", "--store", where]
        self._blocks = folder / "blocks"
        probe = {"PYTHONPATH": str(Path(__file__).parent / "probe"), "PROBE": str(self._blocks)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **probe}
        self.process = subprocess.Popen(
            [*words, "--model", "tiny", "--threads", "1", *flags],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,  # so that a Ctrl-C can be sent to it and its children, as a terminal does
        )
        assert self.process.stderr is not None
        address = None
        for line in self.process.stderr:
            if found := re.search(r"http://\S+:(\d+)/", line):
                address = found
                break
        assert address is not None, "the server did not start"
        self.port = int(address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        until(self._ready, STARTING)

    def _ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return get(f"{self.url}/readyz").status_code == 200
        return False

    def socket(self, **options: Any) -> ClientConnection:
        return open_socket(f"ws://127.0.0.1:{self.port}/live", compression=None, open_timeout=PATIENCE, **options)

    def rss(self) -> int:
        """Bytes of memory in use."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def blocks(self) -> int:
        """Blocks of memory that Python holds, garbage aside."""
        self._blocks.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        until(self._blocks.exists)
        return int(self._blocks.read_text())


@contextlib.contextmanager
def running(folder: Path, *flags: str, store: str | None = None) -> Iterator[Process]:
    process = Process(folder, *flags, store=store)
    try:
        yield process
    finally:
        process.process.kill()
        process.process.wait()
