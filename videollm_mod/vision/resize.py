"""uint8 pictures -> a tower's squares as its publishers made them: squashed, or scaled and cut out of the middle.

With Pillow, as the published processors do it: antialiased, rounded and cut off at 0 and 255 once per axis. (DINOv3's
rounds nothing, so that it differs by the rounding.) PyTorch's own resampling of bytes is up to seven levels off at
sharp edges; it serves pictures that are not on the CPU. A stream's frames are letterboxed instead.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from videollm_mod.types import InputError

Filter = Literal["bilinear", "bicubic"]


def stretch(images: np.ndarray | torch.Tensor, size: int, how: Filter) -> torch.Tensor:
    """The whole picture in a square, aspect lost. (F, height, width, 3) uint8 -> (F, size, size, 3) uint8."""
    return _resized(images, size, size, how)


def crop(images: np.ndarray | torch.Tensor, size: int, shorter_side: int, how: Filter) -> torch.Tensor:
    """The shorter side scaled to `shorter_side`, then the middle: (F, height, width, 3) -> (F, size, size, 3) uint8.

    Raises InputError when `shorter_side` is less than `size`.
    """
    if shorter_side < size:
        raise InputError(f"shorter_side is {shorter_side}, the picture {size} px; give at least {size}.")
    height, width = images.shape[1:3]
    longer_side = int(shorter_side * max(height, width) / min(height, width))
    high, wide = (shorter_side, longer_side) if height <= width else (longer_side, shorter_side)
    top, left = (high - size) // 2, (wide - size) // 2
    return _resized(images, high, wide, how)[:, top : top + size, left : left + size].contiguous()


def _resized(images: np.ndarray | torch.Tensor, high: int, wide: int, how: Filter) -> torch.Tensor:
    """(F, height, width, 3) uint8 -> (F, high, wide, 3) uint8, on the same device."""
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.ascontiguousarray(images))
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(
            f"images are {images.dtype} {tuple(images.shape)}; give uint8 RGB, (frames, height, width, 3)."
        )
    if images.shape[1:3] == (high, wide) or not len(images):
        return images.new_zeros(0, high, wide, 3) if not len(images) else images.clone()
    if images.device.type == "cpu":
        kernel = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[how]
        pictures = [Image.fromarray(image).resize((wide, high), kernel) for image in images.numpy()]
        return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    planes = images.permute(0, 3, 1, 2).float()  # (F, 3, height, width)
    resized = interpolate(planes, size=(high, wide), mode=how, align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
