"""`eval clips`: what is said of a clip against labels by hand, and labels that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_cases import DATA

from videollm_mod.evaluate.clips import EvalClipsConfig, evaluate_clips, read_labels
from videollm_mod.evaluate.result import read_results
from videollm_mod.types import InputError

DEMO = Path(__file__).parents[1] / "videollm_mod" / "assets" / "demo.mp4"


def write(folder: Path, labels: list[dict[str, object]]) -> Path:
    path = folder / "demo.jsonl"
    path.write_text("".join(json.dumps(label) + "\n" for label in labels))
    return path


def test_labels_are_events_with_their_side_or_place_ascending(tmp_path: Path) -> None:
    labels = [
        {"time": 9, "event": "placed", "place": "middle", "what": "bottle"},
        {"time": 6.1, "event": "enter", "side": "bottom"},
    ]
    assert read_labels(write(tmp_path, labels)) == [(6.1, "enter bottom"), (9.0, "placed middle")]


@pytest.mark.slow
def test_what_is_said_in_time_and_in_the_labels_words_is_right(tmp_path: Path) -> None:
    """The model of shapes tells no events of cameras, so its sentences stand as they are: wrong, but here."""
    write(tmp_path, [{"time": 1.0, "event": "enter", "side": "left"}])
    wrong = evaluate_clips(EvalClipsConfig(clips=(DEMO,), labels=tmp_path, model="tiny"))
    said = wrong["clips"]["demo.mp4"]["said"]
    assert wrong["f1"] == 0 and len(said) > 5 and wrong["clips"]["demo.mp4"]["missed"]
    spelt = []
    for line in said:
        event, _, side = line["text"].rpartition(" ")
        spelt.append({"time": line["time"] + 0.9, "event": event, "side": side})
    write(tmp_path, [*spelt[:-1], spelt[-1] | {"time": 500.0}])
    result = evaluate_clips(
        EvalClipsConfig(clips=(DEMO,), labels=tmp_path, model="tiny", json=tmp_path / "result.json")
    )
    assert result["f1"] == pytest.approx(1 - 1 / len(said), abs=1e-4)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert result["metrics"]["f1"]["value"] == pytest.approx(result["f1"], abs=1e-4)
    assert result["metrics"]["f1"]["low"] is None and "1 video say little" in result["warnings"][0]
    assert {"samples", "seed", "plan", "frame_times", "versions"} <= set(result)
    assert read_results(tmp_path)[0]["benchmark"] == "clips"
    assert evaluate_clips(EvalClipsConfig(clips=(DEMO,), labels=tmp_path, model="tiny", tolerance=0.5))["f1"] == 0


HALF = ('{"time": 1, "event": "enter"}', '{"event": "enter", "side": "top"}')


@pytest.mark.parametrize("line", ["no", "[]", "{}", *HALF])
def test_a_label_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "demo.jsonl").write_text(line)
    with pytest.raises(InputError, match="line 1, is no label"):
        read_labels(tmp_path / "demo.jsonl")


def test_a_clip_without_labels_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no labels in .*demo\.jsonl"):
        evaluate_clips(EvalClipsConfig(clips=(DEMO,), labels=tmp_path, model="tiny"))


@pytest.mark.slow
def test_the_bundled_camera_model_tells_what_happens_before_real_cameras() -> None:
    """Two clips that no training saw: people who come and go, bottles that are taken and put back."""
    if not (DATA / "events").is_dir():
        pytest.skip(f"no labelled clips in {DATA}")
    clips = tuple(DATA / "videos" / f"{path.stem}.mp4" for path in sorted((DATA / "events").glob("*.jsonl")))
    result = evaluate_clips(EvalClipsConfig(clips=clips, labels=DATA / "events"))
    assert result["model"] == "camera" and result["f1"] >= 0.9
