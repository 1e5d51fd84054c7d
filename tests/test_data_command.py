"""`videollm-mod data ...`: what a file of streams lacks is told, sentences become one, data sets are counted."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_cases import random_features
from data_cases import ANNOTATIONS, needs_annotations, write_coin
from evaluate_cases import random_model

from videollm_mod.cli import main
from videollm_mod.data.segments import Segment, read_streams
from videollm_mod.data.sentences import parse_time, read_subtitles, read_table
from videollm_mod.data.stats import percentile
from videollm_mod.model import StreamingVideoLM
from videollm_mod.types import InputError
from videollm_mod.video import VideoWriter


@pytest.fixture(scope="module")
def model() -> StreamingVideoLM:
    return random_model()


def run(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[dict[str, Any], str]:
    """The JSON object of a command, and what it tells the eye."""
    assert main(words) == code
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]) if out else {}, err


def test_check_names_line_field_and_mend(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "a.mp4", 4)
    lines = [
        {"video": "a.mp4", "segments": [{"kind": "assistant", "time": 1, "text": "A cup."}]},
        {"video": "b.mp4", "segments": [{"kind": "asistant", "time": 1, "text": "A cup."}]},
        {"video": "c.mp4", "segments": [{"kind": "user", "time": 2, "text": "A cup?"}]},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result, told = run(["data", "check", str(path)], capsys, code=1)
    assert not result["ok"] and result["problems"] == 2 and result["unanswered"] == 1
    assert (result["streams"], result["segments"], result["questions"]) == (2, 1, 1)
    assert f"{path}, line 2: segment 0 has kind 'asistant'; give system, user, assistant or stream." in told
    assert f"{path}, line 3: its video {tmp_path / 'c.mp4'} is not there; give the path relative to the folder" in told
    assert "questions without a reply behind them: 1; `train own` wants one for each" in told
    path.write_text(json.dumps(lines[0]) + "\n")
    result, told = run(["data", "check", str(path)], capsys)
    assert result["ok"] and not told


def test_check_looks_into_videos_and_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: StreamingVideoLM
) -> None:
    write_clip(tmp_path / "a.mp4", 4)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    random_features(model, tmp_path, "b", seconds=6)
    late = [{"kind": "assistant", "time": 4.5, "text": "A cup."}, {"kind": "assistant", "time": 99, "text": "Two."}]
    lines = [
        {"video": "a.mp4", "segments": late},
        {"video": "broken.mp4", "segments": late[:1]},
        {"features": "b.safetensors", "segments": late},
        {"video": None, "segments": []},
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result, told = run(["data", "check", str(path)], capsys, code=1)
    assert result["problems"] == 4
    assert f"{path}, line 1: segment 1 has time 99, but its video ends at 4 s; correct one." in told
    assert f"{path}, line 2: {tmp_path / 'broken.mp4'} is not a video" in told
    assert f"{path}, line 3: segment 1 has time 99, but its features file ends at 6 s; correct one." in told
    assert f"{path}, line 4: it has neither video nor features; add one of them." in told


def test_a_data_set_is_built_as_jsonl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_coin(tmp_path)
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "vid0.mp4").touch()
    words = [
        "data",
        "build",
        "coin-step",
        "--root",
        str(tmp_path),
        "--split",
        "train",
        "--out",
        str(tmp_path / "a.jsonl"),
    ]
    result, _ = run([*words, "--videos", str(tmp_path / "videos"), "--skip-missing"], capsys)
    assert (result["videos"], result["segments"], result["missing_videos"], result["skipped"]) == (1, 3, 1, 0)
    streams = list(read_streams(tmp_path / "a.jsonl"))
    assert {stream.video for stream in streams} == {tmp_path / "videos" / "vid0.mp4"}
    counted, _ = run(["data", "stats", str(tmp_path / "a.jsonl")], capsys)
    assert counted["segments"] == 3 and counted["seconds"] == 12.0
    _, told = run([*words, "--videos", str(tmp_path / "videos")], capsys, code=2)
    assert "the video vid1 of coin-step is not in" in told
    _, told = run(["data", "stats", "coin-step"], capsys, code=2)
    assert "--root is missing; give the folder with COIN.json" in told


def test_every_data_set_says_what_gives_it(capsys: pytest.CaptureFixture[str]) -> None:
    result, told = run(["data", "list"], capsys)
    assert len(result) == 14 and all(entry["annotations"] and entry["files"] for entry in result.values())
    assert "epic-narration" in told


@needs_annotations
def test_stats_of_epics_validation_set_are_those_counted_by_plain_loops(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def clock(text: str) -> float:
        hours, minutes, rest = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(rest)

    durations = {}
    with (ANNOTATIONS / "EPIC_100_video_info.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            durations[row["video_id"]] = float(row["duration"])
    times = defaultdict(list)
    with (ANNOTATIONS / "EPIC_100_validation.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            told = clock(row["narration_timestamp"] or row["start_timestamp"])
            times[row["video_id"]].append(min(told, durations[row["video_id"]]))
    gaps = {}
    for video, found in times.items():
        found.sort()
        gaps[video] = [found[i + 1] - found[i] for i in range(len(found) - 1)]

    words = ["data", "stats", "epic-narration", "--root", str(ANNOTATIONS), "--json", str(tmp_path / "a.json")]
    result, _ = run(words, capsys)
    assert (result["videos"], result["streams"], result["segments"]) == (138, 138, 9668)
    assert result["seconds"] == pytest.approx(sum(durations[video] for video in times), abs=1e-2)
    every = sorted(gap for found in gaps.values() for gap in found)
    middle = (every[(len(every) - 1) // 2] + every[len(every) // 2]) / 2
    assert result["gaps"]["median"] == pytest.approx(middle, abs=1e-3)
    assert result["gaps"]["mean"] == pytest.approx(sum(every) / len(every), abs=1e-3)
    assert result["gaps"]["max"] == pytest.approx(every[-1], abs=1e-3)
    assert result["took"] < 20
    per_video = json.loads((tmp_path / "a.json").read_text())["per_video"]
    assert {video: one["segments"] for video, one in per_video.items()} == {v: len(t) for v, t in times.items()}
    for video, found in gaps.items():
        if found:
            assert per_video[video]["gaps"]["max"] == pytest.approx(max(found), abs=1e-3)


# -- sentences ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "time"), [("83.45", 83.45), ("1:23.45", 83.45), ("00:01:23,450", 83.45), (" 2 ", 2.0), ("1:00:00", 3600.0)]
)
def test_times_are_read_in_seconds_or_as_a_clock_shows_them(text: str, time: float) -> None:
    assert parse_time(text) == time


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "1:2:3:4", "1e99"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_time(text)


def test_subtitles_are_narrations(tmp_path: Path) -> None:
    cues = "1\n00:00:01,500 --> 00:00:02,000\nA <i>cup</i>\nis placed.\n\n2\n00:00:05,000 --> 00:00:06,000\n\n"
    (tmp_path / "a.srt").write_bytes(b"\xef\xbb\xbf" + cues.replace("\n", "\r\n").encode())
    assert read_subtitles(tmp_path / "a.srt") == [Segment("assistant", 1.5, 1.5, 2.0, "A cup is placed.")]
    assert read_subtitles(tmp_path / "a.srt", "end")[0].time == 2.0
    (tmp_path / "a.vtt").write_text("WEBVTT\n\n00:01.500 --> 00:02.000 line:0\nA cup.\n")
    assert read_subtitles(tmp_path / "a.vtt")[0].time == 1.5
    (tmp_path / "a.srt").write_text("1\n00:00:05,000 --> 00:00:02,000\nA cup.\n")
    with pytest.raises(InputError, match=r"a\.srt, line 2: the cue ends at 2 s"):
        read_subtitles(tmp_path / "a.srt")
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nOne.\n2\n00:00:03,000 --> 00:00:04,000\nTwo.\n")
    assert [one.text for one in read_subtitles(tmp_path / "a.srt")] == ["One.", "Two."]  # no blank line between them
    (tmp_path / "a.srt").write_text("1\n00:00:01,000 --> 00:00:02,000\nOne.\n\n2\n0:0:3 --> later\nTwo.\n")
    with pytest.raises(InputError, match=r"a\.srt, line 6: '0:0:3 --> later' is no cue; write"):
        read_subtitles(tmp_path / "a.srt")
    (tmp_path / "a.vtt").write_text("WEBVTT\n\nNOTE none\n\n00:01.500 --> 00:02.000\n<v Ann>Salt &amp; pepper\n")
    assert read_subtitles(tmp_path / "a.vtt")[0].text == "Salt & pepper"
    (tmp_path / "a.srt").write_text("nothing")
    with pytest.raises(InputError, match="has no subtitle"):
        read_subtitles(tmp_path / "a.srt")


def test_tables_need_a_time_and_a_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('Video, Start, End, Text, Kind\na.mp4, 1, 2, "A cup,\nred.", \na.mp4, 3,, What?, user\n\n')
    (first, second) = read_table(path)["a.mp4"]
    assert first == Segment("assistant", 1.0, 1.0, 2.0, "A cup, red.") and (second.kind, second.time) == ("user", 3.0)
    assert read_table(path, "end")["a.mp4"][0].time == 2.0
    for text, said in (
        ("when,text\n1,A\n", "has the columns when, text; it needs text"),
        ("time,text\n1,A\nsoon,B\n", r"a\.csv, line 3: 'soon' is no time"),
        ("time,text,kind\n1,A,robot\n", "its kind is 'robot'"),
        ("time,text\n1,\n", "it has no text"),
        ("time,text\n1,He sits, then stands\n", r"a\.csv, line 2: it has 3 values for 2 columns; put a text with"),
        ('time,text\n1,"He sits\n2,B\n', r"a\.csv, line 2: unexpected end of data; check its quotes"),
        ('time,text\n1,"' + "x" * 200_000 + '"\n', "field larger than field limit"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            read_table(path)


def test_percentiles_lie_between_their_neighbours() -> None:
    assert (
        percentile([1.0, 2.0, 4.0], 0.5) == 2.0
        and percentile([0.0, 10.0], 0.9) == 9.0
        and percentile([3.0], 0.9) == 3.0
    )


# -- one's own footage -------------------------------------------------------------------------------------------------


def write_clip(path: Path, seconds: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps=4) as writer:
        for number in range(4 * seconds):
            writer.write(np.full((32, 32, 3), 8 * number, np.uint8))


def test_footage_with_subtitles_and_tables_beside_it_becomes_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("a.mp4", 4), ("deep/b.mp4", 3), ("silent.mp4", 1)):
        write_clip(tmp_path / name, seconds)
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "broken.csv").write_text("time,text\n1,A\n")
    (tmp_path / "a.srt").write_text(
        "1\n00:00:01,000 --> 00:00:02,000\nA cup.\n\n2\n00:00:03,000 --> 00:00:03,500\nTwo.\n"
    )
    (tmp_path / "deep" / "b.csv").write_text("time,kind,text\n2,user,How many?\n2,assistant,One.\n")
    words = ["data", "make", str(tmp_path), "--out", str(tmp_path / "mine.jsonl")]
    result, told = run(words, capsys)
    assert (result["videos"], result["segments"], result["questions"]) == (2, 3, 1)
    assert (result["without_sentences"], result["failed"]) == (1, 1) and "broken.mp4 is left out" in told
    first, second = read_streams(tmp_path / "mine.jsonl")
    assert (first.id, first.video, first.duration) == ("a", tmp_path / "a.mp4", 4.0)
    assert [(s.time, s.text) for s in first.replies] == [(1.0, "A cup."), (3.0, "Two.")]
    assert second.id == "deep/b" and [segment.kind for segment in second.segments] == ["user", "assistant"]
    checked, _ = run(["data", "check", str(tmp_path / "mine.jsonl")], capsys)
    assert checked["ok"]
    result, _ = run([*words, "--at", "end"], capsys)
    assert next(read_streams(tmp_path / "mine.jsonl")).replies[0].time == 2.0
    (tmp_path / "a.srt").rename(tmp_path / "a.SRT")  # as some recorders write it
    assert run(words, capsys)[0]["segments"] == 3


def test_a_table_beside_its_video_says_when_a_sentence_is_told_and_of_which_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(tmp_path / "a.mp4", 4)
    (tmp_path / "a.csv").write_text("\ufeffstart,end,text\r\n0:00:02,3.5,zwei\r\n1,3,eins\r\n", encoding="utf-8")
    words = ["data", "make", str(tmp_path), "--out", str(tmp_path / "mine.jsonl")]
    for at, times in (("start", [1.0, 2.0]), ("end", [3.0, 3.5])):
        run([*words, "--at", at], capsys)
        (stream,) = read_streams(tmp_path / "mine.jsonl")
        assert [reply.time for reply in stream.replies] == times
        assert [(reply.start, reply.end) for reply in stream.replies] == [(1.0, 3.0), (2.0, 3.5)]  # they overlap
    (tmp_path / "a.csv").write_text("video,time,text\nb.mp4,1,A\n")
    _, told = run(words, capsys, code=2)
    assert "a.csv tells of the video 'b.mp4'; give one table for all with --table." in told


def test_one_table_may_tell_of_all_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_clip(tmp_path / "clips" / "a.mp4", 4)
    table, out = tmp_path / "all.csv", tmp_path / "mine.jsonl"
    words = ["data", "make", str(tmp_path / "clips"), "--table", str(table), "--out", str(out)]
    table.write_text("video,start,end,text\na.mp4,1,2,A cup.\na,3,3.5,Two.\n")
    result, _ = run(words, capsys)
    assert result["segments"] == 2 and next(read_streams(out)).replies[1].start == 3.0
    for text, said in (
        ("video,time,text\nb.mp4,1,A\n", "tells of the video 'b.mp4', which is not in"),
        ("video,time,text\na.mp4,9,A\n", "a sentence of a.mp4 is at 9 s, but the video ends at 4 s"),
    ):
        table.write_text(text)
        _, told = run(words, capsys, code=2)
        assert said in told
    _, told = run(words[:3] + words[5:], capsys, code=2)
    assert "has sentences; put NAME.srt or NAME.csv beside NAME.mp4, or give --table" in told
