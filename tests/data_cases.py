"""Small data sets in the layouts in which they are published, and where the real annotation files lie."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videollm_mod.video import VideoWriter

# beside the repository; a worktree may lie deeper
_FOUND = [up / "shared" / "data" for up in Path(__file__).parents if (up / "shared" / "data").is_dir()]
DATA = _FOUND[0] if _FOUND else Path(__file__).parents[2] / "shared" / "data"
ANNOTATIONS, VIDEOS = DATA / "annotations", DATA / "videos"
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"no real clips in {VIDEOS}")
needs_annotations = pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason=f"no annotation files in {ANNOTATIONS}")
EPIC_COLUMNS = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
    "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
).split(",")


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_coin(root: Path, videos: int = 2) -> None:
    """COIN.json: so many training videos and one for testing, of 20 s with three steps of 4 s each."""
    database: dict[str, Any] = {}
    for number in range(videos + 1):
        steps = [("wet hair", 2.0), ("process (crop, fold) paper", 8.0), ("dry hair", 14.0)]
        database[f"vid{number}"] = {
            "video_url": f"https://www.youtube.com/embed/vid{number}",
            "duration": 20.0,
            "recipe_type": 42,
            "class": "WashHair" if number % 2 == 0 else "ReplaceCDDriveWithSSD",
            "subset": "training" if number < videos else "testing",
            "start": 1.0,
            "end": 19.2,
            "annotation": [
                {"id": str(place), "segment": [start, start + 4.0], "label": label}
                for place, (label, start) in enumerate(steps)
            ],
        }
    write_json(root / "COIN.json", {"database": database})


def write_coin_videos(folder: Path, videos: int = 3, size: int = 48) -> None:
    """Their clips, of 20 s: each step has a brightness of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(videos):
        with VideoWriter(folder / f"vid{number}.mp4", fps=4) as writer:
            for frame in range(80):
                step = int(frame / 4 - 2) // 6
                writer.write(np.full((size, size, 3), 40 + 60 * max(step, 0) + number, np.uint8))


def write_ego4d(root: Path) -> None:
    """Narrations of three videos by two annotators, the benchmarks' files, LTA and live chat."""
    told = [
        (4.2, "#C C picks a cup.", "a"),
        (1.1, "#C C looks around", "a"),
        (4.4, "#C C puts down  a cup,\n", "a"),  # on the frame of "picks", at 2 fps
        (7.0, "#C C puts down a cup.", "a"),  # the same again
        (9.3, "#O A man X #unsure waves.", "a"),
        (9.9, "#unsure", "a"),  # says nothing
        (2.0, "#c c walks", "b"),
    ]
    narrations = [{"time": time, "text": text, "_annotation_uid": name} for time, text, name in told]
    empty: dict[str, Any] = {"status": "complete", "narrations": [], "summaries": []}
    videos = {name: {**empty, "narrations": narrations} for name in ("train-uid", "val-uid", "test-uid")}
    write_json(root / "all_narrations_redacted.json", {"videos": {**videos, "silent-uid": empty}})
    from videollm_mod.data.ego4d import BENCHMARKS

    for benchmark, key in BENCHMARKS.items():
        held = [{"video_uid": "val-uid"}] if benchmark == "nlq" else []
        test = [{"video_uid": "test-uid"}, {"video_uid": "val-uid"}] if benchmark == "vq" else []
        write_json(root / f"{benchmark}_val.json", {"version": "v2", key: held})
        write_json(root / f"{benchmark}_test_unannotated.json", {"version": "v2", key: test})
    write_json(
        root / "refined_narration_stream_val.json",
        {"val-uid": {"a": [{"time": 1.1, "text": "You look around."}, {"time": 4.2, "text": "You pick a cup."}]}},
    )
    chat = [("user", 6.3, "What now?"), ("assistant", 6.3, "Boil water."), ("assistant", 8.2, "Add the pasta.")]
    conversation = [{"role": role, "content": text, "time": time} for role, time, text in chat]
    write_json(
        root / "goalstep_livechat_trainval_filtered_21k.json", [{"video_uid": "val-uid", "conversation": conversation}]
    )
    write_json(root / "fho_lta_taxonomy.json", {"verbs": ["take_(pick)", "turn_on"], "nouns": ["bat_(tool)", "cup"]})
    write_json(root / "fho_lta_val.json", {"version": "v2", "split": "val", "clips": lta_actions(30)})
    write_json(
        root / "ego4d.json",
        {"videos": [{"video_uid": f"{name}-uid", "duration_sec": 300.0} for name in ("train", "val", "test")]},
    )


def lta_actions(count: int) -> list[dict[str, Any]]:
    """A clip that begins at 100 s, of actions of a second each."""
    return [
        {
            "video_uid": "val-uid",
            "clip_uid": "clip",
            "clip_id": 1,
            "clip_parent_start_sec": 100.0,
            "clip_parent_end_sec": 160.0,
            "action_idx": place,
            "action_clip_start_sec": place + 0.2,
            "action_clip_end_sec": place + 1.1,
            "verb": "x",
            "noun": "y",
            "verb_label": place % 2,
            "noun_label": (place // 2) % 2,
        }
        for place in reversed(range(count))
    ]


def write_egoexo4d(root: Path) -> None:
    """Two passes over a take, of which one was rejected, and its keysteps."""
    descriptions = [
        {
            "text": text,
            "timestamp": time,
            "subject": "C",
            "ego_visible": True,
            "best_exo": {"cam_id": "cam01"},
            "unsure": False,
        }
        for text, time in (("C moves his right hand.", 0.4), ("C touches the screw.", 18.48))
    ]
    passes = [
        {"annotation_uid": name, "annotator_id": "1", "rejected": rejected, "reject_reason": None, "descriptions": told}
        for name, rejected, told in (("one", False, descriptions), ("two", True, descriptions))
    ]
    write_json(root / "annotations" / "atomic_descriptions_val.json", {"annotations": {"take-uid": passes}})
    segments = [
        {
            "start_time": start,
            "end_time": start + 5.0,
            "step_id": step,
            "step_unique_id": 800 + step,
            "step_name": name,
            "step_description": "as told",
            "is_essential": True,
        }
        for step, name, start in ((31, "Unbox package", 0.85), (10, "Read the instructions", 8.0))
    ]
    take = {"take_uid": "take-uid", "take_name": "lab_01", "scenario": "A test", "segments": segments}
    vocabulary = {"831": "Unbox package", "810": "Read the instructions"}
    write_json(
        root / "annotations" / "keystep_val.json",
        {"annotations": {"take-uid": take}, "taxonomy": {}, "vocabulary": vocabulary},
    )
    write_json(root / "takes.json", [{"take_uid": "take-uid", "take_name": "lab_01", "duration_sec": 40.0}])


def write_epic(root: Path, actions: int = 30, split: str = "validation") -> None:
    """One video of a minute, an action every second and a half."""
    rows = []
    for place in range(actions):
        start = 1.5 * place + 0.5
        times = [f"00:00:{value:06.3f}" for value in (start + 0.1, start, start + 1.2)]
        rows.append(
            [f"P01_01_{place}", "P01", "P01_01", *times, "1", "2", "take plate", "take", str(place % 2), "plate"]
        )
        rows[-1] += [str(place % 3), "['plate']", "[2]"]
    write_csv(root / f"EPIC_100_{split}.csv", EPIC_COLUMNS, rows)
    write_csv(root / "EPIC_100_verb_classes.csv", ["id", "key"], [["0", "take"], ["1", "turn-on"]])
    write_csv(
        root / "EPIC_100_noun_classes_v2.csv", ["id", "key"], [["0", "tap"], ["1", "board:chopping"], ["2", "pan"]]
    )


def write_csv(path: Path, columns: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
