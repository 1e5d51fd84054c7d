"""Frames from a source to a slow consumer: what is dropped has a policy and is counted, and no queue grows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.stream.drops import POLICIES, FrameQueue
from videollm_mod.stream.pipeline import AHEAD, Pipeline
from videollm_mod.types import Frame, FrameTokens, InputError


def picture(number: int, seconds: float = 0.5) -> Frame:
    return Frame(np.zeros((2, 2, 3), dtype=np.uint8), number * seconds, number)


def live(count: int, seconds: float) -> Iterator[Frame]:
    for number in range(count):
        yield picture(number, seconds)
        time.sleep(seconds)


# --- the queue ---------------------------------------------------------------------------------------------------


@given(
    policy=st.sampled_from(POLICIES),
    limit=st.integers(1, 5),
    steps=st.lists(st.sampled_from(["frame", "frame", "frame", "note", "take", "back"]), max_size=60),
)
def test_a_queue_never_holds_more_frames_than_its_limit_keeps_order_and_loses_count_of_none(
    policy: str, limit: int, steps: list[str]
) -> None:
    queue, offered, refused, seen, notes = FrameQueue(policy, limit), 0, 0, [], 0
    for step in steps:
        if step == "frame":
            refused += not queue.offer(offered)
            offered += 1
        elif step == "note":
            queue.note("question")
            notes += 1
        elif len(queue):
            frames = queue.head(2)
            if not frames:
                assert queue.take(1) == ["question"]
                notes -= 1
                continue
            assert queue.take(len(frames)) == frames
            back = frames[1:] if step == "back" else []  # the second was not looked at after all
            queue.put_back(back)
            seen += frames[: len(frames) - len(back)]
        assert queue.frames <= limit
    assert seen == sorted(set(seen))
    assert len(queue) == queue.frames + notes
    lost = sum(queue.dropped.values()) if policy != "all" else refused
    assert offered == len(seen) + queue.frames + lost
    assert set(queue.dropped) <= {policy} - {"all"}


def test_newest_lets_the_oldest_frames_give_way_and_no_question() -> None:
    queue = FrameQueue("newest", 2)
    queue.offer(0)
    queue.note("why?")
    for frame in (1, 2, 3):
        queue.offer(frame)
    assert queue.dropped == {"newest": 2} and queue.take(3) == ["why?", 2, 3]


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_adaptive_settles_on_the_rate_at_which_frames_are_taken_evenly_spread(every: int) -> None:
    queue, seen = FrameQueue("adaptive", 8), []
    for frame in range(600):
        queue.offer(frame)
        if frame % every == 0 and queue.frames:
            seen += queue.take(1)
    steady = np.diff(seen[len(seen) // 3 :])
    assert steady.mean() == pytest.approx(every, rel=0.1)
    assert steady.max() <= every + 2, "no run of frames is lost"
    assert (every == 1) == (queue.dropped == {})


def test_adaptive_takes_every_frame_again_when_the_consumer_has_caught_up() -> None:
    queue = FrameQueue("adaptive", 8)
    for frame in range(100):
        queue.offer(frame)
    queue.take(queue.frames)
    lost = queue.dropped["adaptive"]
    for frame in range(100):
        queue.offer(frame)
        if queue.frames:
            queue.take(1)
    assert queue.dropped["adaptive"] - lost <= 6


# --- the pipeline --------------------------------------------------------------------------------------------------


def test_of_a_live_source_a_slow_reader_gets_the_newest_frame_and_the_others_are_counted() -> None:
    with Pipeline(live(20, 0.02), drop="newest", live=True) as frames:
        taken = []
        for ready in frames:
            taken.append(ready.frame.index)
            time.sleep(0.1)
    assert taken == sorted(set(taken)) and taken[-1] == 19
    assert len(taken) + frames.dropped["newest"] == 20


def test_a_quick_reader_of_a_live_source_loses_nothing() -> None:
    with Pipeline(live(6, 0.1), drop="newest", live=True) as frames:
        assert [ready.frame.index for ready in frames] == list(range(6))
    assert frames.dropped == {}


@pytest.mark.parametrize("drop", POLICIES)
def test_a_file_that_is_not_played_in_real_time_loses_nothing_whatever_the_policy(drop: str) -> None:
    with Pipeline(map(picture, range(30)), drop=drop) as frames:
        assert [ready.frame.index for ready in frames] == list(range(30))
    assert frames.dropped == {}


def test_a_slow_reader_of_a_file_stops_the_decoding_a_few_frames_ahead() -> None:
    decoded: list[int] = []

    def film() -> Iterator[Frame]:
        for number in range(50):
            decoded.append(number)
            yield picture(number)

    with Pipeline(film()) as frames:
        for ready in frames:
            time.sleep(0.02)
            assert len(decoded) <= ready.frame.index + AHEAD + 2
            if ready.frame.index == 10:
                break
    time.sleep(0.05)
    assert len(decoded) <= 10 + AHEAD + 2, "nor does it go on when the reader has left"
    assert not [thread for thread in threading.enumerate() if thread.name == "source"]


def test_played_in_real_time_a_file_can_drop_what_is_late() -> None:
    film = [picture(number, 0.02) for number in range(20)]
    with Pipeline(film, drop="newest", realtime=True) as frames:
        taken = []
        for ready in frames:
            taken.append(ready.frame.index)
            assert time.monotonic() >= ready.due
            time.sleep(0.1)
    assert taken[-1] == 19 and len(taken) + frames.dropped["newest"] == 20 and len(taken) < 20


@pytest.mark.parametrize("drop", ["all", "newest"])
def test_frames_are_encoded_in_a_thread_of_their_own_while_others_are_looked_at(drop: str) -> None:
    threads = set()

    def encode(frame: Frame) -> FrameTokens:
        threads.add(threading.current_thread().name)
        return FrameTokens(torch.full((1, 1), float(frame.index)), (0, 0), frame.time, frame.index)

    with Pipeline(live(8, 0.01), drop=drop, live=True, encode=encode) as frames:
        seen = [(ready.frame.index, ready.tokens.tokens.item()) for ready in frames if ready.tokens is not None]
    assert threads == {"tower"}
    assert all(index == token for index, token in seen) and seen[-1][0] == 7
    assert len(seen) + sum(frames.dropped.values()) == 8


def test_what_goes_wrong_while_reading_or_encoding_is_raised_where_frames_are_taken() -> None:
    def failing() -> Iterator[Frame]:
        yield from live(2, 0.01)
        raise OSError("the camera is gone")

    def broken(frame: Frame) -> FrameTokens:
        raise RuntimeError("the tower fell")

    seen = []
    with pytest.raises(OSError, match="the camera is gone"), Pipeline(failing(), live=True) as frames:
        for ready in frames:
            seen.append(ready.frame.index)
    assert seen == [0, 1]
    with pytest.raises(RuntimeError, match="the tower fell"), Pipeline(live(2, 0.01), encode=broken) as frames:
        list(frames)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(InputError, match="drop policy 'oldest' is unknown; take one of newest, all, adaptive"):
        Pipeline([], drop="oldest")
