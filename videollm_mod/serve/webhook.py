"""Events by HTTP POST to an address that a client gave: in order, at least once, again and again until it takes them.

The body is the event as the WebSocket has it, and the stream's id. With a secret the header `X-Signature` is
"sha256=" and the HMAC-SHA256 of the body in hex.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import http.client
import json
import logging
import socket
import ssl
from typing import TYPE_CHECKING

from videollm_mod.serve import protocol
from videollm_mod.serve.live import Listener, Live
from videollm_mod.serve.sources import HOOKS, LONGEST_PAUSE, Rules, Target
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.serve.hub import Hub

log = logging.getLogger("videollm_mod.serve")

TIMEOUT = 10.0  # s to connect, to be answered
LAST_LOOKS = 3  # tries for what is left when a stream has ended


def deliver(target: Target, body: bytes, secret: str) -> bool:
    """One POST; whether it was taken (2xx). Redirects are not followed; the connection goes to the checked number."""
    headers = {"Content-Type": "application/json", "Host": target.host, "User-Agent": "videollm-mod"}
    if secret:
        headers["X-Signature"] = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    connection = http.client.HTTPConnection(target.url.hostname or "", target.port, timeout=TIMEOUT)
    try:
        connected = socket.create_connection((target.ip, target.port), TIMEOUT)
        if target.url.scheme == "https":
            connected = ssl.create_default_context().wrap_socket(connected, server_hostname=target.url.hostname)
        connection.sock = connected
        path = target.url.path or "/"
        connection.request("POST", f"{path}?{target.url.query}" if target.url.query else path, body, headers)
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


async def follow(hub: Hub, live: Live, address: str, secret: str, rules: Rules, sent: int = 0) -> None:
    """Deliver a stream's events as they are stored, from number `sent` + 1 on, until it has ended and all are taken."""
    listener, pause, last_looks = Listener(events_only=True), 1.0, 0
    hub.attach(live, listener, feeds=False)
    try:
        while last_looks < LAST_LOOKS:
            waiting = await asyncio.to_thread(hub.store.events, live.id, sent, 100)
            for one in waiting:
                event = protocol.event_message(one.event, one.number).model_dump()
                body = json.dumps({**event, "stream": live.id}, ensure_ascii=False).encode()
                if not await asyncio.to_thread(_try, rules, address, body, secret):
                    break
                sent, pause = one.number, 1.0
                await asyncio.to_thread(hub.store.mark_sent, live.id, sent)
            else:
                if live.ended and not waiting:
                    return
                if not waiting:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(listener.queue.get(), 5.0)
                continue
            last_looks += live.ended
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
    finally:
        hub.detach(live, listener)


def _try(rules: Rules, address: str, body: bytes, secret: str) -> bool:
    try:
        return deliver(rules.resolve(address, HOOKS), body, secret)
    except InputError as error:
        log.warning("a webhook cannot be reached: %s", error)
        return False
