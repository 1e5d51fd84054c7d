"""What happens in a stream: scenes, things, hands and the events that are narrated. Pure data, no pixels.

The rules that make every event unambiguous in frames sampled at 2 per second:
- One action at a time, REST between them, and at least SPACING between consecutive events.
- A thing rests, drifts (goes round a small circle, for as long as nothing else is said), or is in an action.
- Entering: straight in from outside, then at once resting, or going over into drifting. Coming to rest at the end of
  the straight way in, or when a hand lets go, belongs to the entering or placing: it is no "stops".
- A resting thing that begins to move always "starts"; if it then goes straight out it also "leaves", as a second event.
- A drifting thing that comes to rest always "stops", and it has drifted for MIN_DRIFT before. A drifting thing that
  goes straight out "leaves" only.
- Things never overlap: each owns its resting place or the box of its circle, and ways in and out keep clear of those.

When an event is (WorldEvent.time): enters: wholly inside. leaves: wholly outside. placed, taken: the hand (with the
thing) is outside again. starts: displaced by SEEN_MOVE. stops: one sampled frame's spacing after it came to rest.
appears, disappears, turns, cut: the moment itself. No sampled frame falls into the short time in which an event shows
in part (WorldEvent.vague): a thing is never just barely outside, nor displaced by as little as the camera shakes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from videollm_mod.types import InputError
from videollm_mod.world.actors import Hand, Scene, Thing
from videollm_mod.world.config import SPLITS, WorldConfig, looks_of
from videollm_mod.world.plans import PLANS
from videollm_mod.world.stage import Action, Stage, WorldEvent

ATTEMPTS = 6
SPACING = 1.5  # seconds between consecutive events, at least
REST = 0.6  # seconds between the end of an action and the beginning of the next, at least
USUAL_ACTION = 1.1  # seconds from when an action may begin to its event, quiet apart, as measured; for the wanted rate
WEIGHTS = {  # how often each kind is tried first; WorldConfig.favoured multiplies them
    "enters": 2.0,
    "placed": 1.4,
    "appears": 1.0,
    "leaves": 3.6,
    "taken": 1.4,
    "disappears": 1.0,
    "turns": 1.4,
    "starts": 1.8,
    "stops": 4.0,
    "cut": 0.5,
}


@dataclass(frozen=True)
class Script:
    """Everything that happens in one stream."""

    scenes: tuple[Scene, ...]  # ascending by start, the first from 0
    things: tuple[Thing, ...]
    hands: tuple[Hand, ...]
    events: tuple[WorldEvent, ...]  # ascending by time
    busy: tuple[tuple[float, float], ...]  # (start, end) of every action, ascending; "stable" is outside of them

    def scene(self, time: float) -> Scene:
        """The scene at `time`."""
        return next(scene for scene in reversed(self.scenes) if scene.start <= time or scene.start == 0)


def write_script(split: str, number: int, config: WorldConfig) -> Script:
    """The story of stream `number` of a split: the same arguments always give the same story.

    Raises:
        InputError: no such split, or a negative number.
    """
    if split not in SPLITS:
        raise InputError(f"World split {split!r} does not exist; choose one of {', '.join(SPLITS)}.")
    if number < 0:
        raise InputError(f"World stream number {number} is negative; numbers count from 0.")
    rng = random.Random(f"{split}/{number}/story")  # the split is part of the seed: splits never share one
    stage = Stage(rng, config, looks_of(split))
    stage.set_scene(0.0)
    quiet = max(60 / config.events_per_minute - SPACING - USUAL_ACTION, 0.1)
    events: list[WorldEvent] = []
    busy: list[tuple[float, float]] = []
    earliest = REST
    last = config.frame_count - 1
    while True:
        start = earliest + rng.expovariate(1 / quiet)
        if config.frame_at(start) > last:
            break
        action = _next_action(stage, start)
        if action is None:  # nothing fits now: look again later
            earliest = start
            continue
        if config.frame_at(action.events[-1].time) > last or action.end > config.seconds:
            break  # its end would not be seen
        stage.perform(action)
        events.extend(action.events)
        busy.append((action.start, action.end))
        earliest = max(events[-1].time + SPACING, action.end + REST)
    return Script(tuple(stage.scenes), tuple(stage.things), tuple(stage.hands), tuple(events), tuple(busy))


def _next_action(stage: Stage, start: float) -> Action | None:
    """An action of a random kind among those that are possible."""
    kinds, factors = list(WEIGHTS), dict(stage.config.favoured)
    while kinds:
        kind = stage.rng.choices(kinds, [WEIGHTS[k] * factors.get(k, 1.0) for k in kinds])[0]
        for attempt in range(ATTEMPTS):  # later and later, until no sampled frame shows an event in part
            action = PLANS[kind](stage, start + attempt * 0.21)
            if action is None:
                break
            if stage.is_crisp(action):
                return action
        kinds.remove(kind)
    return None
