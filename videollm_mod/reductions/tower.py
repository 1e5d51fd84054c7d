"""Inside the tower: the signals that a reduction asks for, behind each token's vector, and pruning between blocks.

The encoder's rows get longer: (frames, 1 + h * w, width + columns). So signals are stored, sliced and batched with the
tokens that they belong to, and whoever hands features around need not know. The CLS's columns are zeros. What the
tower has for its own cells (24x24, say) is pooled to h x w as the cells are.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from videollm_mod.reductions.attention import Heard, listening
from videollm_mod.reductions.base import HERE, Reduction, Signals, Tokens
from videollm_mod.reductions.contract import check_result
from videollm_mod.types import InputError
from videollm_mod.vision import ConvTower, FrameEncoder, TransformersTower

Need = tuple[str, int]
ALIVE: Need = ("alive", 0)
OF_ATTENTION: tuple[str, ...] = ("cls_attention", "received_attention", "tower_attention", "tower_keys", "tower_values")
OF_ATTENTION += ("tower_cls_values",)
OF_PIXELS = ("entropy", "pixels")


class TowerSignals:
    """What a list of reductions needs of an encoder's tower. Raises InputError where the tower has no such thing."""

    def __init__(self, encoder: FrameEncoder, parts: Sequence[Reduction]) -> None:
        self.encoder, self.tower = encoder, encoder.tower
        self.pruning = [part for part in parts if part.stage == "tower"]
        if len(self.pruning) > 1:
            raise InputError(f"{self.pruning[0].label} and {self.pruning[1].label} both prune in the tower; take one.")
        pixels = [part for part in parts if part.stage == "frames"]
        if self.pruning and pixels:
            raise InputError(
                f"{pixels[0].label} chooses among all cells of a picture, and {self.pruning[0].label} has dropped some "
                "in the tower by then; take one."
            )
        self.blocks, self.attentions = blocks_of(encoder)
        wanted = [
            (name, layer)
            for part in parts
            for name, layer in part.needs
            if name in (*OF_ATTENTION, *OF_PIXELS) and layer != HERE
        ]
        wanted += [("pixels", 0)] * any(part.stage == "frames" for part in parts)
        wanted += [ALIVE] * bool(self.pruning)
        self.needs: list[Need] = list(dict.fromkeys(wanted))
        for part in parts:
            for need in part.needs:
                self._check(part, need)
            if part.stage == "tower" and not isinstance(self.tower, TransformersTower):
                raise InputError(f"{part.label} prunes between a tower's blocks; the conv tower has none to prune in.")
            if part.stage == "tower" and (
                wrong := [at for at in part.cuts(len(self.blocks)) if not 0 <= at < len(self.blocks)]
            ):
                raise InputError(f"{part.label} cuts after block {wrong[0]}, but the tower has {len(self.blocks)}.")
        self.columns: dict[Need, slice] = {}
        self.shapes: dict[Need, tuple[int, ...]] = {}
        begin = encoder.width
        for need in self.needs:
            shape = self._shape(need)
            end = begin + int(torch.tensor(shape).prod()) if shape else begin + 1
            self.columns[need], self.shapes[need] = slice(begin, end), shape
            begin = end
        self.width = begin
        self.heard: dict[int, Heard] = {}  # of the forward that runs
        self.there: dict[int, Tensor] = {}  # which cells of the tower's own went into those, where it is pruned

    def __bool__(self) -> bool:
        return bool(self.needs)

    # -- what there is -------------------------------------------------------------------------------------------------

    def _check(self, part: Reduction, need: Need) -> None:
        name, layer = need
        if name not in OF_ATTENTION or layer == HERE:  # of stage tower, which is refused below where there is none
            return
        if isinstance(self.tower, ConvTower):
            if name in ("cls_attention", "received_attention") and layer < 0:
                return  # the attention that pools its CLS: the one query it has
            raise InputError(
                f"{part.label} needs {name} of layer {layer} of the tower, but the conv tower has no attention between "
                "its cells; use a SigLIP or CLIP tower."
            )
        if not -len(self.blocks) <= layer < len(self.blocks):
            raise InputError(
                f"{part.label} needs {name} of layer {layer}, but the tower has {len(self.blocks)} layers; "
                "give it another layer."
            )

    def _shape(self, need: Need) -> tuple[int, ...]:
        """Of one token's number, () for a scalar."""
        name = need[0]
        if name in ("tower_keys", "tower_values"):
            heads = int(self.attentions[0].config.num_attention_heads)
            return heads, self.encoder.width // heads
        if name == "tower_attention":
            return int(self.attentions[0].config.num_attention_heads), self.encoder.grid[0] * self.encoder.grid[1]
        if name == "pixels":
            (h, w), size = self.encoder.grid, self.tower.image_size
            return max(size // h, 1), max(size // w, 1), 3
        return ()

    # -- a forward of the encoder --------------------------------------------------------------------------------------

    def encode(self, images: Tensor) -> Tensor:
        """As FrameEncoder.forward, with the columns: (frames, S, S, 3) uint8 -> (frames, 1 + h * w, self.width)."""
        if self.pruning and len(images) > 1:  # each frame keeps others, and maybe not as many
            return torch.cat([self.encode(image) for image in images.split(1)])
        self.heard, self.there = {}, {}
        with ExitStack() as stack:
            living = self._prune(stack) if self.pruning else None
            self._listen(stack, living)
            tokens = FrameEncoder.forward(self.encoder, images)  # (F, 1 + h * w, width)
        if living is not None:
            tokens = torch.cat([tokens[:, :1], living.undiluted(tokens[:, 1:])], 1)
        columns = [tokens]
        for need in self.needs:
            if living and need == ALIVE:
                numbers = living.cells_alive()[None, :, None]
            else:
                numbers = self._numbers(need, images, living)
            columns.append(nn.functional.pad(numbers.to(tokens), (0, 0, 1, 0)))  # the CLS has none
        self.heard = {}
        return torch.cat(columns, -1)

    def split(self, features: Tensor) -> dict[Need, Tensor]:
        """Columns of wide features (frames, 1 + h * w, ...) -> each signal, (frames, h * w, ...)."""
        if features.shape[-1] != self.width:
            raise InputError(
                f"the features have {features.shape[-1]} columns, the reduction's signals need {self.width}: "
                "encode the frames within the `with` that reduces."
            )
        found = {}
        for need, at in self.columns.items():
            numbers = features[:, 1:, at]  # (frames, h * w, columns)
            found[need] = numbers.unflatten(-1, self.shapes[need]) if self.shapes[need] else numbers[..., 0]
        return found

    def _listen(self, stack: ExitStack, living: Living | None) -> None:
        """Arrange that `self.heard` gets the layers that the columns are made of."""
        layers = {layer for name, layer in self.needs if name in OF_ATTENTION}
        if not layers:
            return
        if isinstance(self.tower, ConvTower):

            def remember(module: Any, args: tuple[Tensor, ...]) -> None:
                self.pooling = module.score(args[0]).softmax(1).mean(-1)  # (F, cells), mean over heads

            stack.callback(self.tower.pool.register_forward_pre_hook(remember).remove)
            return

        def hear(heard: Heard, layer: int) -> None:
            self.heard[layer] = heard
            if living is not None:
                self.there[layer] = living.places()

        wanted = {layer % len(self.blocks) for layer in layers}
        stack.enter_context(listening({self.attentions[layer]: partial(hear, layer=layer) for layer in wanted}))

    def _numbers(self, need: Need, images: Tensor, living: Living | None) -> Tensor:
        """One signal of all frames, pooled: (F, h * w, columns). Of a pruned tower's cells, as its tokens are."""
        name, layer = need
        if name == "entropy":
            native = patch_entropy(images, self.tower.grid)[..., None]
        elif name == "pixels":
            return self._pixels(images)
        elif isinstance(self.tower, ConvTower):
            native = self.pooling.unflatten(1, self.tower.grid)[..., None]
        else:
            layer %= len(self.blocks)
            native = self._of_attention(name, self.heard[layer], self.there.get(layer)).unflatten(1, self.tower.grid)
            if living is not None:
                return living.undiluted(self.encoder.pool(native * living.mask[..., None]))
        return self.encoder.pool(native)

    def _of_attention(self, name: str, heard: Heard, there: Tensor | None) -> Tensor:
        """(F, cells of the tower, columns); `there`: the cells that went in, all if None. Zeros for the others."""
        skipped, n = special_tokens(self.tower), self.tower.grid[0] * self.tower.grid[1]

        def spread(values: Tensor, dim: int) -> Tensor:
            if there is None:
                return values
            shape = [*values.shape[:dim], n, *values.shape[dim + 1 :]]
            return values.new_zeros(shape).index_copy(dim, there, values)

        if name in ("tower_keys", "tower_values"):
            each = heard.keys if name == "tower_keys" else heard.values
            return spread(each[:, :, skipped:].transpose(1, 2).flatten(2), 1)
        if name == "tower_attention":  # to each pooled cell: what goes to its own cells, added up
            maps = torch.stack([attention_map(heard, frame, skipped) for frame in range(len(heard.queries))])
            maps = spread(spread(maps, 3), 2)
            pooled = self.encoder.pool(maps.flatten(0, 2).unflatten(1, self.tower.grid)[..., None])[..., 0]
            per_cell = n / pooled.shape[1]
            return (pooled * per_cell).view(*maps.shape[:3], -1).transpose(1, 2).flatten(2)
        rows = cls_row(self.tower) if name == "cls_attention" else None
        got = torch.stack([attention_got(heard, frame, rows) for frame in range(len(heard.queries))])
        return spread(got[:, skipped:, None], 1)

    def _pixels(self, images: Tensor) -> Tensor:
        (h, w), shape = self.encoder.grid, self.shapes["pixels", 0]
        planes = images.permute(0, 3, 1, 2).float() / 255  # (F, 3, S, S)
        planes = adaptive_avg_pool2d(planes, (h * shape[0], w * shape[1]))
        cells = planes.unflatten(3, (w, -1)).unflatten(2, (h, -1))  # (F, 3, h, p, w, q)
        return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    # -- pruning between the blocks ------------------------------------------------------------------------------------

    def _prune(self, stack: ExitStack) -> Living:
        """Arrange that the one reduction of this stage gets its say after the blocks that it names."""
        living, part = Living(self.encoder), self.pruning[0]
        memory: dict[str, Any] = {}  # of this frame
        after, ears = set(part.cuts(len(self.blocks))), {}
        heard: dict[int, Heard] = {}
        for layer in after if part.needs else ():
            ears[self.attentions[layer]] = lambda told, layer=layer: heard.__setitem__(layer, told)
        stack.enter_context(listening(ears))
        skipped = special_tokens(self.tower)

        def prune(layer: int, hidden: Tensor) -> Tensor:  # (1, skipped + living, d)
            tokens = living.tokens(hidden[0, skipped:])
            values = {(name, at): self._each(name, heard[layer]) for name, at in part.needs if at == HERE}
            signals = Signals(values, memory=memory, layer=layer, layers=len(self.blocks), total=living.total)
            left = part.reduce(tokens, signals)
            check_result(part, tokens, left)
            living.now(left)
            return torch.cat([hidden[:, :skipped], left.x[None]], 1)

        last = len(self.blocks) - 1
        for layer, block in enumerate(self.blocks):
            if layer in after or layer == last:

                def hook(module: Any, args: Any, output: Any, layer: int = layer) -> Any:
                    hidden = output[0] if isinstance(output, tuple) else output
                    if layer in after:
                        hidden = prune(layer, hidden)
                    if layer == last:  # the rest of the tower gets its whole grid
                        hidden = torch.cat([hidden[:, :skipped], living.spread(hidden[0, skipped:])[None]], 1)
                    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

                stack.callback(block.register_forward_hook(hook).remove)
        head = getattr(getattr(self.tower, "model", None), "head", None)
        if isinstance(head, nn.Module) and not self.tower.family.cls_is_first:  # type: ignore[union-attr]

            def only_living(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                hidden = args[0] if args else kwargs["hidden_state"]
                mask = None if len(args) < 2 else args[1]
                left = hidden[:, living.mask.flatten()]
                return ((left, *([] if mask is None else [mask[..., : left.shape[1]]])), {})

            stack.callback(head.register_forward_pre_hook(only_living, with_kwargs=True).remove)
        return living

    def _each(self, name: str, heard: Heard) -> Tensor:
        """A signal of the block that has just run, of the one frame: (living, ...)."""
        skipped = special_tokens(self.tower)
        if name == "tower_cls_values":
            if cls_row(self.tower) is None:  # without a CLS the mean stands in for it
                return heard.values[0].mean(1)
            return heard.values[0, :, 0]
        if name in ("tower_keys", "tower_values"):
            each = heard.keys if name == "tower_keys" else heard.values
            return each[0, :, skipped:].transpose(0, 1)
        if name == "tower_attention":
            return attention_map(heard, 0, skipped).transpose(0, 1)
        return attention_got(heard, 0, cls_row(self.tower) if name == "cls_attention" else None)[skipped:]


class Living:
    """Which of a frame's cells, in the tower's own grid, are still there."""

    def __init__(self, encoder: FrameEncoder) -> None:
        self.encoder, (rows, columns), (h, w) = encoder, encoder.tower.grid, encoder.grid
        device = next(encoder.parameters()).device
        row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
        # of which pooled cell each is a part; where pooled cells overlap, of the one that has its beginning
        self.cells = (row[:, None] * h // rows * w + column * w // columns).flatten()
        self.grid, self.total = (rows, columns), h * w
        self.mask = torch.ones(rows, columns, dtype=torch.bool, device=device)

    def places(self) -> Tensor:
        """(living,) int64, ascending."""
        return self.mask.flatten().nonzero()[:, 0]

    def undiluted(self, pooled: Tensor) -> Tensor:
        """Means over all of a cell's own, zeros where nothing lives -> means over the living: (1, h * w, d)."""
        share = self.encoder.pool(self.mask.to(pooled)[None, ..., None])  # (1, h * w, 1), 1 where all live
        return torch.where(self.cells_alive()[:, None], pooled / share.clamp(min=1e-6), torch.zeros_like(pooled))

    def tokens(self, x: Tensor) -> Tokens:
        """(living, d) -> tokens; `cells` says which go together."""
        at = self.places()
        places = torch.stack([torch.zeros_like(at), at // self.grid[1], at % self.grid[1]], 1)
        whole = self.total == len(self.cells)
        return Tokens(x, places, torch.ones(len(at), device=x.device), None, None if whole else self.cells[at])

    def now(self, tokens: Tokens) -> None:
        """What is left."""
        self.mask = torch.zeros_like(self.mask)
        self.mask[tokens.positions[:, 1], tokens.positions[:, 2]] = True

    def spread(self, x: Tensor) -> Tensor:
        """(living, d) -> (rows * columns, d), zeros where nothing lives."""
        mask = self.mask.flatten()
        return x.new_zeros(len(mask), x.shape[1]).masked_scatter(mask[:, None], x)

    def cells_alive(self) -> Tensor:
        """(h * w,) bool: pooled cells of which something lives."""
        alive = torch.zeros(self.total, dtype=torch.bool, device=self.mask.device)
        alive[self.cells[self.mask.flatten()]] = True
        return alive


def blocks_of(encoder: FrameEncoder) -> tuple[list[nn.Module], list[Any]]:
    """A tower's blocks and their attentions, in order; none of a conv tower."""
    if not isinstance(encoder.tower, TransformersTower):
        return [], []
    lists = [module for module in encoder.tower.model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    for blocks in lists:
        attentions = [next((m for m in block.modules() if hasattr(m, "q_proj")), None) for block in blocks]
        if all(attention is not None for attention in attentions):
            return list(blocks), attentions
    return [], []


def special_tokens(tower: Any) -> int:
    """How many tokens stand before a tower's cells: CLS and registers."""
    return int(getattr(tower, "skipped", 0))


def cls_row(tower: Any) -> int | None:
    """Where a tower's CLS is among its tokens; None if it has none (SigLIP): then all queries stand in for it."""
    return 0 if tower.family.cls_is_first else None


def attention_map(heard: Heard, frame: int, skipped: int) -> Tensor:
    """(heads, cells, cells): row i, what cell i attends to; what goes to the CLS left out of it."""
    rows = torch.arange(skipped, heard.queries.shape[2], device=heard.keys.device)
    return heard.attention(rows, batch=frame)[..., skipped:]


def attention_got(heard: Heard, frame: int, row: int | None) -> Tensor:
    """(tokens,) attention that each token of a frame gets, mean over heads, from one query or as a mean over all."""
    tokens = heard.keys.shape[2]
    rows = torch.arange(heard.queries.shape[2], device=heard.keys.device) if row is None else torch.tensor([row])
    got = heard.keys.new_zeros(tokens, dtype=torch.promote_types(heard.keys.dtype, torch.float32))
    for part in rows.split(256):  # a map of all queries at once would be large
        got = got + heard.attention(part.to(heard.keys.device), batch=frame).sum((0, 1))
    return got / (len(rows) * heard.queries.shape[1])


def patch_entropy(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Shannon entropy in bits over 256 grey levels of each cell: (F, S, S, 3) uint8 -> (F, rows, columns) float32."""
    grey = (images.float() @ images.new_tensor([0.299, 0.587, 0.114], dtype=torch.float32)).round().long()  # (F, S, S)
    p, q = max(grey.shape[1] // grid[0], 1), max(grey.shape[2] // grid[1], 1)
    cells = grey[:, : p * grid[0], : q * grid[1]].unflatten(2, (grid[1], q)).unflatten(1, (grid[0], p))
    cells = cells.permute(0, 1, 3, 2, 4).flatten(3)  # (F, rows, columns, p * q)
    ones = torch.ones_like(cells, dtype=torch.float32)
    counts = torch.zeros(*cells.shape[:3], 256, device=cells.device).scatter_add_(3, cells, ones)
    share = counts / cells.shape[3]
    return -(share * share.clamp(min=1e-12).log2()).sum(3)
