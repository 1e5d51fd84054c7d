"""First stage: the tower learns to name what is where. Without it the decoder learns nothing in the same time.

Linear heads on every cell predict what covers it, the colour, shape and size of the thing there and where its centre
is; on the CLS token they count the things and name the background's colour. The heads are thrown away, in the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from videollm_mod.train.data import NAMED, ROLES, CellTruth, TowerSamples, cell_truth, steps_of
from videollm_mod.train.recipe import Recipe
from videollm_mod.train.stage import Counts, Stage, share
from videollm_mod.vision import FrameEncoder
from videollm_mod.world import COLOURS, SHAPES, SIZES

LABELS = ("frames", "colour", "shape", "size", "offset")  # of the loss; "frames": what every frame or cell tells


class CellHeads(nn.Module):
    """Tower vectors -> what is where."""

    def __init__(self, width: int, names: int = len(SHAPES)) -> None:
        super().__init__()
        self.parts = [len(ROLES), len(COLOURS), names, len(SIZES), 1, 2]
        self.cell = nn.Linear(width, sum(self.parts))
        self.count = nn.Linear(width, 4)
        self.scene = nn.Linear(width, 3)

    def loss(
        self, tokens: Tensor, truth: CellTruth, shares: Mapping[str, float] | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """tokens: (F, 1 + h * w, width). Returns the loss and, for the log, how often each answer is right.

        "offset" is the mean error of a centre within its cell, in cells, "scene" that of the background's colour.
        shares: for each of LABELS the part that these frames have in the mean over a whole step; all, if None.
        """
        of = dict.fromkeys(LABELS, 1.0) if shares is None else shares
        cover, colour, shape, size, centre, offset = self.cell(tokens[:, 1:]).float().split(self.parts, -1)
        total = of["frames"] * binary_cross_entropy_with_logits(cover, truth.cover.flatten(1, 2))
        right: dict[str, float] = {}
        for name, logits in (("colour", colour), ("shape", shape), ("size", size)):
            label = getattr(truth, name).flatten(1, 2)
            known = label >= 0
            if known.any():
                total = total + of[name] * cross_entropy(logits[known], label[known])
                right[name] = of[name] * float((logits[known].argmax(-1) == label[known]).float().mean())
        here = truth.centre.flatten(1, 2)
        total = total + 2 * of["frames"] * binary_cross_entropy_with_logits(centre[..., 0], here)
        if here.any():
            there = here.bool()
            apart = (offset[there].sigmoid() - truth.offset.flatten(1, 2)[there]).abs().mean()
            total = total + 4 * of["offset"] * apart  # what moves, moves by half a cell per frame
            right["offset"] = of["offset"] * float(apart.detach())
        count = self.count(tokens[:, 0]).float()
        total = total + 0.3 * of["frames"] * cross_entropy(count, truth.count)
        right["count"] = of["frames"] * float((count.argmax(-1) == truth.count).float().mean())
        shade = (self.scene(tokens[:, 0]).float() - truth.scene).abs().mean()
        total = total + 2 * of["frames"] * shade  # nothing else would make CLS tell one scene from another
        right["scene"] = of["frames"] * float(shade.detach())
        return total, right


def names_of(recipe: Recipe) -> int:
    """How many names a thing of the recipe's streams can have."""
    return len(NAMED) if recipe.has_cameras else len(SHAPES)


def labels_of(truth: CellTruth) -> dict[str, int]:
    """How many there are of each of LABELS."""
    named = [int((getattr(truth, name) >= 0).sum()) for name in LABELS[1:4]]
    return dict(zip(LABELS, (len(truth.frames), *named, int(truth.centre.sum()))))


class TowerStage(Stage):
    """Trains an encoder in place, on single frames of the first phase's world."""

    name = "tower"
    log_every = 50

    def __init__(self, encoder: FrameEncoder, recipe: Recipe) -> None:
        super().__init__()
        self.encoder, self.heads = encoder, CellHeads(encoder.width, names_of(recipe))
        assert recipe.tower_stage is not None
        self.recipe, self.settings = recipe, recipe.tower_stage
        self.order = steps_of(self.settings.steps, self.settings.streams)

    def samples(self) -> TowerSamples:
        return TowerSamples(self.settings, self.recipe.phases[0], self.recipe.grid, self.recipe.seed)

    def counts(self, items: list[CellTruth]) -> dict[str, int]:
        found = [labels_of(item) for item in items]
        return {name: sum(each[name] for each in found) for name in LABELS}

    def forward(
        self, items: list[CellTruth], step: int, total: Counts | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        shares = None
        if total is not None:
            own = self.counts(items)
            shares = {name: share(own, total, name) for name in own}
        truth = CellTruth.joined(items or [self._blank()], next(self.parameters()).device)
        loss, right = self.heads.loss(self.encoder(truth.frames), truth, shares)
        return loss, {"loss": float(loss.detach()), **right}

    def _blank(self) -> CellTruth:
        """A black frame of which nothing is known."""
        (h, w), side = self.recipe.grid, self.encoder.tower.image_size
        frames = torch.zeros(1, side, side, 3, dtype=torch.uint8)
        return cell_truth(frames, [[]], torch.zeros(1, 3), (h, w))

    def optimiser(self) -> torch.optim.Optimizer:
        parameters = [*self.encoder.parameters(), *self.heads.parameters()]
        return torch.optim.AdamW(parameters, lr=self.settings.lr, weight_decay=self.recipe.weight_decay)

    def schedule(self, optimiser: torch.optim.Optimizer) -> LRScheduler:
        return OneCycleLR(optimiser, self.settings.lr, total_steps=self.settings.steps, pct_start=0.05)

    def summary(self, means: dict[str, float], step: int, numbers: dict[str, float]) -> dict[str, float]:
        """The mean loss of the last 50 steps or so; what is right is shown of the newest one."""
        mean = means.get("loss", 0.0)
        means["loss"] = mean + (numbers["loss"] - mean) / min(step, 50)
        return {**numbers, "loss": means["loss"]}
