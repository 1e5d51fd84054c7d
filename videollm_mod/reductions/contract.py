"""What base.py asks of a method, checked: once when it goes into a model, and each time that it returns something.

A file in this folder is written by whoever has an idea, so a slip in it is told in one sentence.
"""

from __future__ import annotations

from typing import get_args

from videollm_mod.reductions.base import HERE, STAGES, Reduction, Stage, Streamable, Tokens
from videollm_mod.types import InputError

BETWEEN_CELLS: tuple[str, ...] = ("cls_attention", "received_attention", "tower_attention")
OF_TOWER = (*BETWEEN_CELLS, "tower_keys", "tower_values", "entropy")
INSIDE_TOWER = (*BETWEEN_CELLS, "tower_keys", "tower_values", "tower_cls_values")
HALVES: tuple[str, ...] = ("attention_in", "attention_out", "mlp_in", "mlp_out")
OF_DECODER = ("last_attention", "text_attention", "queries", "keys", *HALVES)
# which signals there are at each stage: of layers given by their numbers, and of the one that has just run (HERE)
NUMBERED: dict[Stage, tuple[str, ...]] = {"frames": OF_TOWER, "tokens": OF_TOWER, "layer": OF_TOWER}
JUST_RUN: dict[Stage, tuple[str, ...]] = {"tower": INSIDE_TOWER, "layer": OF_DECODER, "cache": ("queries", "keys")}


def check_method(part: Reduction) -> None:
    """Raises InputError where a method's class does not keep to the contract, so that it would fail later, or not act.

    What only a model can tell (has its tower such a layer?) is checked by tower.py and decoder.py.
    """
    kind, label = type(part), part.label
    own = [name for name, told in vars(kind).get("__annotations__", {}).items() if "ClassVar" not in str(told)]
    if own and "__dataclass_fields__" not in vars(kind):
        raise InputError(f"{label} has the field '{own[0]}' but is no dataclass; write @dataclass above its class.")
    for word, value, known in (("stage", part.stage, STAGES), ("streamable", part.streamable, get_args(Streamable))):
        if value not in known:
            raise InputError(f"{word} of {label} is {value!r}; take one of {', '.join(known)}.")
    if kind.reduce is Reduction.reduce:
        raise InputError(f"{label} reduces nothing; override reduce.")
    if part.stage in ("tower", "layer") and kind.cuts is Reduction.cuts:
        raise InputError(f"{label} does not say behind which layers it cuts; override cuts.")
    if part.streamable == "whole" and part.stage not in ("frames", "tokens"):
        raise InputError(f"{label} wants the whole video in stage {part.stage}; take the stage frames or tokens.")
    if part.merges and part.stage not in ("tokens", "layer"):
        raise InputError(f"{label} merges in stage {part.stage}, which only prunes; take the stage tokens or layer.")
    for need in part.needs:
        if not (isinstance(need, tuple) and len(need) == 2 and isinstance(need[1], int)):
            raise InputError(f"{label} needs {need!r}; give (name, layer), such as ('cls_attention', -2).")
        name, layer = need
        here, numbered = JUST_RUN.get(part.stage, ()), NUMBERED.get(part.stage, ())
        if name not in here and name not in numbered:
            there = ", ".join((*here, *numbered))
            raise InputError(f"{label} needs {name!r}, which there is not in stage {part.stage}; there are {there}.")
        if (layer == HERE) != (name in here):
            raise InputError(
                f"{label} needs {name} of layer {layer}; in stage {part.stage} it may ask for HERE."
                if name in here
                else f"{label} needs {name} of HERE; in stage {part.stage} give the number of a layer of the tower."
            )


def check_result(part: Reduction, before: Tokens, after: Tokens) -> None:
    """Raises InputError unless what `reduce` returned is one or more tokens, each place once, and no more than declared
    (where the share alone says how many: in stages frames and tokens)."""
    if not isinstance(after, Tokens):
        raise InputError(f"reduce of {part.label} returned {type(after).__name__}; return Tokens, by take or merge.")
    if not len(after):
        raise InputError(f"{part.label} has left no token of a frame; keep one at least.")
    time, row, column = after.positions.unbind(1)
    if len(((time << 24) + (row << 12) + column).unique()) < len(after):
        raise InputError(f"{part.label} returned two tokens in the same place; take each place once.")
    if not part.merges and bool(after.sizes.max() > before.sizes.max()):
        raise InputError(f"{part.label} has merged tokens, but says that it only prunes; say merges = True.")
    if part.stage in ("frames", "tokens") and len(after) > part.count(len(before)):
        raise InputError(
            f"{part.label} has left {len(after)} of {len(before)} tokens, but count says {part.count(len(before))}."
        )
