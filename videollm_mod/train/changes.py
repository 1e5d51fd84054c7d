"""An aid while streams are learned: half way up the decoder, every cell tells what became of the thing in it.

Events are rare, about one frame in ten is narrated; that something moved shows in every frame. A linear head on the
hidden states of vision tokens names the change since the frame before. Like the tower's heads it is thrown away. The
paper has no such loss: its models learn from millions of narrations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from videollm_mod.depth.layer import find_decoder
from videollm_mod.dialogue import IGNORE
from videollm_mod.model import StreamingVideoLM
from videollm_mod.world import WorldStream

CHANGES = ("rests", "moves", "new", "gone", "turned")
STILL, MOVED = 0.02, 0.05  # sides per frame: up to here it rests, from there on it moves, between them nothing is said


def cell_changes(stream: WorldStream, grid: tuple[int, int]) -> Tensor:
    """What became of the thing whose centre is (for "gone": was) in each cell, since the frame before.

    Returns (F, h, w) int64, numbers of CHANGES; IGNORE in cells without a thing, in the first frame, and where a thing
    moved so little that it cannot be said.
    """
    h, w = grid
    labels = torch.full((len(stream.times), h, w), IGNORE)
    before: dict[int, tuple[float, float, str]] = {}
    for f, time in enumerate(stream.times.tolist()):
        now: dict[int, tuple[float, float, str]] = {}
        for number, thing in enumerate(stream.script.things):
            x, y = thing.leg(time).at(time)
            if thing.alive(time) and 0 <= x < 1 and 0 <= y < 1:
                now[number] = (x, y, thing.look(time).colour)
        if f > 0:
            for number in before.keys() - now.keys():
                x, y, _ = before[number]
                labels[f, int(y * h), int(x * w)] = CHANGES.index("gone")
            for number, (x, y, colour) in now.items():
                labels[f, int(y * h), int(x * w)] = _change(before.get(number), (x, y, colour))
        before = now
    return labels


def _change(before: tuple[float, float, str] | None, now: tuple[float, float, str]) -> int:
    if before is None:
        return CHANGES.index("new")
    if before[2] != now[2]:
        return CHANGES.index("turned")
    way = math.hypot(now[0] - before[0], now[1] - before[1])
    return CHANGES.index("rests") if way <= STILL else CHANGES.index("moves") if way >= MOVED else IGNORE


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

        hidden: (batch, tokens, d). frame_index: (batch, tokens). labels: (F, h, w) of all frames, row by row.
        """
        cells = hidden[frame_index >= 0].view(len(labels), -1, hidden.shape[-1])[:, 1:]  # without CLS: (F, h * w, d)
        labels = labels.flatten(1)
        known = labels != IGNORE
        if not known.any():
            return hidden.new_zeros(()), 1.0
        logits, labels = self.linear(cells[known]).float(), labels[known]
        right = logits.argmax(-1) == labels
        recalls = [float(right[labels == change].float().mean()) for change in labels.unique()]
        return cross_entropy(logits, labels), sum(recalls) / len(recalls)
