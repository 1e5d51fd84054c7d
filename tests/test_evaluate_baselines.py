"""What needs no model: silence, chance, and what a comparison of frames tells."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from evaluate_cases import random_model

from videollm_mod.evaluate.baselines import BASELINES, _prior, chance, difference, silent, tell_differences
from videollm_mod.evaluate.leaderboard import LeaderboardConfig, leaderboard
from videollm_mod.evaluate.summary import summarise_own
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig, make_stream

SMALL = WorldConfig(size=48, compress=False)
GREY, RED, BLUE = (90, 90, 90), (214, 42, 40), (42, 82, 216)


def film(*places: tuple[int, int] | None, colour: tuple[int, int, int] = RED) -> np.ndarray:
    """(F, 56, 56, 3) uint8: a square of 8 pixels at a corner (x, y) of each frame, or nothing, on grey."""
    frames = np.full((len(places), 56, 56, 3), GREY, np.uint8)
    for frame, place in zip(frames, places):
        if place is not None:
            x, y = place
            frame[max(y, 0) : y + 8, max(x, 0) : x + 8] = colour
    return frames


def told(frames: np.ndarray) -> list[tuple[float, str]]:
    return [(said.time, said.text) for said in tell_differences(frames, fps=2, threshold=10)]


def test_a_comparison_of_frames_tells_what_appears_disappears_turns_and_cuts() -> None:
    here = (24, 24)
    assert told(film(None, None, here, here)) == [(1.0, "A small red circle appears.")]
    assert told(film(here, here, None, None)) == [(1.0, "The small red circle disappears.")]
    both = np.concatenate([film(here, here), film(here, here, colour=BLUE)])
    assert told(both) == [(1.0, "The small red circle turns blue.")]
    assert told(np.concatenate([film(here), 255 - film(here)[:, ::-1]])) == [(0.5, "The scene changes.")]
    assert told(film(here, here, here)) == []


def test_a_comparison_of_frames_tells_what_moves_and_at_which_edge() -> None:
    across = [(-4, 24), (8, 24), (16, 24), (24, 24)]
    assert told(film(*across, (24, 24))) == [(1.5, "A small red circle enters from the left.")]
    assert [text for _, text in told(film(*reversed(across), None, None))] == [
        "The small red circle leaves to the left."
    ]
    inside = [(16, 24), (16, 24), (24, 24), (32, 24), (32, 24)]
    assert told(film(*inside)) == [
        (1.0, "The small red circle starts to move."),
        (2.0, "The small red circle stops."),
    ]


def test_light_that_drifts_everywhere_is_no_change() -> None:
    frames = np.concatenate([film((24, 24)) + np.uint8(8 * step) for step in range(4)])
    assert told(frames) == []


def test_every_baseline_gives_the_same_result_again_and_an_answer_to_every_question() -> None:
    for baseline in BASELINES.values():
        for number in range(3):
            stream = make_stream("test", number, dataclasses.replace(SMALL, questions=6))
            said, again = baseline(stream), baseline(stream)
            assert (said.narrations, said.answers) == (again.narrations, again.answers)
            assert len(said.answers) == len(stream.questions)
            assert [event.time for event in said.narrations] == sorted(event.time for event in said.narrations)


def test_silence_scores_nothing_chance_next_to_nothing_and_differences_find_when_but_not_what() -> None:
    streams = [make_stream("test", number, SMALL) for number in range(12)]
    silence, luck, pixels = (
        summarise_own([(stream, baseline(stream)) for stream in streams]) for baseline in (silent, chance, difference)
    )
    assert silence["f1"] == silence["question_accuracy"] == silence["false_alarms_per_minute"] == 0
    assert luck["f1"] < 0.1 < luck["timing_f1"]
    assert pixels["timing_f1"] > 1.5 * luck["timing_f1"]
    assert pixels["f1"] < 0.5 * pixels["timing_f1"]
    assert "lm_ppl" not in pixels and "lm_ppl" not in pixels["intervals"]


def test_chance_speaks_as_often_as_training_does() -> None:
    prior = _prior(SMALL)
    streams = [make_stream("test", number, SMALL) for number in range(40)]
    rate = np.mean([len(chance(stream).narrations) / len(stream.times) for stream in streams])
    assert rate == pytest.approx(prior.per_frame, rel=0.15)


def test_the_leaderboard_ranks_models_and_baselines_on_the_same_streams(tmp_path: Path) -> None:
    folder = tmp_path / "random"
    random_model().save_pretrained(folder)
    result = leaderboard(
        LeaderboardConfig(models=(str(folder),), streams=2, seconds=8, workers=1, json=tmp_path / "board.json")
    )
    assert set(result["rows"]) == {"silent", "chance", "difference", str(folder)}
    assert len({row["events"] for row in result["rows"].values()}) == 1
    stored = json.loads((tmp_path / "board.json").read_text())
    assert {"seed", "frame_times", "versions"} <= set(stored) and stored["rows"][str(folder)]["plan"]["keep"] == 0.4
    for change, words in (({"streams": 0}, "--streams 0"), ({"seconds": 0.5}, "--seconds 0.5")):
        with pytest.raises(InputError, match=words):
            leaderboard(dataclasses.replace(LeaderboardConfig(), **change))
