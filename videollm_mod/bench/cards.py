"""Graphics cards as their makers' data sheets have them: memory, bandwidth, peak FLOPs of bf16 without sparsity.

Nobody reaches these numbers; they are ceilings. A card that is not here: `bench predict --memory --bandwidth --flops`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """What a device can do at most."""

    memory: float  # bytes
    bandwidth: float  # bytes per second between memory and chip
    flops: float  # per second, bf16 or fp16 with fp32 sums, dense
    source: str


# Data sheets give tensor FLOPs "with sparsity" for Hopper and Ada; half of that is the dense peak.
CARDS = {
    "h200": Card(141e9, 4.8e12, 989e12, "NVIDIA H200 data sheet, SXM (1,979 TFLOPS with sparsity)"),
    "h100": Card(80e9, 3.35e12, 989e12, "NVIDIA H100 data sheet, SXM (1,979 TFLOPS with sparsity)"),
    "a100-80gb": Card(80e9, 2.039e12, 312e12, "NVIDIA A100 data sheet, SXM 80GB"),
    "l40s": Card(48e9, 0.864e12, 362.05e12, "NVIDIA L40S data sheet"),
    "l4": Card(24e9, 0.3e12, 121e12, "NVIDIA L4 data sheet (242 TFLOPS with sparsity)"),
    "rtx-4090": Card(24e9, 1.008e12, 165.2e12, "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    "rtx-3090": Card(24e9, 0.936e12, 71e12, "NVIDIA Ampere GA102 whitepaper, appendix A"),
}
