"""`videollm-mod tables`: fills the paper's tables cell by cell, and draws their page; goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from videollm_mod.flags import check_least


@dataclass(frozen=True)
class TablesConfig:
    """Which cells."""

    only: tuple[str, ...] = ()
    """Names of cells, such as "full"; all of them if not given."""
    tables: tuple[Literal["policies", "plans", "scorers", "ours"], ...] = ("policies", "plans", "scorers", "ours")
    """The tables whose cells are filled."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each cell is trained once with each of them."""
    home: Path = Path("out/tables")
    """Runs and their checkpoints."""
    results: Path = Path("docs/results/tables")
    """One JSON file per cell and seed; the dense model that all start from; the page."""
    workers: int = 1
    """Processes that draw frames, and that watch streams when a cell is measured."""
    threads: int = 1
    """CPU threads of the training itself."""
    costs: bool = False
    """Measure step time and activation peak of every cell, on a machine that does nothing else; trains nothing."""
    page: bool = False
    """Draw the page of what is there; trains nothing."""


def fill_tables(config: TablesConfig) -> dict[str, Any]:
    """Run the command; returns what is there and what is missing. Raises InputError for what the user can mend."""
    check_least(1, threads=config.threads)
    check_least(0, workers=config.workers, seeds=min(config.seeds, default=0))
    import torch
    from rich.console import Console

    from recipes.tables import OTHERS, TEST_WORLD, base, recipe
    from videollm_mod.bench.measure import rounded
    from videollm_mod.files import atomic_write
    from videollm_mod.tables.cells import all_cells
    from videollm_mod.tables.fill import Measure, base_path, fill_base, fill_cell, is_current, known, measure_costs
    from videollm_mod.tables.page import write_page
    from videollm_mod.train.recipe import Recipe
    from videollm_mod.types import InputError

    torch.set_num_threads(config.threads)
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    cells = all_cells()
    unknown = set(config.only) - {cell.name for cell in cells}
    if unknown:
        raise InputError(f"there is no cell '{min(unknown)}'; take one of {', '.join(cell.name for cell in cells)}.")
    wanted = [
        cell
        for cell in cells
        if set(cell.tables) & set(config.tables) and (not config.only or cell.name in config.only)
    ]
    measure = Measure(TEST_WORLD, OTHERS)
    start = base_path(base(), config.results)
    if not config.page:
        fill_base(base(), measure, config.home, config.results, workers=config.workers, say=say)

    def recipe_of(number: int, seed: int) -> Recipe:
        return wanted[number].recipe(recipe(), start, seed)

    if config.costs:
        recipes = {cell.name: dataclasses.replace(recipe_of(n, 0), start=None) for n, cell in enumerate(wanted)}
        config.results.mkdir(parents=True, exist_ok=True)
        with atomic_write(config.results / "costs.json") as file:
            file.write(json.dumps(rounded(measure_costs(recipes, "full", 5, say)), indent=1) + "\n")
    elif not config.page:
        for seed in config.seeds:
            for number, cell in enumerate(wanted):
                own, workers = recipe_of(number, seed), max(config.workers, 1)
                fill_cell(cell, own, measure, config.home, config.results, workers=workers, say=say)

    def current(result: dict[str, Any]) -> bool:
        seed, of = result["seed"], next((cell for cell in cells if cell.name == result["cell"]), None)
        return of is not None and is_current(result, of.recipe(recipe(), start, seed), measure)

    page = write_page(config.results, current)
    all_of_them = [(number, seed) for number in range(len(wanted)) for seed in config.seeds]
    there = [known(config.results, wanted[n], seed, recipe_of(n, seed), measure) is not None for n, seed in all_of_them]
    return {"cells": len(there), "there": sum(there), "page": str(page)}
