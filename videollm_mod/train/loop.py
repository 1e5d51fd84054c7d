"""The run: tower stage, then streams; logs, validation, checkpoints that a killed run resumes from exactly.

On a CPU with the same number of threads, a resumed run continues the very same curve: samples are numbered, not drawn.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3Config

from videollm_mod.dialogue import IGNORE, Batch, collate, word_tokenizer
from videollm_mod.model import Output, StreamingVideoLM
from videollm_mod.pace import Interrupts, catch_interrupts
from videollm_mod.train.changes import ChangeHead
from videollm_mod.train.data import StreamSample, StreamSamples, batches, stream_sample
from videollm_mod.train.recipe import Recipe
from videollm_mod.train.run import Log, Run
from videollm_mod.train.tower import train_tower
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
    run = Run(recipe, folder, resume=resume, show=show)
    model = build(recipe)
    with catch_interrupts() as interrupts:
        if run.state is None or run.state["stage"] == "tower":
            train_tower(model.encoder, run, workers, interrupts)
        _train_streams(model, run, workers, interrupts)
    model.eval().save_pretrained(folder / "model", dtype=torch.float16)
    run.close()
    return folder / "model"


def _train_streams(model: StreamingVideoLM, run: Run, workers: int, interrupts: Interrupts) -> None:
    """The second stage: train `model` in place."""
    recipe, head = run.recipe, ChangeHead(model)
    optimiser = _optimiser(model, head, recipe)
    step = 0
    means: dict[str, float] = {}  # running means of the numbers of a step, for the log
    if run.state is not None and run.state["stage"] == "stream":
        model.load_state_dict(run.state["model"])
        head.load_state_dict(run.state["head"])
        optimiser.load_state_dict(run.state["optimiser"])
        step, means = run.state["step"], run.state["means"]
    model.encoder.requires_grad_(recipe.tower_lr > 0)
    model.train()

    def save() -> None:
        parts: dict[str, Any] = {"model": model, "head": head, "optimiser": optimiser}
        run.save("stream", step, means=means, **{name: part.state_dict() for name, part in parts.items()})

    if step == 0:  # the tower's own checkpoints end here
        save()
    samples = StreamSamples(recipe)
    try:
        while step < recipe.steps:
            phase, within, first = recipe.phase_of(step)
            start, end = first + within * phase.streams, first + phase.steps * phase.streams
            for items in batches(samples, phase.streams, start, end, workers):
                with interrupts.shielded():
                    for group, rate in zip(optimiser.param_groups, _rates(recipe, step)):
                        group["lr"] = rate
                    numbers = train_step(model, head, optimiser, items, recipe, phase.before_weight)
                    step += 1
                    for name, value in numbers.items():
                        means[name] = means.get(name, value) + 0.05 * (value - means.get(name, value))
                    _refuse_nonsense(numbers["loss"], step, items, run.folder)
                    if step % 20 == 0 or step == recipe.steps:
                        run.log("stream", step, **{name: round(value, 4) for name, value in means.items()})
                    if step % recipe.validate_every == 0 or step == recipe.steps:
                        run.log("validation", step, **validate(model, recipe))
                    if run.due or step == recipe.steps:
                        save()
    except KeyboardInterrupt:
        if not interrupts.shield:  # else a second Ctrl-C came in the middle of a step
            save()
        raise


def train_step(
    model: StreamingVideoLM,
    head: ChangeHead,
    optimiser: torch.optim.Optimizer,
    items: list[StreamSample],
    recipe: Recipe,
    before_weight: float = 1.0,
) -> dict[str, float]:
    """One optimiser step on one batch of streams; returns its numbers."""
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16), head.listening(model) as hidden:
        output, batch = forward(model, items, train_tower=recipe.tower_lr > 0)
        labels = torch.cat([item.changes for item in items])
        changes, recall = head.loss(hidden[0], batch.frame_index, labels, before_weight)
    assert output.loss is not None and output.lm_loss is not None and output.stream_loss is not None
    optimiser.zero_grad()
    (output.loss + recipe.change_weight * changes).backward()
    weights = [p.grad for name, p in model.named_parameters() if "depth_expert.weight" in name]
    experts = [float(grad.norm()) for grad in weights if grad is not None]
    norm = nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], recipe.clip)
    optimiser.step()
    return {
        "loss": float(output.loss.detach()),
        "lm_loss": float(output.lm_loss),
        "stream_loss": float(output.stream_loss),
        "change_loss": float(changes.detach()),
        "gradient": float(norm),
        "expert_gradient": sum(experts) / max(len(experts), 1),
        **{f"{name}_recall": value for name, value in recall.items()},
    }


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
        features = model.encoder(torch.cat([item.frames for item in items]))
    # No attention mask: padding stands on the right, where causal attention never looks, and it has no labels. A mask
    # would give the same numbers at twice the cost.
    scores = [item.scores for item in items if item.scores is not None]
    output = model(
        batch.input_ids,
        batch.frame_index,
        features,
        frame_scores=torch.cat(scores) if scores else None,
        labels=batch.labels,
        decision=batch.decision,
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


def _optimiser(model: StreamingVideoLM, head: ChangeHead, recipe: Recipe) -> torch.optim.Optimizer:
    def decays(tensor: Tensor) -> bool:
        return tensor.dim() > 1

    rest = [p for name, p in model.named_parameters() if not name.startswith("encoder.")] + list(head.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if decays(p)], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if not decays(p)], "weight_decay": 0.0},
    ]
    if recipe.tower_lr > 0:
        groups.append({"params": list(model.encoder.parameters()), "weight_decay": recipe.weight_decay})
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95))


def _rates(recipe: Recipe, step: int) -> tuple[float, float, float]:
    """Learning rate of each parameter group: linear warm-up, then a cosine to `final_lr`."""
    progress = min(1.0, step / recipe.steps)
    share = recipe.final_lr + (1 - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    share *= min(1.0, (step + 1) / max(recipe.warmup, 1))
    return recipe.lr * share, recipe.lr * share, recipe.tower_lr * share


def _refuse_nonsense(loss: float, step: int, items: list[StreamSample], folder: Path) -> None:
    """Raise InputError for a loss that is not finite, and leave the batch behind to look at."""
    if math.isfinite(loss):
        return
    bad = folder / "bad_batch.safetensors"
    save_file({f"frames.{i}": item.frames.contiguous() for i, item in enumerate(items)}, bad)
    raise InputError(f"the loss is {loss} at step {step}; lower lr, or look at the batch in {bad}.")
