"""In which numbers a device computes well."""

from __future__ import annotations

import torch

CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")  # as torch.cpu.get_capabilities names them, x86 and ARM
NO_BF16 = "this CPU has no bf16 arithmetic"


def cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for bf16.

    Without them PyTorch multiplies bf16 number by number: 0.8 GFLOP/s on a core with AVX2 that has 30 in float32.
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # an older PyTorch, which cannot tell
        return True
    about = torch.cpu.get_capabilities()
    return any(about.get(name, False) for name in CPU_BF16)


def has_bf16() -> bool:
    """The same of the device that is computed on: the accelerator, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.accelerator.is_available() or cpu_has_bf16()
