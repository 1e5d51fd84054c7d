"""World streams as training samples, drawn by worker processes. Sample n of a run is always the same."""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from videollm_mod.data.own import Own, OwnSample, own_stream, read_videos
from videollm_mod.dialogue import Segment
from videollm_mod.train.camera import camera_changes, seen
from videollm_mod.train.changes import token_changes
from videollm_mod.train.corrupt import corrupt, mislead
from videollm_mod.train.recipe import Phase, Recipe, TowerStage
from videollm_mod.world import COLOURS, SHAPES, SIZES, Narrated, WorldStream, all_narrations, make_stream, matter
from videollm_mod.world.camera import NAMES, CameraStream, all_camera_sentences, make_camera_stream, parse
from videollm_mod.world.conversation import segments

ROLES = ("thing", "hand", "clutter")
NAMED = (*SHAPES, *NAMES)  # what a thing can be called; names are those of cameras
CELL_STRIDE = 4  # of a stream, every so many frames have the truth of their cells: it takes longer than drawing them


@dataclass(frozen=True)
class StreamSample:
    """One stream: its frames, its conversation, and what changes where."""

    frames: Tensor  # (F, S, S, 3) uint8; (F, 0, 0, 3) where there are features
    segments: list[Segment]
    # what only the world's own streams tell:
    matter: Tensor | None  # (F, 1 + h * w) float: how much each vision token matters, for an oracle
    changes: Tensor | None  # (F, 1 + h * w, 3) int64: what became of what each vision token shows, see changes.py
    cells: CellTruth | None = None  # of every CELL_STRIDE-th frame, where a recipe has a cell_weight
    features: Tensor | None = None  # (F, 1 + h * w, width) float32, of a features file: stands for the frames


@dataclass(frozen=True)
class CellTruth:
    """What is where on F frames of h x w cells; -1 where a label does not apply."""

    frames: Tensor  # (F, S, S, 3) uint8
    cover: Tensor  # (F, h, w, 3) float: whether a thing, a hand, clutter covers a good part of the cell
    colour: Tensor  # (F, h, w) int64, of the thing that covers most of the cell
    shape: Tensor  # (F, h, w) int64
    size: Tensor  # (F, h, w) int64
    centre: Tensor  # (F, h, w) float: whether a thing's centre lies in the cell
    offset: Tensor  # (F, h, w, 2) float in 0..1: where in the cell
    count: Tensor  # (F,) int64: things in view
    scene: Tensor  # (F, 3) float: mean colour of the background, RGB in 0..1

    @classmethod
    def joined(cls, parts: list[CellTruth], device: torch.device) -> CellTruth:
        """All frames of several, one after another."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]).to(device) for f in fields(cls)))


class StreamSamples(Dataset[StreamSample]):
    """The streams of the second stage, in the order in which its steps take them."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __len__(self) -> int:
        return sum(phase.steps * phase.streams for phase in self.recipe.phases)

    def __getitem__(self, number: int) -> StreamSample:
        first = 0
        for phase in self.recipe.phases:
            last = first + phase.steps * phase.streams
            if number < last:
                return stream_sample("train", self.recipe.seed * 10_000_000 + number, phase, self.recipe)
            first = last
        raise IndexError(number)


def stream_sample(split: str, number: int, phase: Phase, recipe: Recipe) -> StreamSample:
    """Stream `number` of a split as a phase has it, with its conversation."""
    stream = any_stream(split, number, phase, recipe)
    own, system = (stream if isinstance(stream, Own) else None), recipe.settings.system
    conversation = segments(stream, system) if own is None else own.conversation(system)
    features = None if own is None else own.features()
    frames = torch.from_numpy(stream.frames()) if features is None else torch.empty(len(features), 0, 0, 3).byte()
    rng = random.Random(f"{split}/{number}/corrupt")
    if split == "train" and rng.random() < recipe.corrupt:
        conversation = corrupt(conversation, rng, _sentences(stream, recipe))
    elif split == "train" and recipe.misled and rng.random() < recipe.misled:
        conversation = mislead(conversation, rng, _sentences(stream, recipe))
    cells = None
    if recipe.cell_weight and not isinstance(stream, Own):
        cells = _cells(stream, frames[::CELL_STRIDE], stream.times[::CELL_STRIDE].tolist(), recipe.grid)
    return StreamSample(
        frames=frames,
        segments=conversation,
        matter=torch.from_numpy(matter(stream, recipe.grid)) if isinstance(stream, WorldStream) else None,
        changes=_changes(stream, recipe.grid) if recipe.change_weight else None,
        cells=cells,
        features=features,
    )


def any_stream(split: str, number: int, phase: Phase, recipe: Recipe) -> WorldStream | CameraStream | Own:
    """Stream `number` of a split of what the recipe learns from: the world, fixed cameras, or one's own videos."""
    if recipe.data is not None:
        return own_stream(Path(recipe.data), split, number, phase.world)
    if is_camera(number, phase):
        assert phase.camera is not None
        return make_camera_stream(split, number, phase.camera)
    return make_stream(split, number, phase.world)


def is_camera(number: int, phase: Phase) -> bool:
    """Whether stream `number` is of a fixed camera: evenly mixed, by the golden ratio."""
    return phase.camera is not None and number * 0.6180339887498949 % 1 < phase.camera_share


def _changes(stream: WorldStream | CameraStream | Own, grid: tuple[int, int]) -> Tensor | None:
    if isinstance(stream, Own):
        return None
    return camera_changes(stream, grid) if isinstance(stream, CameraStream) else token_changes(stream, grid)


def _sentences(stream: WorldStream | CameraStream | Own, recipe: Recipe) -> list[str]:
    """What may be said, to say it at the wrong time."""
    if isinstance(stream, OwnSample):  # as published: of the same conversation
        return sorted({text.text for _, text in stream.laid.said if text.kind == "assistant"})
    if recipe.data is not None:
        return _narrations(recipe.data)
    if isinstance(stream, CameraStream):
        return [text for text in all_camera_sentences() if parse(text)]
    return all_narrations()


@lru_cache(maxsize=4)
def _narrations(data: str) -> list[str]:
    return sorted({text for video in read_videos(Path(data)) for _, text in video.narrations})


class TowerSamples(Dataset[CellTruth]):
    """Single frames with the truth of every cell, for the first stage."""

    def __init__(self, stage: TowerStage, phase: Phase, grid: tuple[int, int], seed: int) -> None:
        self.stage, self.phase, self.grid, self.seed = stage, phase, grid, seed

    def __len__(self) -> int:
        return self.stage.steps * self.stage.streams

    def __getitem__(self, number: int) -> CellTruth:
        # far from the numbers of the second stage, so that the two never share a stream
        number += 900_000_000 + self.seed * 10_000_000
        if is_camera(number, self.phase):
            assert self.phase.camera is not None
            camera = make_camera_stream("train", number, self.phase.camera)
            return _cells(camera, *self._pick(camera), self.grid)
        stream = make_stream("train", number, self.phase.world)
        return _cells(stream, *self._pick(stream), self.grid)

    def _pick(self, stream: Narrated) -> tuple[Tensor, list[float]]:
        """Some frames of a stream, evenly spread, and their times."""
        every = max(1, len(stream.times) // self.stage.frames)
        picked = list(range(0, len(stream.times), every))[: self.stage.frames]
        return torch.from_numpy(stream.frames()[picked]), [float(stream.times[i]) for i in picked]


def _cells(stream: WorldStream | CameraStream, frames: Tensor, times: list[float], grid: tuple[int, int]) -> CellTruth:
    """The truth of some frames of a stream: frames (F, S, S, 3) uint8, at `times` (s)."""
    if isinstance(stream, CameraStream):
        shown = [list(seen(stream.visible(time)).values()) for time in times]
        return cell_truth(frames, shown, frames.float().mean((1, 2)) / 255, grid)
    palettes = torch.tensor([stream.script.scene(time).palette for time in times])  # (F, colours, RGB)
    return cell_truth(frames, [stream.visible(time) for time in times], palettes.mean(1) / 255, grid)


def cell_truth(frames: Tensor, visible: list[Any], scene: Tensor, grid: tuple[int, int]) -> CellTruth:
    """Boxes -> labels per cell. visible: for each frame its VisibleThings, or camera.Seen; scene: as in CellTruth."""
    count, (h, w) = len(frames), grid
    cover = torch.zeros(count, h, w, 3)
    most = torch.zeros(count, h, w)  # how much of the cell the labelled thing covers
    colour, shape, size = (torch.full((count, h, w), -1) for _ in range(3))
    centre, offset = torch.zeros(count, h, w), torch.zeros(count, h, w, 2)
    in_view = torch.zeros(count, dtype=torch.int64)
    top, left = torch.arange(h)[:, None] / h, torch.arange(w)[None] / w
    for f, things in enumerate(visible):
        for thing in things:
            x0, y0, x1, y1 = thing.box
            wide = (torch.minimum(left + 1 / w, torch.tensor(x1)) - torch.maximum(left, torch.tensor(x0))).clamp(min=0)
            high = (torch.minimum(top + 1 / h, torch.tensor(y1)) - torch.maximum(top, torch.tensor(y0))).clamp(min=0)
            share = wide * high * h * w  # (h, w): part of the cell under the thing's box
            covered = share > 0.25
            cover[f, ..., ROLES.index(thing.role)] += covered
            if thing.role != "thing" or thing.visible < 0.3:
                continue
            in_view[f] += 1
            mine = covered & (share > most[f])
            most[f] = torch.where(mine, share, most[f])
            colour[f][mine] = COLOURS.index(thing.colour) if thing.colour else -1
            shape[f][mine] = NAMED.index(thing.shape)
            size[f][mine] = SIZES.index(thing.size) if thing.size else -1
            cx, cy = thing.centre
            if 0 <= cx < 1 and 0 <= cy < 1:
                row, column = int(cy * h), int(cx * w)
                centre[f, row, column] = 1
                offset[f, row, column] = torch.tensor([cx * w - column, cy * h - row])
    return CellTruth(frames, cover.clamp(max=1), colour, shape, size, centre, offset, in_view.clamp(max=3), scene)


def steps_of(steps: int, size: int, first: int = 0) -> list[list[int]]:
    """The numbers of the samples of each step: `size` at a time, in order, from `first` on."""
    return [list(range(start, start + size)) for start in range(first, first + steps * size, size)]


def prepare_worker(worker: int) -> None:
    """What a process that draws samples does first."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that trains: it ends its workers
