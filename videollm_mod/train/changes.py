"""An aid while streams are learned: half way up the decoder, every vision token tells what became of what it shows.

Events are rare, about one frame in ten is narrated; that something moved, and where to, shows in every frame. A linear
head on the hidden states of vision tokens names the change since the frame before: a cell's of the thing in it, that
of CLS of the scene. Where a thing is gone or turned it also names what the thing was, which only the frame before can
tell. Like the tower's heads it is thrown away. The paper has no such loss: its models learn from millions of
narrations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from videollm_mod.depth.swap import find_decoder
from videollm_mod.dialogue import IGNORE
from videollm_mod.model import StreamingVideoLM
from videollm_mod.world import COLOURS, SHAPES, WorldStream
from videollm_mod.world.actors import Hand, Thing

CHANGES = ("rests", "left", "right", "up", "down", "new", "gone", "turned", "held")
PARTS = (len(CHANGES), len(COLOURS), len(SHAPES))  # what the head names: the change, and what a thing was before it
NAMES = ("change", "colour", "shape")
STILL, MOVED = 0.02, 0.05  # sides per frame: up to here it rests, from there on it moves, between them nothing is said


def token_changes(stream: WorldStream, grid: tuple[int, int]) -> Tensor:
    """What became, since the frame before, of the scene (CLS), and of the thing whose centre is or was in each cell.

    Returns (F, 1 + h * w, 3) int64: numbers of CHANGES, and of the COLOURS and SHAPES that things had which are "gone"
    or have "turned". A scene "rests" or is "new". IGNORE in cells without a thing, in the first frame, and where a
    thing moved so little that it cannot be said.
    """
    h, w = grid
    cells = torch.full((len(stream.times), h, w, len(PARTS)), IGNORE)
    scenes = torch.full((len(stream.times), 1, len(PARTS)), IGNORE)
    starts = [scene.start for scene in stream.script.scenes]
    before: dict[int, _Seen] = {}
    in_hand = [_thing_of(hand, stream.script.things) for hand in stream.script.hands]
    for f, time in enumerate(stream.times.tolist()):
        now = {
            number: _Seen(*thing.leg(time).at(time), thing.look(time).colour, thing.look(time).shape)
            for number, thing in enumerate(stream.script.things)
            if thing.alive(time)
        }
        for number, old in before.items():
            if old.inside and not (number in now and now[number].inside):
                cells[f, int(old.y * h), int(old.x * w)] = label_of("gone", old)
        held = {number for hand, number in zip(stream.script.hands, in_hand) if hand.start <= time < hand.gone}
        for number, thing in now.items():
            if f > 0 and thing.inside:
                old_self = before.get(number)
                label = label_of("held" if number in held else change_of(old_self, thing), old_self)
                cells[f, int(thing.y * h), int(thing.x * w)] = label
        if f > 0:
            cut = any(stream.times[f - 1] < start <= time for start in starts)
            scenes[f] = label_of("new" if cut else "rests", None)
        before = now
    return torch.cat([scenes, cells.flatten(1, 2)], 1)


class Seen(Protocol):
    """Where something is, and of which colour, if it has one."""

    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...
    @property
    def colour(self) -> str | None: ...


class _Seen(NamedTuple):
    x: float
    y: float
    colour: str
    shape: str

    @property
    def inside(self) -> bool:
        return 0 <= self.x < 1 and 0 <= self.y < 1


def _thing_of(hand: Hand, things: Sequence[Thing]) -> int:
    """The number of the thing that a hand places or takes: the one where it reaches to."""

    def way(number: int) -> float:
        x, y = things[number].leg(hand.reached).at(hand.reached)
        return math.hypot(x - hand.x, y - hand.y)

    return min((number for number, thing in enumerate(things) if thing.alive(hand.reached)), key=way)


def change_of(before: Seen | None, now: Seen) -> str | None:
    """One of CHANGES; None where it moved so little that it cannot be said."""
    if before is None:
        return "new"
    if before.colour != now.colour:
        return "turned"
    dx, dy = now.x - before.x, now.y - before.y
    way = math.hypot(dx, dy)
    if way < MOVED:
        return "rests" if way <= STILL else None
    across = abs(dx) > abs(dy)
    return ("left" if dx < 0 else "right") if across else ("up" if dy < 0 else "down")


def label_of(change: str | None, before: _Seen | None) -> Tensor:
    """(3,) int64: the change, and what the thing was where that cannot be seen any more."""
    if change is None:
        return torch.full((len(PARTS),), IGNORE)
    if change not in ("gone", "turned") or before is None:
        return torch.tensor([CHANGES.index(change), IGNORE, IGNORE])
    return torch.tensor([CHANGES.index(change), COLOURS.index(before.colour), SHAPES.index(before.shape)])


@contextmanager
def outputs_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """While it is open, every forward of the module appends its output."""
    heard: list[Tensor] = []

    def hear(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
        heard.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(hear)
    try:
        yield heard
    finally:
        handle.remove()


class ChangeHead(nn.Module):
    """Hidden states of vision tokens -> PARTS, and the loss. It starts at zero: every change equally likely."""

    def __init__(self, model: StreamingVideoLM) -> None:
        super().__init__()
        self.linear = nn.Linear(model.lm.config.hidden_size, sum(PARTS))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def listening(self, model: StreamingVideoLM) -> AbstractContextManager[list[Tensor]]:
        """While it is open, every forward of `model` appends the output of its middle layer: (batch, tokens, d)."""
        return outputs_of(find_decoder(model.lm).layers[model.num_layers // 2])

    def loss(
        self,
        hidden: Tensor,
        frame_index: Tensor,
        labels: Tensor,
        before_weight: float = 1.0,
        shares: Mapping[str, float] | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy on the change + before_weight x those on the colour and shape before it; and for the log the
        mean recall over the values that occur of each.

        hidden: (batch, tokens, d). frame_index: (batch, tokens). labels: (F, 1 + h * w, 3) of all frames, row by row.
        shares: for each of NAMES the part that these labels have in the mean over a whole step; all, if None. Recalls
        of several parts of a step are averaged by it, which is not quite the recall of the step.
        """
        vision = hidden[frame_index >= 0].view(*labels.shape[:2], -1)  # (F, 1 + h * w, d)
        total, recall = hidden.new_zeros((), dtype=torch.float32), {}
        for name, part, label in zip(NAMES, self.linear(vision).split(PARTS, -1), labels.unbind(-1)):
            known = label != IGNORE
            if not known.any():
                continue
            share = 1.0 if shares is None else shares[name]
            logits, truth = part[known].float(), label[known]
            total = total + (1.0 if name == "change" else before_weight) * share * cross_entropy(logits, truth)
            right = logits.argmax(-1) == truth
            recalls = [float(right[truth == value].float().mean()) for value in truth.unique()]
            recall[name] = share * sum(recalls) / len(recalls)
        return total, recall

    def nothing(self, hidden: Tensor) -> Tensor:
        """0, and gradients of 0 for the head: for a part of a step without a label, where another one has some."""
        return self.linear(hidden[:0]).float().sum()
