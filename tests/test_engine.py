"""Many sessions in one engine: each says, keeps and remembers what it would alone, whenever who comes and goes."""

from __future__ import annotations

import contextlib
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import frames, tiny_model
from test_session import middle_threshold

from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream import engine as engine_module
from videollm_mod.stream.engine import Engine, EngineFull, EngineOutput, EngineStream, QueueFull
from videollm_mod.stream.session import StreamSession
from videollm_mod.stream.together import CHUNK
from videollm_mod.types import Frame, FrameTokens, InputError, StreamEvent

QUESTION = "What happened?"


@pytest.fixture(scope="module")
def model() -> StreamingVideoLM:
    return tiny_model(DepthPlan("interleaved", 0.4))


@pytest.fixture(scope="module")
def middle(model: StreamingVideoLM) -> float:
    return middle_threshold(model)


@dataclass
class Heard:
    """What came out of a stream, and what went in: a number is a frame of its film, None a question."""

    stream: EngineStream | None
    film: int
    went_in: list[int | None] = field(default_factory=list)
    frames: int = 0
    decisions: list[tuple[float, float]] = field(default_factory=list)
    kept: list[dict[int, np.ndarray]] = field(default_factory=list)
    events: list[StreamEvent] = field(default_factory=list)
    words: str = ""  # of the reply in the making

    def take(self, output: EngineOutput) -> None:
        given = [output.delta, output.event, output.decision]
        assert sum(each is not None for each in given) == 1
        if output.delta is not None:
            self.words += output.delta
        elif output.event is not None:
            assert self.words == output.event.text
            self.words = ""
            self.events.append(output.event)
        else:
            assert output.decision is not None and output.kept is not None
            self.decisions.append(output.decision)
            self.kept.append(output.kept)


def assert_as_alone(heard: Heard, alone: StreamSession, closed: bool) -> None:
    """Against a session that gets the same, one after another."""
    film, events, silences, kept = frames(60, heard.film), [], [], []
    for item in heard.went_in:
        if item is None:
            events.append(alone.ask(QUESTION))
        else:
            events += alone.push(film[item])
            silences.append((film[item].time, alone.silence))
            kept.append(alone.kept)
    times, sure = zip(*heard.decisions) if heard.decisions else ((), ())
    if closed:  # it left with things waiting
        events, silences, kept = events[: len(heard.events)], silences[: len(times)], kept[: len(times)]
    assert list(times) == [time for time, _ in silences]
    np.testing.assert_allclose(sure, [silence for _, silence in silences], atol=1e-6)
    for one, other in zip(heard.kept, kept, strict=True):
        assert all((one[layer] == other[layer]).all() for layer in other) and one.keys() == other.keys()
    assert [(e.kind, e.text, e.time, e.frame, e.question, e.asked) for e in heard.events] == [
        (e.kind, e.text, e.time, e.frame, e.question, e.asked) for e in events
    ]
    if closed:
        return
    assert heard.stream is not None
    session = heard.stream._session
    assert session.context == alone.context and session._pending == alone._pending
    assert session._cache.stored == alone._cache.stored and session._cache.frames == alone._cache.frames
    for one, other in zip(session._cache.layers, alone._cache.layers):
        if other.lengths:
            mine, its = (layer.keys[:, :, : layer.lengths[0]] for layer in (one, other))
            assert torch.allclose(mine, its, atol=1e-5)  # norms and rotary tables are float32


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(0, 3)),
        st.tuples(st.just("frames"), st.integers(0, 9), st.integers(1, 5)),
        st.tuples(st.just("ask"), st.integers(0, 9)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("close"), st.integers(0, 9)),
    ),
    min_size=4,
    max_size=16,
)


@settings(max_examples=10)
@given(
    actions=ACTIONS,
    window=st.sampled_from([math.inf, 1.0, 3.0]),
    decide=st.sampled_from(["last", "own"]),
    loud=st.booleans(),
)
def test_sessions_that_come_go_watch_and_ask_at_any_time_equal_sessions_alone(
    actions: list[tuple], window: float, decide: str, loud: bool
) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4), decide, max_reply_tokens=4)
    threshold = middle_threshold(model) if loud else 0.0
    engine = Engine(model)
    everybody: list[Heard] = []
    here: list[Heard] = []

    def step() -> None:
        of = {heard.stream: heard for heard in here}
        for output in engine.step():
            of[output.stream].take(output)

    for action, *numbers in [("open", 0), *actions]:
        heard = here[numbers[0] % len(here)] if here else None
        if action == "open" or heard is None or heard.stream is None:
            stream = engine.open(threshold, window, record_kept=True, drop="all", queue=100)
            everybody.append(Heard(stream, film=len(everybody)))
            here.append(everybody[-1])
        elif action == "frames":
            film = frames(60, heard.film)
            for _ in range(min(numbers[1], 60 - heard.frames)):
                heard.stream.push(film[heard.frames])
                heard.went_in.append(heard.frames)
                heard.frames += 1
        elif action == "ask":
            heard.stream.ask(QUESTION)
            heard.went_in.append(None)
        elif action == "step":
            for _ in range(numbers[0]):
                step()
        else:
            heard.stream.close()
            here.remove(heard)
    while engine.waiting:
        step()
    assert engine.step() == []
    for heard in everybody:
        alone = StreamSession(model, threshold=threshold, window=window, record_kept=True)
        assert_as_alone(heard, alone, closed=heard not in here)


def test_frames_that_wait_share_a_step_while_nothing_is_said(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    stream = engine.open(threshold=0.0)
    for frame in frames(CHUNK):
        stream.push(frame)
    assert [output.decision[0] for output in engine.step() if output.decision] == [f.time for f in frames(CHUNK)]
    assert not engine.waiting and stream.state().frames == CHUNK


def test_frames_behind_the_one_that_makes_it_speak_wait_until_it_has_spoken(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    stream = engine.open(threshold=1.0)
    for frame in frames(3):
        stream.push(frame)
    (first,) = engine.step()
    assert first.decision is not None and first.decision[0] == 0.0
    assert stream.state().frames == 1 and stream.state().queued == 2
    assert stream._session._cache.seen == len(stream._session.context)
    kinds = []
    while engine.waiting:
        kinds += [("decision", *o.decision)[:2] if o.decision else "event" for o in engine.step() if not o.delta]
    assert kinds == ["event", ("decision", 0.5), "event", ("decision", 1.0), "event"]


def test_one_that_speaks_and_others_that_watch_share_a_step(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    talker, watcher = engine.open(threshold=1.0), engine.open(threshold=0.0)
    for frame in frames(4):
        talker.push(frame)
        watcher.push(frame)
        engine.step()
        assert watcher.state().time == frame.time
    assert talker.state().frames < 4


def test_pictures_of_all_streams_go_through_the_tower_in_one_call(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    calls: list[int] = []
    handle = model.encoder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    for number in range(3):
        stream = engine.open(threshold=0.0)
        for frame in frames(2, number):
            stream.push(frame)
    engine.step()
    handle.remove()
    assert calls == [6]


def test_ready_tokens_and_pictures_are_the_same_to_it(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    one, other = engine.open(threshold=0.0), engine.open(threshold=0.0)
    encoder = StreamSession(model)
    for frame in frames(3):
        one.push(frame)
        other.push_tokens(encoder.encode(frame))
    decisions: dict[EngineStream, list[tuple[float, float]]] = {one: [], other: []}
    for output in engine.step():
        if output.decision is not None:
            decisions[output.stream].append(output.decision)
    np.testing.assert_allclose(decisions[one], decisions[other], atol=1e-6)


def test_tokens_made_ahead_are_those_of_a_step_which_then_makes_none(model: StreamingVideoLM) -> None:
    plain, ahead = Engine(model), Engine(model)
    for engine in (plain, ahead):
        for number in range(2):
            stream = engine.open(threshold=0.0, drop="all")
            for frame in frames(3, number):
                stream.push(frame)
            stream.ask(QUESTION)
    assert ahead.encode_ahead() == 6 and ahead.encode_ahead() == 0
    calls: list[int] = []
    handle = model.encoder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    found = [output.decision for output in ahead.step()]
    assert not calls
    assert found == [output.decision for output in plain.step()] and calls == [6]
    handle.remove()


@contextlib.contextmanager
def tower_at_work(model: StreamingVideoLM, engine: Engine) -> Iterator[tuple[threading.Event, list[int]]]:
    """Within, a thread makes tokens ahead and ends behind the event; the other is how many it made, call by call."""
    begun, go_on, calls = threading.Event(), threading.Event(), list[int]()

    def slow(module: object, args: tuple[torch.Tensor], out: object) -> None:
        calls.append(len(args[0]))
        begun.set()
        assert go_on.wait(30)

    handle = model.encoder.register_forward_hook(slow)
    tower = threading.Thread(target=engine.encode_ahead)
    tower.start()
    try:
        assert begun.wait(30)
        yield go_on, calls
    finally:
        go_on.set()
        tower.join(30)
        handle.remove()


def test_a_step_waits_for_tokens_that_are_being_made_and_others_are_pushed_meanwhile(model: StreamingVideoLM) -> None:
    engine, told = Engine(model), list[EngineOutput]()
    stream = engine.open(threshold=0.0, drop="all")
    stream.push(frames(1)[0])
    stepper = threading.Thread(target=lambda: told.extend(engine.step()))
    with tower_at_work(model, engine) as (go_on, calls):
        stepper.start()
        engine.open(threshold=0.0).push(frames(1, 1)[0])  # takes no lock that the tower holds
        assert not told
        go_on.set()
        stepper.join(30)
    assert [output.stream for output in told].count(stream) == 1
    assert calls[0] == 1 and sum(calls) == len(told), "no picture goes through the tower twice"


def test_words_and_frames_that_are_ready_do_not_wait_for_the_tower(model: StreamingVideoLM) -> None:
    engine, told = Engine(model), list[EngineOutput]()
    asked, ready, coming = (engine.open(threshold=0.0) for _ in range(3))
    ready.push(frames(1)[0])
    assert engine.encode_ahead() == 1
    coming.push(frames(1, 1)[0])
    stepper = threading.Thread(target=lambda: told.extend(engine.step()))
    with tower_at_work(model, engine):
        coming.close()  # so that the next step has a word and a frame that is ready
        asked.ask(QUESTION)
        stepper.start()
        stepper.join(10)
        assert not stepper.is_alive()
    assert {output.stream for output in told} == {asked, ready}


def test_tokens_are_made_ahead_some_at_a_time_the_next_of_every_stream_first(
    model: StreamingVideoLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PICTURES", 3)
    engine = Engine(model)
    streams = [engine.open(threshold=0.0) for _ in range(2)]
    for stream, film in zip(streams, (frames(4), frames(3, 1))):
        for frame in film:
            stream.push(frame)
    made = []
    while count := engine.encode_ahead():
        made.append((count, [sum(f.tokens is not None for f in stream._queue.waiting()) for stream in streams]))
    assert made == [(3, [2, 1]), (3, [3, 3]), (1, [4, 3])]


@pytest.mark.parametrize("place", ["model.layers.2", "lm_head"])
def test_a_step_that_fails_can_be_taken_again(model: StreamingVideoLM, middle: float, place: str) -> None:
    engine = Engine(model)
    heard = [Heard(engine.open(middle, record_kept=True), film) for film in range(2)]

    def broken(*args: object) -> None:
        raise MemoryError("no more")

    for heard_one in heard:
        for frame in frames(3, heard_one.film):
            assert heard_one.stream is not None
            heard_one.stream.push(frame)
        heard_one.went_in = [0, 1, 2]
    while engine.waiting:
        handle = model.lm.get_submodule(place).register_forward_pre_hook(broken)
        with pytest.raises(MemoryError):
            engine.step()
        handle.remove()
        for output in engine.step():
            next(each for each in heard if each.stream is output.stream).take(output)
    for each in heard:
        assert_as_alone(each, StreamSession(model, threshold=middle, record_kept=True), closed=False)


# --- budget --------------------------------------------------------------------------------------------------------


def test_the_budget_is_never_exceeded_and_what_does_not_fit_is_counted(model: StreamingVideoLM) -> None:
    free = Engine(model)
    alone = free.open(threshold=1.0)
    for frame in frames(6):
        alone.push(frame)
    while free.waiting:
        free.step()
    budget = 2 * free.kv_bytes
    engine = Engine(model, max_bytes=budget)
    streams = [engine.open(threshold=1.0, drop="all", queue=16) for _ in range(2)]
    for number, stream in enumerate(streams):
        for frame in frames(16, number):
            stream.push(frame)
    most = 0
    while engine.waiting:
        engine.step()
        most = max(most, engine.kv_bytes)
    assert budget / 2 < most <= budget
    for stream in streams:
        state = stream.state()
        assert state.frames > 0 and state.dropped["memory"] == 16 - state.frames
    with pytest.raises(EngineFull, match="close a stream, or ask later"):
        streams[0].ask(QUESTION)
    streams[0].close()
    streams[1].ask(QUESTION)
    while engine.waiting:
        engine.step()
    assert engine.kv_bytes <= budget


def test_a_stream_that_does_not_fit_is_not_opened_and_fits_when_another_has_left(model: StreamingVideoLM) -> None:
    room = Engine(model, max_bytes=10**9)
    engine = Engine(model, max_bytes=3 * room.open()._room - 1)
    first, _ = engine.open(), engine.open()
    with pytest.raises(EngineFull, match=r"2 streams leave [\d,]+ of [\d,]+ bytes, and another needs"):
        engine.open()
    first.close()
    first.close()
    engine.open()
    assert len(engine.streams) == 2


def test_a_stream_with_a_window_has_its_room_from_the_start_and_watches_for_ever(model: StreamingVideoLM) -> None:
    engine = Engine(model, max_bytes=120_000)
    greedy, stream = (engine.open(threshold=0.0, window=window) for window in (math.inf, 1.0))
    with pytest.raises(EngineFull):
        engine.open(window=60.0)
    for frame in frames(40):
        for each in (greedy, stream):
            each.push(frame)
        engine.step()
        assert engine.kv_bytes <= 120_000
    assert stream.state().dropped == {} and stream.state().frames == 40
    assert greedy.state().dropped["memory"] > 0, "the control: without a window it takes all that is left"


# --- queues --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["window", "carrier", "norm"])
def test_streams_with_a_cache_policy_and_a_budget_equal_sessions_alone_and_hold_it(
    model: StreamingVideoLM, middle: float, policy: str
) -> None:
    with pytest.raises(InputError, match=r"take \d+ bytes") as refused:
        StreamSession(model, policy=policy, budget=1)
    budget = 4 * int(str(refused.value).split(" bytes")[0].split()[-1])
    engine, options = Engine(model), {"policy": policy, "budget": budget, "window": 4.0, "threshold": middle}
    streams = [engine.open(**options, drop="all", queue=100) for _ in range(3)]  # type: ignore[arg-type]
    heard: dict[EngineStream, list[StreamEvent]] = {stream: [] for stream in streams}
    for number, stream in enumerate(streams):
        for frame in frames(40, number):
            stream.push(frame)
            if frame.index == 25:
                stream.ask(QUESTION)
    while engine.waiting:
        for output in engine.step():
            if output.event is not None:
                heard[output.stream].append(output.event)
        assert all(stream.state().kv_bytes <= budget for stream in streams)
    for number, stream in enumerate(streams):
        alone = StreamSession(model, **options)  # type: ignore[arg-type]
        told: list[StreamEvent] = []
        for frame in frames(40, number):
            told += alone.push(frame)
            if frame.index == 25:
                told.append(alone.ask(QUESTION))
        assert heard[stream] == told and sum(stream.state().forgotten.values()) > 0
        assert stream._session.context == alone.context and stream.state().stored == alone.state().stored


def test_a_slow_consumer_gets_the_newest_frames_and_the_others_are_counted(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    stream = engine.open(threshold=0.0, queue=3)
    for frame in frames(10):
        stream.push(frame)
    assert stream.state().queued == 3
    decisions = [output.decision for output in engine.step()]
    assert [decision[0] for decision in decisions if decision] == [3.5, 4.0, 4.5]
    assert stream.state().dropped == {"newest": 7}


def test_where_nothing_may_be_dropped_a_full_queue_says_so(model: StreamingVideoLM) -> None:
    stream = Engine(model).open(drop="all", queue=2)
    first, second, third = frames(3)
    stream.push(first)
    stream.push(second)
    with pytest.raises(QueueFull, match="2 frames wait"):
        stream.push(third)
    assert stream.state().dropped == {}


@pytest.mark.parametrize("ahead", [False, True])
def test_any_thread_may_push_and_ask_and_another_make_tokens(model: StreamingVideoLM, ahead: bool) -> None:
    engine = Engine(model)
    streams = [engine.open(threshold=0.0, drop="all", queue=100) for _ in range(3)]

    def feed(number: int) -> None:
        for frame in frames(10, number):
            streams[number].push(frame)
        streams[number].ask(QUESTION)

    def encode() -> None:
        while len(answers) < 3:
            engine.encode_ahead()

    threads = [threading.Thread(target=feed, args=(number,)) for number in range(3)]
    threads += [threading.Thread(target=encode)] * ahead
    answers: list[StreamEvent] = []
    for thread in threads:
        thread.start()
    while len(answers) < 3:
        assert engine.wait(timeout=30)
        answers += [output.event for output in engine.step() if output.event]
    for thread in threads:
        thread.join()
    assert [stream.state().frames for stream in streams] == [10, 10, 10]


def test_what_cannot_be_is_refused_in_one_sentence(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    stream = engine.open()
    first, second = frames(2)
    stream.push(second)
    with pytest.raises(InputError, match=r"0\.000 s after one at 0\.500 s"):
        stream.push(first)
    with pytest.raises(InputError, match="question is empty"):
        stream.ask(" ")
    with pytest.raises(InputError, match="drop policy 'oldest' is unknown"):
        engine.open(drop="oldest")
    with pytest.raises(InputError, match="queue of 0 frames"):
        engine.open(queue=0)
    with pytest.raises(InputError, match="max_bytes 0"):
        Engine(model, max_bytes=0)
    stream.close()
    for late in (lambda: stream.push(second), lambda: stream.ask(QUESTION)):
        with pytest.raises(InputError, match="stream is closed"):
            late()
    given = Engine(tiny_model(DepthPlan("interleaved", 0.4, scorer="given"))).open()
    with pytest.raises(InputError, match="has no scores"):
        given.push_tokens(FrameTokens(torch.zeros(5, 16), (2, 2), 0.0, 0))


# --- one stream's trouble is not the others' -----------------------------------------------------------------------


def least_budget(model: StreamingVideoLM) -> int:
    """Bytes that a bounded session needs to watch at all."""
    with pytest.raises(InputError, match=r"take \d+ bytes") as refused:
        StreamSession(model, policy="window", budget=1)
    return int(str(refused.value).split(" bytes")[0].split()[-1])


def test_a_question_that_no_bound_of_its_stream_holds_is_refused_when_asked_and_others_lose_no_frame(
    model: StreamingVideoLM,
) -> None:
    engine = Engine(model)
    other, narrow = engine.open(threshold=0.0), engine.open(policy="window", budget=2 * least_budget(model))
    for frame in frames(3):
        other.push(frame)
    with pytest.raises(InputError, match=r"the question takes \d+ tokens.*ask a shorter one"):
        narrow.ask("What happened ? " * 200)
    engine.step()
    assert other.state().frames == 3 and not narrow.waiting
    narrow.ask(QUESTION)
    while engine.waiting:
        engine.step()


def test_long_questions_one_behind_the_other_are_refused_together_if_they_fit_alone(model: StreamingVideoLM) -> None:
    engine = Engine(model)
    budget = 2 * least_budget(model)
    longest = "What happened ? " * next(n for n in range(1, 99) if not fits_alone(model, budget, n + 1))
    stream = engine.open(policy="window", budget=budget, threshold=0.0)
    stream.ask(longest)
    with pytest.raises(InputError, match="ask a shorter one"):
        stream.ask(longest)
    most = 0
    while engine.waiting:
        engine.step()
        most = max(most, engine.kv_bytes)
    assert most <= budget and stream._questions == 0
    stream.push(frames(1)[0])
    engine.step()
    stream.ask(longest)
    while engine.waiting:
        engine.step()
    assert engine.kv_bytes <= budget


def fits_alone(model: StreamingVideoLM, budget: int, times: int) -> bool:
    try:
        StreamSession(model, policy="window", budget=budget).hear("What happened ? " * times)
    except InputError:
        return False
    return True


def test_a_stream_that_cannot_say_what_it_wants_takes_no_frame_from_the_others_nor_from_itself(
    model: StreamingVideoLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model)
    first, last = engine.open(threshold=0.0), engine.open(threshold=0.0)
    for frame in frames(2):
        first.push(frame)
        last.push(frame)

    def fail(*_: object) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(last._session.memory, "make_room", fail)
        engine.step()
    assert first.state().queued == last.state().queued == 2
    engine.step()
    assert first.state().frames == last.state().frames == 2


@pytest.mark.parametrize("shape", [(3, 16), (5, 8), (1, 5, 16), (5,)])
def test_tokens_that_are_no_frame_of_the_models_are_refused_before_they_wait(
    model: StreamingVideoLM, shape: tuple[int, ...]
) -> None:
    engine = Engine(model)
    stream = engine.open()
    wrong = FrameTokens(torch.zeros(shape), (2, 2), 0.0, 0)
    for push in (stream.push_tokens, StreamSession(model).push_tokens):
        with pytest.raises(InputError, match=r"tokens are \(.*; this model's encoder makes them \(5, 16\)"):
            push(wrong)
    assert not engine.waiting


@pytest.mark.parametrize("time", [math.nan, math.inf, -math.inf])
def test_a_frame_whose_time_is_no_number_is_refused(model: StreamingVideoLM, time: float) -> None:
    picture = frames(1)[0].image
    for push in (Engine(model).open().push, StreamSession(model).push):
        with pytest.raises(InputError, match=r"a frame's time is .*; give seconds"):
            push(Frame(picture, time, 0))


# --- the engine's budget, in all its uses ---------------------------------------------------------------------------


def test_a_rounded_cache_lets_as_many_more_streams_in_as_its_entries_are_smaller(model: StreamingVideoLM) -> None:
    def let_in(kv: str | None) -> int:
        small = tiny_model(DepthPlan("interleaved", 0.4))
        small.kv = kv
        engine = Engine(small, max_bytes=600_000)
        with pytest.raises(EngineFull):
            while True:
                engine.open(window=4.0)
        return len(engine.streams)

    exact, rounded = let_in(None), let_in("int8")  # 8 bytes a channel; 1 and a scale of 4 for 8 channels
    assert rounded >= 8 / 1.5 * exact


def test_what_is_recalled_counts_in_the_budget_and_the_newest_of_it_fits(model: StreamingVideoLM) -> None:
    said = [StreamEvent(float(number), "narration", "A red square enters", number) for number in range(99)]
    engine = Engine(model, max_bytes=3 * Engine(model, max_bytes=10**9).open(window=1.0)._room)
    stream = engine.open(window=1.0, threshold=0.0)
    stream.recall(said)
    room, forgotten = stream._room, stream.state().forgotten["narrations"]
    assert room > engine.max_bytes / 2 and 0 < forgotten < 99
    with pytest.raises(EngineFull):
        stream.ask(QUESTION)
    for frame in frames(10):
        stream.push(frame)
    while engine.waiting:
        engine.step()
        assert engine.kv_bytes <= engine.max_bytes
    assert stream.state().frames + stream.state().dropped.get("newest", 0) == 10
    assert stream.state().dropped.get("memory", 0) == 0


def test_what_a_stream_of_carriers_sets_apart_is_enough_for_all_that_stay(model: StreamingVideoLM) -> None:
    with pytest.raises(EngineFull) as told:
        Engine(model, max_bytes=1).open(policy="carrier", window=2.0)
    needed = re.search(r"needs ([\d,]+)", str(told.value))
    assert needed is not None
    engine = Engine(model, max_bytes=int(needed[1].replace(",", "")))
    stream = engine.open(policy="carrier", window=2.0, threshold=0.0)
    for frame in frames(120):
        stream.push(frame)
        engine.step()
    assert stream.state().frames == 120 and stream.state().dropped == {}
    assert stream.state().forgotten["shrunk"] > 64 and stream.state().forgotten["frames"] > 0


@pytest.mark.parametrize("budget", [37_500, 50_000, 65_000])
def test_what_is_set_apart_for_a_stream_is_never_more_than_the_budget_whatever_it_says(
    model: StreamingVideoLM, budget: int
) -> None:
    engine = Engine(model, max_bytes=budget)
    stream = engine.open(threshold=1.0, drop="all", queue=99)
    for number, frame in enumerate(frames(9)):
        stream.push(frame)
        if number % 2 or stream.state().dropped:
            with contextlib.suppress(EngineFull):
                stream.ask(QUESTION)
        while engine.waiting:
            engine.step()
            assert engine.kv_bytes <= stream._room <= budget
    assert stream.state().dropped["memory"] > 0, "the budget was full"
