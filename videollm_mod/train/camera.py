"""What a camera stream's truth teaches besides its sentences: what is where, and what changed.

The labels are those of the coloured shapes' world as far as they go: what stands in for a shape is a name, such as
"person", and nothing has a colour or a size that is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from videollm_mod.dialogue import IGNORE
from videollm_mod.train.changes import PARTS, change_of, label_of
from videollm_mod.world.camera import CameraStream, VisibleActor

ROLE = {"walker": "thing", "object": "thing", "hand": "hand", "clutter": "clutter"}


@dataclass(frozen=True)
class Seen:
    """What shows of an actor, in the terms of `cell_truth` and of changes.py."""

    role: str
    box: tuple[float, float, float, float]
    shape: str
    visible: float
    colour: str | None = None
    size: str | None = None

    @property
    def centre(self) -> tuple[float, float]:
        """Of what shows: a head at the lower border is where it is, not where its feet would be."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    @property
    def x(self) -> float:
        return self.centre[0]

    @property
    def y(self) -> float:
        return self.centre[1]


def seen(actors: Sequence[VisibleActor]) -> dict[int, Seen]:
    """By the actors' numbers."""
    return {actor.number: Seen(ROLE[actor.role], actor.box, actor.name, 1.0) for actor in actors}


def camera_changes(stream: CameraStream, grid: tuple[int, int]) -> Tensor:
    """As `token_changes`: (F, 1 + h * w, 3) int64. Nothing is told of CLS: a fixed camera's scene stays."""
    h, w = grid
    cells = torch.full((len(stream.times), h, w, len(PARTS)), IGNORE)
    before: dict[int, Seen] = {}
    for f, time in enumerate(stream.times.tolist()):
        actors = [actor for actor in stream.visible(time) if ROLE[actor.role] == "thing"]
        now, held = seen(actors), {actor.number for actor in actors if actor.state == "held"}
        for number, old in before.items():
            if number not in now:
                cells[f, _cell(old.y, h), _cell(old.x, w)] = label_of("gone", None)
        for number, thing in now.items():
            if f > 0:
                change = "held" if number in held else change_of(before.get(number), thing)
                cells[f, _cell(thing.y, h), _cell(thing.x, w)] = label_of(change, None)
        before = now
    scenes = torch.full((len(cells), 1, len(PARTS)), IGNORE)
    return torch.cat([scenes, cells.flatten(1, 2)], 1)


def _cell(place: float, cells: int) -> int:
    return min(int(place * cells), cells - 1)
