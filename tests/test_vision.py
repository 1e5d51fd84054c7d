"""Frames to tokens: normalisation, towers (conv, SigLIP, CLIP, DINO), pooling and connector."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    PretrainedConfig,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from videollm_mod.types import InputError
from videollm_mod.vision import (
    Connector,
    ConvTower,
    ConvTowerConfig,
    FrameEncoder,
    TransformersTower,
    VisionTower,
    normalise,
    tower_from_config,
)
from videollm_mod.vision.pixels import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD, SIGLIP_MEAN, SIGLIP_STD
from videollm_mod.vision.published import FAMILIES

SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 48,
    "patch_size": 8,
}
KINDS = ["conv", *FAMILIES]
MORE: dict[str, dict[str, object]] = {
    "siglip2": {"num_patches": 36},
    "dinov2": {"mlp_ratio": 2},
    "dinov2_with_registers": {"mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": {"num_register_tokens": 4},
}


def config_of(kind: str) -> PretrainedConfig:
    """A tiny model of Transformers: 48 px, patches of 8."""
    sizes = {key: value for key, value in SIZES.items() if kind != "siglip2" or key != "image_size"}
    return FAMILIES[kind].config(**sizes, **MORE.get(kind, {}))  # type: ignore[arg-type]


@cache
def tower_of(kind: str) -> VisionTower:
    """A tiny random tower; every kind has a native grid of 6x6."""
    torch.manual_seed(0)
    if kind == "conv":
        return ConvTower(ConvTowerConfig(image_size=96, channels=(8, 12, 16), heads=2)).eval()
    return TransformersTower.build(config_of(kind)).eval()


def pictures(frames: int, size: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, size, size, 3), dtype=torch.uint8, generator=generator)


# -- pixels ------------------------------------------------------------------------------------------------------------


def test_the_constants_are_the_published_ones() -> None:
    assert (list(CLIP_MEAN), list(CLIP_STD)) == (list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD))
    assert (list(SIGLIP_MEAN), list(SIGLIP_STD)) == (list(IMAGENET_STANDARD_MEAN), list(IMAGENET_STANDARD_STD))
    assert (list(IMAGENET_MEAN), list(IMAGENET_STD)) == (list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_pixels_equal_those_of_the_image_processor_of_transformers(kind: str) -> None:
    from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

    processor = (SiglipImageProcessorPil if kind == "siglip" else CLIPImageProcessorPil)(
        do_resize=False, do_center_crop=False
    )
    images, tower = pictures(3, 48), tower_of(kind)
    theirs = processor(list(images.numpy()), return_tensors="pt", input_data_format="channels_last").pixel_values
    torch.testing.assert_close(normalise(images, tower.mean, tower.std), theirs, rtol=0, atol=1e-6)


def test_pixels_come_in_the_type_asked_for_and_leave_the_images_alone() -> None:
    images = pictures(2, 16)
    before = images.clone()
    pixels = normalise(images, CLIP_MEAN, CLIP_STD, dtype=torch.bfloat16)
    assert (pixels.dtype, pixels.shape) == (torch.bfloat16, (2, 3, 16, 16))
    assert torch.equal(images, before)
    assert torch.equal(pixels, normalise(images, CLIP_MEAN, CLIP_STD).bfloat16())


@pytest.mark.parametrize("images", [torch.zeros(2, 16, 16, 3), torch.zeros(16, 16, 3).byte(), pictures(2, 16).mT])
def test_images_of_another_shape_or_type_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"give uint8 RGB of shape \(frames, S, S, 3\)"):
        normalise(images, CLIP_MEAN, CLIP_STD)


# -- towers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_gives_what_it_announces(kind: str) -> None:
    tower = tower_of(kind)
    cls, cells = tower(torch.zeros(2, 3, tower.image_size, tower.image_size))
    assert cls.shape == (2, tower.width)
    assert cells.shape == (2, *tower.grid, tower.width)


@pytest.mark.parametrize("kind", ["siglip", "clip", "dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_cls_and_cells_are_those_of_the_model_and_registers_are_none_of_them(kind: str) -> None:
    pixels, tower = torch.randn(2, 3, 48, 48), tower_of(kind)
    assert isinstance(tower, TransformersTower)
    cls, cells = tower(pixels)
    output = tower.model(pixels)
    before = {"siglip": 0, "clip": 1, "dinov2": 1, "dinov2_with_registers": 1 + 3, "dinov3_vit": 1 + 4}[kind]
    assert torch.equal(cls, output.pooler_output if kind == "siglip" else output.last_hidden_state[:, 0])
    assert torch.equal(cells[:, 2, 3], output.last_hidden_state[:, before + 2 * 6 + 3])


def test_siglip_2_gets_its_patches_as_its_own_processor_cuts_them() -> None:
    from transformers import Siglip2ImageProcessorPil

    images, tower = pictures(2, 48), tower_of("siglip2")
    assert isinstance(tower, TransformersTower)
    inputs = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=36)(
        list(images.numpy()), return_tensors="pt", input_data_format="channels_last"
    )
    output = tower.model(**inputs)
    cls, cells = tower(normalise(images, tower.mean, tower.std))
    torch.testing.assert_close(cls, output.pooler_output, rtol=0, atol=1e-5)
    torch.testing.assert_close(cells.flatten(1, 2), output.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_tower_takes_pictures_of_another_size_as_its_model_does(kind: str) -> None:
    tower = TransformersTower.build(config_of(kind), image_size=64).eval()
    assert (tower.image_size, tower.grid) == (64, (8, 8))
    cells = tower(pixels := torch.randn(1, 3, 64, 64))[1]
    if kind in ("siglip", "clip"):
        output = tower.model(pixels, interpolate_pos_encoding=True)
        assert torch.equal(cells[:, -1, -1], output.last_hidden_state[:, -1])
    assert cells.shape == (1, 8, 8, 16)
    assert tower_from_config(json.loads(json.dumps(tower.to_config()))).grid == (8, 8)


@pytest.mark.parametrize(("kind", "size"), [("dinov3_vit", 50), ("siglip", 4), ("clip", 47)])
def test_a_picture_that_the_patches_do_not_divide_is_refused(kind: str, size: int) -> None:
    with pytest.raises(InputError, match=rf"image_size of the tower is {size}; give a multiple of its patch size, 8\."):
        TransformersTower.build(config_of(kind), image_size=size)


def test_a_model_whose_own_size_its_patches_do_not_divide_cuts_the_rest_as_it_always_did() -> None:
    tower = TransformersTower.build(SiglipVisionConfig(**{**SIZES, "image_size": 52})).eval()  # as so400m's 384 by 14
    assert (tower.image_size, tower.grid) == (52, (6, 6))
    tokens = FrameEncoder(tower, (4, 4))(pictures(1, 52))
    assert tokens.shape == (1, 17, 16)


def test_dinov3_sees_a_frame_in_training_as_it_does_otherwise() -> None:
    tower = TransformersTower.build(config_of("dinov3_vit")).train()  # Transformers' would draw new positions each time
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(tower(pixels)[1], tower(pixels)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_comes_back_from_plain_json(kind: str) -> None:
    tower = tower_of(kind)
    config = json.loads(json.dumps(tower.to_config()))
    again = tower_from_config(config).eval()
    assert again.to_config() == tower.to_config()
    assert (again.mean, again.std, again.grid) == (tower.mean, tower.std, tower.grid)
    again.load_state_dict(tower.state_dict())
    images = pictures(2, tower.image_size)
    assert torch.equal(FrameEncoder(again, (3, 3))(images), FrameEncoder(tower, (3, 3))(images))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_pretrained_folder_loads_with_its_weights(kind: str, tmp_path: Path) -> None:
    tower = tower_of(kind)
    assert isinstance(tower, TransformersTower)
    tower.model.save_pretrained(tmp_path)  # type: ignore[operator]
    again = TransformersTower.from_pretrained(tmp_path).eval()
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(again(pixels)[1], tower(pixels)[1])
    assert again.to_config() == tower.to_config()
    assert again.name == str(tmp_path)


def test_the_vision_half_of_a_whole_siglip_loads(tmp_path: Path) -> None:
    text = {**SIZES, "vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "projection_size": 16}
    whole = SiglipModel(SiglipConfig(vision_config=SIZES, text_config=text)).eval()
    whole.save_pretrained(tmp_path)
    tower = TransformersTower.from_pretrained(str(tmp_path)).eval()
    pixels = torch.randn(1, 3, 48, 48)
    assert torch.equal(tower(pixels)[0], whole.vision_model(pixels).pooler_output)


def test_a_tower_that_cannot_be_had_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="does not exist"):
        TransformersTower.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="cannot be loaded"):
        TransformersTower.from_pretrained(tmp_path)  # a folder without a checkpoint
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # spares the hub's retries
    with pytest.raises(
        InputError, match=r"'nobody/no-such-tower' is no folder, and the hub cannot be reached \(Offline"
    ):
        TransformersTower.from_pretrained("nobody/no-such-tower")
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="'gpt2' is no vision tower we know"):
        TransformersTower.from_pretrained(tmp_path)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    SiglipVisionModel(SiglipVisionConfig(**{**SIZES, "num_hidden_layers": 1})).save_pretrained(tmp_path)
    SiglipVisionConfig(**SIZES).save_pretrained(tmp_path)  # claims two layers
    with pytest.raises(InputError, match="lacks the weight"):
        TransformersTower.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"kind": "vit"}, "tower kind is 'vit'"),
        ({}, "tower kind is None"),
        ({"kind": "conv", "colour": 3}, "colour"),
        ({"kind": "conv", "image_size": 100}, "image_size of the conv tower is 100; give a multiple"),
        ({"kind": "conv", "heads": 5}, "heads of the conv tower is 5; give a divisor"),
        ({"kind": ["conv"]}, r"tower kind is \['conv'\]"),
        ("conv", "tower is 'conv'; give an object"),
        ({"kind": "conv", "channels": "x"}, "tower.channels is 'x'; give three whole numbers"),
        ({"kind": "conv", "channels": [8, 8, 0]}, "tower.channels is"),
        ({"kind": "conv", "blocks": [1, 1]}, r"tower.blocks is \[1, 1\]; give three whole numbers"),
        ({"kind": "conv", "heads": 2.0}, "tower.heads is 2.0; give a whole number"),
        ({"kind": "conv", "position": "far"}, "tower.position is 'far'; give a number of 0 or more"),
        ({"kind": "siglip"}, "the siglip tower lacks 'config'"),
        ({"kind": "siglip", "config": "x"}, "tower.config is 'x'; give an object"),
        ({"kind": "clip", "config": {"hidden_size": "x"}}, "tower.config describes no clip tower"),
        ({"kind": "clip", "config": SIZES, "std": [0, 0, 0]}, r"tower.std is \[0, 0, 0\]; give three numbers above 0"),
        ({"kind": "clip", "config": SIZES, "colour": 1}, "tower has an unknown entry 'colour'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(config: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as told:
        tower_from_config(config)
    assert "__init__" not in str(told.value) and str(told.value).endswith(".")


def test_a_siglip_without_its_pooling_head_is_refused() -> None:
    with pytest.raises(InputError, match="vision_use_head"):
        TransformersTower.build(SiglipVisionConfig(**SIZES, vision_use_head=False))


def test_a_model_normalised_unlike_its_family_keeps_its_own_constants() -> None:
    tower = TransformersTower(CLIPVisionModel(CLIPVisionConfig(**SIZES)), mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    assert tower_from_config(tower.to_config()).mean == (0.1, 0.2, 0.3)


def test_the_conv_tower_gives_seven_by_seven_cells_at_112_pixels_and_is_cheap() -> None:
    tower = ConvTower().eval()
    assert (tower.image_size, tower.grid, tower.width) == (112, (7, 7), 128)
    assert sum(p.numel() for p in tower.parameters()) < 600_000
    encoder, images, seconds = FrameEncoder(tower, (7, 7)), pictures(16, 112), []
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            encoder(images)
            seconds.append(time.perf_counter() - start)
    assert min(seconds) / 16 < 0.02  # about 1.3 ms a frame on a quiet core; the bound allows for a busy machine


# -- encoder -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 3), (6, 6), (6, 1), (4, 3), (5, 5), (6, 4)])
def test_tokens_are_cls_then_the_mean_of_the_cells_each_touches_in_raster_order(
    kind: str, grid: tuple[int, int]
) -> None:
    tower, (h, w) = tower_of(kind), grid
    encoder, images = FrameEncoder(tower, grid), pictures(2, tower.image_size)
    tokens = encoder(images)
    assert tokens.shape == (2, encoder.tokens_per_frame, encoder.width)
    cls, cells = tower(normalise(images, tower.mean, tower.std))
    for f in range(2):
        torch.testing.assert_close(tokens[f, 0], cls[f])
        for row in range(h):
            for column in range(w):
                block = [
                    cells[f, y, x]
                    for y in range(row * 6 // h, -(-(row + 1) * 6 // h))  # from the floor to the ceiling
                    for x in range(column * 6 // w, -(-(column + 1) * 6 // w))
                ]
                torch.testing.assert_close(tokens[f, 1 + row * w + column], sum(block) / len(block))


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS), st.integers(1, 6), st.integers(0, 1000))
def test_frames_one_by_one_equal_frames_in_a_batch(kind: str, frames: int, seed: int) -> None:
    encoder = FrameEncoder(tower_of(kind), (3, 3))
    images = pictures(frames, encoder.tower.image_size, seed)
    with torch.no_grad():
        batch = encoder(images)
        single = torch.cat([encoder(images[f : f + 1]) for f in range(frames)])
    torch.testing.assert_close(single, batch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_holds_in_training_mode(kind: str) -> None:
    encoder = FrameEncoder(tower_of(kind), (3, 3)).train()
    images = pictures(3, encoder.tower.image_size)
    torch.testing.assert_close(encoder(images[1:2]), encoder(images)[1:2], rtol=1e-5, atol=1e-5)
    encoder.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_reaches_every_weight_of_tower_and_connector(kind: str) -> None:
    torch.manual_seed(1)
    encoder = FrameEncoder(tower_from_config(tower_of(kind).to_config()), (3, 3))
    connector = Connector(encoder.width, 24)
    out = connector(encoder(pictures(2, encoder.tower.image_size)))
    assert out.shape == (2, 10, 24)
    (out * torch.randn_like(out)).sum().backward()
    for name, parameter in [*encoder.named_parameters(), *connector.named_parameters()]:
        # CLIP's last norm serves its pooled output only, which we do not use; masks are for DINO's own training; the
        # bias of a key cancels in the softmax.
        unused = ("mask_token", "k_proj.bias", "key.bias", *(("post_layernorm",) if kind == "clip" else ()))
        if any(part in name for part in unused):
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_tokens_have_the_type_of_the_tower() -> None:
    tower = tower_from_config(tower_of("clip").to_config()).to(torch.bfloat16)
    assert FrameEncoder(tower, (3, 3))(pictures(1, 48)).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", [(7, 7), (3, 7), (0, 3), (12, 12)])
def test_a_grid_finer_than_the_towers_is_refused(grid: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"grid {grid[0]}x{grid[1]} cannot be pooled .* 6x6 cells; choose 1 to 6"):
        FrameEncoder(tower_of("siglip"), grid)


def test_images_of_another_size_than_the_towers_are_refused() -> None:
    with pytest.raises(InputError, match="this tower wants 48 px squares"):
        FrameEncoder(tower_of("siglip"), (3, 3))(pictures(1, 40))


def test_the_connector_is_two_linear_layers_with_a_gelu_between() -> None:
    connector, x = Connector(4, 6), torch.randn(2, 5, 4)
    inner = x @ connector.inner.weight.T + connector.inner.bias
    gelu = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(connector(x), gelu @ connector.outer.weight.T + connector.outer.bias)
