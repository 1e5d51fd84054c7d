"""Frames -> tokens: any vision tower -> CLS + pooled grid -> connector to the decoder's width."""

from videollm_mod.vision.config import tower_from_config
from videollm_mod.vision.conv import ConvTower, ConvTowerConfig
from videollm_mod.vision.encoder import Connector, FrameEncoder
from videollm_mod.vision.pixels import normalise
from videollm_mod.vision.published import TransformersTower
from videollm_mod.vision.tower import VisionTower

__all__ = [
    "Connector",
    "ConvTower",
    "ConvTowerConfig",
    "FrameEncoder",
    "TransformersTower",
    "VisionTower",
    "normalise",
    "tower_from_config",
]
