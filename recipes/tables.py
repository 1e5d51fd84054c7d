"""The small scale of the paper's tables: 96 px, 1 + 6x6 tokens a frame, 7 layers of 128.

Seven layers, so that the last one is not routed: no label looks at what it makes of vision tokens. Every cell starts
from the same dense model (`base`), as the paper's start from a pretrained one, and goes on for equally many steps with
its own plan. The tower stays as it is.
"""

from __future__ import annotations

import dataclasses

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import LMSizes, Phase, Recipe
from videollm_mod.vision import ConvTowerConfig
from videollm_mod.world import WorldConfig


def base() -> Recipe:
    """A dense model that has learned to speak."""
    short = WorldConfig(seconds=8, size=96, events_per_minute=18, questions=10)
    return Recipe(
        name="base",
        plan=DepthPlan("full"),
        settings=StreamSettings(system="Say what happens.", decide="own"),
        tower=ConvTowerConfig(image_size=96, position=0.5),
        grid=(6, 6),
        lm=LMSizes(width=128, layers=7, heads=4, mlp=384, rope_theta=1000.0),
        lr=1.5e-3,
        phases=(
            Phase(2400, 6, short),
            Phase(600, 2, dataclasses.replace(short, seconds=24)),
        ),
        validate_every=500,
    )


def recipe() -> Recipe:
    """What all cells share; `videollm_mod/tables/cells.py` gives each its plan, and where its base is."""
    return dataclasses.replace(
        base(),
        name="tables",
        plan=DepthPlan("interleaved", keep=0.2),
        phases=(Phase(600, 3, WorldConfig(seconds=24, size=96, events_per_minute=15, questions=10)),),
        lr=6e-4,
        tower_lr=0.0,
        validate_every=100,
    )
