"""An aid while streams are learned: half way up the decoder, every vision token tells what became of what it shows.

Events are rare, about one frame in ten is narrated; that something moved, and where to, shows in every frame. A linear
head on the hidden states of vision tokens names the change since the frame before: a cell's of the thing in it, that
of CLS of the scene. Like the tower's heads it is thrown away. The paper has no such loss: its models learn from
millions of narrations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from videollm_mod.depth.layer import find_decoder
from videollm_mod.dialogue import IGNORE
from videollm_mod.model import StreamingVideoLM
from videollm_mod.world import WorldStream
from videollm_mod.world.actors import Hand, Thing

CHANGES = ("rests", "left", "right", "up", "down", "new", "gone", "turned", "held")
STILL, MOVED = 0.02, 0.05  # sides per frame: up to here it rests, from there on it moves, between them nothing is said


def token_changes(stream: WorldStream, grid: tuple[int, int]) -> Tensor:
    """What became, since the frame before, of the scene (CLS), and of the thing whose centre is or was in each cell.

    Returns (F, 1 + h * w) int64, numbers of CHANGES. A scene "rests" or is "new". IGNORE in cells without a thing, in
    the first frame, and where a thing moved so little that it cannot be said.
    """
    h, w = grid
    labels = torch.full((len(stream.times), h, w), IGNORE)
    scenes = torch.full((len(stream.times), 1), IGNORE)
    starts = [scene.start for scene in stream.script.scenes]
    before: dict[int, _Seen] = {}
    in_hand = [_thing_of(hand, stream.script.things) for hand in stream.script.hands]
    for f, time in enumerate(stream.times.tolist()):
        now = {
            number: _Seen(*thing.leg(time).at(time), thing.look(time).colour)
            for number, thing in enumerate(stream.script.things)
            if thing.alive(time)
        }
        for number, old in before.items():
            if old.inside and not (number in now and now[number].inside):
                labels[f, int(old.y * h), int(old.x * w)] = CHANGES.index("gone")
        held = {number for hand, number in zip(stream.script.hands, in_hand) if hand.start <= time < hand.gone}
        for number, thing in now.items():
            if f > 0 and thing.inside:
                change = CHANGES.index("held") if number in held else _change(before.get(number), thing)
                labels[f, int(thing.y * h), int(thing.x * w)] = change
        if f > 0:
            cut = any(stream.times[f - 1] < start <= time for start in starts)
            scenes[f] = CHANGES.index("new" if cut else "rests")
        before = now
    return torch.cat([scenes, labels.flatten(1)], 1)


class _Seen(NamedTuple):
    x: float
    y: float
    colour: str

    @property
    def inside(self) -> bool:
        return 0 <= self.x < 1 and 0 <= self.y < 1


def _thing_of(hand: Hand, things: Sequence[Thing]) -> int:
    """The number of the thing that a hand places or takes: the one where it reaches to."""

    def way(number: int) -> float:
        x, y = things[number].leg(hand.reached).at(hand.reached)
        return math.hypot(x - hand.x, y - hand.y)

    return min((number for number, thing in enumerate(things) if thing.alive(hand.reached)), key=way)


def _change(before: _Seen | None, now: _Seen) -> int:
    if before is None:
        return CHANGES.index("new")
    if before.colour != now.colour:
        return CHANGES.index("turned")
    dx, dy = now.x - before.x, now.y - before.y
    way = math.hypot(dx, dy)
    if way < MOVED:
        return CHANGES.index("rests") if way <= STILL else IGNORE
    across = abs(dx) > abs(dy)
    return CHANGES.index(("left" if dx < 0 else "right") if across else ("up" if dy < 0 else "down"))


class ChangeHead(nn.Module):
    """Hidden states of vision tokens -> CHANGES, and the loss. It starts at zero: every change equally likely."""

    def __init__(self, model: StreamingVideoLM) -> None:
        super().__init__()
        self.linear = nn.Linear(model.lm.config.hidden_size, len(CHANGES))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @contextmanager
    def listening(self, model: StreamingVideoLM) -> Iterator[list[Tensor]]:
        """While it is open, every forward of `model` appends the output of its middle layer: (batch, tokens, d)."""
        heard: list[Tensor] = []

        def hear(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            heard.append(output[0] if isinstance(output, tuple) else output)

        handle = find_decoder(model.lm).layers[model.num_layers // 2].register_forward_hook(hear)
        try:
            yield heard
        finally:
            handle.remove()

    def loss(self, hidden: Tensor, frame_index: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """Cross-entropy, and the mean recall over the changes that occur.

        hidden: (batch, tokens, d). frame_index: (batch, tokens). labels: (F, 1 + h * w) of all frames, row by row.
        """
        vision = hidden[frame_index >= 0].view(*labels.shape, -1)  # (F, 1 + h * w, d)
        known = labels != IGNORE
        if not known.any():
            return hidden.new_zeros(()), 1.0
        logits, labels = self.linear(vision[known]).float(), labels[known]
        right = logits.argmax(-1) == labels
        recalls = [float(right[labels == change].float().mean()) for change in labels.unique()]
        return cross_entropy(logits, labels), sum(recalls) / len(recalls)
