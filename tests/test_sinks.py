"""Files of events: valid after every line, in order, and absent until there is something to write."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.files import part_name
from videollm_mod.stream.sinks import JsonlSink, SrtSink, srt_time
from videollm_mod.types import Frame, StreamEvent

FRAME = Frame(np.zeros((4, 4, 3), dtype=np.uint8), 0.0, 0)
CUE = re.compile(r"(\d+)\n(\d{2,}:\d\d:\d\d,\d{3}) --> (\d{2,}:\d\d:\d\d,\d{3})\n((?:.+\n)+)\n")

events = st.builds(
    StreamEvent,
    time=st.floats(0, 1e5),
    kind=st.sampled_from(["narration", "answer"]),
    text=st.text(max_size=30),
    frame=st.integers(0, 1000),
    question=st.none() | st.text(max_size=20),
    asked=st.none() | st.floats(0, 1e5),
    probability=st.floats(0, 1),
)


def milliseconds(stamp: str) -> int:
    hours, minutes, rest = stamp.split(":")
    seconds, thousandths = rest.split(",")
    return ((int(hours) * 60 + int(minutes)) * 60 + int(seconds)) * 1000 + int(thousandths)


@given(st.floats(0, 4e5))
def test_an_srt_time_reads_back_to_the_millisecond(seconds: float) -> None:
    stamp = srt_time(seconds)
    assert re.fullmatch(r"\d{2,}:[0-5]\d:[0-5]\d,\d{3}", stamp)
    assert milliseconds(stamp) == round(seconds * 1000)


def test_srt_times_carry_into_the_next_unit() -> None:
    assert srt_time(59.9996) == "00:01:00,000"
    assert srt_time(3599.9999) == "01:00:00,000"
    assert srt_time(-0.2) == "00:00:00,000"


@given(st.lists(events, max_size=12), st.floats(0.5, 10))
def test_subtitles_are_numbered_ordered_never_empty_never_overlapping_and_never_too_long(
    tmp_path: Path, said: list[StreamEvent], longest: float
) -> None:
    path = tmp_path / "out.srt"  # the same for every example: an older file is replaced
    with SrtSink(path, longest) as sink:
        sink.frame(FRAME)
        for event in said:  # in any order: late ones join the cue before
            sink.event(event)
    text = path.read_text(encoding="utf-8")
    cues = CUE.findall(text)
    assert "".join(f"{n}\n{a} --> {b}\n{words}\n" for n, a, b, words in cues) == text, "nothing but whole cues"
    assert [int(number) for number, *_ in cues] == list(range(1, len(cues) + 1))
    assert bool(cues) == bool(said)
    end_before = 0
    for _, start, end, _ in cues:
        assert end_before <= milliseconds(start) < milliseconds(end) <= milliseconds(start) + longest * 1000 + 1
        end_before = milliseconds(end)
    assert sum(words.count("\n") for *_, words in cues) == len(said), "every event is a line of some cue"


def test_a_subtitle_lasts_until_the_next_one_at_most_four_seconds(tmp_path: Path) -> None:
    with SrtSink(tmp_path / "a.srt") as sink:
        for time in (1.0, 2.5, 10.0):
            sink.event(StreamEvent(time, "narration", "Now.", 0))
    times = [(start, end) for _, start, end, _ in CUE.findall((tmp_path / "a.srt").read_text())]
    assert times == [
        ("00:00:01,000", "00:00:02,500"),
        ("00:00:02,500", "00:00:06,500"),
        ("00:00:10,000", "00:00:14,000"),
    ]


@given(st.lists(events, max_size=8))
def test_every_event_is_one_json_line_that_reads_back(tmp_path: Path, said: list[StreamEvent]) -> None:
    path = tmp_path / "out.jsonl"
    with JsonlSink(path) as sink:
        sink.frame(FRAME)
        for number, event in enumerate(said, start=1):
            sink.event(event)
            lines = part_name(path).read_bytes().decode("utf-8").split("\n")
            assert len(lines) == number + 1 and lines[-1] == "", "flushed as said, whole lines only"
    for line, event in zip(path.read_bytes().decode("utf-8").split("\n"), said):
        row = json.loads(line)
        assert list(row) == ["time", "kind", "text", "frame", "question", "asked", "probability"]
        assert (row["text"], row["question"], row["frame"]) == (event.text, event.question, event.frame)
        assert row["time"] == pytest.approx(event.time, abs=6e-4)


@pytest.mark.parametrize("kind", [JsonlSink, SrtSink])
def test_without_a_frame_no_file_appears_and_an_older_one_stays(
    tmp_path: Path, kind: type[JsonlSink | SrtSink]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("precious")
    for path in (old, new):
        with pytest.raises(ValueError), kind(path):
            raise ValueError("the source cannot be opened")
    assert old.read_text() == "precious" and not new.exists()


@pytest.mark.parametrize("kind", [JsonlSink, SrtSink])
def test_a_silent_stream_leaves_an_empty_file(tmp_path: Path, kind: type[JsonlSink | SrtSink]) -> None:
    with kind(tmp_path / "out") as sink:
        sink.frame(FRAME)
    assert (tmp_path / "out").read_bytes() == b""


def test_an_answer_between_two_frames_gets_its_own_subtitle_in_order(tmp_path: Path) -> None:
    with SrtSink(tmp_path / "a.srt") as sink:
        sink.event(StreamEvent(14.5, "narration", "It leaves.", 9))
        sink.event(StreamEvent(14.9, "answer", "It left.", 9, question="What happened?", asked=14.9))
        sink.event(StreamEvent(15.0, "narration", "It is back.", 10))
    times = [(start, end) for _, start, end, _ in CUE.findall((tmp_path / "a.srt").read_text())]
    assert times == [
        ("00:00:14,500", "00:00:14,900"),
        ("00:00:14,900", "00:00:15,000"),
        ("00:00:15,000", "00:00:19,000"),
    ]


def test_ctrl_c_leaves_whole_cues_with_the_last_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), SrtSink(tmp_path / "a.srt") as sink:
        sink.event(StreamEvent(1.0, "narration", "One.", 0))
        sink.event(StreamEvent(2.0, "answer", "Two.", 1, question="How\n\nmany?", asked=2.0))
        raise KeyboardInterrupt
    assert [words for *_, words in CUE.findall((tmp_path / "a.srt").read_text())] == [
        "One.\n",
        "Q: How many? A: Two.\n",
    ]
