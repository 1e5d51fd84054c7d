"""Both protocols on a model with random weights: one pass equals a session in the true context; lateness; own words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from evaluate_cases import SYSTEM, random_model, short_stream

from videollm_mod.dialogue import Assistant, Segment, Stream, System, User
from videollm_mod.evaluate.programs import alone
from videollm_mod.evaluate.self_conditioned import self_conditioned
from videollm_mod.evaluate.streams import features_of, scores_of
from videollm_mod.evaluate.teacher_forced import TeacherForced, Turn, teacher_forced
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame, FrameTokens
from videollm_mod.world.conversation import segments

CASES = [("last", "learned"), ("own", "learned"), ("last", "random"), ("own", "given")]


def test_a_conversation_holds_every_frame_event_and_question_of_its_stream_at_its_place() -> None:
    for number in range(20):
        stream = short_stream(number)
        conversation = segments(stream, SYSTEM)
        assert conversation[0] == System(SYSTEM)
        frames, told, asked, question = 0, [], [], None
        for segment in conversation[1:]:
            if isinstance(segment, Stream):
                frames += segment.frames
            elif isinstance(segment, User):
                question = segment.text
            elif isinstance(segment, Assistant):
                if question is None:
                    told.append((frames - 1, segment.text))
                else:
                    asked.append((frames - 1, question, segment.text))
                question = None
        assert frames == len(stream.times)
        assert told == [(event.frame, event.text) for event in stream.events]
        assert asked == [(q.frame, q.question, q.answer) for q in stream.questions]


def session_in_true_context(
    model: object, conversation: list[Segment], features: torch.Tensor, scores: torch.Tensor | None
) -> list[float]:
    """Probability of silence at each frame of a live session into whose mouth the true replies are put."""
    session = StreamSession(model, threshold=0)  # type: ignore[arg-type]
    silence: list[float] = []
    for segment in conversation[1:]:
        if isinstance(segment, Stream):
            for _ in range(segment.frames):
                index = len(silence)
                own = None if scores is None else scores[index]
                session.push_tokens(FrameTokens(features[index], session.grid, index / 2, index, own))
                silence.append(session.silence)
            continue
        if session._stream_open:
            session._pending += session.template.close()
            session._stream_open = False
        if isinstance(segment, User):
            session._pending += session.template.user(segment.text)
        elif isinstance(segment, Assistant):
            session._pending += session.template.reply_prompt() + session.template.reply(segment.text)
    return silence


@pytest.mark.parametrize(("decide", "scorer"), CASES)
def test_probabilities_in_one_pass_are_those_of_a_session_in_the_true_context(decide: str, scorer: str) -> None:
    model, stream = random_model(decide, scorer), short_stream()
    assert stream.events and stream.questions
    features, conversation, scores = features_of(model, stream), segments(stream, SYSTEM), scores_of(model, stream)
    one_pass = teacher_forced(model, conversation, features, scores=scores).silence
    live = session_in_true_context(model, conversation, features, scores)
    assert np.ptp(one_pass) > 1e-4  # else any two would agree
    np.testing.assert_allclose(one_pass, live, atol=1e-6)


@pytest.mark.parametrize(("decide", "scorer"), CASES)
def test_after_a_missed_narration_the_next_frames_are_shown_as_if_nothing_had_been_said(
    decide: str, scorer: str
) -> None:
    model, stream = random_model(decide, scorer), short_stream(seconds=20)
    features, conversation, scores = features_of(model, stream), segments(stream, SYSTEM), scores_of(model, stream)
    missed = teacher_forced(model, conversation, features, scores=scores, threshold=0)  # it never speaks
    spoken = teacher_forced(model, conversation, features, scores=scores, threshold=1)  # it always does
    np.testing.assert_array_equal(missed.silence, spoken.silence)
    looked = 0
    for number, turn in enumerate(missed.turns):
        assert spoken.turns[number].later is None
        assert turn.cross_entropy == spoken.turns[number].cross_entropy  # rolling back disturbed no other turn
        if not turn.narrates:
            assert turn.later is None
            continue
        assert turn.later is not None
        last = turn.frames[-1]
        after = missed.turns[number + 1 :]
        following = len(after[0].frames) if after else len(stream.times) - last - 1
        count = min(following, len(turn.frames) - 1)
        assert len(turn.later) == count
        if count:
            looked += 1
            unsaid = [*until_said(conversation, last), Stream(count)]
            until = slice(last + 1 + count)
            shown = None if scores is None else scores[until]
            expected = teacher_forced(model, unsaid, features[until], scores=shown).silence[last + 1 :]
            np.testing.assert_allclose(turn.later, expected, atol=1e-6)
            assert not np.allclose(turn.later, missed.silence[last + 1 : last + 1 + count], atol=1e-6)
    assert looked >= 2


def until_said(conversation: list[Segment], last: int) -> list[Segment]:
    """The conversation up to frame number `last`."""
    kept: list[Segment] = []
    frames = 0
    for segment in conversation:
        kept.append(segment)
        frames += segment.frames if isinstance(segment, Stream) else 0
        if frames == last + 1:
            return kept
    raise AssertionError


def test_cross_entropy_and_argmax_are_of_the_true_replies_in_their_places() -> None:
    model, stream = random_model(), short_stream()
    features, conversation = features_of(model, stream), segments(stream, SYSTEM)
    example = model.template.encode(conversation)
    judged = teacher_forced(model, conversation, features)
    with torch.no_grad():
        out = model(
            example.input_ids[None],
            example.frame_index[None],
            features,
            labels=example.labels[None],
            decision=example.decision[None],
        )
    every = [value for turn in judged.turns for value in turn.cross_entropy]
    assert sum(every) / len(every) == pytest.approx(float(out.lm_loss), rel=1e-5)
    replies = [segment for segment in conversation if isinstance(segment, Assistant)]
    assert [len(turn.right) for turn in judged.turns] == [len(model.template.reply(r.text)) for r in replies]
    assert len(judged.narrations) == len(stream.events)


def turn(silence: list[float], right: list[bool], later: list[float] | None = None, first: int = 0) -> Turn:
    frames = tuple(range(first, first + len(silence)))
    return Turn(
        True, frames, tuple(silence), (0.5,) * len(right), tuple(right), None if later is None else tuple(later)
    )


def test_scores_of_a_turn_follow_the_definitions() -> None:
    assert turn([0.9, 0.9, 0.2], [True, True]).scores(0.5, fps=2) == pytest.approx(
        {"lm_ppl": np.exp(0.5), "time_diff": 0, "fluency": 1, "lm_correctness": 1}
    )
    early = turn([0.9, 0.3, 0.2, 0.9], [True, False]).scores(0.5, fps=2)
    assert (early["time_diff"], early["fluency"], early["lm_correctness"]) == (1.0, pytest.approx(1 / 6), 0.5)
    late = turn([0.9, 0.8, 0.7], [True], later=[0.6, 0.4]).scores(0.5, fps=2)
    assert (late["time_diff"], late["fluency"]) == (1.0, pytest.approx(2 / 4))


def test_teacher_forced_counts_take_the_right_frame_and_the_whole_sentence() -> None:
    turns = (
        turn([0.9, 0.1], [True, True]),  # right
        turn([0.9, 0.1], [True, False], first=2),  # at the right frame, but other words
        turn([0.1, 0.9], [True, True], first=4),  # a frame early
    )
    silence = np.array([p for t in turns for p in t.silence] + [0.2])  # and once more behind the last
    assert TeacherForced(silence, turns).counts(0.5) == (1, 4, 3)
    assert TeacherForced(silence, turns).counts(0.0) == (0, 0, 3)


def test_a_stream_of_ready_tokens_is_watched_as_its_pictures_are() -> None:
    model, stream = random_model(), short_stream()
    features = features_of(model, stream)
    silences = alone(self_conditioned(model, stream, features, threshold=0)).silence
    threshold = float(np.median(silences))  # so that it speaks at some frames and not at others
    own = alone(self_conditioned(model, stream, features, threshold=threshold))
    assert 0 < len(own.narrations) < len(stream.times)
    session = StreamSession(model, threshold=threshold)
    narrations, answers, questions = [], [], list(stream.questions)
    for index, (image, time) in enumerate(zip(stream.frames(), stream.times.tolist())):
        narrations += session.push(Frame(image, time, index))
        for question in questions:
            if question.frame == index:
                answers.append(session.ask(question.question).text)
        assert session.silence == pytest.approx(own.silence[index], abs=1e-9)
    assert [(n.time, n.text, n.frame) for n in narrations] == [(n.time, n.text, n.frame) for n in own.narrations]
    assert tuple(answers) == own.answers


def test_a_model_that_may_not_speak_is_silent_and_still_answers() -> None:
    model, stream = random_model(), short_stream()
    own = alone(self_conditioned(model, stream, features_of(model, stream), threshold=0))
    assert own.narrations == ()
    assert len(own.answers) == len(stream.questions) > 0


def test_what_a_model_says_changes_what_it_decides_later() -> None:
    model, stream = random_model(), short_stream()
    features = features_of(model, stream)
    silent = alone(self_conditioned(model, stream, features, threshold=0))
    talking = alone(self_conditioned(model, stream, features, threshold=1))
    assert len(talking.narrations) == len(stream.times)
    assert talking.silence[0] == silent.silence[0]
    assert not np.allclose(talking.silence[1:], silent.silence[1:])
