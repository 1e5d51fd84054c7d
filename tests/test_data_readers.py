"""Readers of data sets: on small files in the published layouts, and on the real annotation files where they are."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from data_cases import ANNOTATIONS, needs_annotations, write_coin, write_ego4d, write_egoexo4d, write_epic, write_json

from videollm_mod.data import coin, egoexo4d, epic
from videollm_mod.data.ego4d import chat_segments, class_words, clean
from videollm_mod.data.registry import DATA_SETS, data_set, read_data
from videollm_mod.data.segments import Segment, Stream, parse_stream, read_streams, stream_record, write_streams
from videollm_mod.types import InputError

WRITERS = {"coin": write_coin, "ego4d": write_ego4d, "egoexo4d": write_egoexo4d, "epic": write_epic}


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All data sets, small."""
    found = {}
    for name, write in WRITERS.items():
        found[name] = tmp_path_factory.mktemp(name)
        write(found[name])
    return found


def texts(stream: Stream) -> list[tuple[str, float | None, str]]:
    return [(s.kind, s.time, s.text) for s in stream.segments if s.kind != "stream"]


def watched(stream: Stream) -> list[tuple[float | None, float | None, bool]]:
    return [(s.start, s.end, s.learn) for s in stream.of("stream")]


@pytest.mark.parametrize("name", DATA_SETS)
def test_every_readers_streams_fit_the_format(roots: dict[str, Path], name: str) -> None:
    streams = list(read_data(name, roots[name.split("-")[0]]))
    assert streams and len({stream.id for stream in streams}) == len(streams)
    for stream in streams:
        assert parse_stream(json.loads(json.dumps(stream_record(stream))), Path(".")) == stream
        assert stream.replies and stream.meta["data"] == name and stream.meta["split"] == DATA_SETS[name].splits[-1]


# -- Ego4D -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("#C C picks a cup.", "C picks a cup."),
        (" #c c  walks, ", "C walks."),
        ("#O A man X #unsure waves", "A man X waves."),
        ("#Unsure", ""),
        ("#C C", ""),
        ("@c C runs..", "C runs."),
        ("#", ""),
    ],
)
def test_tags_are_cleaned(raw: str, text: str) -> None:
    assert clean(raw) == text


def test_ego4d_narrations_are_one_stream_a_pass(roots: dict[str, Path]) -> None:
    first, second = read_data("ego4d-narration", roots["ego4d"], "train")
    assert (first.id, second.id) == ("train-uid/a", "train-uid/b")
    assert texts(first)[1:] == [
        ("assistant", 1.1, "C looks around."),
        ("assistant", 4.4, "C puts down a cup."),  # the later one of its frame; not told again at 7.0
        ("assistant", 9.3, "A man X waves."),
    ]
    # the frame at which the instruction comes is not learned
    assert watched(first) == [(1.1, 1.1, False), (1.1, 9.3, True)]
    assert first.segments[1] == Segment("user", 1.1, text=first.segments[1].text) and "real time" in texts(first)[0][2]
    assert texts(second)[1:] == [("assistant", 2.0, "C walks.")] and watched(second) == [(2.0, 2.0, False)]


def test_ego4d_is_split_by_what_the_benchmarks_hold_out(roots: dict[str, Path]) -> None:
    found = {
        split: {stream.meta["video"] for stream in read_data("ego4d-narration", roots["ego4d"], split)}
        for split in ("train", "val", "test")
    }
    assert found == {"train": {"train-uid"}, "val": {"val-uid"}, "test": {"test-uid"}}


def test_ego4d_says_which_benchmark_file_is_missing(tmp_path: Path) -> None:
    write_ego4d(tmp_path)
    (tmp_path / "fho_sta_val.json").unlink()
    with pytest.raises(InputError, match=r"needs fho_sta_val.json.*--datasets annotations"):
        list(read_data("ego4d-narration", tmp_path))


def test_a_live_chat_begins_up_to_twenty_frames_before_its_question(roots: dict[str, Path]) -> None:
    (stream,) = read_data("ego4d-livechat", roots["ego4d"])
    assert texts(stream) == [
        ("user", 6.0, "What now?"),  # floored to its frame
        ("assistant", 6.0, "Boil water."),
        ("assistant", 8.5, "Add the pasta."),
    ]
    before = [stretch for stretch in watched(stream) if (stretch[1] or 0) <= 6.0]
    assert all((end or 0) - (start or 0) <= 9.5 for start, end, _ in before)
    assert watched(stream)[-1] == (6.5, 8.5, True)


def test_what_goes_back_in_time_ends_a_live_chat() -> None:
    said = [("user", "A?", 3.0), ("assistant", "B.", 3.0), ("assistant", "C.", 5.0), ("user", "D?", 4.0)]
    replies = [s.text for s in chat_segments(said, 2.0, 100.0, "x") if s.kind == "assistant"]
    assert replies == ["B.", "C."]
    assert [s.text for s in chat_segments(said, 2.0, 4.5, "x") if s.kind == "assistant"] == ["B."]
    assert chat_segments(said[1:], 2.0, 100.0, "x") == () and chat_segments([], 2.0, 100.0, "x") == ()


def test_lta_shows_eight_actions_and_asks_for_the_twenty_after_them(roots: dict[str, Path]) -> None:
    streams = list(read_data("ego4d-lta", roots["ego4d"]))
    assert [stream.meta["last_visible_action"] for stream in streams] == [7, 8, 9]  # 30 - 28 + 1 of them
    first = streams[0]
    assert watched(first) == [(100.0, 108.0, True)]  # 100.2 and 108.1, rounded to frames
    assert "After 17 video frames" in texts(first)[0][2] and "next 20 actions" in texts(first)[0][2]
    answer = texts(first)[1][2].splitlines()
    assert len(answer) == 20 and answer[:3] == ["1. Take bat.", "2. Turn on bat.", "3. Take cup."]
    assert first.meta["verbs"] == [0, 1] * 10 and first.meta["nouns"][:4] == [0, 0, 1, 1]
    assert class_words("turn_on_(switch,_start)") == "turn on" and class_words("pot_(planter)") == "flowerpot"


# -- Ego-Exo4D ---------------------------------------------------------------------------------------------------------


def test_egoexo4d_leaves_rejected_passes_out(roots: dict[str, Path]) -> None:
    (stream,) = read_data("egoexo4d-narration", roots["egoexo4d"])
    assert stream.id == "take-uid/one" and stream.duration == 40.0
    assert texts(stream)[1:] == [
        ("assistant", 0.4, "C moves his right hand."),
        ("assistant", 18.48, "C touches the screw."),
    ]


def test_keysteps_are_asked_for_at_their_ends(roots: dict[str, Path]) -> None:
    first, second = read_data("egoexo4d-keystep", roots["egoexo4d"])
    assert watched(first) == [(0.85, 5.85, True)] and texts(first)[1] == ("assistant", 5.85, "Unbox package.")
    assert second.replies[0].meta == {"step": 810} and second.meta["task"] == "A test"
    source = data_set("egoexo4d-keystep").source(roots["egoexo4d"])
    assert egoexo4d.labels(source) == {831: "Unbox package.", 810: "Read the instructions."}


def test_a_takes_video_is_that_of_its_glasses(roots: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "takes" / "lab_01" / "frame_aligned_videos" / "downscaled" / "448"
    folder.mkdir(parents=True)
    for name in ("aria01_214-1.mp4", "aria01_1201-1.mp4", "cam01.mp4"):
        (folder / name).touch()
    (stream,) = read_data("egoexo4d-narration", roots["egoexo4d"], videos=tmp_path)
    assert stream.video == folder / "aria01_214-1.mp4"


# -- COIN --------------------------------------------------------------------------------------------------------------


def test_coin_asks_for_a_step_after_its_frames(roots: dict[str, Path]) -> None:
    streams = list(read_data("coin-step", roots["coin"], "train"))
    assert [stream.id for stream in streams] == [
        f"coin-step/vid{video}/{step}" for video in range(2) for step in range(3)
    ]
    second = streams[1]
    assert [segment.kind for segment in second.segments] == ["user", "stream", "assistant"]
    assert watched(second) == [(8.0, 12.0, True)]
    assert texts(second)[1] == ("assistant", 12.0, "Crop and fold paper.")  # renamed, as it is published
    assert len(list(read_data("coin-step", roots["coin"]))) == 3  # of the test video


def test_coins_other_tasks(roots: dict[str, Path]) -> None:
    def answers(name: str) -> list[str]:
        return [stream.replies[0].text for stream in read_data(name, roots["coin"], "train")]

    assert answers("coin-task") == ["Wash hair.", "Replace cd drive with ssd."]  # as published: str.capitalize
    assert answers("coin-next")[:2] == ["Crop and fold paper.", "Dry hair."]
    assert answers("coin-procedure")[:2] == ["1. Crop and fold paper.\n2. Dry hair.", "Dry hair."]
    asked = [stream.segments[0].text for stream in read_data("coin-procedure-goal", roots["coin"], "train")]
    assert asked[2].startswith("To replace CD drive with SSD, what is the next 2 actions for the video?")
    assert asked[1].startswith("To wash hair, what is the next action for the video?")
    source = data_set("coin-step").source(roots["coin"])
    assert coin.labels(source) == {
        "steps": ["crop and fold paper", "dry hair", "wet hair"],
        "tasks": ["replace CD drive with SSD", "wash hair"],
    }


@needs_annotations
def test_the_files_of_coins_tasks_can_be_put_together(roots: dict[str, Path], tmp_path: Path) -> None:
    tasks = [name for name in DATA_SETS if name.startswith("coin-")]
    counts = [write_streams(tmp_path / f"{name}.jsonl", read_data(name, roots["coin"])) for name in tasks]
    (tmp_path / "coin.jsonl").write_text("".join((tmp_path / f"{name}.jsonl").read_text() for name in tasks))
    assert len(list(read_streams(tmp_path / "coin.jsonl"))) == sum(counts) and len(tasks) == 5


@needs_annotations
def test_all_180_class_names_of_coin_split_as_published() -> None:
    with (ANNOTATIONS / "COIN_target_action_mapping.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["Target Label"] for row in rows})
    assert len(names) == 180 and len(rows) == 778
    for name in names:
        spaced = "".join(f" {char.lower()}" if char.isupper() else char for char in name)
        for apart in ("t v", "c d", "s i m", "n b a", "s s d", "r j45"):  # what stays together
            spaced = spaced.replace(f" {apart} ", f" {apart.replace(' ', '').upper()} ")
            spaced = spaced.removesuffix(f" {apart}") + (
                f" {apart.replace(' ', '').upper()}" if spaced.endswith(f" {apart}") else ""
            )
        assert coin.class_words(name) == spaced.strip()


# -- EPIC-KITCHENS-100 -------------------------------------------------------------------------------------------------


def test_epic_narrations_keep_their_spans_and_classes(roots: dict[str, Path]) -> None:
    (stream,) = read_data("epic-narration", roots["epic"])
    assert len(stream.replies) == 30 and watched(stream) == [(0.0, 45.2, True)]
    assert stream.replies[1] == Segment(
        "assistant", 2.1, 2.0, 3.2, "Take plate.", meta={"verb": 1, "noun": 1, "id": "P01_01_1"}
    )


def test_epic_anticipation_ends_a_second_before_the_action(roots: dict[str, Path]) -> None:
    streams = list(read_data("epic-anticipation", roots["epic"]))
    assert len(streams) == 30
    assert watched(streams[0]) == [(0.0, 0.0, True)]  # it starts at 0.5 s
    assert watched(streams[29]) == [(13.0, 43.0, True)] and streams[29].replies[0].text == "Turn on pan."
    assert streams[1].replies[0].text == "Turn on chopping board."
    lta = list(read_data("epic-lta", roots["epic"]))
    assert len(lta) == 3 and lta[0].meta["verbs"] == [0, 1] * 10 and lta[0].replies[0].text.startswith("1. Take pan.\n")


@needs_annotations
def test_epics_validation_set_counts_as_the_file_does() -> None:
    with (ANNOTATIONS / "EPIC_100_validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    per_video = Counter(row["video_id"] for row in rows)
    streams = list(read_data("epic-narration", ANNOTATIONS))
    assert {stream.id: len(stream.replies) for stream in streams} == per_video
    assert sum(per_video.values()) == 9668 and len(per_video) == 138
    anticipated = Counter(stream.meta["video"] for stream in read_data("epic-anticipation", ANNOTATIONS))
    assert anticipated == per_video
    lta = Counter(stream.meta["video"] for stream in read_data("epic-lta", ANNOTATIONS))
    assert lta == {video: count - 27 for video, count in per_video.items() if count > 27}
    # a label is what its row says
    by_id = {row["narration_id"]: row for row in rows}
    for stream in streams[:5]:
        for reply in stream.replies:
            row = by_id[reply.meta["id"]]
            assert (reply.meta["verb"], reply.meta["noun"]) == (int(row["verb_class"]), int(row["noun_class"]))
            assert reply.text.lower() == row["narration"].strip(" .,").lower() + "."


@needs_annotations
def test_all_classes_of_epic_have_words() -> None:
    verbs, nouns = epic.classes(data_set("epic-lta").source(ANNOTATIONS))
    assert (len(verbs), len(nouns)) == (97, 305)
    assert verbs[0] == "take" and nouns[18] == "chopping board"
    assert len(set(verbs.values())) == 97 and len(set(nouns.values())) == 305


# -- what is missing or broken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_missing_file_is_named_with_what_gives_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"needs .*(json|csv), which is not in .*; get it with: ") as told:
        list(read_data(name, tmp_path))
    assert DATA_SETS[name].page in str(told.value)


def test_a_missing_video_is_named_or_counted(roots: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "42").mkdir()
    (tmp_path / "42" / "vid1.mp4").touch()
    with pytest.raises(InputError, match=r"the video vid0 of coin-step is not in .*--skip-missing"):
        list(read_data("coin-step", roots["coin"], "train", videos=tmp_path))
    source = data_set("coin-step").source(roots["coin"], "train", videos=tmp_path, skip_missing=True)
    assert {stream.video for stream in DATA_SETS["coin-step"].read(source)} == {tmp_path / "42" / "vid1.mp4"}
    assert source.missing == {"vid0"}


def test_a_bad_record_is_told_with_its_id_or_skipped_and_counted(tmp_path: Path) -> None:
    write_coin(tmp_path)
    values = json.loads((tmp_path / "COIN.json").read_text())
    values["database"]["vid0"]["annotation"][1]["segment"] = [9.0, 3.0]
    del values["database"]["vid1"]["class"]
    write_json(tmp_path / "COIN.json", values)
    with pytest.raises(InputError, match=r"COIN.json, record vid0: it ends at 3 s, before it starts .*--skip-bad"):
        list(read_data("coin-step", tmp_path, "train"))
    source = data_set("coin-step").source(tmp_path, "train", skip_bad=True)
    assert list(DATA_SETS["coin-step"].read(source)) == []
    assert len(source.skipped) == 2 and "record vid1: it lacks 'class'" in source.skipped[1]


def test_a_bad_row_of_epic_is_told_with_its_id(tmp_path: Path) -> None:
    write_epic(tmp_path)
    path = tmp_path / "EPIC_100_validation.csv"
    path.write_text(path.read_text().replace("00:00:02.000", "soon", 1))
    with pytest.raises(InputError, match=r"record P01_01_1: start_timestamp is 'soon', not like 00:01:23.450"):
        list(read_data("epic-narration", tmp_path))
    source = data_set("epic-narration").source(tmp_path, skip_bad=True)
    (stream,) = DATA_SETS["epic-narration"].read(source)
    assert len(stream.replies) == 29 and len(source.skipped) == 1


def test_other_splits_and_other_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="coin-step has no split 'val'; take one of train, test"):
        list(read_data("coin-step", tmp_path, "val"))
    with pytest.raises(InputError, match="there is no data set 'coin'; take one of ego4d-narration, "):
        list(read_data("coin", tmp_path))
    with pytest.raises(InputError, match=r"there is no folder .*get its annotations with: git clone"):
        list(read_data("coin-step", tmp_path / "none"))
