"""Around every request: a bound on its body, headers that keep a browser strict, one line of log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import HTTPException

log = logging.getLogger("videollm_mod.serve")

BODY, CHAT = 64 * 2**10, "/v1/chat/completions"  # bytes of a body, and the path that may have more
HEADERS = [
    # no script, style, picture or connection but our own; blobs are what the page makes itself
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; object-src 'none'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(self), display-capture=(self), microphone=()"),
]


class _TooMuch(HTTPException):
    """A body is larger than allowed. FastAPI, which reads it, hands on what is an HTTPException."""

    def __init__(self, most: int) -> None:
        super().__init__(413, f"the request is larger than {most} bytes; send less.")


class Guard:
    """ASGI middleware. most: bytes of a body; larger: those paths that may have more."""

    def __init__(self, app: Any, most: int, larger: Mapping[str, int]) -> None:
        self._app, self._most, self._larger = app, most, larger

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        most = self._larger.get(scope["path"], self._most)
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        began, status, taken = time.perf_counter(), 0, 0

        async def bounded() -> dict[str, Any]:
            nonlocal taken
            message: dict[str, Any] = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _TooMuch(most)
            return message

        async def strict(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        try:
            if not length.isdigit() or int(length) > most:
                raise _TooMuch(most)
            await self._app(scope, bounded, strict)
        except _TooMuch:
            if not status:
                await _refuse(strict, most)
        finally:
            took = round(1000 * (time.perf_counter() - began), 1)
            log.info("request", extra={"method": scope["method"], "path": scope["path"], "status": status, "ms": took})


async def _refuse(send: Callable[[dict[str, Any]], Awaitable[None]], most: int) -> None:
    problem = {
        "message": f"the request is larger than {most} bytes; send less.",
        "type": "invalid_request_error", "code": "too_large", "param": None,
    }  # fmt: skip
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": problem}).encode()})


class JsonLines(logging.Formatter):
    """Log records as JSON, one a line: time, level, what, and what else was given."""

    FIELDS = ("stream", "client", "source", "reason", "frames", "method", "path", "status", "ms")

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "what": record.getMessage(),
        }
        line.update({name: value for name in self.FIELDS if (value := getattr(record, name, None)) is not None})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
