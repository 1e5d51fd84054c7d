"""The bundled model's second run: half a minute at a time, from what `tiny` gives; half an hour on two cores.

Wrong and missing replies in the context (`corrupt`), for in use the model goes on from its own words.
"""

from __future__ import annotations

import dataclasses

from recipes.tiny import recipe as first
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.world import WorldConfig


def recipe() -> Recipe:
    """What was weak after the first run is drawn more often; what a thing was before weighs more."""
    rare = (("cut", 2.0), ("appears", 1.5), ("disappears", 2.0), ("placed", 2.0))
    world = WorldConfig(seconds=28, events_per_minute=13, questions=10, favoured=rare)
    return dataclasses.replace(
        first(),
        name="tiny_longer",
        start="tiny",  # as it was made: --start with what `train tiny` gave
        seed=1,
        tower_stage=None,
        lr=8e-4,
        corrupt=0.2,
        phases=(Phase(1100, 2, world, before_weight=0.3),),
        validate_every=550,
        calibration_streams=96,  # with 32, neighbouring thresholds tie
    )
