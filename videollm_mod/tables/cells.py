"""The cells of the tables: one recipe, and what each cell changes in it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recipes.tables import base
from videollm_mod.depth import DepthPlan
from videollm_mod.train.recipe import Recipe

MOD = "interleaved, learned 0.2"  # VideoLLM-MoD as the paper has it; it stands in every table
KEEPS = (0.1, 0.2, 0.3, 0.5)

Change = Callable[[Recipe], Recipe]


@dataclass(frozen=True)
class Cell:
    """One setting: a row of one table, or of several."""

    name: str
    tables: tuple[str, ...]
    change: Change = dataclasses.field(compare=False)
    everywhere: bool = False  # measured in the world's other difficulties, too

    def recipe(self, shared: Recipe, base: Path, seed: int) -> Recipe:
        """What is trained. `base`: the folder of the dense model to start from."""
        return replace(self.change(replace(shared, start=str(base), tower_stage=None, seed=seed)), name=self.name)


def key(recipe: Recipe) -> str:
    """A recipe's fingerprint: a result belongs to its cell only while this is the same."""
    return hashlib.sha256(json.dumps(values_of(recipe), sort_keys=True).encode()).hexdigest()[:12]


def values_of(recipe: Recipe) -> dict[str, Any]:
    """Its plain values, without where its base lies: the base's own key is in the name of its folder."""
    values = recipe.to_dict()
    return values | ({"start": Path(recipe.start).parent.name} if recipe.start is not None else {})


def routed(layers: str = "interleaved", **plan: object) -> Change:
    """The cell's plan, `DepthPlan(layers, keep=0.2, ...)`; without experts where none chooses."""
    usual = {"keep": 0.2, "gate": "salience" if plan.get("scorer", "learned") == "learned" else "identity"}
    return lambda recipe: replace(recipe, plan=DepthPlan(layers, **{**usual, **plan}))  # type: ignore[arg-type]


def untrained(gate: str) -> Change:
    """Experts that stay as they were drawn."""
    return lambda recipe: replace(routed(gate=gate)(recipe), train_experts=False)


def from_scratch(recipe: Recipe) -> Recipe:
    """Routed from the first step on, instead of converted: the steps of the base, then the cell's own."""
    whole = base()
    return replace(
        routed()(recipe),
        start=None,
        tower_stage=whole.tower_stage,
        phases=(*whole.phases, *recipe.phases),
        lr=whole.lr,
        tower_lr=whole.tower_lr,
    )


def pooled(rows: int, columns: int) -> Change:
    """Dense, with fewer tokens of larger cells."""
    return lambda recipe: replace(recipe, plan=DepthPlan("full"), grid=(rows, columns))


def longer(change: Change, times: int = 2) -> Change:
    """For so many times the steps: whether what the tables compare are plateaus."""

    def changed(recipe: Recipe) -> Recipe:
        phases = tuple(replace(phase, steps=times * phase.steps) for phase in recipe.phases)
        return replace(change(recipe), phases=phases, validate_every=times * recipe.validate_every)

    return changed


def all_cells() -> tuple[Cell, ...]:
    """Every cell once, the more telling ones first."""
    found = [
        Cell(MOD, ("policies", "plans", "scorers", "ours"), routed(), everywhere=True),
        Cell("full", ("policies", "plans"), routed("full"), everywhere=True),
        Cell("early-exit", ("policies",), routed("early-exit")),
        Cell("layer-skip", ("policies",), routed("layer-skip")),
        Cell("full, pooled 4x4", ("policies",), pooled(4, 4)),  # of FLOPs a little less than the reference's,
        Cell("full, pooled 4x5", ("policies",), pooled(4, 5)),  # and a little more
    ]
    found += [Cell(name, ("plans",), routed(name)) for name in ("all", "all-deep", "interleaved-deep")]
    for scorer in ("uniform", "random", "learned"):
        for keep in KEEPS:
            if (scorer, keep) != ("learned", 0.2):
                name = f"interleaved, {scorer} {keep:g}"
                found.append(Cell(name, ("scorers",), routed(scorer=scorer, keep=keep)))
    found += [
        Cell("interleaved, untrained 0.2", ("scorers",), untrained("identity")),
        Cell("interleaved, untrained 0.2, gate output", ("scorers",), untrained("output")),  # the authors' snapshot
        Cell("interleaved, oracle 0.2", ("scorers",), routed(scorer="given")),
        Cell("all, oracle 0.2", ("scorers",), routed("all", scorer="given"), everywhere=True),
        Cell("all, uniform 0.2", ("scorers",), routed("all", scorer="uniform"), everywhere=True),
        Cell("all, random 0.2", ("scorers",), routed("all", scorer="random")),
        Cell("keep_last", ("ours",), routed(keep_last=True)),
        Cell("warm-up", ("ours",), lambda recipe: replace(routed()(recipe), keep_warmup=recipe.steps // 3)),
        Cell(
            "gate straight, warm-up",
            ("ours",),
            lambda recipe: replace(routed(gate="straight")(recipe), keep_warmup=recipe.steps // 2),
        ),
        Cell("falling ratio", ("ours",), routed(keep=(0.35, 0.2, 0.05))),
        Cell("reads norm", ("ours",), routed(reads="norm")),
        Cell("gate straight, balance", ("ours",), lambda recipe: replace(routed(gate="straight")(recipe), balance=1.0)),
        Cell("from scratch", ("ours",), from_scratch),
        Cell("wrong words", ("ours",), lambda recipe: replace(routed()(recipe), corrupt=0.5)),
    ]
    found += [
        Cell("twice the steps", ("ours",), longer(routed())),
        Cell("full, twice", ("ours",), longer(routed("full"))),
    ]
    gates = ("straight", "output", "update", "tanh", "relative")
    found += [Cell(f"gate {gate}", ("ours",), routed(gate=gate)) for gate in gates]
    return tuple(found)
