"""Streams of sources that the server itself watches: opened for a client, and again after a restart."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

from videollm_mod.serve import protocol, webhook
from videollm_mod.serve.live import Live, Refusal
from videollm_mod.serve.replies import NewStream
from videollm_mod.serve.server import Server
from videollm_mod.serve.sources import HOOKS, Watcher, hidden
from videollm_mod.types import InputError

log = logging.getLogger("videollm_mod.serve")


async def go_on(server: Server) -> None:
    """Watch again what was watched when the server was stopped."""
    for row in await asyncio.to_thread(server.hub.store.unfinished_sources):
        await watch_again(server, row)


async def watch_again(server: Server, row: dict[str, Any]) -> bool:
    """Watch a source of which the store knows; returns whether it is watched."""
    how = json.loads(row["settings"])
    if "address" not in how:
        return False
    wish = NewStream(source=how["address"], **{k: how[k] for k in NewStream.model_fields if k in how})
    try:
        await watch(server, row["client"], wish, id=row["id"], sent=row["sent"])
    except (InputError, Refusal) as error:
        log.warning("a source is not watched again", extra={"stream": row["id"], "reason": str(error)})
        return False
    return True


async def watch(server: Server, client: str, wish: NewStream, id: str | None = None, sent: int = 0) -> Live:
    """Open a stream for a source, and follow it."""
    hub, rules = server.hub, server.rules
    live_source = rules.check(wish.source).scheme == "rtsp"
    if wish.webhook:
        rules.check(wish.webhook, HOOKS)
    await asyncio.to_thread(rules.resolve, wish.source)  # refused now rather than told later
    fps = wish.fps or hub.model.settings.fps
    wanted = protocol.Open(
        policy="newest" if live_source else "all",  # a recording loses no frame
        threshold=wish.threshold,
        window=wish.window,
        store_frames=wish.store_frames,
        title=wish.title,
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
