"""A dense model with a vision transformer, at the scale of the paper's tables: what token reductions are compared on.

Ten of them listen to a vision transformer, which the bundled model's convolutional tower is not. This one is CLIP's
vision model, small: 80 px, patches of 8 px, pooled to 1 + 5x5 tokens a frame; 6 layers of 128. It learns to see
first, and stays as it is when streams are learned, as published towers do.
"""

from __future__ import annotations

import dataclasses

from recipes.tables import base
from videollm_mod.train.recipe import Recipe, TowerStage

CLIP = {
    "kind": "clip",
    "config": {
        "image_size": 80,
        "patch_size": 8,
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "intermediate_size": 384,
    },
}


def recipe() -> Recipe:
    """From nothing, on the coloured shapes' world."""
    return dataclasses.replace(
        base(),
        name="vit",
        tower=CLIP,
        tower_stage=TowerStage(steps=3000, lr=1e-3),
        tower_lr=0.0,
    )
