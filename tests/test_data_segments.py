"""The JSONL format: what is read is what was written, what cannot be right is named; and how seconds become frames."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import videollm_mod.dialogue as dialogue
from videollm_mod.data.conversation import clip, converse, frame_at
from videollm_mod.data.segments import Segment, Stream, parse_stream, read_streams, stream_record, write_streams
from videollm_mod.types import InputError

seconds = st.floats(0, 1000).map(lambda value: round(value, 3))
words = st.text("abc XYZ.?\n", min_size=1).map(lambda text: " ".join(text.split()) or "a")
texts = st.builds(Segment, st.sampled_from(["user", "assistant"]), seconds, text=words, learn=st.booleans())


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    ends = sorted(draw(st.lists(seconds, max_size=6)))
    watched = [Segment("stream", start=a, end=b, learn=draw(st.booleans())) for a, b in zip(ends[::2], ends[1::2])]
    segments = (*watched, *draw(st.lists(texts, max_size=5)))
    meta = draw(st.dictionaries(words, st.integers(), max_size=2))
    return Stream("name", segments, Path("/videos/a.mp4"), None, draw(st.none() | st.just(2.0)), None, meta)


@given(stream=streams())
def test_what_is_written_is_read_back(stream: Stream) -> None:
    line = json.loads(json.dumps(stream_record(stream)))
    assert parse_stream(line, Path("/")) == stream


def test_paths_are_relative_to_the_files_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "videos" / "a.mp4", Path("/elsewhere/b.mp4")
    told = (Segment("assistant", 1.0, text="A."),)
    assert write_streams(tmp_path / "all.jsonl", [Stream("a", told, inside), Stream("b", told, outside)]) == 2
    lines = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [line["video"] for line in lines] == ["videos/a.mp4", "/elsewhere/b.mp4"]
    assert [stream.video for stream in read_streams(tmp_path / "all.jsonl")] == [inside, outside]


def test_the_first_version_is_read_as_a_shorthand(tmp_path: Path) -> None:
    told = {"time": 3, "role": "assistant", "text": "A  cup.", "kind": "placed"}
    stream = parse_stream({"video": "desk.mp4", "duration": 8, "fps": 2.0, "segments": [told]}, tmp_path)
    assert stream == Stream("desk", (Segment("assistant", 3.0, text="A cup."),), tmp_path / "desk.mp4", None, 2.0, 8.0)


GOOD = '{"video": "a.mp4", "segments": []}'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "it is no JSON"),
        ("[1]", "a line is"),
        ('{"segments": 1}', "a line is"),
        ('{"vidoe": "a.mp4", "segments": []}', "unknown entry 'vidoe'; did you mean 'video'"),
        ('{"id": 1, "segments": []}', "its id is 1; give a name"),
        ('{"video": 3, "segments": []}', "its video is 3; give a path"),
        ('{"duration": -1, "segments": []}', "duration -1 is no number of seconds"),
        ('{"fps": NaN, "segments": []}', "fps nan is no number of frames"),
        ('{"segments": [{"kind": "robot"}]}', "segment 0 has kind 'robot'; give system, user, assistant or stream"),
        ('{"segments": [{"kind": "user", "text": "A?"}]}', 'segment 0 has no "time"'),
        (
            '{"segments": [{"kind": "user", "time": 1e9, "text": "A?"}]}',
            "segment 0 has time 1000000000.0; give seconds",
        ),
        ('{"segments": [{"kind": "user", "time": 1, "text": ""}]}', "segment 0 has text ''; give a sentence"),
        ('{"segments": [{"kind": "stream", "start": 1}]}', 'segment 0, a stream, needs "start" and "end"'),
        ('{"segments": [{"kind": "stream", "start": 2, "end": 1}]}', "the end must not lie before the start"),
        (
            '{"segments": [{"kind": "stream", "start": 0, "end": 4}, {"kind": "stream", "start": 3, "end": 5}]}',
            "segment 1 is watched from 3 s on, and the one before it until 4 s",
        ),
        (
            '{"segments": [{"kind": "user", "time": 1, "text": "A?"}, {"kind": "system", "text": "B"}]}',
            "segment 1 is a sys",
        ),
        ('{"duration": 5, "segments": [{"kind": "user", "time": 9, "text": "A?"}]}', "but the video's duration is 5 s"),
        ('{"segments": [{"kind": "user", "time": 1, "text": "A?", "learn": 1}]}', "segment 0 has learn 1"),
        (GOOD.replace('{"', '{"id": "a", "', 1), "its id 'a' is that of line 1"),
    ],
)
def test_a_line_that_cannot_be_right_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(InputError, match=r"a\.jsonl, line 3: .*" + said.replace("(", r"\(").replace("?", r"\?")):
        list(read_streams(tmp_path / "a.jsonl"))
    told: list[int] = []
    found = list(read_streams(tmp_path / "a.jsonl", lambda number, error: told.append(number)))
    assert [stream.id for stream in found] == ["a"] and told == [3]


@given(time=seconds, fps=st.sampled_from([1.0, 2.0, 3.0, 8.0, 29.97]))
def test_a_time_stands_for_the_first_frame_at_or_after_it(time: float, fps: float) -> None:
    frame = frame_at(time, fps)
    assert frame / fps >= time - 1e-3 and (frame - 1) / fps < time
    assert frame_at(frame / fps, fps) == frame


def test_a_question_before_the_frames_its_frames_and_the_answer() -> None:
    told = (
        Segment("user", text="What is it?"),
        Segment("stream", start=1.2, end=3.0),
        Segment("assistant", 3.0, text="It is it."),
    )
    laid = converse(Stream("a", told, duration=10.0), 2.0)
    assert laid.frames == (3, 4, 5, 6)  # 1.5 to 3.0 s
    assert laid.dialogue("Look.") == [
        dialogue.System("Look."),
        dialogue.User("What is it?"),
        dialogue.Stream(4),
        dialogue.Assistant("It is it."),
    ]


def test_streams_follow_each_other_and_no_frame_is_shown_twice() -> None:
    told = (
        Segment("system", text="Mine."),
        Segment("stream", start=1, end=1, learn=False),
        Segment("user", 1.0, text="Narrate."),
        Segment("assistant", 1.0, text="C walks."),
        Segment("stream", start=1, end=3),
        Segment("stream", start=8, end=20),
        Segment("assistant", 2.6, text="C stops.", learn=False),
        Segment("assistant", 3.0, text="C sits."),
    )
    laid = converse(Stream("a", told, duration=9.0), 1.0)
    assert laid.frames == (1, 2, 3, 8)  # the video ends behind frame 8
    assert laid.dialogue("Look.") == [
        dialogue.System("Mine."),
        dialogue.Stream(1, learn=False),
        dialogue.User("Narrate."),
        dialogue.Assistant("C walks."),
        dialogue.Stream(2),
        dialogue.Assistant("C stops. C sits.", learn=False),
        dialogue.Stream(1),
    ]
    assert converse(Stream("a", told, duration=9.0), 1.0, join=False).dialogue()[5] == dialogue.Assistant(
        "C sits.", learn=False
    )


def test_without_a_stream_the_whole_video_is_watched() -> None:
    told = (Segment("user", 0.0, text="A?"), Segment("assistant", 0.0, text="B."), Segment("assistant", 9.9, text="C."))
    laid = converse(Stream("a", told), 2.0, frames=6)
    assert laid.frames == tuple(range(6)) and [place for place, _ in laid.said] == [1, 1, 6]
    with pytest.raises(InputError, match="does not say how long it is"):
        converse(Stream("a", told), 2.0)


def test_of_what_begins_behind_the_videos_end_its_last_frame_is_shown() -> None:
    told = (Segment("user", text="A?"), Segment("stream", start=8, end=9), Segment("assistant", 9.0, text="B."))
    laid = converse(Stream("a", told), 2.0, frames=6)
    assert laid.frames == (5,) and [place for place, _ in laid.said] == [0, 1]
    two = (Segment("stream", start=8, end=9), Segment("stream", start=9, end=12))
    assert converse(Stream("a", two), 2.0, frames=6).frames == (5,)


@given(stream=streams(), limit=st.integers(1, 40), fps=st.sampled_from([0.1, 0.5, 1.0]))
def test_a_clipped_conversation_has_at_most_so_many_frames_and_all_texts_within(
    stream: Stream, limit: int, fps: float
) -> None:
    laid = converse(stream, fps, frames=1001)
    clipped = clip(laid, limit)
    assert len(clipped.frames) == len(clipped.learn) == min(limit, len(laid.frames))
    assert all(0 <= place <= len(clipped.frames) for place, _ in clipped.said)
    assert set(clipped.frames) <= set(laid.frames)
    shown = [s.frames for s in clipped.dialogue() if isinstance(s, dialogue.Stream)]
    assert sum(shown) == len(clipped.frames) and all(count > 0 for count in shown)


def test_a_question_keeps_the_frames_before_its_answer() -> None:
    told = (Segment("user", text="A?"), Segment("stream", start=0, end=9), Segment("assistant", 9.0, text="B."))
    laid = clip(converse(Stream("a", told, duration=20.0), 1.0), 4)
    assert laid.frames == (6, 7, 8, 9) and [place for place, _ in laid.said] == [0, 4]
