"""bench reductions: its cells, its page and its plot; adaptation with a reduction in place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from recipes import reduced
from videollm_mod.bench.reductions import cells, draw_plot
from videollm_mod.bench.reductions_command import BenchReductions, bench_reductions
from videollm_mod.bench.reductions_page import page
from videollm_mod.cli import main
from videollm_mod.model import load
from videollm_mod.reductions import from_dict, methods, parse_reduction
from videollm_mod.train.build import like_start
from videollm_mod.train.loop import train
from videollm_mod.train.recipe import Phase
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig

CELL = {
    "name": "uniform 0.25",
    "keep": 0.25,
    "f1": 0.5,
    "lm_ppl": 1.25,
    "question_accuracy": None,
    "ms_per_frame": 7.5,
    "flops_per_frame": 2_000_000,
    "kv_share": 0.3,
    "signals_ms": 0.1,
    "choice_ms": 0.2,
}
RESULT = {"cells": [CELL], "model": "tiny", "streams": 2, "seconds": 6.0, "cpu": "a CPU", "threads": 1, "torch": "2"}


def test_every_method_is_measured_at_every_share_and_once_with_depth_routing() -> None:
    found = list(cells(BenchReductions(keep=(0.5, 0.1))))
    alone = [cell for cell in found if cell.reduction and cell.plan.layers == "full"]
    paired = [cell for cell in found if cell.reduction and cell.plan.layers != "full"]
    assert len(alone) == 2 * len(methods()) and len(paired) == len(methods())
    assert [cell.name for cell in found if cell.reduction is None] == [
        "dense",
        "depth routing 0.5",
        "depth routing 0.1",
    ]
    assert len({cell.name for cell in found}) == len(found)


def test_the_page_has_a_row_for_every_method_and_no_number_that_was_not_measured() -> None:
    bare = page()
    for name, kind in methods().items():
        assert f"`{name}`" in bare and kind.when in bare
    assert "Not measured yet" in bare and "none compared yet" in bare
    full = page(RESULT, {"DivPrune": {"version": "abc1234", "who is kept": "20 of 20"}}, "reductions.png")
    assert "| uniform 0.25 | 0.500 | 1.250 | - | 7.5 | 0.10 + 0.20 | 2 | 0.30 |" in full
    assert "| DivPrune (abc1234) | who is kept | 20 of 20 |" in full
    assert "(reductions.png)" in full


def test_the_page_in_docs_is_what_the_methods_say() -> None:
    docs = Path(__file__).parents[1] / "docs"
    results = docs / "results" / "bench_reductions.json"
    told = {}
    for path in sorted(docs.glob("results/reduction_fidelity*.json")):
        told |= json.loads(path.read_text())
    result = json.loads(results.read_text()) if results.exists() else None
    plot = "reductions.png" if result else None
    assert (docs / "reductions.md").read_text() == page(result, told, plot), (
        "write it again: videollm-mod bench reductions --page docs/reductions.md --page-only, and so on"
    )


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    draw_plot(RESULT, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    config = BenchReductions(home=tmp_path, page_only=True, only=("uniform",), keep=(0.25,))
    found = bench_reductions(config)
    assert found["cells"] == [] and found["missing"] == 4  # dense, depth routing, uniform, and both


@pytest.mark.slow
def test_a_cell_is_measured_and_then_taken_from_its_file(tmp_path: Path) -> None:
    words = ["--quick", "--only", "uniform", "--keep", "0.25", "--threads", "1", "--home", str(tmp_path)]
    words += [
        "--out",
        str(tmp_path / "all.json"),
        "--page",
        str(tmp_path / "page.md"),
        "--plot",
        str(tmp_path / "p.png"),
    ]
    assert main(["bench", "reductions", *words]) == 0
    first = json.loads((tmp_path / "all.json").read_text())
    by_name = {cell["name"]: cell for cell in first["cells"]}
    dense, reduced = by_name["dense"], by_name["uniform 0.25"]
    assert reduced["kv_share"] < 0.35 and reduced["flops_per_frame"] < 0.6 * dense["flops_per_frame"]
    assert main(["bench", "reductions", *words]) == 0
    assert json.loads((tmp_path / "all.json").read_text()) == first


@pytest.mark.parametrize(
    ("words", "told"),
    [("--only nothing", "is no reduction"), ("--keep 2", "outside"), ("--fidelity gone.json", "is missing")],
)
def test_flags_that_cannot_be_are_refused_before_anything_runs(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "reductions", *words.split()]) == 2
    assert told in capsys.readouterr().err


def test_a_reduction_comes_back_from_plain_values() -> None:
    for name, kind in methods().items():
        one = kind(keep=0.5)
        assert from_dict(json.loads(json.dumps(one.to_dict()))) == one
        assert parse_reduction(f"{name}=0.5") == one.to_dict()
    for wrong, why in (("nothing", "no reduction"), ("uniform=much", "no share"), ("uniform=7", "give a share")):
        with pytest.raises(InputError, match=why):
            parse_reduction(wrong)


@pytest.mark.slow
def test_a_model_learns_with_a_reduction_in_place(tmp_path: Path) -> None:
    short = Phase(2, 1, WorldConfig(seconds=4, events_per_minute=15, questions=2))
    recipe = dataclasses.replace(
        reduced.recipe(),
        start="tiny",
        phases=(short,),
        reduction=parse_reduction("uniform=0.25"),
        validation_streams=1,
        validate_every=2,
        bf16=False,
    )
    model = train(like_start(recipe), tmp_path / "run", workers=0)
    before, after = load("tiny", depth="full"), load(model)
    assert any(
        not torch.equal(p, q) for (_, p), (_, q) in zip(before.lm.named_parameters(), after.lm.named_parameters())
    )
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["reduction"]["name"] == "uniform"
