"""The whole configuration of a run as plain data. A recipe (recipes/*.py) is a function that returns one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from videollm_mod.adapters import LoraSettings
from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.types import InputError
from videollm_mod.vision import ConvTowerConfig
from videollm_mod.world import WorldConfig
from videollm_mod.world.camera import CameraConfig

SHARDINGS = ("ddp", "fsdp2")
# How a run is computed, not what: a run may go on with other values, and at their defaults no file mentions them.
MEANS = ("accumulate", "checkpointing", "sharding")
NEWER_DIALS = ("pairs", "crowd", "aspects", "film")  # of cameras: newer than some runs


def check_means(accumulate: int, sharding: str) -> None:
    """Raise InputError for what cannot be."""
    if accumulate < 1:
        raise InputError(f"accumulate is {accumulate}; give the number of parts of a step's share, 1 or more.")
    if sharding not in SHARDINGS:
        raise InputError(f"sharding '{sharding}' is unknown; take one of {', '.join(SHARDINGS)}.")


@dataclass(frozen=True)
class LMSizes:
    """Of a decoder trained from nothing: Transformers' Qwen3, small."""

    width: int = 192
    layers: int = 6
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 512
    rope_theta: float = 10_000.0  # the slowest angle turns once in about 2 pi * theta^(1 - 2 / head_dim) tokens


@dataclass(frozen=True)
class TowerStage:
    """First stage: the tower learns to name what is where, per cell, on single frames."""

    steps: int = 3000
    streams: int = 4  # per step
    frames: int = 16  # of each stream, spread over it
    lr: float = 2e-3


@dataclass(frozen=True)
class Phase:
    """A stretch of the second stage with streams of one length."""

    steps: int
    streams: int  # per step, of all processes together
    world: WorldConfig
    camera: CameraConfig | None = None  # besides, streams of fixed cameras
    camera_share: float = 0.5  # of the streams, if there is a camera
    before_weight: float = 0.1  # beside the loss on what changed, of that on what a thing was before: see changes.py


@dataclass(frozen=True)
class Recipe:
    """A run, from nothing to a model folder."""

    name: str
    phases: tuple[Phase, ...]
    plan: DepthPlan = field(default_factory=DepthPlan)
    tower: ConvTowerConfig | dict[str, Any] = field(default_factory=ConvTowerConfig)  # or what tower_from_config takes
    grid: tuple[int, int] = (7, 7)
    lm: LMSizes = field(default_factory=LMSizes)
    settings: StreamSettings = field(default_factory=StreamSettings)
    tower_stage: TowerStage | None = field(default_factory=TowerStage)  # None: the tower can see already
    change_weight: float = 0.5  # of the loss on what changed in each vision token, an aid; 0 = without
    cell_weight: float = 0.0  # of the tower stage's loss while streams are learned, lest the tower forget names
    start: str | None = None  # a model to go on from: its tower, decoder and words, instead of fresh ones
    first: Recipe | None = None  # a run of its own that comes before this one, in FOLDER/first, and gives it its start
    pretrained: tuple[str, str] | None = None  # decoder and tower to begin from (folders or hub ids), a fresh connector
    fresh_experts: bool = False  # leave those of the model to go on from behind: they may have learned otherwise
    as_start: bool = False  # grid, settings, frame rate and picture size are those of that model: see build.like_start
    lora: LoraSettings | None = None  # train LoRA, connector and experts on a model to go on from, and save those alone
    data: str | None = None  # a JSONL file of streams (data/own.py), instead of world streams
    reduction: dict[str, Any] | None = None  # in place while streams are learned, as `Reduction.to_dict` has it
    corrupt: float = 0.0  # share of training streams in which one earlier reply is wrong: see corrupt.py
    misled: float = 0.0  # share of the others in which most earlier replies are
    balance: float = 0.0  # weight of (mean sigma(score) - keep)^2 over all vision tokens, a mean over routed layers
    train_experts: bool = True  # False leaves them as they were drawn: the fault of the authors' snapshot
    keep_warmup: int = 0  # steps of the second stage over which the keep ratio falls from 1 to the plan's
    lr: float = 1e-3
    tower_lr: float = 2e-4  # of the tower in the second stage; 0 = frozen
    warmup: int = 100  # steps
    final_lr: float = 0.05  # cosine down to this share of lr
    weight_decay: float = 0.05
    clip: float = 1.0  # gradient norm
    bf16: bool = True  # autocast, where the device has bf16; weights and optimiser stay in float32
    seed: int = 0
    validate_every: int = 500  # steps
    validation_streams: int = 16
    calibration_streams: int = 32  # of the validation split, at the end
    calibrate_names: bool = True  # for whole sentences; else, of fixed cameras, for kinds and sides: evaluate/events.py
    checkpoint_every: float = 120.0  # seconds
    accumulate: int = 1  # parts in which each process takes its share of a step's streams, one after another
    checkpointing: bool = False  # of gradients: layers are computed again in the backward pass, to save memory
    sharding: str = "ddp"  # among several processes: ddp = each has the whole model, fsdp2 = each has its share of it

    def __post_init__(self) -> None:
        check_means(self.accumulate, self.sharding)
        if self.first is not None and self.start is not None:
            raise InputError(f"the recipe {self.name} has a first run and a start; give it one of the two.")

    @property
    def steps(self) -> int:
        """Of the second stage, all phases."""
        return sum(phase.steps for phase in self.phases)

    def phase_of(self, step: int) -> Phase:
        """The phase of a step of the second stage."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        raise IndexError(step)

    @property
    def has_cameras(self) -> bool:
        """Whether some streams are of fixed cameras."""
        return any(phase.camera is not None for phase in self.phases)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a run remembers them and refuses to go on with others (but see MEANS).

        What is newer than some runs is left out where it is not used, so that those can be gone on with.
        """
        values = dataclasses.asdict(self)
        usual = {field.name: field.default for field in dataclasses.fields(self) if field.name in MEANS}
        newer = [
            (values, "as_start", False),
            (values, "fresh_experts", False),
            (values, "first", None),
            (values, "lora", None),
            (values, "cell_weight", 0.0),
            (values, "misled", 0.0),
            (values, "calibrate_names", True),
            (values, "pretrained", None),
            (values, "reduction", None),
            (values["settings"], "template", "plain"),
            *(
                (phase["camera"], field.name, field.default)
                for phase in values["phases"]
                if phase["camera"] is not None
                for field in dataclasses.fields(CameraConfig)
                if field.name in NEWER_DIALS
            ),
        ]
        for place, name, unused in [*newer, *((values, name, usual[name]) for name in MEANS)]:
            if place[name] == unused:
                del place[name]
        return values
