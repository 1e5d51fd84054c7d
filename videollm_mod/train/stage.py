"""One stage of a run under Transformers' Trainer: its steps, its log, its checkpoints, and how it is stopped.

Trainer and accelerate bring devices, several processes, mixed precision and clipping. Ours is what makes a run exact:
samples are numbered, not drawn; a checkpoint appears under its name when complete; Ctrl-C ends the step and saves.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_file, save_model
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from videollm_mod.pace import Interrupts
from videollm_mod.train.data import prepare_worker
from videollm_mod.train.run import Run
from videollm_mod.types import InputError

WEIGHTS = "model.safetensors"


class Stage(nn.Module, ABC):
    """What a stage trains: its modules hold the parameters, its forward is the loss of one step."""

    name: str  # in the log and in checkpoints
    order: Sequence[list[int]]  # the samples of each step
    log_every: int  # steps

    @abstractmethod
    def samples(self) -> Dataset[Any]:
        """Sample n is always the same."""

    @abstractmethod
    def forward(self, items: list[Any], step: int) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and numbers for the log."""

    @abstractmethod
    def optimiser(self) -> torch.optim.Optimizer:
        """With the highest learning rate of each group."""

    @abstractmethod
    def schedule(self, optimiser: torch.optim.Optimizer) -> LRScheduler:
        """How those learning rates change from step to step."""

    @abstractmethod
    def summary(self, means: dict[str, float], step: int, numbers: dict[str, float]) -> dict[str, float]:
        """Fold the numbers of a step into the running `means`, in place; returns what the log shows."""

    def clipped(self) -> Iterable[nn.Parameter]:
        """The parameters whose gradients are clipped, together."""
        return self.parameters()

    def gradients(self) -> dict[str, float]:
        """More numbers for the log, of gradients before they are clipped."""
        return {}

    def validate(self, step: int) -> dict[str, float] | None:
        """Numbers of the validation split, if they are due after `step` steps; "loss" says which are best."""
        return None

    def save(self, folder: Path) -> None:
        """Write what is kept of the best validation."""


def train_stage(stage: Stage, run: Run, workers: int, interrupts: Interrupts) -> None:
    """Train a stage to its end, from its newest checkpoint if it has one.

    The first Ctrl-C ends the step that runs and saves, then KeyboardInterrupt is raised; a second one does not wait.
    """
    kept = run.checkpoint(stage.name)
    if kept is not None and kept.step == len(stage.order):
        load_model(stage, kept.folder / WEIGHTS)
        return
    with interrupts.shielded():
        trainer = StageTrainer(stage, run, workers, interrupts)
        trainer.train(resume_from_checkpoint=str(kept.folder) if kept else None)


class StageTrainer(Trainer):
    """Transformers' Trainer on a stage."""

    def __init__(self, stage: Stage, run: Run, workers: int, interrupts: Interrupts) -> None:
        self.stage, self.workers = stage, workers
        self.numbers: dict[str, float] = {}  # of the newest step
        kept = run.checkpoint(stage.name)
        self.means: dict[str, float] = dict(kept.means) if kept else {}
        recipe = run.recipe
        self.stage_run = run
        arguments = TrainingArguments(
            output_dir=str(run.folder),
            max_steps=len(stage.order),
            per_device_train_batch_size=1,  # a batch is a list of samples; the stage's order says how many
            max_grad_norm=recipe.clip,
            bf16=recipe.bf16,
            use_cpu=not torch.accelerator.is_available(),
            seed=recipe.seed,
            save_strategy="no",  # ours says when, by the clock
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            accelerator_config={"even_batches": False},
        )
        super().__init__(
            model=stage, args=arguments, train_dataset=stage.samples(), callbacks=[_Course(self, run, interrupts)]
        )
        self.remove_callback(PrinterCallback)  # it prints to stdout, where the result goes

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Samples in the stage's order; Trainer skips those of steps that are done without drawing them."""
        loader: DataLoader[Any] = DataLoader(
            self.stage.samples(),
            batch_sampler=Order(self.stage.order),
            collate_fn=list,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=prepare_worker,
            multiprocessing_context="fork" if self.workers else None,  # a spawned one would import everything again
        )
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.stage.optimiser()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        assert self.optimizer is not None
        schedule = self.stage.schedule(self.optimizer)
        self.lr_scheduler, self._created_lr_scheduler = schedule, True  # type: ignore[assignment]
        return schedule

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Raises InputError for a loss that is not finite, and leaves the batch behind to look at."""
        loss, self.numbers = model(inputs, self.state.global_step)
        if not math.isfinite(value := float(loss.detach())):
            bad = self.stage_run.folder / "bad_batch.safetensors"
            save_file({f"frames.{i}": item.frames.contiguous() for i, item in enumerate(inputs)}, bad)
            raise InputError(
                f"the loss is {value} at step {self.state.global_step + 1}; lower lr, or look at the batch in {bad}."
            )
        checked: Tensor = loss
        return checked

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.numbers |= self.stage.gradients()
        norm: Tensor = self.accelerator.clip_grad_norm_(self.stage.clipped(), self.args.max_grad_norm)
        self.numbers["gradient"] = float(norm)
        return norm

    # -- checkpoints: Trainer's files, in a folder that appears when it is complete ---------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        kept, step = self.stage_run.checkpoint(self.stage.name), self.state.global_step
        if kept is not None and kept.step == step:
            return
        with self.stage_run.saving(self.stage.name, step, self.means) as folder:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        assert output_dir is not None
        save_model(self.stage, str(Path(output_dir) / WEIGHTS))  # knows tied weights, which save_file refuses

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_model(self.stage, str(Path(resume_from_checkpoint) / WEIGHTS))


class Order(Sampler[list[int]]):
    """The numbers of the samples of each step."""

    batch_size, drop_last = None, False  # accelerate asks, to share steps out to processes

    def __init__(self, order: Sequence[list[int]]) -> None:
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.order)


class _Course(TrainerCallback):
    """After every step: the log, validation, and whether to save or to stop."""

    def __init__(self, trainer: StageTrainer, run: Run, interrupts: Interrupts) -> None:
        self.trainer, self.run, self.interrupts = trainer, run, interrupts

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stage, step, last = self.trainer.stage, state.global_step, state.max_steps
        shown = stage.summary(self.trainer.means, step, self.trainer.numbers)
        if state.is_world_process_zero:
            if step % stage.log_every == 0 or step == last:
                self.run.log(stage.name, step, **{name: round(value, 4) for name, value in shown.items()})
            found = stage.validate(step)
            if found is not None:
                if found["loss"] < self.run.best_loss:
                    with self.run.replacing("best") as folder:
                        stage.save(folder)
                self.run.log("validation", step, **found)
                self.run.draw()
        if self.interrupts.requested:
            control.should_save = control.should_training_stop = True
        if self.run.due or step == last:
            control.should_save = True
