"""What is told before a fixed camera, names apart: which kind of event, and on which side or where.

"A person enters from the left." and "Something enters from the left." are the same event, "enter left". So real clips
are judged (clips.py), and so can be streams of the generated world.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from videollm_mod.evaluate.metrics import Said
from videollm_mod.world.camera import PLACES, SIDES, parse

EVENTS = frozenset(
    f"{kind} {where}"
    for kinds, places in ((("enter", "leave"), SIDES), (("placed", "removed"), PLACES))
    for kind in kinds
    for where in places
)
TOLERANCE = 1.0  # seconds that an event may be off: people who label clips by hand are no more exact


def events_told(said: Sequence[Said]) -> list[Said]:
    """Each sentence as its event, in the words of labels; one that tells of no such event stands as it is."""
    found = []
    for time, text in said:
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            event = parse(sentence)
            found.append(Said(time, " ".join(event) if event else sentence))
    return found
