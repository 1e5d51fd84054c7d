"""POST /v1/chat/completions in the OpenAI form, for images and whole videos: a stream that is watched at once.

A conversation is played through the model as it stands: its pictures and videos are watched, its questions put, each in
its place. Earlier replies are the model's own again (it answers the same way to the same), so what the request holds of
them is not read. Without a question the answer is the narration, one line `[seconds] sentence` each.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from videollm_mod.serve import protocol
from videollm_mod.serve.hub import Hub
from videollm_mod.serve.limits import Bounds, decode_picture
from videollm_mod.serve.live import Listener, Live, Refusal
from videollm_mod.types import InputError


class Address(BaseModel):
    """A data: URL."""

    url: str


class Part(BaseModel):
    """A piece of a message: text, a picture, or a whole video."""

    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: Address | None = None
    video_url: Address | None = None


class Message(BaseModel):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None


class StreamOptions(BaseModel):
    """Of a streamed reply."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """What is understood of OpenAI's request; the rest (temperature, ...) is accepted and has no effect: decoding is
    greedy."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    messages: list[Message] = Field(min_length=1, max_length=200)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: Literal[1] = 1


class Usage(BaseModel):
    """Tokens, frames included."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Reply(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str


class Choice(BaseModel):
    """The one reply."""

    index: int = 0
    message: Reply
    finish_reason: Literal["stop", "length"] = "stop"
    logprobs: None = None


class ChatCompletion(BaseModel):
    """OpenAI's reply, and under `events` what was said while the pictures were watched."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    events: list[protocol.Event]


@dataclass(frozen=True)
class _Film:
    """A video to be watched: bytes of a file."""

    data: bytes


Step = np.ndarray | _Film | str  # a picture, a video, a question


def plan_steps(request: ChatRequest, bounds: Bounds) -> list[Step]:
    """What the conversation shows and asks, in order. Raises InputError for what cannot be had."""
    steps: list[Step] = []
    pictures, seen = 0, False
    for message in request.messages:
        parts = message.content
        if message.role != "user" or parts is None:
            continue
        shown: list[Step] = []
        asked: list[str] = []
        for part in [Part(type="text", text=parts)] if isinstance(parts, str) else parts:
            if part.type == "text":
                asked.append((part.text or "").strip())
                continue
            address = part.image_url if part.type == "image_url" else part.video_url
            if address is None:
                raise InputError(f"a part of type {part.type} has no {part.type}; give one.")
            data = read_data_url(address.url)
            if part.type == "video_url":
                shown.append(_Film(data))
                continue
            pictures += 1
            if pictures > bounds.pictures:
                raise InputError(f"there are more than {bounds.pictures} pictures; send fewer, or a video.")
            shown.append(decode_picture(data, bounds))
        question = " ".join(" ".join(asked).split())
        if len(question) > bounds.question_characters:
            raise InputError(
                f"the question has {len(question)} characters; ask with at most {bounds.question_characters}."
            )
        seen = seen or bool(shown)
        # a question is about the pictures beside it, also where it stands before them; without any it has no answer
        steps += [*shown, question] if question and seen else shown
    if not seen:
        raise InputError("no message of the user holds a picture or a video; send one to ask about.")
    return steps


def read_data_url(url: str) -> bytes:
    """The bytes of a data: URL in base64. Raises InputError; nothing is fetched from anywhere."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise InputError("pictures and videos come as data: URLs in base64; this server fetches nothing.")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the data: URL is no base64; encode it again.") from None


class Chat:
    """One request on its way through the model."""

    def __init__(self, hub: Hub, live: Live, request: ChatRequest, steps: list[Step]) -> None:
        self._hub, self._live, self._steps = hub, live, steps
        self._listener = Listener()
        hub.attach(live, self._listener, feeds=True)
        self._most = request.max_completion_tokens or request.max_tokens
        self._time = -1.0
        self.events: list[protocol.Event] = []
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())
        self.text, self.finish = "", "stop"
        self.tokens = 0  # of the reply
        self.usage = Usage(prompt_tokens=0, completion_tokens=0, total_tokens=0)

    async def words(self) -> AsyncGenerator[str, None]:
        """The reply, piece by piece: of the last question, or the narration if there is none."""
        try:
            asks = [place for place, step in enumerate(self._steps) if isinstance(step, str)]
            answered = asks[-1] if asks and asks[-1] == len(self._steps) - 1 else None
            for place, step in enumerate(self._steps):
                said = self._play(step, place == answered)
                async for piece in said:
                    told = piece if place == answered else self._line(piece) if answered is None else ""
                    if not told:
                        continue
                    self.text += told
                    self.tokens += 1 if isinstance(piece, str) else self._count(piece.text)
                    yield told
                    if self._most is not None and self.tokens >= self._most:
                        self.finish = "length"
                        break
                if self.finish == "length":
                    break
            state = await self._hub.run(self._live.stream.state)
            prompt = max(0, state.seen - self.tokens)
            self.usage = Usage(prompt_tokens=prompt, completion_tokens=self.tokens, total_tokens=prompt + self.tokens)
        finally:
            self._hub.detach(self._live, self._listener)
            await asyncio.shield(self._hub.close(self._live, "the request was answered."))

    def _count(self, text: str) -> int:
        """A sentence's tokens."""
        return len(self._hub.model.template.tokenizer(text, add_special_tokens=False)["input_ids"])

    @staticmethod
    def _line(piece: str | protocol.Event) -> str:
        return f"[{piece.time:.1f}] {piece.text}\n" if isinstance(piece, protocol.Event) else ""

    async def _play(self, step: Step, wanted: bool) -> AsyncIterator[Any]:
        """Yields pieces of the answer if it is wanted, else the events that were said."""
        if isinstance(step, str):
            self._hub.ask(self._live, step, None)
            async for piece in self._until_answer(wanted):
                yield piece
        elif isinstance(step, _Film):
            async for image, when in self._film(step.data):
                for event in await self._show(image, when):
                    yield event
        else:
            for event in await self._show(step, None):
                yield event

    async def _until_answer(self, wanted: bool) -> AsyncIterator[Any]:
        said = ""
        while True:
            message = await self._next()
            if isinstance(message, protocol.Delta) and wanted:
                said += message.text
                yield message.text
            elif isinstance(message, protocol.Event) and message.kind == "answer":
                self.events.append(message)
                if wanted and len(message.text) > len(said):
                    yield message.text[len(said) :]
                if not wanted:
                    yield message
                return

    async def _show(self, image: np.ndarray, when: float | None) -> list[protocol.Event]:
        """One frame; returns what was said of it."""
        fps = self._hub.model.settings.fps
        self._time = max(self._time + 1 / fps, 0.0) if when is None else max(when, self._time + 1e-3)
        await self._hub.push(self._live, self._time, image)
        watched, speaks = False, False
        said: list[protocol.Event] = []
        while not watched or (speaks and not said):
            message = await self._next()
            if isinstance(message, protocol.Decision):
                watched, speaks = True, message.speaks
            elif isinstance(message, protocol.Event):
                said.append(message)
        self.events += said
        return said

    async def _next(self) -> Any:
        message = await self._listener.queue.get()
        if message is None or isinstance(message, protocol.Closed):
            raise Refusal("ended", "the stream was ended before its answer; try again.")
        if isinstance(message, protocol.Failure):
            raise Refusal(message.code, message.message)
        return message

    async def _film(self, data: bytes) -> AsyncIterator[tuple[np.ndarray, float]]:
        """The frames of a video file, with times that go on from what was shown before."""
        from videollm_mod.video import open_video

        fps, bounds = self._hub.model.settings.fps, self._hub.bounds
        base = 0.0 if self._time < 0 else self._time + 1 / fps
        loop, worker = asyncio.get_running_loop(), ThreadPoolExecutor(1, "film")  # a source belongs to one thread
        video = None
        with tempfile.NamedTemporaryFile(suffix=".video") as file:
            try:
                await loop.run_in_executor(worker, _fill, file, data)
                try:
                    video = await loop.run_in_executor(worker, lambda: open_video(_path(file), fps=fps))
                except InputError:
                    raise InputError("the video cannot be read; send MP4, Matroska or WebM as a whole.") from None
                if video.duration is not None and video.duration > bounds.video_seconds:
                    raise InputError(
                        f"the video lasts {video.duration:.0f} s; send at most {bounds.video_seconds:g} s, or a stream."
                    )
                while (frame := await loop.run_in_executor(worker, next, video, None)) is not None:
                    if frame.time > bounds.video_seconds:
                        raise InputError(f"the video lasts more than {bounds.video_seconds:g} s; send a shorter one.")
                    yield frame.image, base + frame.time
            finally:
                if video is not None:
                    await asyncio.shield(loop.run_in_executor(worker, video.close))
                worker.shutdown(wait=False)

    # -- OpenAI's words ------------------------------------------------------------------------------------------------

    def completion(self) -> ChatCompletion:
        """The whole reply, when all words have come."""
        return ChatCompletion(
            id=self.id,
            created=self.created,
            model=self._hub.name,
            choices=[Choice(message=Reply(content=self.text), finish_reason=self.finish)],  # type: ignore[arg-type]
            usage=self.usage,
            events=self.events,
        )

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> dict[str, Any]:
        """One piece of a streamed reply."""
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return {
            "id": self.id,
            "object": "chat.completion.chunk",
            "created": self.created,
            "model": self._hub.name,
            "choices": [choice],
        }


def _fill(file: Any, data: bytes) -> None:
    file.write(data)
    file.flush()


def _path(file: Any) -> Any:
    from pathlib import Path

    return Path(file.name)  # a Path is always a file, whatever its name
