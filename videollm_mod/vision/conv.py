"""The bundled model's own tower: small, convolutional, trained from nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from videollm_mod.types import InputError
from videollm_mod.vision.pixels import SIGLIP_MEAN, SIGLIP_STD
from videollm_mod.vision.tower import VisionTower


@dataclass(frozen=True)
class ConvTowerConfig:
    """Sizes of a ConvTower. Its stages run at strides 4, 8 and 16; the last one's cells are the native grid."""

    image_size: int = 112
    channels: tuple[int, int, int] = (32, 64, 128)  # the last is the tower's width
    blocks: tuple[int, int, int] = (1, 1, 1)  # residual blocks per stage
    heads: int = 4  # of the CLS token's attention pooling
    position: float = 0.02  # spread of the learned cell positions at the start, beside cells of spread 1

    def __post_init__(self) -> None:
        if self.image_size < 16 or self.image_size % 16:
            raise InputError(f"image_size of the conv tower is {self.image_size}; give a multiple of its stride, 16.")
        if self.heads < 1 or self.channels[-1] % self.heads:
            raise InputError(
                f"heads of the conv tower is {self.heads}; give a divisor of its width {self.channels[-1]}."
            )


class ConvTower(VisionTower):
    """A small residual conv net for the bundled model: 112 px -> 7x7 cells of 128, trained from nothing.

    Small objects (15 px) must keep their shape, hence an overlapping stem in two steps and a stage at stride 4. Learned
    cell positions are added at the end, so that the pooled CLS token knows where things are too.
    """

    def __init__(self, config: ConvTowerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ConvTowerConfig()
        side = config.image_size // 16
        self.image_size, self.width, self.grid = config.image_size, config.channels[-1], (side, side)
        self.mean, self.std = SIGLIP_MEAN, SIGLIP_STD
        half = max(1, config.channels[0] // 2)
        layers: list[nn.Module] = [nn.Conv2d(3, half, 3, stride=2, padding=1), nn.ReLU(inplace=True)]
        before = half
        for channels, blocks in zip(config.channels, config.blocks):
            layers.append(nn.Conv2d(before, channels, 3, stride=2, padding=1))
            layers.extend(_ResidualBlock(channels) for _ in range(blocks))
            before = channels
        self.body = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(self.width)
        self.position = nn.Parameter(torch.empty(side, side, self.width))
        nn.init.normal_(self.position, std=config.position)
        self.pool = _AttentionPool(self.width, config.heads)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        grid = self.body(pixels).permute(0, 2, 3, 1)  # (F, rows, columns, d)
        grid = self.norm(grid) + self.position
        return self.pool(grid.flatten(1, 2)), grid

    def to_config(self) -> dict[str, Any]:
        sizes = dataclasses.asdict(self.config)
        return {"kind": "conv", **{k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}}


class _ResidualBlock(nn.Module):
    """x + conv(relu(norm(conv(norm(x))))), 3x3. The norms take one frame's statistics, never the batch's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(1, channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(1, channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class _AttentionPool(nn.Module):
    """cells (F, n, d) -> CLS (F, d): per head, a learned query weighs the cells and their values are summed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.score = nn.Linear(width, heads, bias=False)  # a bias would cancel in the softmax
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        weights = self.score(cells).softmax(1)  # (F, n, heads)
        values = self.value(cells).unflatten(-1, (weights.shape[-1], -1))  # (F, n, heads, d / heads)
        return self.out((weights[..., None] * values).sum(1).flatten(1))
