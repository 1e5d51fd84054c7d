"""Layers of a KV cache that store keys and values in eight bits: int8, or fp8 (e4m3), with a scale per head and entry.

x ~ scale * code, scale = max |x| over the head's channels / the largest code. An entry takes (head_dim + 4) bytes per
head for each of key and value instead of 2 or 4 head_dim. Every query sees the rounded keys, also those of its own
step, so that frame by frame still gives what one pass gives, but for a code that falls to the other side of a rounding:
not exact, as the plain cache is. Each reading makes a whole copy of one layer: less memory, not more speed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from videollm_mod.depth.cache import RaggedLayer, Turn, _write
from videollm_mod.types import InputError

KINDS = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}  # the codes' type, the largest of them


def layer_of(kv: str | None) -> RaggedLayer:
    """A cache layer that stores as `kv` says. Raises InputError for another word."""
    if kv is None:
        return RaggedLayer()
    if kv not in KINDS:
        raise InputError(f"a KV cache in '{kv}' is unknown; take one of {', '.join(KINDS)}.")
    return QuantisedLayer(kv)


class QuantisedLayer(RaggedLayer):
    """A `RaggedLayer` whose `keys` and `values` are codes, one byte each, beside `key_scales` and `value_scales`."""

    buffers = ("keys", "values", "key_scales", "value_scales")

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.key_scales: Tensor | None = None  # (batch, heads, capacity, 1) float32
        self.value_scales: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        for name, states in (("key", key_states), ("value", value_states)):
            empty = states.new_empty((*states.shape[:2], 0, states.shape[-1]), dtype=torch.int8)
            setattr(self, f"{name}s", empty)
            setattr(self, f"{name}_scales", empty.new_empty((*states.shape[:2], 0, 1), dtype=torch.float32))

    def reset(self) -> None:
        self.__init__(self.kind)  # type: ignore[misc]

    def _append(self, name: str, states: Tensor, old: list[int], counts: list[int]) -> Tensor:
        codes, scales = quantise(states.detach(), self.kind)
        stored, own = self._grown(name), self._grown(_scales(name))
        _write(stored, codes, old, counts)
        _write(own, scales, old, counts)
        used = max(self.lengths)
        return dequantise(stored[:, :, :used], own[:, :, :used], self.kind, states.dtype)

    def _move(self, row: int, source: Tensor, to: slice, by: Tensor | None, turn: Turn | None) -> None:
        for name in ("keys", "values"):
            codes, scales = getattr(self, name), getattr(self, _scales(name))
            moved, own = codes[row, :, source], scales[row, :, source]
            if name == "keys" and by is not None and turn is not None:  # rounded once more, by half a code at most
                late = by != 0
                states = turn(dequantise(moved[:, late], own[:, late], self.kind, torch.float32), by[late])
                moved[:, late], own[:, late] = quantise(states, self.kind)
            codes[row, :, to], scales[row, :, to] = moved, own

    def stored_keys(self, row: int) -> Tensor:
        used = self.lengths[row]
        assert self.keys is not None and self.key_scales is not None
        return dequantise(self.keys[row, :, :used], self.key_scales[row, :, :used], self.kind, torch.float32)


def quantise(states: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(..., head_dim) -> codes of the same shape, int8 (fp8's bits, too), and scales (..., 1) float32."""
    dtype, most = KINDS[kind]
    states = states.float()
    scales = states.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny * most) / most
    codes: Any = (states / scales).clamp(-most, most)
    codes = codes.round().to(dtype) if dtype == torch.int8 else codes.to(dtype).view(torch.int8)
    return codes, scales


def dequantise(codes: Tensor, scales: Tensor, kind: str, dtype: torch.dtype) -> Tensor:
    """The inverse of `quantise`, as `dtype`."""
    numbers = codes if kind == "int8" else codes.view(KINDS[kind][0])
    return (numbers.float() * scales).to(dtype)


def _scales(name: str) -> str:
    return f"{name[:-1]}_scales"
