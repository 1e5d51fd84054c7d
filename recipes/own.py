"""The bundled model taught on videos of one's own: `videollm-mod train own --data FILE.jsonl`.

The words of the file are added to the model's. One video in ten is held out for validation and for the threshold.
"""

from __future__ import annotations

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.world import WorldConfig


def recipe() -> Recipe:
    """Stretches of half a minute; the tower learns along, slowly.

    The experts begin anew, and layers keep all tokens at first: those of the bundled models learned what to avoid, by
    another gate, and of a token that is not kept nobody learns how much it matters.
    """
    return Recipe(
        name="own",
        start="tiny",
        tower_stage=None,
        plan=DepthPlan(layers="interleaved", keep=0.2),
        settings=StreamSettings(system="Say what happens.", decide="own", window=15.0),
        phases=(Phase(800, 2, WorldConfig(seconds=30)),),
        fresh_experts=True,
        keep_warmup=200,
        lr=4e-4,
        corrupt=0.3,
        validate_every=100,
        calibration_streams=16,
    )
