"""The stream template: typed segments (system, stream, user, assistant) -> ids, labels, frame index.

    system · "[" F "," F "," F "]" · "Assistant:" text EOS · "[" F "]" · "User:" question · "Assistant:" text EOS · ...

F is a frame's vision placeholders. The last token of a frame's chunk makes the decision: it predicts the interval
token "," (stay silent) or the closing token "]" (speak). Labels are made per token from the typed segments, never by
character offsets, and a live session puts the very same pieces together (`frame`, `close`, `user`, `reply_prompt`,
`reply`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from videollm_mod.types import InputError

IGNORE = -100  # label of a position that learns nothing; torch's cross_entropy skips it by default
NO_FRAME = -1  # frame_index of a text token
NO_TURN = -1  # turn of a position whose label belongs to no reply
USER, ASSISTANT = "User:", "Assistant:"


@dataclass(frozen=True)
class System:
    """What the model is told before anything else; only the first segment may be one."""

    text: str


@dataclass(frozen=True)
class Stream:
    """`frames` frames in a row. Neighbouring streams are one stream of which only some frames are learned."""

    frames: int
    learn: bool = True  # whether its decisions are labelled


@dataclass(frozen=True)
class User:
    """A question."""

    text: str


@dataclass(frozen=True)
class Assistant:
    """A reply; directly after a stream it is a narration, and the stream's last frame decided to speak."""

    text: str
    learn: bool = True  # whether its text and EOS are labelled


Segment = System | Stream | User | Assistant


@dataclass(frozen=True)
class Example:
    """One conversation as tensors of T positions. Labels are shifted: `labels[i]` is what position i must predict."""

    input_ids: torch.Tensor  # (T,) int64; a vision placeholder is `StreamTemplate.vision_id`
    labels: torch.Tensor  # (T,) int64; -100 = not learned
    frame_index: torch.Tensor  # (T,) int64; -1 = text, else the frame's number, counted over the whole conversation
    decision: torch.Tensor  # (T,) bool; the position decides between silence and speech, learned or not
    turn: torch.Tensor  # (T,) int64; number of the reply that a labelled position belongs to or leads up to, else -1
    frames: int


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right: id 0, label -100, frame_index and turn -1, decision False."""

    input_ids: torch.Tensor  # (B, T) int64
    labels: torch.Tensor  # (B, T) int64
    frame_index: torch.Tensor  # (B, T) int64
    decision: torch.Tensor  # (B, T) bool
    turn: torch.Tensor  # (B, T) int64
    attention_mask: torch.Tensor  # (B, T) int64; 1 = a real position
    lengths: torch.Tensor  # (B,) int64

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class StreamTemplate:
    """Lays conversations out for one tokenizer and one number of vision tokens per frame.

    tokens_per_frame: vision placeholders of a frame, 1 + h * w.
    decide: "last" lets the last vision token of a frame make the decision. "own" follows every frame at once by an
        interval token, which makes it: text, so no routed layer can drop it.
    vision_id: id of the placeholders; one past the vocabulary by default, so it needs no row in the embedding matrix.

    Raises InputError when "[", "," or "]" has no token of its own, when there is no EOS, or a number is out of range.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_frame: int,
        decide: Literal["last", "own"] = "last",
        vision_id: int | None = None,
    ) -> None:
        if tokens_per_frame < 1:
            raise InputError(f"tokens_per_frame is {tokens_per_frame}; a frame needs at least 1 token")
        if decide not in ("last", "own"):
            raise InputError(f'decide is {decide!r}; choose "last" (vision token) or "own" (interval token)')
        vocabulary = tokenizer.get_vocab()
        free = max(len(tokenizer), max(vocabulary.values()) + 1)  # a vocabulary may have holes: its size is not enough
        if vision_id is not None and vision_id < free:
            raise InputError(f"vision_id {vision_id} is a word of the tokenizer; choose {free} or more")
        if tokenizer.eos_token_id is None:
            raise InputError(
                f"{_name(tokenizer)} has no EOS token, which ends every reply; set its eos_token (in "
                "tokenizer_config.json)."
            )
        self.tokenizer = tokenizer
        self.tokens_per_frame = tokens_per_frame
        self.decide = decide
        self.vision_id = free if vision_id is None else vision_id
        self.eos_id = int(tokenizer.eos_token_id)
        self.open_id = _single_token(tokenizer, "[")
        self.interval_id = _single_token(tokenizer, ",")  # as a decision: stay silent
        self.close_id = _single_token(tokenizer, "]")  # as a decision: speak
        self.after_reply: list[int] = []  # ids between a reply's EOS and whatever follows
        self.learns_prompt = False  # whether "Assistant:" is learned with the reply
        self._vocabulary_end = free
        self._special = frozenset(tokenizer.all_special_ids)
        self._control = self._special - {tokenizer.unk_token_id}
        # A tokenizer that opens its own sequences with BOS was trained with it: then system() does so too.
        bos = tokenizer.bos_token_id
        self._bos = [bos] if bos is not None and tokenizer("a").input_ids[:1] == [bos] else []
        # Byte-level pieces carry the space before a word, sentencepiece adds it unasked, a word-level one drops it.
        # Take what makes prompt and text, tokenised apart, the same pieces as tokenised together.
        apart = self._tokenise(ASSISTANT) + self._tokenise("a")
        self._gap = "" if self._tokenise(f"{ASSISTANT} a") == apart else " "

    # -- pieces, in the order a live session needs them ----------------------------------------------------------------

    def system(self, text: str) -> list[int]:
        """Ids of the system text, after BOS where the tokenizer itself opens sequences with BOS."""
        return self._bos + self._tokenise(text.strip())

    def frame(self, first: bool) -> tuple[list[int], list[bool]]:
        """One frame's chunk: (ids, which of them are vision placeholders). Its last id makes the decision.

        first: the frame opens a stream, that is, text or nothing came before it.
        """
        vision = [self.vision_id] * self.tokens_per_frame
        if self.decide == "last":
            ids = [self.open_id if first else self.interval_id, *vision]
        else:
            ids = [*([self.open_id] if first else []), *vision, self.interval_id]
        return ids, [token == self.vision_id for token in ids]

    def close(self) -> list[int]:
        """Ids of the "]" that closes an open stream before anybody speaks."""
        return [self.close_id]

    def user(self, text: str) -> list[int]:
        """Ids of "User:" and the question."""
        return self._tokenise(USER) + self._after_prompt(text)

    def reply_prompt(self) -> list[int]:
        """Ids of "Assistant:", after which the model speaks."""
        return self._tokenise(ASSISTANT)

    def reply(self, text: str) -> list[int]:
        """Ids of what the assistant says, EOS included."""
        return [*self._after_prompt(text), self.eos_id]

    def decode(self, ids: Iterable[int] | torch.Tensor) -> str:
        """The words in `ids`, stripped; special tokens and placeholders say nothing."""
        numbers = ids.tolist() if isinstance(ids, torch.Tensor) else list(ids)
        words = [i for i in numbers if 0 <= i < self._vocabulary_end and i not in self._special]
        return str(self.tokenizer.decode(words, clean_up_tokenization_spaces=False)).strip()

    def unspeakable(self, vocabulary: int) -> list[int]:
        """Ids below `vocabulary` (rows of the LM's head) no reply may contain: control tokens but EOS, empty rows."""
        return [i for i in range(vocabulary) if i != self.eos_id and (i in self._special or i >= self._vocabulary_end)]

    # -- whole conversations -------------------------------------------------------------------------------------------

    def encode(self, segments: Sequence[Segment]) -> Example:
        """Lays out a conversation.

        Learned are the decisions of learned streams ("]" at the last frame when a reply follows directly, else ",") and
        text and EOS of learned replies. Prompts, questions and brackets are not. A stream at the end stays open.
        Raises InputError for an empty stream, for a system text that is not first, and for what is no segment.
        """
        ids: list[int] = []
        labels: list[int] = []
        frame_index: list[int] = []
        decision: list[bool] = []
        turn: list[int] = []
        frames = replies = 0
        undecided: list[int] = []  # labelled decisions since the last reply; they belong to the next one's turn
        open_stream = replied = False

        def add(tokens: list[int], frame: int = NO_FRAME) -> None:
            ids.extend(tokens)
            labels.extend([IGNORE] * len(tokens))
            frame_index.extend(frame if token == self.vision_id else NO_FRAME for token in tokens)
            decision.extend([False] * len(tokens))
            turn.extend([NO_TURN] * len(tokens))

        for number, segment in enumerate(segments):
            if replied:
                add(self.after_reply)
                replied = False
            if isinstance(segment, Stream):
                if segment.frames < 1:
                    raise InputError(f"segment {number} is a stream of {segment.frames} frames; leave it out or give 1")
                following = segments[number + 1] if number + 1 < len(segments) else None
                for left in reversed(range(segment.frames)):
                    add(self.frame(first=not open_stream)[0], frames)
                    open_stream, frames, decision[-1] = True, frames + 1, True
                    if segment.learn:
                        speak = left == 0 and isinstance(following, Assistant)
                        labels[-1] = self.close_id if speak else self.interval_id
                        undecided.append(len(ids) - 1)
                continue
            if open_stream:
                add(self.close())
                open_stream = False
            if isinstance(segment, System):
                if number > 0:
                    raise InputError(f"segment {number} is a system text; only the first segment can be one")
                add(self.system(segment.text))
            elif isinstance(segment, User):
                add(self.user(segment.text))
            elif isinstance(segment, Assistant):
                prompt, reply = self.reply_prompt(), self.reply(segment.text)
                if self.learns_prompt:
                    prompt, reply = [], prompt + reply
                add(prompt)
                before = len(ids) - 1  # the prompt's last token predicts the reply's first
                add(reply)
                replied = True
                if segment.learn:
                    labels[before : before + len(reply)] = reply
                    undecided.extend(range(before, before + len(reply)))
                for position in undecided:
                    turn[position] = replies
                undecided, replies = [], replies + 1
            else:
                raise InputError(f"segment {number} is {segment!r}; give System, Stream, User or Assistant")
        return Example(
            input_ids=torch.tensor(ids, dtype=torch.int64),
            labels=torch.tensor(labels, dtype=torch.int64),
            frame_index=torch.tensor(frame_index, dtype=torch.int64),
            decision=torch.tensor(decision, dtype=torch.bool),
            turn=torch.tensor(turn, dtype=torch.int64),
            frames=frames,
        )

    def _tokenise(self, text: str) -> list[int]:
        """Ids of a text on its own. Text is words only: a question that spells "</s>" must not end anything."""
        if not text:
            return []
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        # Word-level and unigram models find their control tokens as plain vocabulary all the same: drop those.
        return [token for token in ids if token not in self._control]

    def _after_prompt(self, text: str) -> list[int]:
        text = text.strip()
        return self._tokenise(self._gap + text) if text else []


class OnlineTemplate(StreamTemplate):
    """VideoLLM-online's layout (arXiv 2406.11816, github.com/showlab/videollm-online), token for token:

        BOS system "\\n\\n[" F "," F "]\\nAssistant: " text EOS "\\n[" F "]\\nUser: " question "\\nAssistant: " text EOS

    With Llama-3's vocabulary "]\\n" is one token, which a frame predicts to speak. A line's end belongs to the piece
    before it, where that vocabulary merges it. Learned is "Assistant:" too. A stream at the end stays open, though.
    The placeholder is "<v>" where a checkpoint has saved it with its tokenizer, else one past the vocabulary: the same.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tokens_per_frame: int,
        decide: Literal["last", "own"] = "last",
        vision_id: int | None = None,
    ) -> None:
        placeholder = tokenizer.get_vocab().get("<v>")
        if placeholder != len(tokenizer) - 1:
            placeholder = None  # a word of the vocabulary's own
        super().__init__(tokenizer, tokens_per_frame, decide, vision_id if placeholder is None else None)
        if placeholder is not None:
            self.vision_id = self._vocabulary_end = placeholder
        if tokenizer.bos_token_id is None:
            raise InputError(f"{_name(tokenizer)} has no BOS token, which opens every stream; set its bos_token.")
        self.close_id = self._tokenise("]\n")[0]
        self.after_reply = self._tokenise("\n")
        self.learns_prompt = True

    def system(self, text: str) -> list[int]:
        return [int(self.tokenizer.bos_token_id), *self._tokenise(f"{text.strip()}\n\n")]

    def close(self) -> list[int]:
        return self._tokenise("]\n")

    def user(self, text: str) -> list[int]:
        return self._tokenise(f"{USER} {text.strip()}\n")

    def reply(self, text: str) -> list[int]:
        return [*self._tokenise(f" {text.strip()}"), self.eos_id]


TEMPLATES: dict[str, type[StreamTemplate]] = {"plain": StreamTemplate, "videollm-online": OnlineTemplate}


def collate(examples: Sequence[Example]) -> Batch:
    """Pads examples on the right to one batch. Raises InputError when there is none."""
    if not examples:
        raise InputError("a batch of 0 examples cannot be collated; give at least one")

    def pad(tensors: list[torch.Tensor], value: int | bool) -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)

    return Batch(
        input_ids=pad([e.input_ids for e in examples], 0),  # any row of the embedding: the mask covers it
        labels=pad([e.labels for e in examples], IGNORE),
        frame_index=pad([e.frame_index for e in examples], NO_FRAME),
        decision=pad([e.decision for e in examples], False),
        turn=pad([e.turn for e in examples], NO_TURN),
        attention_mask=pad([torch.ones_like(e.input_ids) for e in examples], 0),
        lengths=torch.tensor([len(e.input_ids) for e in examples], dtype=torch.int64),
    )


def word_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer: one token per word or punctuation mark, case as given, no BOS of its own accord.

    words: words or whole sentences; they are split as text will be. Brackets, punctuation and the template's prompts
    are added. Decoding gives sentences back exactly, that is, without spaces before punctuation.
    """
    # ".", "," and ":" inside a number (3.5, 12:30) belong to it.
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[\[\]!?;]|[.,:](?![0-9])"), "isolated")]
    )
    specials = ["<pad>", "<unk>", "<s>", "</s>"]
    texts = [*"[],.?:!;", USER, ASSISTANT, *words]
    pieces = [piece for text in texts for piece, _ in split.pre_tokenize_str(text)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(specials + pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(Regex(r"^(?![\]!?;.,:])"), " "),  # a space before every token but closing punctuation
            decoders.Fuse(),
            decoders.Replace("[ ", "["),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        clean_up_tokenization_spaces=False,
    )


def _single_token(tokenizer: PreTrainedTokenizerBase, sign: str) -> int:
    """The id of `sign` as one token, spelt plainly or with a mark of the space before it."""
    vocabulary = tokenizer.get_vocab()
    for piece in (sign, "▁" + sign, "Ġ" + sign, " " + sign):
        if piece in vocabulary:
            return int(vocabulary[piece])
    ids = tokenizer.encode(sign, add_special_tokens=False)  # vocabularies that spell pieces in a way of their own
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return int(ids[0])
    raise InputError(f'{_name(tokenizer)} has no single token for "{sign}"; use a tokenizer that has, or add it')


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path!r}" if tokenizer.name_or_path else type(tokenizer).__name__
