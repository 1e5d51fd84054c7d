"""Fit pictures of any size into a square: aspect kept, antialiased bilinear, centred, bars around.

`letterbox_box` tells where the picture lies in the square, so that overlays can be mapped back.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def letterbox_box(height: int, width: int, size: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1), in pixels of the size x size square, of a height x width picture; x1 and y1 are exclusive."""
    if min(height, width, size) < 1:
        raise ValueError(f"a letterbox needs sizes of at least 1 pixel, not {height} x {width} into {size}")
    scale = size / max(height, width)
    fitted_height = min(size, max(1, round(height * scale)))
    fitted_width = min(size, max(1, round(width * scale)))
    x0, y0 = (size - fitted_width) // 2, (size - fitted_height) // 2
    return x0, y0, x0 + fitted_width, y0 + fitted_height


def letterbox(images: np.ndarray | torch.Tensor, size: int, fill: tuple[int, int, int] = (0, 0, 0)) -> torch.Tensor:
    """Letterbox pictures into a square.

    images: (frames, height, width, 3) uint8. Returns (frames, size, size, 3) uint8 on the same device; a copy without
    any resampling if the pictures are size x size already. Raises ValueError for another shape or type.
    """
    if isinstance(images, np.ndarray):
        images = torch.from_numpy(np.require(images, requirements=["C", "W"]))  # PyTorch warns of what is read-only
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"letterbox takes (frames, height, width, 3) uint8, not {tuple(images.shape)} {images.dtype}")
    x0, y0, x1, y1 = letterbox_box(images.shape[1], images.shape[2], size)
    square = torch.tensor(fill, dtype=torch.uint8, device=images.device).repeat(len(images), size, size, 1)
    if images.shape[1:3] == (y1 - y0, x1 - x0):
        square[:, y0:y1, x0:x1] = images
    elif len(images):
        planes = images.permute(0, 3, 1, 2)  # (frames, 3, height, width)
        if images.device.type != "cpu":  # only the CPU resamples bytes; elsewhere through float
            planes = planes.float()
        fitted = F.interpolate(planes, size=(y1 - y0, x1 - x0), mode="bilinear", align_corners=False, antialias=True)
        if fitted.is_floating_point():
            fitted = fitted.round().clamp(0, 255).to(torch.uint8)
        square[:, y0:y1, x0:x1] = fitted.permute(0, 2, 3, 1)
    return square
