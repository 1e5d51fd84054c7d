"""Vision towers: pixels -> one CLS vector and a grid of cell vectors per frame.

A tower is an nn.Module with `image_size`, `width`, `grid`, `mean`, `std` and `forward`. Two kinds: `ConvTower` in
conv.py, small and trained with the bundled model, and `TransformersTower` in published.py: SigLIP, CLIP, DINO.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn


class VisionTower(nn.Module, ABC):
    """What the rest of the package asks of a tower."""

    image_size: int  # side of its square input, pixels
    width: int  # d of its vectors
    grid: tuple[int, int]  # its native grid, (rows, columns)
    mean: tuple[float, ...]  # per channel, as `pixels.normalise` wants them
    std: tuple[float, ...]
    name: str | None = (
        None  # the folder or hub id that its weights are from; None = its own, to be saved with the model
    )

    @abstractmethod
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels: (F, 3, S, S) normalised. Returns CLS (F, d) and grid (F, rows, columns, d).

        Every frame is worked on by itself: no batch statistics, so a stream equals its frames in one batch.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Plain JSON from which `tower_from_config` builds the same architecture; "kind" names it. No weights."""
