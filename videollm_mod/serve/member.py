"""One replica among several: tells the others that it lives, and takes over cameras whose replica has died.

A replica that stood still for so long that it was thought dead finds out at its next sign of life, and lets the streams
go that another has taken meanwhile: their events have one writer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from videollm_mod.serve.roster import BEAT, Roster
from videollm_mod.serve.watching import watch_again

if TYPE_CHECKING:
    from videollm_mod.serve.server import Server

log = logging.getLogger("videollm_mod.serve")


PAUSE = 60.0  # s after which a camera that could not be watched is tried again


async def tell_and_let_go(server: Server, roster: Roster) -> None:
    """Until cancelled: a sign of life every second."""
    hub = server.hub
    while True:
        try:
            if not await asyncio.to_thread(roster.beat, hub.told()):
                mine = await asyncio.to_thread(roster.held, hub.replica.name)
                for live in [one for one in hub.live.values() if one.id not in mine]:
                    await hub.close(live, "another replica has taken it.", ended=False)
        except Exception:  # a database that restarts
            log.exception("the replica could not tell that it lives")
        await asyncio.sleep(BEAT)


async def take_over(server: Server, roster: Roster) -> None:
    """Until cancelled: one camera a second that nobody alive watches, so that all replicas get their share."""
    hub, later = server.hub, dict[str, float]()  # stream -> when to try again
    while True:
        await asyncio.sleep(BEAT)
        try:
            waiting = await asyncio.to_thread(hub.store.unfinished_sources)
            held = await asyncio.to_thread(roster.held) if waiting else set()
            now = time.monotonic()
            free = [row for row in waiting if row["id"] not in held and later.get(row["id"], 0.0) <= now]
            if free and len(hub.live) < hub.max_streams and not await watch_again(server, free[0]):
                later[free[0]["id"]] = now + PAUSE
        except Exception:
            log.exception("a camera could not be taken over")
