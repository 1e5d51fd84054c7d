"""videollm-mod: streaming video language models with mixture-of-depths vision computation.

    import videollm_mod as vm
    session = vm.StreamSession(vm.load("tiny"))
    for frame in vm.open_video("clip.mp4", fps=2):
        for event in session.push(frame):
            print(event.time, event.text)

Names load on first use, so that `import videollm_mod` and the command line's --help stay quick.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Compose": "reductions",
    "DepthPlan": "depth",
    "Engine": "stream.engine",
    "EngineFull": "stream.engine",
    "Frame": "types",
    "FrameTokens": "types",
    "InputError": "types",
    "LoraSettings": "adapters",
    "QueueFull": "stream.engine",
    "RaggedCache": "depth",
    "Reduction": "reductions",
    "StreamEvent": "types",
    "StreamSession": "stream.session",
    "StreamingVideoLM": "model",
    "apply_depth": "depth",
    "apply_lora": "adapters",
    "connect": "serve.client",
    "load": "model",
    "open_video": "video",
    "remove_depth": "depth",
}

__all__ = sorted([*_HOME, "reductions"])


def __getattr__(name: str) -> Any:
    if name == "reductions":
        return importlib.import_module("videollm_mod.reductions")
    if name not in _HOME:
        raise AttributeError(f"module 'videollm_mod' has no attribute '{name}'")
    return getattr(importlib.import_module(f"videollm_mod.{_HOME[name]}"), name)
