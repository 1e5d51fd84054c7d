"""The run: tower stage, then streams, and what validation measures.

On a CPU with the same number of threads, a resumed run continues the very same curve: samples are numbered, not drawn.
Under torchrun or `accelerate launch` several processes train together what one would train alone (stage.py says how).
"""

from __future__ import annotations

import dataclasses
import math
from collections import UserDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from videollm_mod.adapters import has_lora
from videollm_mod.depth.swap import find_decoder
from videollm_mod.dialogue import IGNORE, Batch, Stream, collate
from videollm_mod.model import Output, StreamingVideoLM
from videollm_mod.pace import catch_interrupts
from videollm_mod.reductions import reducing
from videollm_mod.train.build import build
from videollm_mod.train.changes import NAMES as CHANGE_LABELS
from videollm_mod.train.changes import ChangeHead, outputs_of
from videollm_mod.train.data import CELL_STRIDE, CellTruth, StreamSample, StreamSamples, steps_of, stream_sample
from videollm_mod.train.devices import World, checkpoint_layers, connect, patient, whole, whole_weights
from videollm_mod.train.recipe import Recipe
from videollm_mod.train.run import Guest, Log, Run, check_folder
from videollm_mod.train.stage import Counts, Stage, share, train_stage
from videollm_mod.train.tower import LABELS as CELL_LABELS
from videollm_mod.train.tower import CellHeads, TowerStage, labels_of, names_of
from videollm_mod.types import InputError
from videollm_mod.vision import FrameEncoder, tower_from_config

M = TypeVar("M", bound=nn.Module)


def train(
    recipe: Recipe, folder: Path, *, resume: bool = False, workers: int = 1, show: Log = lambda line: None
) -> Path:
    """Run a recipe in `folder`; returns the folder of the finished model. `show` gets every log line as it is written,
    in the main process alone, which also is the only one that writes.

    Ctrl-C ends the step that runs, saves and raises KeyboardInterrupt; `resume` goes on from there. Raises InputError
    when the folder holds a run and `resume` is off, or holds one of another recipe.

    A recipe with a first run trains that one in FOLDER/first, unless it is finished; in its lines that `show` gets,
    "first " stands before the stage.
    """
    world = connect()
    if recipe.first is not None:
        recipe = _after_first(recipe, recipe.first, folder, resume=resume, workers=workers, show=show)
    if world.sharded:
        recipe = dataclasses.replace(recipe, sharding="fsdp2")
    world.agreed(lambda: check_folder(recipe, folder, resume))
    model = build(recipe)  # before the run is opened: what it refuses leaves no folder that the next try stumbles over
    run = world.agreed(lambda: Run(recipe, folder, resume=resume, show=show)) or Guest(recipe, folder)
    if recipe.checkpointing:
        checkpoint_layers(model.lm)
    with catch_interrupts() as interrupts, patient(interrupts, world):
        cells = None
        if recipe.tower_stage is not None:
            tower = TowerStage(model.encoder, recipe)
            train_stage(tower, run, workers, interrupts, world)
            cells = tower.heads if recipe.cell_weight else None
            if world.size > 1 and recipe.sharding == "fsdp2":  # for the next stage to share out in its own way
                model.encoder = _whole_again(model.encoder)
                cells = cells and _unshared(cells, CellHeads(model.encoder.width, names_of(recipe)))
        with reducing(model, recipe.reduction):
            train_stage(StreamStage(model, recipe, cells), run, workers, interrupts, world)
    with whole_weights(model, keep=world.main):
        if world.main:
            with run.replacing("model") as unfinished:
                model.eval().save_pretrained(unfinished, dtype=stored_as(model))
    run.close()
    world.first(None)  # so that whoever goes on from the model finds it
    return folder / "model"


def _after_first(recipe: Recipe, first: Recipe, folder: Path, *, resume: bool, workers: int, show: Log) -> Recipe:
    """The recipe with the model of its first run to go on from, which is trained if it is not there yet."""
    world, home = connect(), folder / "first"
    recipe = dataclasses.replace(recipe, first=None, start=str(home / "model"))

    def finished() -> bool:
        check_folder(recipe, folder, resume)
        check_folder(first, home, resume)
        return (home / "model").is_dir()

    def show_first(line: dict[str, Any]) -> None:
        show({**line, "stage": f"first {line['stage']}"})

    if not world.first(world.agreed(finished)):
        train(first, home, resume=resume, workers=workers, show=show_first)
    return recipe


class Told(UserDict[int, Tensor]):
    """What layers tell, each under its number. No dict: FSDP2 hands a copy of one to a layer, which nobody reads."""


def _whole_again(encoder: FrameEncoder) -> FrameEncoder:
    """A new encoder with the weights of one that is shared out."""
    return _unshared(encoder, FrameEncoder(tower_from_config(encoder.tower.to_config()), encoder.grid))


def _unshared(old: M, new: M) -> M:
    """`new` with the weights of `old`, which are shared out."""
    with whole_weights(old, keep=True):
        new.load_state_dict(old.state_dict())
    return new


class StreamStage(Stage):
    """The second stage: trains a model in place, on whole streams."""

    name = "stream"
    log_every = 20

    def __init__(self, model: StreamingVideoLM, recipe: Recipe, cells: CellHeads | None = None) -> None:
        super().__init__()
        self.model, self.head, self.recipe = model, ChangeHead(model), recipe
        # the tower stage's heads, where its loss goes on in this one
        self.cells = cells or (CellHeads(model.encoder.width, names_of(recipe)) if recipe.cell_weight else None)
        self.order = []
        first = 0
        for phase in recipe.phases:
            self.order += steps_of(phase.steps, phase.streams, first)
            first += phase.steps * phase.streams
        model.encoder.requires_grad_(recipe.tower_lr > 0)
        for name, parameter in model.lm.named_parameters():
            if "depth_expert" in name:
                parameter.requires_grad_(recipe.train_experts)
        if has_lora(model):  # 16 GB less in each checkpoint of an 8B model
            towered = "model.encoder." if recipe.tower_stage is not None else None  # as the stage before left it
            self.frozen = frozenset(
                name
                for name, parameter in self.named_parameters()
                if not parameter.requires_grad and not (towered and name.startswith(towered))
            )

    def samples(self) -> StreamSamples:
        return StreamSamples(self.recipe)

    def units(self) -> list[nn.Module]:
        return [*find_decoder(self.model.lm).layers, self.model.encoder.tower]

    def counts(self, items: list[StreamSample]) -> dict[str, int]:
        """Labels of replies and of decisions, vision tokens, labels of what changed, and of cells if they count."""
        of_cells = [f"cell_{name}" for name in CELL_LABELS] if self.cells is not None else []
        found = dict.fromkeys(("lm", "stream", "vision", *CHANGE_LABELS, *of_cells), 0)
        for item in items:
            example = self.model.template.encode(item.segments)
            learned = example.labels != IGNORE
            found["lm"] += int((learned & ~example.decision).sum())
            found["stream"] += int((learned & example.decision).sum())
            found["vision"] += int((example.frame_index >= 0).sum())
            if item.changes is not None:
                for name, labels in zip(CHANGE_LABELS, item.changes.unbind(-1)):
                    found[name] += int((labels != IGNORE).sum())
            if self.cells is not None and item.cells is not None:
                for name, labels_there in labels_of(item.cells).items():
                    found[f"cell_{name}"] += labels_there
        return found

    def forward(
        self, items: list[StreamSample], step: int, total: Counts | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """The LM's and the streams' loss are divided by the labels of the whole step, those on what changed by theirs.

        The balance is not: each part of a step has its own mean score, and counts by its number of vision tokens.
        """
        self._keep(min(1.0, step / self.recipe.keep_warmup) if self.recipe.keep_warmup else 1.0)
        recipe, scores = self.recipe, Told()
        own = self.counts(items) if total is not None else {}
        if not any(len(item.frames) for item in items):
            items = [*items, self._blank()]
        with self.head.listening(self.model) as hidden, outputs_of(self.model.encoder) as encoded:
            output, batch = forward(
                self.model,
                items,
                train_tower=recipe.tower_lr > 0,
                scores_out=scores if recipe.balance else None,
                label_count=total["lm"] + total["stream"] if total is not None else None,
            )
        assert output.loss is not None and output.lm_loss is not None and output.stream_loss is not None
        changes, recall = self._changes(hidden[0], items, batch.frame_index, step, own, total)
        balance = share(own, total, "vision") * self._balance(scores, batch.frame_index)
        cells = self._cells(encoded, items, own, total)
        aids = recipe.change_weight * changes + recipe.cell_weight * cells + recipe.balance * balance
        return output.loss + aids, {
            "loss": float(output.loss.detach()),
            "lm_loss": share(own, total, "lm") * float(output.lm_loss),
            "stream_loss": share(own, total, "stream") * float(output.stream_loss),
            "change_loss": float(changes.detach()),
            **({"cell_loss": float(cells.detach())} if self.cells is not None else {}),
            **({"balance_loss": float(balance.detach())} if scores else {}),
            **{f"{name}_recall": value for name, value in recall.items()},
        }

    def _blank(self) -> StreamSample:
        """A stream of one black frame of which nothing is learned."""
        side, tokens = self.model.encoder.tower.image_size, self.model.encoder.tokens_per_frame
        return StreamSample(
            frames=torch.zeros(1, side, side, 3, dtype=torch.uint8),
            segments=[Stream(1, learn=False)],
            matter=torch.zeros(1, tokens),
            changes=torch.full((1, tokens, len(CHANGE_LABELS)), IGNORE),
        )

    def _changes(
        self,
        hidden: Tensor,
        items: list[StreamSample],
        frame_index: Tensor,
        step: int,
        own: Counts,
        total: Counts | None,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of the change head, and its recalls for the log; 0 where nobody knows what changed."""
        known = [item.changes for item in items if item.changes is not None]
        if total is None:
            shares = None
        else:
            shares = {name: share(own, total, name) for name in CHANGE_LABELS}
            if not any(total[name] for name in CHANGE_LABELS):
                known = []
            elif not any(own[name] for name in CHANGE_LABELS) and self.recipe.change_weight:
                return self.head.nothing(hidden), {}
        if not known or not self.recipe.change_weight:
            return hidden.new_zeros((), dtype=torch.float32), {}
        before_weight = self.recipe.phase_of(step).before_weight
        return self.head.loss(hidden, frame_index, torch.cat(known).to(hidden.device), before_weight, shares)

    def _cells(self, encoded: list[Tensor], items: list[StreamSample], own: Counts, total: Counts | None) -> Tensor:
        """The tower stage's loss on every CELL_STRIDE-th frame of each stream; 0 where nobody knows what is where.

        encoded: what the encoder gave, (frames, tokens, width); nothing where all streams came as features.
        """
        if self.cells is None:
            return torch.zeros((), device=self.model.device)
        if not any(item.cells for item in items):  # gradients of 0, for processes that wait for them
            return sum((p.sum() * 0 for p in self.cells.parameters()), torch.zeros((), device=self.model.device))
        per_stream = encoded[0].split([len(item.frames) for item in items])
        known = [(each[::CELL_STRIDE], item.cells) for each, item in zip(per_stream, items) if item.cells]
        truth = CellTruth.joined([cells for _, cells in known], encoded[0].device)
        shares = None if total is None else {name: share(own, total, f"cell_{name}") for name in CELL_LABELS}
        return self.cells.loss(torch.cat([each for each, _ in known]), truth, shares)[0]

    def _balance(self, scores: Told, frame_index: Tensor) -> Tensor:
        """How far the mean sigma(score) of all vision tokens is from what each layer keeps: squared, mean over layers.

        With the gate `straight`, every kept token that helps pushes its score up, and in the end all are open. This
        term closes as many as it opens; it also reaches the tokens that were not kept.
        """
        ratios = self.model.plan.ratios(self.model.num_layers)
        vision = frame_index >= 0
        parts = [(each[vision].sigmoid().mean() - (ratios[layer] or 0.0)).square() for layer, each in scores.items()]
        return torch.stack(parts).mean() if parts else torch.zeros((), device=self.model.device)

    def optimiser(self) -> torch.optim.Optimizer:
        def decays(tensor: Tensor) -> bool:
            return tensor.dim() > 1

        rest = [p for name, p in self.named_parameters() if not name.startswith("model.encoder.")]
        recipe = self.recipe
        groups: list[dict[str, Any]] = [
            {"params": [p for p in rest if decays(p)], "weight_decay": recipe.weight_decay},
            {"params": [p for p in rest if not decays(p)], "weight_decay": 0.0},
        ]
        if recipe.tower_lr > 0:
            tower = list(self.model.encoder.parameters())
            groups.append({"params": tower, "weight_decay": recipe.weight_decay, "lr": recipe.tower_lr})
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))

    def schedule(self, optimiser: torch.optim.Optimizer) -> LRScheduler:
        """Linear warm-up, then a cosine to `final_lr`."""
        recipe = self.recipe

        def share(step: int) -> float:
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / recipe.steps)))
            return (recipe.final_lr + (1 - recipe.final_lr) * cosine) * min(1.0, (step + 1) / max(recipe.warmup, 1))

        return LambdaLR(optimiser, share)

    def clipped(self) -> Iterable[nn.Parameter]:
        return self.model.parameters()  # the head's come and go with rare changes, and would shrink all others

    def gradients(self) -> dict[str, float]:
        """The mean norm of the experts' gradients: a router that is not trained is the field's known fault."""
        experts = [p.grad for name, p in self.named_parameters() if "depth_expert.weight" in name]
        norms = [float(whole(grad.norm())) for grad in experts if grad is not None]
        return {"expert_gradient": sum(norms) / max(len(norms), 1)}

    def summary(self, means: dict[str, float], step: int, numbers: dict[str, float]) -> dict[str, float]:
        """Means over about 20 steps."""
        for name, value in numbers.items():
            means[name] = means.get(name, value) + 0.05 * (value - means.get(name, value))
        return means

    def validates(self, step: int) -> bool:
        return step % self.recipe.validate_every == 0 or step == self.recipe.steps

    def validate(self) -> dict[str, float]:
        self._keep(1.0)
        return validate(self.model, self.recipe, self.world)

    def _keep(self, share: float) -> None:
        """Let routed layers keep, of 1 - ratio, this share less: 0 = all tokens, 1 = what the plan says."""
        ratios = self.model.plan.ratios(self.model.num_layers)
        for layer, ratio in zip(find_decoder(self.model.lm).layers, ratios):
            layer.depth_ratio = ratio if ratio is None or share == 1 else 1 - share * (1 - ratio)

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, dtype=stored_as(self.model))


def stored_as(model: StreamingVideoLM) -> torch.dtype | None:
    """What a finished model's weights are rounded to: half precision; LoRA's, connector and experts stay as learned."""
    return None if has_lora(model) else torch.float16


def forward(
    model: StreamingVideoLM,
    items: list[StreamSample],
    *,
    train_tower: bool = False,
    kept_out: dict[int, Tensor] | None = None,
    scores_out: Told | None = None,
    label_count: int | None = None,
) -> tuple[Output, Batch]:
    """One pass over a batch of streams with their labels; the options are those of the model's forward."""
    batch = collate([model.template.encode(item.segments) for item in items])
    with torch.set_grad_enabled(train_tower and torch.is_grad_enabled()):
        features = _encoded(model, items)
    # No attention mask: padding stands on the right, where causal attention never looks, and it has no labels. A mask
    # would give the same numbers at twice the cost.
    scores = [item.matter for item in items if item.matter is not None] if model.plan.scorer == "given" else []
    if model.plan.scorer == "given" and len(scores) < len(items):
        raise InputError("the scorer 'given' needs streams of the coloured shapes' world alone; take another scorer.")
    output = model(
        batch.input_ids.to(model.device),
        batch.frame_index,  # read on the CPU, where it is
        features,
        frame_scores=torch.cat(scores) if scores else None,
        labels=batch.labels.to(model.device),
        decision=batch.decision.to(model.device),
        kept_out=kept_out,
        scores_out=scores_out,  # type: ignore[arg-type]
        label_count=label_count,
    )
    return output, batch


def _encoded(model: StreamingVideoLM, items: list[StreamSample]) -> Tensor:
    """The tokens of all frames, (frames, 1 + h * w, width): encoded, or stored with their sample."""
    if all(item.features is None for item in items):
        return model.encoder(torch.cat([item.frames for item in items]).to(model.device))
    stored = [item.features for item in items if item.features is not None]
    assert len(stored) == len(items), "a file has features of all its videos, or of none"
    return torch.cat(stored).to(model.device, next(model.connector.parameters()).dtype)


@torch.no_grad()
def validate(model: StreamingVideoLM, recipe: Recipe, world: World | None = None) -> dict[str, float]:
    """Teacher-forced on validation streams of the longest phase: losses; decisions, words and whole sentences right.

    Several processes take turns, and all get the numbers of all streams. They make the same number of passes, whether
    there are streams left or not: where weights are shared out, a pass is a common one.
    """
    world = world or World()
    model.eval()
    scores: dict[int, dict[str, float]] = {}
    phase = max(recipe.phases, key=lambda phase: phase.world.seconds)
    for first in range(0, recipe.validation_streams, world.size):
        number = min(first + world.rank, recipe.validation_streams - 1)
        sample, kept = stream_sample("validation", number, phase, recipe), dict[int, Tensor]()
        output, batch = forward(model, [sample], kept_out=kept)
        scores[number] = _score(model, output, batch)
        if model.reducing is None:  # with a reduction, routed layers choose among what it left, often step by step
            scores[number] |= _on_things(kept, batch, sample.matter)
    model.train()
    sums: dict[str, float] = {}
    for _, score in sorted({number: score for own in world.gather(scores) for number, score in own.items()}.items()):
        for name, value in score.items():
            sums[name] = sums.get(name, 0.0) + value
    streams = recipe.validation_streams
    return {
        "loss": round((sums["lm_loss"] + model.settings.stream_weight * sums["stream_loss"]) / streams, 4),
        "lm_loss": round(sums["lm_loss"] / streams, 4),
        "stream_loss": round(sums["stream_loss"] / streams, 4),
        "speak_recall": round(sums["heard"] / max(sums["due"], 1), 4),
        "speak_precision": round(sums["heard"] / max(sums["spoken"], 1), 4),
        "sentences_right": round(sums["right"] / max(sums["turns"], 1), 4),
        **{name: round(value / sums["of_world"], 4) for name, value in sums.items() if name.startswith("things")},
    }


def _on_things(kept: dict[int, Tensor], batch: Batch, matter: Tensor | None) -> dict[str, float]:
    """Share of the kept vision tokens, CLS apart, that lie on a thing or a hand: per routed layer, and by chance."""
    if matter is None:
        return {}
    here = matter[:, 1:] > 0  # (F, h * w)
    shares = {"of_world": 1.0, "things_chance": float(here.float().mean())}
    for layer, mask in kept.items():
        chosen = mask[batch.frame_index >= 0].view_as(matter)[:, 1:].cpu()
        if chosen.any():
            shares[f"things_{layer}"] = float(here[chosen].float().mean())
    return shares


def _score(model: StreamingVideoLM, output: Output, batch: Batch) -> dict[str, float]:
    assert output.positions is not None and output.lm_loss is not None and output.stream_loss is not None
    said = torch.full_like(batch.labels, IGNORE)
    said[:, output.positions] = output.logits.argmax(-1)
    text = (batch.labels != IGNORE) & ~batch.decision
    wrong = set(batch.turn[text & (said != batch.labels)].tolist())
    turns = set(batch.turn[text].tolist())
    close = model.template.close_id
    speak, due = (said == close) & batch.decision, (batch.labels == close) & batch.decision
    return {
        "lm_loss": float(output.lm_loss),
        "stream_loss": float(output.stream_loss),
        "due": float(due.sum()),
        "spoken": float(speak.sum()),
        "heard": float((speak & due).sum()),
        "turns": float(len(turns)),
        "right": float(len(turns - wrong)),
    }
