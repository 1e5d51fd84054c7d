"""A stream is played to a model as a live session would be: narrations, answers, questions aside, proactive ones."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from benchmark_cases import FPS, ask, features_of_all, streams_of, write_all
from evaluate_cases import SYSTEM, random_model

from videollm_mod.data.conversation import converse
from videollm_mod.data.segments import Segment, Stream
from videollm_mod.dialogue import Assistant, System, User
from videollm_mod.dialogue import Stream as Frames
from videollm_mod.evaluate import programs
from videollm_mod.evaluate.playing import How, Result, frames_of, play
from videollm_mod.evaluate.programs import Program, alone
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import FrameTokens, InputError, StreamEvent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model() -> StreamingVideoLM:
    return random_model()


@pytest.fixture(scope="module")
def features(model: StreamingVideoLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return features_of_all(model, tmp_path_factory.mktemp("features"))


# -- a session that is told and asked aside ----------------------------------------------------------------------------


def push(session: StreamSession, features: torch.Tensor, index: int) -> None:
    session.push_tokens(FrameTokens(features[index], session.grid, index / FPS, index))


def some_features(model: StreamingVideoLM, frames: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(frames, 5, model.encoder.width, generator=generator, dtype=torch.float64)


def test_what_is_asked_aside_leaves_no_trace_in_any_layer(model: StreamingVideoLM) -> None:
    features = some_features(model, 8)
    plain, asked = StreamSession(model, threshold=0), StreamSession(model, threshold=0)
    for index in range(8):
        for session in (plain, asked):
            push(session, features, index)
        if index % 3 == 0:
            with asked.aside():
                asked.ask("What is in view?")
        assert asked.state().stored == plain.state().stored
    assert asked.context == plain.context
    assert asked.silence == plain.silence
    assert asked.ask("Why?").text == plain.ask("Why?").text
    with pytest.raises(InputError, match="frames came in"), asked.aside():
        push(asked, some_features(model, 9), 8)


def test_a_question_that_is_told_and_answered_later_is_the_conversation_of_the_data(model: StreamingVideoLM) -> None:
    features = some_features(model, 4)
    session = StreamSession(model, threshold=0)
    session.tell("What is it about?")
    for index in range(4):
        push(session, features, index)
    said = session.reply()
    told = [System(SYSTEM), User("What is it about?"), Frames(4), Assistant(said.text)]
    example = model.template.encode(told)
    assert session.context + session._pending == example.input_ids.tolist()
    assert said.kind == "answer" and said.time == 1.5


# -- playing -----------------------------------------------------------------------------------------------------------


def with_features(stream: Stream, features: Path, name: str) -> Stream:
    return dataclasses.replace(stream, features=features / f"{name}.safetensors")


def test_a_narration_is_played_as_a_session_that_hears_the_instruction_after_its_frame(
    model: StreamingVideoLM, features: Path, data: Path
) -> None:
    _, streams = streams_of("ego4d-narration", data)
    stream = with_features(streams[0], features, "val-uid")
    laid = converse(stream, FPS)
    rows = list(frames_of(model, stream, laid, FPS))
    session = StreamSession(model)
    limit, session.threshold = session.threshold, 0.0
    said = []
    for index, (tokens, time) in enumerate(rows):
        said += [(e.time, e.text) for e in session.push_tokens(FrameTokens(tokens, session.grid, time, index))]
        if index == 0:
            said.append((time, session.ask(stream.of("user")[0].text).text))
            session.threshold = limit
    name, result = alone(play(model, (stream, How("narrate"))))
    assert name == stream.id
    assert [tuple(item) for item in result.said] == said
    assert [time for _, time in rows] == [number / FPS for number in laid.frames]
    assert len(result.turns) == len(stream.replies)
    assert [turn.narrates for turn in result.turns] == [False, *[True] * (len(stream.replies) - 1)]
    assert Result.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_the_model_decides_when_to_answer_and_has_to_at_the_end(
    model: StreamingVideoLM, features: Path, data: Path
) -> None:
    _, streams = streams_of("coin-step", data)
    stream = with_features(streams[0], features, "vid2")
    eager, shy = (_at_threshold(model, threshold) for threshold in (1.0, 0.0))
    with eager as talking:
        _, early = alone(play(talking, (stream, How("answer", forced=False))))
    with shy as quiet:
        _, late = alone(play(quiet, (stream, How("answer", forced=False))))
    with eager as talking:
        _, waits = alone(play(talking, (stream, How("answer", forced=False, compat=True))))
    first, last = stream.span
    assert early.answers[0] is not None and early.answers[0].own and early.answers[0].time == first
    assert late.answers[0] is not None and not late.answers[0].own and late.answers[0].time == last
    assert waits.answers == late.answers  # the public code forces an answer behind the last frame


def test_a_question_that_came_before_its_frames_is_not_forgotten_with_them(
    model: StreamingVideoLM, features: Path
) -> None:
    segments = (
        Segment("user", text="What is it about?"),
        Segment("stream", start=0.0, end=9.0),
        Segment("assistant", 9.0, text="This."),
    )
    stream = Stream("one", segments, features=features / "one.safetensors")
    with _at_threshold(model, 0.0) as quiet:
        _, remembers = alone(play(quiet, (stream, How("answer", forced=False))))
        quiet.settings = dataclasses.replace(quiet.settings, window=1.0)
        _, forgetful = alone(play(quiet, (stream, How("answer", forced=False))))
    assert forgetful.answers == remembers.answers


class _at_threshold:
    """The model with another threshold, for a while."""

    def __init__(self, model: StreamingVideoLM, threshold: float) -> None:
        self.model, self.threshold = model, threshold

    def __enter__(self) -> StreamingVideoLM:
        self.before = self.model.settings
        self.model.settings = dataclasses.replace(self.before, threshold=self.threshold)
        return self.model

    def __exit__(self, *error: object) -> None:
        self.model.settings = self.before


def test_candidates_are_a_greedy_one_and_samples_that_a_seed_repeats(model: StreamingVideoLM, features: Path) -> None:
    segments = (Segment("stream", start=0.0, end=3.0), *ask(3.0, "What next?", "This."))
    stream = Stream("one", segments, features=features / "one.safetensors")
    one, same, other = (
        alone(play(model, (stream, How("answer", candidates=4, forced=False, seed=seed))))[1].answers[0]
        for seed in (0, 0, 1)
    )
    assert one is not None and other is not None and one == same
    assert len(one.texts) == 4 and one.texts[0] == other.texts[0] and one.texts != other.texts


def test_a_proactive_question_is_answered_of_its_own_accord_and_polled_every_second(
    model: StreamingVideoLM, features: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, streams = streams_of("streamingbench", data)
    stream = with_features(streams[-1], features, "sample_2_proactive")
    asked: list[tuple[float, str]] = []

    def listen(session: StreamSession, text: str) -> Program[StreamEvent]:
        event = yield from programs.ask(session, text)
        asked.append((event.time, text))
        sure = "Is it the right time" in text and event.time >= 5
        return dataclasses.replace(event, text="Yes." if sure else "red")

    monkeypatch.setattr("videollm_mod.evaluate.playing.ask", listen)
    with _at_threshold(model, 0.0) as quiet:
        _, result = alone(play(quiet, (stream, How("proactive", forced=False))))
    own, polled = result.answers
    assert own is None
    assert polled is not None and polled.texts == ("red",)
    times = [time for time, text in asked if "Is it the right time" in text]
    assert times == [2.5, 3.5, 4.5, 5.5]  # the newest frame before each second: 3, 4, 5, 6
    assert polled.time == 6.0
