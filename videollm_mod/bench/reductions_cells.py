"""The cells of `bench reductions`: which methods, at which shares, with which depth plans, as they are and adapted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from videollm_mod.bench.reductions_command import BenchReductions
from videollm_mod.depth import DepthPlan
from videollm_mod.reductions import methods

DENSE, ROUTED = DepthPlan("full"), DepthPlan("interleaved", keep=0.2)
EVEN = DepthPlan("interleaved", keep=0.2, scorer="uniform", gate="identity")


@dataclass(frozen=True)
class Cell:
    """One setting: a reduction, or none, and a depth plan."""

    name: str
    keep: float
    plan: DepthPlan
    reduction: dict[str, Any] | None  # as `Reduction.to_dict` has it
    steps: int = 0  # of adaptation; 0: the model as it is

    @property
    def setting(self) -> list[Any]:
        """What its costs hang on; adapted or not, the sizes are the same."""
        return [self.plan.to_dict(), self.reduction]


def cells(config: BenchReductions, *, experts: bool, blocks: int) -> Iterator[Cell]:
    """No reduction; depth routing; every method by itself; every method with depth routing; then the adapted ones.

    experts: whether the model has learned some. If not, depth routing chooses evenly until it has been adapted.
    blocks: of its tower.
    """
    yield from _cells(config, config.keep, ROUTED if experts else EVEN, blocks)
    if config.adapt:
        yield from _cells(config, (config.pairs,), ROUTED, blocks, steps=config.adapt)


def _cells(
    config: BenchReductions, keeps: tuple[float, ...], routed: DepthPlan, blocks: int, steps: int = 0
) -> Iterator[Cell]:
    yield Cell("dense", 1.0, DENSE, None, steps)
    for keep in keeps:
        yield Cell(f"depth routing {keep:g}", keep, replace(routed, keep=keep), None, steps)
    wanted = [name for name in methods() if not config.only or name in config.only]
    for name in wanted:
        for keep in keeps:
            yield Cell(f"{name} {keep:g}", keep, DENSE, _fitted(name, keep, blocks), steps)
    for name in wanted:
        words = f"{name} {config.pairs:g} + depth routing {routed.keep:g}"
        yield Cell(words, config.pairs, routed, _fitted(name, config.pairs, blocks), steps)


def _fitted(name: str, keep: float, blocks: int) -> dict[str, Any]:
    """A method with its authors' settings. HiPrune's middle layer is the 9th of CLIP's 24: as far into this tower."""
    more = {"layer": max(1, round(9 / 24 * blocks))} if name == "hi_prune" else {}
    return methods()[name](keep=keep, **more).to_dict()
