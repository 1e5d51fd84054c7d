"""Puts a reduction into a model and takes it out again: calls its one method at its stage, frame by frame.

A dropped token stays in the sequence, under its own position, and goes through no decoder layer: to the decoder it is a
vision token that every layer skips (depth/layout.py, `thin`). So dialogue, session, evaluation and training need not
know of reductions, and a reduced stream equals one pass over it as a routed one does.

    encoder ── frames + signals ──> connector ──> [frames, tokens] ──> decoder [layer] ──> [cache]
            [tower] inside
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from videollm_mod.depth.cache import RaggedCache
from videollm_mod.depth.step import StepCache
from videollm_mod.reductions.base import Compose, Positions, Reduction, Signals, Tokens, from_dict
from videollm_mod.reductions.contract import check_method, check_result
from videollm_mod.reductions.decoder import Evictions, LayerCuts
from videollm_mod.reductions.tower import ALIVE, TowerSignals
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.model import StreamingVideoLM

Memory = dict[int, dict[str, Any]]  # number of a part -> what it remembers
TOLD = ("kept_out", "scores_out")  # what a forward fills: layer -> (batch, tokens)


class Decoded(NamedTuple):
    """What a decoder's output has that we need."""

    logits: Tensor  # (batch, positions, vocabulary)
    past_key_values: Any


@dataclass
class Row:
    """The frames of one batch row in this step."""

    number: int  # of the row
    frames: range  # of the step's frames, those of this row
    names: list[int]  # their numbers in the stream


class Reducing:
    """A model with a reduction in it; made by `Reduction.on`."""

    def __init__(
        self,
        model: StreamingVideoLM,
        reduction: Reduction,
        *,
        question: str | None = None,
        positions: Positions = "keep",
        traced: bool = False,
    ) -> None:
        if positions not in ("keep", "renumber"):
            raise InputError(f'positions is {positions!r}; choose "keep" or "renumber".')
        self.model, self.reduction, self.positions, self.traced = model, reduction, positions, traced
        self.parts = flat(reduction)
        for part in self.parts:
            check_method(part)
        self.question = question
        self.tower = TowerSignals(model.encoder, self.parts)
        self.last: list[Tokens] = []  # if traced: what the newest step's frames became, a row's frames together
        self.cuts: LayerCuts | None = None
        self.evictions: Evictions | None = None
        self._stack = ExitStack()
        if positions == "renumber" and any(part.stage in ("layer", "cache") for part in self.parts):
            raise InputError(f"{reduction.label} drops tokens that have their positions; take positions='keep'.")

    def __enter__(self) -> Reducing:
        model = self.model
        if model.reducing is not None:
            raise InputError(f"the model has {model.reducing.reduction.label} already; use Compose for several.")
        with ExitStack() as stack:  # undone at once if something goes wrong half-way
            if self.tower:
                model.encoder.forward = self.tower.encode  # type: ignore[method-assign]
                stack.callback(model.encoder.__dict__.pop, "forward")
            layers = [part for part in self.parts if part.stage == "layer"]
            self.cuts = stack.enter_context(LayerCuts(model, layers)) if layers else None
            caches = [part for part in self.parts if part.stage == "cache"]
            self.evictions = stack.enter_context(Evictions(model, caches)) if caches else None
            model.reducing = self
            stack.callback(setattr, model, "reducing", None)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def tells(self) -> list[int]:
        """The layers whose tokens show what it does: the first one, and the one behind each cut in the decoder."""
        cuts = self.cuts.cuts if self.cuts is not None else []
        first = [0] * any(part.stage not in ("layer", "cache") for part in self.parts)
        layers = {*first, *(layer + 1 for cut in cuts for layer in cut)}
        return sorted(layer for layer in layers if layer < self.model.num_layers)

    @property
    def made_of(self) -> dict[str, Any]:
        """What `put_again` puts into another process's model; plain values."""
        told = {"question": self.question, "positions": self.positions}
        return {"reduction": self.reduction.to_dict(), "told": told}

    @property
    def shares_steps(self) -> bool:
        """Whether streams can share a step: where all is done before the decoder, each frame by itself there."""
        return self.positions == "keep" and not any(part.stage in ("layer", "cache") for part in self.parts)

    def check_shared(self) -> None:
        """Raises InputError where streams cannot share a step."""
        if not self.shares_steps:
            raise InputError(
                f"{self.reduction.label} has one stream at a time; take a reduction that acts before the decoder, or a "
                "StreamSession for each stream."
            )

    def left_of_frame(self) -> int:
        """The most of a frame's tokens that a stream puts into the decoder, its CLS included."""
        left = self.model.encoder.tokens_per_frame - 1
        for part in self._streaming():
            if part.stage not in ("layer", "cache"):
                left = part.count(left)
        return 1 + left

    def check_stream(self, system: str | None = None) -> None:
        """What a live session asks before it begins with these words, or the model's own: raises InputError, with the
        reason, if it cannot be. Warns where a method ranks by a question that the stream does not begin with."""
        begun = self.model.settings.system if system is None else system
        for part in self._streaming():
            if part.needs_query and self.question and self.question not in begun:
                warnings.warn(
                    f"{part.label} ranks by what the question looks at, but the stream does not begin with "
                    f"'{self.question}'; give StreamSession(model, system=question).",
                    stacklevel=3,
                )

    def _streaming(self) -> list[Reduction]:
        """The parts in the form that a live stream can have."""
        parts = flat(self.reduction.causal())
        for part in parts:
            if (part.streamable == "question" or part.needs_query) and self.question is None:
                raise InputError(
                    f"{part.label} cannot stream without a question: it must know it before it sees a frame; "
                    "give on(model, question=...), and begin the session with it."
                )
        return parts

    # -- the decoder, with a reduction around it ---------------------------------------------------------------------

    def run(self, inputs: dict[str, Any], features: Tensor | None) -> Decoded:
        """What `model.lm(**inputs)` is without a reduction: one step or one pass. `features`: of the step's frames."""
        frame_index, cache = inputs["frame_index"], inputs["past_key_values"]
        if isinstance(cache, StepCache):  # of an engine that may be older than this reduction
            self.check_shared()
        if inputs["kept_out"] is not None:  # until a layer says otherwise
            everybody = torch.ones(frame_index.shape, dtype=torch.bool, device=self.model.device)
            inputs["kept_out"].update(dict.fromkeys(self.tells, everybody))
        if self.evictions is not None and len(frame_index) > 1:
            return self._row_by_row(inputs, features)
        enter = self._enter_each if isinstance(cache, StepCache) else self.enter
        embeds, alive = enter(inputs["inputs_embeds"], frame_index, features, cache)
        inputs = {**inputs, "inputs_embeds": embeds, "alive": alive}
        if self.evictions is not None:
            return self._in_steps(self.evictions, inputs)
        if self.positions == "keep":
            out = self.model.lm(**inputs)
            return Decoded(out.logits, out.past_key_values)
        first = cache.seen if cache is not None else 0
        here = (
            torch.ones(frame_index.shape, dtype=torch.bool) if alive is None else alive.cpu() | (frame_index.cpu() < 0)
        )
        inputs["position_ids"] = self._numbered(here, cache).to(self.model.device)
        if cache is None and inputs["attention_mask"] is None:  # else repeated positions look like several sequences
            inputs["attention_mask"] = torch.ones(frame_index.shape, dtype=torch.long, device=self.model.device)
        out = self.model.lm(**inputs)
        if out.past_key_values is not None:
            for row, gone in enumerate(~here):
                out.past_key_values.dropped.setdefault(row, []).extend((gone.nonzero()[:, 0] + first).tolist())
        return Decoded(out.logits, out.past_key_values)

    def _numbered(self, here: Tensor, cache: Any) -> Tensor:
        """Positions numbered anew, (batch, tokens): those of what is left; a dropped token has its successor's."""
        seen, dropped = (cache.seen, cache.dropped) if cache is not None else (0, {})
        first = torch.tensor([seen - len(dropped.get(row, ())) for row in range(len(here))])
        return first[:, None] + here.long().cumsum(1) - here.long()

    def _in_steps(self, evictions: Evictions, inputs: dict[str, Any]) -> Decoded:
        """Frame by frame, and behind each frame the parts of the stage cache drop entries of it."""
        tokens, keep = inputs["frame_index"].shape[1], inputs.pop("logits_to_keep")
        cache = inputs.pop("past_key_values")
        cache = RaggedCache(self.model.num_layers) if cache is None else cache
        wanted = torch.arange(tokens)[-keep:] if isinstance(keep, int) else keep.cpu()
        each = {name: inputs.pop(name) for name in ("inputs_embeds", "frame_index", "alive", "token_scores")}
        if inputs["attention_mask"] is not None:
            raise InputError(f"{self.reduction.label} takes no attention_mask; give one conversation, without padding.")
        inputs["use_cache"] = True
        out = {name: inputs[name] for name in TOLD if inputs[name] is not None}
        logits, parts = [], []
        for begin, end in self._steps(each["frame_index"]):
            step = {name: None if value is None else value[:, begin:end] for name, value in each.items()}
            inside = wanted[(wanted >= begin) & (wanted < end)] - begin
            parts.append(
                {name: {layer: all_[:, begin:end] for layer, all_ in known.items()} for name, known in out.items()}
            )
            told = {**inputs, **parts[-1], "logits_to_keep": inside.to(self.model.device)}
            logits.append(self.model.lm(**step, **told, past_key_values=cache).logits)
            evictions.evict(cache)
        for name, known in out.items():
            known.update({layer: torch.cat([part[name][layer] for part in parts], 1) for layer in parts[-1][name]})
        return Decoded(torch.cat(logits, 1), cache)

    def _row_by_row(self, inputs: dict[str, Any], features: Tensor | None) -> Decoded:
        """A batch padded on the right, each conversation by itself; logits are zeros where a row is padded."""
        if inputs["past_key_values"] is not None or inputs["use_cache"]:
            raise InputError(f"{self.reduction.label} has a cache of one conversation at a time; give a batch of one.")
        index, mask, keep = inputs["frame_index"], inputs["attention_mask"], inputs["logits_to_keep"]
        wanted = torch.arange(index.shape[1])[-keep:] if isinstance(keep, int) else keep.cpu()
        lengths = [index.shape[1]] * len(index) if mask is None else mask.sum(1).tolist()
        frames = (index >= 0).sum(1) // self.model.encoder.tokens_per_frame
        films = [None] * len(index) if features is None else features.split(frames.tolist())
        out = {name: inputs[name] for name in TOLD if inputs[name] is not None}
        logits, rows = [], []
        for row, (length, film) in enumerate(zip(lengths, films)):
            own = {
                name: value[row : row + 1, :length] if isinstance(value, Tensor) and name != "logits_to_keep" else value
                for name, value in inputs.items()
            }
            inside = wanted[wanted < length]
            rows.append({name: dict[int, Tensor]() for name in out})
            found = self.run({**own, **rows[-1], "attention_mask": None, "logits_to_keep": inside}, film).logits
            logits.append(pad(found, (0, 0, 0, len(wanted) - len(inside))))
        for name, known in out.items():
            padded = {
                layer: [pad(own[name][layer], (0, index.shape[1] - length)) for own, length in zip(rows, lengths)]
                for layer in rows[0][name]
            }
            known.update({layer: torch.cat(each) for layer, each in padded.items()})
        return Decoded(torch.cat(logits), None)

    def _steps(self, frame_index: Tensor) -> list[tuple[int, int]]:
        """Where a pass (1, tokens) is cut, so that a frame alone sees all of its own entries: [begin, end)."""
        index = frame_index[0].tolist()
        last = [i for i, number in enumerate(index) if number >= 0 and index[i + 1 : i + 2] != [number]]
        more = 1 + (self.model.settings.decide == "own")
        ends = sorted({min(i + more, len(index)) for i in last} | {len(index)})
        return list(zip([0, *ends], ends))

    # -- stages frames and tokens: before the decoder ------------------------------------------------------------------

    def enter(
        self, embeds: Tensor, frame_index: Tensor, features: Tensor | None, cache: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The step's embeddings (batch, tokens, d) with what the frames became, and which tokens are alive.

        None for the latter if all are. `cache` is a RaggedCache, which holds a live stream's memory, or None.
        """
        index = frame_index.cpu()
        vision = index >= 0
        if features is None or not bool(vision.any()):
            return embeds, None
        live = cache is not None and getattr(cache, "live", False)
        parts = self._streaming() if live else self.parts
        n, where = self.model.encoder.tokens_per_frame, vision.to(embeds.device)
        x = embeds[where].view(len(features), n, -1)
        signals = self.tower.split(features) if self.tower else {}
        out = x.clone()
        alive = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        self.last = []
        if self.cuts is not None:
            self.cuts.tower, self.cuts.now, self.cuts.text = {}, {}, self._text()
        for row in rows_of(index, n):
            memory = newest(cache, row.number)
            if self.cuts is not None:
                for at, name in zip(row.frames, row.names):
                    self.cuts.tower[row.number, name] = {need: values[at] for need, values in signals.items()}
            for frames in _together(row.frames, parts):
                tokens = self._reduce(parts, frames, row, x, signals, memory)
                self._place(tokens, frames, row, out, alive)
                if self.cuts is not None:
                    self.cuts.now |= {(row.number, name): only for name, only in _by_frame(tokens)}
                remember(cache, row.number, row.names[frames[-1] - row.frames[0]], memory)
                self.last.append(tokens if self.traced else replace(tokens, w=None))
        self._let_decide(out, alive)
        if bool(alive.all()):
            return embeds, None  # to the bit
        return embeds.masked_scatter(where[..., None], out), where.masked_scatter(where, alive)

    def _enter_each(
        self, embeds: Tensor, frame_index: Tensor, features: Tensor | None, cache: StepCache
    ) -> tuple[Tensor, Tensor | None]:
        """As `enter`, for a step of many streams: each stream's part with its own memory and numbers of frames."""
        if features is None:
            return embeds, None
        own_number = torch.tensor([*cache.numbers, -1])  # by number in the row; of text, -1, that is the last
        films = features.split([len(share.sizes) for share in cache.shares])
        found, last = [], []
        for share, film in zip(cache.shares, films):
            part = slice(share.begin, share.end)
            index = own_number[frame_index[:, part].cpu()]
            found.append(self.enter(embeds[:, part], index, film, share.cache))
            last += self.last if len(film) else []
        self.last = last
        alive = [
            torch.ones(own.shape[:2], dtype=torch.bool, device=own.device) if left is None else left
            for own, left in found
        ]
        if all(left is None for _, left in found):
            return embeds, None
        return torch.cat([own for own, _ in found], 1), torch.cat(alive, 1)

    def _reduce(
        self,
        parts: Sequence[Reduction],
        frames: Sequence[int],
        row: Row,
        x: Tensor,
        signals: dict[tuple[str, int], Tensor],
        memory: Memory,
    ) -> Tokens:
        """All parts of the stages before the decoder on some frames, at first (frames * h * w, d)."""
        h, w = grid = self.model.encoder.grid
        each = [Tokens.of_frame(x[at, 1:], grid, row.names[at - row.frames[0]]) for at in frames]
        tokens = Tokens.join(each).traced(self.traced)
        numbers = {need: torch.cat([values[at] for at in frames]) for need, values in signals.items()}
        if ALIVE in numbers:
            tokens = tokens.take((numbers[ALIVE] > 0).nonzero()[:, 0])
        names = [row.names[at - row.frames[0]] for at in frames]
        start = {name: k * h * w for k, name in enumerate(names)}
        for number, part in enumerate(parts):
            if part.stage == "tower":
                continue
            mine, size = memory.setdefault(number, {}), _frames_of(part, len(names))
            left = []
            for some in (names[at : at + size] for at in range(0, len(names), size)):
                these = tokens if len(some) == len(names) else _within(tokens, some)
                if len(these):  # of a frame, nothing may be left by a part that saw the whole video
                    left.append(self._apply(part, these, some, start, numbers, mine))
            tokens = left[0] if len(left) == 1 else _behind(left)
        return tokens

    def _apply(
        self,
        part: Reduction,
        tokens: Tokens,
        names: Sequence[int],
        start: dict[int, int],
        numbers: dict[tuple[str, int], Tensor],
        memory: dict[str, Any],
    ) -> Tokens:
        """One part on the tokens of the frames `names`. numbers: (frames * h * w, ...), a frame's from `start` on."""
        if part.stage in ("layer", "cache"):
            return part.prepare(tokens)
        (h, w), n = self.model.encoder.grid, self.model.encoder.tokens_per_frame - 1
        # a part that came before has made new tokens: each has the signals of the place where it stands
        original = _original(tokens, start, w)
        values = {need: each[original] for need, each in numbers.items()}
        for need, each in values.items():
            if need[0] == "tower_attention" and len(names) == 1:  # to whom, as from whom
                values[need] = each[..., original % n]
        told = Signals(
            values,
            memory=memory,
            text=self._text() if part.needs_query else None,
            total=h * w * len(names),
            generator=_generator(part, names[0]),
        )
        given = replace(tokens, x=values["pixels", 0].flatten(1), w=None) if part.stage == "frames" else tokens
        left = part.reduce(given, told)
        check_result(part, given, left)
        if part.stage == "tokens":
            return left
        at = _original(left, start, w)
        return tokens.take((original[None] == at[:, None]).nonzero()[:, 1])

    def _place(self, tokens: Tokens, frames: Sequence[int], row: Row, out: Tensor, alive: Tensor) -> None:
        """Write tokens into their frames' places: their own; in the method's order, where it has one of its own."""
        columns = self.model.encoder.grid[1]
        names = torch.tensor([row.names[at - row.frames[0]] for at in frames], device=out.device)
        frame = (tokens.positions[:, :1] == names).nonzero()[:, 1] + frames[0]
        n = out.shape[1]
        places = (frame * n + 1 + tokens.positions[:, 1] * columns + tokens.positions[:, 2]).sort().values
        out.view(-1, out.shape[2]).index_copy_(0, places, tokens.x)
        alive.view(-1)[places] = True
        alive[frames[0] : frames[-1] + 1, 0] = True  # the CLS

    def _let_decide(self, out: Tensor, alive: Tensor) -> None:
        """Where a frame's last token decides whether to speak, the last survivor stands in its place."""
        if self.model.settings.decide != "last":
            return
        n = alive.shape[1]
        last = n - 1 - alive.flip(1).int().argmax(1)  # (frames,)
        moved = (last != n - 1).nonzero()[:, 0]
        out[moved, n - 1] = out[moved, last[moved]].clone()
        alive[moved, last[moved]], alive[moved, n - 1] = False, True

    def _text(self) -> Tensor | None:
        """(words, d) embeddings of the question; (0, d) of an empty one."""
        model = self.model
        ids = model.template.user(self.question or "") if (self.question or "").strip() else []
        table = model.lm.get_input_embeddings()
        return table(torch.tensor(ids, dtype=torch.long, device=model.device))


def put_again(model: StreamingVideoLM, made_of: dict[str, Any]) -> Reducing:
    """Put into a model what was in another one, to stay: see `Reducing.made_of`."""
    return from_dict(made_of["reduction"]).on(model, **made_of["told"]).__enter__()


def flat(reduction: Reduction) -> list[Reduction]:
    """The parts of a composition, of compositions too."""
    if isinstance(reduction, Compose):
        return [inner for part in reduction.parts for inner in flat(part)]
    return [reduction]


def rows_of(index: Tensor, n: int) -> list[Row]:
    """The frames of each batch row, off frame_index (batch, tokens) on the CPU; n tokens per frame."""
    rows, first = [], 0
    for number, row in enumerate(index):
        names = row[row >= 0][::n].tolist()
        if names:
            rows.append(Row(number, range(first, first + len(names)), names))
        first += len(names)
    return rows


def _together(frames: range, parts: Sequence[Reduction]) -> list[range]:
    """Which frames are reduced together: one; a few; or all, if any part wants them so."""
    wish = [part for part in parts if part.stage in ("frames", "tokens")]
    size = max([_frames_of(part, len(frames)) for part in wish], default=1)
    return [frames[at : at + size] for at in range(0, len(frames), size)]


def _frames_of(part: Reduction, frames: int) -> int:
    """How many of so many frames go into one call of a part."""
    if part.stage in ("layer", "cache"):
        return 1
    return frames if part.streamable == "whole" else min(part.lookahead + 1, frames)


def _within(tokens: Tokens, names: Sequence[int]) -> Tokens:
    """Those of the frames with these numbers."""
    there = torch.isin(tokens.frame, torch.tensor(names, device=tokens.x.device))
    return tokens.take(there.nonzero()[:, 0])


def _by_frame(tokens: Tokens) -> list[tuple[int, Tokens]]:
    names = tokens.frame.unique().tolist()
    return [(name, tokens if len(names) == 1 else _within(tokens, [name])) for name in names]


def _behind(parts: Sequence[Tokens]) -> Tokens:
    """Tokens of the same originals behind one another."""
    ws = [part.w for part in parts if part.w is not None]
    return replace(Tokens.join(list(parts)), w=torch.cat(ws).coalesce() if ws else None)


def newest(cache: Any, row: int) -> Memory:
    """A copy of what is remembered behind the newest frame of a stream; of a pass without a cache, nothing.

    A session rolls no further back than this, so what a live cache remembers behind older frames goes.
    """
    kept = getattr(cache, "memory", {}).get(row)
    if not kept:
        return {}
    last = max(kept)
    if cache.live:
        for older in [frame for frame in kept if frame != last]:
            del kept[older]
    return {part: dict(values) for part, values in kept[last].items()}


def remember(cache: Any, row: int, frame: int, memory: Memory) -> None:
    """Note what is remembered behind a frame, so that rolling back finds it again."""
    if cache is not None and any(memory.values()):
        kept = cache.memory.setdefault(row, {})
        kept[frame] = {part: dict(values) for part, values in memory.items()}


def _original(tokens: Tokens, start: dict[int, int], columns: int) -> Tensor:
    """Row of each token's place among the originals of its frames."""
    first = torch.tensor([start[name] for name in tokens.frame.tolist()], dtype=torch.long, device=tokens.x.device)
    return first + tokens.positions[:, 1] * columns + tokens.positions[:, 2]


def _generator(part: Reduction, frame: int) -> torch.Generator | None:
    """Of a frame by its number, so that it is drawn alike when streamed and in one pass."""
    if not part.seeded:
        return None
    seed = int(getattr(part, "seed", 0))
    return torch.Generator().manual_seed((seed * 1_000_003 + frame) % 2**63)
