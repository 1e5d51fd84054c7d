"""The paper's tables: a cell is trained once, its result kept; the page shows what is there and names what is not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from test_train import small_recipe

from recipes import tables
from videollm_mod.depth import DepthPlan
from videollm_mod.evaluate.spread import COUNTS, FORCED, MEANS, estimate
from videollm_mod.model import StreamSettings, load
from videollm_mod.tables.cells import MOD, Cell, all_cells, key, routed
from videollm_mod.tables.claims import Claim, all_claims
from videollm_mod.tables.command import TablesConfig, fill_tables
from videollm_mod.tables.fill import Measure, analytic_cost, fill_base, fill_cell, known, measure_costs, result_path
from videollm_mod.tables.page import read_results, write_page
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.types import InputError

CELLS = {cell.name: cell for cell in all_cells()}
SAID: list[str] = []
WORLD = small_recipe().phases[0].world
FEW = Measure(WORLD, {"hard": dataclasses.replace(WORLD, noise=12)}, calibration=1, test=2)


def small(**changes: object) -> Recipe:
    settings = StreamSettings(system="Say what happens.", decide="own", max_reply_tokens=4)  # untrained models babble
    return dataclasses.replace(small_recipe(plan=DepthPlan("full"), settings=settings), **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.fixture(scope="module")
def base(home: Path) -> Path:
    return fill_base(small(), FEW, home / "runs", home / "results", workers=1, say=SAID.append)


@pytest.mark.slow
def test_the_base_stays_with_the_results_and_is_trained_once(home: Path, base: Path, tmp_path: Path) -> None:
    assert base.is_relative_to(home / "results") and (base.parent / "log.jsonl").exists()
    SAID.clear()
    assert fill_base(small(), FEW, tmp_path, home / "results", workers=1, say=SAID.append) == base
    assert SAID == [] and not list(tmp_path.iterdir())


def test_every_cell_has_a_name_and_a_recipe_of_its_own_and_the_reference_stands_in_every_table() -> None:
    recipes = [cell.recipe(tables.recipe(), Path("base"), 0) for cell in all_cells()]
    assert len({cell.name for cell in all_cells()}) == len({key(recipe) for recipe in recipes}) == len(recipes)
    longer = {"twice the steps", "full, twice"}
    steps = {recipe.name: recipe.steps for recipe in recipes if recipe.start}
    assert {count for name, count in steps.items() if name not in longer} == {tables.recipe().steps}
    assert {steps[name] for name in longer} == {2 * tables.recipe().steps}
    assert [recipe.steps for recipe in recipes if not recipe.start] == [tables.base().steps + tables.recipe().steps]
    assert set(CELLS[MOD].tables) == {table for cell in all_cells() for table in cell.tables}
    assert CELLS["full, pooled 4x5"].recipe(tables.recipe(), Path("base"), 0).grid == (4, 5)


def test_routed_frames_cost_what_frames_of_pooled_tokens_do_between_two_sizes() -> None:
    names = ("full", "full, pooled 4x4", MOD, "full, pooled 4x5")
    recipes = [CELLS[name].recipe(tables.recipe(), Path(), 0) for name in names]
    full, fewer, routed_, more = (
        analytic_cost(dataclasses.replace(recipe, start=None))["train_flops"] for recipe in recipes
    )
    assert 0.85 * routed_ < fewer < routed_ < more < 1.2 * routed_ < 0.8 * full


def test_every_claim_compares_two_cells_that_there_are() -> None:
    assert {name for claim in all_claims() for name in (claim.cell, claim.other)} <= set(CELLS)
    sure = Claim("so", MOD, "full", even=True)
    assert [sure.verdict(*ends) for ends in ((0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1))] == [
        "yes",
        "no loss seen",
        "no, the opposite",
    ]


@pytest.mark.slow
def test_a_cell_is_trained_once_from_its_base_and_its_result_kept(home: Path, base: Path, tmp_path: Path) -> None:
    cell = Cell(MOD, ("plans",), routed(), everywhere=True)
    recipe = cell.recipe(small(), base, seed=1)
    found = fill_cell(cell, recipe, FEW, home, tmp_path, workers=1, say=SAID.append)
    assert json.loads(json.dumps(found)) == json.loads(result_path(tmp_path, cell, 1).read_text())
    assert (found["cell"], found["seed"], found["streams"], len(found["per_stream"]["said"])) == (MOD, 1, 2, 2)
    assert found["recipe"]["start"] == base.parent.name and found["validation"]
    assert found["others"]["hard"]["events"] == found["events"]  # the same stories, drawn otherwise
    for name, (value, _, _) in estimate({1: found}).items():  # what is kept of the streams adds up to the summary
        assert value == pytest.approx(found[name] or 0.0, abs=1e-4), name
    SAID.clear()
    again = fill_cell(cell, recipe, FEW, home, tmp_path, workers=1, say=SAID.append)
    assert again == json.loads(json.dumps(found))
    assert SAID == []  # nothing was done again
    assert known(tmp_path, cell, 1, dataclasses.replace(recipe, lr=0.1), FEW) is None  # it would be another result
    assert known(tmp_path, cell, 1, recipe, dataclasses.replace(FEW, test=3)) is None


@pytest.mark.slow
def test_the_tower_of_a_cell_that_freezes_it_is_its_bases(home: Path, base: Path, tmp_path: Path) -> None:
    cell = Cell("frozen", ("plans",), routed())
    recipe = dataclasses.replace(cell.recipe(small(), base, 0), tower_lr=0.0)
    fill_cell(cell, recipe, FEW, home, tmp_path, workers=1, say=SAID.append)
    folder = next(home.glob("frozen-*"))
    ours, theirs = load(folder / "model").state_dict(), load(base).state_dict()
    same = {name.split(".")[0] for name in theirs if (ours[name] - theirs[name]).abs().max() == 0}
    other = {name.split(".")[0] for name in theirs if (ours[name] - theirs[name]).abs().max() > 0}
    assert "encoder" in same - other and "lm" in other


def test_where_the_base_lies_does_not_matter_to_a_cells_key() -> None:
    one, two = (CELLS[MOD].recipe(tables.recipe(), Path(home) / "base-abc/model", 0) for home in ("out", "elsewhere"))
    other = CELLS[MOD].recipe(tables.recipe(), Path("out/base-xyz/model"), 0)
    assert key(one) == key(two) != key(other)


def test_a_keep_ratio_that_warms_up_ends_at_the_plans() -> None:
    from videollm_mod.train.build import build
    from videollm_mod.train.loop import StreamStage

    stage = StreamStage(build(small(plan=DepthPlan("all", 0.2), keep_warmup=4)), small(keep_warmup=4))
    item = stage.samples()[0]
    ratios = []
    for step in (0, 2, 4, 6):
        stage([item], step)
        ratios.append([layer.depth_ratio for layer in stage.model.lm.model.layers])
    assert ratios == [[1.0] * 2, [pytest.approx(0.6)] * 2, [0.2] * 2, [0.2] * 2]


def test_the_page_shows_what_is_there_and_names_what_is_not(tmp_path: Path) -> None:
    row = {name: [1, 1] for name in (*COUNTS, *FORCED, *MEANS)} | {
        "said": [4, 4],
        "true": [4, 4],
        "time_diff": [0.1, None],
    }
    shares = {"things_chance": 0.2, "things_1": 0.5}
    for name, right in ((MOD, 3), ("full", 2)):
        for seed in (0, 1):
            streams = row | {"right": [right - seed, right]}
            result = {
                "key": "x", "cell": name, "seed": seed, "per_stream": streams, "others": {"hard": {"per_stream": row}},
                "cost": {"train_flops": 50 if name == MOD else 100, "kv_bytes": 10},
                "validation": [{"step": 1, "loss": 2.0} | shares, {"step": 2, "loss": 1.0} | shares],
            }  # fmt: skip
            result_path(tmp_path, CELLS[name], seed).write_text(json.dumps(result))
    page = write_page(tmp_path).read_text()
    assert "| full | 2 | 0.438 [" in page and "-0.250 [-0.250, -0.250]" in page
    assert "0.50 |" in page  # FLOPs of the reference beside full
    assert "Not there yet: early-exit; layer-skip; full, pooled 4x4; full, pooled 4x5." in page
    assert (tmp_path / "policies.png").stat().st_size > 10_000 < (tmp_path / "experts.png").stat().st_size
    value, low, high = estimate(read_results(tmp_path)[MOD])["f1"]
    assert 0.5 <= low < value < high <= 0.75 and value == pytest.approx(0.6875)
    assert "| Routing costs no quality, or raises it | +0.250 [+0.250, +0.250] | 2 | yes |" in page


def test_costs_are_ratios_to_the_dense_cell() -> None:
    shared = small(phases=(Phase(1, 1, small().phases[0].world),))
    recipes = {name: CELLS[name].change(shared) for name in ("full", "early-exit")}
    costs = measure_costs(recipes, "full", 2, SAID.append)
    assert costs["full"]["activation_peak"] == 1 > costs["early-exit"]["activation_peak"]


def test_an_unknown_cell_is_named() -> None:
    with pytest.raises(InputError, match="there is no cell 'fool'; take one of"):
        fill_tables(TablesConfig(only=("fool",)))
