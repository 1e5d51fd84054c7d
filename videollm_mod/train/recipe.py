"""The whole configuration of a run as plain data. A recipe (recipes/*.py) is a function that returns one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.vision import ConvTowerConfig
from videollm_mod.world import WorldConfig


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
    streams: int  # per step
    world: WorldConfig
    before_weight: float = 0.1  # beside the loss on what changed, of that on what a thing was before: see changes.py


@dataclass(frozen=True)
class Recipe:
    """A run, from nothing to a model folder."""

    name: str
    phases: tuple[Phase, ...]
    plan: DepthPlan = field(default_factory=DepthPlan)
    tower: ConvTowerConfig = field(default_factory=ConvTowerConfig)
    grid: tuple[int, int] = (7, 7)
    lm: LMSizes = field(default_factory=LMSizes)
    settings: StreamSettings = field(default_factory=StreamSettings)
    tower_stage: TowerStage = field(default_factory=TowerStage)
    change_weight: float = 0.5  # of the loss on what changed in each vision token, an aid; 0 = without
    lr: float = 1e-3
    tower_lr: float = 2e-4  # of the tower in the second stage; 0 = frozen
    warmup: int = 100  # steps
    final_lr: float = 0.05  # cosine down to this share of lr
    weight_decay: float = 0.05
    clip: float = 1.0  # gradient norm
    bf16: bool = True  # autocast; weights and optimiser stay in float32
    seed: int = 0
    validate_every: int = 500  # steps
    validation_streams: int = 16
    calibration_streams: int = 32  # of the validation split, at the end
    checkpoint_every: float = 120.0  # seconds

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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; a checkpoint remembers them and refuses to go on with others."""
        return dataclasses.asdict(self)
