"""A model taught to live with a token reduction: `videollm-mod train reduced --start tiny --reduction uniform=0.25`.

A short adaptation, so that a method is not judged by what it does to a model that never met it. Plan, grid and frame
rate stay dense and as they are; the aid that names what every cell became is off, as most cells are not there.
"""

from __future__ import annotations

from videollm_mod.depth import DepthPlan
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.world import WorldConfig


def recipe() -> Recipe:
    """On the coloured shapes' world, or on one's own videos."""
    return Recipe(
        name="reduced",
        as_start=True,
        tower_stage=None,
        plan=DepthPlan("full"),
        phases=(Phase(300, 2, WorldConfig(seconds=28, events_per_minute=15, questions=10)),),
        lr=2e-4,
        tower_lr=0.0,
        change_weight=0.0,
        weight_decay=0.0,
        validate_every=100,
        calibration_streams=16,
    )
