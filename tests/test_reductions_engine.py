"""Reduced streams in one step: what a method does before the decoder it does for each stream as if it were alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from evaluate_cases import random_model, short_stream
from reduction_cases import method, small_model
from stream_cases import frames

from videollm_mod.depth import DepthPlan
from videollm_mod.evaluate.programs import alone, ask, run_programs, shares_steps, watch
from videollm_mod.evaluate.streams import run_streams, watch_both
from videollm_mod.model import StreamingVideoLM
from videollm_mod.reductions import Compose, Reduction, Uniform, methods
from videollm_mod.stream.engine import Engine, EngineFull
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError

QUESTION = "What happened?"
SHARING = [name for name, kind in methods().items() if kind.stage not in ("layer", "cache")]
ALONE = [name for name in methods() if name not in SHARING]
FILMS = range(3)


def middle(model: StreamingVideoLM) -> float:
    """A threshold at which the model speaks at some frames and keeps silent at others."""
    silences = []
    for film in FILMS:
        session = StreamSession(model, threshold=0.0)
        for frame in frames(8, film):
            session.push(frame)
            silences.append(session.silence)
    return sorted(silences)[len(silences) // 3]


def talk(model: StreamingVideoLM, threshold: float, film: int) -> Any:
    """A film with a question in the middle -> the session, silences, events."""
    session = StreamSession(model, threshold=threshold, window=2.0)
    pictures = [session.encode(frame) for frame in frames(9 + film, film)]
    told = list((yield from watch(session, pictures[:6])))
    told.append((yield from ask(session, QUESTION)))
    told += yield from watch(session, pictures[6:])
    silences = [item.silence for item in told if hasattr(item, "silence")]
    events = [(item.kind, item.text, item.time, item.frame) for item in told if hasattr(item, "text")]
    return session, silences, events


def assert_together_as_alone(model: StreamingVideoLM, one: Reduction) -> None:
    with one.on(model, question=QUESTION):
        threshold = middle(model)
        each = [alone(talk(model, threshold, film)) for film in FILMS]
        together: dict[int, Any] = {}
        run_programs(model, (talk(model, threshold, film) for film in FILMS), most=2, done=together.__setitem__)
    said = sum(event[0] == "narration" for _, _, events in each for event in events)
    assert 0 < said < sum(len(silences) for _, silences, _ in each)  # it spoke, so frames were rolled back
    for film in FILMS:
        (session, silences, events), (other, expected, told) = together[film], each[film]
        np.testing.assert_allclose(silences, expected, atol=1e-6)
        assert events == told and session.context == other.context
        assert session._cache.stored == other._cache.stored


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARING)
@pytest.mark.parametrize("keep", [0.1, 0.6])
def test_streams_share_steps_and_each_gets_what_it_gets_alone(name: str, keep: float) -> None:
    assert_together_as_alone(small_model("clip", "own"), method(name, keep))
    assert_together_as_alone(small_model("clip", "last", DepthPlan("interleaved", 0.4)), method(name, keep))


def test_one_that_remembers_earlier_frames_forgets_those_that_were_rolled_back() -> None:
    assert_together_as_alone(small_model("clip", "own"), method("grt", 0.3))
    assert_together_as_alone(small_model("clip", "own"), method("holi_tom_causal", 0.3))


def test_several_in_a_row_share_steps_too() -> None:
    assert_together_as_alone(small_model("clip", "own"), Compose([method("grt", 0.9), method("div_prune", 0.5)]))


@pytest.mark.parametrize("name", ALONE)
def test_what_acts_within_the_decoder_has_one_stream_at_a_time(name: str) -> None:
    model = small_model()
    with method(name, 0.4).on(model, question=QUESTION):
        assert not shares_steps(model)
        with pytest.raises(InputError, match="has one stream at a time; take a reduction that acts before the"):
            Engine(model)
    with Uniform(keep=0.5).on(model, positions="renumber"):
        assert not shares_steps(model)


@pytest.mark.parametrize(
    "name", [name if name in ("uniform", "grt") else pytest.param(name, marks=pytest.mark.slow) for name in SHARING]
)
def test_an_engine_holds_its_budget_and_has_room_for_more_streams_than_without(name: str) -> None:
    model = small_model("clip", "own")
    budget = 4 * Engine(model, max_bytes=10**9).open(window=4.0)._room

    def opened(engine: Engine) -> int:
        for number in range(40):
            try:
                engine.open(threshold=0.0, window=4.0, drop="all", queue=64)
            except EngineFull:
                return number
        return 40

    with method(name, 0.25).on(model, question=QUESTION):
        engine = Engine(model, max_bytes=budget)
        count = opened(engine)
        for number, stream in enumerate(engine.streams):
            for frame in frames(20, number % 3):
                stream.push(frame)
        while engine.waiting:
            engine.step()
            assert engine.kv_bytes <= budget
        for stream in engine.streams:
            state = stream.state()
            assert state.frames == 20 and not state.dropped
            assert state.kv_bytes <= stream._room
    assert count >= 6 and opened(Engine(model, max_bytes=budget)) == 4


@pytest.mark.parametrize("name", ["grt", "holi_tom_causal"])
def test_a_step_that_fails_leaves_what_is_remembered(name: str) -> None:
    model = small_model("clip", "own")
    with method(name, 0.3).on(model, question=QUESTION):
        session, other = (StreamSession(model, threshold=0.0) for _ in range(2))
        for number, frame in enumerate(frames(6)):
            if number == 3:
                with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
                    patch.setattr(StreamSession, "judge", lambda *args: 1 / 0)
                    session.push(frame)
            session.push(frame)
            other.push(frame)
            assert session.silence == other.silence and session._cache.stored == other._cache.stored


@pytest.mark.parametrize("name", ["grt", "holi_tom_causal"])
def test_a_first_step_that_fails_leaves_nothing_to_remember(name: str) -> None:
    model = small_model("clip", "own")
    film = frames(3)
    with method(name, 0.3).on(model, question=QUESTION):
        session, engine = StreamSession(model, threshold=0.0), Engine(model)
        stream = engine.open(threshold=0.0)
        stream.push(film[0])
        for run in (lambda: session.push(film[0]), engine.step):
            with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
                patch.setattr(model.lm.model.layers[1], "forward", lambda *args, **more: 1 / 0)
                run()
        told = [session.silence for frame in film if session.push(frame) == []]
        for frame in film[1:]:
            stream.push(frame)
        together = [output.decision[1] for output in engine.step() if output.decision is not None]
        other = StreamSession(model, threshold=0.0)
        expected = [other.silence for frame in film if other.push(frame) == []]
    np.testing.assert_allclose([told, together], [expected, expected], atol=1e-6)


@pytest.mark.parametrize("policy, budget", [("window", None), ("carrier", None), ("norm", 60_000)])
def test_what_stands_still_is_sent_again_when_the_frame_that_showed_it_is_forgotten(
    policy: str, budget: int | None
) -> None:
    model, picture = small_model("clip", "own"), frames(1)[0]
    with method("holi_tom_causal", 0.5).on(model, traced=True) as within:
        session, sent, forgets = StreamSession(model, threshold=0.0, window=2.0, policy=policy, budget=budget), [], []
        for number in range(40):
            before = dict(session.state().forgotten)
            session.push(dataclasses.replace(picture, time=number / 2, index=number))
            sent.append(len(within.last[0]))
            forgets.append(session.state().forgotten != before)
    assert sent == [8 if number == 0 or forgot else 1 for number, forgot in enumerate(forgets)] and any(forgets)


@pytest.mark.parametrize("name", ["quick_video", "video_scan"])
def test_what_was_dropped_from_a_cache_is_not_chosen_among_again_behind_a_step_that_failed(name: str) -> None:
    model, film = small_model("clip", "own"), frames(3)
    with method(name, 0.6).on(model):
        session, other = (StreamSession(model, threshold=0.0) for _ in range(2))
        for each in (session, other):
            each.push(film[0])
            each.push(film[1])
        with pytest.raises(ZeroDivisionError), pytest.MonkeyPatch.context() as patch:
            patch.setattr(StreamSession, "judge", lambda *args: 1 / 0)
            session.push(film[2])
        assert session.ask(QUESTION) == other.ask(QUESTION)
        assert session._cache.stored == other._cache.stored


def test_tokens_that_were_made_without_the_reduction_are_refused_before_they_stop_all_streams() -> None:
    model, frame = small_model("clip", "own"), frames(1)[0]
    plain = StreamSession(model).encode(frame)
    with method("faster_vlm", 0.5).on(model):
        engine = Engine(model)
        one, other = engine.open(threshold=0.0), engine.open(threshold=0.0)
        with pytest.raises(InputError, match=r"a frame's tokens are \(17, 16\); .* makes them \(17, 17\)"):
            one.push_tokens(plain)
        one.push_tokens(StreamSession(model).encode(frame))
        other.push(frame)
        first, second = (output.decision for output in engine.step())
        assert first == pytest.approx(second)


@pytest.mark.parametrize("name", ["quick_video", "aim_prune", "uniform"])
def test_an_engine_that_is_older_than_a_reduction_refuses_it_too(name: str) -> None:
    model, frame = small_model("clip", "own"), frames(1)[0]
    engine = Engine(model)
    stream = engine.open(threshold=0.0, drop="all")
    stream.push(frame)
    with method(name, 0.5).on(model, positions="renumber" if name == "uniform" else "keep"):
        with pytest.raises(InputError, match="has one stream at a time"):
            engine.step()
    assert [output.decision is not None for output in engine.step()] == [True]


@pytest.mark.slow
def test_other_processes_have_the_reduction_too() -> None:
    model, streams = random_model(), [short_stream(number, seconds=6) for number in range(4)]
    plain = run_streams(model, watch_both, streams)
    with Uniform(keep=0.3).on(model):
        here = run_streams(model, watch_both, streams, batch=1)
        spread = run_streams(model, watch_both, streams, workers=2, batch=2)
    for one, other, whole in zip(spread, here, plain, strict=True):
        np.testing.assert_allclose(one.own.silence, other.own.silence, atol=1e-6)
        assert one.own.answers == other.own.answers
        assert not np.allclose(one.truth.silence, whole.truth.silence)
