"""The routes: the page, the WebSocket, streams and what was said in them, /v1/chat/completions, health and metrics.

`make_app` gives an ASGI application. Every refusal has the form of OpenAI's errors, in one sentence; no path, traceback
or secret is in any reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException as StarletteHTTPException

from videollm_mod import __version__
from videollm_mod.serve import export, openai, protocol, webhook, webrtc
from videollm_mod.serve.auth import SUBPROTOCOL, Doors, Refused
from videollm_mod.serve.guard import Guard
from videollm_mod.serve.hub import Hub, Listener, Live, Refusal, encode_jpeg
from videollm_mod.serve.limits import Rate
from videollm_mod.serve.sources import HOOKS, Rules, Watcher, hidden
from videollm_mod.types import InputError

log = logging.getLogger("videollm_mod.serve")

PAGE = Path(__file__).with_name("page")
FILES = {  # address -> file, type: nothing else of the disk is served
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
}
FIRST_MESSAGE = 10.0  # s within which a connection must say what it wants
LAST_WORDS = 2.0  # s to tell a client why its connection ends
STRIKES = 20  # refused messages after which a connection is closed
SSE_PAUSE = 15.0  # s of silence after which a comment keeps an event stream open
CHATS = 4  # requests to /v1/chat/completions at a time
STATUS = {"full": 503, "unknown_stream": 404, "ended": 409, "storage": 503, "model": 500}
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22}$")]


@dataclass
class Server:
    """What the routes share."""

    hub: Hub
    doors: Doors
    rules: Rules = field(default_factory=Rules)
    chats: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHATS))


def _reader(request: Request) -> str:
    """The client that asks for something; refuses who may not."""
    server: Server = request.app.state.server
    return server.doors.client(request.headers, changes=False)


def _writer(request: Request) -> str:
    """The client that changes something."""
    server: Server = request.app.state.server
    return server.doors.client(request.headers, changes=True)


Reader = Annotated[str, Depends(_reader)]
Writer = Annotated[str, Depends(_writer)]


# -- what goes over HTTP -----------------------------------------------------------------------------------------------


class Problem(BaseModel):
    """What is wrong, in a sentence."""

    message: str
    type: str
    code: str | None = None
    param: str | None = None


class ErrorReply(BaseModel):
    """Every refusal."""

    error: Problem


class Info(BaseModel):
    """What a client must know before it opens a stream."""

    version: str
    protocol: int
    model: str
    fps: float
    picture: int
    routed: list[int]
    streams: int
    max_streams: int
    store_frames: bool
    sources: bool
    question_characters: int


class NewStream(BaseModel):
    """A source that the server is to watch."""

    model_config = ConfigDict(extra="forbid")
    source: str = Field(max_length=2000, examples=["rtsp://camera.example/door"])
    fps: float | None = Field(None, gt=0, le=60)
    title: str = Field("", max_length=200)
    threshold: float | None = Field(None, ge=0, le=1)
    window: float | None = Field(None, gt=0)
    webhook: str | None = Field(None, max_length=2000)
    webhook_secret: str = Field("", max_length=200)
    store_frames: bool = False


class StreamInfo(BaseModel):
    """A stream, alive or stored."""

    id: str
    title: str
    source: str | None
    began: float
    ended: float | None
    events: int
    alive: bool
    state: str | None = None
    state_text: str = ""
    meters: protocol.Meters | None = None


class Said(BaseModel):
    """An event, and where it was said."""

    stream: str
    wall: float
    event: protocol.Event


class Listing(BaseModel):
    """What was said."""

    events: list[Said]


class Question(BaseModel):
    """A question to a stream that the server watches."""

    model_config = ConfigDict(extra="forbid")
    text: str = Field(min_length=1, max_length=2000)


class Health(BaseModel):
    """Whether it goes well."""

    ok: bool


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": words}
    for status, words in {
        400: "Something in the request is wrong",
        401: "A token is needed",
        403: "Not from there",
        404: "There is no such thing",
        405: "Not this method",
        409: "Not in this state",
        413: "Too large",
        421: "Not by that name",
        422: "Something in the request is wrong",
        500: "Our fault",
        503: "Full, or not ready",
    }.items()
}


def make_app(server: Server, *, chat_bytes: int | None = None) -> FastAPI:
    """The application over a hub that is not started yet: the application starts and stops it."""
    hub = server.hub

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        await _go_on(server)
        yield
        await hub.stop()

    app = FastAPI(
        title="videollm-mod",
        version=__version__,
        description="Live video in, narration and answers out. The WebSocket /live is described in docs/serve.md.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's page takes its scripts from another host
        redoc_url=None,
        responses=REFUSALS,
    )
    app.state.server = server
    _add_errors(app)
    _add_open_routes(app, server)
    _add_stream_routes(app, server)
    _add_chat(app, server)

    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await _live(socket, server)

    if server.doors.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(server.doors.origins), allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
        )  # fmt: skip
    app.add_middleware(Guard, most=64 * 2**10, larger={"/v1/chat/completions": chat_bytes or hub.bounds.body_bytes})
    return app


async def _go_on(server: Server) -> None:
    """Watch again what was watched when the server was stopped."""
    for row in await asyncio.to_thread(server.hub.store.unfinished_sources):
        how = json.loads(row["settings"])
        if "address" not in how:
            continue
        wish = NewStream(source=how["address"], **{k: how[k] for k in NewStream.model_fields if k in how})
        try:
            await _watch(server, row["client"], wish, id=row["id"], sent=row["sent"])
        except (InputError, Refusal) as error:
            log.warning("a source is not watched again: %s", error)


async def _watch(server: Server, client: str, wish: NewStream, id: str | None = None, sent: int = 0) -> Live:
    """Open a stream for a source, and follow it."""
    hub, rules = server.hub, server.rules
    rules.check(wish.source)
    if wish.webhook:
        rules.check(wish.webhook, HOOKS)
    await asyncio.to_thread(rules.resolve, wish.source)  # refused now rather than told later
    fps = wish.fps or hub.model.settings.fps
    wanted = protocol.Open(
        threshold=wish.threshold, window=wish.window, store_frames=wish.store_frames, title=wish.title
    )
    live = await hub.open(client, wanted, source=hidden(wish.source), id=id)
    if id is not None:
        await hub.recall(live)
    how = {"address": wish.source, **wish.model_dump(exclude={"source"}, exclude_none=True)}
    await asyncio.to_thread(hub.store.remember, live.id, json.dumps(how))
    live.state = protocol.State(state="connecting")
    Watcher(hub, live, wish.source, rules, fps).start()
    if wish.webhook:
        hub.spawn(webhook.follow(hub, live, wish.webhook, wish.webhook_secret, rules, sent))
    return live


# -- refusals ----------------------------------------------------------------------------------------------------------


def _refuse(status: int, message: str, code: str | None = None, retry_after: float | None = None) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    problem = Problem(message=message, type=kind, code=code)
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(ErrorReply(error=problem).model_dump(), status, headers)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> Response:
        return _refuse(400, str(error), "bad_request")

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return _refuse(STATUS.get(error.code, 400), error.message, error.code, error.retry_after)

    @app.exception_handler(Refused)
    async def kept_out(request: Request, error: Refused) -> Response:
        return _refuse(error.status, error.message, "unauthorized")

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        known = {404: "there is nothing at that address.", 405: "that address does not take this method."}
        answer = _refuse(error.status_code, known.get(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str | int))[:100]
        words = "is no JSON" if first["type"] == "json_invalid" else str(first["msg"])[:200]
        return _refuse(422, f"{where}: {words}.", "bad_request")

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        log.exception("a request failed", exc_info=error)
        return _refuse(500, "something went wrong in the server; its log says what.")


# -- routes that need no stream ----------------------------------------------------------------------------------------


def _add_open_routes(app: FastAPI, server: Server) -> None:
    hub = server.hub

    def file(name: str, kind: str) -> Callable[[], FileResponse]:
        return lambda: FileResponse(PAGE / name, media_type=kind)

    for address, (name, kind) in FILES.items():
        app.add_api_route(address, file(name, kind), methods=["GET"], include_in_schema=False)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> Health:
        """The process is alive."""
        return Health(ok=True)

    @app.get("/readyz", tags=["health"])
    async def readyz() -> Health:
        """The model is loaded, its thread alive, and events can be stored; 503 otherwise."""
        if not hub.ready:
            raise HTTPException(503, "not ready: see the server's log.")
        return Health(ok=True)

    @app.get(
        "/metrics", tags=["health"], response_class=Response, responses={200: {"content": {"text/plain": {}}}},
        dependencies=[Depends(_reader)],
    )  # fmt: skip
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(hub.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/info", tags=["streams"], dependencies=[Depends(_reader)])
    async def info() -> Info:
        """What a client must know before it opens a stream."""
        model = hub.model
        return Info(
            version=__version__,
            protocol=protocol.VERSION,
            model=hub.name,
            fps=model.settings.fps,
            picture=model.encoder.tower.image_size,
            routed=list(model.plan.routed(model.num_layers)),
            streams=len(hub.live),
            max_streams=hub.max_streams,
            store_frames=hub.may_store_frames,
            sources=bool(server.rules.allowed),
            question_characters=hub.bounds.question_characters,
        )


# -- streams -----------------------------------------------------------------------------------------------------------


def _add_stream_routes(app: FastAPI, server: Server) -> None:
    hub = server.hub

    async def known(id: str, client: str) -> dict[str, Any]:
        row = await asyncio.to_thread(hub.store.stream, id, client)
        if row is None:
            raise Refusal("unknown_stream", "there is no such stream.")
        return row

    def told(row: dict[str, Any]) -> StreamInfo:
        live = hub.live.get(row["id"])
        return StreamInfo(
            **{name: row[name] for name in ("id", "title", "source", "began", "ended", "events")},
            alive=live is not None,
            state=live.state.state if live and live.state else None,
            state_text=live.state.text if live and live.state else "",
            meters=hub.meters(live) if live else None,
        )

    async def streams(client: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[StreamInfo]:
        """Your streams, newest first: those alive and those of which something is stored."""
        return [told(row) for row in await asyncio.to_thread(hub.store.streams, client, None, limit)]

    async def open_stream(wish: NewStream, client: Writer) -> StreamInfo:
        """Watch a source from the server, with nobody looking. It is reopened when lost, until you delete it."""
        live = await _watch(server, client, wish)
        return told(await known(live.id, client))

    async def stream(id: Name, client: Reader) -> StreamInfo:
        """One stream."""
        return told(await known(id, client))

    async def erase(id: Name, client: Writer) -> Health:
        """End a stream, if it is alive, and erase all that is stored of it."""
        await known(id, client)
        live = hub.live.get(id)
        if live is not None:
            await hub.close(live, "it was deleted.")
        await asyncio.to_thread(hub.store.erase, id)
        return Health(ok=True)

    async def end(id: Name, client: Writer) -> StreamInfo:
        """End a stream and keep what was said."""
        await known(id, client)
        live = hub.live.get(id)
        if live is not None:
            await hub.close(live, "it was ended.")
        return told(await known(id, client))

    async def ask(id: Name, question: Question, client: Writer) -> protocol.Event:
        """Put a question to a live stream; returns the answer."""
        await known(id, client)
        live = hub.live.get(id)
        if live is None:
            raise Refusal("ended", "that stream is not alive; nobody can answer.")
        listener = Listener(events_only=True)
        words = " ".join(question.text.split())
        hub.attach(live, listener, feeds=False)
        try:
            hub.ask(live, words, None)
            while (message := await listener.queue.get()) is not None:
                if isinstance(message, protocol.Closed):
                    break
                if isinstance(message, protocol.Event) and message.question == words:
                    return message
        finally:
            hub.detach(live, listener)
        raise Refusal("ended", "the stream ended before the answer.")

    async def events(
        id: Name, request: Request, client: Reader, after: Annotated[int, Query(ge=0, lt=2**31)] = 0
    ) -> Response:
        """What was said after event `after`. With `Accept: text/event-stream` it goes on as it happens."""
        await known(id, client)
        if "text/event-stream" not in request.headers.get("accept", ""):
            said = await asyncio.to_thread(hub.store.events, id, after)
            return JSONResponse(Listing(events=[_said(one) for one in said]).model_dump())
        last = request.headers.get("last-event-id", "")
        after = int(last) if last.isdecimal() and len(last) < 10 else after
        return StreamingResponse(_follow(hub, id, after), media_type="text/event-stream")

    async def picture(id: Name, client: Reader) -> Response:
        """The newest picture of a source that the server watches, as JPEG."""
        await known(id, client)
        live = hub.live.get(id)
        if live is None or live.newest is None:
            raise Refusal("unknown_stream", "there is no picture of that stream.")
        newest = live.newest
        data = newest if isinstance(newest, bytes) else await asyncio.to_thread(encode_jpeg, newest)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "no-store"})

    async def download(id: Name, format: Literal["jsonl", "srt", "mp4"], client: Reader) -> Response:
        """What was said as a file: JSON lines, subtitles, or the stored pictures with the sentences burned in."""
        await known(id, client)
        said = await asyncio.to_thread(hub.store.events, id)
        named = {"Content-Disposition": f'attachment; filename="stream-{id[:8]}.{format}"'}
        if format != "mp4":
            data = await asyncio.to_thread(export.jsonl if format == "jsonl" else export.srt, said)
            return Response(data, media_type=export.TYPES[format], headers=named)
        folder = tempfile.TemporaryDirectory()
        path = Path(folder.name) / "stream.mp4"
        try:
            model = hub.model
            await asyncio.to_thread(export.mp4, hub.store, id, said, model.settings.fps, model.encoder.grid, path)
        except BaseException:
            folder.cleanup()
            raise
        return FileResponse(path, media_type="video/mp4", headers=named, background=BackgroundTask(folder.cleanup))

    async def rtc(offer: webrtc.Offer, client: Writer) -> webrtc.Answer:
        """Video over WebRTC instead of pictures over the WebSocket: an offer in, the answer out."""
        return await webrtc.answer(hub, client, offer)

    async def search(
        client: Reader,
        q: Annotated[str, Query(min_length=1, max_length=500)],
        stream: Annotated[Name | None, Query()] = None,
    ) -> Listing:
        """What was said with these words, best first; a whole question may be given."""
        return Listing(events=[_said(one) for one in await asyncio.to_thread(hub.store.search, q, client, stream)])

    text = {"schema": {"type": "string"}}
    lists = {200: {"model": Listing, "content": {"text/event-stream": text}}}
    files = {
        200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in export.TYPES.values()}}
    }
    jpeg = {200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}}
    for method, path, function, more in (
        ("GET", "/streams", streams, {}),
        ("POST", "/streams", open_stream, {"status_code": 201}),
        ("GET", "/streams/{id}", stream, {}),
        ("DELETE", "/streams/{id}", erase, {}),
        ("POST", "/streams/{id}/end", end, {}),
        ("POST", "/streams/{id}/ask", ask, {}),
        ("GET", "/streams/{id}/events", events, {"responses": lists}),
        ("GET", "/streams/{id}/picture", picture, {"responses": jpeg, "response_class": Response}),
        ("GET", "/streams/{id}/export/{format}", download, {"responses": files, "response_class": Response}),
        ("GET", "/search", search, {}),
        ("POST", "/webrtc", rtc, {}),
    ):
        app.add_api_route(path, function, methods=[method], tags=["streams"], **more)  # type: ignore[arg-type]


def _said(one: Any) -> Said:
    return Said(stream=one.stream, wall=one.wall, event=protocol.event_message(one.event, one.number))


async def _follow(hub: Hub, id: str, after: int) -> AsyncIterator[str]:
    """Server-sent events: what is stored, then what comes."""
    listener = Listener(events_only=True)
    live = hub.live.get(id)
    if live is not None:
        hub.attach(live, listener, feeds=False)
    try:
        for one in await asyncio.to_thread(hub.store.events, id, after):
            after = one.number
            yield _sse(protocol.event_message(one.event, one.number))
        while live is not None:
            try:
                message = await asyncio.wait_for(listener.queue.get(), SSE_PAUSE)
            except asyncio.TimeoutError:
                yield ": still here\n\n"
                continue
            if message is None:  # it did not read for long; it may come again
                return
            if isinstance(message, protocol.Closed):
                break
            if message.id > after:
                after = message.id
                yield _sse(message)
        yield "event: closed\ndata: {}\n\n"
    finally:
        if live is not None:
            hub.detach(live, listener)


def _sse(event: protocol.Event) -> str:
    return f"id: {event.id}\nevent: event\ndata: {event.model_dump_json()}\n\n"


# -- OpenAI's form -----------------------------------------------------------------------------------------------------


class ModelCard(BaseModel):
    """A model, as OpenAI lists them."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "videollm-mod"


class ModelList(BaseModel):
    """The one model."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


def _add_chat(app: FastAPI, server: Server) -> None:
    hub = server.hub

    @app.get("/v1/models", tags=["openai"], dependencies=[Depends(_reader)])
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[ModelCard(id=hub.name)])

    async def chat(request: openai.ChatRequest, client: Writer) -> Response:
        """Images and whole videos as data: URLs, and questions about them. Without a question: the narration."""
        if server.chats.locked():
            raise Refusal("full", f"{CHATS} requests are being answered already; try again later.", retry_after=5.0)
        steps = await asyncio.to_thread(openai.plan_steps, request, hub.bounds)
        live = await hub.open(client, protocol.Open(policy="all", title="chat completion"))
        conversation = openai.Chat(hub, live, request, steps)
        if request.stream:
            return StreamingResponse(_chunks(server, conversation, request), media_type="text/event-stream")
        async with server.chats:
            async for _ in conversation.words():
                pass
        return JSONResponse(conversation.completion().model_dump())

    replies = {200: {"model": openai.ChatCompletion, "content": {"text/event-stream": {"schema": {"type": "string"}}}}}
    app.add_api_route("/v1/chat/completions", chat, methods=["POST"], tags=["openai"], responses=replies)  # type: ignore[arg-type]


async def _chunks(server: Server, chat: openai.Chat, request: openai.ChatRequest) -> AsyncIterator[str]:
    """The reply as OpenAI streams it. An error in mid-reply is a last chunk of its own: the status is sent already."""

    def line(value: dict[str, Any]) -> str:
        return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"

    try:
        yield line(chat.chunk({"role": "assistant", "content": ""}))
        async with server.chats, contextlib.aclosing(chat.words()) as words:
            async for word in words:
                yield line(chat.chunk({"content": word}))
        yield line(chat.chunk({}, chat.finish))
        if request.stream_options and request.stream_options.include_usage:
            yield line({**chat.chunk({}), "choices": [], "usage": chat.usage.model_dump()})
        yield "data: [DONE]\n\n"
    except (InputError, Refusal) as error:
        yield line({"error": Problem(message=str(error), type="server_error").model_dump()})


# -- the WebSocket -----------------------------------------------------------------------------------------------------


async def _live(socket: WebSocket, server: Server) -> None:
    """One connection, from its first message to its end."""
    hub = server.hub
    try:
        client = server.doors.client(socket.headers, changes=True)
    except Refused:
        hub.metrics.refused.labels("unauthorized").inc()
        await socket.close(1008)  # before it is accepted: an HTTP 403
        return
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    hub.metrics.connected.inc()
    try:
        await _Connection(socket, server, client).run()
    except WebSocketDisconnect:
        pass
    except Exception:
        log.exception("a connection failed")
        with contextlib.suppress(Exception):
            await socket.close(1011)
    finally:
        hub.metrics.connected.dec()


class _Connection:
    """What is said over one WebSocket."""

    def __init__(self, socket: WebSocket, server: Server, client: str) -> None:
        self._socket, self._server, self._hub, self._client = socket, server, server.hub, client
        self._listener = Listener()
        self._rate = Rate(self._hub.bounds.messages_per_second)
        self._strikes = 0
        self._after = 0  # the newest event that was sent

    async def run(self) -> None:
        hub = self._hub
        try:
            message = await asyncio.wait_for(self._receive(), FIRST_MESSAGE)
            if not isinstance(message, protocol.Open):
                raise InputError("the first message must be `open`; see docs/serve.md.")
            reopened = False
            if message.stream is None:
                live = await hub.open(self._client, message)
            else:
                live, reopened = await hub.back(self._client, message)
        except asyncio.TimeoutError:
            await self._leave(
                protocol.Failure(code="bad_message", message="nothing was said for 10 s.", fatal=True), 1008
            )
            return
        except Refusal as refusal:
            await self._leave(refusal.failure(), 1013 if refusal.code == "full" else 1008)
            return
        except InputError as error:
            await self._leave(protocol.Failure(code="bad_message", message=str(error), fatal=True), 1008)
            return
        if message.stream is not None:
            live.kept = message.kept
        # joined before the stored events are read: none is missed, and those told twice are left out by their number
        hub.attach(live, self._listener, feeds=live.source is None)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._send(hub.welcome(live, resumed=message.stream is not None and not reopened, reopened=reopened))
            self._after = message.after
            if message.stream is not None:
                for one in await asyncio.to_thread(hub.store.events, live.id, message.after):
                    await self._send(protocol.event_message(one.event, one.number))
                    self._after = one.number
            work = (self._listen(live), self._tell(), self._cut_off())
            tasks = [asyncio.create_task(one) for one in work]
            await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            if tasks[0].done() and not tasks[0].exception():  # why it ended is still to be told
                self._listener.tell(None)
                await asyncio.wait(tasks[1:2], timeout=LAST_WORDS)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            hub.detach(live, self._listener)
            for end in ends:  # a connection that is gone shows as a RuntimeError where something is sent
                if isinstance(end, Exception) and not isinstance(end, WebSocketDisconnect | RuntimeError):
                    log.error("a connection failed", exc_info=end)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await asyncio.wait_for(self._socket.close(), 5.0)

    async def _cut_off(self) -> None:
        """Ends when the client has not read for so long that its queue was full."""
        while not self._listener.cut_off:
            await asyncio.sleep(0.5)

    async def _tell(self) -> None:
        """Send what the listener is told, until the stream has ended."""
        while (message := await self._listener.queue.get()) is not None:
            if isinstance(message, protocol.Event) and message.id <= self._after:
                continue
            await self._send(message)
            if isinstance(message, protocol.Closed):
                return

    async def _listen(self, live: Live) -> None:
        """Take what the client sends, until it goes, ends the stream, or has been refused too often."""
        hub = self._hub
        while not live.ended:
            try:
                message = await self._receive()
                if live.source is not None and not isinstance(message, protocol.Ask | protocol.Show):
                    raise InputError("the server itself watches this source; it takes questions only.")
                if isinstance(message, tuple):
                    await hub.push(live, *message)
                elif isinstance(message, protocol.Ask):
                    hub.ask(live, message.text, message.time)
                elif isinstance(message, protocol.Show):
                    live.kept = message.kept
                elif isinstance(message, protocol.Close):
                    await hub.close(live, "you ended it.")
                    return
                else:
                    raise InputError("the stream is open already; open another over another connection.")
            except Refusal as refusal:
                self._listener.tell(refusal.failure(fatal=refusal.code == "ended"))
                if refusal.code == "ended":
                    await hub.close(live, refusal.message)
                    return
                if self._strike():
                    return
            except InputError as error:
                code: Any = "bad_frame" if "frame" in str(error) or "picture" in str(error) else "bad_message"
                hub.metrics.refused.labels(code).inc()
                self._listener.tell(protocol.Failure(code=code, message=str(error)))
                if self._strike():
                    return

    def _strike(self) -> bool:
        """One refused message more; whether that was too many."""
        self._strikes += 1
        return self._strikes >= STRIKES

    async def _receive(self) -> Any:
        """The next message: a protocol message, or (time, picture). Raises InputError, Refusal, WebSocketDisconnect."""
        received = await self._socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        if not self._rate.allows():
            if received.get("bytes") is not None:
                self._hub.metrics.dropped.labels("too_fast").inc()
            raise Refusal("too_fast", f"send at most {self._rate.per_second:g} messages a second.")
        if (data := received.get("bytes")) is not None:
            return protocol.unpack_frame(data)
        text = received.get("text") or ""
        if len(text) > self._hub.bounds.message_bytes:
            raise Refusal("too_large", f"a message may have {self._hub.bounds.message_bytes} characters at most.")
        return protocol.read_client(text)

    async def _send(self, message: BaseModel) -> None:
        await self._socket.send_text(message.model_dump_json())

    async def _leave(self, message: protocol.Failure, code: int) -> None:
        await self._send(message)
        await self._socket.close(code)
