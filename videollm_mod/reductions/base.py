"""A token reduction is one file in this folder: a dataclass that overrides `reduce`. This file is the contract.

    @dataclass
    class Uniform(Reduction):
        keep: float = 0.5                                   # hyper-parameters are fields, with the authors' defaults
        stage: ClassVar[Stage] = "tokens"
        def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
            return tokens.take(...)

    with vm.reductions.Uniform(keep=0.5).on(model):         # goes in, and always comes out again
        session = vm.StreamSession(model)

What `reduce` gets, and when, by stage; a frame's CLS is never among its tokens, and always survives:
    frames  the pixels of each cell of a frame (prunes only; what it      x: (h * w, pixels of a cell * 3) in 0..1
            drops the tower has seen, and the decoder does not)
    tower   after each block of the tower that `cuts` names (prunes only) x: (living cells, tower width)
    tokens  after the connector, before the decoder                       x: (h * w, decoder width)
    layer   after each decoder layer that `cuts` names                    x: (living tokens, decoder width)
    cache   after a frame went through the decoder, for each layer        x: (stored tokens, heads * e), their keys
It is called once per frame, in order, with the tokens of that frame (`streamable` "causal", "question"); with those of
`lookahead` + 1 frames at a time ("lookahead"); or once with those of all frames of the pass ("whole"; frames and tokens
only). So what is called per frame cannot look ahead, nor can it in a `Compose` with what does. What it wants to know of
earlier frames it puts into `signals.memory`, a dict that lives as long as the stream and rolls back with the cache: put
new values in, never change old ones. When the stream forgets something (stream/memory.py) it is empty again. In stage
tower, layer and cache it lives as long as the frame (cache: as the layer's `frames_at_once`).

What it returns is made of what it got by `Tokens.take` (pruning) and `Tokens.merge`, which keep positions, sizes and
`Tokens.w` right. In layer a merged token is written over the one whose place it takes; in cache there is only `take`.
Tokens stay in the order of (time, row, column) unless the class says `ordered = False`: then they take the places of
those that stay, in their own order. A frame's last token, where it decides whether to speak (`decide="last"`), is not
offered in layer and cache; before the decoder the last survivor takes its place.

How many: `count(n)` = ceil(keep * n) of a frame's n tokens, at least 1, as in a DepthPlan, so that methods are compared
at equal counts. In a `Compose`, n is what those before it have left (in stage layer: what enters the decoder). A method
whose number depends on the picture says `exact = False` and keeps at most that many; with whole videos the count is
that of all frames together.

A dropped token keeps its place in the sequence and goes through no layer, so positions stay those of the unreduced
stream ("keep", the default), a frame takes part in streaming, rolling back and depth routing as ever, and routed layers
keep their share of the tokens that are left.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import json
import pkgutil
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from videollm_mod.depth.plan import keep_count
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.model import StreamingVideoLM
    from videollm_mod.reductions.runner import Reducing

Stage = Literal["frames", "tower", "tokens", "layer", "cache"]
Streamable = Literal["causal", "lookahead", "question", "whole"]
Positions = Literal["keep", "renumber"]
HERE = 10**6  # as the layer of a signal (stages tower, layer and cache): the one that has just run
STAGES: tuple[Stage, ...] = ("frames", "tower", "tokens", "layer", "cache")


@dataclass(frozen=True)
class Tokens:
    """The one value that passes through all stages: N tokens, and where each came from.

    A method makes new ones with `take` and `merge` only.
    """

    x: Tensor  # (N, d)
    positions: Tensor  # (N, 3) int64: time (the frame's number), row, column; of a merged token, where it stands
    sizes: Tensor  # (N,) float: how many original tokens it stands for
    w: Tensor | None = None  # (N, originals) sparse, row-stochastic: x = w @ the original x; None if nobody asked
    cells: Tensor | None = None  # (N,) int64, stage tower only: which of them are pooled to one token later

    def __len__(self) -> int:
        return len(self.x)

    @property
    def frame(self) -> Tensor:
        """(N,) int64: the number of the frame that each stands in."""
        return self.positions[:, 0]

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) that the tokens span; what a method takes for a whole grid."""
        return int(self.positions[:, 1].max()) + 1, int(self.positions[:, 2].max()) + 1

    @classmethod
    def of_frame(cls, x: Tensor, grid: tuple[int, int], number: int = 0, *, traced: bool = False) -> Tokens:
        """The h * w cells (h * w, d) of a frame in raster order."""
        cells = torch.arange(grid[0] * grid[1], device=x.device)
        places = torch.stack([torch.full_like(cells, number), cells // grid[1], cells % grid[1]], 1)
        return cls(x, places, torch.ones(len(x), device=x.device)).traced(traced)

    def traced(self, yes: bool = True) -> Tokens:
        """The same tokens as originals: `w` is the identity from here on (or None)."""
        return dataclasses.replace(self, w=_eye(len(self), self.x) if yes else None)

    @staticmethod
    def join(parts: list[Tokens]) -> Tokens:
        """Several frames behind one another; their originals, too."""
        ws = [part.w for part in parts if part.w is not None]
        return Tokens(
            torch.cat([part.x for part in parts]),
            torch.cat([part.positions for part in parts]),
            torch.cat([part.sizes for part in parts]),
            _block_diagonal(ws) if ws and len(ws) == len(parts) else None,
        )

    def take(self, index: Tensor) -> Tokens:
        """Pruning: the tokens `index` (M,) int64 in that order, as they are; sort it to keep the raster order. Or those
        where a mask (N,) bool says so."""
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        w = None if self.w is None else self.w.index_select(0, index).coalesce()
        cells = None if self.cells is None else self.cells[index]
        return Tokens(self.x[index], self.positions[index], self.sizes[index], w, cells)

    def top(self, scores: Tensor, k: int) -> Tokens:
        """Pruning: the k with the highest scores (N,), in their order; ties go to the lower index."""
        return self.take(self.highest(scores, k))

    def highest(self, scores: Tensor, k: int) -> Tensor:
        """What `top` takes: the places, ascending.

        Where tokens are pooled later (`cells`), k are the pooled ones, and each counts by its members' mean score.
        """
        if self.cells is None:
            return top(scores, k)
        names, member = self.cells.unique(return_inverse=True)
        summed = scores.new_zeros(len(names)).index_add(0, member, scores)
        stays = torch.zeros(len(names), dtype=torch.bool, device=scores.device)
        stays[top(summed / torch.bincount(member), k)] = True
        return stays[member].nonzero()[:, 0]

    @property
    def count(self) -> int:
        """How many tokens these are, or are pooled to later."""
        return len(self) if self.cells is None else len(self.cells.unique())

    def merge(self, group: Tensor, at: Tensor, weights: Tensor | None = None) -> Tokens:
        """Merging: M groups become M tokens, each the weighted mean of its members.

        group: (N,) int64 in 0..M-1, or -1 for a token that is dropped. at: (M,) int64, the member whose place each
        merged token takes; ascending keeps the raster order. weights: (N,), of each in its group's mean, scaled to sum
        to 1 there; the sizes if None. Sizes add up.
        """
        m, member = len(at), (group >= 0).nonzero()[:, 0]
        to = group[member]
        weights = (self.sizes if weights is None else weights).to(self.x.dtype)[member]
        weights = weights / weights.new_zeros(m).index_add(0, to, weights)[to]
        x = self.x.new_zeros(m, self.x.shape[1]).index_add(0, to, weights[:, None] * self.x[member])
        alone = torch.bincount(to, minlength=m) == 1  # to the bit as it was
        x = torch.where(alone[:, None], self.x[at], x)
        sizes = self.sizes.new_zeros(m).index_add(0, to, self.sizes[member])
        w = None
        if self.w is not None:
            a = torch.sparse_coo_tensor(torch.stack([to, member]), weights.to(self.w.dtype), (m, len(self)))
            w = torch.sparse.mm(a.coalesce(), self.w).coalesce()
        return Tokens(x, self.positions[at], sizes, w)

    def mixed(self, at: int, weights: Tensor) -> Tokens:
        """One token made anew: in place `at` the mean of all, by weights (N,). Sizes stay: it stands for itself."""
        weights = (weights / weights.sum()).to(self.x.dtype)
        place = torch.tensor([at], device=self.x.device)
        w = self.w
        if w is not None:
            dense = w.to_dense()
            w = dense.index_copy(0, place, (weights.to(w.dtype) @ dense)[None]).to_sparse().coalesce()
        return dataclasses.replace(self, x=self.x.index_copy(0, place, (weights @ self.x)[None]), w=w)


def top(scores: Tensor, k: int) -> Tensor:
    """The k places with the highest scores (N,), ascending: (k,) int64. Ties go to the lower index."""
    return scores.sort(descending=True, stable=True).indices[:k].sort().values


def ascending(group: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Groups (N,) and their places (M,), as `Tokens.merge` takes them, renamed so that the places ascend."""
    at, order = at.sort()
    name = torch.empty_like(order).index_copy_(0, order, torch.arange(len(at), device=at.device))
    return torch.where(group >= 0, name[group], -1), at


class Signals:
    """What a method asked for by `needs`, row by row as its tokens, and a memory for what it wants to know later.

    `signals["cls_attention", -2]` is (N, ...). Names, with the layer (0-based; negative: from the end) they are of;
    HERE is the one that has just run:
        of the tower (all stages but cache; stage tower: layer HERE)
        cls_attention       (N,) attention of the CLS query to each cell, mean over heads. SigLIP has no CLS query:
                            there it is received_attention
        received_attention  (N,) attention that each cell gets, mean over heads and over all queries, CLS included
        tower_attention     (N, heads, N) attention of each cell to each, without CLS's share; of several frames
                            at once (N, heads, h * w), to each cell of its own frame
        tower_keys          (N, heads, e) keys of each cell
        tower_values        (N, heads, e) values; `tower_cls_values` (heads, e) is the CLS's own (stage tower only)
        entropy             (N,) Shannon bits over 256 grey levels of each cell's pixels; layer 0
        of the decoder (stage layer, layer HERE; in stage cache queries and keys alone)
        last_attention      (N,) attention of the token that decides whether to speak, mean over heads
        text_attention      (N,) attention of the text that follows the frame in this step, before the next frame: mean
                            over heads and queries. In a live stream that is the deciding token, or nothing (zeros)
        queries, keys       (N, heads, e), turned by the rotary embedding; keys repeated to as many heads as queries
        attention_in, attention_out, mlp_in, mlp_out    (N, d) of the layer's two halves: inputs behind the norm,
                            outputs before they are added
    Where cells are pooled from several of the tower's own, numbers of the tower are pooled alike (not in stage tower,
    whose tokens are the tower's own cells: there let `Tokens.top` choose, which knows what is pooled later). The conv
    tower has one attention, which pools its CLS: it stands for both attentions of layers -1, -2, ..; all else of a
    tower's attention is refused there, by name. Behind a depth plan, a token that skipped a layer has zeros.
    """

    def __init__(
        self,
        values: dict[tuple[str, int], Tensor] | None = None,
        *,
        memory: dict[str, Any] | None = None,
        text: Tensor | None = None,
        layer: int = -1,
        layers: int = 0,
        total: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.values = values or {}
        self.memory = {} if memory is None else memory  # of this stream; put new tensors in, never write into old ones
        self.text = text  # (question tokens, d) word embeddings of the question; None without one
        self.layer, self.layers = layer, layers  # stage tower, layer and cache: which one has just run, of how many
        self.total = (
            total  # how many tokens the frame(s) had in the beginning: N, unless a cut of this stage came first
        )
        self.generator = generator  # seeded by the method's seed and the frame's number; for methods with `seeded`

    def __getitem__(self, key: tuple[str, int]) -> Tensor:
        if key not in self.values:
            raise InputError(f"the signal {key!r} was not asked for; name it in needs, which has {list(self.values)}.")
        return self.values[key]


@dataclass
class Reduction:
    """What all methods share. Class flags say what a method can do; see the top of this file."""

    keep: float = 0.25  # share of a frame's tokens that is left, in (0, 1]

    title: ClassVar[str] = ""  # as its authors call it
    paper: ClassVar[str] = ""  # address
    stage: ClassVar[Stage] = "tokens"
    streamable: ClassVar[Streamable] = "causal"
    why_not: ClassVar[str] = ""  # a half-sentence: why a live stream cannot have it, where streamable is "whole"
    lookahead: ClassVar[int] = 0  # frames
    trained: ClassVar[bool] = False  # whether the authors train a model for it
    needs_query: ClassVar[bool] = False
    seeded: ClassVar[bool] = False  # has a field `seed`
    merges: ClassVar[bool] = False  # else it only prunes
    ordered: ClassVar[bool] = True  # the tokens' order is kept
    exact: ClassVar[bool] = True  # keeps just as many as `count` says
    when: ClassVar[str] = ""  # a sentence for docs/reductions.md: when to use it

    def __post_init__(self) -> None:
        if isinstance(self.keep, bool) or not isinstance(self.keep, int | float) or not 0 < self.keep <= 1:
            raise InputError(f"keep of {type(self).__name__} is {self.keep!r}; give a share in (0, 1], such as 0.25.")
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            number = {"int": int, "float": int | float, "str": str, "bool": bool}.get(str(each.type), object)
            if not isinstance(value, number) or (isinstance(value, bool) and each.type in ("int", "float")):
                raise InputError(f"{each.name} of {type(self).__name__} is {value!r}; give it a value of {each.type}.")

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        """The signals it asks for: (name, layer)."""
        return ()

    @property
    def needs_attention(self) -> bool:
        return any("attention" in name and name not in ("attention_in", "attention_out") for name, _ in self.needs)

    def cuts(self, layers: int) -> dict[int, float]:
        """Stage tower and layer: after which of `layers` layers `reduce` is called -> what share of the tokens that
        there were in the beginning is left then."""
        return {}

    def frames_at_once(self) -> int:
        """Stage cache: `reduce` is called when so many frames have gone through, with the tokens of all of them."""
        return 1

    def count(self, n: int) -> int:
        """How many of n tokens are left in the end."""
        return keep_count(self.keep, n)

    def prepare(self, tokens: Tokens) -> Tokens:
        """Stages layer and cache: what a frame's tokens become before they enter the decoder, none dropped."""
        return tokens

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        """The method."""
        raise NotImplementedError

    def causal(self) -> Reduction:
        """Itself, or the form of it that a live stream can have. Raises InputError, with the reason, if none."""
        why = {"whole": "it needs the whole video at once", "lookahead": f"it needs {self.lookahead} later frame(s)"}
        if self.streamable in why:
            raise InputError(f"{self.label} cannot stream: {self.why_not or why[self.streamable]}.")
        return self

    def on(
        self,
        model: StreamingVideoLM,
        *,
        question: str | None = None,
        positions: Positions = "keep",
        traced: bool = False,
    ) -> Reducing:
        """A context manager: within it, `model` works with this reduction; behind it, as before, whatever happened.

        question: for methods that need one before they see a frame; they have it as `signals.text`. The decoder's
        attention knows of it only where the stream begins with it: `StreamSession(model, system=question)`.
        positions: of the decoder, "keep" those of the unreduced stream, or "renumber" what is left.
        traced: keep the newest `Tokens` with their `w` in `.last`, as they enter the decoder; behind its newest cut
        they are in `.cuts.now[row, frame]`.
        Raises InputError where model and method do not fit.
        """
        from videollm_mod.reductions.runner import Reducing

        return Reducing(model, self, question=question, positions=positions, traced=traced)

    @property
    def label(self) -> str:
        """The name for people."""
        return self.title or type(self).__name__

    def refuse_gaps(self, tokens: Tokens) -> None:
        """For methods that compare a place with itself in time: InputError unless every frame has all of its cells."""
        rows, columns = tokens.grid
        if len(tokens) != rows * columns * tokens.frame.unique().numel():
            raise InputError(f"{self.label} needs every cell of a frame; put it before what drops some.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them."""
        return {"name": name_of(type(self)), **dataclasses.asdict(self)}


@dataclass
class Compose(Reduction):
    """Several, one after the other; stages must not go backwards. `keep` is ignored: each has its own.

    Its flags are what all of them are together: `streamable` that of the one that can do least, and so on.
    """

    parts: list[Reduction] = field(default_factory=list)
    keep: float = 1.0

    def __init__(self, parts: list[Reduction], *more: Reduction) -> None:
        self.parts, self.keep = list(parts) if isinstance(parts, list | tuple) else [parts], 1.0
        if more:
            raise InputError("a composition takes one list; write Compose([first, second]).")
        if not self.parts:
            raise InputError("a composition of no reductions does nothing; give one or more.")
        for part in self.parts:
            if not isinstance(part, Reduction):
                raise InputError(f"{part!r} is no reduction; give a list of them, such as [Uniform(keep=0.5)].")
        order = [STAGES.index(part.stage) for part in self.parts]
        if order != sorted(order):
            raise InputError(f"{self.label} goes backwards; order the parts by stage: {', '.join(STAGES)}.")
        for flag in ("needs_query", "trained", "seeded", "merges"):
            setattr(self, flag, any(getattr(part, flag) for part in self.parts))
        for flag in ("exact", "ordered"):
            setattr(self, flag, all(getattr(part, flag) for part in self.parts))
        least = max((part.streamable for part in self.parts), key=get_args(Streamable).index)
        self.streamable = least  # type: ignore[misc]

    @property
    def label(self) -> str:
        return " + ".join(part.label for part in self.parts)

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return tuple(dict.fromkeys(need for part in self.parts for need in part.needs))

    def count(self, n: int) -> int:
        """How many are left behind all of them."""
        for part in self.parts:
            n = part.count(n)
        return n

    def causal(self) -> Reduction:
        return Compose([part.causal() for part in self.parts])

    def to_dict(self) -> dict[str, Any]:
        return {"name": "compose", "parts": [part.to_dict() for part in self.parts]}


# -- which there are ---------------------------------------------------------------------------------------------------


@functools.cache
def methods() -> dict[str, type[Reduction]]:
    """Every method in this folder by the name of its file and class: {"uniform": Uniform, ...}, in order of names.

    A file may hold several, such as a method and its causal form: their names are their classes' in snake case. What
    begins with an underscore is none. Raises InputError, with the file's name, for one that does not load.
    """
    package = importlib.import_module(__package__ or "videollm_mod.reductions")
    found: dict[str, type[Reduction]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        try:
            namespace = importlib.import_module(f"{package.__name__}.{module.name}")
        except Exception as error:  # whatever a file of one's own may do
            told = f"{type(error).__name__}: {error}"
            raise InputError(f"reductions/{module.name}.py does not load ({told}); mend it or take it away.") from error
        for _, kind in inspect.getmembers(namespace, inspect.isclass):
            if issubclass(kind, Reduction) and kind.__module__ == namespace.__name__ and module.name != "base":
                name = name_of(kind)
                if name in found:
                    other = found[name].__module__.rpartition(".")[2]
                    raise InputError(f"reductions/{module.name}.py and {other}.py both have a '{name}'; rename one.")
                if not name.startswith("_"):
                    found[name] = kind
    return dict(sorted(found.items()))


def nearest(word: str) -> str | None:
    """The method that somebody may have meant: `FasterVLM`, `fastervlm` and `faster` -> "faster_vlm"."""
    plain = {name.replace("_", ""): name for name in methods()}
    wanted = word.lower().replace("_", "").replace("-", "").replace(" ", "")
    begun = [name for name in plain if wanted and name.startswith(wanted)]
    close = [wanted] if wanted in plain else begun[:1] or difflib.get_close_matches(wanted, plain, 1, 0.7)
    return plain[close[0]] if close else None


def name_of(kind: type[Reduction]) -> str:
    """`FasterVLM` -> "faster_vlm"."""
    word = kind.__name__
    return "".join(
        "_" + c.lower() if i and c.isupper() and (word[i - 1].islower() or word[i + 1 : i + 2].islower()) else c.lower()
        for i, c in enumerate(word)
    )


def from_dict(values: dict[str, Any]) -> Reduction:
    """The inverse of `to_dict`. Raises InputError for an unknown name or field."""
    if not isinstance(values, dict):
        raise InputError(f"a reduction is an object with a name and its fields, not {values!r}.")
    values = dict(values)
    name = values.pop("name", None)
    if name == "compose":
        parts = values.get("parts")
        if not isinstance(parts, list):
            raise InputError(f"parts of a composition is {parts!r}; give a list of reductions.")
        return Compose([from_dict(part) for part in parts])
    if name is None:
        raise InputError('a reduction needs a "name" beside its fields, such as {"name": "uniform", "keep": 0.5}.')
    if name not in methods():
        near = nearest(str(name))
        mend = f"did you mean {near}?" if near else f"take one of {', '.join(methods())}."
        raise InputError(f"there is no reduction {name!r}; {mend}")
    kind = methods()[name]
    known = {each.name for each in dataclasses.fields(kind)}
    if set(values) - known:
        wrong = min(set(values) - known)
        raise InputError(f"the reduction {name} has no field '{wrong}'; it has {', '.join(sorted(known))}.")
    told: dict[str, Any] = {name: tuple(each) if isinstance(each, list) else each for name, each in values.items()}
    return kind(**told)


def parse_reduction(words: str) -> dict[str, Any]:
    """What a person types -> as `to_dict`. Raises InputError.

    "faster_vlm"; "faster_vlm=0.25" for its keep; "grt=0.5+faster_vlm=0.25", one behind the other; and the JSON of
    `to_dict` itself, for all other fields.
    """
    if words.lstrip().startswith("{"):
        try:
            return from_dict(json.loads(words)).to_dict()
        except json.JSONDecodeError as error:
            raise InputError(f"the reduction '{words}' is no JSON ({error}); correct it.") from error
    if "+" in words:
        if not all(part.strip() for part in words.split("+")):
            raise InputError(f"the reduction '{words}' has nothing on one side of a +; write one=0.5+another=0.25.")
        return Compose([from_dict(parse_reduction(part.strip())) for part in words.split("+")]).to_dict()
    name, equals, keep = words.partition("=")
    try:
        values: dict[str, Any] = {"name": name, **({"keep": float(keep)} if equals else {})}
    except ValueError as error:
        raise InputError(f"the reduction '{words}' has no share; write for example {name}=0.25.") from error
    return from_dict(values).to_dict()


def reduction_of(wish: Reduction | dict[str, Any] | str) -> Reduction:
    """A reduction by itself, as `to_dict` has it, or as a person types it. Raises InputError."""
    if isinstance(wish, str):
        wish = parse_reduction(wish)
    wish = from_dict(wish) if isinstance(wish, dict) else wish
    if not isinstance(wish, Reduction):
        raise InputError(f"{wish!r} is no reduction; give one such as Uniform(keep=0.5), or words: uniform=0.5.")
    return wish


def reducing(model: StreamingVideoLM, values: dict[str, Any] | None) -> AbstractContextManager[Any]:
    """A model with a reduction, given as `to_dict` has it, in it; with None, as it is.

    Methods that need a question before they see a frame get what a stream is begun with: the system text.
    """
    return nullcontext() if values is None else from_dict(values).on(model, question=model.settings.system)


def _eye(n: int, like: Tensor) -> Tensor:
    index = torch.arange(n, device=like.device)
    ones = torch.ones(n, dtype=torch.float64, device=like.device)
    return torch.sparse_coo_tensor(torch.stack([index, index]), ones, (n, n)).coalesce()


def _block_diagonal(parts: list[Tensor]) -> Tensor:
    rows = columns = 0
    indices, values = [], []
    for part in parts:
        part = part.coalesce()
        indices.append(part.indices() + torch.tensor([[rows], [columns]], device=part.device))
        values.append(part.values())
        rows, columns = rows + part.shape[0], columns + part.shape[1]
    return torch.sparse_coo_tensor(torch.cat(indices, 1), torch.cat(values), (rows, columns)).coalesce()
