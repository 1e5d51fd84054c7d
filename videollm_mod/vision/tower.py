"""Vision towers: pixels -> one CLS vector and a grid of cell vectors per frame.

A tower is an nn.Module with `image_size`, `width`, `grid`, `mean`, `std` and `forward`. Two kinds: `ConvTower`, small
and trained with the bundled model, and `TransformersTower`, SigLIP or CLIP. `tower_from_config` builds both from JSON.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    PretrainedConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import logging

from videollm_mod.types import InputError
from videollm_mod.vision.pixels import CLIP_MEAN, CLIP_STD, SIGLIP_MEAN, SIGLIP_STD


class VisionTower(nn.Module, ABC):
    """What the rest of the package asks of a tower."""

    image_size: int  # side of its square input, pixels
    width: int  # d of its vectors
    grid: tuple[int, int]  # its native grid, (rows, columns)
    mean: tuple[float, ...]  # per channel, as `pixels.normalise` wants them
    std: tuple[float, ...]

    @abstractmethod
    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels: (F, 3, S, S) normalised. Returns CLS (F, d) and grid (F, rows, columns, d).

        Every frame is worked on by itself: no batch statistics, so a stream equals its frames in one batch.
        """

    @abstractmethod
    def to_config(self) -> dict[str, Any]:
        """Plain JSON from which `tower_from_config` builds the same architecture; "kind" names it. No weights."""


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
        self.position = nn.Parameter(torch.randn(side, side, self.width) * config.position)
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


@dataclass(frozen=True)
class _Family:
    """What differs between the tower families of Transformers."""

    config: type[PretrainedConfig]
    model: Callable[..., Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    cls_is_first: (
        bool  # CLIP: position 0 of the last layer; SigLIP has no such position, its CLS is the pooler's output
    )


_FAMILIES = {
    "siglip": _Family(SiglipVisionConfig, SiglipVisionModel, SIGLIP_MEAN, SIGLIP_STD, cls_is_first=False),
    "clip": _Family(CLIPVisionConfig, CLIPVisionModel, CLIP_MEAN, CLIP_STD, cls_is_first=True),
}


class TransformersTower(VisionTower):
    """SigLIP (CLS = the attention pooler's output, as in the paper) or CLIP (CLS = its class token).

    model: a SiglipVisionModel or CLIPVisionModel; see `build` and `from_pretrained`. A model whose pixels are not
    normalised by the family's published constants needs its own `mean` and `std`.
    """

    def __init__(
        self, model: nn.Module, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.kind = _kind(config)
        self.family = _FAMILIES[self.kind]
        if not self.family.cls_is_first and not getattr(config, "vision_use_head", True):  # not in every version
            raise InputError("the SigLIP tower has vision_use_head false, so no CLS; use one with its pooling head.")
        self.model = model
        self.image_size, self.width = int(config.image_size), int(config.hidden_size)
        side = self.image_size // int(config.patch_size)
        self.grid = (side, side)
        self.mean, self.std = tuple(mean or self.family.mean), tuple(std or self.family.std)

    @classmethod
    def build(cls, config: PretrainedConfig, **constants: Sequence[float]) -> TransformersTower:
        """A tower with random weights. constants: `mean`, `std`."""
        return cls(_FAMILIES[_kind(config)].model(config), **constants)

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype | None = None) -> TransformersTower:
        """Loads the vision half of a SigLIP or CLIP checkpoint from a folder or a hub id. Runs no remote code.

        Raises InputError when it cannot be read, is of another family or lacks weights.
        """
        name = str(name)
        if Path(name).is_absolute() and not Path(name).is_dir():
            raise InputError(f"vision tower folder {name!r} does not exist; give a checkpoint folder or a hub id.")
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # else a table of the text half's weights, which we leave out on purpose
        try:
            config = AutoConfig.from_pretrained(name)
            config = getattr(config, "vision_config", config)
            model, info = _FAMILIES[_kind(config)].model.from_pretrained(  # type: ignore[attr-defined]
                name, config=config, dtype=dtype, output_loading_info=True
            )
        except InputError:
            raise
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"vision tower {name!r} cannot be loaded ({reason}); check the name or folder.") from error
        finally:
            logging.set_verbosity(verbosity)
        if info["missing_keys"]:
            raise InputError(
                f"vision tower {name!r} lacks the weight {sorted(info['missing_keys'])[0]!r}; use a whole one."
            )
        return cls(model)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(pixels)
        cells = output.last_hidden_state  # (F, [1 +] rows * columns, d)
        if self.family.cls_is_first:
            cls, cells = cells[:, 0], cells[:, 1:]
        else:
            cls = output.pooler_output
        return cls, cells.unflatten(1, self.grid)

    def to_config(self) -> dict[str, Any]:
        config: Any = self.model.config
        sizes = {k: v for k, v in config.to_diff_dict().items() if k not in ("transformers_version", "dtype")}
        return {"kind": self.kind, "config": sizes, "mean": list(self.mean), "std": list(self.std)}


def tower_from_config(config: dict[str, Any]) -> VisionTower:
    """Builds the tower that `to_config` described, with random weights. Raises InputError when it cannot."""
    if not isinstance(config, dict):
        raise InputError(f'tower is {config!r}; give an object, such as {{"kind": "conv"}}.')
    settings = dict(config)
    kind = settings.pop("kind", None)
    if kind == "conv":
        _check_entries(settings, _CONV_ENTRIES)
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        return ConvTower(ConvTowerConfig(**tuples))
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise InputError(f'tower kind is {kind!r}; choose one of "conv", "siglip" or "clip".')
    _check_entries(settings, _FAMILY_ENTRIES)
    if "config" not in settings:
        raise InputError(f"the {kind} tower lacks 'config'; give {_FAMILY_ENTRIES['config'][1]}.")
    sizes = settings.pop("config")
    try:
        return TransformersTower.build(_FAMILIES[kind].config(**sizes), **settings)
    except InputError:
        raise
    except Exception as error:  # Transformers checks little: a bad size shows as whatever it breaks
        raise InputError(
            f"tower.config describes no {kind} tower that Transformers can build; compare its sizes with a saved one."
        ) from error


def _numbers(value: Any, least: float, kinds: tuple[type, ...] = (int,)) -> bool:
    """Whether a value is three numbers, none below `least`."""
    return isinstance(value, list | tuple) and len(value) == 3 and all(type(v) in kinds and v >= least for v in value)


_Entries = dict[str, tuple[Callable[[Any], bool], str]]  # entry -> whether a value fits, and what to give instead
_CONV_ENTRIES: _Entries = {
    "image_size": (lambda v: type(v) is int, "a multiple of 16, in pixels"),
    "channels": (lambda v: _numbers(v, 1), "three whole numbers, such as [32, 64, 128]"),
    "blocks": (lambda v: _numbers(v, 0), "three whole numbers, such as [1, 1, 1]"),
    "heads": (lambda v: type(v) is int, "a whole number that divides the last of its channels"),
    "position": (lambda v: type(v) in (int, float) and 0 <= v < float("inf"), "a number of 0 or more"),
}
_FAMILY_ENTRIES: _Entries = {
    "config": (lambda v: isinstance(v, dict), "an object, the configuration of its Transformers model"),
    "mean": (lambda v: _numbers(v, float("-inf"), (int, float)), "three numbers, one per colour"),
    "std": (lambda v: _numbers(v, 1e-6, (int, float)), "three numbers above 0, one per colour"),
}


def _check_entries(settings: dict[str, Any], entries: _Entries) -> None:
    """Raise InputError for an entry of a tower's configuration that is unknown or cannot be."""
    for name, value in settings.items():
        if name not in entries:
            raise InputError(f"tower has an unknown entry '{name}'; it may have {', '.join(entries)}.")
        fits, mend = entries[name]
        if not fits(value):
            raise InputError(f"tower.{name} is {value!r}; give {mend}.")


def _kind(config: PretrainedConfig) -> str:
    kind = config.model_type.removesuffix("_vision_model")
    if kind not in _FAMILIES:
        raise InputError(f"a model of type {config.model_type!r} is no vision tower we know; give SigLIP or CLIP.")
    return kind
