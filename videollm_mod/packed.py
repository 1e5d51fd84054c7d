"""Linear layers for inference on a CPU: weights laid out once as oneDNN wants them, the same products.

A streaming step has a frame's few rows, often three or eleven, and is bound by reading weights. PyTorch hands such a
product to a BLAS that lays the weight out anew each time; laid out beforehand it takes a quarter of the time on the
machine where this was measured (docs/LOG.md), and is no slower for many rows. It costs the memory of a second copy.
Training, other devices and autocast go the ordinary way.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

Model = TypeVar("Model", bound=nn.Module)

ROWS = 8  # the layout is chosen for so many; what was measured for 8 was as good from 1 to 512
_packed = WeakTensorKeyDictionary()  # weight -> (version, address, the laid-out copy)


class PackedLinear(nn.Linear):
    """An `nn.Linear` that uses a laid-out copy of its weight where it may; parameters and names stay as they were."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight  # looked up once: a module's attributes take longer than most of what is done here
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not _fits(weight, input):
            return super().forward(input)
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(input, laid_out(weight), self.bias, "none", [], "")
        return product


def _fits(weight: Tensor, input: Tensor) -> bool:
    """Whether a product can use a laid-out copy."""
    alike = input.is_cpu and weight.is_cpu and input.dtype == weight.dtype and lays_out(weight.dtype)
    return alike and input.dim() > 1 and input.numel() > 0


@lru_cache
def lays_out(dtype: torch.dtype) -> bool:
    """Whether oneDNN has such products on this CPU, found out by trying: of bf16 not where there is AVX2 alone."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(8, 8, dtype=dtype), ROWS)
    except RuntimeError:
        return False
    return True


def laid_out(weight: Tensor) -> Tensor:
    """The laid-out copy of a weight (out, in), made when it is first asked for and when the weight has changed."""
    version = 0 if weight.is_inference() else weight._version  # what was made in inference mode counts no changes
    address = weight.data_ptr()
    known: tuple[int, int, Tensor] | None = _packed.get(weight)
    if known is None or known[:2] != (version, address):
        with torch.no_grad():
            known = (version, address, torch.ops.mkldnn._reorder_linear_weight(weight.detach(), ROWS))
        _packed[weight] = known
    return known[2]


def pack_linears(model: Model) -> Model:
    """Let the model's plain linear layers use laid-out weights, in place; returns the model.

    Copies are made when a layer first runs without gradients on a CPU. Where PyTorch is built without oneDNN nothing
    happens. `unpack_linears` undoes it.
    """
    if available():
        for module in model.modules():
            if type(module) is nn.Linear and type(module.weight) is nn.Parameter:  # not one in fewer bits
                module.__class__ = PackedLinear
    return model


def unpack_linears(model: Model) -> Model:
    """Give the plain linear layers back, and the memory of their copies."""
    for module in model.modules():
        if type(module) is PackedLinear:
            module.__class__ = nn.Linear  # type: ignore[assignment]
            _packed.pop(module.weight, None)
    return model


def available() -> bool:
    """Whether PyTorch has the operators; they are those of its own compiler, not of its public face."""
    ops: Any = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and all(
        hasattr(ops, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )
