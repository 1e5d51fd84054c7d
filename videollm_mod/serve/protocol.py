"""What is said over the WebSocket: one JSON object a message, and pictures as binary messages. docs/serve.md explains.

A picture is b"VMF1", its time (float64, little-endian, seconds from the start of the stream), then a JPEG, PNG or WebP.
The JSON schema of all messages is docs/messages.schema.json, written by `python -m videollm_mod.serve.schemas`.
"""

from __future__ import annotations

import base64
import math
import struct
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from videollm_mod.types import InputError, StreamEvent

VERSION = 1
MAGIC = b"VMF1"
HEADER = struct.Struct("<4sd")

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
StreamId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22}$")]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid")


# -- from the client ---------------------------------------------------------------------------------------------------


class Open(_Message):
    """The first message: a new stream; or, with `stream`, back to one that is still alive."""

    type: Literal["open"] = "open"
    version: Literal[1] = VERSION  # type: ignore[assignment]
    stream: StreamId | None = None  # a stream of an earlier connection, to go on in it
    after: Annotated[int, Field(ge=0, lt=2**31)] = 0  # the last event that the client has; later ones come again
    threshold: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None  # None: the model's own
    window: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # seconds to remember; None: its own
    policy: Literal["newest", "all"] = "newest"  # when frames come too fast: drop older ones, or make the sender wait
    kept: bool = False  # send which tokens each routed layer kept
    store_frames: bool = False  # keep the pictures, for export as video; only if the server allows it
    title: Annotated[str, Field(max_length=200)] = ""


class Ask(_Message):
    """A question about what was seen so far."""

    type: Literal["ask"] = "ask"
    text: Annotated[str, Field(min_length=1)]
    time: Seconds | None = None  # when it was put; None: now


class Show(_Message):
    """Switch the messages `kept` on or off."""

    type: Literal["show"] = "show"
    kept: bool


class Close(_Message):
    """End the stream; its memory is given back at once."""

    type: Literal["close"] = "close"


ClientMessage = Annotated[Open | Ask | Show | Close, Field(discriminator="type")]
_CLIENT: TypeAdapter[Open | Ask | Show | Close] = TypeAdapter(ClientMessage)


# -- from the server ---------------------------------------------------------------------------------------------------


class Limits(_Message):
    """What a client must keep to; beyond it messages are refused."""

    frame_bytes: int
    frame_pixels: int
    question_characters: int
    messages_per_second: float
    stream_seconds: float
    store_frames: bool  # whether pictures may be stored


class Welcome(_Message):
    """The stream is open."""

    type: Literal["welcome"] = "welcome"
    version: Literal[1] = VERSION  # type: ignore[assignment]
    stream: str  # to come back with
    resumed: bool  # it went on: the model remembers what it saw
    reopened: bool = False  # lost with its server, and begun anew: it knows what it said last, not what it saw
    time: float  # of the newest frame taken, seconds; later ones are welcome
    linger: float  # seconds that it waits for a client whose connection was lost
    model: str
    fps: float  # frames per second that the model was trained on
    picture: int  # px: larger sides than twice this are of no use to the model
    threshold: float  # it speaks when the probability of silence falls below
    window: float | None  # seconds that it remembers at least; None: all
    grid: tuple[int, int]  # (h, w) of a frame's tokens; with the summary token before them 1 + h * w
    routed: list[int]  # layers that keep only some tokens
    limits: Limits


class Delta(_Message):
    """A piece of a sentence in the making; the whole comes as `event` when it is stored."""

    type: Literal["delta"] = "delta"
    text: str


class Event(_Message):
    """Something the model said. It is stored before it is sent."""

    type: Literal["event"] = "event"
    id: int  # 1, 2, ... within the stream
    time: float
    kind: str  # "narration" or "answer"
    text: str
    frame: int
    question: str | None = None
    asked: float | None = None
    probability: float = 1.0


class Decision(_Message):
    """A frame was watched."""

    type: Literal["decision"] = "decision"
    time: float
    silence: float  # probability
    speaks: bool
    lag: float  # seconds from its arrival to this


class Kept(_Message):
    """Which tokens of the newest frame each routed layer kept: layer -> bits, packed (first token first), base64."""

    type: Literal["kept"] = "kept"
    time: float
    layers: dict[str, str]


class Meters(_Message):
    """Once a second, how it goes."""

    type: Literal["meters"] = "meters"
    time: float
    fps: float  # frames watched per second of wall time, over the last seconds
    lag: float  # seconds, of the newest frame
    frames: int  # watched
    dropped: int  # arrived, but never watched: a newer one was there
    kv_bytes: int
    kv_bytes_dense: int  # what the same memory would take without routing
    streams: int  # live ones on this server


class State(_Message):
    """Of a source that the server itself watches."""

    type: Literal["state"] = "state"
    state: Literal["connecting", "watching", "waiting", "ended"]
    text: str = ""  # why, in a sentence


class Failure(_Message):
    """Something was refused. `fatal`: the connection is closed after it."""

    type: Literal["error"] = "error"
    code: Literal[
        "bad_message", "bad_frame", "too_fast", "too_large", "full", "unknown_stream", "taken", "unauthorized",
        "ended", "storage", "model",
    ]  # fmt: skip
    message: str
    fatal: bool = False
    retry_after: float | None = None  # seconds


class Closed(_Message):
    """The stream has ended; no message follows."""

    type: Literal["closed"] = "closed"
    reason: str


ServerMessage = Welcome | Delta | Event | Decision | Kept | Meters | State | Failure | Closed
_SERVER: TypeAdapter[ServerMessage] = TypeAdapter(Annotated[ServerMessage, Field(discriminator="type")])


# -- reading and writing -----------------------------------------------------------------------------------------------


def read_client(text: str | bytes) -> Open | Ask | Show | Close:
    """A message from a client. Raises InputError, which tells what is wrong with it and repeats none of it."""
    try:
        return _CLIENT.validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "literal_error" and first["loc"][-1:] == ("version",):
            given = error.errors()[0]["input"]
            told = f"version is {given}" if type(given) is int and abs(given) < 10**6 else "version is no number"
            raise InputError(f"{told}; this server speaks {VERSION}.") from None
        # where: only names of ours, never the client's words
        known = {name for kind in (Open, Ask, Show, Close) for name in kind.model_fields}
        where = ".".join(str(part) for part in first["loc"] if part in known)
        what = "has an entry that is not known" if first["type"] == "extra_forbidden" else _plain(str(first["msg"]))
        raise InputError(f"the message {f'({where}) ' if where else ''}{what}; see docs/serve.md.") from None
    except RecursionError:
        raise InputError("the message is nested too deeply; see docs/serve.md.") from None


def _plain(words: str) -> str:
    """Pydantic's sentence without what was in the message."""
    if words.startswith("Invalid JSON"):
        return "is no JSON"
    if "tag" in words:
        return "has no type that is known"
    return f"is wrong: {words[:1].lower()}{words[1:].split(', got')[0]}"


def read_server(text: str | bytes) -> ServerMessage:
    """A message from the server, for clients. Raises InputError for what is not known: another version."""
    try:
        return _SERVER.validate_json(text)
    except ValidationError as error:
        raise InputError("the server sent a message that is not known; upgrade the older of the two.") from error


def pack_frame(time: float, picture: bytes) -> bytes:
    """The binary message of a picture."""
    return HEADER.pack(MAGIC, time) + picture


def unpack_frame(data: bytes) -> tuple[float, bytes]:
    """Time and picture of a binary message. Raises InputError."""
    if len(data) <= HEADER.size or data[:4] != MAGIC:
        raise InputError("the binary message is no frame: it begins with VMF1, a float64 time, and then the picture.")
    time = HEADER.unpack_from(data)[1]
    if not (math.isfinite(time) and time >= 0):
        raise InputError("the frame's time is no number of seconds from 0 on.")
    return time, data[HEADER.size :]


def pack_kept(kept: dict[int, np.ndarray]) -> dict[str, str]:
    """Layer -> (tokens,) bool as the message `kept` has it."""
    return {str(layer): base64.b64encode(np.packbits(mask).tobytes()).decode() for layer, mask in sorted(kept.items())}


def unpack_kept(layers: dict[str, str], tokens: int) -> dict[int, np.ndarray]:
    """Back to layer -> (tokens,) bool."""
    bits = {int(layer): np.frombuffer(base64.b64decode(text), np.uint8) for layer, text in layers.items()}
    return {layer: np.unpackbits(packed)[:tokens].astype(bool) for layer, packed in bits.items()}


def event_message(event: StreamEvent, number: int) -> Event:
    """A StreamEvent as it goes over the wire; times to milliseconds."""
    return Event(
        id=number,
        time=round(event.time, 3),
        kind=event.kind,
        text=event.text,
        frame=event.frame,
        question=event.question,
        asked=None if event.asked is None else round(event.asked, 3),
        probability=round(event.probability, 6),
    )


def stream_event(message: Event) -> StreamEvent:
    """Back to a StreamEvent."""
    return StreamEvent(**message.model_dump(exclude={"type", "id"}))


def message_schema() -> dict[str, Any]:
    """The JSON schema of all messages: #/$defs, and under `client` and `server` what may be sent by whom."""
    client = _CLIENT.json_schema(ref_template="#/$defs/{model}")
    server = _SERVER.json_schema(ref_template="#/$defs/{model}", mode="serialization")
    definitions = client.pop("$defs") | server.pop("$defs")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"videollm-mod live messages, version {VERSION}",
        "client": client,
        "server": server,
        "$defs": dict(sorted(definitions.items())),
    }
