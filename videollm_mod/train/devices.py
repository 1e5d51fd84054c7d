"""What a run is computed on: bf16 where the device has it; and several processes that train one model, started by
torchrun or `accelerate launch`: who is who, and shared weights.

DDP keeps the whole model in every process; accelerate does that. FSDP2 shares weights, gradients and the optimiser's
state out: PyTorch's `fully_shard`, called here, because accelerate's way to it asks for a GPU and finds decoder layers
by one class, while routed layers have a class each. What is written to disk is whole in both cases, so a run may go on
with another number of processes, or another way of sharing.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from videollm_mod.arithmetic import has_bf16
from videollm_mod.loading import has_adapter
from videollm_mod.pace import Interrupts
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.train.recipe import Recipe

T = TypeVar("T")


def in_bf16(recipe: Recipe) -> bool:
    """Whether a run computes in bf16: if its recipe allows it and the device has it.

    A decoder that LoRA leaves alone is stored in bf16, for it is large, so such a run does so everywhere.
    """
    adapted = recipe.lora is not None or (recipe.start is not None and has_adapter(recipe.start))
    return recipe.bf16 and (adapted or has_bf16())


@dataclass(frozen=True)
class World:
    """The processes of a run, and which of them this one is. Alone by default."""

    rank: int = 0
    size: int = 1
    talk: Any = None  # the process group for what is said in Python objects: on the CPU, so that no device waits
    sharded: bool = False  # what the launcher asks for; a recipe may ask for it, too

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """What every process has here, by rank. All of them must call it."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.talk)
        return values

    def first(self, value: T) -> T:
        """What the main process has here. All of them must call it."""
        if self.size == 1:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, group=self.talk)
        first: T = values[0]
        return first

    def agreed(self, act: Callable[[], T]) -> T | None:
        """`act` in the main process alone, its result there and None elsewhere; what it refuses, all refuse."""
        result, refused = None, None
        if self.main:
            try:
                result = act()
            except InputError as error:
                refused = str(error)
        refused = self.first(refused)
        if refused is not None:
            raise InputError(refused)
        return result


def rank_of_launch() -> tuple[int, int]:
    """(rank, processes) as the launcher has told; (0, 1) without one."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def connect() -> World:
    """Join the processes that were launched together. Raises InputError for a launcher's wish that cannot be met."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise InputError("DeepSpeed is not supported; launch without it, and give --sharding fsdp2 to share weights.")
    # taken off, so that accelerate does not share out for itself what is shared out here
    sharded = os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() == "true"
    _, size = rank_of_launch()
    if size == 1:
        return World(sharded=sharded)
    from accelerate import PartialState

    threads = torch.get_num_threads()
    PartialState(cpu=not torch.accelerator.is_available())
    torch.set_num_threads(threads)  # accelerate takes all cores
    talk = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return World(dist.get_rank(), dist.get_world_size(), talk, sharded)


def leave(code: int = 0) -> None:
    """The end of all common work, and of every process but the main one: that exits with `code`, and it returns not.

    A guest goes without the interpreter's own ending: a thread of gloo's, met by its last steps, has ended a whole run
    in `terminate called`. Nor is garbage collected here, to end those threads: they may want the interpreter to let go
    of a tensor, while it waits for them.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    guest = dist.get_rank() > 0
    dist.destroy_process_group()
    if guest:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextmanager
def patient(interrupts: Interrupts, world: World) -> Iterator[None]:
    """Among several processes a second signal is the launcher's echo of the first: it must not cut the step short.

    Who does not want to wait kills the launcher, which gives its processes half a minute.
    """
    if world.size == 1:
        yield
        return

    def handle(number: int, stack: Any) -> None:
        interrupts.requested = True
        if not interrupts.shield:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def checkpoint_layers(lm: Any) -> None:
    """Let a decoder compute its layers again in the backward pass, instead of keeping what they made on the way."""
    how = {"use_reentrant": False}
    if hasattr(lm, "activation_checkpointing_enable"):  # its name from Transformers 5.20 or so on
        lm.activation_checkpointing_enable(activation_checkpointing_kwargs=how)
    else:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)


# -- FSDP2 -------------------------------------------------------------------------------------------------------------


def shard(module: nn.Module, units: Iterable[nn.Module], methods: Iterable[str] = ()) -> None:
    """Share a module's weights out, in place: each unit by itself, so that only one of them is whole at a time.

    methods: besides `forward`, what runs the units. Weights, communication and optimiser stay in the weights' dtype:
    with autocast, as without sharing, the numbers are those of one process.
    """
    # routed layers return a view, to which decoders add out of place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for parameter in module.parameters():
        if not parameter.is_contiguous():  # channels last; a shard is a run of rows
            parameter.data = parameter.data.contiguous()
    for unit in units:
        fully_shard(unit)
    fully_shard(module)
    for method in methods:
        register_fsdp_forward_method(module, method)


def whole(tensor: Tensor) -> Tensor:
    """A shared tensor put together again; any other as it is. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _whole_here(tensor: Tensor, keep: bool) -> Tensor:
    """The same on the CPU, in memory of its own (what was put together may be part of a larger piece)."""
    full = whole(tensor)
    return full.to("cpu", copy=True) if keep else full.new_empty(0)


@contextmanager
def whole_weights(module: nn.Module, keep: bool) -> Iterator[None]:
    """While it is open, a module holds its weights whole, on the CPU, where `keep`; elsewhere nothing changes.

    For `state_dict` and all that saves, not for a forward. All processes must enter.
    """
    places = [(each, name, p) for each in module.modules() for name, p in each._parameters.items()]
    shared: list[tuple[nn.Module, str, Any]] = [place for place in places if isinstance(place[2], DTensor)]
    found: dict[int, nn.Parameter] = {}  # a tied weight stays one
    for _, _, p in shared:
        if id(p) not in found:
            found[id(p)] = nn.Parameter(_whole_here(p.detach(), keep), requires_grad=False)
    if not keep:
        yield
        return
    for each, name, p in shared:
        each._parameters[name] = found[id(p)]
    try:
        yield
    finally:
        for each, name, p in shared:
            each._parameters[name] = p


def whole_state(state: dict[str, Any], keep: bool) -> dict[str, Any]:
    """An optimiser's `state_dict` with whole tensors, as an optimiser of whole weights has it, where `keep`. All
    processes must call it."""

    def put_together(value: Any) -> Any:
        return _whole_here(value, keep) if isinstance(value, DTensor) else value

    whole = {n: {key: put_together(v) for key, v in values.items()} for n, values in state["state"].items()}
    return {**state, "state": whole}


def shared_state(state: dict[str, Any], optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The reverse of `whole_state`, for the weights that the optimiser has."""
    weights = [p for group in optimiser.param_groups for p in group["params"]]

    def share(value: Any, p: Tensor) -> Any:
        if not (isinstance(p, DTensor) and isinstance(value, Tensor) and value.shape == p.shape):
            return value
        return distribute_tensor(value.to(p.device), p.device_mesh, p.placements)

    shared = {n: {key: share(v, weights[n]) for key, v in values.items()} for n, values in state["state"].items()}
    return {**state, "state": shared}


class Shared(nn.Module):
    """Around a module that is shared out already, so that Trainer and accelerate take it for wrapped."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Gradients add up in each process, and are exchanged after the last micro-batch only."""
        self.module.set_requires_gradient_sync(False)  # type: ignore[operator]
        try:
            yield
        finally:
            self.module.set_requires_gradient_sync(True)  # type: ignore[operator]
