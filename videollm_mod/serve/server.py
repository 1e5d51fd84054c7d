"""What all routes share: the hub, who is let in, which sources may be named; and, as a dependency, who asks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from videollm_mod.serve.auth import Doors
from videollm_mod.serve.hub import Hub
from videollm_mod.serve.sources import Rules

CHATS = 4  # requests to /v1/chat/completions at a time


@dataclass
class Server:
    """What the routes share."""

    hub: Hub
    doors: Doors
    rules: Rules = field(default_factory=Rules)
    chats: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CHATS))


def reader(request: Request) -> str:
    """The client that asks for something; refuses who may not."""
    server: Server = request.app.state.server
    return server.doors.client(request.headers, changes=False)


def _writer(request: Request) -> str:
    """The client that changes something."""
    server: Server = request.app.state.server
    return server.doors.client(request.headers, changes=True)


Reader = Annotated[str, Depends(reader)]
Writer = Annotated[str, Depends(_writer)]
