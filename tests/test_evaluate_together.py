"""Streams that are evaluated together share the model's steps, and say, answer and score what each does alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_cases import ask, random_features
from evaluate_cases import random_model, short_stream
from hypothesis import given
from hypothesis import strategies as st
from stream_cases import frames, tiny_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from videollm_mod.data.segments import Segment, Stream, write_streams
from videollm_mod.depth import DepthPlan
from videollm_mod.evaluate import programs
from videollm_mod.evaluate.command import BenchmarkConfig
from videollm_mod.evaluate.command import evaluate as evaluate_benchmark
from videollm_mod.evaluate.playing import How, play
from videollm_mod.evaluate.programs import Program, alone, run_programs, shares_steps, watch
from videollm_mod.evaluate.streams import _groups, run_streams, watch_both
from videollm_mod.evaluate.world import EvalWorldConfig, evaluate_world
from videollm_mod.model import StreamingVideoLM
from videollm_mod.reductions.quickvideo import QuickVideo
from videollm_mod.stream.session import Decision, StreamSession
from videollm_mod.types import FrameTokens, InputError, StreamEvent

PLANS = {
    "full": DepthPlan("full"),
    "routed": DepthPlan("interleaved", 0.4),
    "random": DepthPlan("interleaved", 0.4, scorer="random"),
    "an oracle's": DepthPlan("interleaved", 0.4, scorer="given"),
    "early exit": DepthPlan("early-exit", exit_after=1),
    "layer skip": DepthPlan("layer-skip"),
}


def together(model: StreamingVideoLM, jobs: list[Program[Any]], most: int) -> list[Any]:
    found: dict[int, Any] = {}
    run_programs(model, jobs, most=most, done=found.__setitem__)
    return [found[number] for number in range(len(jobs))]


@pytest.mark.parametrize(
    "name",
    [name if name in ("routed", "an oracle's") else pytest.param(name, marks=pytest.mark.slow) for name in PLANS],
)
def test_world_streams_watched_together_are_each_watched_as_alone(name: str) -> None:
    model = random_model(plan=PLANS[name])
    streams = [short_stream(number, seconds=4.0 + number) for number in range(3)]
    each = [alone(watch_both(model, stream)) for stream in streams]
    spoken = [len(one.own.narrations) for one in each]
    assert 0 < sum(spoken) < sum(len(stream.times) for stream in streams)
    for one, other in zip(each, run_streams(model, watch_both, streams, batch=2), strict=True):
        assert one.own.narrations and [dataclasses.replace(event, probability=0) for event in one.own.narrations] == [
            dataclasses.replace(event, probability=0) for event in other.own.narrations
        ]
        assert one.own.answers == other.own.answers
        np.testing.assert_allclose(one.own.silence, other.own.silence, atol=1e-10)
        assert one.truth.turns == other.truth.turns


QUESTIONS = (Segment("stream", start=0.0, end=8.0), *ask(2.0, "What is it?", "This."), *ask(5.0, "And now?", "That."))
TOLD = (
    Segment("stream", start=0.0, end=1.0, learn=False),
    Segment("user", 1.0, text="Say what happens."),
    Segment("stream", start=1.5, end=9.0),
    Segment("assistant", 4.0, text="This."),
)
BEFORE = (
    Segment("user", text="What is it?"),
    Segment("stream", start=0.0, end=4.0),
    Segment("assistant", 4.0, text="A"),
)
PROACTIVE = (
    Segment("user", 1.0, text="Say when.", meta={"poll": "Is it time?", "ask": "What is it?"}),
    Segment("stream", start=1.0, end=6.0),
    Segment("assistant", 3.0, text="This."),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_features(random_model(), tmp_path_factory.mktemp("features"), "one", "two", "three")


def films(library: Path, segments: tuple[Segment, ...]) -> list[Stream]:
    names = ("one", "two", "three")
    return [Stream(name, segments, features=library / f"{name}.safetensors") for name in names]


@pytest.mark.parametrize(
    ("segments", "how"),
    [
        (TOLD, How("narrate")),
        (QUESTIONS, How("answer", candidates=3)),
        (BEFORE, How("answer", candidates=2, compat=True)),
        (PROACTIVE, How("proactive", forced=False)),
    ],
    ids=["narrate", "answer", "answer at the end", "proactive"],
)
def test_streams_of_a_benchmark_played_together_are_each_played_as_alone(
    library: Path, segments: tuple[Segment, ...], how: How
) -> None:
    model = random_model()
    jobs = [(stream, how) for stream in films(library, segments)]
    each = [alone(play(model, job)) for job in jobs]
    assert together(model, [play(model, job) for job in jobs], most=2) == each
    assert len({str(result.said) + str(result.answers) for _, result in each}) > 1  # they differ, so none is mixed up


def test_the_numbers_of_eval_world_do_not_depend_on_batch(tmp_path: Path) -> None:
    random_model().save_pretrained(tmp_path / "model")
    config = EvalWorldConfig(
        model=str(tmp_path / "model"), streams=3, heldout=1, seconds=6, workers=1, batch=1, report=tmp_path
    )
    by_one = evaluate_world(config)
    by_four = evaluate_world(dataclasses.replace(config, batch=4))
    assert by_one["events"] > 0 and by_one["f1"] == by_four["f1"]
    for key in set(by_one) - {"wall_seconds", "frames_per_second"}:
        assert by_one[key] == by_four[key], key
    with pytest.raises(InputError, match="--batch 0 is too small"):
        evaluate_world(dataclasses.replace(config, batch=0))


def test_a_journal_written_by_several_at_a_time_goes_on_one_by_one_and_in_shards(tmp_path: Path, library: Path) -> None:
    random_model().save_pretrained(tmp_path / "model")
    data = tmp_path / "mine.jsonl"
    write_streams(data, films(library, TOLD))
    config = BenchmarkConfig(data, model=str(tmp_path / "model"), workers=1, journal=tmp_path / "journal.jsonl")
    for shard in ("1/2", "2/2"):
        evaluate_benchmark("narration", dataclasses.replace(config, shard=shard, batch=3))
    joined = evaluate_benchmark("narration", dataclasses.replace(config, batch=1))
    assert joined["frames_per_second"] is None  # nothing was watched anew
    at_once = evaluate_benchmark("narration", dataclasses.replace(config, journal=None, batch=1))
    assert joined["metrics"] == at_once["metrics"] and joined["frame_times"] == at_once["frame_times"]
    lines = (tmp_path / "journal.1-of-2.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["stream"] for line in lines[1:]) == ["one", "three"]


@pytest.mark.slow
def test_groups_of_streams_in_other_processes_give_the_same(tmp_path: Path) -> None:
    model, streams = random_model(), [short_stream(number, seconds=6) for number in range(5)]
    names: list[str] = []
    spread = run_streams(model, watch_both, streams, workers=2, batch=2, done=lambda one: names.append(one.stream.name))
    here = run_streams(model, watch_both, streams, batch=1)
    assert sorted(names) == [stream.name for stream in streams]
    for one, other in zip(spread, here, strict=True):
        assert one.stream.name == other.stream.name and one.own.answers == other.own.answers
        assert [event.text for event in one.own.narrations] == [event.text for event in other.own.narrations]


@given(jobs=st.integers(1, 300), workers=st.integers(1, 40), batch=st.integers(1, 20))
def test_groups_hold_every_job_once_and_are_as_equal_as_can_be(jobs: int, workers: int, batch: int) -> None:
    groups = _groups(jobs, workers, batch)
    assert [number for group in groups for number in group] == list(range(jobs))
    sizes = [len(group) for group in groups]
    assert 1 <= min(sizes) and max(sizes) <= min(batch, min(sizes) + 1)
    assert len(groups) % workers == 0 or max(sizes) == 1


# -- the runner --------------------------------------------------------------------------------------------------------


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many sessions each step had."""
    seen: list[int] = []
    plain = programs.run_together

    def count(model: StreamingVideoLM, decoder: Any, shares: Any) -> Any:
        seen.append(len(shares))
        return plain(model, decoder, shares)

    monkeypatch.setattr(programs, "run_together", count)
    return seen


def silent_film(model: StreamingVideoLM, count: int, begun: list[int], number: int = 0) -> Program[int]:
    begun.append(number)
    session = StreamSession(model, threshold=0.0)
    film = [session.encode(frame) for frame in frames(count, number)]
    return len((yield from watch(session, film)))


def test_a_stream_is_begun_when_another_has_ended(steps: list[int]) -> None:
    model, begun, ended = tiny_model(DepthPlan("interleaved", 0.4)), [], []
    lengths = (1, 30, 1, 1)
    jobs = (silent_film(model, length, begun, number) for number, length in enumerate(lengths))

    def done(number: int, result: int) -> None:
        assert result == lengths[number]
        ended.append((number, list(begun)))

    run_programs(model, jobs, most=2, done=done)
    assert ended[0] == (0, [0, 1]) and ended[1] == (2, [0, 1, 2])
    assert sorted(number for number, _ in ended) == [0, 1, 2, 3]
    assert max(steps) == 2


def test_what_a_model_says_goes_into_one_step_with_what_others_see(steps: list[int]) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))

    def talk() -> Iterator[Any]:
        session = StreamSession(model, threshold=1.0)
        told = yield from watch(session, [session.encode(frame) for frame in frames(2)])
        return [type(item) for item in told]

    (told, seen) = together(model, [talk(), silent_film(model, 16, [])], most=2)
    assert told == [Decision, StreamEvent, Decision, StreamEvent] and seen == 16
    assert steps[0] == 2 and len(steps) < 2 * (1 + model.settings.max_reply_tokens + 1) + 16


def test_a_program_that_fails_ends_them_all_and_their_sessions_are_as_before() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    session = StreamSession(model, threshold=0.0)

    def aside() -> Program[None]:
        yield from watch(session, [session.encode(frame) for frame in frames(2)])
        with session.aside():
            yield from programs.ask(session, "What happened?")
            while True:
                yield from programs.ask(session, "And then?")

    def fail() -> Program[None]:
        yield from silent_film(model, 9, [])
        raise InputError("the file is broken")

    with pytest.raises(InputError, match="broken"):
        together(model, [aside(), fail()], most=2)
    other = StreamSession(model, threshold=0.0)
    for frame in frames(2):
        other.push(frame)
    assert session.context == other.context and session._cache.stored == other._cache.stored


def test_models_whose_streams_cannot_share_a_step_are_run_one_by_one(steps: list[int]) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    assert shares_steps(model)
    with QuickVideo(keep=0.5).on(model):  # which acts on a cache
        assert not shares_steps(model)
        assert together(model, [silent_film(model, 3, [], number) for number in range(2)], most=2) == [3, 3]
    softcap = Gemma2Config(
        vocab_size=model.lm.config.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    torch.manual_seed(0)
    other = StreamingVideoLM(
        model.encoder, model.connector, Gemma2ForCausalLM(softcap).double().eval(), model.template.tokenizer,
        DepthPlan("interleaved", 0.4), model.settings,
    ).double().eval()  # fmt: skip
    assert not shares_steps(other)
    assert together(other, [silent_film(other, 3, [], number) for number in range(2)], most=2) == [3, 3]
    assert steps == []


def test_memory_that_does_not_suffice_is_told_with_its_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))

    def full(*args: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(programs, "run_together", full)
    with pytest.raises(InputError, match=r"2 streams at a time need more memory than there is; lower --batch\."):
        together(model, [silent_film(model, 3, [], number) for number in range(2)], most=2)


def test_a_question_whose_answer_nobody_knows_is_answered_behind_all_frames(library: Path) -> None:
    segments = (Segment("user", text="What is it?"), Segment("stream", start=0.0, end=4.0))
    (stream, *_) = films(library, segments)
    model = random_model()
    model.settings = dataclasses.replace(model.settings, threshold=0.0)
    _, result = alone(play(model, (stream, How("answer", forced=False))))
    (answer,) = result.answers
    assert answer is not None and not answer.own and answer.time == result.end == 4.0
    seen = answer_behind(model, stream)
    assert answer.texts == (seen,)


def answer_behind(model: StreamingVideoLM, stream: Stream) -> str:
    """What a session says that was asked before all frames and speaks behind them."""
    from videollm_mod.evaluate.playing import frames_of, lay_out

    session = StreamSession(model)
    session.tell("What is it?")
    fps = model.settings.fps
    for index, (tokens, time) in enumerate(frames_of(model, stream, lay_out(stream, fps), fps)):
        session.push_tokens(FrameTokens(tokens, session.grid, time, index))
    return session.reply().text
