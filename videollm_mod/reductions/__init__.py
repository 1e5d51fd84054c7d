"""Other ways to spend fewer vision tokens, one file each: base.py is the contract, runner.py puts them into a model."""

from typing import Any

from videollm_mod.reductions.base import (
    Compose,
    Reduction,
    Signals,
    Tokens,
    from_dict,
    methods,
    parse_reduction,
    reducing,
)

__all__ = ["Compose", "Reduction", "Signals", "Tokens", "from_dict", "methods", "parse_reduction", "reducing"]


def __getattr__(name: str) -> Any:
    """`reductions.Uniform`: every class in this folder, found by scanning it."""
    for kind in methods().values():
        if kind.__name__ == name:
            return kind
    there = ", ".join(kind.__name__ for kind in methods().values())
    raise AttributeError(f"module 'videollm_mod.reductions' has no attribute '{name}'; its methods are {there}")


def __dir__() -> list[str]:
    return sorted([*__all__, *(kind.__name__ for kind in methods().values())])
