"""Frames -> the tokens a decoder gets: a CLS vector, then the tower's grid average-pooled to h x w, in raster order.

`FrameEncoder` gives tower vectors; the `Connector` (2-layer GELU MLP, as in the paper) takes them to the decoder's
width. They are two modules so that a frozen tower's vectors can be computed once and stored.
"""

from __future__ import annotations

import torch
from torch import nn

from videollm_mod.types import InputError
from videollm_mod.vision.pixels import normalise
from videollm_mod.vision.tower import VisionTower


class FrameEncoder(nn.Module):
    """uint8 pictures -> frame tokens (F, 1 + h * w, width).

    grid: (h, w); each must divide the tower's own grid, for uneven cells would weigh pixels unevenly, else InputError.
    """

    def __init__(self, tower: VisionTower, grid: tuple[int, int]) -> None:
        super().__init__()
        for size, native, side in zip(grid, tower.grid, ("rows", "columns")):
            if size < 1 or native % size:
                raise InputError(
                    f"grid {grid[0]}x{grid[1]} does not divide the tower's {tower.grid[0]}x{tower.grid[1]} cells; "
                    f"choose its {side} from {_divisors(native)}"
                )
        self.tower = tower
        self.grid = (int(grid[0]), int(grid[1]))
        self.width = tower.width
        self.tokens_per_frame = 1 + self.grid[0] * self.grid[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: (F, S, S, 3) uint8 on any device, S the tower's size. Returns (F, 1 + h * w, width)."""
        tower, (h, w) = self.tower, self.grid
        if images.shape[1:3] != (tower.image_size, tower.image_size):
            raise InputError(
                f"images are {tuple(images.shape)}; this tower wants {tower.image_size} px squares, RGB last"
            )
        parameter = next(tower.parameters())
        cls, cells = tower(normalise(images, tower.mean, tower.std, parameter.device, parameter.dtype))
        cells = cells.unflatten(2, (w, -1)).unflatten(1, (h, -1))  # (F, h, rows / h, w, columns / w, d)
        return torch.cat([cls[:, None], cells.mean((2, 4)).flatten(1, 2)], 1)


class Connector(nn.Module):
    """Tower width -> decoder width: linear, GELU, linear."""

    def __init__(self, width: int, d_lm: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, d_lm)
        self.outer = nn.Linear(d_lm, d_lm)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (..., width). Returns (..., d_lm)."""
        return self.outer(nn.functional.gelu(self.inner(tokens)))


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
