"""The bundled model for fixed cameras: what enters, leaves, is placed and taken away, on which side or where.

It goes on from the model of coloured shapes, which can see already. No real video is seen in training. Four runs, each
of which goes on from the one before: to see (`first`), half minutes (`longer`), not to believe its own words (`words`),
other cameras (`recipe`).
"""

from __future__ import annotations

import dataclasses

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import Phase, Recipe, TowerStage
from videollm_mod.world import WorldConfig
from videollm_mod.world.camera import CameraConfig

WIDE = ((16, 9), (16, 9), (16, 9), (4, 3), (4, 3), (16, 10), (3, 2), (1, 1))  # as cameras that hang on walls are


def recipe() -> Recipe:
    """The last run: pictures of all tones, more people at a time, more hands at once; half minutes at the end.

    Three names in ten are "something": a sentence begins with the name, and whoever was taken for a bottle was then
    bound to be placed. What something does has to be seen.
    """
    cameras = CameraConfig(questions=2, objects=0.55, pairs=0.25, crowd=0.3, film=0.5, aspects=WIDE)
    return dataclasses.replace(
        words(),
        name="camera",
        first=words(),
        misled=0.6,
        unnamed=0.3,
        tower_lr=2e-4,
        phases=(_only(120, 4, 14, 16, cameras), _only(60, 2, 28, 14, cameras)),
        validate_every=90,
        validation_streams=8,
        calibration_streams=48,
        calibrate_names=False,
    )


def words() -> Recipe:
    """Most of what it has said may be wrong, in the same few words: what comes next it has to see.

    Before, kinds of events came from the words before them: of people it said "placed" to the end of a stream once it
    had said so. Places came late, "in the middle" hardly ever, hence more tables. Short, for each stream is new.
    """
    cameras = CameraConfig(questions=2, objects=0.6)
    return dataclasses.replace(
        longer(),
        name="camera_words",
        first=longer(),
        cell_weight=0.0,
        change_weight=0.0,  # heads that begin anew take longer than this run
        corrupt=0.1,
        misled=0.75,
        lr=7e-4,
        tower_lr=1.5e-4,
        warmup=20,
        phases=(_only(300, 4, 14, 16, cameras),),
        validate_every=150,
        validation_streams=16,
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


def _only(steps: int, streams: int, seconds: float, rate: float, cameras: CameraConfig) -> Phase:
    """Cameras alone."""
    camera = dataclasses.replace(cameras, seconds=seconds, events_per_minute=rate)
    world = WorldConfig(seconds=seconds, events_per_minute=rate)
    return Phase(steps, streams, world, camera=camera, camera_share=1.0)
