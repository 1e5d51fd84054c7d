"""The application: the page, health and metrics, and the routes of streams.py, chat.py and connection.py together.

`make_app` gives an ASGI application. No path, traceback or secret is in any reply.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse

from videollm_mod import __version__
from videollm_mod.serve import connection, protocol
from videollm_mod.serve.chat import add_chat
from videollm_mod.serve.guard import BODY, CHAT, Guard
from videollm_mod.serve.member import take_over, tell_and_let_go
from videollm_mod.serve.replies import REFUSALS, Health, Info, add_errors
from videollm_mod.serve.server import Server, reader
from videollm_mod.serve.streams import add_stream_routes
from videollm_mod.serve.watching import go_on

PAGE = Path(__file__).with_name("page")
SCRIPTS = ("state", "talk", "sources", "capture", "timeline", "overlay", "search", "app")  # in the order of index.html
FILES = {  # address -> file, type: nothing else of the disk is served
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in (*SCRIPTS, "docs")},
}


def make_app(server: Server, *, chat_bytes: int | None = None) -> FastAPI:
    """The application over a hub that is not started yet: the application starts and stops it."""
    hub = server.hub

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await hub.start()
        if hub.roster is None:
            await go_on(server)
        else:  # among several, which share what nobody watches
            hub.spawn(tell_and_let_go(server, hub.roster))
            hub.spawn(take_over(server, hub.roster))
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
    add_errors(app)
    _add_open_routes(app, server)
    add_stream_routes(app, server)
    add_chat(app, server)

    @app.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await connection.live(socket, server)

    if server.doors.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(server.doors.origins), allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Last-Event-ID"],
        )  # fmt: skip
    app.add_middleware(Guard, most=BODY, larger={CHAT: chat_bytes or hub.bounds.body_bytes})
    return app


def _add_open_routes(app: FastAPI, server: Server) -> None:
    hub = server.hub

    def file(name: str, kind: str) -> Callable[[], FileResponse]:
        return lambda: FileResponse(PAGE / name, media_type=kind)

    def by_our_name(request: Request) -> None:
        server.doors.check_host(request.headers.get("host", ""))

    for address, (name, kind) in FILES.items():
        app.add_api_route(
            address, file(name, kind), methods=["GET"], include_in_schema=False, dependencies=[Depends(by_our_name)]
        )

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
        dependencies=[Depends(reader)],
    )  # fmt: skip
    async def metrics() -> Response:
        """Prometheus' text format."""
        return Response(hub.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/info", tags=["streams"], dependencies=[Depends(reader)])
    async def info() -> Info:
        """What a client must know before it opens a stream."""
        model = hub.model
        # of all replicas, if there are several
        others = await asyncio.to_thread(hub.roster.replicas) if hub.roster else []
        return Info(
            version=__version__,
            protocol=protocol.VERSION,
            model=hub.name,
            fps=model.settings.fps,
            picture=model.encoder.tower.image_size,
            routed=model.told_layers,
            streams=sum(one.streams for one in others) if others else len(hub.live),
            max_streams=sum(one.most for one in others) if others else hub.max_streams,
            store_frames=hub.may_store_frames,
            sources=bool(server.rules.allowed),
            question_characters=hub.bounds.question_characters,
        )
