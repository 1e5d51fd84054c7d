"""The towers that Transformers has: SigLIP, SigLIP 2, CLIP, DINOv2 and DINOv3, and how their pictures were prepared."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PretrainedConfig,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.utils import logging

from videollm_mod.hub import folder_of
from videollm_mod.types import InputError
from videollm_mod.vision.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, SIGLIP_MEAN, SIGLIP_STD
from videollm_mod.vision.resize import Filter, crop, stretch
from videollm_mod.vision.tower import VisionTower

PREPROCESSOR = "preprocessor_config.json"
_FILTERS: dict[Any, Filter] = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


@dataclass(frozen=True)
class Pixels:
    """How a tower's pictures were made when it was trained."""

    image_size: int  # side of its square input, pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: Filter = "bicubic"
    resize: str = "stretch"  # the whole picture squashed into the square, or "crop": the middle of it
    shorter_side: int = 0  # crop: what the shorter side was scaled to before, pixels; 0 = image_size

    def changed(self, published: dict[str, Any]) -> Pixels:
        """As a checkpoint's preprocessor_config.json has it; what it does not say stays."""
        values: dict[str, Any] = {}
        for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
            if isinstance(published.get(theirs), list):
                values[ours] = tuple(published[theirs])
        if published.get("resample") in _FILTERS:
            values["filter"] = _FILTERS[published["resample"]]
        size, cut = _side(published.get("size")), _side(published.get("crop_size"))
        if cut and published.get("do_center_crop", True):
            values |= {"image_size": cut, "resize": "crop", "shorter_side": size or cut}
        elif size:
            values |= {"image_size": size, "resize": "stretch", "shorter_side": 0}
        return replace(self, **values)


def _side(size: Any) -> int | None:
    """One number for a square that is written as a number, {"height", "width"} or {"shortest_edge"}."""
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (size.get("height") if size.get("height") == size.get("width") else None)
    return size if type(size) is int else None


@dataclass(frozen=True)
class Family:
    """What differs between the tower families of Transformers."""

    config: type[PretrainedConfig]
    model: Callable[..., Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    filter: Filter
    resize: str
    cls_is_first: bool  # position 0 of the last layer; SigLIP has no such position: its CLS is the pooler's output
    any_size: bool  # takes pictures of other sizes than its own without being asked to stretch its positions


FAMILIES = {
    "siglip": Family(
        SiglipVisionConfig, SiglipVisionModel, SIGLIP_MEAN, SIGLIP_STD, "bicubic", "stretch", False, False
    ),
    # the checkpoints of flexible size; those of a fixed size call themselves "siglip"
    "siglip2": Family(
        Siglip2VisionConfig, Siglip2VisionModel, SIGLIP_MEAN, SIGLIP_STD, "bilinear", "stretch", False, True
    ),
    "clip": Family(CLIPVisionConfig, CLIPVisionModel, CLIP_MEAN, CLIP_STD, "bicubic", "crop", True, False),
    "dinov2": Family(Dinov2Config, Dinov2Model, IMAGENET_MEAN, IMAGENET_STD, "bicubic", "crop", True, True),
    "dinov2_with_registers": Family(
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        IMAGENET_MEAN,
        IMAGENET_STD,
        "bicubic",
        "crop",
        True,
        True,
    ),
    "dinov3_vit": Family(
        DINOv3ViTConfig, DINOv3ViTModel, IMAGENET_MEAN, IMAGENET_STD, "bilinear", "stretch", True, True
    ),
}


class TransformersTower(VisionTower):
    """SigLIP and SigLIP 2 (CLS = the attention pooler's output, as in the paper), CLIP, DINOv2, DINOv3 (CLS = theirs).

    model: one of Transformers' vision models; see `build` and `from_pretrained`.
    pixels: fields of `Pixels` in which it differs from its family, such as `image_size`: DINO and SigLIP 2 take any
        multiple of their patch size, the others stretch their learned positions. Raises InputError for a size that the
        patches do not divide, unless it is the model's own (SigLIP-so400m's 384 with patches of 14: the rest is cut).
    """

    def __init__(self, model: nn.Module, **pixels: Any) -> None:
        super().__init__()
        config: Any = model.config
        self.kind = _kind(config)
        self.family = FAMILIES[self.kind]
        if not self.family.cls_is_first and not getattr(config, "vision_use_head", True):  # not in every version
            raise InputError("the SigLIP tower has vision_use_head false, so no CLS; use one with its pooling head.")
        for name in ("pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"):  # DINOv3 in training draws new
            if hasattr(config, name):  # positions for each batch: frames of one stream must be seen alike
                setattr(config, name, None)
        self.model = model
        self._own_size, patch = _own_size(config), int(config.patch_size)
        self.pixels = replace(
            Pixels(self._own_size, self.family.mean, self.family.std, self.family.filter, self.family.resize),
            **pixels,
        )
        self.image_size, self.width = self.pixels.image_size, int(config.hidden_size)
        self.mean, self.std = self.pixels.mean, self.pixels.std
        if self.image_size < patch or (self.image_size % patch and self.image_size != self._own_size):
            raise InputError(
                f"image_size of the tower is {self.image_size}; give a multiple of its patch size, {patch}."
            )
        side = self.image_size // patch
        self.grid = (side, side)
        # tokens that stand before the cells: CLS and registers
        self.skipped = int(self.family.cls_is_first) + int(getattr(config, "num_register_tokens", 0))

    @classmethod
    def build(cls, config: PretrainedConfig, **pixels: Any) -> TransformersTower:
        """A tower with random weights. pixels: see the class."""
        return cls(FAMILIES[_kind(config)].model(config), **pixels)

    @classmethod
    def from_pretrained(cls, name: str | Path, dtype: torch.dtype | None = None, **pixels: Any) -> TransformersTower:
        """Loads a checkpoint's vision half from a folder or a hub id, its pixels as its preprocessor_config.json says.

        Runs no remote code. Raises InputError when it cannot be had or read, is of another family or lacks weights.
        """
        name = str(name)
        folder = folder_of(name, "vision tower")
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # else a table of the text half's weights, which we leave out on purpose
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            config = getattr(config, "vision_config", config)
            family = FAMILIES[_kind(config)]
            model, info = family.model.from_pretrained(  # type: ignore[attr-defined]
                folder, config=config, dtype=dtype, output_loading_info=True, local_files_only=True
            )
            told = Pixels(_own_size(config), family.mean, family.std, family.filter, family.resize)
            if (folder / PREPROCESSOR).is_file():
                told = told.changed(json.loads((folder / PREPROCESSOR).read_text(encoding="utf-8")))
        except InputError:
            raise
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise InputError(f"vision tower {name!r} cannot be loaded ({reason}); check the name or folder.") from error
        finally:
            logging.set_verbosity(verbosity)
        if info["missing_keys"]:
            raise InputError(
                f"vision tower {name!r} lacks the weight {sorted(info['missing_keys'])[0]!r}; use a whole one."
            )
        tower = cls(model, **asdict(told) | pixels)
        tower.name = str(Path(name).resolve()) if Path(name).is_dir() else name
        return tower

    def published(self, images: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Pictures (F, height, width, 3) uint8 -> squares (F, S, S, 3) uint8, as the tower's publishers made them."""
        how = self.pixels
        if how.resize == "crop":
            return crop(images, self.image_size, how.shorter_side or self.image_size, how.filter)
        return stretch(images, self.image_size, how.filter)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.kind == "siglip2":
            output = self.model(*_patches(pixels, self.grid))
        elif self.family.any_size or self.image_size == self._own_size:
            output = self.model(pixels)
        else:
            output = self.model(pixels, interpolate_pos_encoding=True)
        cells = output.last_hidden_state  # (F, [1 + registers +] rows * columns, d)
        cls = cells[:, 0] if self.family.cls_is_first else output.pooler_output
        return cls, cells[:, self.skipped :].unflatten(1, self.grid)

    def to_config(self) -> dict[str, Any]:
        config: Any = self.model.config
        sizes = {k: v for k, v in config.to_diff_dict().items() if k not in ("transformers_version", "dtype")}
        pixels = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.pixels).items()}
        if not self.pixels.shorter_side:
            del pixels["shorter_side"]
        return {"kind": self.kind, "config": sizes, **pixels}


def _patches(pixels: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What SigLIP 2 takes: (F, 3, S, S) -> patches (F, n, p * p * 3), a mask of ones (F, n), shapes (F, 2)."""
    rows, columns = grid
    patches = pixels.unflatten(3, (columns, -1)).unflatten(2, (rows, -1))  # (F, 3, rows, p, columns, p)
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=pixels.device)
    return patches, mask, torch.tensor([grid], device=pixels.device).expand(len(pixels), -1)


def _own_size(config: Any) -> int:
    """Side of the pictures that the model was built for, pixels. Raises InputError when they were no squares."""
    if not hasattr(config, "image_size"):  # SigLIP 2 counts patches
        return math.isqrt(config.num_patches) * int(config.patch_size)
    sides = config.image_size if isinstance(config.image_size, list | tuple) else [config.image_size]
    if len(set(sides)) > 1:
        raise InputError(f"the tower's pictures are {sides[0]} x {sides[1]} px; use one that was trained on squares.")
    return int(sides[0])


def _kind(config: PretrainedConfig) -> str:
    kind = config.model_type.removesuffix("_vision_model")
    if kind not in FAMILIES:
        raise InputError(
            f"a model of type {config.model_type!r} is no vision tower we know; give SigLIP, SigLIP 2, CLIP or DINO."
        )
    return kind
