"""Scores of made-up narrators, the search for the threshold, worst cases and the report, and the whole command."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluate_cases import random_model, short_stream, true_said, watched
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from videollm_mod.evaluate import calibrate as calibration
from videollm_mod.evaluate.calibrate import calibrate, climb
from videollm_mod.evaluate.events import events_told
from videollm_mod.evaluate.metrics import Said
from videollm_mod.evaluate.mistakes import mistakes_in, worst
from videollm_mod.evaluate.programs import Program
from videollm_mod.evaluate.report import NAMES
from videollm_mod.evaluate.streams import Watched, run_jobs, run_streams, watch_both, watch_truth
from videollm_mod.evaluate.summary import intervals, metrics_of, summarise, tally
from videollm_mod.evaluate.world import EvalWorldConfig, evaluate_world
from videollm_mod.model import StreamingVideoLM
from videollm_mod.reductions import GRT
from videollm_mod.types import InputError
from videollm_mod.vision import FrameEncoder
from videollm_mod.world import WorldStream
from videollm_mod.world.camera import CameraConfig, make_camera_stream

ROOT = Path(__file__).parents[1]

STREAMS = [short_stream(number, seconds=30) for number in range(4)]
PROMISED = (
    "f1 f1_heldout f1_teacher_forced false_alarms_per_minute lm_ppl time_diff fluency lm_correctness question_accuracy "
    "precision recall timing_f1 content_accuracy by_kind by_question streams frames seconds threshold plan split "
    "description intervals heldout wall_seconds frames_per_second samples seed frame_times versions"
).split()


def test_a_narrator_who_says_everything_at_its_frame_is_perfect() -> None:
    result = summarise([watched(stream, true_said(stream)) for stream in STREAMS], 0.5)
    for name in ("f1", "precision", "recall", "timing_f1", "content_accuracy", "question_accuracy"):
        assert result[name] == 1, name
        assert result["intervals"][name] == [1, 1]
    assert result["false_alarms_per_minute"] == 0
    assert result["events"] == sum(len(stream.events) for stream in STREAMS) > 10
    assert sum(kind["events"] for kind in result["by_kind"].values()) == result["events"]
    assert all(kind["recall"] == kind["timing_recall"] == 1 for kind in result["by_kind"].values())


def test_the_same_narrator_one_second_late_is_worth_nothing() -> None:
    result = summarise([watched(stream, true_said(stream, shift=1.0)) for stream in STREAMS], 0.5)
    assert result["f1"] == result["precision"] == result["recall"] == 0
    assert result["false_alarms_per_minute"] > 0


def test_silence_scores_nothing_and_alarms_nobody() -> None:
    result = summarise([watched(stream, []) for stream in STREAMS], 0.5)
    assert result["f1"] == result["precision"] == result["recall"] == result["timing_f1"] == 0
    assert result["content_accuracy"] is None
    assert result["false_alarms_per_minute"] == 0
    assert result["lm_ppl"] is None  # these have no teacher-forced turns
    assert json.loads(json.dumps(result)) == result


def test_right_times_with_other_words_count_for_timing_alone() -> None:
    said = [[Said(item.time, "Something happens.") for item in true_said(stream)] for stream in STREAMS]
    result = summarise([watched(stream, words) for stream, words in zip(STREAMS, said)], 0.5)
    assert (result["f1"], result["timing_f1"], result["content_accuracy"]) == (0, 1, 0)
    assert result["false_alarms_per_minute"] == 0


CAMERAS = [make_camera_stream("test", number, CameraConfig(seconds=30, size=32)) for number in range(6)]


def test_of_cameras_kind_and_side_count_within_a_second_whatever_the_name() -> None:
    def said(change: Callable[[Said], Said]) -> list[list[Said]]:
        return [[change(Said(event.time, event.text)) for event in stream.events] for stream in CAMERAS]

    def result_of(words: list[list[Said]]) -> dict[str, Any]:
        return summarise([watched(stream, each) for stream, each in zip(CAMERAS, words)], 0.5)

    def renamed(item: Said) -> Said:
        name = re.sub("^(A [a-z]+|Something)", "A box" if "A box" not in item.text else "A ball", item.text)
        return Said(item.time + 0.9, name)

    perfect, other = result_of(said(lambda item: item)), result_of(said(renamed))
    assert perfect["f1_kind_and_side"] == 1 and perfect["events"] > 10
    assert (other["f1"], other["f1_kind_and_side"]) == (0, 1)
    assert result_of(said(lambda item: Said(item.time + 1.1, item.text)))["f1_kind_and_side"] < 0.5
    turned = result_of(said(lambda item: Said(item.time, re.sub("left|right|middle|top|bottom", "nowhere", item.text))))
    assert turned["f1_kind_and_side"] == 0
    assert sum(row["events"] for row in perfect["by_kind_and_side"].values()) == sum(
        len(stream.events) for stream in CAMERAS
    )
    assert all(row["recall"] == 1 and row["told"] == row["events"] for row in perfect["by_kind_and_side"].values())


def test_of_two_things_told_in_one_breath_each_counts() -> None:
    events = events_told(
        [Said(2.0, "A box is placed on the left. Something is placed in the middle."), Said(3.0, "Oh.")]
    )
    assert events == [(2.0, "placed left"), (2.0, "placed middle"), (3.0, "Oh.")]


def test_shapes_have_no_kinds_and_sides() -> None:
    result = summarise([watched(stream, true_said(stream)) for stream in STREAMS], 0.5)
    assert result["f1_kind_and_side"] is None and result["by_kind_and_side"] == {}


def test_an_answer_is_right_only_word_by_word() -> None:
    stream = next(stream for stream in STREAMS if len(stream.questions) >= 2)
    answers = [question.answer for question in stream.questions]
    answers[0] = answers[0].lower()
    result = summarise([watched(stream, true_said(stream), answers)], 0.5)
    assert result["question_accuracy"] == pytest.approx(1 - 1 / len(answers), abs=1e-4)
    assert sum(kind["questions"] for kind in result["by_question"].values()) == len(answers)


def test_events_are_pooled_over_streams_before_dividing() -> None:
    perfect = watched(STREAMS[0], true_said(STREAMS[0]))
    silent = watched(STREAMS[1], [])
    n, m = len(STREAMS[0].events), len(STREAMS[1].events)
    pooled = metrics_of([tally(perfect, 0.5), tally(silent, 0.5)])
    assert pooled["f1"] == pytest.approx(2 * n / (n + n + m))
    low, high = intervals([tally(perfect, 0.5), tally(silent, 0.5)])["f1"] or []
    assert (low, high) == (0, 1)  # one of four draws is twice the perfect stream, one twice the silent one


def test_every_mistake_is_named_for_what_it_is() -> None:
    stream = max(STREAMS, key=lambda s: len(s.events))
    true = true_said(stream)
    first, second, third = true[:3]
    late = Said(second.time + 1.0, second.text)
    rest = [Said(first.time, "A ring appears."), late, *true[3:]]
    alarm = Said(0.0, "The scene changes.")
    assert stream.events[0].time > 0.5
    found = mistakes_in(watched(stream, sorted([alarm, *rest])))
    kinds = {mistake.kind: mistake for mistake in found}
    assert len(found) == 4
    assert kinds["false alarm"].said == alarm
    assert kinds["wrong sentence"].said == Said(first.time, "A ring appears.")
    assert kinds["wrong time"].said == late
    missed = kinds["missed"].true
    assert missed is not None and missed.text == third.text


def test_what_is_said_twice_is_one_too_many() -> None:
    stream = STREAMS[0]
    true = true_said(stream)
    again = Said(stream.events[0].time - 0.4, true[0].text)
    (mistake,) = mistakes_in(watched(stream, sorted([again, *true])))
    assert mistake.kind == "one too many"


def test_the_worst_streams_come_first_and_faultless_ones_not_at_all() -> None:
    items = [watched(stream, true_said(stream)[skip:]) for skip, stream in enumerate(STREAMS)]
    ranked = worst(items, count=2)
    assert [(item.stream.name, len(found)) for item, found in ranked] == [
        (STREAMS[3].name, 3),
        (STREAMS[2].name, 2),
    ]
    assert worst(items[:1]) == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9), st.data())
def test_climbing_ends_on_a_measured_top(heights: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(heights) - 1))
    best, measured = climb(lambda place: float(heights[place]), start, len(heights))
    assert measured[best] == max(measured.values())
    assert {max(best - 1, 0), best, min(best + 1, len(heights) - 1)} <= measured.keys()
    assert measured == {place: heights[place] for place in measured}
    if heights == sorted(heights):
        assert heights[best] == heights[-1] or heights[best] == heights[min(best + 1, len(heights) - 1)]


def test_calibration_chooses_a_threshold_of_its_grid_and_tells_what_it_measured() -> None:
    grid = (0.001, 0.01, 0.1)
    best, table = calibrate(random_model(), [short_stream(seconds=6)], grid=grid)
    assert best in grid
    assert [tried.threshold for tried in table] == list(grid)
    measured = {tried.threshold: tried.f1 for tried in table if tried.f1 is not None}
    assert len(measured) >= 2
    assert measured[best] == max(measured.values())
    silent = calibrate(random_model(), [short_stream(seconds=6)], grid=grid, names=False)[1]
    assert {tried.f1 for tried in silent} <= {None, 1.0}  # of shapes there is nothing to be told without names
    with pytest.raises(InputError, match="0 streams"):
        calibrate(random_model(), [])
    with pytest.raises(InputError, match="does not ascend"):
        calibrate(random_model(), STREAMS, grid=(0.5, 0.2))


def test_other_processes_hush_chatty_libraries_before_they_import_them() -> None:
    script = (
        "from videollm_mod.quiet import hushed; import sys; assert not {'torch', 'transformers'} & set(sys.modules); "
    )
    script += "print(hushed('logging', 'getLogger', 'torchao').level, hushed('os.path', 'join', 'a', 'b'))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.split() == ["40", "a/b"]


def test_calibration_is_the_same_whether_the_tower_sees_each_picture_once_or_for_every_threshold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, streams, calls = random_model(), [short_stream(number, seconds=6) for number in range(2)], []
    plain = FrameEncoder.forward
    monkeypatch.setattr(FrameEncoder, "forward", lambda *args: calls.append(len(args[1])) or plain(*args))
    once, seen = calibrate(model, streams), sum(calls)
    assert seen == sum(len(stream.times) for stream in streams)
    monkeypatch.setattr(calibration, "HELD", 0)
    assert calibrate(model, streams) == once and sum(calls) > 3 * seen


def test_calibration_counts_what_a_reduction_puts_behind_a_frames_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    model, streams = random_model(), [short_stream(0, seconds=2)]
    with GRT(0.5).on(model):
        ((_, features),) = calibration._films(model, streams, 1)
        assert features is not None
        size = 4 * features.numel()  # as if of float32
        monkeypatch.setattr(calibration, "HELD", size)
        assert calibration._films(model, streams, 1)[0][1] is not None
        monkeypatch.setattr(calibration, "HELD", size - 1)
        assert calibration._films(model, streams, 1)[0][1] is None


@pytest.mark.slow
def test_two_processes_find_what_one_finds() -> None:
    model, streams = random_model(), [short_stream(number, seconds=6) for number in range(3)]
    films = [(stream, None) for stream in streams]
    alone = run_jobs(model, watch_truth, films)
    spread = run_jobs(model, watch_truth, films, workers=2)
    for one, other in zip(alone, spread, strict=True):
        assert one.silence.tolist() == pytest.approx(other.silence.tolist())
    assert [len(result.turns) for result in alone] == [len(result.turns) for result in spread]
    with pytest.raises(InputError, match="workers is 0"):
        run_streams(model, watch_both, streams, workers=0)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    random_model().save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports that no test names a folder for do not land in the project."""
    monkeypatch.chdir(tmp_path)


def test_the_command_gives_every_promised_number_and_a_page_with_all_its_pictures(
    model_folder: str, tmp_path: Path
) -> None:
    report = tmp_path / "a" / "report"
    config = EvalWorldConfig(
        model=model_folder, streams=2, heldout=1, seconds=10, workers=1, report=report, json=tmp_path / "out.json"
    )
    result = evaluate_world(config)
    assert [key for key in PROMISED if key not in result] == []
    assert set(NAMES) <= set(result["intervals"]) and set(NAMES) <= set(result["heldout"])
    assert (result["streams"], result["frames"], result["seconds"]) == (2, 40, 20)
    assert result["f1_heldout"] == result["heldout"]["f1"]
    assert json.loads((tmp_path / "out.json").read_text()) == json.loads(json.dumps(result))
    page = (report / "index.html").read_text()
    pictures = re.findall(r'<img src="([^"]+)"', page)
    assert pictures and sorted(pictures) == sorted(path.name for path in report.glob("*.png"))
    for picture in pictures:
        assert Image.open(report / picture).height == 32
    assert page.count("<svg") == page.count("<h3>") == 2
    assert "http" not in page  # nothing from elsewhere


def test_an_evaluation_goes_on_from_its_journal_and_ends_with_the_same_numbers(
    model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = EvalWorldConfig(model=model_folder, streams=3, heldout=1, seconds=10, workers=1)
    journal = tmp_path / "journal.jsonl"
    part = evaluate_world(dataclasses.replace(whole, streams=2, heldout=0, journal=journal))
    assert len(journal.read_text().splitlines()) == 1 + 2
    with journal.open("a") as file:
        file.write('{"stream": "test-0000')  # killed while it wrote
    watched: list[str] = []

    def watch(model: StreamingVideoLM, stream: WorldStream) -> Program[Watched]:
        watched.append(stream.name)
        return (yield from watch_both(model, stream))

    monkeypatch.setattr("videollm_mod.evaluate.journal.watch_both", watch)
    went_on = evaluate_world(dataclasses.replace(whole, journal=journal))
    assert watched == ["test-000002", "heldout-000000"]
    again = evaluate_world(dataclasses.replace(whole, journal=journal))
    assert len(watched) == 2 and again["frames_per_second"] == 0
    at_once = evaluate_world(whole)
    for key in set(at_once) - {"wall_seconds", "frames_per_second"}:
        assert went_on[key] == at_once[key] == again[key], key
    assert part["streams"] == 2


def test_a_journal_of_something_else_is_refused_and_stays_as_it_is(model_folder: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    config = EvalWorldConfig(model=model_folder, streams=1, heldout=0, seconds=4, workers=1, journal=journal)
    evaluate_world(config)
    before = journal.read_text()
    for change, what in (({"threshold": 0.5}, "settings"), ({"plan": "full"}, "plan"), ({"seconds": 5.0}, "world")):
        with pytest.raises(InputError, match=f"of another '{what}'"):
            evaluate_world(dataclasses.replace(config, **change))
    assert journal.read_text() == before
    for text in ("a shopping list\n", '["a"]\n', "no line end", '{"about": {}, oh\n'):
        journal.write_text(text)
        with pytest.raises(InputError, match="is no journal of an evaluation"):
            evaluate_world(config)
        assert journal.read_text() == text


def test_a_plan_and_a_threshold_from_the_command_line_are_those_that_run(model_folder: str) -> None:
    config = EvalWorldConfig(
        model=model_folder, split="heldout", streams=1, seconds=12, workers=1, threshold=0.0, plan="full"
    )
    result = evaluate_world(config)
    assert (result["threshold"], result["plan"]["layers"]) == (0.0, "full")
    assert result["events"] > 0
    assert result["f1"] == result["f1_heldout"] == 0  # it never speaks
    assert result["description"].startswith("shapes, streams heldout-000000 to heldout-000000")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"streams": 0}, "--streams 0"),
        ({"heldout": -1}, "--heldout -1"),
        ({"workers": 0}, "--workers 0"),
        ({"threshold": 1.5}, "--threshold 1.5"),
        ({"keep": 0.0}, "--keep 0.0"),
        ({"keep": 2.0}, "--keep 2.0"),
        ({"seconds": 0.2}, "seconds 0.2"),
        ({"model": "no-such-model"}, "no-such-model"),
        ({"json": Path("no/such/folder/out.json")}, "no/such/folder"),
    ],
)
def test_bad_flags_are_refused_by_name(model_folder: str, change: dict[str, object], words: str) -> None:
    config = dataclasses.replace(EvalWorldConfig(model=model_folder, streams=1, heldout=0), **change)
    with pytest.raises(InputError, match=re.escape(words)):
        evaluate_world(config)


def test_a_report_cannot_go_where_a_file_is(model_folder: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match="taken"):
        evaluate_world(EvalWorldConfig(model=model_folder, report=tmp_path / "taken"))


def test_the_flags_can_be_listed_without_waiting_for_torch() -> None:
    check = "import sys, videollm_mod.evaluate.world; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_cameras_are_a_world_with_dials_of_their_own(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "model")
    config = EvalWorldConfig(
        model=str(tmp_path / "model"),
        world="cameras",
        dials=("objects=1", "quiet=0", "events_per_minute=14"),
        streams=2,
        seconds=12,
        workers=1,
        threshold=0,
        journal=tmp_path / "journal",
        report=tmp_path / "report",
    )
    result = evaluate_world(config)
    assert result["world"] == "cameras" and result["heldout"] is None and result["f1_heldout"] is None
    assert set(result["by_kind"]) <= {"placed", "removed"} and result["events"] > 0
    for change, told in (
        ({"dials": ("clutter=3",)}, "--dials 'clutter=3' sets nothing"),
        ({"difficulty": "hard"}, "shapes' world"),
        ({"split": "heldout"}, "test and validation"),
    ):
        with pytest.raises(InputError, match=told):
            evaluate_world(dataclasses.replace(config, **change))  # type: ignore[arg-type]
