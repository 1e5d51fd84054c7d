"""First stage: the tower learns to name what is where. Without it the decoder learns nothing in the same time.

Linear heads on every cell predict what covers it, the colour, shape and size of the thing there and where its centre
is; on the CLS token they count the things and name the background's colour. The heads are thrown away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from videollm_mod.pace import Interrupts
from videollm_mod.train.data import ROLES, CellTruth, TowerSamples, batches
from videollm_mod.train.run import Run
from videollm_mod.vision import FrameEncoder
from videollm_mod.world import COLOURS, SHAPES, SIZES


class CellHeads(nn.Module):
    """Tower vectors -> what is where."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = [len(ROLES), len(COLOURS), len(SHAPES), len(SIZES), 1, 2]
        self.cell = nn.Linear(width, sum(self.parts))
        self.count = nn.Linear(width, 4)
        self.scene = nn.Linear(width, 3)

    def loss(self, tokens: Tensor, truth: CellTruth) -> tuple[Tensor, dict[str, float]]:
        """tokens: (F, 1 + h * w, width). Returns the loss and, for the log, how often each answer is right.

        "offset" is the mean error of a centre within its cell, in cells, "scene" that of the background's colour.
        """
        cover, colour, shape, size, centre, offset = self.cell(tokens[:, 1:]).float().split(self.parts, -1)
        total = binary_cross_entropy_with_logits(cover, truth.cover.flatten(1, 2))
        right: dict[str, float] = {}
        for name, logits in (("colour", colour), ("shape", shape), ("size", size)):
            label = getattr(truth, name).flatten(1, 2)
            known = label >= 0
            if known.any():
                total = total + cross_entropy(logits[known], label[known])
                right[name] = float((logits[known].argmax(-1) == label[known]).float().mean())
        here = truth.centre.flatten(1, 2)
        total = total + 2 * binary_cross_entropy_with_logits(centre[..., 0], here)
        if here.any():
            there = here.bool()
            apart = (offset[there].sigmoid() - truth.offset.flatten(1, 2)[there]).abs().mean()
            total = total + 4 * apart  # what moves, moves by half a cell per frame
            right["offset"] = float(apart.detach())
        count = self.count(tokens[:, 0]).float()
        total = total + 0.3 * cross_entropy(count, truth.count)
        right["count"] = float((count.argmax(-1) == truth.count).float().mean())
        shade = (self.scene(tokens[:, 0]).float() - truth.scene).abs().mean()
        total = total + 2 * shade  # nothing else would make CLS tell one scene from another
        right["scene"] = float(shade.detach())
        return total, right


def train_tower(encoder: FrameEncoder, run: Run, workers: int, interrupts: Interrupts) -> None:
    """Train `encoder` in place on single frames of the first phase's world; goes on from a checkpoint of this stage."""
    recipe, stage = run.recipe, run.recipe.tower_stage
    heads = CellHeads(encoder.width)
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=stage.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.lr, total_steps=stage.steps, pct_start=0.05)
    samples = TowerSamples(stage, recipe.phases[0].world, recipe.grid, recipe.seed)
    parts: dict[str, Any] = {"encoder": encoder, "heads": heads, "optimiser": optimiser, "schedule": schedule}
    step, mean_loss = 0, 0.0
    if run.state is not None:
        for name, part in parts.items():
            part.load_state_dict(run.state[name])
        step, mean_loss = run.state["step"], run.state["mean_loss"]

    def save() -> None:
        run.save("tower", step, mean_loss=mean_loss, **{name: part.state_dict() for name, part in parts.items()})

    try:
        for items in batches(samples, stage.streams, step * stage.streams, len(samples), workers):
            with interrupts.shielded():
                truth = CellTruth(*(torch.cat([getattr(i, f) for i in items]) for f in CellTruth.__dataclass_fields__))
                with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                    tokens = encoder(truth.frames)
                    loss, right = heads.loss(tokens, truth)
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, recipe.clip)
                optimiser.step()
                schedule.step()
                step += 1
                mean_loss += (float(loss.detach()) - mean_loss) / min(step, 50)
                if step % 50 == 0 or step == stage.steps:
                    run.log("tower", step, loss=round(mean_loss, 4), **{k: round(v, 4) for k, v in right.items()})
                if run.due:
                    save()
    except KeyboardInterrupt:
        if not interrupts.shield:  # else a second Ctrl-C came in the middle of a step
            save()
        raise
