"""A session is a conversation: frame by frame it equals one pass over what it says and hears."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import frames, tiny_model

from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import Assistant, Segment, Stream, System, User
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame, InputError, StreamEvent


def middle_threshold(model: StreamingVideoLM) -> float:
    """A threshold at which this random model sometimes speaks and sometimes does not."""
    session, seen = StreamSession(model, threshold=0.0), []
    for frame in frames(9):
        session.push(frame)
        seen.append(session.silence)
    return float(np.median(seen))


def run(session: StreamSession, film: list[Frame], questions: dict[int, str]) -> tuple[list[Segment], list[float]]:
    """Drive a session; returns the conversation it had, and the probability of silence at each frame."""
    said: list[Segment] = [System(session.settings.system)]
    silences = []
    for frame in film:
        events = session.push(frame)
        silences.append(session.silence)
        said.append(Stream(1))
        said += [Assistant(event.text) for event in events]
        if frame.index in questions:
            answer = session.ask(questions[frame.index])
            said += [User(questions[frame.index]), Assistant(answer.text)]
    return said, silences


@settings(max_examples=12, deadline=None)
@given(
    plan=st.sampled_from(
        [DepthPlan("full"), DepthPlan("interleaved", 0.4), DepthPlan("all", 0.2, gate="output", keep_last=True)]
    ),
    decide=st.sampled_from(["last", "own"]),
    asked=st.sets(st.integers(0, 7)),
    seed=st.integers(0, 3),
)
def test_frame_by_frame_equals_one_pass_over_the_conversation(
    plan: DepthPlan, decide: str, asked: set[int], seed: int
) -> None:
    model = tiny_model(plan, decide)
    session = StreamSession(model, threshold=middle_threshold(model))
    film = frames(8, seed)
    said, silences = run(session, film, dict.fromkeys(asked, "What happened?"))
    example = model.template.encode(said)
    context = session.context + session._pending
    assert example.input_ids.tolist()[: len(context)] == context
    assert len(context) == len(example.input_ids)
    with torch.no_grad():
        features = model.encoder(torch.stack([torch.from_numpy(frame.image) for frame in film]))
        out = model(example.input_ids[None], example.frame_index[None], features, logits_to_keep=0)
    chance = out.logits[0, example.decision].softmax(-1)[:, model.template.interval_id]
    assert torch.allclose(chance, torch.tensor(silences, dtype=torch.float64), atol=1e-6)  # stored as float32
    speakable = out.logits[0].index_fill(1, session._unspeakable, -torch.inf)
    words = speakable.argmax(-1)  # and the words it said are the ones the one pass would say
    text = (example.labels != -100) & ~example.decision
    replies = [event for event in said if isinstance(event, Assistant)]
    for number, reply in enumerate(replies):
        where = text & (example.turn == number)
        if len(model.template.reply(reply.text)) <= session.settings.max_reply_tokens:  # not cut short
            assert words[where].tolist() == example.labels[where].tolist()


def test_it_keeps_silent_at_threshold_zero_and_speaks_at_every_frame_at_one() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    quiet, loud = StreamSession(model, threshold=0.0), StreamSession(model, threshold=1.0)
    assert [event for frame in frames(5) for event in quiet.push(frame)] == []
    assert len([event for frame in frames(5) for event in loud.push(frame)]) == 5


def test_an_event_tells_its_frame_its_time_and_how_likely_it_was_to_speak() -> None:
    session = StreamSession(tiny_model(DepthPlan("interleaved", 0.5)), threshold=1.0)
    for number, frame in enumerate(frames(3)):
        (event,) = session.push(frame)
        assert (event.kind, event.frame, event.time, event.question) == ("narration", number, frame.time, None)
        assert event.probability == pytest.approx(1 - session.silence) and event.probability < 1
    answer = session.ask("What?")
    assert (answer.kind, answer.frame, answer.probability, answer.question) == ("answer", 2, 1.0, "What?")


def test_it_speaks_below_the_threshold_not_at_it() -> None:
    model, (film, *_) = tiny_model(DepthPlan("interleaved", 0.5)), frames(1)
    session = StreamSession(model, threshold=0.0)
    session.push(film)
    for threshold, speaks in ((session.silence, False), (float(np.nextafter(session.silence, 1)), True)):
        again = StreamSession(model, threshold=threshold)
        assert bool(again.push(film)) == speaks and again.silence == session.silence


def test_the_models_own_threshold_is_used_unless_another_is_given() -> None:
    model = tiny_model(DepthPlan("full"))
    model.settings = dataclasses.replace(model.settings, threshold=0.31)
    assert StreamSession(model).threshold == 0.31
    assert StreamSession(model, threshold=0.5).threshold == 0.5


def test_a_question_while_it_is_speaking_lets_it_finish_its_sentence_first() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    film = frames(2)
    calm, rushed = StreamSession(model, threshold=1.0), StreamSession(model, threshold=1.0)
    expected = [*calm.push(film[0]), calm.ask("What happened?")]
    words = rushed.push_iter(film[0])
    first = next(words)
    assert isinstance(first, str)
    answer = rushed.ask("What happened?")  # it has said one word of its narration
    rest = list(words)
    assert [rest[-1], answer] == expected
    assert first + "".join(word for word in rest if isinstance(word, str)) == expected[0].text
    assert rushed.context == calm.context
    assert rushed.push(film[1]) == calm.push(film[1])


def test_a_narration_that_nobody_reads_to_the_end_does_not_break_the_context() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    film = frames(3)
    read, unread = StreamSession(model, threshold=1.0), StreamSession(model, threshold=1.0)
    read.push(film[0])
    next(unread.push_iter(film[0]))
    assert unread.push(film[1]) == read.push(film[1])
    assert unread.context == read.context


@pytest.mark.parametrize("bound", [1, 3])
def test_a_reply_is_never_longer_than_its_bound_and_always_ends_with_eos(bound: int) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4), max_reply_tokens=bound)
    session = StreamSession(model, threshold=1.0)
    event = session.push(frames(1)[0])[0]
    assert len(model.template.reply(event.text)) <= bound + 1
    assert session._pending == [model.template.eos_id]


def test_words_come_one_by_one_and_add_up_to_the_event() -> None:
    session = StreamSession(tiny_model(DepthPlan("interleaved", 0.4)), threshold=1.0)
    *words, event = session.push_iter(frames(1)[0])
    assert isinstance(event, StreamEvent) and event.kind == "narration"
    assert "".join(str(word) for word in words) == event.text


def test_tokens_that_were_made_elsewhere_are_watched_as_the_picture_is() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    one, other = StreamSession(model, threshold=1.0), StreamSession(model, threshold=1.0)
    for frame in frames(2):
        assert list(one.push_iter(other.encode(frame))) == list(other.push_iter(frame))
    assert one.context == other.context


def test_a_step_that_was_only_proposed_changes_nothing() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    session, alone = StreamSession(model, threshold=1.0), StreamSession(model, threshold=1.0)
    for frame in frames(2):
        first = session.propose([frame.time, frame.time + 0.1])
        assert session.propose([frame.time, frame.time + 0.1]) == first and len(first.ends) == 2
        assert session.push(frame) == alone.push(frame)
    assert session.context == alone.context


def test_a_question_may_come_before_the_first_frame() -> None:
    session = StreamSession(tiny_model(DepthPlan("interleaved", 0.4)))
    event = session.ask("What happened?", time=0.0)
    assert (event.kind, event.question, event.asked, event.frame) == ("answer", "What happened?", 0.0, -1)
    assert session.state().frames == 0


def test_what_it_is_told_and_answers_later_stands_in_its_context_as_a_conversation_does() -> None:
    session = StreamSession(tiny_model(DepthPlan("interleaved", 0.4)), threshold=0.0)
    first, second = frames(2)
    session.push(first)
    session.tell("What happened?")
    session.push(second)
    answer = session.reply()
    said = [System(session.settings.system), Stream(1), User("What happened?"), Stream(1), Assistant(answer.text)]
    ids = session.template.encode(said).input_ids.tolist()
    assert session.context == ids[: len(session.context)] and ids[len(session.context) :] == [session.template.eos_id]


def test_what_it_recalls_of_an_earlier_life_stands_before_its_first_frame_questions_too() -> None:
    session = StreamSession(tiny_model(DepthPlan("interleaved", 0.4)), threshold=0.0)
    (frame,) = frames(1)
    session.recall([StreamEvent(3.0, "answer", "leaves", 6, "What?", 3.0), StreamEvent(4.0, "narration", "enters", 8)])
    session.push(frame)
    said = [System(session.settings.system), User("What?"), Assistant("leaves"), Assistant("enters"), Stream(1)]
    assert session.context == session.template.encode(said).input_ids.tolist()
    with pytest.raises(InputError, match="has begun already"):
        session.recall([])


def test_the_probability_of_silence_is_reckoned_in_single_precision() -> None:
    session = StreamSession(tiny_model(DepthPlan("full")))
    logits = torch.randn(4, session.model.lm.config.vocab_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    silence, _ = session.judge(logits)
    assert silence == logits.float().softmax(-1)[:, session.template.interval_id].tolist()


def test_an_answer_does_not_come_before_its_question_was_asked() -> None:
    session = StreamSession(tiny_model(DepthPlan("interleaved", 0.4)), threshold=0.0)
    first, second = frames(2)  # at 0 and 0.5 s
    session.push(first)
    session.push(second)
    between, late = session.ask("What happened?", time=0.9), session.ask("What happened?", time=0.2)
    assert (between.time, between.asked, between.frame) == (0.9, 0.9, 1)
    assert (late.time, late.asked, late.frame) == (0.5, 0.2, 1), "nor before the newest frame that it has seen"


def test_state_tells_time_frames_tokens_and_bytes() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    session = StreamSession(model, threshold=0.0)
    for frame in frames(3):
        session.push(frame)
    state = session.state()
    system = len(model.template.system(model.settings.system))
    text, vision = system + 3, 3 * 5  # "[", ",", "," and three frames of five tokens
    assert (state.time, state.frames, state.seen) == (1.0, 3, text + vision)
    assert state.stored == [text + vision, text + 3 * 2, text + vision, text + 3 * 2]  # ceil(0.4 * 5) = 2 of each frame
    entry = 2 * 2 * 8 * 8  # key and value, 2 heads of 8, float64
    assert state.kv_bytes == sum(state.stored) * entry
    assert state.kv_bytes_dense == 4 * state.seen * entry


def test_kept_tells_for_each_routed_layer_which_tokens_of_the_newest_frame_went_through() -> None:
    session = StreamSession(tiny_model(DepthPlan("interleaved", 0.4, keep_last=True)), threshold=0.0, record_kept=True)
    for frame in frames(2):
        session.push(frame)
    assert sorted(session.kept) == [1, 3]
    for kept in session.kept.values():
        assert kept.shape == (5,) and kept.sum() == 2 and kept[-1]


def test_pictures_of_any_shape_are_letterboxed_to_the_towers_size() -> None:
    session = StreamSession(tiny_model(DepthPlan("full")), threshold=0.0)
    for i, (height, width) in enumerate([(32, 32), (17, 90), (480, 640)]):
        session.push(Frame(np.zeros((height, width, 3), np.uint8), float(i), i))
    assert session.state().frames == 3


def test_a_frame_that_is_not_later_than_the_one_before_is_refused_by_its_time() -> None:
    session = StreamSession(tiny_model(DepthPlan("full")), threshold=0.0)
    first, second = frames(2)
    session.push(second)
    with pytest.raises(InputError, match=r"0\.000 s after one at 0\.500 s"):
        session.push(first)
    with pytest.raises(InputError, match=r"0\.500 s after one at 0\.500 s"):
        session.push(second)


@pytest.mark.parametrize("place", ["model.layers.1", "lm_head"])
def test_a_step_that_fails_in_the_decoder_or_behind_it_can_be_taken_again(place: str) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4))
    session, undisturbed = StreamSession(model, threshold=1.0), StreamSession(model, threshold=1.0)

    def no_memory(*_: object) -> None:
        raise MemoryError

    for number, frame in enumerate(frames(3)):
        if number:
            before = session.state()
            hook = model.lm.get_submodule(place).register_forward_pre_hook(no_memory)
            with pytest.raises(MemoryError):
                session.push(frame)
            hook.remove()
            assert session.state() == before
        assert session.push(frame) == undisturbed.push(frame)
    assert session.context == undisturbed.context and session.state() == undisturbed.state()


def test_an_empty_question_and_a_threshold_that_is_no_probability_are_refused() -> None:
    model = tiny_model(DepthPlan("full"))
    with pytest.raises(InputError, match="question is empty"):
        StreamSession(model).ask("  ")
    with pytest.raises(InputError, match=r"threshold 1\.5"):
        StreamSession(model, threshold=1.5)
