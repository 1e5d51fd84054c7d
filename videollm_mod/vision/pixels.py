"""uint8 pictures -> the numbers a vision tower was trained on: (x / 255 - mean) / std, per channel.

Done here rather than by an image processor, which may want torchvision. What arrives has the tower's size already:
letterboxed, as a stream's frames are (video/letterbox.py), or as the tower's publishers did it (resize.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from videollm_mod.types import InputError

# The published constants of the tower families: (mean, std), RGB.
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN, SIGLIP_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalise(
    images: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Normalises RGB pictures, channel by channel.

    images: (F, S, S, 3) uint8. They travel to `device` as bytes, a quarter of the traffic of floats.
    Returns (F, 3, S, S) of `dtype` on `device` (the images' own by default), stored channels-last: convolutions run
    on it without a copy. Computed in float32 whatever `dtype` is. Raises InputError for other shapes or types.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise InputError(f"images are {images.dtype} {tuple(images.shape)}; give uint8 RGB of shape (frames, S, S, 3)")
    floats = images.to(device).permute(0, 3, 1, 2).float()  # (F, 3, S, S)
    scale = 1 / (255 * torch.tensor(std, device=floats.device).view(1, 3, 1, 1))
    shift = torch.tensor(mean, device=floats.device).view(1, 3, 1, 1) * 255
    return floats.sub_(shift).mul_(scale).to(dtype)  # two passes over the pixels, in place
