"""The synthetic video world: small videos that are drawn, told and asked about from one exact script."""

from videollm_mod.world.actors import VisibleThing
from videollm_mod.world.config import (
    COLOURS,
    DIFFICULTIES,
    HELD_OUT,
    SHAPES,
    SIZES,
    SPLITS,
    Look,
    WorldConfig,
    difficulty,
)
from videollm_mod.world.matter import matter
from videollm_mod.world.narrated import Narrated, narrations
from videollm_mod.world.questions import WorldQuestion
from videollm_mod.world.stage import WorldEvent
from videollm_mod.world.stream import WorldStream, make_stream, write_stream
from videollm_mod.world.words import all_narrations, all_sentences, split_words, vocabulary

__all__ = [
    "COLOURS",
    "DIFFICULTIES",
    "HELD_OUT",
    "SHAPES",
    "SIZES",
    "SPLITS",
    "Look",
    "Narrated",
    "VisibleThing",
    "WorldConfig",
    "WorldEvent",
    "WorldQuestion",
    "WorldStream",
    "all_narrations",
    "all_sentences",
    "difficulty",
    "make_stream",
    "matter",
    "narrations",
    "split_words",
    "vocabulary",
    "write_stream",
]
