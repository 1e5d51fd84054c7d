"""One stage of a run under Transformers' Trainer: its steps, its log, its checkpoints, and how it is stopped.

Trainer and accelerate bring devices, mixed precision and clipping. Ours is what makes a run exact: samples are
numbered, not drawn; a checkpoint appears under its name when complete; Ctrl-C ends the step and saves.

Several processes do what one would: each takes its share of every step's samples, in one part or in several
(`Recipe.accumulate`), losses are divided by what the whole step has of labels, and gradients are summed. The main
process alone writes.
"""

from __future__ import annotations

import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from videollm_mod.pace import Interrupts
from videollm_mod.train.data import prepare_worker
from videollm_mod.train.devices import Shared, World, in_bf16, shard, shared_state, whole, whole_state, whole_weights
from videollm_mod.train.run import Checkpoint, Run
from videollm_mod.types import InputError

WEIGHTS = "model.safetensors"
Counts = Mapping[str, int]  # what losses are means over: their name -> labels


class Stage(nn.Module, ABC):
    """What a stage trains: its modules hold the parameters, its forward is the loss of a part of a step."""

    name: str  # in the log and in checkpoints
    order: Sequence[list[int]]  # the samples of each step
    log_every: int  # steps
    world = World()  # the processes that train it
    frozen: frozenset[str] = frozenset()  # weights that checkpoints leave out: they are as they were in the beginning

    @abstractmethod
    def samples(self) -> Dataset[Any]:
        """Sample n is always the same."""

    @abstractmethod
    def counts(self, items: list[Any]) -> Counts:
        """How many labels of each loss there are in these samples."""

    @abstractmethod
    def forward(self, items: list[Any], step: int, total: Counts | None = None) -> tuple[Tensor, dict[str, float]]:
        """What these samples add to the loss of a step, and to its numbers for the log.

        total: the `counts` of the whole step; None if these samples are all that it has. Every module takes part, and
        gets gradients, if only zeros, whatever the samples lack, even if there is none: processes that exchange
        gradients wait for each other's.
        """

    @abstractmethod
    def optimiser(self) -> torch.optim.Optimizer:
        """With the highest learning rate of each group."""

    @abstractmethod
    def schedule(self, optimiser: torch.optim.Optimizer) -> LRScheduler:
        """How those learning rates change from step to step."""

    @abstractmethod
    def summary(self, means: dict[str, float], step: int, numbers: dict[str, float]) -> dict[str, float]:
        """Fold the numbers of a step into the running `means`, in place; returns what the log shows."""

    def units(self) -> Iterable[nn.Module]:
        """The modules that FSDP2 gathers one at a time."""
        return ()

    def clipped(self) -> Iterable[nn.Parameter]:
        """The parameters whose gradients are clipped, together."""
        return self.parameters()

    def gradients(self) -> dict[str, float]:
        """More numbers for the log, of gradients before they are clipped."""
        return {}

    def validates(self, step: int) -> bool:
        """Whether the validation split is due after `step` steps."""
        return False

    def validate(self) -> dict[str, float]:
        """Numbers of the validation split, the same in every process; "loss" says which are best."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write what is kept of the best validation."""


def share(own: Counts, total: Counts | None, name: str) -> float:
    """The part that these samples have in a mean over the whole step: exactly 1 if they are all that it has."""
    if total is None:
        return 1.0
    return own[name] / total[name] if total[name] else 0.0


def train_stage(stage: Stage, run: Run, workers: int, interrupts: Interrupts, world: World | None = None) -> None:
    """Train a stage to its end, from its newest checkpoint if it has one.

    The first Ctrl-C ends the step that runs and saves, then KeyboardInterrupt is raised; a second one does not wait.
    Afterwards the stage's weights may be shared out: see devices.py.
    """
    world = world or World()
    kept = world.first(run.checkpoint(stage.name) if world.main else None)
    if kept is not None:
        _load(stage, kept.folder / WEIGHTS)
        if kept.step == len(stage.order):
            return
    stage.world = world
    if world.size > 1 and run.recipe.sharding == "fsdp2":
        shard(stage, stage.units(), methods=("validate",))
    with interrupts.shielded():
        trainer = StageTrainer(stage, run, workers, interrupts, kept)
        trainer.train(resume_from_checkpoint=str(kept.folder) if kept else None)


def _save(stage: Stage, file: Path) -> None:
    if not stage.frozen:
        save_model(stage, str(file))  # knows tied weights, which save_file refuses
        return
    learned = {name: tensor for name, tensor in stage.state_dict().items() if name not in stage.frozen}
    save_file({name: tensor.contiguous() for name, tensor in learned.items()}, file)


def _load(stage: Stage, file: Path) -> None:
    if not stage.frozen:
        load_model(stage, file)
        return
    missing, unknown = stage.load_state_dict(load_file(file), strict=False)
    wrong = [*unknown, *sorted(set(missing) - stage.frozen)]
    if wrong:
        raise InputError(f"{file} does not fit this run, which starts at '{wrong[0]}'; begin anew in another --out.")


class StageTrainer(Trainer):
    """Transformers' Trainer on a stage."""

    def __init__(
        self, stage: Stage, run: Run, workers: int, interrupts: Interrupts, kept: Checkpoint | None = None
    ) -> None:
        self.stage, self.workers, self.world = stage, workers, stage.world
        self.sharded = self.world.size > 1 and run.recipe.sharding == "fsdp2"
        self.sums: dict[str, float] = {}  # the numbers of the step that runs, of this process
        self.gradients: dict[str, float] = {}
        self.numbers: dict[str, float] = {}  # of the newest step, of all processes
        self.bad: tuple[float, list[Any]] | None = None  # a loss that is not finite, and its samples
        self.means: dict[str, float] = dict(kept.means) if kept else {}
        recipe = run.recipe
        self.stage_run = run
        if self.world.size > 1:  # what is random in a forward, such as dropout, is not the same in all processes
            torch.manual_seed(recipe.seed + self.world.rank)
        threads = torch.get_num_threads()  # which accelerate changes where there are several processes
        arguments = TrainingArguments(
            output_dir=str(run.folder),
            max_steps=len(stage.order),
            per_device_train_batch_size=1,  # a batch is a list of samples; the stage's order says how many
            gradient_accumulation_steps=recipe.accumulate,
            max_grad_norm=recipe.clip,
            bf16=in_bf16(recipe),
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
        torch.set_num_threads(threads)
        self.model_accepts_loss_kwargs = True  # the loss is divided by the labels of the whole step already
        self.remove_callback(PrinterCallback)  # it prints to stdout, where the result goes

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Samples in the stage's order; Trainer skips those of steps that are done without drawing them."""
        loader: DataLoader[Any] = DataLoader(
            self.stage.samples(),
            batch_sampler=Order(self.stage.order, self.stage_run.recipe.accumulate, self.world),
            collate_fn=list,
            num_workers=self.workers,
            prefetch_factor=4 if self.workers else None,
            worker_init_fn=prepare_worker,
            multiprocessing_context="fork" if self.workers else None,  # a spawned one would import everything again
        )
        if self.world.size > 1:  # accelerate would deal whole steps to processes
            return loader
        prepared: DataLoader[Any] = self.accelerator.prepare(loader)
        return prepared

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The parts of a step, and how many labels all parts of all processes have together; None if there is one."""
        parts = [part for _, part in zip(range(num_batches), epoch_iterator)]
        if self.world.size * self.stage_run.recipe.accumulate == 1:
            return parts, None
        own = [self.stage.counts(part) for part in parts]
        counts = [count for process in self.world.gather(own) for count in process]
        return parts, {name: sum(count[name] for count in counts) for name in counts[0]}

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Samples as they are, though there be none; the stage takes them to its device."""
        return inputs

    def _wrap_model(self, model: nn.Module, training: bool = True, dataloader: Any = None) -> nn.Module:
        wrapped: nn.Module = Shared(self.stage) if self.sharded else super()._wrap_model(model, training, dataloader)
        return wrapped

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = self.stage.optimiser()
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        assert self.optimizer is not None
        schedule = self.stage.schedule(self.optimizer)
        self.lr_scheduler, self._created_lr_scheduler = schedule, True  # type: ignore[assignment]
        return schedule

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """`num_items_in_batch`: what `get_batch_samples` counted."""
        with self._autocast():
            loss, numbers = model(inputs, self.state.global_step, num_items_in_batch)
        for name, value in numbers.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if not math.isfinite(value := float(loss.detach())):
            self.bad = value, inputs
        scaled: Tensor = loss * self.world.size if self.world.size > 1 else loss  # gradients are averaged
        return scaled

    def _autocast(self) -> AbstractContextManager[Any]:
        """Nothing, where accelerate sees to it. Without a cache: that would hold every unit's weights at once."""
        if not self.sharded:
            return nullcontext()
        bf16 = in_bf16(self.stage_run.recipe)
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    def _clip_grad_norm(self, model: nn.Module) -> Tensor:
        self.gradients = self.stage.gradients()
        norm = whole(self.accelerator.clip_grad_norm_(self.stage.clipped(), self.args.max_grad_norm))
        self.gradients["gradient"] = float(norm)
        return norm

    def finish_step(self) -> None:
        """Before weights change: the step's numbers. Raises InputError, everywhere, for a loss that is not finite
        anywhere, and leaves the samples behind to look at."""
        refused = None
        if self.bad is not None:
            value, items = self.bad
            mark = f".{self.world.rank}" if self.world.rank else ""
            path = self.stage_run.folder / f"bad_batch{mark}.safetensors"
            save_file({f"frames.{i}": item.frames.contiguous() for i, item in enumerate(items)}, path)
            step = self.state.global_step + 1
            refused = f"the loss is {value} at step {step}; lower lr, or look at the batch in {path}."
        said = self.world.gather((self.sums, refused))
        self.numbers = {}
        for sums, sentence in said:
            if sentence is not None:
                raise InputError(sentence)
            for name, value in sums.items():
                self.numbers[name] = self.numbers.get(name, 0.0) + value
        self.numbers |= self.gradients
        self.sums = {}

    # -- checkpoints: Trainer's files, of whole weights, in a folder that appears when it is complete ------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        world, step = self.world, self.state.global_step
        kept = world.first(self.stage_run.checkpoint(self.stage.name) if world.main else None)
        if kept is not None and kept.step == step:
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        generators = {name: text for files in world.gather(self._generators()) for name, text in files.items()}
        state = whole_state(self.optimizer.state_dict(), keep=world.main)
        with whole_weights(self.stage, keep=world.main):
            if not world.main:
                return
            with self.stage_run.saving(self.stage.name, step, self.means) as folder:
                _save(self.stage, folder / WEIGHTS)
                torch.save(state, folder / "optimizer.pt")
                torch.save(self.lr_scheduler.state_dict(), folder / "scheduler.pt")
                for name, text in generators.items():
                    (folder / name).write_bytes(text)
                self.state.save_to_json(str(folder / "trainer_state.json"))

    def _generators(self) -> dict[str, bytes]:
        """The file in which Trainer keeps the states of this process's random generators: name -> contents."""
        with tempfile.TemporaryDirectory() as folder:
            self._save_rng_state(folder)
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Nothing: `train_stage` has loaded the weights, before they were shared out."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        assert self.optimizer is not None and self.lr_scheduler is not None
        folder = Path(checkpoint)
        state = torch.load(folder / "optimizer.pt", map_location="cpu", mmap=True, weights_only=True)
        self.optimizer.load_state_dict(shared_state(state, self.optimizer))
        self.lr_scheduler.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))


class Order(Sampler[list[int]]):
    """The numbers of the samples that this process takes, step by step and part by part; dealt out like cards."""

    batch_size, drop_last = None, False  # accelerate asks, to share steps out to processes

    def __init__(self, order: Sequence[list[int]], parts: int = 1, world: World | None = None) -> None:
        self.order, self.parts, self.world = order, parts, world or World()

    def __len__(self) -> int:
        return len(self.order) * self.parts

    def __iter__(self) -> Iterator[list[int]]:
        hands = self.world.size * self.parts
        for samples in self.order:
            for part in range(self.parts):
                yield samples[self.world.rank * self.parts + part :: hands]


class _Course(TrainerCallback):
    """At every step: the log, validation, and whether to save or to stop."""

    def __init__(self, trainer: StageTrainer, run: Run, interrupts: Interrupts) -> None:
        self.trainer, self.run, self.interrupts = trainer, run, interrupts

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.finish_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stage, step, last = self.trainer.stage, state.global_step, state.max_steps
        shown = stage.summary(self.trainer.means, step, self.trainer.numbers)
        if step % stage.log_every == 0 or step == last:
            self.run.log(stage.name, step, **{name: round(value, 4) for name, value in shown.items()})
        if stage.validates(step):
            self._validate(step)
        said = self.trainer.world.gather((self.interrupts.requested, self.run.due))
        if any(requested for requested, _ in said):
            self.interrupts.requested = True
            control.should_save = control.should_training_stop = True
        if any(due for _, due in said) or step == last:
            control.should_save = True

    def _validate(self, step: int) -> None:
        stage, world = self.trainer.stage, self.trainer.world
        found = stage.validate()
        if isinstance(stage, FSDPModule):  # which leaves gathered what is no unit's
            stage.reshard()
        if world.first(found["loss"] < self.run.best_loss):
            with whole_weights(stage, keep=world.main):
                if world.main:
                    with self.run.replacing("best") as folder:
                        stage.save(folder)
        self.run.log("validation", step, **found)
        self.run.draw()
