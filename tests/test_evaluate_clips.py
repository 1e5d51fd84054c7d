"""`eval clips`: what is said of a clip against labels by hand, and labels that cannot be read."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_cases import DATA

from videollm_mod.evaluate.clips import EvalClipsConfig, evaluate_clips, read_labels
from videollm_mod.evaluate.metrics import Said
from videollm_mod.evaluate.result import read_results
from videollm_mod.types import Frame, InputError

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


@pytest.fixture(scope="module")
def variants() -> Any:
    """runs/clip_variants.py as a module."""
    path = Path(__file__).parents[1] / "runs" / "clip_variants.py"
    spec = importlib.util.spec_from_file_location("clip_variants", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def four_a_second(count: int = 12) -> list[Frame]:
    random = np.random.default_rng(0)
    return [Frame(random.integers(0, 256, (50, 60, 3), np.uint8), n / 4, n) for n in range(count)]


def test_a_clip_mirrored_or_backwards_has_its_labels_mirrored_or_backwards(variants: Any) -> None:
    frames, events = four_a_second(), [Said(0.5, "enter left"), Said(2.0, "placed middle")]
    there, labels = variants.variant("mirrored", frames, events)
    assert labels == [Said(0.5, "enter right"), Said(2.0, "placed middle")]
    assert all((one.image == other.image[:, ::-1]).all() for one, other in zip(there, frames[::2]))
    there, labels = variants.variant("backwards", frames, events)
    assert labels == [Said(0.5, "removed middle"), Said(2.0, "leave left")]
    assert [frame.time for frame in there] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert (there[0].image == frames[10].image).all()
    assert variants.variant("backwards, mirrored", frames, events)[1][0] == Said(0.5, "removed middle")


def test_a_quarter_of_a_second_later_the_frames_in_between_are_seen(variants: Any) -> None:
    there, labels = variants.variant("a quarter of a second later", four_a_second(), [Said(1.0, "enter top")])
    assert [frame.time for frame in there] == [0.25, 0.75, 1.25, 1.75, 2.25, 2.75]
    assert labels == [Said(1.0, "enter top")]


def test_other_colours_change_the_picture_alone(variants: Any) -> None:
    frames, events = four_a_second(), [Said(1.0, "leave bottom")]
    for name in variants.COLOURS:
        there, labels = variants.variant(name, frames, events)
        assert len(there) == 6 and (labels == events) and all(frame.image.dtype == np.uint8 for frame in there)
        assert (name == "as it is") == all((a.image.shape, a.image.tobytes()) == (b.image.shape, b.image.tobytes())
                                           for a, b in zip(there, frames[::2]))  # fmt: skip
    assert np.ptp(variants.variant("grey", frames, events)[0][0].image.astype(int), axis=-1).max() == 0
