"""The door before several replicas: every request and every connection goes to the replica that holds its stream.

The stream of a request stands in its path, that of a WebSocket in its first message, `open`, which is why an ordinary
load balancer cannot choose: the front reads that far and then hands everything on unchanged, both ways. What belongs to
no stream yet goes to the replica with the fewest. Each replica is a whole server and itself looks at who comes, so the
front adds no trust. It keeps nothing that the store has not: several fronts may stand before the same replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response, WebSocket
from fastapi.responses import StreamingResponse

from videollm_mod.serve import protocol
from videollm_mod.serve.auth import SUBPROTOCOL, Doors, Refused
from videollm_mod.serve.connection import FIRST_MESSAGE
from videollm_mod.serve.guard import BODY, CHAT, HEADERS, Guard
from videollm_mod.serve.hub import RETAIN_SECONDS
from videollm_mod.serve.limits import Bounds
from videollm_mod.serve.metrics import joined
from videollm_mod.serve.replies import Health, add_errors, refuse
from videollm_mod.serve.roster import Replica, Roster
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientWebSocketResponse

log = logging.getLogger("videollm_mod.serve")

PATH = re.compile(r"^/streams/([A-Za-z0-9_-]{22})(?:/|$)")
CONNECTING = 5.0  # s for a replica to take a connection
NOBODY = 5.0  # s after which there may be a replica again
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
# headers of one connection, or such as are set anew on the way
OWN = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "date", "content-length"}
SET = {name.decode() for name, _ in HEADERS} | OWN - {"content-length"}
SHAKES = {"sec-websocket-key", "sec-websocket-version", "sec-websocket-extensions", "sec-websocket-protocol"}
UNSENDABLE = {None, 1005, 1006, 1015}  # close codes that stand for none, or for a loss


def make_front(roster: Roster, doors: Doors, bounds: Bounds, erase_old: Callable[[], Any] | None = None) -> FastAPI:
    """The ASGI application. erase_old: called now and then, in a thread."""
    front = _Front(roster, doors)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        erasing = asyncio.create_task(_now_and_then(erase_old)) if erase_old else None
        async with front.running():
            yield
        if erasing is not None:
            erasing.cancel()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    add_errors(app)
    app.add_api_route("/healthz", front.healthz, methods=["GET"])
    app.add_api_route("/readyz", front.readyz, methods=["GET"])
    app.add_api_route("/metrics", front.metrics, methods=["GET"])
    app.add_api_route("/{path:path}", front.request, methods=METHODS)
    app.add_api_websocket_route("/live", front.live)
    app.add_middleware(Guard, most=BODY, larger={CHAT: bounds.body_bytes})
    return app


async def _now_and_then(work: Callable[[], Any]) -> None:
    while True:
        try:
            await asyncio.to_thread(work)
        except Exception:  # a database that restarts
            log.exception("what is old could not be erased")
        await asyncio.sleep(RETAIN_SECONDS)


class _Front:
    def __init__(self, roster: Roster, doors: Doors) -> None:
        self._roster, self._doors = roster, doors
        self._busy: Counter[str] = Counter()  # replica -> what goes through us to it just now

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector

        # a connection for each request: one from a pool may have been closed, and who knows then what had arrived
        ways = TCPConnector(limit=0, force_close=True)
        timeout = ClientTimeout(total=None, sock_connect=CONNECTING)
        async with ClientSession(
            connector=ways, timeout=timeout, auto_decompress=False, cookie_jar=DummyCookieJar(),
            skip_auto_headers=("Content-Type", "User-Agent"),
        ) as self._web:  # fmt: skip
            yield

    # -- which replica -------------------------------------------------------------------------------------------------

    async def _choose(self, stream: str | None, tried: Iterable[str]) -> Replica | None:
        """Who holds the stream; else who has fewest. None if all have been tried, or none is alive."""
        alive = [one for one in await asyncio.to_thread(self._roster.replicas) if one.name not in tried]
        if stream is not None and alive:
            holder = await asyncio.to_thread(self._roster.holder, stream)
            for one in alive:
                if one.name == holder:
                    return one
        loads = {one.name: max(one.streams, self._busy[one.name]) for one in alive}  # the row may be a second old
        return min(alive, key=lambda one: (loads[one.name] >= one.most, loads[one.name]), default=None)

    async def _failed(self, one: Replica, error: Exception) -> None:
        """A replica did not take a connection. If nothing listens there, its process is gone, and all may know."""
        log.warning("a replica cannot be reached", extra={"reason": f"{one.name}: {type(error).__name__}"})
        if isinstance(getattr(error, "os_error", None), ConnectionRefusedError):
            await asyncio.to_thread(self._roster.bury, one.name)

    # -- HTTP ----------------------------------------------------------------------------------------------------------

    async def healthz(self) -> Health:
        return Health(ok=True)

    async def readyz(self, request: Request) -> Response:
        """Whether any replica is ready."""
        answers = await self._ask_all(request, "/readyz")
        if not any(status == 200 for status, _ in answers.values()):
            return refuse(503, "no replica is ready: see the server's log.", None, NOBODY)
        return Response(Health(ok=True).model_dump_json(), media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text of all replicas, each sample with the label `replica`."""
        self._doors.client(request.headers, changes=False)
        answers = await self._ask_all(request, "/metrics")
        texts = {name: body.decode() for name, (status, body) in answers.items() if status == 200}
        return Response(joined(texts), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _ask_all(self, request: Request, path: str) -> dict[str, tuple[int, bytes]]:
        """Replica -> status and body of one GET; those that do not answer are left out."""
        from aiohttp import ClientError, ClientTimeout

        async def ask(one: Replica) -> tuple[int, bytes] | None:
            try:
                timeout = ClientTimeout(total=CONNECTING)
                async with self._web.get(one.address + path, headers=_passed(request.headers), timeout=timeout) as got:
                    return got.status, await got.read()
            except (ClientError, TimeoutError):
                return None

        alive = await asyncio.to_thread(self._roster.replicas)
        answers = await asyncio.gather(*map(ask, alive))
        return {one.name: answer for one, answer in zip(alive, answers) if answer is not None}

    async def request(self, request: Request) -> Response:
        """Any other request, to its replica and back."""
        if request.method not in ("GET", "HEAD", "OPTIONS"):
            self._doors.client(request.headers, changes=True)  # before its body is read
        body = await request.body()  # the Guard bounds it
        stream = _stream_of(request.url.path, body)
        answer = await self._send(request, body, stream)
        return answer if answer is not None else refuse(503, "no replica is alive; try again later.", "full", NOBODY)

    async def _send(self, request: Request, body: bytes, stream: str | None) -> Response | None:
        from aiohttp import ClientConnectorError, ClientError, ConnectionTimeoutError
        from yarl import URL

        query = request.scope["query_string"].decode("latin-1")
        path = request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
        tried: set[str] = set()
        while (one := await self._choose(stream, tried)) is not None:
            tried.add(one.name)
            self._busy[one.name] += 1
            answer = None
            try:
                answer = await self._web.request(
                    request.method, URL(one.address + path, encoded=True), data=body or None,
                    headers=_passed(request.headers), allow_redirects=False,
                )  # fmt: skip
            except (ClientConnectorError, ConnectionTimeoutError) as error:  # nothing has been sent: another may do it
                await self._failed(one, error)
                continue
            except ClientError:  # it died over it, and nobody knows how far it came
                return refuse(503, "the replica was lost over this request; try again.", None, 1.0)
            finally:
                if answer is None:
                    self._busy[one.name] -= 1
            return _Handed(answer, partial(self._busy.subtract, [one.name]))
        return None

    # -- the WebSocket -------------------------------------------------------------------------------------------------

    async def live(self, socket: WebSocket) -> None:
        """One connection: its first message says where it belongs, and from then on everything is handed on."""
        try:
            self._doors.client(socket.headers, changes=True)
        except Refused:
            await socket.close(1008)  # before it is accepted: an HTTP 403
            return
        offered = socket.scope.get("subprotocols", [])
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        try:
            first = await asyncio.wait_for(socket.receive(), FIRST_MESSAGE)
        except asyncio.TimeoutError:
            words = protocol.Failure(code="bad_message", message="nothing was said for 10 s.", fatal=True)
            await socket.send_text(words.model_dump_json())
            await socket.close(1008)
            return
        if first["type"] == "websocket.disconnect":
            return
        found = await self._connect(socket, offered, _stream_wanted(first.get("text")))
        if found is None:
            await socket.close(1013)  # it may come back
            return
        name, replica = found
        try:
            await _between(socket, replica, first)
        finally:
            self._busy[name] -= 1

    async def _connect(
        self, socket: WebSocket, offered: list[str], stream: str | None
    ) -> tuple[str, ClientWebSocketResponse] | None:
        from aiohttp import ClientError, ClientWSTimeout

        tried: set[str] = set()
        while (one := await self._choose(stream, tried)) is not None:
            tried.add(one.name)
            self._busy[one.name] += 1
            replica = None
            try:
                replica = await self._web.ws_connect(
                    f"{one.address}/live", headers=_passed(socket.headers, SHAKES), protocols=offered,
                    max_msg_size=0, timeout=ClientWSTimeout(ws_close=CONNECTING),
                )  # fmt: skip
            except (ClientError, TimeoutError) as error:
                await self._failed(one, error)
                continue
            finally:
                if replica is None:
                    self._busy[one.name] -= 1
            return one.name, replica
        return None


class _Handed(StreamingResponse):
    """A replica's reply, handed on as it comes. `done` is called when it is over, however it ends."""

    def __init__(self, answer: ClientResponse, done: Callable[[], None]) -> None:
        super().__init__(self._pieces(), answer.status)
        self._answer, self._done = answer, done
        kept = [(name.lower(), value) for name, value in answer.headers.items() if name.lower() not in SET]
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in kept]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()
            self._done()

    async def _pieces(self) -> AsyncIterator[bytes]:
        from aiohttp import ClientError

        with contextlib.suppress(ClientError):  # the replica has died: the reply ends here
            async for piece in self._answer.content.iter_any():
                yield piece


async def _between(socket: WebSocket, replica: ClientWebSocketResponse, first: Any) -> None:
    """Hand messages on, both ways, until one side has ended."""

    async def inward() -> None:
        message = first
        while message["type"] != "websocket.disconnect":
            if (data := message.get("bytes")) is not None:
                await replica.send_bytes(data)
            else:
                await replica.send_str(message.get("text") or "")
            message = await socket.receive()

    async def outward() -> None:
        async for message in replica:
            if isinstance(message.data, str):
                await socket.send_text(message.data)
            elif isinstance(message.data, bytes):
                await socket.send_bytes(message.data)
        # without a close of its own it has died: the client is to come back, and is led to another
        await socket.close(1012 if replica.close_code in UNSENDABLE else int(replica.close_code or 1000))

    tasks = [asyncio.create_task(inward()), asyncio.create_task(outward())]
    try:
        await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
        if tasks[0].done() and tasks[0].exception() is not None:  # its last words are on their way
            await asyncio.wait(tasks[1:], timeout=CONNECTING)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # a side that is gone shows where something is sent
        await replica.close()


# -- what a message is about -------------------------------------------------------------------------------------------


def _stream_of(path: str, body: bytes) -> str | None:
    """The stream that an HTTP request is about."""
    if found := PATH.match(path):
        return found[1]
    if path == "/webrtc":
        with contextlib.suppress(ValueError, AttributeError, RecursionError):
            named = json.loads(body)["open"]["stream"] if b'"stream"' in body else None
            return named if isinstance(named, str) else None
    return None


def _stream_wanted(text: str | None) -> str | None:
    """The stream that a WebSocket's first message wants to go on in. What is wrong with it the replica tells."""
    with contextlib.suppress(InputError):
        message = protocol.read_client((text or "")[:4096])
        return message.stream if isinstance(message, protocol.Open) else None
    return None


def _passed(headers: Any, without: Iterable[str] = ()) -> dict[str, str]:
    """A client's headers as they are handed on: also Host and Origin, by which the replica knows whom to let in."""
    left_out = OWN | set(without)
    return {name: value for name, value in headers.items() if name not in left_out}
