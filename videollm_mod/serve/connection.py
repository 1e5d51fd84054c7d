"""One WebSocket connection of /live, from its first message to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import BaseModel

from videollm_mod.serve import protocol
from videollm_mod.serve.auth import SUBPROTOCOL, Refused
from videollm_mod.serve.limits import Rate
from videollm_mod.serve.live import Listener, Live, Refusal
from videollm_mod.serve.server import Server
from videollm_mod.types import InputError

log = logging.getLogger("videollm_mod.serve")

FIRST_MESSAGE = 10.0  # s within which a connection must say what it wants
LAST_WORDS = 2.0  # s to tell a client why its connection ends
STRIKES = 20  # refused messages after which a connection is closed


async def live(socket: WebSocket, server: Server) -> None:
    """One connection, from its first message to its end."""
    hub = server.hub
    try:
        client = server.doors.client(socket.headers, changes=True)
    except Refused:
        hub.metrics.refused.labels("unauthorized").inc()
        await socket.close(1008)  # before it is accepted: an HTTP 403
        return
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
    hub.metrics.connected.inc()
    try:
        await _Connection(socket, server, client).run()
    except WebSocketDisconnect:
        pass
    except Exception:
        log.exception("a connection failed")
        with contextlib.suppress(Exception):
            await socket.close(1011)
    finally:
        hub.metrics.connected.dec()


class _Connection:
    """What is said over one WebSocket."""

    def __init__(self, socket: WebSocket, server: Server, client: str) -> None:
        self._socket, self._server, self._hub, self._client = socket, server, server.hub, client
        self._listener = Listener()
        self._rate = Rate(self._hub.bounds.messages_per_second)
        self._strikes, self._code = 0, 1000
        self._after = 0  # the newest event that was sent

    async def run(self) -> None:
        hub = self._hub
        try:
            message = await asyncio.wait_for(self._receive(), FIRST_MESSAGE)
            if not isinstance(message, protocol.Open):
                raise InputError("the first message must be `open`; see docs/serve.md.")
            reopened = False
            if message.stream is None:
                live = await hub.open(self._client, message)
            else:
                live, reopened = await hub.back(self._client, message)
        except asyncio.TimeoutError:
            await self._leave(
                protocol.Failure(code="bad_message", message="nothing was said for 10 s.", fatal=True), 1008
            )
            return
        except Refusal as refusal:
            if refusal.code == "elsewhere":
                await self._socket.close(1012)  # it comes back, and is led there
                return
            await self._leave(refusal.failure(), 1013 if refusal.code == "full" else 1008)
            return
        except InputError as error:
            await self._leave(protocol.Failure(code="bad_message", message=str(error), fatal=True), 1008)
            return
        if message.stream is not None:
            live.kept = message.kept
        # joined before the stored events are read: none is missed, and those told twice are left out by their number
        hub.attach(live, self._listener, feeds=live.source is None)
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._send(hub.welcome(live, resumed=message.stream is not None and not reopened, reopened=reopened))
            self._after = message.after
            if message.stream is not None:
                for one in await asyncio.to_thread(hub.store.events, live.id, message.after):
                    await self._send(protocol.event_message(one.event, one.number))
                    self._after = one.number
            work = (self._listen(live), self._tell(), self._cut_off())
            tasks = [asyncio.create_task(one) for one in work]
            await asyncio.wait(tasks, return_when="FIRST_COMPLETED")
            if tasks[0].done() and not tasks[0].exception():  # why it ended is still to be told
                self._listener.tell(None)
                await asyncio.wait(tasks[1:2], timeout=LAST_WORDS)
        finally:
            for task in tasks:
                task.cancel()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            hub.detach(live, self._listener)
            for end in ends:  # a connection that is gone shows as a RuntimeError where something is sent
                if isinstance(end, Exception) and not isinstance(end, WebSocketDisconnect | RuntimeError):
                    log.error("a connection failed", exc_info=end)
            with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                await asyncio.wait_for(self._socket.close(self._code), 5.0)

    async def _cut_off(self) -> None:
        """Ends when the client has not read for so long that its queue was full."""
        while not self._listener.cut_off:
            await asyncio.sleep(0.5)

    async def _tell(self) -> None:
        """Send what the listener is told, until the stream has ended."""
        while (message := await self._listener.queue.get()) is not None:
            if isinstance(message, protocol.Event) and message.id <= self._after:
                continue
            await self._send(message)
            if isinstance(message, protocol.Closed):
                return

    async def _listen(self, live: Live) -> None:
        """Take what the client sends, until it goes, ends the stream, or has been refused too often."""
        hub = self._hub
        while not live.ended:
            try:
                message = await self._receive()
                if live.source is not None and not isinstance(message, protocol.Ask | protocol.Show):
                    raise InputError("the server itself watches this source; it takes questions only.")
                if isinstance(message, tuple):
                    await hub.push(live, *message)
                elif isinstance(message, protocol.Ask):
                    while live.feeding and not live.pushed and not live.ended:  # of the first picture, sent just before
                        await asyncio.sleep(0.01)
                    hub.ask(live, message.text, message.time)
                elif isinstance(message, protocol.Show):
                    live.kept = message.kept
                elif isinstance(message, protocol.Close):
                    await hub.close_when_answered(live, "you ended it.")
                    return
                else:
                    raise InputError("the stream is open already; open another over another connection.")
            except Refusal as refusal:
                self._listener.tell(refusal.failure(fatal=refusal.code == "ended"))
                if refusal.code == "ended":
                    await hub.close(live, refusal.message)
                    return
                if self._strike():
                    return
            except InputError as error:
                code: Any = "bad_frame" if "frame" in str(error) or "picture" in str(error) else "bad_message"
                hub.metrics.refused.labels(code).inc()
                self._listener.tell(protocol.Failure(code=code, message=str(error)))
                if self._strike():
                    return

    def _strike(self) -> bool:
        """One refused message more; whether that was too many."""
        self._strikes += 1
        if self._strikes < STRIKES:
            return False
        words = f"{STRIKES} messages were refused, so this connection ends; the stream waits for another."
        self._listener.tell(protocol.Failure(code="bad_message", message=words, fatal=True))
        self._code = 1008
        return True

    async def _receive(self) -> Any:
        """The next message: a protocol message, or (time, picture). Raises InputError, Refusal, WebSocketDisconnect."""
        received = await self._socket.receive()
        if received["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(received.get("code", 1005))
        if not self._rate.allows():
            if received.get("bytes") is not None:
                self._hub.metrics.dropped.labels("too_fast").inc()
            raise Refusal("too_fast", f"send at most {self._rate.per_second:g} messages a second.")
        if (data := received.get("bytes")) is not None:
            return protocol.unpack_frame(data)
        text = received.get("text") or ""
        if len(text) > self._hub.bounds.message_bytes:
            raise Refusal("too_large", f"a message may have {self._hub.bounds.message_bytes} characters at most.")
        return protocol.read_client(text)

    async def _send(self, message: BaseModel) -> None:
        await self._socket.send_text(message.model_dump_json())

    async def _leave(self, message: protocol.Failure, code: int) -> None:
        await self._send(message)
        await self._socket.close(code)
