"""The camera world: fixed cameras see people, cars and hands with objects, drawn and told from one exact script."""

from videollm_mod.world.camera.actors import VisibleActor
from videollm_mod.world.camera.config import KINDS, NAMES, PLACES, SIDES, SPLITS, CameraConfig
from videollm_mod.world.camera.questions import CameraQuestion
from videollm_mod.world.camera.story import CameraEvent
from videollm_mod.world.camera.stream import CameraStream, make_camera_stream
from videollm_mod.world.camera.words import all_camera_sentences, narration, parse

__all__ = [
    "KINDS",
    "NAMES",
    "PLACES",
    "SIDES",
    "SPLITS",
    "CameraConfig",
    "CameraEvent",
    "CameraQuestion",
    "CameraStream",
    "VisibleActor",
    "all_camera_sentences",
    "make_camera_stream",
    "narration",
    "parse",
]
