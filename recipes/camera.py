"""A model for fixed cameras: what enters, leaves, is placed and taken away, on which side or where.

It goes on from the bundled model and sees both worlds, so that it forgets neither. No real video is seen in training.
"""

from __future__ import annotations

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import Phase, Recipe, TowerStage
from videollm_mod.world import WorldConfig
from videollm_mod.world.camera import CameraConfig


def recipe() -> Recipe:
    """The tower learns what cameras see, on single frames; then streams, three in five of a camera."""
    rare = (("cut", 2.0), ("appears", 1.5), ("disappears", 1.5), ("placed", 1.5))

    def phase(steps: int, streams: int, seconds: float, rate: float) -> Phase:
        return Phase(
            steps,
            streams,
            WorldConfig(seconds=seconds, events_per_minute=rate, questions=8, favoured=rare),
            camera=CameraConfig(seconds=seconds, events_per_minute=rate, questions=4),
            camera_share=0.6,
            before_weight=0.3,
        )

    return Recipe(
        name="camera",
        start="tiny",
        plan=DepthPlan(layers="interleaved", keep=0.2, scorer="learned", gate="straight"),
        settings=StreamSettings(system="Say what happens.", decide="own", window=30.0),
        tower_stage=TowerStage(steps=2000, lr=1e-3),
        lr=1e-3,
        phases=(phase(700, 6, 12, 16), phase(700, 2, 30, 12), phase(250, 1, 60, 8), phase(10, 1, 120, 6)),
        validate_every=700,
    )
