"""The live streams of one server: opened, fed, listened to, lost and found again. All of it runs in the event loop,
but for `_handle`, which the scribe's thread calls, and decoding, which has threads of its own.

A stream has a mailbox of pictures that wait, one or two frames in the engine, and listeners. With the policy "newest" a
picture that still waits gives way to the next, so that a slow model falls behind nobody's live camera; with "all" the
sender waits. A listener that does not read is cut off when its queue is full: it costs the others nothing, and comes
back for the events it missed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from videollm_mod.serve import protocol
from videollm_mod.serve.limits import Bounds, decode_picture, open_picture
from videollm_mod.serve.live import Listener, Live, Refusal, Waiting, encode_jpeg
from videollm_mod.serve.metrics import Metrics
from videollm_mod.serve.roster import Replica, Roster
from videollm_mod.serve.store import Store, Stored
from videollm_mod.serve.worker import Worker
from videollm_mod.stream.engine import Engine, EngineFull
from videollm_mod.types import Frame, InputError

log = logging.getLogger("videollm_mod.serve")

IN_ENGINE = {"newest": 1, "all": 8}  # frames of one stream in the engine at a time; it may watch several in a step
MAILBOX = {"newest": 1, "all": 8}  # pictures that may wait before it
METER_SECONDS = 1.0
RETAIN_SECONDS = 600.0
DISK_TRIES = 3
RECALLED = 8  # sentences that a reopened stream is told of
PATIENCE = 30.0  # s that a stream's end waits for an answer
FAREWELLS = 256  # ended sources of which it is remembered why
DECODERS = 2  # threads that decode pictures


class Hub:
    """All live streams over one model and one store."""

    def __init__(
        self,
        model: Any,
        store: Store,
        *,
        name: str = "tiny",
        bounds: Bounds | None = None,
        max_bytes: int | None = None,
        max_streams: int = 64,
        linger: float = 60.0,
        may_store_frames: bool = False,
        keep_days: float | None = None,
        keep_bytes: int | None = None,
        roster: Roster | None = None,
        replica: Replica | None = None,
    ) -> None:
        """roster: of the replicas that share the store; replica: which of them this one is. Both, or none."""
        self.model, self.store, self.name, self.bounds = model, store, name, bounds or Bounds()
        self.max_streams, self.linger, self.may_store_frames = max_streams, linger, may_store_frames
        self.keep_days, self.keep_bytes = keep_days, keep_bytes
        self.roster, self.replica = roster, replica or Replica("", "", 0)
        self.metrics = Metrics()
        self.worker = Worker(Engine(model, max_bytes=max_bytes), self._handle, ahead=model.device.type != "cpu")
        self.live: dict[str, Live] = {}
        self.farewells: dict[str, protocol.State] = {}  # why sources have ended, the newest
        self.total_events = self.total_frames = 0
        self._by_stream: dict[int, Live] = {}  # id() of the engine's stream -> ours
        self._decoders = ThreadPoolExecutor(DECODERS, "decode")
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._door = asyncio.Lock()
        self._storage_fails = False

    # -- the server's life ---------------------------------------------------------------------------------------------

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.worker.start()
        self.spawn(self._tick())

    async def stop(self) -> None:
        """Write down what was said. Streams are not ended: they may be reopened."""
        for live in self.live.values():
            live.ended = True  # their sources stop
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.worker.stop)
        self._decoders.shutdown(wait=False, cancel_futures=True)
        if self.roster is not None:
            await asyncio.to_thread(self.roster.beat, self.told())
            await asyncio.to_thread(self.roster.leave, self.replica.name)

    def told(self) -> Replica:
        """What the other replicas are to know of this one."""
        streams, frames, events = len(self.live), self.total_frames, self.total_events
        return replace(self.replica, streams=streams, most=self.max_streams, frames=frames, events=events)

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        """A task that lives no longer than the hub."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @property
    def ready(self) -> bool:
        return self._loop is not None and self.worker.healthy and not self._storage_fails

    async def run(self, function: Callable[[], Any]) -> Any:
        """A function in the model's thread."""
        return await asyncio.wrap_future(self.worker.call(function))

    # -- streams -------------------------------------------------------------------------------------------------------

    async def open(self, client: str, wish: protocol.Open, source: str | None = None, id: str | None = None) -> Live:
        """A new stream. Raises Refusal when it does not fit, InputError for wishes that cannot be."""
        async with self._door:  # one after the other: what fits is decided with all that were let in before
            if id is not None and id in self.live:  # reopened by another connection meanwhile
                return self.live[id]
            return await self._open(client, wish, source, id)

    async def _open(self, client: str, wish: protocol.Open, source: str | None, id: str | None) -> Live:
        mine = sum(live.client == client for live in self.live.values())
        if self.roster is not None:
            mine = len(await asyncio.to_thread(self.roster.held, None, client))
        if mine >= self.bounds.streams_per_client:
            raise self._full(f"you have {counted(mine, 'live stream')}, as many as one client may; end one first")
        if len(self.live) >= self.max_streams:
            raise self._full(f"the server is full: it watches {counted(len(self.live))} already")
        if wish.store_frames and not self.may_store_frames:
            raise InputError("this server stores no pictures; leave store_frames out, or start it with --store-frames.")
        settings = self.model.settings
        try:
            # recording costs little, and lets a client switch the overlay on later
            window = None if wish.window is None else min(wish.window, self.bounds.stream_seconds)
            queue = {"drop": "all", "queue": IN_ENGINE[wish.policy]}  # what is dropped is dropped before, by us
            stream = await self.run(
                partial(self.worker.engine.open, threshold=wish.threshold, window=window, record_kept=True, **queue)
            )
        except EngineFull:
            raise self._full("the server is full: the memory set apart for streams is taken") from None
        identity = id or secrets.token_urlsafe(16)
        live = Live(
            identity, client, stream, wish.policy,
            settings.threshold if wish.threshold is None else wish.threshold,
            settings.window if window is None else window,
            wish.kept, wish.store_frames, source,
        )  # fmt: skip
        try:
            await asyncio.to_thread(self._begin, live, wish)
        except Exception as error:
            self.worker.call(stream.close)
            if isinstance(error, Refusal):
                raise
            log.exception("a stream could not be stored")
            raise Refusal("storage", "the server cannot store what would be said; tell who runs it.") from None
        self.live[identity] = self._by_stream[_key(stream)] = live
        self.metrics.opened.inc()
        self.metrics.streams.set(len(self.live))
        log.info("stream opened", extra={"stream": identity, "client": client, "source": source})
        return live

    def _begin(self, live: Live, wish: protocol.Open) -> None:
        """Write into the store that a stream lives, and here. Raises Refusal if another replica has it."""
        if self.roster is not None and not self.roster.take(live.id, live.client, self.replica.name):
            raise Refusal("elsewhere", "another replica has that stream; try again.", retry_after=1.0)
        how = json.dumps({"policy": wish.policy, "threshold": wish.threshold, "window": wish.window})
        self.store.begin(live.id, live.client, wish.title, live.source, how)
        live.number = self.store.last_number(live.id)

    async def back(self, client: str, wish: protocol.Open) -> tuple[Live, bool]:
        """A stream that a client had before, and whether it had to be opened anew. Raises Refusal."""
        assert wish.stream is not None
        live = self.live.get(wish.stream)
        if live is not None and live.client == client:
            return live, False
        row = await asyncio.to_thread(self.store.stream, wish.stream, client)
        if row is None:
            raise Refusal("unknown_stream", "there is no such stream; open a new one.")
        if row["ended"] is not None:
            raise Refusal("ended", "that stream has ended; what was said in it is stored. Open a new one.")
        if row["source"] is not None and self.roster is not None:  # whoever takes it over opens its source, too
            raise Refusal("elsewhere", "the source is not watched again yet; try again.", retry_after=1.0)
        live = await self.open(client, _as_before(wish, row["settings"]), id=wish.stream)
        await self.recall(live)
        return live, True

    async def recall(self, live: Live) -> None:
        """After a restart: what it said last is put before what it will see, and its time goes on."""
        said = await asyncio.to_thread(self.store.events, live.id, max(0, live.number - RECALLED))
        live.taken = max([live.taken, *(one.event.time for one in said)])
        live.stream.recall([one.event for one in said])

    def _full(self, why: str) -> Refusal:
        self.metrics.refused.labels("full").inc()
        soonest = min(
            (self.linger - (time.monotonic() - live.alone_since) for live in self.live.values() if live.alone),
            default=30.0,
        )
        return Refusal("full", f"{why}; try again later.", retry_after=round(max(1.0, soonest)))

    def attach(self, live: Live, listener: Listener, *, feeds: bool) -> None:
        """A listener joins. `feeds`: it is the connection that sends pictures, and takes the place of an older one."""
        if feeds:
            if live.owner is not None:
                live.owner.tell(Refusal("taken", "this stream was taken up by another connection.").failure())
                live.owner.tell(None)
                live.listeners.discard(live.owner)
            live.owner = listener
        live.listeners.add(listener)
        if live.state is not None:
            listener.tell(live.state)

    def detach(self, live: Live, listener: Listener) -> None:
        live.listeners.discard(listener)
        if live.owner is listener:
            live.owner, live.alone_since = None, time.monotonic()

    async def close(self, live: Live, reason: str, *, ended: bool = True) -> None:
        """End a stream. Its engine memory is free when this returns."""
        if live.ended:
            return
        live.ended = True
        self.live.pop(live.id, None)
        live.mailbox.clear()
        live.room.set()
        self.metrics.streams.set(len(self.live))
        await self.run(live.stream.close)
        self._by_stream.pop(_key(live.stream), None)
        if ended:
            await asyncio.to_thread(self.store.end, live.id)
        if self.roster is not None:
            await asyncio.to_thread(self.roster.release, live.id, self.replica.name)
        if ended and live.source is not None:
            self.farewells[live.id] = protocol.State(state="ended", text=reason)
            while len(self.farewells) > FAREWELLS:
                del self.farewells[next(iter(self.farewells))]
        live.tell(protocol.Closed(reason=reason) if ended else None)  # None: whoever listens may come back
        log.info("stream closed", extra={"stream": live.id, "reason": reason, "frames": live.frames})

    async def close_when_answered(self, live: Live, reason: str) -> None:
        """End a stream once the questions that wait are answered, or PATIENCE seconds are over."""
        until = time.monotonic() + PATIENCE
        while live.questions and not live.ended and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await self.close(live, reason if not live.questions else f"{reason} A question was not answered in time.")

    def welcome(self, live: Live, *, resumed: bool, reopened: bool = False) -> protocol.Welcome:
        model, bounds = self.model, self.bounds
        window = live.window if live.window is not None and math.isfinite(live.window) else None
        return protocol.Welcome(
            stream=live.id,
            resumed=resumed,
            reopened=reopened,
            time=max(live.taken, 0.0),
            linger=self.linger,
            model=self.name,
            fps=model.settings.fps,
            picture=model.encoder.tower.image_size,
            threshold=live.threshold,
            window=window,
            grid=tuple(model.encoder.grid),
            routed=model.told_layers,
            limits=protocol.Limits(
                frame_bytes=bounds.frame_bytes,
                frame_pixels=bounds.frame_pixels,
                question_characters=bounds.question_characters,
                messages_per_second=bounds.messages_per_second,
                stream_seconds=bounds.stream_seconds,
                store_frames=self.may_store_frames,
            ),
        )

    # -- pictures and questions in -------------------------------------------------------------------------------------

    async def push(self, live: Live, when: float, picture: bytes | np.ndarray) -> None:
        """A picture of a stream. With the policy "all" this waits for room. Raises InputError for what it cannot be."""
        if isinstance(picture, bytes):
            open_picture(picture, self.bounds)  # its header; pixels are decoded when its turn comes
        if not when > live.taken:
            raise InputError(
                f"the frame at {when:.3f} s does not come after the one at {live.taken:.3f} s; time goes on."
            )
        if when > self.bounds.stream_seconds:
            raise Refusal("ended", f"a stream may last {self.bounds.stream_seconds:g} s; open a new one.")
        live.taken = when
        live.mailbox.append(Waiting(when, picture, time.monotonic()))
        if live.policy == "newest":
            while len(live.mailbox) > MAILBOX["newest"]:
                live.mailbox.popleft()
                self._dropped(live, "newer")
        self._feed(live)
        while live.policy == "all" and len(live.mailbox) >= MAILBOX["all"] and not live.ended:
            live.room.clear()
            await live.room.wait()

    async def drain(self, live: Live) -> None:
        """Wait until every picture that was taken is watched, and what was said of them is stored and told."""

        async def watches() -> bool:
            return bool(live.mailbox or live.feeding or await self.run(lambda: live.stream.waiting))

        while not live.ended and await watches():
            await asyncio.sleep(0.02)
        await asyncio.wrap_future(self.worker.settle())

    def ask(self, live: Live, text: str, when: float | None) -> None:
        """A question. Raises InputError for one that is empty or too long, or if too many wait; Refusal if nothing has
        been seen."""
        if not text.strip():
            raise InputError("the question is empty; ask something.")
        if len(text) > self.bounds.question_characters:
            raise InputError(
                f"the question has {len(text)} characters; ask with at most {self.bounds.question_characters}."
            )
        if live.taken < 0:
            mend = "send a frame first" if live.source is None else "ask again when it is watched"
            raise Refusal("bad_message", f"nothing has been seen yet; {mend}.")
        if live.questions >= self.bounds.questions_waiting:
            raise InputError(f"{live.questions} questions wait for their answers already; ask again later.")
        if when is not None and when > self.bounds.stream_seconds:
            raise InputError(f"the question's time {when:g} s is beyond the end of any stream; leave it out.")
        live.stream.ask(" ".join(text.split()), when)
        live.questions += 1
        self.worker.wake()

    def _dropped(self, live: Live, reason: str) -> None:
        live.dropped += 1
        self.metrics.dropped.labels(reason).inc()

    def _feed(self, live: Live) -> None:
        """Bring the next picture to the engine, if there is room for it."""
        if live.feeding or live.ended or not live.mailbox or len(live.in_engine) >= IN_ENGINE[live.policy]:
            return
        live.feeding = True
        self.spawn(self._bring(live, live.mailbox.popleft()))
        live.room.set()

    async def _bring(self, live: Live, waiting: Waiting) -> None:
        live.in_engine.append(waiting)
        taken = False
        try:
            loop = asyncio.get_running_loop()
            taken = await loop.run_in_executor(self._decoders, self._decode_and_push, live, waiting)
            if live.source is not None:
                live.newest = waiting.picture
            self.worker.wake()
        except InputError as error:
            self._dropped(live, "undecodable")
            live.tell(protocol.Failure(code="bad_frame", message=str(error)))
        except Exception:
            log.exception("a picture was lost")
            self._dropped(live, "failed")
        finally:
            if not taken and waiting in live.in_engine:
                live.in_engine.remove(waiting)
            live.feeding = False
            self._feed(live)

    def _decode_and_push(self, live: Live, waiting: Waiting) -> bool:
        """In a thread of its own: decoding and letterboxing a picture takes milliseconds."""
        image = waiting.picture
        if isinstance(image, bytes):
            image = decode_picture(image, self.bounds)
        if live.store_frames:
            self._store_picture(live.id, waiting)
        if live.ended:
            return False
        live.stream.push(Frame(image, waiting.time, live.pushed))
        live.pushed += 1
        return True

    def _store_picture(self, stream: str, waiting: Waiting) -> None:
        data = waiting.picture if isinstance(waiting.picture, bytes) else encode_jpeg(waiting.picture)
        self.store.add_frame(stream, waiting.time, data)

    # -- what the model said, out --------------------------------------------------------------------------------------

    def _handle(self, outputs: list[Any], seconds: float) -> None:
        """In the scribe's thread: commit the events, then hand everything to the loop."""
        items: list[tuple[Live, Any]] = []
        said: list[Stored] = []
        for output in outputs:
            live = self._by_stream.get(_key(output.stream))
            if live is None:  # closed meanwhile
                continue
            if output.event is not None:
                live.number += 1
                said.append(Stored(live.id, live.number, time.time(), output.event))
                items.append((live, protocol.event_message(output.event, live.number)))
            else:
                items.append((live, output))
        if said and not self._commit(said):
            lost = "the sentence could not be stored, so it is not shown; tell who runs the server."
            failure = protocol.Failure(code="storage", message=lost)
            items = [(live, failure if isinstance(item, protocol.Event) else item) for live, item in items]
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._deliver, items, seconds)
        except RuntimeError:  # the loop has ended; what was said is stored
            return

    def _commit(self, said: list[Stored]) -> bool:
        for attempt in range(DISK_TRIES):
            try:
                self.store.add(said)
                self._storage_fails = False
                return True
            except Exception:  # a full disk, a database that restarts
                log.exception("events could not be stored")
                time.sleep(0.2 * 2**attempt)
        self._storage_fails = True
        return False

    def _deliver(self, items: list[tuple[Live, Any]], seconds: float) -> None:
        self.metrics.step.observe(seconds)
        for live, item in items:
            if isinstance(item, protocol.Event):
                self.total_events += 1
                self.metrics.events.labels(item.kind).inc()
                if item.kind == "answer":
                    live.questions = max(0, live.questions - 1)
                live.tell(item)
            elif isinstance(item, protocol.Failure):
                live.questions = 0
                live.tell(item)
            elif item.decision is not None:
                when, silence = item.decision
                self._watched(live, when, silence, item.kept)
            elif item.delta:
                live.tell(protocol.Delta(text=item.delta))

    def _watched(self, live: Live, when: float, silence: float, kept: dict[int, np.ndarray] | None) -> None:
        now = time.monotonic()
        while live.in_engine and live.in_engine[0].time <= when:
            live.lag = now - live.in_engine.popleft().arrived
        live.frames, live.watched = live.frames + 1, when
        live.done.append(now)
        self.total_frames += 1
        self.metrics.frames.inc()
        self.metrics.lag.observe(live.lag)
        live.tell(
            protocol.Decision(
                time=when, silence=round(silence, 6), speaks=silence < live.threshold, lag=round(live.lag, 4)
            )
        )
        if live.kept and kept:
            live.tell(protocol.Kept(time=when, layers=protocol.pack_kept(kept)))
        self._feed(live)

    # -- every second --------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        retained = -math.inf
        while True:
            await asyncio.sleep(METER_SECONDS)
            try:
                await self._measure()
                for live in list(self.live.values()):
                    if live.alone and time.monotonic() - live.alone_since > self.linger:
                        await self.close(live, f"nobody came back within {self.linger:g} s.")
                if time.monotonic() - retained > RETAIN_SECONDS and (self.keep_days or self.keep_bytes):
                    retained = time.monotonic()
                    await asyncio.to_thread(self.store.retain, self.keep_days, self.keep_bytes, list(self.live))
            except Exception:  # it is looked after again in a second
                log.exception("looking after the streams failed")

    async def _measure(self) -> None:
        lives = list(self.live.values())
        states = await self.run(lambda: [live.stream.state() for live in lives])
        for live, state in zip(lives, states):
            self.metrics.tokens.inc(max(0, state.seen - live.seen))
            live.seen, live.kv_bytes, live.kv_bytes_dense = state.seen, state.kv_bytes, state.kv_bytes_dense
            if state.dropped.get("memory"):  # without a window a stream grows until nothing is left
                self.metrics.dropped.labels("memory").inc(state.dropped["memory"])
                await self.close(live, "the memory set apart for streams is used up; open another, with a window.")
                continue
            live.tell(self.meters(live))
        self.metrics.kv_bytes.set(sum(live.kv_bytes for live in lives))
        self.metrics.kv_bytes_dense.set(sum(live.kv_bytes_dense for live in lives))
        self.metrics.fps.set(sum(live.fps() for live in lives))

    def meters(self, live: Live) -> protocol.Meters:
        return protocol.Meters(
            time=live.watched,
            fps=round(live.fps(), 2),
            lag=round(live.lag, 4),
            frames=live.frames,
            dropped=live.dropped,
            kv_bytes=live.kv_bytes,
            kv_bytes_dense=live.kv_bytes_dense,
            streams=len(self.live),
        )


def _as_before(wish: protocol.Open, settings: str) -> protocol.Open:
    """A wish to go on in a lost stream, what it leaves open being as it was."""
    how = json.loads(settings)
    known = {name: how[name] for name in ("policy", "threshold", "window") if name in how}
    return wish.model_copy(update={name: known[name] for name in known.keys() - wish.model_fields_set})


def counted(number: int, what: str = "stream") -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _key(stream: Any) -> int:
    return id(stream)
