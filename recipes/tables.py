"""The small scale of the paper's tables: 80 px, 1 + 5x5 tokens a frame, 7 layers of 128, streams of 16 s.

Seven layers, so that the last one is not routed: no label looks at what it makes of vision tokens. Every cell starts
from the same dense model (`base`), as the paper's start from a pretrained one, and goes on for equally many steps with
its own plan. The tower stays as it is.
"""

from __future__ import annotations

import dataclasses

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import LMSizes, Phase, Recipe, TowerStage
from videollm_mod.vision import ConvTowerConfig
from videollm_mod.world import WorldConfig, difficulty

# Things as many pixels wide as at the 96 px of a usual scale. Many questions: they teach what is where.
WORLD = WorldConfig(seconds=16, size=80, scale=1.2, events_per_minute=15, questions=10)
TEST_WORLD = dataclasses.replace(WORLD, questions=4)  # what cells are calibrated and measured on
OTHERS = {  # things of the easy one are no larger, for scale goes no higher; those of the hard one are 0.75 as large
    name: dataclasses.replace(
        difficulty(name),
        scale=scale,
        **{dial: getattr(TEST_WORLD, dial) for dial in ("seconds", "size", "events_per_minute", "questions")},
    )
    for name, scale in (("easy", 1.2), ("hard", 0.9))
}


def base() -> Recipe:
    """A dense model that has learned to speak."""
    return Recipe(
        name="base",
        plan=DepthPlan("full"),
        settings=StreamSettings(system="Say what happens.", decide="own"),
        tower=ConvTowerConfig(image_size=80, position=0.5),
        tower_stage=TowerStage(steps=2500),
        grid=(5, 5),
        lm=LMSizes(width=128, layers=7, heads=4, mlp=384, rope_theta=1000.0),
        lr=1.5e-3,
        phases=(
            Phase(1800, 6, dataclasses.replace(WORLD, seconds=8, events_per_minute=18)),
            Phase(1000, 4, WORLD),
        ),
        validate_every=400,
    )


def recipe() -> Recipe:
    """What all cells share; `videollm_mod/tables/cells.py` gives each its plan, and where its base is."""
    return dataclasses.replace(
        base(),
        name="tables",
        plan=DepthPlan("interleaved", keep=0.2),
        phases=(Phase(400, 4, WORLD),),
        lr=6e-4,
        tower_lr=0.0,
        validate_every=50,
        validation_streams=32,
    )
