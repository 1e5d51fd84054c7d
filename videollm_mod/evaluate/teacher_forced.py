"""A whole conversation in one pass: what the model decides and says at each place, given the TRUE context before it.

Where the model lets a narration's frame go by in silence, the cache is rolled back to the end of that frame, and the
following frames are shown instead of the narration, until it would have spoken: that is how late it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from videollm_mod.depth import RaggedCache
from videollm_mod.dialogue import IGNORE, Example, Segment
from videollm_mod.evaluate.metrics import first_wrong, fluency, frames_off, lm_correctness, lm_ppl, time_diff
from videollm_mod.model import StreamingVideoLM


@dataclass(frozen=True)
class Turn:
    """One learned reply, and the learned frames since the reply before it."""

    narrates: bool  # the reply follows its last frame at once; else it answers a question
    frames: tuple[int, ...]  # numbers of its frames
    silence: tuple[float, ...]  # the probability of silence at each of them
    cross_entropy: tuple[float, ...]  # of each text label, EOS included, nats
    right: tuple[bool, ...]  # whether the argmax is the label
    later: (
        tuple[float, ...] | None
    )  # probability of silence at the frames shown in place of the reply, if it was missed
    silent: tuple[bool, ...] = ()  # whether silence is the likeliest of all tokens, at each of its frames
    later_silent: tuple[bool, ...] = ()  # the same for `later`

    @property
    def exact(self) -> bool:
        """Whether greedy decoding gives this very reply."""
        return all(self.right)

    def off(self, threshold: float, *, compat: bool = False, last: bool = False) -> int:
        """d of a narration: frames too early (> 0) or too late (< 0).

        compat: as the public code of VideoLLM-online, without a threshold: it speaks where any token is likelier than
        silence, and no frames are looked at behind the `last` turn.
        """
        if compat:
            later = () if last else tuple(not silent for silent in self.later_silent)
            return frames_off([not silent for silent in self.silent], later, compat=True)
        return frames_off([p < threshold for p in self.silence], [p < threshold for p in self.later or ()])

    def scores(self, threshold: float, fps: float, *, compat: bool = False, last: bool = False) -> dict[str, float]:
        """LM-PPL, TimeDiff (s), Fluency and LM-Correctness of a narration."""
        off = self.off(threshold, compat=compat, last=last)
        return {
            "lm_ppl": lm_ppl(self.cross_entropy),
            "time_diff": time_diff(off, fps),
            "fluency": fluency(len(self.frames), len(self.right), first_wrong(self.right), off, compat=compat),
            "lm_correctness": lm_correctness(self.right),
        }


@dataclass(frozen=True)
class TeacherForced:
    """One conversation, judged in its true context."""

    silence: np.ndarray  # (F,) float: the probability of silence at every frame
    turns: tuple[Turn, ...]

    @property
    def narrations(self) -> list[Turn]:
        return [turn for turn in self.turns if turn.narrates]

    def counts(self, threshold: float) -> tuple[int, int, int]:
        """(right, spoken, true): frames at which it speaks and should, and would say exactly the truth; frames at which
        it speaks; frames at which it should. To the frame, without any tolerance in time."""
        narrations = self.narrations
        right = sum(turn.exact and turn.silence[-1] < threshold for turn in narrations)
        return right, int((self.silence < threshold).sum()), len(narrations)


@torch.inference_mode()
def encode_frames(model: StreamingVideoLM, images: Tensor, batch: int = 64) -> Tensor:
    """Tower vectors of (F, S, S, 3) uint8 pictures of the tower's size: (F, 1 + h * w, width) on the model's device."""
    return torch.cat([model.encoder(part.to(model.device)) for part in images.split(batch)])


@torch.inference_mode()
def teacher_forced(
    model: StreamingVideoLM,
    conversation: Sequence[Segment],
    features: Tensor,
    *,
    scores: Tensor | None = None,
    threshold: float | None = None,
) -> TeacherForced:
    """Judge a conversation of F frames, all learned, with `features` (F, 1 + h * w, width).

    scores: (F, 1 + h * w), for a plan with the scorer `given`.
    threshold: it speaks when the probability of silence falls below this, as a StreamSession does; the model's own if
    None. It decides only which narrations count as missed, and so are looked for in later frames.
    One conversation per pass: half a minute is 3,200 tokens, which fill the cores by themselves, and unpadded it needs
    no mask. Four ragged ones in a batch took 1.18 to 1.65 times as long on 2 cores as one by one, however packed.
    """
    threshold = model.settings.threshold if threshold is None else threshold
    example = model.template.encode(conversation)
    cache = RaggedCache(model.num_layers, model.kv)
    text = (example.labels != IGNORE) & ~example.decision
    where = (text | example.decision).nonzero().squeeze(1)  # (P,) positions whose predictions count
    logits = _run(model, cache, example.input_ids, example.frame_index, features, scores, where)  # (P, vocabulary)
    place = torch.full_like(example.labels, -1).index_copy_(0, where, torch.arange(len(where)))  # position -> row
    silence = _silence(model, logits[place[example.decision]])  # (F,)
    silent = _silent(model, logits[place[example.decision]])
    turns = []
    for number in reversed(range(int(example.turn.max()) + 1)):
        # the last turn first: rolling back to an earlier one leaves the true context before it as it was
        mine = example.turn == number
        rows = logits[place[mine & text]]  # (L, vocabulary)
        labels = example.labels[mine & text].to(rows.device)
        frames = example.decision.cumsum(0)[mine & example.decision] - 1  # (S,) their numbers
        narrates = bool((example.labels[mine & example.decision] == model.template.close_id).any())
        probabilities = tuple(silence[frames].tolist())
        likeliest = tuple(silent[frames].tolist())
        later: tuple[float, ...] | None = None
        later_silent: tuple[bool, ...] = ()
        if narrates and (min(probabilities) >= threshold or all(likeliest)):
            later, later_silent = _later(model, cache, example, features, scores, number, int(frames[-1]))
        turns.append(
            Turn(
                narrates=narrates,
                frames=tuple(frames.tolist()),
                silence=probabilities,
                cross_entropy=tuple(torch.nn.functional.cross_entropy(rows, labels, reduction="none").tolist()),
                right=tuple((rows.argmax(-1) == labels).tolist()),
                later=later if min(probabilities, default=0.0) >= threshold else None,
                silent=likeliest,
                later_silent=later_silent,
            )
        )
    return TeacherForced(silence.numpy(), tuple(reversed(turns)))


def _later(
    model: StreamingVideoLM,
    cache: RaggedCache,
    example: Example,
    features: Tensor,
    scores: Tensor | None,
    turn: int,
    last: int,
) -> tuple[tuple[float, ...], tuple[bool, ...]]:
    """Show the frames after `last` in place of the turn's reply: probability of silence at each, and whether silence is
    the likeliest of all tokens.

    Their number: min(frames of the next turn, own frames - 1); behind the last turn come the frames that are left.
    """
    position = int(example.decision.nonzero()[last])
    turn_of_frame = example.turn[example.decision]  # (F,)
    following = turn_of_frame[last + 1 :] == (turn + 1 if turn < example.turn.max() else -1)
    count = min(int(following.sum()), int((turn_of_frame == turn).sum()) - 1)
    if count < 1:
        return (), ()
    cache.crop_to(position + 1)
    ids: list[int] = []
    numbers: list[int] = []
    decides: list[int] = []
    for frame in range(last + 1, last + 1 + count):
        chunk, vision = model.template.frame(first=False)
        ids += chunk
        numbers += [frame if is_vision else -1 for is_vision in vision]
        decides.append(len(ids) - 1)
    shown = slice(last + 1, last + 1 + count)
    own_scores = None if scores is None else scores[shown]
    chunk_ids, index, where = torch.tensor(ids), torch.tensor(numbers), torch.tensor(decides)
    logits = _run(model, cache, chunk_ids, index, features[shown], own_scores, where)
    return tuple(_silence(model, logits).tolist()), tuple(_silent(model, logits).tolist())


def _run(
    model: StreamingVideoLM,
    cache: RaggedCache,
    ids: Tensor,
    numbers: Tensor,
    features: Tensor,
    scores: Tensor | None,
    where: Tensor,
) -> Tensor:
    """Logits (P, vocabulary) float32 of the positions `where` (P,) of a chunk of T tokens."""
    device = model.device
    out = model(
        ids[None].to(device),
        numbers[None],
        features,
        frame_scores=scores,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=where.to(device),
    )
    return out.logits[0].float()


def _silence(model: StreamingVideoLM, logits: Tensor) -> Tensor:
    """(F, vocabulary) -> the probability of the interval token, (F,) on the CPU."""
    return logits.softmax(-1)[:, model.template.interval_id].cpu()


def _silent(model: StreamingVideoLM, logits: Tensor) -> Tensor:
    """(F, vocabulary) -> whether the interval token is the likeliest, (F,) bool on the CPU."""
    return (logits.argmax(-1) == model.template.interval_id).cpu()
