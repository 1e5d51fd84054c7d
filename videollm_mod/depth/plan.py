"""Which decoder layers route their vision tokens, and how many of them each keeps.

A plan is data: it names layers, a keep ratio, who scores the tokens and what the score does to a kept one.
Names and layer sets follow VideoLLM-MoD (arXiv 2408.16730, section 3.3 and its ablations); 0-based, L layers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from videollm_mod.flags import PLANS
from videollm_mod.types import InputError

LAYERS = ("full", "all", "all-deep", "interleaved", "interleaved-deep", "early-exit", "layer-skip")
SCORERS = ("learned", "random", "uniform", "given")
READS = ("input", "norm")
GATES = ("identity", "output", "update", "tanh", "straight", "relative", "salience")
GRADIENT_GATES = ("straight", "relative", "salience")  # they leave a layer as it is, and only carry a gradient


def keep_count(ratio: float, tokens: int) -> int:
    """k = ceil(ratio * tokens). Rounded first, because 0.14 * 50 is 7.000000000000001 in floating point."""
    return max(math.ceil(round(ratio * tokens, 9)), 1 if ratio > 0 else 0)


@dataclass(frozen=True)
class DepthPlan:
    """A mixture-of-depths plan; the same for every model, resolved against its number of layers L.

    layers      `all` 0..L-1, `all-deep` 2..L-1, `interleaved` 1,3,.., `interleaved-deep` 3,5,.., or explicit numbers.
                Baselines of the paper: `full` routes nothing; `early-exit`: no vision token enters a layer from
                `exit_after` on; `layer-skip`: no vision token enters an odd layer.
    keep        share of each frame's vision tokens that a routed layer keeps, in (0, 1]; or one share per routed layer.
                The baselines that keep none ignore it.
    scorer      who is kept: `learned` (the LayerExpert's score), `random` (a hash of frame, token and layer: the same
                set when streamed and in one pass), `uniform` (evenly spaced), `given` (by the caller: `token_scores`).
    gate        what the expert's score s does to a kept vision token, x -> y being the decoder layer, f = y - x:
                `output` sigma(s) y · `update` x + sigma(s) f · `tanh` x + (1 + 0.2 tanh(s)) f · `straight` y, with the
                gradient of sigma(s) f · `relative` y, with the gradient of (s - mean s of all kept) f: a score rises
                only at the cost of others · `salience` y; the scores of a frame's kept tokens learn how far each moves
                the loss, whichever way (salience.py) · `identity` y, and no gradient for the expert. Text is never
                scaled.
    reads       what the expert scores: the hidden states as they enter the layer (`input`, as the paper has it), or
                after the layer's own first norm (`norm`).
    keep_last   always keep a frame's last token, which decides whether to speak; it takes one of the k places.
    exit_after  for `early-exit`: the number of layers that vision tokens go through; half of them if None.
    seed        of the `random` scorer.
    """

    layers: str | tuple[int, ...] = "interleaved"
    keep: float | tuple[float, ...] = 0.2
    scorer: str = "learned"
    gate: str = "salience"
    reads: str = "input"
    keep_last: bool = False
    exit_after: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            if self.layers not in LAYERS:
                raise InputError(f"plan layers '{self.layers}' are unknown; take one of {', '.join(LAYERS)} or a list.")
        else:  # lists come out of JSON; the plan stays hashable
            object.__setattr__(
                self, "layers", _tuple_of(int, self.layers, "layers", "a name, or a list such as (1, 3)")
            )
        if not _is(float, self.keep):
            ratios = _tuple_of(float, self.keep, "keep", "a number in (0, 1], or one per routed layer")
            object.__setattr__(self, "keep", ratios)
        for ratio in self.keep if isinstance(self.keep, tuple) else (self.keep,):
            if not 0 < ratio <= 1:  # also refuses NaN
                raise InputError(f"keep ratio {ratio} is outside (0, 1]; 0.2 keeps a fifth of each frame's tokens.")
        if isinstance(self.keep, tuple) and isinstance(self.layers, tuple) and list(self.layers) != sorted(self.layers):
            raise InputError(f"plan layers {self.layers} do not rise; order them, and the keep ratios with them.")
        if self.scorer not in SCORERS:
            raise InputError(f"scorer '{self.scorer}' is unknown; take one of {', '.join(SCORERS)}.")
        if self.gate not in GATES:
            raise InputError(f"gate '{self.gate}' is unknown; take one of {', '.join(GATES)}.")
        if self.reads not in READS:
            raise InputError(f"an expert cannot read '{self.reads}'; take one of {', '.join(READS)}.")

    def routed(self, num_layers: int) -> tuple[int, ...]:
        """The numbers of the routed layers of a model with `num_layers` layers, in order."""
        if not isinstance(self.layers, str):
            wrong = [layer for layer in self.layers if not 0 <= layer < num_layers]
            if wrong:
                raise InputError(
                    f"the plan names layer {wrong[0]}, but the model has layers 0 to {num_layers - 1}; "
                    "name some of those."
                )
            return tuple(sorted(set(self.layers)))
        first, step = {
            "full": (num_layers, 1),
            "all": (0, 1),
            "all-deep": (2, 1),
            "interleaved": (1, 2),
            "interleaved-deep": (3, 2),
            "early-exit": (self.exit_after if self.exit_after is not None else num_layers // 2, 1),
            "layer-skip": (1, 2),
        }[self.layers]
        if self.layers == "early-exit" and not 0 <= first <= num_layers:
            raise InputError(
                f"exit_after is {first}, but the model has only {num_layers} layers; give 0 to {num_layers}."
            )
        return tuple(range(first, num_layers, step))

    def ratios(self, num_layers: int) -> tuple[float | None, ...]:
        """Keep ratio of each layer; None where the layer is not routed, 0.0 where the baselines keep no vision."""
        routed = self.routed(num_layers)
        if self.layers in ("early-exit", "layer-skip"):
            per_layer = (0.0,) * len(routed)
        elif isinstance(self.keep, tuple):
            per_layer = self.keep
            if len(per_layer) != len(routed):
                raise InputError(
                    f"the plan has {len(per_layer)} keep ratios for {len(routed)} routed layers: {routed}; give one "
                    "for each of them, or one number for all."
                )
        else:
            per_layer = (float(self.keep),) * len(routed)
        by_layer = dict(zip(routed, per_layer))
        return tuple(by_layer.get(layer) for layer in range(num_layers))

    @property
    def has_experts(self) -> bool:
        """Whether routed layers carry a LayerExpert: it picks, or it gates, or both."""
        return self.layers not in ("early-exit", "layer-skip") and (self.scorer == "learned" or self.gate != "identity")

    @property
    def gate_acts(self) -> bool:
        """Whether kept tokens need a score now: a gate that only carries a gradient does nothing where none is."""
        if self.gate in GRADIENT_GATES and not torch.is_grad_enabled():
            return False
        return self.has_experts and self.gate != "identity"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DepthPlan:
        """The inverse of `to_dict`; an unknown key is an error, not silently dropped."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise InputError(f"the depth plan has an unknown entry '{sorted(unknown)[0]}'; remove it or upgrade.")
        return cls(**values)


def _is(kind: type, value: Any) -> bool:
    """Whether a value is an int (`kind` int), or an int or float (`kind` float); True and False are neither."""
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)


def _tuple_of(kind: type, values: Any, name: str, mend: str) -> tuple[Any, ...]:
    if not isinstance(values, list | tuple) or not all(_is(kind, value) for value in values):
        raise InputError(f"the plan's {name} is {values!r}; give {mend}.")
    return tuple(values)


def parse_layers(words: str | None) -> str | tuple[int, ...] | None:
    """What a person types for `--plan`: a name, or "1,3,5" -> (1, 3, 5). None stays None; raises InputError (PLANS)."""
    if words is None or words in LAYERS:
        return words
    if not words or set(words) - set("0123456789, "):
        raise InputError(f"--plan '{words}' is unknown; take {PLANS}.")
    try:
        return tuple(int(number) for number in words.split(","))
    except ValueError as error:
        raise InputError(f"--plan '{words}' is not a list of layers; write for example 1,3,5.") from error
