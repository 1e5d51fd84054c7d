"""What the fronts of the benches share: a decoder's sizes, what is refused, threads, where a result goes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videollm_mod.flags import check_keep, check_least

THREADS = min(2, os.cpu_count() or 1)


@dataclass(frozen=True)
class DecoderSizes:
    """A Llama-like decoder with random weights, and how it is measured."""

    width: int = 1024
    """Hidden size d."""
    inner: int = 2816
    """Width of the gated MLP."""
    layers: int = 16
    """Decoder layers."""
    heads: int = 16
    """Attention heads, of queries and of keys."""
    vocabulary: int = 4096
    """Words that the decoder knows; they weigh in the logits."""
    threads: int = THREADS
    """CPU threads of PyTorch."""
    quick: bool = False
    """A small model and little work, to see that it works; its ratios mean nothing."""
    out: Path | None = None
    """Write the JSON here, too."""


def on_threads(threads: int, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)


def finished(config: Any, result: dict[str, Any]) -> dict[str, Any]:
    """The result, rounded, and written where it was asked for."""
    from videollm_mod.bench.measure import progress, rounded

    result = rounded(result)
    quick = getattr(config, "quick", None)
    if quick is not None:
        result["quick"] = quick
    if quick:
        progress("--quick: the ratios above mean nothing; leave --quick out to measure")
    keep(config, result)
    return result


def keep(config: Any, result: dict[str, Any]) -> None:
    """Write a result where it was asked for."""
    from videollm_mod.bench.measure import rounded
    from videollm_mod.files import atomic_write

    if config.out is not None:
        with atomic_write(config.out) as file:
            file.write(json.dumps(rounded(result), indent=2) + "\n")


def refuse_nonsense(config: Any) -> None:
    """Before minutes are spent: numbers that cannot be, words that nobody knows, a folder that is missing."""
    from videollm_mod.depth.plan import DepthPlan, parse_layers
    from videollm_mod.files import check_writable
    from videollm_mod.types import InputError

    values = asdict(config)
    for name, value in values.items():
        if isinstance(value, tuple):
            if not value:
                raise InputError(f"--{name} is empty; give one value or more.")
            if all(isinstance(each, int) for each in value):
                check_least(1, **{name: min(value)})
        elif type(value) is int:
            check_least(0 if name == "threads" and "codecs" in values else 1, **{name: value})
    for name in ("fps", "hours", "seconds"):
        value = values.get(name)
        if value is not None and not 0 < value < 1e6:  # also refuses NaN
            raise InputError(f"--{name} {value:g} is out of range; give a number above 0.")
    check_keep(values.get("keep"))
    if isinstance(config, DecoderSizes):
        _refuse_heads(config)
    if "plan" in values and "layers" in values:
        layers = parse_layers(config.plan)
        assert layers is not None  # only None stays None
        DepthPlan(layers, config.keep).routed(_layers(config))
    if "routes" in values:
        _refuse_routes(config)
    if "device" in values:
        _refuse_device(config.device, config.dtype)
    if config.out is not None:
        check_writable(config.out)


def _refuse_heads(config: DecoderSizes) -> None:
    from videollm_mod.types import InputError

    if not getattr(config, "llm", "") and config.width % (2 * config.heads):
        raise InputError(
            f"--width {config.width} does not split into {config.heads} heads of even size; "
            f"give a multiple of {2 * config.heads}, or other --heads."
        )


def _layers(config: Any) -> int:
    """Of the decoder that is asked for."""
    if not getattr(config, "llm", ""):
        return int(config.layers)
    from videollm_mod.bench.llms import llm_config

    return int(llm_config(config.llm).num_hidden_layers)


def _refuse_routes(config: Any) -> None:
    """Plans that name a layer that the model has not."""
    from videollm_mod.bench.models import parse_route
    from videollm_mod.types import InputError

    for word in config.routes:
        parse_route(word).ratios(_layers(config))
    if len(set(config.routes)) < len(config.routes):
        raise InputError(f"--routes {' '.join(config.routes)} names a plan twice; name each once.")


def _refuse_device(device: str, dtype: str) -> None:
    import torch

    from videollm_mod.types import InputError

    if device not in ("cpu", "cuda"):
        raise InputError(f"--device '{device}' is unknown; take cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no such device here; take cpu.")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise InputError(f"--dtype '{dtype}' is unknown; take float32, bfloat16 or float16.")
