"""Our pictures are those of the published processors: same resizing, cropping and constants, on real frames.

Compared with Transformers' Pillow processors; with Pillow itself where a family's own needs torchvision (DINOv3).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Dinov2Config,
    DINOv3ViTConfig,
    PretrainedConfig,
    Siglip2ImageProcessorPil,
    Siglip2VisionConfig,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from videollm_mod.types import InputError
from videollm_mod.video import letterbox, letterbox_box, open_video
from videollm_mod.vision import TransformersTower, normalise
from videollm_mod.vision.published import PREPROCESSOR, _patches
from videollm_mod.vision.resize import crop

ROOT = Path(__file__).parents[1]
CLIPS = ("demo.mp4", "bikes.mp4", "nasa_13013.mp4", "rotated_90.mov")  # the first is bundled
SMALL: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
LEVEL = 1 / 255


@cache
def real_frame(name: str) -> np.ndarray:
    """(1, height, width, 3) uint8: a frame of a real clip, or skip."""
    folders = (ROOT / "videollm_mod" / "assets", ROOT.parent / "shared" / "data" / "videos")
    found = [folder / name for folder in folders if (folder / name).exists()]
    if not found:
        pytest.skip(f"{folders[1] / name} is not here")
    return next(iter(open_video(str(found[0]), fps=2))).image[None]


def tower(config: PretrainedConfig, **pixels: Any) -> TransformersTower:
    return TransformersTower.build(config, **pixels)


def ours(tower: TransformersTower, frame: np.ndarray) -> torch.Tensor:
    return normalise(tower.published(frame), tower.mean, tower.std)


def theirs(processor: Any, frame: np.ndarray, key: str = "pixel_values") -> torch.Tensor:
    values: torch.Tensor = processor(list(frame), return_tensors="pt", input_data_format="channels_last")[key]
    return values


def assert_within_one_level(a: torch.Tensor, b: torch.Tensor, std: tuple[float, ...], mean: float = 0.1) -> None:
    """Equal but for the rounding of a byte: nowhere more than a level, hardly anywhere at all."""
    assert a.shape == b.shape
    levels = (a - b).abs() * torch.tensor(std).view(1, 3, 1, 1) / LEVEL
    assert levels.max() < 1.01
    assert levels.mean() < mean


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("size", [384, 224])
def test_siglip_gets_what_its_processor_gives(clip: str, size: int) -> None:
    siglip = tower(SiglipVisionConfig(**SMALL, image_size=size, patch_size=16))
    processor = SiglipImageProcessorPil(size={"height": size, "width": size})
    frame = real_frame(clip)
    assert_within_one_level(ours(siglip, frame), theirs(processor, frame), siglip.std)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("size", [224, 336])
def test_clip_gets_what_its_processor_gives(clip: str, size: int) -> None:
    model = tower(CLIPVisionConfig(**SMALL, image_size=size, patch_size=14))
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    frame = real_frame(clip)
    assert_within_one_level(ours(model, frame), theirs(processor, frame), model.std)


DINOV2 = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "resample": 3,
    "size": {"shortest_edge": 256},
}


@pytest.mark.parametrize("clip", CLIPS)
def test_dinov2_gets_what_its_checkpoints_processor_gives(clip: str, tmp_path: Path) -> None:
    """Built for 518 px, published with pictures of 224: the checkpoint's file says so, and counts."""
    made = tower(Dinov2Config(**{k: v for k, v in SMALL.items() if k != "intermediate_size"}, image_size=518))
    made.model.save_pretrained(tmp_path)  # type: ignore[operator]
    (tmp_path / PREPROCESSOR).write_text(json.dumps(DINOV2))
    model = TransformersTower.from_pretrained(tmp_path)
    assert (model.image_size, model.grid) == (224, (16, 16))
    processor = BitImageProcessorPil(**{key: value for key, value in DINOV2.items() if key != "do_center_crop"})
    frame = real_frame(clip)
    assert_within_one_level(ours(model, frame), theirs(processor, frame), model.std)


@pytest.mark.parametrize("clip", CLIPS)
def test_siglip_2_gets_what_its_processor_gives_of_a_square(clip: str) -> None:
    """Its processor keeps the aspect of a picture; a stream's frames are letterboxed squares."""
    model = tower(Siglip2VisionConfig(**SMALL, num_patches=256, patch_size=16))
    assert (model.image_size, model.grid) == (256, (16, 16))
    square = letterbox(real_frame(clip), 300).numpy()
    patches = _patches(ours(model, square), model.grid)[0]
    expected = theirs(Siglip2ImageProcessorPil(), square)
    assert patches.shape == expected.shape
    assert ((patches - expected).abs() * 0.5 / LEVEL).max() < 1.01


@pytest.mark.parametrize("clip", CLIPS)
def test_dinov3_gets_its_published_pictures(clip: str) -> None:
    """Its processor needs torchvision: bilinear to 224 x 224 on floats, ImageNet's constants."""
    model, frame = tower(DINOv3ViTConfig(**SMALL, image_size=224, num_register_tokens=4)), real_frame(clip)
    by_pillow = np.asarray(Image.fromarray(frame[0]).resize((224, 224), Image.Resampling.BILINEAR))[None]
    assert (model.published(frame).int() - torch.from_numpy(by_pillow.copy()).int()).abs().max() <= 1
    floats = torch.from_numpy(frame).permute(0, 3, 1, 2).float() / 255
    resized = torch.nn.functional.interpolate(floats, (224, 224), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = (resized - mean) / std  # not rounded to bytes: a quarter of a level apart on average
    assert_within_one_level(ours(model, frame), expected, (0.229, 0.224, 0.225), mean=0.3)


@pytest.mark.parametrize("clip", CLIPS)
def test_a_letterboxed_frame_is_what_pillow_makes_of_it(clip: str) -> None:
    frame = real_frame(clip)
    x0, y0, x1, y1 = letterbox_box(*frame.shape[1:3], 384)
    square = np.zeros((384, 384, 3), np.uint8)
    square[y0:y1, x0:x1] = Image.fromarray(frame[0]).resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR)
    assert np.abs(letterbox(frame, 384)[0].numpy().astype(int) - square).max() <= 2  # both round once per axis


def test_a_checkpoint_says_how_its_pictures_were_made(tmp_path: Path) -> None:
    tower(SiglipVisionConfig(**SMALL, image_size=32, patch_size=16)).model.save_pretrained(tmp_path)  # type: ignore[operator]
    told = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 1, 1], "resample": 2, "size": {"height": 32, "width": 32}}
    (tmp_path / PREPROCESSOR).write_text(json.dumps(told))
    model = TransformersTower.from_pretrained(tmp_path)
    assert (model.mean, model.std, model.pixels.filter) == ((0.1, 0.2, 0.3), (1, 1, 1), "bilinear")
    assert TransformersTower.from_pretrained(tmp_path, image_size=64).grid == (4, 4)


def test_pictures_of_another_kind_are_refused_and_none_are_none() -> None:
    model = tower(SiglipVisionConfig(**SMALL, image_size=32, patch_size=16))
    with pytest.raises(InputError, match="give uint8 RGB"):
        model.published(torch.zeros(1, 40, 40, 3))
    with pytest.raises(InputError, match="shorter_side is 16, the picture 32 px; give at least 32"):
        crop(torch.zeros(1, 40, 40, 3, dtype=torch.uint8), 32, 16, "bicubic")
    assert model.published(torch.zeros(0, 40, 40, 3, dtype=torch.uint8)).shape == (0, 32, 32, 3)
