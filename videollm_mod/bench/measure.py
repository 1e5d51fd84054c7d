"""How benchmarks measure: time of competitors taken in turn, peak memory of a computation, and where it all ran."""

from __future__ import annotations

import math
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Timing:
    """Milliseconds of each repeat, and their medians."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]  # of all threads of this process: what a busy machine disturbs less

    @property
    def wall_ms(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_ms(self) -> float:
        return statistics.median(self.cpu)

    def ratios_to(self, other: Timing) -> tuple[float, ...]:
        """Turn by turn: what took minutes was not done by the same machine from beginning to end."""
        return tuple(own / its for own, its in zip(self.wall, other.wall, strict=True))

    def percentile(self, percent: float) -> float:
        """Milliseconds that so many percent of the repeats do not exceed (nearest rank: always one that was timed)."""
        ordered = sorted(self.wall)
        return ordered[max(math.ceil(percent / 100 * len(ordered)), 1) - 1]

    @staticmethod
    def pooled(timings: Iterable[Timing]) -> Timing:
        """All the repeats of several measurements as one."""
        every = list(timings)
        return Timing(tuple(ms for t in every for ms in t.wall), tuple(ms for t in every for ms in t.cpu))


def time_in_turn(
    runs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, wait: Callable[[], object] = lambda: None
) -> dict[str, Timing]:
    """Time the competitors A B, B A, A B, ... so that whatever else the machine does hits all of them alike.

    `wait` returns when all that was started has ended: a GPU works on after a call has returned (`wait_for`).
    """
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for turn in range(warmup + repeats):
        for name in order:
            wait()
            start, start_cpu = time.perf_counter(), time.process_time()
            runs[name]()
            wait()
            if turn >= warmup:
                wall[name].append(1e3 * (time.perf_counter() - start))
                cpu[name].append(1e3 * (time.process_time() - start_cpu))
        order.reverse()
    return {name: Timing(tuple(wall[name]), tuple(cpu[name])) for name in runs}


def wait_for(device: str) -> Callable[[], object]:
    """What waits until a device has nothing left to do."""
    return torch.cuda.synchronize if device.startswith("cuda") else lambda: None


def free_memory(device: str) -> float:
    """Bytes that may still be taken on a device; infinite where nobody tells."""
    if device.startswith("cuda"):
        torch.cuda.empty_cache()  # what PyTorch holds back of freed tensors counts as taken, and is not
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return math.inf
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024.0 * int(free[0]) if free else math.inf


class PeakMemory(TorchDispatchMode):
    """Peak of the bytes that operators allocate inside the `with` block and that are alive at the same time.

    Counts the storages of all results, forward and backward, each once however many views it has, until it is freed.
    Not counted: what existed before (weights, gradients, inputs) and what a kernel takes and gives back internally.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.alive = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):  # what comes in from outside is not ours, nor are views of it
            if isinstance(tensor, torch.Tensor):
                self._seen.add(tensor.untyped_storage())
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._seen:
                storage = tensor.untyped_storage()
                self._seen.add(storage)
                self.alive += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self.alive)
        return results

    def _free(self, nbytes: int) -> None:
        self.alive -= nbytes


def ceilings(device: str, dtype: str, megabytes: int = 512, side: int = 8192) -> dict[str, float]:
    """What a device reaches at best, a second: bytes of a copy, read and written; FLOPs of a square product."""
    size = getattr(torch, dtype).itemsize
    source = torch.zeros(megabytes * 2**20 // size, device=device, dtype=getattr(torch, dtype))
    target, factor = torch.empty_like(source), torch.randn(side, side, device=device, dtype=source.dtype)
    runs = {"copy": lambda: target.copy_(source), "product": lambda: factor @ factor}
    timing = time_in_turn(runs, 9, warmup=2, wait=wait_for(device))
    return {
        "bytes_per_second": 2e3 * source.nbytes / timing["copy"].wall_ms,
        "flops_per_second": 2e3 * side**3 / timing["product"].wall_ms,
    }


def environment(device: str = "cpu") -> dict[str, Any]:
    """What a number was measured on."""
    card = {}
    if device.startswith("cuda"):
        about = torch.cuda.get_device_properties(device)
        card = {"gpu": about.name, "gpu_gib": about.total_memory / 2**30, "cuda": torch.version.cuda}
    return {
        **card,
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def rounded(value: Any) -> Any:
    """Nested JSON values with four decimals: a thousandth of a ratio is more than a clock can tell."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def progress(line: str) -> None:
    """For the eye: stdout holds the JSON only."""
    print(line, file=sys.stderr, flush=True)
