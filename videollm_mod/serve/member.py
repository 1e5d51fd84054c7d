"""One replica among several: tells the others that it lives, and takes over cameras whose replica has died.

A replica that stood still for so long that it was thought dead finds out at its next sign of life, and lets the streams
go that another has taken meanwhile: their events have one writer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from videollm_mod.serve.roster import BEAT, Roster
from videollm_mod.serve.watching import watch_again

if TYPE_CHECKING:
    from videollm_mod.serve.server import Server

log = logging.getLogger("videollm_mod.serve")


async def take_part(server: Server, roster: Roster) -> None:
    """Until cancelled: a sign of life every second, and at most one camera taken over, so that all get their share."""
    hub, given_up = server.hub, set[str]()
    while True:
        try:
            if not await asyncio.to_thread(roster.beat, hub.told()):
                mine = await asyncio.to_thread(roster.held, hub.replica.name)
                for live in [one for one in hub.live.values() if one.id not in mine]:
                    await hub.close(live, "another replica has taken it.", ended=False)
            if len(hub.live) < hub.max_streams:
                await _take_over(server, roster, given_up)
        except Exception:  # a database that restarts
            log.exception("the replica could not tell that it lives")
        await asyncio.sleep(BEAT)


async def _take_over(server: Server, roster: Roster, given_up: set[str]) -> None:
    """Watch one camera that nobody alive watches. `given_up`: those that cannot be watched here."""
    waiting = await asyncio.to_thread(server.hub.store.unfinished_sources)
    if not waiting:
        return
    held = await asyncio.to_thread(roster.held)
    for row in waiting:
        if row["id"] not in held and row["id"] not in given_up and not await watch_again(server, row):
            given_up.add(row["id"])
            return
