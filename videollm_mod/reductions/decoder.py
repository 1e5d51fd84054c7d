"""Inside the decoder: dropping vision tokens between layers, and entries from the cache behind a frame.

Between layers a cut narrows the step's frame layout, which all later layers read, so that they run on what is left, at
its own positions. A frame's CLS is never offered, nor is its last token where that decides whether to speak.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videollm_mod.depth.cache import RaggedCache
from videollm_mod.depth.layout import FrameLayout, FrameSpan
from videollm_mod.depth.swap import find_decoder
from videollm_mod.reductions.attention import Heard, listening
from videollm_mod.reductions.base import HERE, Reduction, Signals, Tokens
from videollm_mod.reductions.contract import check_result
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.model import StreamingVideoLM

OF_ATTENTION = ("last_attention", "text_attention", "queries", "keys")
OF_HALVES = ("attention_in", "attention_out", "mlp_in", "mlp_out")


class LayerCuts:
    """The hooks of the stage layer; goes in and comes out."""

    def __init__(self, model: StreamingVideoLM, parts: Sequence[Reduction]) -> None:
        self.model, self.parts = model, parts
        self.layers = list(find_decoder(model.lm).layers)
        self.cuts = [part.cuts(len(self.layers)) for part in parts]
        for part, cut in zip(parts, self.cuts):
            wrong = [layer for layer in cut if not 0 <= layer < len(self.layers)]
            if wrong:
                raise InputError(f"{part.label} cuts after layer {wrong[0]}, but the decoder has {len(self.layers)}.")
        self.heard: Heard | None = None
        self.halves: dict[str, Tensor] = {}
        self.memory: dict[tuple[int, int, int], dict[str, Any]] = {}  # part, row, frame -> of this step
        self.layout: FrameLayout | None = None
        self.text: Tensor | None = None  # embeddings of the question
        self.tower: dict[tuple[int, int], dict[tuple[str, int], Tensor]] = {}  # row, frame -> its cells' signals
        self.now: dict[tuple[int, int], Tokens] = {}  # row, frame -> what it is behind the newest cut (x: before all)
        self.entered: dict[tuple[int, int], int] = {}  # row, frame -> how many tokens came before the first layer
        self.stack = ExitStack()

    def __enter__(self) -> LayerCuts:
        with ExitStack() as stack:
            wanted: dict[int, set[str]] = {}
            for part, cut in zip(self.parts, self.cuts):
                for layer in cut:
                    wanted.setdefault(layer, set()).update(name for name, _ in part.needs)
            ears = {
                self.layers[layer].self_attn: self._hear for layer, names in wanted.items() if names & set(OF_ATTENTION)
            }
            stack.enter_context(listening(ears))
            for layer, names in wanted.items():
                module = self.layers[layer]
                for half, inner in (("attention", "self_attn"), ("mlp", "mlp")):
                    if names & {f"{half}_in", f"{half}_out"}:
                        stack.callback(
                            getattr(module, inner).register_forward_hook(self._half(half), with_kwargs=True).remove
                        )
                stack.callback(module.register_forward_hook(self._after(layer), with_kwargs=True).remove)
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()
        self.heard, self.halves, self.memory, self.layout, self.tower = None, {}, {}, None, {}
        self.now, self.entered = {}, {}

    def _hear(self, heard: Heard) -> None:
        self.heard = heard

    def _half(self, name: str) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            self.halves[f"{name}_in"] = args[0] if args else kwargs["hidden_states"]
            self.halves[f"{name}_out"] = output[0] if isinstance(output, tuple) else output

        return hook

    def _after(self, layer: int) -> Any:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
            layout: FrameLayout | None = kwargs.get("depth")
            if layout is None or not layout.groups:
                return None
            if layout is not self.layout:  # another step
                self.layout, self.memory, self.entered = layout, {}, {}
            return self._cut(layer, layout, output, kwargs.get("past_key_values"))

        return hook

    def _cut(self, layer: int, layout: FrameLayout, hidden: Tensor, cache: Any) -> Tensor:
        """hidden: (batch, tokens, d) behind the layer; the same with merged tokens written in."""
        alive, flat = layout.alive(), hidden.reshape(-1, hidden.shape[-1])
        decides = self.model.settings.decide == "last"
        for row, spans in enumerate(layout.spans):
            ran = Ran.of(self, layer, layout, row, cache)
            for number, span in enumerate(spans):
                begin = row * layout.tokens + span.begin
                end = row * layout.tokens + span.end - decides
                places = torch.arange(begin + 1, end, device=flat.device)
                places = places[alive[begin + 1 : end]]
                entered = self.entered.setdefault((row, span.number), len(places))
                for at, (part, cut) in enumerate(zip(self.parts, self.cuts)):
                    if layer not in cut or not len(places):
                        continue
                    following = spans[number + 1].begin if number + 1 < len(spans) else layout.tokens
                    tokens = self._tokens(flat[places], places - begin - 1, row, span.number)
                    values = ran.signals(part, places - row * layout.tokens, span, following, decides)
                    told = self.tower.get((row, span.number), {})
                    values |= {need: told[need][places - begin - 1] for need in part.needs if need in told}
                    signals = Signals(
                        values,
                        memory=self.memory.setdefault((at, row, span.number), {}),
                        text=self.text if part.needs_query else None,
                        layer=layer,
                        layers=len(self.layers),
                        total=entered,
                    )
                    left = part.reduce(tokens, signals)
                    check_result(part, tokens, left)
                    self.now[row, span.number] = left
                    stays = self._places(left) + begin + 1
                    if part.merges:
                        flat = flat.index_copy(0, stays, left.x)
                    alive[begin + 1 : end] = False
                    alive[stays] = True
                    places = stays.sort().values
        layout.thin(alive)
        return flat.view_as(hidden)

    def _tokens(self, x: Tensor, cells: Tensor, row: int, frame: int) -> Tokens:
        """(n, d) of these cells of a frame, with what is known of them: sizes, and `w` if somebody asked."""
        columns, known = self.model.encoder.grid[1], self.now[row, frame]
        places = torch.stack([torch.full_like(cells, frame), cells // columns, cells % columns], 1)
        at = (self._places(known)[None] == cells[:, None]).int().argmax(1)
        return replace(known.take(at), x=x, positions=places)

    def _places(self, tokens: Tokens) -> Tensor:
        return tokens.positions[:, 1] * self.model.encoder.grid[1] + tokens.positions[:, 2]


class Ran:
    """What a layer that has just run tells of one row of the batch."""

    def __init__(self, cuts: LayerCuts, row: int, place: Tensor, slots: Tensor, first: int, length: int) -> None:
        self.cuts, self.row, self.first = cuts, row, first
        self.length = length  # of the row, without what pads it
        self.place = place  # (ran,) step positions of the tokens that went through, ascending
        self.slots = slots  # (keys,) slot of each key, -1 = none

    @classmethod
    def of(cls, cuts: LayerCuts, layer: int, layout: FrameLayout, row: int, cache: Any) -> Ran:
        stored = cache.layers[layer] if isinstance(cache, RaggedCache) else None
        first = stored.seen - layout.tokens if stored is not None else 0
        ran = layout.ran.get(layer)
        device = layout.device
        place = torch.arange(layout.tokens, device=device) if ran is None else ran[0][row]
        if ran is not None:
            slots = ran[1][row]
        elif stored is not None and stored.slots is not None:
            slots = stored.slots[row, : max(stored.lengths)]
        else:
            slots = torch.arange(layout.tokens, device=device)
        inside = layout.text - row * layout.tokens
        inside = inside[(inside >= 0) & (inside < layout.tokens)]
        length = int(inside.max()) + 1 if len(inside) else layout.tokens
        return cls(cuts, row, place, slots, first, length)

    def signals(
        self, part: Reduction, tokens: Tensor, span: FrameSpan, following: int, decides: bool
    ) -> dict[tuple[str, int], Tensor]:
        """Of the tokens at these step positions, what a part needs; zeros for one that skipped the layer."""
        found: dict[tuple[str, int], Tensor] = {}
        for name, _ in part.needs:
            if name in OF_HALVES:
                found[name, HERE] = self._rows(self.cuts.halves[name][self.row], tokens)
            elif name in OF_ATTENTION:
                found[name, HERE] = self._attention(name, tokens, span, following, decides)
        return found

    def _attention(self, name: str, tokens: Tensor, span: FrameSpan, following: int, decides: bool) -> Tensor:
        heard = self.cuts.heard
        assert heard is not None
        if name == "queries":
            return self._rows(heard.queries[self.row].transpose(0, 1), tokens)
        if name == "keys":
            return self._columns(heard.keys[self.row].transpose(0, 1), tokens)
        if name == "last_attention":
            asking = range(span.end - 1, span.end) if decides else range(span.end, min(span.end + 1, following))
        else:
            asking = range(span.end, following)
        wanted = torch.tensor(list(asking), dtype=torch.long, device=tokens.device)
        wanted = wanted[(wanted < self.length) | (wanted < span.end)]  # what pads the row is no text
        rows = (self.place[None] == wanted[:, None]).int()
        there = rows.any(1)
        rows, wanted = rows.argmax(1)[there], wanted[there]
        if not len(rows):
            return heard.keys.new_zeros(len(tokens))
        seen = (self.slots >= 0) & (self.slots <= wanted[:, None] + self.first)  # (rows, keys)
        weights = heard.attention(rows, seen, self.row).mean((0, 1))  # (keys,)
        return self._columns(weights, tokens)

    def _rows(self, values: Tensor, tokens: Tensor) -> Tensor:
        """values (ran, ...) at the tokens."""
        return _at(values, self.place, tokens)

    def _columns(self, values: Tensor, tokens: Tensor) -> Tensor:
        """values (keys, ...) at the tokens."""
        return _at(values, self.slots, tokens + self.first)


def _at(values: Tensor, names: Tensor, wanted: Tensor) -> Tensor:
    """The rows of `values` whose names are `wanted`; zeros where there is none. What pads repeats the last: the first
    of equal names counts."""
    same = names[None] == wanted[:, None]  # (wanted, names)
    found = values[same.int().argmax(1)]
    return found * same.any(1).view(-1, *[1] * (values.dim() - 1)).to(found.dtype)


# -- the cache ---------------------------------------------------------------------------------------------------------


class Evictions:
    """The stage cache: hears what its parts need while a step runs, and drops entries behind it. Goes in, comes out."""

    def __init__(self, model: StreamingVideoLM, parts: Sequence[Reduction]) -> None:
        self.model, self.parts = model, parts
        self.layers = list(find_decoder(model.lm).layers)
        self.needs = {name for part in parts for name, _ in part.needs}
        self.heard: dict[int, Heard] = {}
        self.layout: FrameLayout | None = None
        self.stack = ExitStack()

    def __enter__(self) -> Evictions:
        with ExitStack() as stack:
            if "queries" in self.needs:
                ears = {
                    layer.self_attn: (lambda heard, at=at: self.heard.__setitem__(at, heard))
                    for at, layer in enumerate(self.layers)
                }
                stack.enter_context(listening(ears))

                def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
                    self.layout = kwargs.get("depth")

                stack.callback(self.layers[0].register_forward_pre_hook(note, with_kwargs=True).remove)
            self.stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()
        self.heard, self.layout = {}, None

    def evict(self, cache: RaggedCache) -> None:
        """Behind a step: each part chooses which entries of the newest frames stay, layer by layer; batch of one.

        With `frames_at_once` frames, only when that many have come; frames are counted by their numbers.
        """
        spans = cache.frames[0] if cache.frames else []
        if not spans or cache.evicted.get(0, -1) >= spans[-1].number:
            return
        for part in self.parts:
            together = part.frames_at_once()
            if (spans[-1].number + 1) % together == 0:
                cache.evicted[0] = spans[-1].number
                newest = [span for span in spans if span.number > spans[-1].number - together]
                for number in range(len(cache.layers)):
                    self._evict(part, cache, number, newest)
        self.heard = {}

    def _evict(self, part: Reduction, cache: RaggedCache, number: int, spans: list[FrameSpan]) -> None:
        layer = cache.layers[number]
        if layer.slots is None or not layer.lengths or layer.keys is None:
            return
        columns, decides = self.model.encoder.grid[1], self.model.settings.decide == "last"
        slots = layer.slots[0, : layer.lengths[0]]
        rows, places = [], []
        for span in spans:
            inside = ((slots > span.begin) & (slots < span.end - decides)).nonzero()[:, 0]
            cell = slots[inside] - span.begin - 1
            rows.append(inside)
            places.append(torch.stack([torch.full_like(cell, span.number), cell // columns, cell % columns], 1))
        at, positions = torch.cat(rows), torch.cat(places)
        if not len(at):
            return
        keys = layer.stored_keys(0)[:, at].transpose(0, 1)  # (N, heads, e); of a rounded cache, as they are read
        tokens = Tokens(keys.flatten(1), positions, torch.ones(len(at), device=at.device))
        values: dict[tuple[str, int], Tensor] = {}
        if "queries" in self.needs:
            queries = self._queries(number, layer.seen, slots[at])
            values = {
                ("queries", HERE): queries,
                ("keys", HERE): keys.to(queries).repeat_interleave(queries.shape[1] // keys.shape[1], 1),
            }
        total = sum(span.end - span.begin - 1 - decides for span in spans)
        left = part.reduce(tokens, Signals(values, layer=number, layers=len(cache.layers), total=total))
        check_result(part, tokens, left)
        same = (positions[:, None] == left.positions[None]).all(-1).any(1)
        gone = set(at[~same].tolist())
        layer.keep_entries(
            0, torch.tensor([entry for entry in range(len(slots)) if entry not in gone], device=at.device)
        )

    def _queries(self, number: int, seen: int, slots: Tensor) -> Tensor:
        """(N, heads, e) of the tokens in these slots; zeros for those of an earlier step."""
        heard, layout = self.heard[number], self.layout
        ran = layout.ran.get(number) if layout is not None else None
        tokens = layout.tokens if layout is not None else heard.queries.shape[2]
        place = torch.arange(tokens, device=slots.device) if ran is None else ran[0][0]
        return _at(heard.queries[0].transpose(0, 1), place, slots - (seen - tokens))
