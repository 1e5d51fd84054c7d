"""What a session remembers: the pieces of its conversation, bounds in bytes and positions, and how room is made.

Before every step a session asks for room (`Memory.make_room`). While the step fits and the policy has nothing to do,
that costs a few additions. Else a *clearing* is planned: the policy marks pieces until a quarter is free, so that
clearings are rare, and the cache closes its ranks once. What stays is well-formed: a stream whose first frames have
gone still opens with "[". Positions stay within `reach`, because what stays moves down and its keys are turned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from videollm_mod.depth import RaggedCache, keep_count
from videollm_mod.depth.swap import find_decoder
from videollm_mod.depth.turning import turned, turns
from videollm_mod.types import InputError, StreamEvent

if TYPE_CHECKING:
    from videollm_mod.model import StreamingVideoLM

LOW = 0.75  # of its bounds, what a clearing leaves filled at most, where it may choose
WORDS = 0.1  # positions for words, as a share of those for frames, that a model's window is taken to have learned
FORGOTTEN = ("frames", "shrunk", "narrations", "answers", "vision_tokens", "text_tokens", "entries")


class Policy(Protocol):
    """Who goes. One file each in `stream/policies/`; `full` forgets nothing and never gets to see a clearing."""

    @property
    def name(self) -> str: ...
    def due(self, memory: Memory, now: float) -> bool:
        """Whether it wants to clear before a frame at `now` (s), though there is still room."""
        ...

    def clear(self, room: Clearing) -> None:
        """Mark what goes. What then still does not fit, the oldest frames and words, goes without being asked."""
        ...


@dataclass(slots=True)
class Piece:
    """A stretch of the conversation that the cache holds."""

    kind: str  # "system", "frame", "close" (the "]" behind a stream), "narration", "answer" (with its question)
    size: int  # tokens
    time: float  # of the frame, or of the newest frame when it was said; seconds
    lead: int = 0  # of a frame: the "[" or "," before its vision tokens, 0 or 1
    vision: int = 0  # of a frame: vision tokens that are left
    opens: bool = False  # of a frame: its lead is the "[" of a stream
    whole: bool = True  # of a frame: no vision token of it has gone
    done: bool = True  # of what was said: its end has been through the model

    @property
    def said(self) -> bool:
        return self.kind in ("narration", "answer")


class Memory:
    """The pieces in a session's cache (one row), and the counts of what has gone.

    context: the session's ids, one per token that the cache has seen; what goes there goes here. system: the ids that
    it begins with, which never go.
    budget: bytes that the entries in use (`RaggedCache.kv_bytes`) never exceed, the step that is coming included; the
    buffers' growing room, at most half as much again, comes on top. None = no bound. reach: positions, likewise.
    Raises InputError when a decoder cannot forget, or when a bound holds too little to watch at all.
    """

    def __init__(
        self,
        model: StreamingVideoLM,
        cache: RaggedCache,
        context: list[int],
        policy: Policy,
        system: Sequence[int],
        *,
        budget: int | None = None,
        reach: float = math.inf,
    ) -> None:
        self.policy, self.budget, self.cache, self.context = policy, budget, cache, context
        self.pieces: list[Piece] = []
        self._resting = False
        self._time = 0.0  # of the newest frame noted, s
        self.forgotten = dict.fromkeys(FORGOTTEN, 0)
        self._template, self._decoder = model.template, find_decoder(model.lm)
        self._ratios = model.plan.ratios(model.num_layers)
        self._system = len(system)
        self._prompt = self._template.reply_prompt()
        self.oldest_whole: float | None = None  # time of the oldest frame of which nothing has gone, s
        self._frame_bytes: dict[int, int] = {}  # vision tokens of a frame -> bytes of their entries
        self.reach = reach
        self.entry_bytes = [0] * model.num_layers
        if policy.name == "full":
            return
        if not turns(self._decoder):
            kind = type(model.lm).__name__
            raise InputError(
                f"{kind} cannot forget: its keys do not turn with the position; give window=inf, or policy='full'."
            )
        if budget is not None:
            self.entry_bytes = bytes_of_entries(self._decoder, cache)
        self._check_bounds(model)

    @property
    def bounded(self) -> bool:
        return self.policy.name != "full" and not self._resting

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing is noted and nothing forgotten: for what will be rolled back."""
        self._resting = True
        try:
            yield
        finally:
            self._resting = False

    @property
    def frames(self) -> list[Piece]:
        """The frames that it remembers, if only in part, oldest first."""
        return [piece for piece in self.pieces if piece.kind == "frame"]

    @property
    def seen(self) -> int:
        """Tokens that went through the model, forgotten ones included."""
        return self.cache.seen + self.forgotten["vision_tokens"] + self.forgotten["text_tokens"]

    # -- before a step -------------------------------------------------------------------------------------------------

    def make_room(self, numbers: Sequence[int], now: float) -> None:
        """Call before a step with frame `numbers` (-1 = text); `now` (s) is the newest frame's time in it.

        After it the step fits. Call it within `torch.inference_mode` if the steps are.
        """
        if self.bounded and not self.has_room(numbers, now):
            room = Clearing(self, len(numbers), self._needed(numbers), now)
            self.policy.clear(room)
            self._clear(room)

    def has_room(self, numbers: Sequence[int], now: float, behind: float | None = None) -> bool:
        """Whether a step fits as it is, and the policy wants to forget nothing before its newest frame, at `now`.

        behind: the time of the step's first frame, if it has others before the newest.
        """
        if not self.bounded:
            return True
        if len(numbers) + self.cache.seen > self.reach:
            return False
        if self.budget is not None and self.cache.kv_bytes + self._needed(numbers) > self.budget:
            return False
        if self.oldest_whole is None and behind is not None:
            return False  # that first frame will be the oldest, and it is not noted yet
        return max(numbers, default=-1) < 0 or not self.policy.due(self, now)

    def _needed(self, numbers: Sequence[int]) -> int:
        """Bytes of the entries that a step will leave."""
        sizes = _frame_sizes(numbers)
        return self._bytes_of(len(numbers) - sum(sizes), sizes)

    def check_question(self, ids: Sequence[int], behind: int = 0) -> None:
        """Raise InputError if a question's `ids` leave no room for an answer, whatever is forgotten.

        behind: tokens of a question that will be answered before it, and may not have gone when its turn comes.
        """
        if not self.bounded:
            return
        unfinished = self.pieces[-1].size if self.pieces and not self.pieces[-1].done else 0
        before = max(unfinished - self._reply, behind, 0)
        self._refuse_beyond(before + len(ids), f"the question takes {len(ids)} tokens", "ask a shorter one")

    def room_for_words(self) -> float:
        """Tokens of text that, before the first frame, leave room for all that must fit beside them."""
        if not self.bounded:
            return math.inf
        chunk, vision = self._template.frame(first=True)
        sizes = [sum(vision)] * 2
        text = self._least_text + 2 * (len(chunk) - sum(vision))
        room = self.reach - text - sum(sizes)
        if self.budget is not None:
            room = min(room, (self.budget - self._bytes_of(text, sizes)) // sum(self.entry_bytes))
        return room

    def never_knew(self, said: Sequence[StreamEvent]) -> None:
        """Count as forgotten what was said in an earlier life and found no room."""
        answers = sum(event.question is not None for event in said)
        self.forgotten["answers"] += answers
        self.forgotten["narrations"] += len(said) - answers

    def _check_bounds(self, model: StreamingVideoLM) -> None:
        end = 1 + len(self._template.after_reply)
        self._reply = len(self._template.close()) + len(self._prompt) + model.settings.max_reply_tokens + end
        self._least_text = self._system + 2 * self._reply
        self._refuse_beyond(0, "", "raise it")

    def _refuse_beyond(self, text: int, what: str, mend: str) -> None:
        """Raise InputError if system text, two frames, two replies and `text` tokens more are beyond the bounds."""
        chunk, vision = self._template.frame(first=True)
        sizes = [sum(vision)] * 2
        words = self._least_text + text + 2 * (len(chunk) - sum(vision))
        needed, tokens = self._bytes_of(words, sizes), words + sum(sizes)
        needs = f"system text, two frames, replies{' and it' if what else ''}"
        if self.budget is not None and needed > self.budget:
            raise InputError(
                f"{what or f'budget {self.budget} is too small'}: {needs} take {needed} bytes"
                f"{f' of a budget of {self.budget}' if what else ''}; {mend}."
            )
        if tokens > self.reach:
            raise InputError(
                f"{what or 'the window is too small'}: {needs} take {tokens} positions of {self.reach:.0f}; {mend}."
            )

    def _bytes_of(self, text: int, sizes: Iterable[int]) -> int:
        """Bytes of the entries that so many text tokens and frames of these sizes will leave."""
        total = text * sum(self.entry_bytes)
        for size in sizes:
            if size not in self._frame_bytes:
                kept = [size if ratio is None else keep_count(ratio, size) for ratio in self._ratios]
                self._frame_bytes[size] = sum(count * each for count, each in zip(kept, self.entry_bytes))
            total += self._frame_bytes[size]
        return total

    # -- what has gone through the model, as pieces --------------------------------------------------------------------

    def note(self, ids: Sequence[int], numbers: Sequence[int], times: Sequence[float]) -> None:
        """Call after a step: `ids` and `numbers` have gone through the model and stayed. times: of its frames, s."""
        if not self.bounded:
            return
        ids = list(ids)
        done = 0
        if not self.pieces:
            self.pieces.append(Piece("system", self._system, self._time))
            done = self._system
        own = self._template.decide == "own"
        for (begin, end), time in zip(_frame_runs(numbers), times):
            opens = begin > done and ids[begin - 1] == self._template.open_id
            lead = 1 if opens or not own else 0
            self._note_words(ids[done : begin - lead])
            self._time = time
            size = lead + end - begin + own
            self.pieces.append(Piece("frame", size, time, lead, end - begin, opens))
            self.oldest_whole = time if self.oldest_whole is None else self.oldest_whole
            done = begin - lead + size
        self._note_words(ids[done:])

    def _note_words(self, ids: list[int]) -> None:
        """The words between two frames: "]", then what was asked and said, each up to its end."""
        close, after, eos = self._template.close(), len(self._template.after_reply), self._template.eos_id
        done = 0
        if ids and self.pieces[-1].kind == "frame":
            self.pieces.append(Piece("close", len(close), self._time))
            done = len(close)
        while done < len(ids):
            if not self.pieces[-1].said or self.pieces[-1].done:
                prompted = ids[done : done + len(self._prompt)] == self._prompt
                self.pieces.append(Piece("narration" if prompted else "answer", 0, self._time, done=False))
            piece = self.pieces[-1]
            if eos in ids[done:]:
                end = ids.index(eos, done) + 1 + after
                piece.done = True
            else:
                end = len(ids)
            piece.size += end - done
            done = end

    # -- a clearing ----------------------------------------------------------------------------------------------------

    def _clear(self, room: Clearing) -> None:
        """Carry out what was marked; more of the oldest, should that not be enough."""
        gone = room.finished()
        while not room.fits(1.0):
            while room.forget_oldest() and not room.fits():
                pass
            gone = room.finished()
            if not room.fits(1.0) and room.exhausted:
                raise InputError(f"nothing is left to forget for {room.step_tokens} tokens more; raise the budget.")
        stored = sum(map(sum, self.cache.stored))
        for number, layer in enumerate(self.cache.layers):
            if number in room.thinned:
                stay = torch.from_numpy(~room.thinned[number]).nonzero()[:, 0]
                layer.keep_entries(0, stay.to(layer.slots.device) if layer.slots is not None else stay)
        self.cache.compact(torch.from_numpy(gone), lambda keys, by: turned(self._decoder, keys, by))
        self.cache.memory.clear()  # a reduction that leaves out what earlier frames have shown: they may have gone
        self.context[:] = np.array(self.context, dtype=np.int64)[~gone].tolist()
        self.forgotten["entries"] += stored - sum(map(sum, self.cache.stored))
        vision = int((gone & room.vision).sum())
        self.forgotten["vision_tokens"] += vision
        self.forgotten["text_tokens"] += int(gone.sum()) - vision
        left = []
        for number, piece in enumerate(self.pieces):
            size = int((~gone[room.span(number)]).sum())
            if piece.kind == "frame" and size and not room.out[number]:
                remaining = int((~gone & room.vision)[room.span(number)].sum())
                self.forgotten["shrunk"] += piece.whole and (remaining < piece.vision or number in room.holed)
                piece.whole = piece.whole and remaining == piece.vision and number not in room.holed
                adopted = number in room.adopts
                piece.vision, piece.opens = remaining, piece.opens or adopted
                had = int(gone[room.begin[number] : room.begin[number] + piece.lead].sum()) if piece.lead else 0
                piece.lead = piece.lead - had + adopted
                size += adopted  # its "[" stood before what has gone
            elif room.out[number]:
                if piece.kind == "frame":
                    self.forgotten["frames"] += 1
                elif piece.said:
                    self.forgotten["narrations" if piece.kind == "narration" else "answers"] += 1
                continue
            piece.size = size
            if size:
                left.append(piece)
        self.pieces = left
        self.oldest_whole = next((piece.time for piece in left if piece.kind == "frame" and piece.whole), None)


class Clearing:
    """What would be left, planned on the CPU: a policy marks pieces, tokens or entries, and asks whether it fits.

    `frames` (but for the newest) and `said` (but for what is still being said) are numbers of pieces that may go,
    oldest first.
    """

    def __init__(self, memory: Memory, step_tokens: int, step_bytes: int, now: float) -> None:
        self.memory, self.now, self.step_tokens = memory, now, step_tokens
        self.pieces = memory.pieces
        self.begin = np.cumsum([0, *(piece.size for piece in self.pieces)])  # (pieces + 1,) tokens
        seen = memory.cache.seen
        assert self.begin[-1] == seen, "the pieces are what the cache has seen"
        self.slots = [_slots(layer) for layer in memory.cache.layers]  # per layer (entries,) int64
        self.weight = np.zeros(seen, dtype=np.int64)  # bytes of each token's entries, all layers
        for slots, each in zip(self.slots, memory.entry_bytes):
            self.weight += np.bincount(slots, minlength=seen) * each
        self.held = np.zeros(seen, dtype=np.int64)  # layers that hold an entry of each token
        for slots in self.slots:
            self.held += np.bincount(slots, minlength=seen)
        self.vision = np.zeros(seen, dtype=bool)
        for begin, piece in zip(self.begin, self.pieces):
            self.vision[begin + piece.lead : begin + piece.lead + piece.vision] = True
        frames = [number for number, piece in enumerate(self.pieces) if piece.kind == "frame"]
        self.frames, self.newest = frames[:-1], frames[-1:]
        self.said = [number for number, piece in enumerate(self.pieces) if piece.said and piece.done]
        self.out = [False] * len(self.pieces)
        self.partly = np.zeros(seen, dtype=bool)  # tokens marked within frames that stay
        self.thinned: dict[int, np.ndarray] = {}  # layer -> (entries,) bool: which of them go
        self.holed: set[int] = set()  # frames that have lost entries of single layers
        self.adopts: set[int] = set()  # frames that a "[" from before what has gone opens
        self.bytes = step_bytes + int(self.weight.sum())
        self.tokens = step_tokens + seen
        self._step_bytes = step_bytes

    def span(self, number: int) -> slice:
        """The tokens of a piece."""
        return slice(self.begin[number], self.begin[number + 1])

    def fits(self, share: float = LOW) -> bool:
        """Whether what is left, and the step to come, fill at most this share of the bounds."""
        budget = math.inf if self.memory.budget is None else self.memory.budget
        return self.bytes <= share * budget and self.tokens <= share * self.memory.reach

    def forget(self, number: int) -> None:
        """A piece goes, whole."""
        if not self.out[number]:
            self.out[number] = True
            self._take(self.span(number))

    def forget_token(self, token: int) -> None:
        """A token of a frame goes from all layers."""
        self._take(slice(token, token + 1))
        self.partly[token] = True

    def _take(self, span: slice) -> None:
        left = ~self.partly[span]
        self.bytes -= int(self.weight[span][left].sum())
        self.tokens -= int(left.sum())

    def shrink(self, number: int, keep: int | None) -> None:
        """Of a frame's vision tokens only number `keep` stays (None: none of them)."""
        piece, begin = self.pieces[number], int(self.begin[number]) + self.pieces[number].lead
        for token in range(begin, begin + piece.vision):
            if not self.partly[token] and token - begin != keep:
                self.forget_token(token)

    def thin(self, layer: int, entries: np.ndarray) -> None:
        """Entries (numbers within a layer) go; a vision token without any entry left goes altogether."""
        self.thinned.setdefault(layer, np.zeros(len(self.slots[layer]), dtype=bool))[entries] = True
        slots, each = self.slots[layer][entries], self.memory.entry_bytes[layer]
        self.bytes -= len(slots) * each
        self.weight[slots] -= each
        self.held[slots] -= 1
        for token in slots[self.held[slots] == 0]:
            self.forget_token(int(token))
        self.holed.update(np.searchsorted(self.begin, slots, side="right") - 1)

    def bound_words(self, most: int, before: int | None = None) -> None:
        """Forget the oldest of what was said until at most `most` tokens of it, and half of the bounds, are left.

        before: only what was said before that piece may go.
        """
        sizes = {number: self.pieces[number].size for number in self.said if not self.out[number]}
        left = sum(sizes.values())
        each = sum(self.memory.entry_bytes)
        room = self.memory.reach / 2
        if self.memory.budget is not None and each:
            room = min(room, self.memory.budget / 2 / each)
        for number, size in sizes.items():
            if left <= min(most, room) or (before is not None and number > before):
                return
            self.forget(number)
            left -= size

    def forget_oldest(self) -> bool:
        """The oldest frame that may go, or, where there is none, the oldest words; False if neither is left."""
        number = next((number for number in (*self.frames, *self.said) if not self.out[number]), None)
        if number is not None:
            self.forget(number)
        return number is not None

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left that may go."""
        return all(self.out[number] for number in (*self.frames, *self.said))

    def finished(self) -> np.ndarray:
        """(seen,) bool: all tokens that go, brackets put right; `bytes` and `tokens` become exact.

        A "[" opens the first frame that stays of a stream: the earliest one behind what stays before it, so that a
        session that has forgotten all looks as it did at its beginning. A "]" goes with its stream.
        """
        gone = self.partly.copy()
        for number, out in enumerate(self.out):
            if out:
                gone[self.span(number)] = True
        self.adopts.clear()
        bracket, inside = -1, False
        for number, (piece, out) in enumerate(zip(self.pieces, self.out)):
            begin = int(self.begin[number])
            if piece.kind == "frame" and out:
                if piece.opens and not inside and bracket < 0:
                    bracket = begin
            elif piece.kind == "frame":
                if not inside and bracket >= 0:
                    gone[bracket] = False
                    gone[begin : begin + piece.lead] = True
                    self.adopts.add(number)
                inside, bracket = True, -1
            elif piece.kind == "close":
                gone[self.span(number)] = not inside
                inside = False
            elif piece.said and not out:
                bracket = -1
        self.bytes = self._step_bytes + int(self.weight[~gone].sum())
        self.tokens = self.step_tokens + int((~gone).sum())
        return gone


def reach_of(model: StreamingVideoLM, window: float) -> float:
    """Positions that a model has learned: two of its own windows (or of `window` seconds, if that is longer) at its
    frame rate, and a tenth for words; without a window of its own, what its config says."""
    if model.settings.window is None or window == math.inf:
        return float(getattr(find_decoder(model.lm).config, "max_position_embeddings", math.inf))
    frames = 2 * max(window, model.settings.window) * model.settings.fps
    return math.ceil(frames * len(model.template.frame(first=False)[0]) * (1 + WORDS))


@torch.no_grad()
def bytes_of_entries(decoder: Any, cache: RaggedCache) -> list[int]:
    """Bytes of an entry in each layer of such a cache, found by running one token."""
    probe, like = cache.empty(), next(decoder.parameters())
    token = torch.zeros(1, 1, decoder.config.hidden_size, device=like.device, dtype=like.dtype)
    decoder(inputs_embeds=token, past_key_values=probe, use_cache=True)
    return [layer.entry_bytes for layer in probe.layers]


def _slots(layer: object) -> np.ndarray:
    """The slots of a layer's entries (one row), (entries,) int64."""
    slots, lengths = getattr(layer, "slots", None), getattr(layer, "lengths", [])
    if slots is None:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(slots[0, : lengths[0]].cpu().numpy())


def _frame_runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Begin and end of each frame's tokens in a step."""
    runs: list[tuple[int, int]] = []
    before = -1
    for place, number in enumerate(numbers):
        if number >= 0:
            if number == before:
                runs[-1] = (runs[-1][0], place + 1)
            else:
                runs.append((place, place + 1))
        before = number
    return runs


def _frame_sizes(numbers: Sequence[int]) -> list[int]:
    return [end - begin for begin, end in _frame_runs(numbers)] if max(numbers, default=-1) >= 0 else []
