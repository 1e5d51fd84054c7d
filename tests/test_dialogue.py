"""The stream template over three kinds of tokenizer: layout, labels, and a live session that equals the whole."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from videollm_mod.dialogue import (
    Assistant,
    Segment,
    Stream,
    StreamTemplate,
    System,
    User,
    collate,
    word_tokenizer,
)
from videollm_mod.types import InputError

SENTENCES = [
    "You watch a video.",
    "A small red square enters from the left.",
    "What [is, there]?",
    "The ring leaves, slowly.",
    "User: where is it? Assistant: at the top-left.",
    "It stays for 3.5 seconds.",
]
KINDS = ["byte-level", "sentencepiece", "word-level"]


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    if kind == "word-level":
        return word_tokenizer(SENTENCES)
    if kind == "byte-level":
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
        )
        inner.train_from_iterator(SENTENCES * 5, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=["<s>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(SENTENCES * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@cache
def template_of(kind: str, decide: str = "last", tokens_per_frame: int = 3) -> StreamTemplate:
    return StreamTemplate(tokenizer_of(kind), tokens_per_frame, decide)  # type: ignore[arg-type]


texts = st.one_of(
    st.sampled_from([*SENTENCES, "", "[", "]", "a, b", "] Assistant: no", "</s>", "x</s>[,]", "Assistant:", "\n"]),
    st.text(alphabet="ab [],:?.\nÄ▁", max_size=12),
)
segments_after_system = st.lists(
    st.one_of(
        st.builds(Stream, st.integers(1, 4), st.booleans()),
        st.builds(User, texts),
        st.builds(Assistant, texts, st.booleans()),
    ),
    max_size=10,
)
conversations = st.builds(
    lambda system, rest: [*system, *rest], st.lists(st.builds(System, texts), max_size=1), segments_after_system
)
templates = st.builds(template_of, st.sampled_from(KINDS), st.sampled_from(["last", "own"]), st.sampled_from([1, 3, 5]))


def slow_reading(template: StreamTemplate, segments: Sequence[Segment]) -> list[tuple[int, int, int, bool, int]]:
    """(id, label, frame, decision, turn) per position. First roles only; then labels from what stands to the right."""
    tape: list[tuple[int, str, int, bool]] = []  # id, role, frame, learned
    frame = 0
    for number, segment in enumerate(segments):
        before = segments[number - 1] if number else None
        after = segments[number + 1] if number + 1 < len(segments) else None
        if isinstance(segment, System):
            tape += [(i, "system", -1, False) for i in template.system(segment.text)]
        elif isinstance(segment, User):
            tape += [(i, "user", -1, False) for i in template.user(segment.text)]
        elif isinstance(segment, Assistant):
            tape += [(i, "prompt", -1, False) for i in template.reply_prompt()]
            tape += [(i, "reply", -1, segment.learn) for i in template.reply(segment.text)]
        else:
            for n in range(segment.frames):
                opening = n == 0 and not isinstance(before, Stream)
                vision = template.tokens_per_frame
                if opening:
                    tape.append((template.open_id, "open", -1, False))
                elif template.decide == "last":
                    tape.append((template.interval_id, "interval", -1, False))
                if template.decide == "last":
                    tape += [(template.vision_id, "vision", frame, False)] * (vision - 1)
                    tape.append((template.vision_id, "decision", frame, segment.learn))
                else:
                    tape += [(template.vision_id, "vision", frame, False)] * vision
                    tape.append((template.interval_id, "decision", -1, segment.learn))
                frame += 1
            if after is not None and not isinstance(after, Stream):
                tape.append((template.close_id, "close", -1, False))
    rows = []
    for i, (token, role, of_frame, learned) in enumerate(tape):
        label = -100
        if role == "decision" and learned:
            speak = [r for _, r, _, _ in tape[i + 1 : i + 3]] == ["close", "prompt"]
            label = template.close_id if speak else template.interval_id
        elif i + 1 < len(tape) and tape[i + 1][1] == "reply" and tape[i + 1][3]:
            label = tape[i + 1][0]
        ended = sum(t == template.eos_id and r == "reply" for t, r, _, _ in tape[: i + 1])
        reply_to_come = any(r == "reply" for _, r, _, _ in tape[i + 1 :])
        rows.append((token, label, of_frame, role == "decision", ended if label != -100 and reply_to_come else -1))
    return rows


def live_session(template: StreamTemplate, segments: Sequence[Segment]) -> list[int]:
    """What a session that sees one thing after another would feed to the model."""
    ids: list[int] = []
    is_open = False
    for segment in segments:
        if isinstance(segment, Stream):
            for _ in range(segment.frames):
                ids += template.frame(first=not is_open)[0]
                is_open = True
            continue
        if is_open:
            ids += template.close()
            is_open = False
        if isinstance(segment, System):
            ids += template.system(segment.text)
        elif isinstance(segment, User):
            ids += template.user(segment.text)
        else:
            ids += template.reply_prompt() + template.reply(segment.text)
    return ids


@settings(max_examples=120, deadline=None)
@given(templates, conversations)
def test_every_position_agrees_with_a_slow_reading_of_the_segments(
    template: StreamTemplate, segments: list[Segment]
) -> None:
    example = template.encode(segments)
    columns = (example.input_ids, example.labels, example.frame_index, example.decision, example.turn)
    assert list(zip(*(column.tolist() for column in columns))) == slow_reading(template, segments)
    assert example.frames == sum(s.frames for s in segments if isinstance(s, Stream))
    assert [column.dtype for column in columns] == [torch.int64] * 3 + [torch.bool, torch.int64]


@settings(max_examples=120, deadline=None)
@given(templates, conversations)
def test_a_live_session_puts_together_exactly_the_ids_of_the_whole_conversation(
    template: StreamTemplate, segments: list[Segment]
) -> None:
    assert live_session(template, segments) == template.encode(segments).input_ids.tolist()


@settings(max_examples=120, deadline=None)
@given(templates, conversations)
def test_every_frame_has_its_placeholders_and_one_decision_whatever_the_texts_say(
    template: StreamTemplate, segments: list[Segment]
) -> None:
    example = template.encode(segments)
    vision = example.input_ids == template.vision_id
    assert torch.equal(vision, example.frame_index >= 0)
    per_frame = torch.bincount(example.frame_index[vision], minlength=example.frames)
    assert per_frame.tolist() == [template.tokens_per_frame] * example.frames
    assert int(example.decision.sum()) == example.frames
    replies = sum(isinstance(s, Assistant) for s in segments)
    assert int((example.input_ids == template.eos_id).sum()) == replies  # no text can end a turn


@pytest.mark.parametrize("kind", KINDS)
def test_the_layout_is_the_documented_one(kind: str) -> None:
    t = template_of(kind, "last", 2)
    example = t.encode([System("You watch a video."), Stream(2), Assistant("A ring."), Stream(1), User("What?")])
    o, c, e, v, n = t.open_id, t.interval_id, t.close_id, t.vision_id, t.eos_id
    system, prompt, reply, user = t.system("You watch a video."), t.reply_prompt(), t.reply("A ring."), t.user("What?")
    expected = [*system, o, v, v, c, v, v, e, *prompt, *reply, o, v, v, e, *user]
    assert example.input_ids.tolist() == expected
    assert reply[-1] == n
    start = len(system)
    assert example.labels[start : start + 7].tolist() == [-100, -100, c, -100, -100, e, -100]
    assert example.frame_index[start : start + 7].tolist() == [-1, 0, 0, -1, 1, 1, -1]
    spoken = [label for label in example.labels.tolist() if label != -100]
    assert spoken == [c, e, *reply, c]  # a question follows the last stream, so silence was right there


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_decision_token_of_its_own_an_interval_follows_every_frame(kind: str) -> None:
    t = template_of(kind, "own", 2)
    example = t.encode([Stream(2), Assistant("A ring.")])
    o, c, e, v = t.open_id, t.interval_id, t.close_id, t.vision_id
    assert example.input_ids[:8].tolist() == [o, v, v, c, v, v, c, e]
    assert example.labels[:8].tolist() == [-100, -100, -100, c, -100, -100, e, -100]
    assert example.decision[:8].nonzero().flatten().tolist() == [3, 6]
    assert example.frame_index[[3, 6]].tolist() == [-1, -1]  # text: no routed layer may drop it


@pytest.mark.parametrize("kind", KINDS)
def test_neighbouring_streams_are_one_stream_of_which_some_frames_are_learned(kind: str) -> None:
    t = template_of(kind)
    parts = t.encode([Stream(2, learn=False), Stream(3), Assistant("A ring.", learn=False)])
    whole = t.encode([Stream(5), Assistant("A ring.", learn=False)])
    assert torch.equal(parts.input_ids, whole.input_ids)
    assert parts.labels[parts.decision].tolist() == [-100, -100, t.interval_id, t.interval_id, t.close_id]
    assert parts.turn[parts.decision].tolist() == [-1, -1, 0, 0, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_text_tokenised_apart_are_the_pieces_of_the_two_together(kind: str) -> None:
    t = template_of(kind)
    together = t.tokenizer.encode("User: where is it?", add_special_tokens=False)
    assert t.user("where is it?") == together


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_a_reply_gives_its_sentence_back(kind: str) -> None:
    t = template_of(kind)
    for sentence in SENTENCES:
        assert t.decode(t.reply(sentence)) == sentence
    assert t.decode(torch.tensor([t.vision_id, *t.reply(" A small red square enters from the left. ")])) == SENTENCES[1]
    assert t.decode(t.reply("")) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_placeholder_needs_no_row_of_the_embedding(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert template_of(kind).vision_id == len(tokenizer)
    assert StreamTemplate(tokenizer, 3, vision_id=5000).vision_id == 5000
    with pytest.raises(InputError, match=f"vision_id 7 .* choose {len(tokenizer)}"):
        StreamTemplate(tokenizer, 3, vision_id=7)


def test_a_vocabulary_with_holes_has_no_word_at_the_placeholder() -> None:
    """Its highest id counts, not how many words it has."""
    words = {"[": 0, ",": 1, "]": 2, "</s>": 3, "<unk>": 4, "a": 5, "far": 90}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), eos_token="</s>", unk_token="<unk>"
    )
    template = StreamTemplate(tokenizer, 2)
    assert len(tokenizer) == 7 and template.vision_id == 91 and template.decode([90]) == "far"
    with pytest.raises(InputError, match="vision_id 7 is a word of the tokenizer; choose 91 or more"):
        StreamTemplate(tokenizer, 2, vision_id=7)


def test_a_text_that_spells_a_control_token_is_read_as_it_stands_where_the_vocabulary_can_spell_it() -> None:
    template = template_of("byte-level")
    ids = template.user("x</s>y")
    assert template.eos_id not in ids and "x</s>y" in template.decode(ids)


def test_a_word_that_the_vocabulary_lacks_is_read_as_unknown_not_left_out() -> None:
    template, unknown = template_of("word-level"), tokenizer_of("word-level").unk_token_id
    what, leaves = template.reply("What")[0], template.reply("leaves")[0]
    assert unknown not in (what, leaves)
    assert template.reply("What zebra leaves") == [what, unknown, leaves, template.eos_id]


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_may_be_made_of_every_word_and_eos_but_of_no_other_control_token_or_empty_row(kind: str) -> None:
    t, words = template_of(kind), len(tokenizer_of(kind))
    forbidden = set(t.unspeakable(words + 3))
    assert forbidden == (set(t.tokenizer.all_special_ids) - {t.eos_id}) | {words, words + 1, words + 2}
    assert not forbidden & {i for sentence in SENTENCES for i in t.reply(sentence)}


def test_a_bracket_that_exists_only_with_a_space_mark_is_found() -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁[", -1.0), ("▁]", -1.0), ("▁,", -1.0), ("▁", -2.0), ("a", -2.0)]
    inner = Tokenizer(models.Unigram(pieces, unk_id=0))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    t = StreamTemplate(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="<unk>"), 1)
    assert (t.open_id, t.close_id, t.interval_id, t.eos_id) == (2, 3, 4, 1)


def test_a_tokenizer_that_opens_with_bos_opens_the_system_text_with_it() -> None:
    inner = Tokenizer.from_str(tokenizer_of("sentencepiece").backend_tokenizer.to_str())
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    specials = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    t = StreamTemplate(PreTrainedTokenizerFast(tokenizer_object=inner, **specials), 1)
    plain = template_of("sentencepiece")
    assert t.system("You watch a video.") == [0, *plain.system("You watch a video.")]
    assert t.user("What?") == plain.user("What?")
    assert t.reply("A ring.") == plain.reply("A ring.")


def test_what_a_tokenizer_lacks_is_named() -> None:
    def tokenizer(words: list[str], **specials: str) -> PreTrainedTokenizerFast:
        inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *words])}, unk_token="<unk>"))
        return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", **specials)

    with pytest.raises(InputError, match='no single token for "]"'):
        StreamTemplate(tokenizer(["[", ",", "</s>"], eos_token="</s>"), 1)
    with pytest.raises(InputError, match="no EOS"):
        StreamTemplate(tokenizer(["[", ",", "]"]), 1)
    with pytest.raises(InputError, match="tokens_per_frame is 0"):
        StreamTemplate(tokenizer_of("word-level"), 0)
    with pytest.raises(InputError, match="'first'"):
        StreamTemplate(tokenizer_of("word-level"), 1, "first")  # type: ignore[arg-type]


def test_segments_that_make_no_sense_are_refused() -> None:
    t = template_of("word-level")
    with pytest.raises(InputError, match="segment 1 is a stream of 0 frames"):
        t.encode([System("a"), Stream(0)])
    with pytest.raises(InputError, match="segment 1 is a system text"):
        t.encode([Stream(1), System("a")])
    with pytest.raises(InputError, match="segment 0 is 'hello'"):
        t.encode(["hello"])  # type: ignore[list-item]


@settings(max_examples=30, deadline=None)
@given(templates, st.lists(conversations, min_size=1, max_size=4))
def test_collate_pads_on_the_right_and_changes_nothing_else(
    template: StreamTemplate, talks: list[list[Segment]]
) -> None:
    examples = [template.encode(talk) for talk in talks]
    batch = collate(examples)
    longest = max(len(e.input_ids) for e in examples)
    for row, example in enumerate(examples):
        n = len(example.input_ids)
        assert int(batch.lengths[row]) == n
        assert batch.attention_mask[row].tolist() == [1] * n + [0] * (longest - n)
        for name, padding in (("input_ids", 0), ("labels", -100), ("frame_index", -1), ("decision", 0), ("turn", -1)):
            column = getattr(batch, name)[row]
            assert torch.equal(column[:n], getattr(example, name))
            assert (column[n:] == padding).all()
            assert column.dtype == getattr(example, name).dtype


def test_collate_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="0 examples"):
        collate([])


def test_the_word_tokenizer_survives_saving(tmp_path: Any) -> None:
    before = word_tokenizer(SENTENCES)
    before.save_pretrained(tmp_path)
    after = AutoTokenizer.from_pretrained(tmp_path)
    assert after.get_vocab() == before.get_vocab()
    for sentence in SENTENCES:
        ids = before.encode(sentence)
        assert after.encode(sentence) == ids
        assert after.decode(ids) == sentence
    assert StreamTemplate(after, 2).vision_id == StreamTemplate(before, 2).vision_id


def test_the_word_tokenizer_has_one_token_per_word_and_keeps_case_and_numbers() -> None:
    tokenizer = word_tokenizer(["A a top-left 3.5 12:30"])
    assert tokenizer.tokenize("A a, top-left. 3.5 12:30? B") == [
        "A", "a", ",", "top-left", ".", "3.5", "12:30", "?", "<unk>",
    ]  # fmt: skip
