"""What flags of several commands share: words and limits. Imports no torch, because `--help` reads this module."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

BUNDLED = ("tiny", "camera")  # models that come with the package: for coloured shapes, for fixed cameras
PLANS = "full, all, all-deep, interleaved, interleaved-deep, early-exit, layer-skip, or numbers like 1,3,5"
"""What `--plan` takes, as told in help texts and errors; `depth.plan.parse_layers` reads it."""

POLICY_NAMES = "full, window, carrier or norm"
"""What `--policy` takes, as told in help texts."""
DTYPES = ("float32", "bfloat16", "int8", "int4")
"""What `--dtype` takes: how the decoder's weights are stored; with the last two all else is float32."""
KV_DTYPES = ("int8", "fp8")
"""What `--kv` takes: how keys and values are stored."""
REDUCTION_HELP = (
    "A token reduction by name and share of tokens, such as faster_vlm=0.25; several with + between them; or JSON, for "
    "its other fields. None if not given; docs/reductions.md has them all."
)
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(flag: str, words: str | None) -> int | None:
    """Bytes of "64MB", "1.5 GiB" or "65536"; None stays None. Raises InputError for what is no size from 1 byte on."""
    from videollm_mod.types import InputError

    if words is None:
        return None
    number = words.strip().rstrip("BKMGIbkmgi ")
    unit = words.strip()[len(number) :].strip().upper()
    try:
        size = float(number) * _UNITS[unit]
    except (ValueError, KeyError) as error:
        raise InputError(f"{flag} '{words}' is no size; write for example 64MB or 1.5GiB.") from error
    if not 1 <= size < 2**60:  # also refuses NaN
        raise InputError(f"{flag} '{words}' is out of range; give 1 byte or more.")
    return int(size)


def stored_as(dtype: str, kv: str | None) -> dict[str, Any]:
    """What `load` takes for `--dtype` and `--kv`. Raises InputError for a word that does not exist.

    Warns of bfloat16 where it is slow.
    """
    import torch

    from videollm_mod.arithmetic import NO_BF16, has_bf16
    from videollm_mod.types import InputError

    for flag, word, words in (("--dtype", dtype, DTYPES), ("--kv", kv, (None, *KV_DTYPES))):
        if word not in words:
            raise InputError(f"{flag} '{word}' is unknown; take one of {', '.join(w for w in words if w)}.")
    plain = dtype in ("float32", "bfloat16")
    if dtype == "bfloat16" and not has_bf16():
        warnings.warn(f"{NO_BF16}: bfloat16 halves the weights' memory here and takes many times as long", stacklevel=1)
    return {
        "dtype": getattr(torch, dtype) if plain else torch.float32,
        "weights": None if plain else dtype,
        "kv": kv,
    }


def reduced_by(words: str | None) -> dict[str, Any]:
    """What `load` takes for `--reduction`. Raises InputError for a method or a share that does not exist."""
    from videollm_mod.reductions import parse_reduction

    return {} if words is None else {"reduction": parse_reduction(words)}


def check_least(least: int, **flags: float | None) -> None:
    """Raise InputError for a flag below `least`. None is a flag that was not given."""
    for name, value in flags.items():
        if value is not None and not value >= least:  # also refuses NaN
            raise _refused(name, value, f"is too small; give {least} or more")


def parse_values(flag: str, words: Sequence[str], known: Mapping[str, Any]) -> dict[str, bool | int | float]:
    """{"lr": 0.0005} from ["lr=0.0005"]: each of the type that `known` has under its name, if that is a plain one.

    Raises InputError for another name, another type, and what is negative or not finite.
    """
    from videollm_mod.types import InputError

    plain = {name: type(value) for name, value in known.items() if isinstance(value, bool | int | float)}
    found: dict[str, bool | int | float] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if name not in plain or not equals:
            names = ", ".join(sorted(plain))
            raise InputError(f"{flag} '{word}' sets nothing; give NAME=VALUE, with one of {names}.")
        try:
            value = {"true": True, "false": False}[text.lower()] if plain[name] is bool else plain[name](text)
        except (ValueError, KeyError) as error:
            wanted = {bool: "true or false", int: "a whole number", float: "a number"}[plain[name]]
            raise InputError(f"{flag} {name}={text} is not {wanted}; correct it.") from error
        if not 0 <= value < math.inf:
            raise InputError(f"{flag} {name}={text} is out of range; give a number from 0 on.")
        found[name] = value
    return found


def check_keep(keep: float | None) -> None:
    """Raise InputError for a keep ratio outside (0, 1]."""
    if keep is not None and not 0 < keep <= 1:
        raise _refused("keep", keep, "is outside (0, 1]; 0.2 keeps a fifth of each frame's tokens")


def check_probability(**flags: float | None) -> None:
    """Raise InputError for a flag outside [0, 1]."""
    for name, value in flags.items():
        if value is not None and not 0 <= value <= 1:
            raise _refused(name, value, "is outside [0, 1]; it is a probability")


def _refused(name: str, value: Any, why: str) -> Exception:
    from videollm_mod.types import InputError

    return InputError(f"--{name.replace('_', '-')} {value} {why}.")
