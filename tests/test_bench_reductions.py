"""bench reductions: its cells, its page and its plot; adaptation with a reduction in place."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes import reduced, vit
from videollm_mod.bench.reductions_cells import Cell, cells
from videollm_mod.bench.reductions_command import BenchReductions, bench_reductions
from videollm_mod.bench.reductions_costs import measure_kept
from videollm_mod.bench.reductions_page import _of_transformers, page
from videollm_mod.bench.reductions_plot import _label, draw_plot
from videollm_mod.cli import main
from videollm_mod.depth import DepthPlan
from videollm_mod.model import load
from videollm_mod.reductions import Signals, Tokens, from_dict, methods, parse_reduction
from videollm_mod.train.build import build, like_start
from videollm_mod.train.loop import train
from videollm_mod.train.recipe import LMSizes, Phase
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig

FREE: dict[str, Any] = {
    "name": "uniform 0.25",
    "keep": 0.25,
    "plan": DepthPlan("full").to_dict(),
    "reduction": methods()["uniform"](keep=0.25).to_dict(),
    "steps": 0,
    "f1": 0.5,
    "f1_difference": [-0.25, -0.3, -0.2],
    "lm_ppl": 1.25,
    "question_accuracy": None,
    "ms_per_frame": 14.0,
    "ms_dense": 25.0,
    "time_share": 0.5,
    "flops_share": 0.4,
    "kv_share": 0.3,
    "signals_ms": 0.1,
    "choice_ms": 0.2,
    "kept": 0.28,
    "things": 0.75,
}
ADAPTED: dict[str, Any] = {
    **FREE,
    "steps": 100,
    "f1": 0.75,
    "f1_difference": [0.0, -0.1, 0.1],
    "lm_ppl": 1.125,
    "question_accuracy": 0.5,
}
RESULT = {
    "cells": [FREE, ADAPTED],
    "model": "tiny",
    "streams": 2,
    "seconds": 6.0,
    "dials": ["scale=1.2"],
    "adapt": 100,
    "costs": {"cpu": "a CPU", "threads": 1, "torch": "2"},
}


def test_every_method_is_measured_at_every_share_with_depth_routing_and_both_adapted() -> None:
    found = list(cells(BenchReductions(keep=(0.5, 0.1), pairs=0.25, adapt=7), experts=False, blocks=6))
    count = len(methods())
    free, adapted = ([cell for cell in found if cell.steps == steps] for steps in (0, 7))
    for some, shares, scorer in ((free, (0.5, 0.1), "uniform"), (adapted, (0.25,), "learned")):
        alone = [cell for cell in some if cell.reduction and cell.plan.layers == "full"]
        paired = [cell for cell in some if cell.reduction and cell.plan.layers != "full"]
        assert len(alone) == len(shares) * count and len(paired) == count
        assert {cell.plan.scorer for cell in paired} == {scorer}, "no expert has learned before there was any training"
        bare = [cell.name for cell in some if cell.reduction is None]
        assert bare == ["dense", *(f"depth routing {share:g}" for share in shares)]
        assert len({cell.name for cell in some}) == len(some)
    assert len(found) == len(free) + len(adapted)
    assert not any(cell.steps for cell in cells(BenchReductions(adapt=0), experts=True, blocks=6))
    experienced = cells(BenchReductions(), experts=True, blocks=6)
    assert {cell.plan.scorer for cell in experienced if cell.plan.layers != "full"} == {"learned"}
    layers = [cell.reduction["layer"] for cell in found if cell.reduction and cell.reduction["name"] == "hi_prune"]
    assert set(layers) == {2}, "9 of 24, in a tower of 6"


def test_the_page_has_a_row_for_every_method_and_no_number_that_was_not_measured() -> None:
    bare = page()
    for name, kind in methods().items():
        assert f"`{name}`" in bare and kind.when in bare
    assert "Not measured yet" in bare and "none compared yet" in bare
    full = page(RESULT, {"DivPrune": {"version": "abc1234", "who is kept": "20 of 20"}}, "reductions.png")
    row = "| uniform 0.25 | 0.500 | -0.250 [-0.300, -0.200] | 0.750 | +0.000 [-0.100, +0.100] | 1.250 | 1.125 | - |"
    assert f"{row} 0.500 | 0.28 | 0.75 | 12.5 | 0.50 | 0.1 + 0.2 | 0.40 | 0.30 |" in full
    assert "evenly spaced" not in full
    routed = {**FREE, "plan": DepthPlan("interleaved", 0.2, scorer="uniform", gate="identity").to_dict()}
    assert "evenly spaced" in page({**RESULT, "cells": [routed]})
    assert "| DivPrune (abc1234) | who is kept | 20 of 20 |" in full
    assert "(reductions.png)" in full


@pytest.mark.parametrize(
    "name, keep, share", [("uniform", 0.5, 0.5), ("matryoshka", 1.0, 1.0), ("quick_video", 0.5, None)]
)
def test_it_is_counted_what_is_kept_of_all_cells_and_of_those_with_things(
    name: str, keep: float, share: float | None
) -> None:
    cell = Cell(name, keep, DepthPlan("full"), methods()[name](keep=keep).to_dict())
    found = measure_kept(cell, BenchReductions(streams=1, seconds=10.0, dials=("events_per_minute=18",)))
    if share is None:  # in a cache, where every token has gone through all layers
        assert found == {}
        return
    assert found["kept"] == pytest.approx(share, abs=0.02)
    assert found["things"] == 1.0 if share == 1.0 else 0.2 < found["things"] < 0.8


def test_the_page_says_what_is_refused_and_missing_and_when_its_numbers_mean_nothing() -> None:
    refused = {**FREE, "name": "hi_prune 0.5", "refused": "HiPrune needs a tower."}
    told = page({**RESULT, "cells": [FREE, refused, refused], "missing": 3, "quick": True})
    assert told.count("- HiPrune needs a tower.") == 1 and "| hi_prune 0.5 |" not in told
    assert "3 settings are not measured yet" in told and "these numbers mean nothing" in told
    assert "not measured yet" not in page(RESULT) and "mean nothing" not in page(RESULT)


def test_the_page_says_in_what_form_a_method_over_the_whole_video_streams() -> None:
    row = next(line for line in page().splitlines() if "`holi_tom` |" in line)
    assert "| as `holi_tom_causal`: as published, it cuts the whole video into segments" in row


def test_the_page_says_whose_share_is_not_what_the_row_says() -> None:
    idle = {**FREE, "name": "to_dre_exit 0.25", "kept": 0.99}
    assert "`to_dre_exit` let nearly all stay" in page({**RESULT, "cells": [FREE, idle]})
    assert "let nearly all stay" not in page(RESULT)


def test_the_page_says_what_is_guessed_and_what_of_the_times_is_no_methods_own() -> None:
    given = {"signals_ms": -0.72, "choice_ms": 0.28, "reduction": methods()["uniform"](keep=0.25).to_dict()}
    asking = {"signals_ms": 3.0, "choice_ms": 0.5, "reduction": methods()["flow_cut"](keep=0.25).to_dict()}
    blind = {**FREE, **asking, "name": "flow_cut 0.25", "f1": 0.05, "question_accuracy": 0.375}
    told = page({**RESULT, "cells": [{**FREE, **given, "question_accuracy": 0.25}, blind]})
    assert "by chance up to 0.7 ms either way" in told and "0.3 ms of which are there whatever it does" in told
    assert "Who sees next to nothing still answers 0.38 of the questions right" in told
    assert "sees next to nothing" not in page(RESULT)


def test_the_pages_examples_of_use_run() -> None:
    exec(page().split("```python")[1].split("```")[0], {"__name__": __name__})


@pytest.mark.parametrize("name", methods())
def test_the_page_names_whom_the_bundled_models_refuse(name: str) -> None:
    model, one = load("tiny"), methods()[name](keep=0.5)
    try:
        with one.on(model, question="?"):
            refused = False
    except InputError:
        refused = True
    assert refused == _of_transformers(one)
    sentence = next(line for line in page().splitlines() if line.startswith("The bundled models"))
    assert (f"`{name}`" in sentence) == refused


def test_the_pages_example_of_a_method_of_ones_own_works() -> None:
    code = page().split("```python")[2].split("```")[0]
    names: dict[str, Any] = {"__name__": __name__}
    exec(code, names)
    one = names["FirstCells"](keep=0.5)
    tokens = Tokens.of_frame(torch.arange(6.0)[:, None], (2, 3))
    assert one.reduce(tokens, Signals()).x[:, 0].tolist() == [0, 1, 2]


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


def test_in_the_plot_no_number_stands_on_another_or_on_a_point() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(6, 6))
    close = [(0.5 + 0.01 * (k % 5), 0.5 + 0.01 * (k // 5), str(k + 1), "black") for k in range(25)]
    axes.scatter([0, 1, *(x for x, *_ in close)], [0, 1, *(y for _, y, *_ in close)])
    figure.canvas.draw()
    boxes = _label(axes, close)
    assert len(boxes) == 25, "every method has its number"
    points = [axes.transData.transform(label[:2]) for label in close]
    for number, (left, bottom, right, top) in enumerate(boxes):
        assert not any(left < x < right and bottom < y < top for x, y in points)
        assert not any(
            left < other[2] and other[0] < right and bottom < other[3] and other[1] < top for other in boxes[:number]
        )
    pyplot.close(figure)


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    config = BenchReductions(out=tmp_path / "all.json", page_only=True, only=("uniform",), keep=(0.25,))
    found = bench_reductions(config)
    assert found["cells"] == [] and found["missing"] == 8  # dense, depth routing, uniform, and both; as it is, adapted


@pytest.mark.slow
def test_a_cell_is_measured_and_then_taken_from_its_file(tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("all.json", "page.md", "plot.png")}
    words = ["--quick", "--only", "uniform", "--keep", "0.25", "--threads", "1", "--home", str(tmp_path / "home")]
    words += ["--out", str(places["all.json"]), "--page", str(places["page.md"]), "--plot", str(places["plot.png"])]
    assert main(["bench", "reductions", *words]) == 0
    first = json.loads(places["all.json"].read_text())
    free, adapted = ({cell["name"]: cell for cell in first["cells"] if cell["steps"] == steps} for steps in (0, 2))
    assert set(free) == set(adapted) == {
        "dense", "depth routing 0.25", "uniform 0.25", "uniform 0.25 + depth routing 0.2"
    }  # fmt: skip
    assert free["uniform 0.25"]["kv_share"] < 0.35 and free["uniform 0.25"]["flops_share"] < 0.6
    assert free["dense"]["f1_difference"] == [0, 0, 0]
    assert adapted["dense"]["f1_difference"] == [0, 0, 0], "an adapted cell is held against the dense one adapted alike"
    assert free["dense"]["train_seconds"] is None and adapted["dense"]["train_seconds"] > 0
    assert all(cell["time_share"] > 0 for cell in (*free.values(), *adapted.values()))
    assert main(["bench", "reductions", *words]) == 0
    assert json.loads(places["all.json"].read_text()) == first
    assert main(["bench", "reductions", *words, "--costs"]) == 0
    again = json.loads(places["all.json"].read_text())
    assert [cell["f1"] for cell in again["cells"]] == [cell["f1"] for cell in first["cells"]]
    times = [[cell["ms_per_frame"] for cell in told["cells"]] for told in (first, again)]
    assert all(before != after for before, after in zip(*times)), "of adapted cells, too"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--only nothing", "is no reduction"),
        ("--keep 2", "outside"),
        ("--fidelity gone.json", "is missing"),
        ("--dials clutter=much", "clutter"),
        ("--adapt -1", "adapt"),
    ],
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
@pytest.mark.parametrize("plan", [DepthPlan("full"), DepthPlan("interleaved", keep=0.2)], ids=["alone", "routed"])
@pytest.mark.parametrize("name", methods())
def test_a_model_learns_with_a_reduction_in_place(name: str, plan: DepthPlan, tmp_path: Path) -> None:
    """One method after another, in the form in which it streams, alone and with depth routing."""
    short = Phase(1, 2, WorldConfig(seconds=4, events_per_minute=15, questions=2))
    recipe = dataclasses.replace(
        reduced.recipe(),
        start=str(_small(tmp_path)),
        plan=plan,
        phases=(short,),
        reduction=methods()[name](keep=0.25, **({"layer": 1} if name == "hi_prune" else {})).causal().to_dict(),
        validation_streams=1,
        validate_every=1,
        accumulate=2,
        bf16=False,
    )
    model = train(like_start(recipe), tmp_path / "run", workers=0)
    before, after = load(tmp_path / "start"), load(model)
    assert any(not torch.equal(p, q) for p, q in zip(before.connector.parameters(), after.connector.parameters()))
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["reduction"]["name"] == recipe.reduction["name"]


def _small(folder: Path) -> Path:
    """A dense model with a small CLIP-like tower, which can give all that a method may ask for."""
    recipe = dataclasses.replace(vit.recipe(), lm=LMSizes(width=32, layers=4, heads=2, kv_heads=1, head_dim=16, mlp=48))
    tower = {
        **vit.CLIP["config"],
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 48,
    }
    build(dataclasses.replace(recipe, tower={"kind": "clip", "config": tower})).save_pretrained(folder / "start")
    return folder / "start"
