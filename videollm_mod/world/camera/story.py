"""What happens in a stream, as data: who acts when, and the events that are told.

When an event is: enter: a part worth seeing (CLEAR) is inside. leave: wholly outside. placed: the thing stands in its
place, whether or not the hand is still on it. removed: it is lifted off by half its size or half its way out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from videollm_mod.types import InputError
from videollm_mod.world.camera.actors import Hand, Thing, Walker
from videollm_mod.world.camera.config import SPLITS, CameraConfig
from videollm_mod.world.camera.handling import handle
from videollm_mod.world.camera.places import walkers_place
from videollm_mod.world.camera.scene import Scene, random_film
from videollm_mod.world.camera.tables import objects_place
from videollm_mod.world.camera.visits import bystander, visit
from videollm_mod.world.camera.words import narration


@dataclass(frozen=True)
class CameraEvent:
    """Something that is narrated."""

    time: float
    frame: int  # the first sampled frame at or after `time`
    kind: str  # "enter", "leave", "placed" or "removed"
    text: str
    name: str  # of config.NAMES
    side: str | None  # for enter and leave
    place: str | None  # for placed and removed: the third of the content's width
    actor: int  # index into Script.walkers or Script.things
    vague: float  # seconds before `time` in which it begins to show


@dataclass(frozen=True, eq=False)
class Script:
    """Everything that happens in one stream."""

    scene: Scene
    walkers: tuple[Walker, ...]
    things: tuple[Thing, ...]
    hands: tuple[Hand, ...]
    events: tuple[CameraEvent, ...]  # ascending by time


def write_script(split: str, number: int, config: CameraConfig) -> Script:
    """The story of stream `number` of a split: the same arguments always give the same story.

    Raises:
        InputError: no such split, or a negative number.
    """
    if split not in SPLITS:
        raise InputError(f"Camera split {split!r} does not exist; choose one of {', '.join(SPLITS)}.")
    if number < 0:
        raise InputError(f"Camera stream number {number} is negative; numbers count from 0.")
    # Two generators: how a place looks has no influence on what happens there. The split is part of both seeds.
    look, rng = (random.Random(f"camera/{split}/{number}/{use}") for use in ("scene", "story"))
    quiet = rng.random() < config.quiet
    if rng.random() < config.objects:
        scene, top = objects_place(look, config)
        things, hands, told = handle(rng, config, top, scene.size, quiet)
        standing = rng.random() < 0.15 and not top.flat
        walkers = [bystander(rng, scene.size, top.edge)] if standing else []
    else:
        scene, ground = walkers_place(look, config)
        things, hands = [], []
        walkers, told = visit(rng, config, ground, scene.size, quiet)
    if config.film:
        film = random.Random(f"camera/{split}/{number}/film")  # apart, so that all else is as without
        scene = replace(scene, film=random_film(film) if film.random() < config.film else None)
    events = []
    for time, kind, where, actor, vague in sorted(told):
        frame = config.frame_at(time)
        if frame >= config.frame_count or time <= 0:
            continue
        name = (walkers if kind in ("enter", "leave") else things)[actor].name
        side, place = (where, None) if kind in ("enter", "leave") else (None, where)
        events.append(CameraEvent(time, frame, kind, narration(kind, name, where), name, side, place, actor, vague))
    return Script(scene, tuple(walkers), tuple(things), tuple(hands), tuple(events))
