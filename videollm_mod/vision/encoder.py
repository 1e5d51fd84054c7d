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

    grid: (h, w), at most the tower's own, else InputError. Where h does not divide its rows, a pooled cell takes all
    rows that it touches, and neighbours share one (adaptive pooling): the paper's 7x7 of SigLIP-L/16's 24x24, say.
    """

    def __init__(self, tower: VisionTower, grid: tuple[int, int]) -> None:
        super().__init__()
        for size, native, side in zip(grid, tower.grid, ("rows", "columns")):
            if not 1 <= size <= native:
                raise InputError(
                    f"grid {grid[0]}x{grid[1]} cannot be pooled from the tower's {tower.grid[0]}x{tower.grid[1]} "
                    f"cells; choose 1 to {native} {side}."
                )
        self.tower = tower
        self.grid = (int(grid[0]), int(grid[1]))
        self.width = tower.width
        self.tokens_per_frame = 1 + self.grid[0] * self.grid[1]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """images: (F, S, S, 3) uint8 on any device, S the tower's size. Returns (F, 1 + h * w, width)."""
        tower = self.tower
        if images.shape[1:3] != (tower.image_size, tower.image_size):
            raise InputError(
                f"images are {tuple(images.shape)}; this tower wants {tower.image_size} px squares, RGB last"
            )
        parameter = next(tower.parameters())
        cls, cells = tower(normalise(images, tower.mean, tower.std, parameter.device, parameter.dtype))
        return torch.cat([cls[:, None], self.pool(cells)], 1)

    def pool(self, cells: torch.Tensor) -> torch.Tensor:
        """What the tower has for each of its cells, (F, rows, columns, any), averaged: (F, h * w, any)."""
        (h, w), (rows, columns) = self.grid, cells.shape[1:3]
        if rows % h or columns % w:
            pooled = nn.functional.adaptive_avg_pool2d(cells.permute(0, 3, 1, 2), (h, w)).permute(0, 2, 3, 1)
        else:  # the same numbers, faster
            pooled = cells.unflatten(2, (w, -1)).unflatten(1, (h, -1)).mean((2, 4))  # of (F, h, rows / h, w, .., d)
        return pooled.flatten(1, 2)


class Connector(nn.Module):
    """Tower width -> decoder width: linear, GELU, linear."""

    def __init__(self, width: int, d_lm: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, d_lm)
        self.outer = nn.Linear(d_lm, d_lm)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (..., width). Returns (..., d_lm)."""
        return self.outer(nn.functional.gelu(self.inner(tokens)))
