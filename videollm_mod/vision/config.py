"""A tower's configuration, plain JSON -> the tower; what does not fit is told by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from videollm_mod.types import InputError
from videollm_mod.vision.conv import ConvTower, ConvTowerConfig
from videollm_mod.vision.published import FAMILIES, TransformersTower
from videollm_mod.vision.tower import VisionTower


def tower_from_config(config: dict[str, Any]) -> VisionTower:
    """Builds the tower that `to_config` described, with random weights. Raises InputError when it cannot."""
    if not isinstance(config, dict):
        raise InputError(f'tower is {config!r}; give an object, such as {{"kind": "conv"}}.')
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    kind = settings.pop("kind", None)
    if kind == "conv":
        _check_entries(settings, _CONV_ENTRIES)
        return ConvTower(ConvTowerConfig(**settings))
    if not isinstance(kind, str) or kind not in FAMILIES:
        known = ", ".join(f'"{name}"' for name in ("conv", *FAMILIES))
        raise InputError(f"tower kind is {config.get('kind')!r}; choose one of {known}.")
    _check_entries(settings, _FAMILY_ENTRIES)
    if "config" not in settings:
        raise InputError(f"the {kind} tower lacks 'config'; give {_FAMILY_ENTRIES['config'][1]}.")
    sizes = settings.pop("config")
    try:
        return TransformersTower.build(FAMILIES[kind].config(**sizes), **settings)
    except InputError:
        raise
    except Exception as error:  # Transformers checks little: a bad size shows as whatever it breaks
        raise InputError(
            f"tower.config describes no {kind} tower that Transformers can build; compare its sizes with a saved one."
        ) from error


def _numbers(value: Any, least: float, kinds: tuple[type, ...] = (int,)) -> bool:
    """Whether a value is three numbers, none below `least`."""
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(v) in kinds and v >= least for v in value)


_Entries = dict[str, tuple[Callable[[Any], bool], str]]  # entry -> whether a value fits, and what to give instead
_CONV_ENTRIES: _Entries = {
    "image_size": (lambda v: type(v) is int, "a multiple of 16, in pixels"),
    "channels": (lambda v: _numbers(v, 1), "three whole numbers, such as [32, 64, 128]"),
    "blocks": (lambda v: _numbers(v, 0), "three whole numbers, such as [1, 1, 1]"),
    "heads": (lambda v: type(v) is int, "a whole number that divides the last of its channels"),
    "position": (lambda v: type(v) in (int, float) and 0 <= v < float("inf"), "a number of 0 or more"),
}
_FAMILY_ENTRIES: _Entries = {
    "config": (lambda v: isinstance(v, dict), "an object, the configuration of its Transformers model"),
    "image_size": (lambda v: type(v) is int and v > 0, "the side of its square input, in pixels"),
    "resize": (lambda v: v in ("stretch", "crop"), '"stretch" or "crop"'),
    "filter": (lambda v: v in ("bilinear", "bicubic"), '"bilinear" or "bicubic"'),
    "shorter_side": (lambda v: type(v) is int and v > 0, "the shorter side before the middle is cut out, in pixels"),
    "mean": (lambda v: _numbers(v, float("-inf"), (int, float)), "three numbers, one per colour"),
    "std": (lambda v: _numbers(v, 1e-6, (int, float)), "three numbers above 0, one per colour"),
}


def _check_entries(settings: dict[str, Any], entries: _Entries) -> None:
    """Raise InputError for an entry of a tower's configuration that is unknown or cannot be."""
    for name, value in settings.items():
        if name not in entries:
            raise InputError(f"tower has an unknown entry '{name}'; it may have {', '.join(entries)}.")
        fits, mend = entries[name]
        if not fits(value):
            raise InputError(f"tower.{name} is {list(value) if isinstance(value, tuple) else value!r}; give {mend}.")
