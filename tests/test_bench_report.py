"""`bench report`: every result that is there is on the page, and nothing that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from videollm_mod.bench.fronts import BenchReport, bench_report
from videollm_mod.types import InputError

ROOT = Path(__file__).parents[1]
RIVALS = {
    name: {
        "ms": 10.0 * ratio,
        "ratio": ratio,
        "flops_bound": bound,
        "times_bound": ratio / bound,
        "activation_peak": bound,
    }
    for name, ratio, bound in (("transformers", 1.1, 1.0), ("dense", 1.0, 1.0), ("interleaved@0.2", 0.63, 0.6))
}
POINT = {
    name: {**told, "p50": told["ms"], "p95": 21.0, "p99": 22.0, "bytes_bound": 0.8, "kv_bytes": 3 * 2**20}
    for name, told in RIVALS.items()
}
STEP = {
    **{"step": 151.0, "products": 46.3, "attention": 73.7, "operators": 11.4, "python": 20.7},
    **{f"{kind}_{what}_per_second": 8.4e9 for kind in ("products", "attention") for what in ("flops", "bytes")},
}
RESULTS: dict[str, dict[str, Any]] = {
    "bench_train": {"train": {"labels": RIVALS, "all": RIVALS}, "cpu": "a CPU", "threads": 2},
    "bench_stream": {"points": {"10": {"100": POINT, "300": {**POINT, "early-exit": {"left_out": "needs 40 GiB"}}}}},
    "step_profile": {
        "reached": {"flops_per_second": 163.4e9, "bytes_per_second": 29e9},
        "setup": {"frames": 600},
        "steps": {
            "10": {
                "dense": {**STEP, "step": 204.4, "python": 19.1},
                "interleaved@0.2": STEP,
                "ratio": {"step": 0.739, "products": 0.926, "attention": 0.582, "operators": 1.256, "python": 1.085},
            }
        },
        "train": {
            "dense": {**STEP, "flops": 1.5e12, "flops_per_second": 160e9},
            "interleaved@0.2": {**STEP, "flops": 0.9e12, "flops_per_second": 155e9},
            "ratio": {"step": 0.591, "products": 0.598, "attention": 0.527, "operators": 0.7, "python": 0.9},
        },
    },
    "bench_decode": {
        "decode": {
            "h264": {
                "640x360": {
                    "every": {
                        "frames_per_second": {"ours": 1234.0, "pyav": 600.0, "pyav_auto": 1200.0},
                        "speedup_over_pyav": 2.057,
                        "of_decoding_alone": 0.9,
                    }
                }
            }
        },
        "left_out": {"torchcodec": "is not installed"},
    },
    "peer_videollm_online": {
        "at": {
            "600": {"peer_ms": 300.0, "dense_ms": 180.0, "dense_ratio": 0.6, "routed_ms": 120.0, "routed_ratio": 0.4321}
        },
        "logits": {"frames": 5, "largest_difference": 1e-5, "largest": 30.0},
        "curves": {"theirs": [1.0, 2.0], "ours, dense": [1.0, 1.5], "ours, routed": [1.0, 1.2]},
        "curve_frames": [20, 40],
    },
    "bench_soak": {
        "frames": 100_000,
        "every": 1000,
        "slowdown": 1.0432,
        "rss_growth": 0.011,
        "policy": "window",
        "budget": 8 * 2**20,
        "kv_bytes_max": 5 * 2**20,
        "interrupted": False,
        "points": [{"frames": n, "ms": 5.0, "rss": 2e8, "kv_bytes": 1e6} for n in (1000, 2000)],
    },
    "bench_engine": {
        "sessions": {
            count: {
                "speedup": speedup,
                "speedup_cpu_time": speedup,
                "kv_mib": 133.0,
                **{
                    name: {"frames_per_second": 12.0 * speedup, "gflops": 40.0, "p99_ms": 99.0, "dropped": 3}
                    for name in ("engine", "in_turn")
                },
                **({"profile": {"linear": 0.46, "attention": 0.43, "outside": 0.09}} if count == "16" else {}),
            }
            for count, speedup in (("4", 1.8765), ("16", 2.5))
        },
        "sustained_2fps": {"engine": 4, "in_turn": 1},
        "setup": {"fps": 2.0},
    },
}


def report(folder: Path, results: dict[str, Any], out: str = "bench.md") -> tuple[dict[str, Any], str]:
    for name, value in results.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    told = bench_report(BenchReport(folder, folder / out))
    return told, Path(told["page"]).read_text()


def test_the_stored_results_of_this_repository_make_a_page(tmp_path: Path) -> None:
    told = bench_report(BenchReport(ROOT / "docs" / "results", tmp_path / "bench.md"))
    stored = json.loads((ROOT / "docs" / "results" / "bench_depth.json").read_text())
    page = (tmp_path / "bench.md").read_text()
    assert "bench_depth" in told["results"]
    assert f"{stored['train_step']:.3f}" in page and f"{stored['stream']['10']:.3f}" in page


def test_each_result_has_its_section_its_numbers_and_where_it_has_curves_its_picture(tmp_path: Path) -> None:
    told, page = report(tmp_path, RESULTS)
    assert sorted(told["results"]) == sorted(RESULTS)
    for number in (
        "0.630",
        "1,234",
        "0.432",
        "1.043",
        "+1.1%",
        "1.877",
        "linear 46%",
        "4 in the engine, 1 in turn",
        "5.0 MiB of cache entries of a budget of 8.0 MiB",
        "needs 40 GiB",
        "torchcodec: is not installed",
        "| 10 | routed / dense | 0.739 | 0.926 |",
    ):
        assert number in page, number
    drawn = {"bench_train", "bench_stream", "peer_videollm_online", "bench_engine", "bench_soak"}
    assert set(told["pictures"]) == {f"{name}.png" for name in drawn}
    for name in told["pictures"]:
        assert f"](bench/{name})" in page
        assert (tmp_path / "bench" / name).read_bytes().startswith(b"\x89PNG")
    assert "Not measured yet: `bench_depth.json`, `bench_flops.json`." in page


def test_a_result_of_a_gpu_is_told_as_its_bench_is_with_the_cards_name_and_its_ceilings(tmp_path: Path) -> None:
    floors = {"weights_ms": 3.3, "floor_ms": 4.0, "times_weights": 3.021, "times_floor": 2.511}
    points = {"10": {"100": {name: {**told, **floors} for name, told in POINT.items()}}}
    points["10"]["100"]["early-exit"] = {"left_out": "needs 400 GiB"}
    reached = {"bytes_per_second": 4.1e12, "flops_per_second": 7.2e14}
    told, page = report(tmp_path, {"bench_stream_gpu": {"points": points, "ceilings": reached, "gpu": "a card"}})
    assert told["pictures"] == ["bench_stream_gpu.png"]
    for words in ("## Streaming, on a GPU", "*bench_stream_gpu.json: a card", "3.021 | 2.511", "4,100 GB", "720 TFLOP"):
        assert words in page, words
    rows = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert set(rows) == {13} and "Stopped early" not in page
    _, page = report(tmp_path, {"bench_stream": {"points": points, "interrupted": True}})
    assert "Stopped early" in page


def test_a_folder_gets_a_readme_and_the_pictures_beside_it(tmp_path: Path) -> None:
    told, page = report(tmp_path, {"bench_train": RESULTS["bench_train"]}, out="bench")
    assert told["page"] == str(tmp_path / "bench" / "README.md")
    assert "](bench_train.png)" in page and (tmp_path / "bench" / "bench_train.png").is_file()


def test_a_quick_run_is_marked_as_meaning_nothing(tmp_path: Path) -> None:
    _, page = report(tmp_path, {"bench_train": {**RESULTS["bench_train"], "quick": True}})
    assert "the numbers below mean nothing" in page


def test_a_result_of_another_form_is_told_as_its_numbers(tmp_path: Path) -> None:
    told, page = report(tmp_path, {"bench_train": {"older": {"step": 0.4242}}, "bench_new": {"speed": 7.125}})
    assert "| older.step | 0.424 |" in page
    assert "## New" in page and "| speed | 7.125 |" in page
    assert told["pictures"] == []


def test_a_soak_that_was_stopped_before_its_third_point_says_what_it_has(tmp_path: Path) -> None:
    soak = RESULTS["bench_soak"]
    early = {**soak, "frames": 1000, "slowdown": None, "rss_growth": None, "budget": None, "interrupted": True}
    told, page = report(tmp_path, {"bench_soak": {**early, "points": soak["points"][:1]}})
    assert "Policy `window`: 1,000 frames through one session; too few to compare" in page
    assert "stopped early" in page and told["pictures"] == ["bench_soak.png"]
    told, page = report(tmp_path, {"bench_soak": {**early, "frames": 0, "points": []}})
    assert "0 frames through one session" in page and told["pictures"] == []


def test_a_reader_of_video_that_was_not_there_has_an_empty_cell(tmp_path: Path) -> None:
    _, page = report(tmp_path, {"bench_decode": RESULTS["bench_decode"]})
    assert "| 1,200 |  | 2.057 |" in page and "nan" not in page


def test_what_is_no_bench_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "eval_world.json").write_text('{"f1": 0.84}')
    _, page = report(tmp_path, {"bench_engine": RESULTS["bench_engine"]})
    assert "0.84" not in page


def test_a_result_with_a_page_of_its_own_is_named_and_not_repeated(tmp_path: Path) -> None:
    many = {"known": {f"{number:04x}": {"f1": 0.4321} for number in range(500)}}
    told, page = report(tmp_path, {"bench_engine": RESULTS["bench_engine"], "bench_reductions": many})
    assert told["results"] == ["bench_engine"] and "0.432" not in page
    assert "`bench_reductions.json` has a page of its own, `docs/reductions.md`." in page


def test_a_folder_without_results_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no result of a bench"):
        bench_report(BenchReport(tmp_path, tmp_path / "bench.md"))
    with pytest.raises(InputError, match="is no folder"):
        bench_report(BenchReport(tmp_path / "nowhere", tmp_path / "bench.md"))
    (tmp_path / "bench_train.json").write_text("{")
    with pytest.raises(InputError, match=r"bench_train\.json is not JSON"):
        bench_report(BenchReport(tmp_path, tmp_path / "bench.md"))
