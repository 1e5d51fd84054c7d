"""The bundled model for fixed cameras: what enters, leaves, is placed and taken away, on which side or where.

It goes on from the model of coloured shapes, which can see already. No real video is seen in training. Four runs, each
of which goes on from the one before: to see (`first`), for half minutes (`longer`), not to believe its own words
(`doubting`), and under any film (`recipe`).
"""

from __future__ import annotations

import dataclasses

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import Phase, Recipe, TowerStage
from videollm_mod.world import WorldConfig
from videollm_mod.world.camera import CameraConfig

TABLES = CameraConfig(seconds=14, events_per_minute=16, questions=2, objects=0.6)
FILMED = dataclasses.replace(TABLES, film=0.6, crowd=0.2, quiet=0.2, objects=0.5)


def recipe() -> Recipe:
    """The last run: cameras of other colours and contrast, more people at once, more streams in which nothing happens.

    The experts begin anew, by the gate that the tables found better, with all tokens kept at first.
    """
    return dataclasses.replace(
        doubting(),
        name="camera",
        first=doubting(),
        plan=DepthPlan(layers="interleaved", keep=0.2, scorer="learned", gate="salience"),
        fresh_experts=True,
        keep_warmup=150,
        tower_lr=3e-4,
        phases=(Phase(800, 4, WorldConfig(seconds=14, events_per_minute=16), FILMED, camera_share=1.0),),
        validate_every=200,
        validation_streams=32,
    )


def doubting() -> Recipe:
    """Most of what it has said may be wrong, in the same few words, so what comes next it has to see.

    Before, one mistake became many: of people it said "placed" to the end of a stream once it had said so. It hardly
    ever said "in the middle", hence more tables. Short streams, for each shows another scene.
    """
    return dataclasses.replace(
        longer(),
        name="camera_doubting",
        start=None,
        first=longer(),
        cell_weight=0.0,
        change_weight=0.0,  # heads that begin anew take longer than this run
        corrupt=0.1,
        misled=0.75,
        lr=7e-4,
        tower_lr=1.5e-4,
        warmup=20,
        phases=(Phase(300, 4, WorldConfig(seconds=14, events_per_minute=16), TABLES, camera_share=1.0),),
        validate_every=150,
        validation_streams=16,
        calibration_streams=48,
        calibrate_names=False,
    )


def longer() -> Recipe:
    """As long at a time as a session remembers, wrong words in the context more often."""
    return dataclasses.replace(
        first(),
        name="camera_longer",
        start=None,
        first=first(),
        tower_stage=None,
        lr=8e-4,
        tower_lr=3e-4,
        corrupt=0.25,
        phases=(_phase(1000, 2, 28, 13),),
        validate_every=250,
    )


def first() -> Recipe:
    """The tower learns what cameras see, on single frames, and does not stop while streams are learned.

    Nothing longer than what it remembers in use, two windows. One stream in twenty is of shapes, so that both worlds'
    words stay words.
    """
    return Recipe(
        name="camera_first",
        start="tiny",
        plan=DepthPlan(layers="interleaved", keep=0.2, scorer="learned", gate="straight"),
        settings=StreamSettings(system="Say what happens.", decide="own", window=14.0),
        tower_stage=TowerStage(steps=2600, streams=8, frames=8, lr=1.5e-3),  # frames of one stream are much alike
        tower_lr=5e-4,
        cell_weight=0.2,
        corrupt=0.15,
        lr=1.2e-3,
        phases=(_phase(1300, 6, 8, 18), _phase(700, 2, 28, 13)),
        validate_every=500,
    )


def _phase(steps: int, streams: int, seconds: float, rate: float) -> Phase:
    return Phase(
        steps,
        streams,
        WorldConfig(seconds=seconds, events_per_minute=rate),
        camera=CameraConfig(seconds=seconds, events_per_minute=rate, questions=6),
        camera_share=0.95,
    )
