"""The bundled model: watches the synthetic world at 112 px and 1 + 7x7 tokens a frame; 90 minutes on one CPU core."""

from __future__ import annotations

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.world import WorldConfig


def recipe() -> Recipe:
    """Short dense streams first (what an event looks like), then longer ones (what happened before), then a minute."""
    return Recipe(
        name="tiny",
        plan=DepthPlan(layers="interleaved", keep=0.2, scorer="learned", gate="straight", keep_last=True),
        settings=StreamSettings(system="Say what happens."),
        phases=(
            Phase(2200, 6, WorldConfig(seconds=8, events_per_minute=18, questions=4)),
            Phase(1000, 2, WorldConfig(seconds=20, events_per_minute=15, questions=4)),
            Phase(400, 1, WorldConfig(seconds=60, questions=3)),
        ),
    )
