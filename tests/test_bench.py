"""The depth benchmark: its keys, the numbers that are exact, and the instruments it measures with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from videollm_mod.bench.command import BenchDepth, bench_depth, small
from videollm_mod.bench.depth import Models, Stream
from videollm_mod.bench.measure import PeakMemory, Timing, rounded, time_in_turn
from videollm_mod.depth import DepthPlan
from videollm_mod.depth.flops import kv_bytes, kv_entries, train_flops
from videollm_mod.types import InputError

SMALL = small(BenchDepth(threads=1))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "depth.json"
    bench_depth(BenchDepth(quick=True, threads=1, out=path))
    return path


@pytest.fixture(scope="module")
def result(written: Path) -> dict[str, Any]:
    return json.loads(written.read_text())


def test_the_json_has_the_keys_that_others_rely_on(result: dict[str, Any]) -> None:
    assert result["train_step"] > 0 and result["activation_peak"] > 0
    for key in ("kv_bytes", "stream", "stream_all"):
        assert list(result[key]) == ["10", "50"]
    assert list(result["stream_all"]["10"]) == ["5", "10"]
    assert result["stream"]["50"] == result["stream_all"]["50"]["10"]["ratio"]
    assert result["threads"] == 1 and result["torch"] and result["transformers"] and result["cpu"]


@pytest.mark.parametrize("tokens", [10, 50])
def test_the_bytes_of_the_caches_are_the_formula(result: dict[str, Any], tokens: int) -> None:
    config = Models.of(SMALL).dense.config
    plan = DepthPlan(layers="interleaved", keep=0.2)
    formula = kv_bytes(config, plan, 10, 10, tokens) / kv_bytes(config, None, 10, 10, tokens)
    assert result["kv_bytes"][str(tokens)] == pytest.approx(formula, abs=1e-4)


def test_the_default_training_sample_has_the_flops_of_the_design() -> None:
    """Of dense: 0.616 with logits at labels only."""
    config, bench = Models.of(BenchDepth(vocabulary=16, width=16, inner=44, layers=2)).dense.config, BenchDepth()
    config.hidden_size, config.intermediate_size, config.vocab_size = bench.width, bench.inner, bench.vocabulary
    config.num_hidden_layers, config.head_dim = bench.layers, bench.width // bench.heads
    text = bench.train_text + bench.train_frames
    routed, dense = (train_flops(config, plan, text, bench.train_frames, 50, text) for plan in (DepthPlan(), None))
    assert routed / dense == pytest.approx(0.616, abs=5e-4)


def test_the_number_of_threads_is_given_back() -> None:
    before = torch.get_num_threads()
    wanted = 1 if before > 1 else 2
    result = bench_depth(BenchDepth(quick=True, threads=wanted, tokens=(10,)))
    assert result["threads"] == wanted
    assert torch.get_num_threads() == before


def test_the_three_models_share_their_weights() -> None:
    models = Models.of(SMALL)
    own = {weight.data_ptr() for weight in models.untouched.parameters()}
    assert {weight.data_ptr() for weight in models.dense.parameters()} == own
    routed = dict(models.routed.named_parameters())
    assert {weight.data_ptr() for name, weight in routed.items() if "depth_expert" not in name} == own
    assert any("depth_expert" in name for name in routed)


@pytest.mark.parametrize("plan", [None, DepthPlan(layers="interleaved", keep=0.2)], ids=["dense", "routed"])
def test_a_filled_stream_holds_what_streaming_would_have_left(plan: DepthPlan | None) -> None:
    models = Models.of(SMALL)
    model = models.dense if plan is None else models.routed
    streamed, filled = (Stream.filled(model, 10, frames, plan) for frames in (0, 8))
    for _ in range(8):
        streamed.step()
    assert filled.cache.seen == streamed.cache.seen == 8 * 11
    assert filled.cache.stored == streamed.cache.stored
    assert tuple(row for (row,) in filled.cache.stored) == kv_entries(model.config, plan, 8, 8, 10)
    filled.step()
    streamed.step()
    assert filled.cache.stored == streamed.cache.stored


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"threads": 0}, "--threads 0 is too small; give 1 or more"),
        ({"stream_steps": -1}, "--stream-steps -1 is too small"),
        ({"frames": (100, 0)}, "--frames 0 is too small"),
        ({"tokens": ()}, "--tokens is empty"),
        ({"train_text": 0}, "--train-text 0"),
        ({"width": 100}, "--width 100 does not split into 16 heads .*; give a multiple of 32"),
        ({"keep": 0.0}, "--keep 0.0 is outside"),
        ({"plan": "sideways"}, "--plan 'sideways' is unknown; take .*early-exit, layer-skip, or numbers like 1,3,5"),
        ({"plan": "1,99"}, "layer 99, but the model has layers 0 to 15"),
        ({"plan": "1,99", "quick": True}, "layer 99, but the model has layers 0 to 15"),
    ],
)
def test_a_number_that_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench_depth(BenchDepth(**wrong))


@pytest.mark.parametrize("plan", ["1,3", "early-exit", "layer-skip", "full"])
def test_every_plan_that_watch_takes_can_be_timed(plan: str) -> None:
    """A quick run has as many layers as the plan names."""
    result = bench_depth(BenchDepth(quick=True, threads=1, plan=plan, tokens=(10,)))
    assert result["setup"]["plan"] == plan and result["setup"]["layers"] == (4 if plan == "1,3" else 2)
    assert (result["kv_bytes"]["10"] == 1) == (plan == "full")


def test_a_quick_run_says_that_its_ratios_mean_nothing_and_each_part_is_announced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = bench_depth(BenchDepth(quick=True, threads=1))
    printed = capsys.readouterr()
    assert result["quick"] is True and not printed.out
    lines = printed.err.splitlines()
    assert "mean nothing" in lines[0] and "mean nothing" in lines[-1]
    for part in ("building", "timing 3 training steps", "streams of 10 tokens", "streams of 50 tokens"):
        assert part in printed.err


def test_no_more_threads_are_taken_than_there_are_cores() -> None:
    assert BenchDepth().threads == min(2, os.cpu_count() or 1)


def test_a_folder_that_is_missing_is_found_out_before_minutes_are_spent(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        bench_depth(BenchDepth(out=tmp_path / "nowhere" / "depth.json"))


def test_peak_memory_counts_what_is_alive_at_the_same_time() -> None:
    inside = torch.ones(1000)
    with PeakMemory() as memory:
        first = inside + 1  # 4000 bytes
        view = first.view(10, 100)  # none
        inside.add_(1)  # none
        second = view * 2  # 4000
        del first, view, second
        torch.zeros(1500)  # 6000, when the others are gone
    assert memory.peak == 8000
    assert memory.alive == 0


def test_peak_memory_counts_what_is_saved_for_the_backward_pass() -> None:
    """Three linear layers on (64, 64): forward leaves 3 outputs; backward adds at most a few matrices of that size."""
    layers = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(3)])
    for weight in layers.parameters():
        weight.grad = torch.zeros_like(weight)
    matrix = 64 * 64 * 4
    with PeakMemory() as forward:
        output = layers(torch.ones(64, 64)).sum()
    assert forward.alive == 3 * matrix + 4  # the input, two outputs that are saved, and the sum
    with PeakMemory() as backward:
        output.backward()
    assert matrix <= backward.peak <= 4 * matrix


def test_competitors_are_timed_in_turn() -> None:
    calls: list[str] = []

    def slow() -> None:
        calls.append("slow")
        time.sleep(0.004)

    timing = time_in_turn({"slow": slow, "fast": lambda: calls.append("fast")}, repeats=3, warmup=1)
    assert calls == ["slow", "fast", "fast", "slow"] * 2
    assert timing["slow"].wall_ms >= 4 > timing["slow"].cpu_ms
    assert timing["fast"].wall_ms < timing["slow"].wall_ms


def test_pooled_timings_take_the_median_of_all_repeats() -> None:
    assert Timing((2.0, 8.0), ()).ratios_to(Timing((1.0, 16.0), ())) == (2.0, 0.5)
    pooled = Timing.pooled([Timing((1.0, 9.0), (5.0,)), Timing((2.0,), (1.0, 3.0))])
    assert pooled.wall_ms == 2.0 and pooled.cpu_ms == 3.0


def test_numbers_are_rounded_wherever_they_stand() -> None:
    assert rounded({"a": {"b": [1 / 3]}, "c": 2, "d": "x"}) == {"a": {"b": [0.3333]}, "c": 2, "d": "x"}


@pytest.mark.slow
def test_a_steps_parts_are_told_by_kind_and_add_up() -> None:
    script = Path(__file__).parents[1] / "runs" / "step_profile.py"
    words = [sys.executable, str(script), "--quick", "--tokens", "10", "--threads", "1"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    told = json.loads(done.stdout.splitlines()[-1])
    kinds = ("products", "attention", "operators", "python")
    for name in ("dense", "interleaved@0.2"):
        step = told["steps"]["10"][name]
        assert all(step[kind] > 0 for kind in kinds)
        assert sum(step[kind] for kind in kinds) == pytest.approx(step["step"], rel=0.5)  # medians do not add up
        train = told["train"][name]
        assert all(train[kind] > 0 for kind in kinds[:3])
        assert sum(train[kind] for kind in kinds) == pytest.approx(train["step"], rel=0.5)
    routed, dense = (told["steps"]["10"][name] for name in ("interleaved@0.2", "dense"))
    assert told["train"]["interleaved@0.2"]["flops"] < told["train"]["dense"]["flops"]
    assert routed["products_flops"] < dense["products_flops"] and routed["kv_bytes"] < dense["kv_bytes"]
    assert told["quick"] and told["reached"]["bytes_per_second"] > 1e8
