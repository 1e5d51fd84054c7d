"""What lmms-eval finds under the entry-point group `lmms_eval.models`: the model `videollm_mod`. docs/lmms_eval.md.

lmms-eval loads this while it sets up its own list of models, so nothing of it may be imported before `manifest` is
called, and the model itself (lmms_model.py) only when it is asked for.
"""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """Our entry in lmms-eval's registry of models."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        "videollm_mod",
        chat_class_path="videollm_mod.evaluate.lmms_model.StreamingLmms",
        aliases=("videollm-mod",),
    )
