"""What flags of several commands share: words and limits. Imports no torch, because `--help` reads this module."""

from __future__ import annotations

from typing import Any

PLANS = "full, all, all-deep, interleaved, interleaved-deep, early-exit, layer-skip, or numbers like 1,3,5"
"""What `--plan` takes, as told in help texts and errors; `depth.plan.parse_layers` reads it."""


def check_least(least: int, **flags: float | None) -> None:
    """Raise InputError for a flag below `least`. None is a flag that was not given."""
    for name, value in flags.items():
        if value is not None and not value >= least:  # also refuses NaN
            raise _refused(name, value, f"is too small; give {least} or more")


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
