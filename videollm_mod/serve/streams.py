"""Streams over HTTP: listed, opened, asked, searched, exported; what is said in them, also as it happens."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from pydantic import Field
from starlette.background import BackgroundTask

from videollm_mod.serve import export, protocol, webrtc
from videollm_mod.serve.hub import Hub
from videollm_mod.serve.live import Listener, Refusal, encode_jpeg
from videollm_mod.serve.replies import Health, Listing, NewStream, Question, StreamInfo, said_message
from videollm_mod.serve.server import Reader, Server, Writer
from videollm_mod.serve.watching import watch

SSE_PAUSE = 15.0  # s of silence after which a comment keeps an event stream open
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22}$")]


def add_stream_routes(app: FastAPI, server: Server) -> None:
    """The routes."""
    hub = server.hub

    async def known(id: str, client: str) -> dict[str, Any]:
        row = await asyncio.to_thread(hub.store.stream, id, client)
        if row is None:
            raise Refusal("unknown_stream", f"there is no stream {id}.")
        return row

    def told(row: dict[str, Any], elsewhere: Collection[str] = ()) -> StreamInfo:
        live = hub.live.get(row["id"])
        state = live.state if live else hub.farewells.get(row["id"])
        return StreamInfo(
            **{name: row[name] for name in ("id", "title", "source", "began", "ended", "events")},
            alive=live is not None or row["id"] in elsewhere,
            state=state.state if state else None,
            state_text=state.text if state else "",
            meters=hub.meters(live) if live else None,
        )

    async def streams(client: Reader, limit: Annotated[int, Query(ge=1, le=1000)] = 100) -> list[StreamInfo]:
        """Your streams, newest first: those alive and those of which something is stored."""
        elsewhere = await asyncio.to_thread(hub.roster.held, None, client) if hub.roster else ()
        return [told(row, elsewhere) for row in await asyncio.to_thread(hub.store.streams, client, None, limit)]

    async def open_stream(wish: NewStream, client: Writer) -> StreamInfo:
        """Watch a source from the server, with nobody looking. It is reopened when lost, until you delete it."""
        live = await watch(server, client, wish)
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
        hub.farewells.pop(id, None)
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
            return JSONResponse(Listing(events=[said_message(one) for one in said]).model_dump())
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
        return Listing(
            events=[said_message(one) for one in await asyncio.to_thread(hub.store.search, q, client, stream)]
        )

    # of an event stream OpenAPI 3.1 can say no more than its name
    lists: dict[int, Any] = {200: {"model": Listing, "content": {"text/event-stream": {}}}}
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
