"""`videollm-mod serve`: the page and the server, until Ctrl-C or SIGTERM.

    videollm-mod serve                                              # http://127.0.0.1:8000, for this machine alone
    videollm-mod serve --host 0.0.0.0 --token-file tokens.txt --allow-source "rtsp://10.0.0.*" --allow-private

Everything is checked before the model is loaded, and the model is loaded before anybody is let in.
"""

from __future__ import annotations

import dataclasses
import errno
import math
import os
import signal
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from videollm_mod.flags import (
    PLANS,
    REDUCTION_HELP,
    check_keep,
    check_least,
    check_probability,
    reduced_by,
    stored_as,
)
from videollm_mod.pace import catch_interrupts

PLAN_HELP = f"Which layers route: {PLANS}; the model's own if not given."
STORE = "~/.local/share/videollm-mod/serve.db"


@dataclass(frozen=True)
class ServeConfig:
    """The server: a page for live cameras, a WebSocket and HTTP for programs."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond this machine a token is required."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    model: str = "camera"
    """A bundled model, camera (what fixed cameras see) or tiny (coloured shapes), a model's folder, or a hub id."""
    keep: float | None = None
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]; the model's own if not given."""
    plan: Annotated[str | None, tyro.conf.arg(help=PLAN_HELP)] = None
    reduction: Annotated[str | None, tyro.conf.arg(metavar="NAME=SHARE", help=REDUCTION_HELP)] = None
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """How the model's weights are stored; the last two round the decoder's, with torchao (`[quant]`)."""
    kv: Literal["int8", "fp8"] | None = None
    """How keys and values are stored; as they are if not given."""
    threshold: float | None = None
    """Speak when the probability of silence falls below this; the model's own if not given."""
    threads: int | None = None
    """CPU threads of the model; all of them if not given."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, ..."""
    max_streams: int = 32
    """Live streams at a time, of each replica; more are refused."""
    kv_bytes: float | None = None
    """Bytes for the KV caches of all streams together, such as 2e9, of each replica; a stream that does not fit is
    refused. No bound if not given."""
    replicas: int | None = None
    """Servers on Ray Serve behind this address, each with a model of its own; one without Ray if not given."""
    linger: float = 60.0
    """Seconds that a stream waits for a client whose connection was lost."""
    store: str = STORE
    """Where events are stored: the path of an SQLite file, or a URL such as postgresql+psycopg://user@host/name."""
    keep_days: float | None = None
    """Events older than this are erased; never if not given."""
    keep_bytes: float | None = None
    """The oldest pictures and events are erased beyond this size, such as 1e9; never if not given."""
    store_frames: bool = False
    """Clients may have their pictures stored, for export as video."""
    token_file: Path | None = None
    """File with tokens, one `NAME TOKEN` a line; the environment variable VIDEOLLM_MOD_TOKEN may hold one as well."""
    allow_origin: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="ORIGIN")] = ()
    """Another site whose pages may talk to the server, such as https://cameras.example; may be given several times."""
    allow_source: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="PATTERN")] = ()
    """Addresses that clients may have the server watch or call, such as "rtsp://10.0.0.*"; may be given several
    times. None if not given."""
    allow_private: bool = False
    """Those addresses may lie in a private network."""
    frame_bytes: int = 2 * 2**20
    """Largest picture in bytes."""
    frame_pixels: int = 4096 * 2304
    """Largest picture in pixels."""
    messages_per_second: float = 60.0
    """Messages a connection may send, pictures included."""
    streams_per_client: int = 8
    """Live streams of one client."""
    stream_seconds: float = 24 * 3600.0
    """Longest stream, seconds."""
    question_characters: int = 500
    """Longest question."""
    log_requests: bool = False
    """Log every request, as JSON lines on stderr."""


def serve(config: ServeConfig) -> dict[str, Any]:
    """Run the command until it is interrupted; returns the final JSON. Raises InputError for what the user can mend."""
    doors, rules, plan = check_flags(config)
    if config.replicas is not None:
        from videollm_mod.serve.replicas import serve_replicas

        return serve_replicas(config, doors, rules, plan)
    app, hub = build(config, doors, rules, plan)
    port = run(app, config, hub.bounds)
    hub.store.close()
    return {
        "ok": True,
        "events": hub.total_events,
        "frames": hub.total_frames,
        "model": config.model,
        "host": config.host,
        "port": port,
    }


def check_flags(config: ServeConfig) -> tuple[Any, Any, Any]:
    """Raise InputError for a flag that cannot be right; returns doors, rules for sources, and the plan for `load`."""
    from videollm_mod.depth.plan import parse_layers
    from videollm_mod.types import InputError

    _check_installed()
    from videollm_mod.serve.auth import Doors, is_loopback, read_tokens
    from videollm_mod.serve.sources import Rules

    check_keep(config.keep)
    reduced_by(config.reduction)
    check_probability(threshold=config.threshold)
    check_least(1, threads=config.threads, max_streams=config.max_streams, streams_per_client=config.streams_per_client)
    check_least(1, replicas=config.replicas)
    check_least(
        1, kv_bytes=config.kv_bytes, keep_bytes=config.keep_bytes, question_characters=config.question_characters
    )
    check_least(1, messages_per_second=config.messages_per_second, frame_pixels=config.frame_pixels)
    check_least(1024, frame_bytes=config.frame_bytes)
    check_least(0, linger=config.linger, keep_days=config.keep_days)
    check_least(1, stream_seconds=config.stream_seconds)
    if not 0 <= config.port < 65536:
        raise InputError(f"--port {config.port} is no port; give 1 to 65535, or 0 for a free one.")
    for name in ("linger", "stream_seconds", "messages_per_second"):
        if not math.isfinite(getattr(config, name)):
            raise InputError(f"--{name.replace('_', '-')} {getattr(config, name)} has no end; give a number.")
    for origin in config.allow_origin:
        if not origin.startswith(("http://", "https://")) or origin.count("/") != 2:
            raise InputError(f"--allow-origin {origin} is no origin; write for example https://cameras.example")
    rules = Rules(config.allow_source, config.allow_private)
    tokens = read_tokens(config.token_file)
    if not is_loopback(config.host) and not tokens:
        raise InputError(
            f"--host {config.host} lets other machines in, so a token is needed; give --token-file or set "
            "VIDEOLLM_MOD_TOKEN."
        )
    doors = Doors(config.host, tokens, config.allow_origin)
    if config.replicas is not None:
        from videollm_mod.serve.replicas import check_replicas

        check_replicas(config)
    return doors, rules, parse_layers(config.plan)


def _check_installed() -> None:
    from videollm_mod.doctor import install_command
    from videollm_mod.types import InputError

    for name in ("fastapi", "prometheus_client", "sqlalchemy", "uvicorn", "websockets"):
        if find_spec(name) is None:
            raise InputError(f"serve needs {name}, which is not installed; run {install_command(extra='serve')}.")


def build(config: ServeConfig, doors: Any, rules: Any, plan: Any, replica: Any = None) -> tuple[Any, Any]:
    """The application, and its hub: opens the store, loads the model. replica: its place among several."""
    from videollm_mod.serve.app import Server, make_app
    from videollm_mod.serve.hub import Hub
    from videollm_mod.serve.roster import Roster
    from videollm_mod.serve.store import Store

    store = Store(config.store)
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)
    from videollm_mod.model import load
    from videollm_mod.types import InputError

    print(f"loading {config.model} ...", file=sys.stderr)
    wishes = stored_as(config.dtype, config.kv) | reduced_by(config.reduction)
    model = load(config.model, plan=plan, keep=config.keep, threshold=config.threshold, **wishes)
    try:
        model = model.to(config.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {config.device} is not to be had here; give cpu or a device that is.") from error
    hub = Hub(
        model,
        store,
        name=Path(config.model).name,
        bounds=bounds_of(config),
        max_bytes=None if config.kv_bytes is None else int(config.kv_bytes),
        max_streams=config.max_streams,
        linger=config.linger,
        may_store_frames=config.store_frames,
        keep_days=config.keep_days,
        keep_bytes=None if config.keep_bytes is None else int(config.keep_bytes),
        roster=None if replica is None else Roster(store),
        replica=replica,
    )
    return make_app(Server(hub, doors, rules)), hub


def bounds_of(config: ServeConfig) -> Any:
    """The bounds among the flags."""
    from videollm_mod.serve.limits import Bounds

    names = {field.name for field in dataclasses.fields(Bounds)}
    return Bounds(**{name: value for name, value in dataclasses.asdict(config).items() if name in names})


def log_to_stderr(requests: bool) -> None:
    """Our log as JSON lines; requests: all of them, not what goes wrong alone."""
    import logging

    from videollm_mod.serve.guard import JsonLines

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger("videollm_mod.serve")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO if requests else logging.WARNING)


def run(app: Any, config: ServeConfig, bounds: Any) -> int:
    """Listen and serve until Ctrl-C or SIGTERM; returns the port."""
    import socket

    import uvicorn

    from videollm_mod.types import InputError

    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((config.host, config.port))
    except socket.gaierror as error:
        listening.close()
        raise InputError(
            f"--host {config.host} is no address; give 127.0.0.1, 0.0.0.0 for all of this machine's, or a name of it."
        ) from error
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(
                f"--host {config.host} is no address of this machine; give 127.0.0.1, 0.0.0.0 or one of its own."
            ) from error
        why = (error.strerror or "it cannot be used").lower()
        raise InputError(f"cannot listen on {config.host}:{config.port} ({why}); give another --port.") from error
    log_to_stderr(config.log_requests)
    port = int(listening.getsockname()[1])
    print(f"open {where_to_look(config, port)}; Ctrl-C ends it", file=sys.stderr, flush=True)
    server = uvicorn.Server(settings(app, bounds))
    try:
        with catch_interrupts((signal.SIGTERM,)):  # by which systemd and docker end a program
            server.run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn raises the signal again when it has shut down
        pass
    finally:
        listening.close()
    return port


def where_to_look(config: ServeConfig, port: int) -> str:
    """What to open in a browser: an address that can be opened, and how the token is given."""
    from videollm_mod.serve.auth import TOKEN_VARIABLE

    everywhere = config.host in ("0.0.0.0", "::", "")
    host = "127.0.0.1" if everywhere else f"[{config.host}]" if ":" in config.host else config.host
    words = f"http://{host}:{port}/ in a browser"
    if everywhere:
        words += f", from other machines by this one's name or address and port {port}"
    if config.token_file is not None or os.environ.get(TOKEN_VARIABLE):
        words += ", and type a token in there (or open /#token=TOKEN)"
    return words


def settings(app: Any, bounds: Any) -> Any:
    """How uvicorn runs the application."""
    import uvicorn

    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # ours is structured
        server_header=False,
        lifespan="on",
        ws_max_size=bounds.frame_bytes + 1024,
        ws_max_queue=16,
        ws_ping_interval=20.0,
        ws_ping_timeout=20.0,
        ws_per_message_deflate=False,  # pictures are compressed already, and a bomb cannot be unpacked
        timeout_graceful_shutdown=5,
        limit_concurrency=1000,  # connections, silent ones included
        h11_max_incomplete_event_size=32 * 1024,
    )
