"""The core: which vision tokens go through which decoder layer, and a KV cache that follows."""

from videollm_mod.depth.cache import RaggedCache
from videollm_mod.depth.expert import LayerExpert
from videollm_mod.depth.plan import GATES, LAYERS, SCORERS, DepthPlan, keep_count
from videollm_mod.depth.saved import load_experts
from videollm_mod.depth.swap import apply_depth, get_plan, remove_depth
from videollm_mod.depth.vision_language import frame_index_of

__all__ = [
    "GATES",
    "LAYERS",
    "SCORERS",
    "DepthPlan",
    "LayerExpert",
    "RaggedCache",
    "apply_depth",
    "frame_index_of",
    "get_plan",
    "keep_count",
    "load_experts",
    "remove_depth",
]
