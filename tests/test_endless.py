"""Streams without end: drawn lazily, asked about what is long past, measured under every policy; the soak bench."""

from __future__ import annotations

import dataclasses
import json
import math
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate_cases import random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from videollm_mod.bench.soak import BenchSoak, Soak, _film, bench_soak
from videollm_mod.cli import main
from videollm_mod.evaluate.endless import EvalEndless, Job, Watched, evaluate_endless, watch_endless
from videollm_mod.evaluate.endless_table import _minutes, summarise, table
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig, make_stream, narrations, vocabulary
from videollm_mod.world.questions import ask_ago
from videollm_mod.world.words import ASK_FIRST, ask_minutes_ago


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with random weights, on the disk."""
    path = tmp_path_factory.mktemp("model")
    random_model().float().save_pretrained(path)
    return str(path)


# -- the world ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_frames_one_by_one_are_those_drawn_at_once(compress: bool) -> None:
    stream = make_stream("test", 3, WorldConfig(seconds=8, size=64, compress=compress))
    assert np.array_equal(np.stack(list(stream.each_frame())), stream.frames())


def test_a_long_stream_takes_no_memory_that_grows() -> None:
    stream = make_stream("test", 0, WorldConfig(seconds=300, size=64))
    each = stream.each_frame()
    next(each)
    tracemalloc.start()
    peaks = []
    for _ in range(3):
        tracemalloc.reset_peak()
        assert len(list(islice(each, 40))) == 40
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[2] < peaks[0] + 20 * 64 * 64 * 3, "40 frames more would be twice that"


@settings(max_examples=20, deadline=None)
@given(number=st.integers(0, 10_000), back=st.sampled_from([0.25, 0.5, 1.0]))
def test_what_happened_long_ago_is_answered_by_the_last_event_up_to_then(number: int, back: float) -> None:
    stream = make_stream("test", number, WorldConfig(seconds=90, size=64))
    asked = ask_ago(stream.script, stream.config, (back,), every=10.0)
    assert asked == sorted(asked, key=lambda question: question.frame)
    for question in asked:
        then = question.time if question.kind == "first" else question.time - 60 * back
        told = [event for event in stream.events if event.time <= then]
        event = told[0] if question.kind == "first" else told[-1]
        assert (question.answer, question.about) == (event.text, event.frame)
        assert question.time == question.frame / stream.config.fps >= 10 and question.about <= question.frame
        assert question.question == (ASK_FIRST if question.kind == "first" else ask_minutes_ago(back))
    if stream.events and stream.events[0].time < 20:
        assert {"first", f"ago-{back:g}"} == {question.kind for question in asked}


def test_questions_of_long_memory_are_no_part_of_what_models_learn() -> None:
    assert ask_minutes_ago(5) == "What happened 5 minutes ago?" and ask_minutes_ago(1) == "What happened 1 minute ago?"
    assert not {"first", "minutes", "ago"} & set(vocabulary())
    assert all(question.about is None for question in make_stream("test", 0).questions)


# -- the evaluation ----------------------------------------------------------------------------------------------------


def job(policy: str, seconds: float = 40.0) -> Job:
    stream = make_stream("test", 1, WorldConfig(seconds=seconds, size=32, compress=False, events_per_minute=18))
    return Job(stream, policy, 10**6, 3.0, 0.0, ago=(0.25,), ask_every=5.0)


def test_what_the_policy_has_forgotten_is_not_held_and_what_it_keeps_is() -> None:
    model, far = random_model(), {}
    for policy in ("window", "carrier-cls"):
        key, watched = watch_endless(model, job(policy))
        assert policy in key and watched.kv_bytes <= 10**6 and watched.said == []  # threshold 0: silent
        asked = ask_ago(job(policy).stream.script, job(policy).stream.config, (0.25,), 5.0)
        far[policy] = [answer for answer in watched.answers if "frame_held" in answer]
        assert len(far[policy]) == len(asked) > 2
        assert not any(answer["words_held"] for answer in far[policy]), "it has never said a word"
    assert not any(answer["frame_held"] for answer in far["window"] if answer["time"] > 20)
    assert all(answer["frame_held"] for answer in far["carrier-cls"]), "if only one token of it"


def test_questions_of_long_ago_change_nothing_of_what_is_said() -> None:
    model, work = random_model(), dataclasses.replace(job("window"), threshold=0.9)
    _, asked = watch_endless(model, work)
    _, unasked = watch_endless(model, dataclasses.replace(work, ask_every=1000.0))
    assert sum("frame_held" in answer for answer in asked.answers) > 2
    assert asked.said == unasked.said != []
    assert [answer for answer in asked.answers if "frame_held" not in answer] == unasked.answers


def test_a_session_that_begins_late_sees_only_what_comes_then() -> None:
    late = dataclasses.replace(job("window"), threshold=1.0, begin=0.4)
    key, watched = watch_endless(random_model(), late)
    assert key == f"{dataclasses.replace(late, begin=0.0).key} from 0.4"
    assert watched.said and min(time for time, _ in watched.said) >= 24
    assert watched.answers and min(answer["time"] for answer in watched.answers) >= 24
    row = summarise([(late.stream, watched)], late, edge=16.0)
    assert row["first"]["f1"] is row["f1_lost"] is row["f1_lost_interval"] is None and row["last"]["said"] > 0
    assert "| window | 1 |" in table({"rows": [row], "edge_minutes": 1.0})


def test_a_row_compares_the_beginning_with_the_end_and_counts_what_was_held() -> None:
    work = job("window", seconds=120.0)
    true = [(item.time, item.text) for item in narrations(work.stream)]
    early = [item for item in true if item[0] < 60]
    answers: list[dict[str, Any]] = [
        {"kind": "view", "time": 3.0, "right": True},
        {"kind": "view", "time": 110.0, "right": False},
        {"kind": "ago-5", "time": 110.0, "right": False, "frame_held": False, "words_held": True},
    ]
    good = Watched(true, answers, 10, 20, {"frames": 3}, 1.0)
    bad = Watched(early, answers, 12, 20, {"frames": 4}, 1.0)
    row = summarise([(work.stream, good)], work, edge=30.0)
    assert (row["first"]["f1"], row["last"]["f1"], row["f1_lost"]) == (1.0, 1.0, 0.0)
    row = summarise([(work.stream, bad)], work, edge=600.0)
    assert (row["first"]["f1"], row["last"]["f1"], row["f1_lost"]) == (1.0, 0.0, 1.0)
    assert row["first"]["events"] + row["last"]["events"] == len(true)
    assert (row["first"]["question_accuracy"], row["last"]["question_accuracy"]) == (1.0, 0.0)
    assert row["memory"] == {"ago-5": {"questions": 1, "accuracy": 0.0, "frame_held": 0.0, "words_held": 1.0}}
    both = summarise([(work.stream, good), (work.stream, bad)], work, edge=600.0)
    assert both["kv_bytes"] == 12 and both["forgotten"] == {"frames": 7} and 0 < both["last"]["f1"] < 1
    text = table({"rows": [row, both], "edge_minutes": 1.0})
    assert text.count("\n") == 4 and "0.00 / 0.00 / 1.00" in text


def test_what_is_lost_has_an_interval_over_minutes() -> None:
    work = job("window", seconds=1200.0)
    true = [(item.time, item.text) for item in narrations(work.stream)]
    half = Watched([item for i, item in enumerate(true) if item[0] < 600 or i % 2], [], 10, 20, {}, 1.0)
    row = summarise([(work.stream, half)], work, edge=600.0)
    first, last = (_minutes(work.stream, half, 600.0, end) for end in (False, True))
    assert len(first) == len(last) == 10 and all(2 * right == whole for right, whole in first)
    assert sum(whole for _, whole in last) == row["last"]["said"] + row["last"]["events"]
    assert sum(right for right, _ in last) == row["last"]["said"], "what was said is right"
    low, high = row["f1_lost_interval"]
    assert 0.15 < low < row["f1_lost"] < high < 0.55
    assert f"{row['f1_lost']:.2f} [{low:.2f}, {high:.2f}]" in table({"rows": [row], "edge_minutes": 10.0})
    even = summarise([(work.stream, Watched(true, [], 10, 20, {}, 1.0))], work, edge=600.0)
    assert (even["f1_lost"], even["f1_lost_interval"]) == (0.0, [0.0, 0.0])


def test_the_command_writes_its_table_and_goes_on_from_its_journal(folder: str, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("json", "markdown", "journal")}
    config = EvalEndless(
        model=folder,
        policies=("own", "norm"),
        budgets=("100kB", "1MB"),
        minutes=0.15,
        ago=(0.05,),
        ask_every=2.0,
        workers=1,
        **places,
    )
    result = evaluate_endless(config)
    assert [(row["policy"], row["budget"]) for row in result["rows"]] == [
        ("own", None),
        ("norm", 10**5),
        ("norm", 10**6),
    ]
    assert all(row["kv_bytes"] <= (row["budget"] or math.inf) for row in result["rows"])
    assert json.loads(places["json"].read_text()) == result and places["markdown"].read_text() == table(result)
    lines = places["journal"].read_text().splitlines(keepends=True)
    assert len(lines) == 4
    places["journal"].write_text("".join(lines[:3]) + lines[3][:40])  # stopped while it wrote the last
    again = evaluate_endless(config)
    assert again["rows"][:2] == result["rows"][:2] and len(places["journal"].read_text().splitlines()) == 4
    evaluate_endless(dataclasses.replace(config, policies=("own",), ago=(0.1,)))
    assert len(places["journal"].read_text().splitlines()) == 5, "other questions are asked anew"
    with pytest.raises(InputError, match="is of another model or world"):
        evaluate_endless(EvalEndless(model=folder, minutes=0.2, journal=places["journal"], workers=1))
    with pytest.raises(InputError, match="is of another model or world"):
        evaluate_endless(dataclasses.replace(config, reduction="uniform=0.5"))


def test_a_window_bounds_all_policies_but_the_one_that_has_no_bounds(folder: str) -> None:
    config = EvalEndless(
        model=folder, policies=("own", "full"), minutes=0.15, window=1.0, ago=(0.05,), ask_every=4.0, workers=1
    )
    own, full = evaluate_endless(config)["rows"]
    assert own["forgotten"]["frames"] > 0 and full["forgotten"]["frames"] == 0
    assert own["positions"] < full["positions"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["eval", "endless", "--policies", "lru"], "--policies 'lru' is unknown"),
        (["eval", "endless", "--minutes", "61"], "--minutes 61 is out of range"),
        (["eval", "endless", "--ago", "0"], "--ago 0 is no time"),
        (["eval", "endless", "--budgets", "much"], "--budgets 'much' is no size"),
        (["bench", "soak", "--policy", "full", "--budget", "1MB"], "'full' forgets nothing"),
        (["bench", "soak", "--frames", "0"], "--frames 0 is too small"),
        (["bench", "soak", "--plot", "soak.svg"], "end it in .png"),
        (["watch", "clip.mp4", "--policy", "lru"], "policy 'lru' is unknown; take one of full, window, carrier, norm"),
        (["watch", "clip.mp4", "--policy", "norm"], "give a budget in bytes"),
        (["watch", "clip.mp4", "--budget", "-1"], "--budget '-1' is"),
    ],
)
def test_flags_that_cannot_be_right_are_one_sentence(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


# -- the soak bench ----------------------------------------------------------------------------------------------------


def test_the_soak_bench_tells_slowdown_and_growth_and_draws_them(folder: str, tmp_path: Path) -> None:
    out, plot = tmp_path / "soak.json", tmp_path / "soak.png"
    config = BenchSoak(
        frames=45, model=folder, budget="100kB", every=15, film=8, ask_every=15, window=2.0, out=out, plot=plot
    )
    result = bench_soak(config)
    assert result == json.loads(out.read_text()) and plot.read_bytes()[:4] == b"\x89PNG"
    assert [point["frames"] for point in result["points"]] == [15, 30, 45] and result["frames"] == 45
    last, second = result["points"][2], result["points"][1]
    assert result["slowdown"] == pytest.approx(last["ms"] / second["ms"], rel=0.01)
    assert result["rss_growth"] == pytest.approx(last["rss"] / second["rss"] - 1, abs=1e-3)
    assert 0 < result["kv_bytes_max"] <= result["budget"] == 10**5 and result["forgotten"]["frames"] > 30
    assert not result["interrupted"] and result["policy"] == "window"


def test_a_soak_that_is_killed_leaves_its_points_behind(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "soak.json"
    written = []

    def killed(line: str) -> None:
        written.append(out.exists() and json.loads(out.read_text())["frames"])
        if line.startswith("20 frames"):
            raise SystemExit

    monkeypatch.setattr("videollm_mod.bench.measure.progress", killed)
    with pytest.raises(SystemExit):
        bench_soak(BenchSoak(frames=45, model=folder, every=10, film=4, window=2.0, out=out))
    assert written == [False, False, 10]
    left = json.loads(out.read_text())
    assert left["frames"] == 10 and left["interrupted"]


def test_an_interrupted_soak_gives_what_it_has() -> None:
    model = random_model()
    session = StreamSession(model, policy="window", window=2.0)
    run = Soak(session, _film(model, 4), fps=2.0, every=5, ask_every=100)

    def stop(line: str) -> None:
        assert line.startswith("5 frames: ")
        raise KeyboardInterrupt

    assert run.watch(50, stop) is True
    summary = run.summary()
    assert summary["frames"] == 5 and summary["slowdown"] is None and summary["rss_growth"] is None
