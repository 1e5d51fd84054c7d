"""What a model and a camera will cost, by arithmetic alone: FLOPs, bytes, the floor of latency, sessions per card.

The decoder only; the vision tower comes on top, once per frame, the same for every plan. A frame is N vision tokens and
an interval token, in a stream whose cache forgets nothing. Floors are those of a perfect machine (roofline: S. Williams
et al. 2009): a step takes at least

    max(bytes read / bandwidth, FLOPs / peak),   bytes read = weights + the caches of the sessions in the step

and S sessions at f frames per second are sustained while that time for all S is at most 1 / f and all fits in memory.
What a real machine adds (launching kernels, activations, growing buffers) is not in here: `bench stream` measures.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

from videollm_mod.bench.cards import Card
from videollm_mod.bench.llms import check_layers, is_causal, on_meta
from videollm_mod.depth import DepthPlan, flops

# Bytes of a number; int4 has a scale of 2 bytes for each group of 64, int8 one for each row, which is nothing.
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5 + 2 / 64}


@dataclass(frozen=True)
class Weights:
    """Bytes of a decoder and its head."""

    stored: float
    read: float  # by one step: the table of embeddings is only looked into, unless it is the head, too


def count_weights(config: Any, dtype: str) -> Weights:
    """Counted on the model itself, on the meta device. Embeddings stay in bf16 where the rest is quantised.

    Raises InputError for a decoder whose layers are not what the formulas of `depth.flops` reckon with.
    """
    total, table, head, tied = _numbers(config.to_json_string(use_diff=False))
    outside = table if tied else table + head  # in bf16, if the rest is smaller
    each = BYTES[dtype]
    ends = max(each, 2.0)
    layers = (total - outside) * each
    return Weights(stored=layers + outside * ends, read=layers + head * ends)


@cache
def _numbers(config: str) -> tuple[int, int, int, bool]:
    """Of a config as JSON: parameters in all, of the embeddings, of the head, and whether those two are one."""
    from transformers import AutoConfig

    read = AutoConfig.for_model(**json.loads(config))
    model = on_meta(read)
    check_layers(read, model)
    total = sum(parameter.numel() for parameter in model.parameters())
    table = model.get_input_embeddings().weight
    if not is_causal(read):
        tied = bool(getattr(read, "tie_word_embeddings", False))
        return total + (0 if tied else table.numel()), table.numel(), table.numel(), tied
    head = model.get_output_embeddings().weight
    return total, table.numel(), head.numel(), table is head


@dataclass(frozen=True)
class Camera:
    """A stream as it comes."""

    tokens: int  # vision tokens of a frame
    fps: float
    hours: float

    @property
    def frames(self) -> int:
        return max(round(self.hours * 3600 * self.fps), 1)


@dataclass(frozen=True)
class Cost:
    """One plan on one camera: a frame's FLOPs and a session's KV bytes."""

    flops_first: int  # of the first frame, which has no past
    flops_last: int  # of the last one
    kv_per_frame: float  # bytes
    kv: float  # bytes of one session at the end
    weights: Weights

    @property
    def flops_mean(self) -> float:
        """Attention grows by the same amount from frame to frame."""
        return (self.flops_first + self.flops_last) / 2

    @classmethod
    def of(cls, config: Any, plan: DepthPlan, camera: Camera, weights: Weights, kv_dtype: str) -> Cost:
        step, past = flops.Step(1, (camera.tokens,), 1), camera.frames - 1
        each = flops.kv_bytes(config, plan, 1, 1, camera.tokens, bytes_per_value=1) * BYTES[kv_dtype]
        entries = flops.kv_entries(config, plan, 1, 1, camera.tokens)  # of one frame in each layer; all are alike
        return cls(
            flops_first=flops.step_flops(config, plan, step),
            flops_last=flops.step_flops(config, plan, step, [past * count for count in entries]),
            kv_per_frame=each,
            kv=each * camera.frames,
            weights=weights,
        )

    def floor(self, card: Card, sessions: int = 1) -> dict[str, Any]:
        """The least time of a step of so many sessions at the end of their streams, and what sets it."""
        parts = {
            "weights": 1e3 * self.weights.read / card.bandwidth,
            "cache": 1e3 * sessions * self.kv / card.bandwidth,
            "FLOPs": 1e3 * sessions * self.flops_last / card.flops,
        }
        reading = parts["weights"] + parts["cache"]
        longest = "weights" if parts["weights"] >= parts["cache"] else "cache"
        return {
            "ms": max(reading, parts["FLOPs"]),
            "bound_by": "FLOPs" if parts["FLOPs"] > reading else longest,
            "ms_of": parts,
        }

    def sessions(self, card: Card, fps: float) -> dict[str, Any]:
        """How many streams of this age a card sustains at `fps`, by each of its limits, and in all."""
        limits = {
            "memory": (card.memory - self.weights.stored) / self.kv,
            "bandwidth": (card.bandwidth / fps - self.weights.read) / self.kv,
            "FLOPs": card.flops / (fps * self.flops_last),
        }
        by = min(limits, key=lambda name: limits[name])
        whole = {name: max(math.floor(limit), 0) for name, limit in limits.items()}
        return {"sustained": whole[by], "limited_by": by, **whole}

    def longest(self, card: Card, fps: float) -> float:
        """Hours of one stream until the card's memory is full."""
        return max(card.memory - self.weights.stored, 0) / self.kv_per_frame / fps / 3600


def predict(
    config: Any, plan: DepthPlan, camera: Camera, sessions: int, card: Card | None, dtype: str, kv_dtype: str
) -> dict[str, Any]:
    """Dense and routed side by side, and what that means in a sentence."""
    weights = count_weights(config, dtype)
    costs = {
        name: Cost.of(config, each, camera, weights, kv_dtype)
        for name, each in (("dense", DepthPlan("full")), ("routed", plan))
    }
    result: dict[str, Any] = {"weights_bytes": weights.stored, "weights_read_per_step": weights.read}
    for name, cost in costs.items():
        result[name] = _told(cost, camera, sessions, card)
    dense, routed = costs["dense"], costs["routed"]
    result["ratio"] = {
        "flops_per_frame": routed.flops_mean / dense.flops_mean,
        "flops_last_frame": routed.flops_last / dense.flops_last,
        "kv_bytes": routed.kv_per_frame / dense.kv_per_frame,
        "bytes_read_last_frame": (weights.read + routed.kv) / (weights.read + dense.kv),
    }
    if card is not None:
        result["ratio"]["latency_floor"] = routed.floor(card)["ms"] / dense.floor(card)["ms"]
        many = {name: cost.floor(card, sessions)["ms"] for name, cost in costs.items()}
        result["ratio"]["latency_floor_of_all_sessions"] = many["routed"] / many["dense"]
        result["statement"] = statement(costs, card, sessions, camera.fps)
    return result


def _told(cost: Cost, camera: Camera, sessions: int, card: Card | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "flops_per_frame": {"first": cost.flops_first, "mean": cost.flops_mean, "last": cost.flops_last},
        "flops_per_second": cost.flops_mean * camera.fps * sessions,
        "kv_bytes_per_frame": cost.kv_per_frame,
        "kv_bytes_per_hour": cost.kv_per_frame * camera.fps * 3600,
        "kv_bytes_per_session": cost.kv,
        "bytes_of_all_sessions": cost.weights.stored + sessions * cost.kv,
    }
    if card is not None:
        told |= {
            "latency_floor": cost.floor(card),
            "latency_floor_of_all_sessions": cost.floor(card, sessions),
            "sessions_per_card": cost.sessions(card, camera.fps),
            "longest_stream_hours": cost.longest(card, camera.fps),
        }
    return told


def statement(costs: dict[str, Cost], card: Card, sessions: int, fps: float) -> str:
    """Whether routing pays here, and why, in plain words."""
    dense, routed = costs["dense"], costs["routed"]
    parts = []
    for count in dict.fromkeys((1, sessions)):
        before, after = dense.floor(card, count), routed.floor(card, count)
        saved = 1 - after["ms"] / before["ms"]
        who = "one session" if count == 1 else f"{count} sessions"
        share = before["ms_of"]["weights"] / before["ms"]
        if before["bound_by"] == "weights":
            why = f"a step is bound by reading the weights ({share:.0%} of its floor), which routing does not change"
        elif before["bound_by"] == "cache":
            why = "a step is bound by reading the caches, of which routed layers hold less"
        else:
            why = "a step is bound by FLOPs, of which routing saves its share until reading is the bound"
        parts.append(f"With {who} {why}: the floor falls by {saved:.0%}.")
    held = {name: cost.sessions(card, fps) for name, cost in costs.items()}
    for name in costs:
        if held[name]["memory"] < sessions:
            parts.append(f"Its memory holds only {held[name]['memory']} of them {name}.")
    parts.append(
        f"At {fps:g} frames per second the card sustains at most {held['dense']['sustained']} such sessions dense "
        f"(limit: {held['dense']['limited_by']}) and {held['routed']['sustained']} routed "
        f"(limit: {held['routed']['limited_by']})."
    )
    return " ".join(parts)
