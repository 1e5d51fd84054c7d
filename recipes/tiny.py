"""The bundled model: the synthetic world at 112 px, 1 + 7x7 tokens a frame; two hours and forty minutes on two cores.

A token of its own decides when to speak. Five layers, so that the last one is not routed: no label looks at what a last
layer makes of vision tokens, and an expert there would learn nothing.
"""

from __future__ import annotations

import dataclasses

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import LMSizes, Phase, Recipe
from videollm_mod.vision import ConvTowerConfig
from videollm_mod.world import WorldConfig


def recipe() -> Recipe:
    """The second of two runs: half a minute at a time, as much as a session remembers, from what `first` gives.

    What was weak after the first run is drawn more often; what a thing was before weighs more. Wrong and missing
    replies in the context (`corrupt`), for in use the model goes on from its own words.
    """
    rare = (("cut", 2.0), ("appears", 1.5), ("disappears", 2.0), ("placed", 2.0))
    world = WorldConfig(seconds=28, events_per_minute=13, questions=10, favoured=rare)
    return dataclasses.replace(
        first(),
        name="tiny",
        first=first(),
        tower_stage=None,
        lr=8e-4,
        corrupt=0.2,
        phases=(Phase(1100, 2, world, before_weight=0.3),),
        validate_every=550,
        calibration_streams=96,  # with 32, neighbouring thresholds tie
    )


def first() -> Recipe:
    """Short dense streams first (what an event looks like), then longer ones (what happened before), then a minute.

    Many questions: they teach what is where at 12 tokens each, beside 51 for a frame.
    """
    rare = (("cut", 2.0), ("appears", 1.5))  # often taken for each other, and few
    short = WorldConfig(seconds=8, events_per_minute=18, questions=10, favoured=rare)
    return Recipe(
        name="tiny_first",
        plan=DepthPlan(layers="interleaved", keep=0.2, scorer="learned", gate="straight"),
        settings=StreamSettings(system="Say what happens.", decide="own", window=14.0),
        tower=ConvTowerConfig(position=0.5),
        lm=LMSizes(layers=5, rope_theta=1000.0),
        lr=1.5e-3,
        phases=(
            Phase(2000, 6, short),
            Phase(1700, 2, WorldConfig(seconds=24, events_per_minute=15, questions=10, favoured=rare)),
            Phase(700, 1, WorldConfig(seconds=60, questions=6, favoured=rare)),
            Phase(40, 1, WorldConfig(seconds=120, questions=12, favoured=rare)),
        ),
        validate_every=1000,
    )
