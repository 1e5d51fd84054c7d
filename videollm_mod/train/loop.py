"""The run: tower stage, then streams, and what validation measures.

On a CPU with the same number of threads, a resumed run continues the very same curve: samples are numbered, not drawn.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import AutoModelForCausalLM, Qwen3Config

from videollm_mod.dialogue import IGNORE, Batch, collate, word_tokenizer
from videollm_mod.model import Output, StreamingVideoLM
from videollm_mod.pace import catch_interrupts
from videollm_mod.train.changes import ChangeHead
from videollm_mod.train.data import StreamSample, StreamSamples, steps_of, stream_sample
from videollm_mod.train.recipe import Recipe
from videollm_mod.train.run import Log, Run
from videollm_mod.train.stage import Stage, train_stage
from videollm_mod.train.tower import TowerStage
from videollm_mod.types import InputError
from videollm_mod.vision import Connector, ConvTower, FrameEncoder
from videollm_mod.world import all_sentences


def build(recipe: Recipe) -> StreamingVideoLM:
    """The recipe's model with fresh weights, the same for the same seed."""
    torch.manual_seed(recipe.seed)
    tokenizer = word_tokenizer([*all_sentences(), recipe.settings.system])
    sizes = recipe.lm
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.mlp,
        max_position_embeddings=65536,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    tower = ConvTower(recipe.tower)
    return StreamingVideoLM(
        FrameEncoder(tower, recipe.grid),
        Connector(tower.width, sizes.width),
        AutoModelForCausalLM.from_config(config),
        tokenizer,
        recipe.plan,
        recipe.settings,
    )


def train(
    recipe: Recipe, folder: Path, *, resume: bool = False, workers: int = 1, show: Log = lambda line: None
) -> Path:
    """Run a recipe in `folder`; returns the folder of the finished model. `show` gets every log line as it is written.

    Ctrl-C ends the step that runs, saves and raises KeyboardInterrupt; `resume` goes on from there. Raises InputError
    when the folder holds a run and `resume` is off, or holds one of another recipe.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # every process would write the same log and checkpoints
        raise InputError("training runs in one process as yet; start it without torchrun or accelerate launch.")
    run = Run(recipe, folder, resume=resume, show=show)
    model = build(recipe)
    with catch_interrupts() as interrupts:
        train_stage(TowerStage(model.encoder, recipe), run, workers, interrupts)
        train_stage(StreamStage(model, recipe), run, workers, interrupts)
    model.eval().save_pretrained(folder / "model", dtype=torch.float16)
    run.close()
    return folder / "model"


class StreamStage(Stage):
    """The second stage: trains a model in place, on whole streams."""

    name = "stream"
    log_every = 20

    def __init__(self, model: StreamingVideoLM, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.head, self.recipe = model, ChangeHead(model), recipe
        self.order = []
        first = 0
        for phase in recipe.phases:
            self.order += steps_of(phase.steps, phase.streams, first)
            first += phase.steps * phase.streams
        model.encoder.requires_grad_(recipe.tower_lr > 0)

    def samples(self) -> StreamSamples:
        return StreamSamples(self.recipe)

    def forward(self, items: list[StreamSample], step: int) -> tuple[Tensor, dict[str, float]]:
        with self.head.listening(self.model) as hidden:
            output, batch = forward(self.model, items, train_tower=self.recipe.tower_lr > 0)
        assert output.loss is not None and output.lm_loss is not None and output.stream_loss is not None
        labels = torch.cat([item.changes for item in items]).to(hidden[0].device)
        before_weight = self.recipe.phase_of(step).before_weight
        changes, recall = self.head.loss(hidden[0], batch.frame_index, labels, before_weight)
        return output.loss + self.recipe.change_weight * changes, {
            "loss": float(output.loss.detach()),
            "lm_loss": float(output.lm_loss),
            "stream_loss": float(output.stream_loss),
            "change_loss": float(changes.detach()),
            **{f"{name}_recall": value for name, value in recall.items()},
        }

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
        norms = [float(grad.norm()) for grad in experts if grad is not None]
        return {"expert_gradient": sum(norms) / max(len(norms), 1)}

    def summary(self, means: dict[str, float], step: int, numbers: dict[str, float]) -> dict[str, float]:
        """Means over about 20 steps."""
        for name, value in numbers.items():
            means[name] = means.get(name, value) + 0.05 * (value - means.get(name, value))
        return means

    def validate(self, step: int) -> dict[str, float] | None:
        due = step % self.recipe.validate_every == 0 or step == self.recipe.steps
        return validate(self.model, self.recipe) if due else None

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder, dtype=torch.float16)


def forward(
    model: StreamingVideoLM,
    items: list[StreamSample],
    *,
    train_tower: bool = False,
    kept_out: dict[int, Tensor] | None = None,
) -> tuple[Output, Batch]:
    """One pass over a batch of streams with their labels; `kept_out` as for the model."""
    batch = collate([model.template.encode(item.segments) for item in items])
    with torch.set_grad_enabled(train_tower and torch.is_grad_enabled()):
        features = model.encoder(torch.cat([item.frames for item in items]).to(model.device))
    # No attention mask: padding stands on the right, where causal attention never looks, and it has no labels. A mask
    # would give the same numbers at twice the cost.
    scores = [item.scores for item in items if item.scores is not None]
    output = model(
        batch.input_ids.to(model.device),
        batch.frame_index,  # read on the CPU, where it is
        features,
        frame_scores=torch.cat(scores) if scores else None,
        labels=batch.labels.to(model.device),
        decision=batch.decision.to(model.device),
        kept_out=kept_out,
    )
    return output, batch


@torch.no_grad()
def validate(model: StreamingVideoLM, recipe: Recipe) -> dict[str, float]:
    """Teacher-forced on validation streams of the longest phase: losses; decisions, words and whole sentences right."""
    model.eval()
    sums: dict[str, float] = {}
    world = max((phase.world for phase in recipe.phases), key=lambda world: world.seconds)
    for number in range(recipe.validation_streams):
        output, batch = forward(model, [stream_sample("validation", number, world, recipe)])
        for name, value in _score(model, output, batch).items():
            sums[name] = sums.get(name, 0.0) + value
    model.train()
    streams = recipe.validation_streams
    return {
        "loss": round((sums["lm_loss"] + model.settings.stream_weight * sums["stream_loss"]) / streams, 4),
        "lm_loss": round(sums["lm_loss"] / streams, 4),
        "stream_loss": round(sums["stream_loss"] / streams, 4),
        "speak_recall": round(sums["heard"] / max(sums["due"], 1), 4),
        "speak_precision": round(sums["heard"] / max(sums["spoken"], 1), 4),
        "sentences_right": round(sums["right"] / max(sums["turns"], 1), 4),
    }


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
