"""The routes in OpenAI's form: /v1/models, and /v1/chat/completions, whole or streamed; openai.py plays it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import Depends, FastAPI, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from videollm_mod.serve import openai, protocol
from videollm_mod.serve.live import Refusal
from videollm_mod.serve.replies import Problem
from videollm_mod.serve.server import CHATS, Server, Writer, reader
from videollm_mod.types import InputError


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


def add_chat(app: FastAPI, server: Server) -> None:
    """The routes."""
    hub = server.hub

    @app.get("/v1/models", tags=["openai"], dependencies=[Depends(reader)])
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

    replies = {200: {"model": openai.ChatCompletion, "content": {"text/event-stream": {}}}}
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
