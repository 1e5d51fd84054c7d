"""The bodies of requests and replies over HTTP, and refusals: each in the form of OpenAI's errors, in one sentence."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from videollm_mod.serve import protocol
from videollm_mod.serve.auth import Refused
from videollm_mod.serve.live import Refusal
from videollm_mod.serve.store import Stored
from videollm_mod.types import InputError

log = logging.getLogger("videollm_mod.serve")

STATUS = {"full": 503, "unknown_stream": 404, "ended": 409, "storage": 503, "model": 500, "elsewhere": 503}


WRONG = {  # what is often wrong, in words of our own
    ("query.q", "missing"): "give words to search for, as q.",
    ("query.q", "string_too_short"): "give words to search for.",
    ("body", "missing"): "the body is empty; send JSON.",
    ("body.messages", "missing"): "the request has no messages; send one with a picture or a video.",
    ("body.messages", "too_short"): "messages is empty; send one with a picture or a video.",
}


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


def said_message(one: Stored) -> Said:
    """An event as it is listed."""
    return Said(stream=one.stream, wall=one.wall, event=protocol.event_message(one.event, one.number))


def refuse(status: int, message: str, code: str | None = None, retry_after: float | None = None) -> JSONResponse:
    """A refusal in the form of OpenAI's errors."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    problem = Problem(message=message, type=kind, code=code)
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(ErrorReply(error=problem).model_dump(), status, headers)


def add_errors(app: FastAPI) -> None:
    """Whatever is raised in a route as a refusal."""

    @app.exception_handler(InputError)
    async def wrong(request: Request, error: InputError) -> Response:
        return refuse(400, str(error), "bad_request")

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> Response:
        return refuse(STATUS.get(error.code, 400), error.message, error.code, error.retry_after)

    @app.exception_handler(Refused)
    async def kept_out(request: Request, error: Refused) -> Response:
        return refuse(error.status, error.message, "unauthorized")

    @app.exception_handler(StarletteHTTPException)
    async def http(request: Request, error: StarletteHTTPException) -> Response:
        known = {404: "there is nothing at that address.", 405: "that address does not take this method."}
        answer = refuse(error.status_code, known.get(error.status_code, str(error.detail)))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, str | int))[:100]
        if tuple(first["loc"]) == ("path", "id"):
            return refuse(404, f"there is no stream {str(first.get('input'))[:40]}.", "unknown_stream")
        kind = request.headers.get("content-type", "")
        if tuple(first["loc"]) == ("body",) and request.method == "POST" and "json" not in kind:
            return refuse(422, "the body must be JSON, with the header Content-Type: application/json.", "bad_request")
        if known := WRONG.get((where, first["type"])):
            return refuse(422, known, "bad_request")
        words = "is no JSON" if first["type"] == "json_invalid" else str(first["msg"])[:200]
        return refuse(422, f"{where}: {words}.", "bad_request")

    @app.exception_handler(Exception)
    async def ours(request: Request, error: Exception) -> Response:
        log.exception("a request failed", exc_info=error)
        return refuse(500, "something went wrong in the server; its log says what.")
