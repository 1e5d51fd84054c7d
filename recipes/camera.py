"""A model for fixed cameras: what enters, leaves, is placed and taken away, on which side or where.

It learns, from nothing, from generated streams of fixed cameras beside those of coloured shapes, so
that it forgets neither. No real video is seen in training.
"""

from __future__ import annotations

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import LMSizes, Phase, Recipe
from videollm_mod.vision import ConvTowerConfig
from videollm_mod.world import WorldConfig
from videollm_mod.world.camera import CameraConfig


def recipe() -> Recipe:
    """As `tiny`, three streams in four of a camera."""

    def phase(steps: int, streams: int, seconds: float, rate: float) -> Phase:
        return Phase(
            steps,
            streams,
            WorldConfig(seconds=seconds, events_per_minute=rate, questions=8),
            camera=CameraConfig(seconds=seconds, events_per_minute=rate, questions=4),
            camera_share=0.75,
        )

    return Recipe(
        name="camera",
        plan=DepthPlan(layers="interleaved", keep=0.2, scorer="learned", gate="straight"),
        settings=StreamSettings(system="Say what happens.", decide="own"),
        tower=ConvTowerConfig(position=0.5),
        lm=LMSizes(layers=5, rope_theta=1000.0),
        lr=1.5e-3,
        phases=(phase(2400, 6, 12, 18), phase(1200, 2, 30, 14), phase(700, 1, 60, 10)),
        validate_every=400,
    )
