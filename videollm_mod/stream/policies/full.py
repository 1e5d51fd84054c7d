"""Forget nothing: exact, and for streams that end."""

from __future__ import annotations

from dataclasses import dataclass

from videollm_mod.stream.memory import Clearing, Memory


@dataclass(frozen=True)
class Full:
    """Memory and time per frame grow with the stream, and so do positions: in the end beyond what a model learned."""

    name = "full"

    def due(self, memory: Memory, now: float) -> bool:
        return False

    def clear(self, room: Clearing) -> None:
        raise AssertionError("what forgets nothing is never asked")
