"""WebRTC, a second way in (extra `webrtc`): the client's video track is watched, a data channel carries the messages.

The client offers a video track and a data channel; `POST /webrtc` with the offer gives the answer. Over the channel go
the text messages of the WebSocket, both ways; `open` stands in the request. No STUN or TURN server is asked: it works
where the two can reach each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from videollm_mod.serve import protocol
from videollm_mod.serve.limits import Rate
from videollm_mod.serve.live import Listener, Live, Refusal
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.serve.hub import Hub

log = logging.getLogger("videollm_mod.serve")

GATHERING = 10.0  # s to answer an offer


class Offer(BaseModel):
    """What a client offers, and how it wants its stream."""

    model_config = ConfigDict(extra="forbid")
    sdp: str = Field(max_length=60_000)
    type: Literal["offer"] = "offer"
    open: protocol.Open = protocol.Open()


class Answer(BaseModel):
    """What the server answers, and which stream it is."""

    sdp: str
    type: Literal["answer"] = "answer"
    welcome: protocol.Welcome


async def answer(hub: Hub, client: str, offer: Offer) -> Answer:
    """Open a stream, or go on in one, over a new peer connection. Raises Refusal, InputError."""
    if find_spec("aiortc") is None:
        raise InputError("this server is without WebRTC; use the WebSocket, or install the extra webrtc there.")
    from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        reopened = False
        if offer.open.stream is None:
            live = await hub.open(client, offer.open)
        else:
            live, reopened = await hub.back(client, offer.open)
        if live.source is not None:
            raise InputError("the server itself watches this source; it takes no other video.")
        call = _Call(hub, live, peer, offer.open.after)
        try:
            await peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
            if peer.sctp is None or not any(one.kind == "video" for one in peer.getTransceivers()):
                raise ValueError("it offers too little")
            await asyncio.wait_for(_describe(peer), GATHERING)
        except Exception as error:  # whatever of the offer it cannot read
            call.hang_up()
            if offer.open.stream is None:
                await hub.close(live, "its offer could not be answered.")
            raise InputError("the offer cannot be answered; it needs a video track and a data channel.") from error
    except BaseException:
        await peer.close()
        raise
    welcome = hub.welcome(live, resumed=offer.open.stream is not None and not reopened, reopened=reopened)
    return Answer(sdp=peer.localDescription.sdp, welcome=welcome)


async def _describe(peer: Any) -> None:
    await peer.setLocalDescription(await peer.createAnswer())


class _Call:
    """One peer connection, from its answer to its end."""

    def __init__(self, hub: Hub, live: Live, peer: Any, after: int) -> None:
        self._hub, self._live, self._peer, self._after = hub, live, peer, after
        self._listener, self._rate = Listener(), Rate(hub.bounds.messages_per_second)
        self._gone = False
        hub.attach(live, self._listener, feeds=True)
        peer.on("track", lambda track: hub.spawn(self._watch(track)) if track.kind == "video" else None)
        peer.on("datachannel", lambda channel: self._talk(channel))
        peer.on("connectionstatechange", self._changed)

    def hang_up(self) -> None:
        """The stream waits for its client to come back."""
        if not self._gone:
            self._gone = True
            self._hub.detach(self._live, self._listener)
            self._hub.spawn(self._peer.close())

    async def _changed(self) -> None:
        if self._peer.connectionState in ("failed", "closed", "disconnected"):
            self.hang_up()

    async def _watch(self, track: Any) -> None:
        """Push the track's pictures at the model's frame rate; those between are left undecoded into RGB."""
        from aiortc.mediastreams import MediaStreamError

        fps, first, base = self._hub.model.settings.fps, None, max(self._live.taken, 0.0)
        begin = base + 1 / fps if self._live.taken >= 0 else 0.0
        tick = -1
        with contextlib.suppress(MediaStreamError):
            while not self._live.ended and not self._gone:
                picture = await track.recv()
                first = picture.time if first is None else first
                now = int((picture.time - first) * fps + 1e-6)
                if now <= tick or picture.width * picture.height > self._hub.bounds.frame_pixels:
                    continue
                tick = now
                image = await asyncio.to_thread(picture.to_ndarray, format="rgb24")
                try:
                    await self._hub.push(self._live, begin + tick / fps, image)
                except Exception as error:
                    self._listener.tell(protocol.Failure(code="bad_frame", message=str(error)))
                    break
        self.hang_up()

    def _talk(self, channel: Any) -> None:
        channel.on("message", lambda text: self._hear(text))
        self._hub.spawn(self._tell(channel))

    def _hear(self, text: Any) -> None:
        try:
            if not self._rate.allows():
                raise InputError(f"send at most {self._rate.per_second:g} messages a second.")
            if not isinstance(text, str) or len(text) > self._hub.bounds.message_bytes:
                raise InputError("only short text messages go over the channel.")
            message = protocol.read_client(text)
            if isinstance(message, protocol.Ask):
                self._hub.ask(self._live, message.text, message.time)
            elif isinstance(message, protocol.Show):
                self._live.kept = message.kept
            elif isinstance(message, protocol.Close):
                self._hub.spawn(self._hub.close_when_answered(self._live, "you ended it."))
            else:
                raise InputError("the stream is open already.")
        except (InputError, Refusal) as error:
            self._listener.tell(protocol.Failure(code="bad_message", message=str(error)))

    async def _tell(self, channel: Any) -> None:
        for one in await asyncio.to_thread(self._hub.store.events, self._live.id, self._after):
            channel.send(protocol.event_message(one.event, one.number).model_dump_json())
            self._after = one.number
        while (message := await self._listener.queue.get()) is not None and channel.readyState == "open":
            if isinstance(message, protocol.Event) and message.id <= self._after:
                continue
            channel.send(message.model_dump_json())
            if isinstance(message, protocol.Closed):
                await asyncio.sleep(1.0)  # its last words are on their way
                break
        self.hang_up()
