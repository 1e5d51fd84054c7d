"""A server on loopback with a tiny random model, for the tests of serve/."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import socket
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
from videollm_mod.serve.store import Store

PATIENCE = 120.0  # s; a machine may be busy
get, post = (functools.partial(method, timeout=PATIENCE) for method in (httpx.get, httpx.post))


class Running:
    """A server in a thread of this process."""

    def __init__(self, server: Server) -> None:
        self.server, self.hub = server, server.hub
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._uvicorn = uvicorn.Server(settings(make_app(server), server.hub))
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
        self.hub.store.close()

    def socket(self, **options: Any) -> ClientConnection:
        options = {"compression": None, "max_size": 2**22, "close_timeout": 0.5, "open_timeout": PATIENCE, **options}
        return open_socket(f"ws://127.0.0.1:{self.port}/live", **options)


@contextlib.contextmanager
def serving(
    folder: Path, *, doors: Doors | None = None, rules: Any = None, model: Any = None, **hub: Any
) -> Iterator[Running]:
    """A running server whose events go to a new file in `folder`, or to the one that is there."""
    model = model or _model()
    made = Hub(model, Store(str(folder / "events.db")), **hub)
    running = Running(Server(made, doors or Doors("127.0.0.1", {}), **({} if rules is None else {"rules": rules})))
    try:
        yield running
    finally:
        running.stop()


@functools.cache
def _model() -> StreamingVideoLM:
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
