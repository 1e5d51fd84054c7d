"""Existing vision-language models: which tokens are vision, and which frame each belongs to.

Everything is read off the model's own inputs: placeholder ids of its config, grids, tiles, tokens per picture. Such a
model writes the k-th feature of a modality over its k-th placeholder, row by row; so it is enough to know how many
placeholders each frame takes, in that order. Known by structure, and tested, as Transformers 5.23 has them:

    Qwen2.5-VL, Qwen3-VL   image_grid_thw, video_grid_thw. A temporal patch (two frames of the video) is one frame here:
                           it is the smallest piece with tokens of its own. Time stamps between frames are text.
    LLaVA-OneVision        image_sizes; pixel_values_videos (videos, frames, ...). The newline vector behind a video, or
                           behind an image without tiles, carries no picture and counts as text.
    InternVL               pixel_values (tiles, ...), all of one size. A frame of a video is a tile.
    SmolVLM                as many placeholders as the model has per tile.

Qwen2-VL, Qwen3-VL-MoE and Idefics3 look the same from here.

A tile is a frame of its own, because that is how the tower saw it: each gets its share of the places, so no part of a
large image can be left out altogether. LLaVA-OneVision lays the tiles of an image out as one map, row by row, so there
the frames are the overview and the map. `frame_index_of(model, inputs, by="image")` makes one frame of an image
instead, whose tiles then compete; not where text stands between them (SmolVLM). What a caller passes as `frame_index`
always wins, and is the way for a model of another structure.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution

from videollm_mod.depth.cache import RaggedCache
from videollm_mod.types import InputError

PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
GROUPS = ("tile", "image")


@dataclass(frozen=True)
class Picture:
    """The placeholders of one image, or of one frame of a video, as they stand in a row."""

    tiles: tuple[int, ...]  # placeholders of each tile
    newline: int = 0  # placeholders behind them that carry no picture

    def frames(self, by: str) -> list[tuple[int, bool]]:
        """(placeholders, whether they are vision) of each stretch."""
        if by == "image":
            return [(sum(self.tiles) + self.newline, True)]
        return [*((tile, True) for tile in self.tiles), *[(self.newline, False)] * (self.newline > 0)]


def frame_index_of(model: nn.Module, inputs: Mapping[str, Any], by: str = "tile") -> Tensor:
    """`frame_index` (batch, tokens) int64 on the CPU, as the routed model itself would read it off its inputs.

    `inputs` are the keywords of the model's forward: input_ids (or inputs_embeds), pixel_values, grids. -1 is text;
    frames are numbered from 0 in every row, or go on from the frames of a `past_key_values` that a routed model filled.
    A placeholder without pictures among the inputs is text, as it is to the model. Raises InputError where the inputs
    do not tell.
    """
    if by not in GROUPS:
        raise InputError(f"frames by '{by}' are unknown; take one of {', '.join(GROUPS)}.")
    joiner = find_joiner(model)
    if joiner is None:
        raise InputError(f"{type(model).__name__} has no vision tower of its own; pass frame_index.")
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    tokens = ids if ids is not None else embeds
    if tokens is None:
        raise InputError("the model needs input_ids or inputs_embeds; both are None.")
    shown = [modality for modality in PIXELS if _shown(inputs, modality)]
    if not shown and ids is None:
        raise InputError("inputs_embeds alone do not tell which tokens are vision; pass frame_index, or input_ids.")
    batch, length = tokens.shape[:2]
    frame = torch.full((batch * length,), -1)  # which frame of the step, in order of the features
    total = 0
    for modality in shown:
        places = _placeholders(joiner, modality, ids, embeds).flatten().nonzero().squeeze(1)  # (placeholders,)
        pictures = _pictures(joiner, modality, inputs, places, length)
        parts = [part for picture in pictures for part in picture.frames(by)]
        sizes = torch.tensor([size for size, _ in parts], dtype=torch.long)
        if int(sizes.sum()) != len(places):
            raise InputError(
                f"the {modality}s of this step take {int(sizes.sum())} placeholders, but its tokens hold "
                f"{len(places)}; check input_ids and the pictures' sizes, or pass frame_index."
            )
        ends = sizes.cumsum(0)
        first, last = places[ends - sizes], places[ends - 1]
        if bool((last - first + 1 != sizes).any() | (first // length != last // length).any()):
            raise InputError(f"the placeholders of one {modality} frame do not stand side by side; pass frame_index.")
        shows = torch.tensor([vision for _, vision in parts], dtype=torch.bool)
        frame[places] = torch.where(shows, torch.arange(len(parts)) + total, -1).repeat_interleave(sizes)
        total += len(parts)
    frame = frame.view(batch, length)
    before = nn.functional.pad(frame[:, :-1], (1, 0), value=-1)
    order = ((frame >= 0) & (frame != before)).cumsum(1) - 1 + _next_numbers(inputs.get("past_key_values"), batch)
    return torch.where(frame >= 0, order, -1)


def _shown(inputs: Mapping[str, Any], modality: str) -> bool:
    """Whether pictures of this kind come with the step, as pixels or encoded already."""
    encoded = inputs.get("mm_encoder_outputs")
    return inputs.get(PIXELS[modality]) is not None or _encoded(encoded, modality) is not None


def _encoded(outputs: Any, modality: str) -> Any:
    return outputs.get(modality) if isinstance(outputs, Mapping) else None


def _placeholders(joiner: Any, modality: str, ids: Tensor | None, embeds: Tensor | None) -> Tensor:
    """(batch, tokens) bool on the CPU"""
    token = getattr(joiner.config, f"{modality}_token_id", None)
    if token is None:
        raise InputError(f"{type(joiner).__name__} names no {modality}_token_id in its config; pass frame_index.")
    if ids is not None:
        return (ids == token).cpu()
    assert embeds is not None
    own = joiner.get_input_embeddings()(torch.tensor(token, device=embeds.device))
    return (embeds == own).all(-1).cpu()


def _next_numbers(cache: Any, batch: int) -> Tensor:
    """(batch, 1): the number of each row's next frame."""
    frames = cache.frames if isinstance(cache, RaggedCache) and cache.frames else [[]] * batch
    return torch.tensor([[row[-1].number + 1 if row else 0] for row in frames])


# --- how many placeholders each frame takes -------------------------------------------------------------------------


def _pictures(joiner: Any, modality: str, inputs: Mapping[str, Any], places: Tensor, length: int) -> list[Picture]:
    """The pictures of the step in order; `places` (placeholders,) are those of the flattened step of rows of `length`.

    The structure is known by what the model has: grids among its inputs, OneVision's packing, InternVL's shuffle...
    """
    encoder = getattr(joiner, f"get_{modality}_features", None)
    named = inspect.signature(encoder).parameters if encoder is not None else {}
    if f"{modality}_grid_thw" in named:
        return _by_grid(joiner, _needed(inputs, f"{modality}_grid_thw"))
    if hasattr(joiner, "pack_image_features") and hasattr(joiner, "apply_pooling"):
        return _by_map(joiner, inputs) if modality == "image" else _by_video(joiner, inputs, len(places))
    if modality == "image" and hasattr(joiner, "pixel_shuffle"):
        pixels, encoded = inputs.get("pixel_values"), _encoded(inputs.get("mm_encoder_outputs"), "image")
        tiles = len(pixels if pixels is not None else encoded.pooler_output)  # (tiles, placeholders, d)
        return _by_tile(places, length, len(places) // max(tiles, 1))
    if modality == "image" and hasattr(joiner, "image_seq_len"):
        return _by_tile(places, length, joiner.image_seq_len)
    raise InputError(
        f"how {type(joiner).__name__} lays out its {modality}s is not known, so its frames cannot be told; "
        "pass frame_index (batch, tokens): -1 = text, else the number of the token's frame."
    )


def _needed(inputs: Mapping[str, Any], name: str) -> Any:
    if inputs.get(name) is None:
        raise InputError(f"{name} is missing, which tells how large each picture is; pass it, or frame_index.")
    return inputs[name]


def _by_grid(joiner: Any, grids: Tensor) -> list[Picture]:
    """grids (pictures, 3): temporal patches, rows and columns of patches, of which the tower merges squares."""
    merged = joiner.config.vision_config.spatial_merge_size**2
    return [Picture((h * w // merged,)) for t, h, w in grids.tolist() for _ in range(t)]


def _by_tile(places: Tensor, length: int, size: int) -> list[Picture]:
    """Tiles of `size` placeholders each; those that stand side by side are of one image."""
    if len(places) == 0:
        return []
    if size == 0 or len(places) % size:
        raise InputError(
            f"{len(places)} image placeholders are no whole number of tiles of {size}; check input_ids and "
            "pixel_values, or pass frame_index."
        )
    pictures: list[list[int]] = []
    before = None
    for first in places[::size].tolist():
        if before is None or first != before + size or first % length == 0:
            pictures.append([])
        pictures[-1].append(size)
        before = first
    return [Picture(tuple(tiles)) for tiles in pictures]


def _by_map(joiner: Any, inputs: Mapping[str, Any]) -> list[Picture]:
    """LLaVA-OneVision's images: the overview, then the map of all tiles with a newline behind each of its rows."""
    config = joiner.config
    side = config.vision_config.image_size // config.vision_config.patch_size
    encoded = _encoded(inputs.get("mm_encoder_outputs"), "image")
    if encoded is not None:
        lengths = [len(features) for features in encoded.pooler_output]
    else:
        sizes = _needed(inputs, "image_sizes")
        sizes = sizes.tolist() if isinstance(sizes, Tensor) else [list(size) for size in sizes]
        many = inputs.get("batch_num_images")  # images in each row; only an image that is alone in its row has tiles
        tiled = [True] * len(sizes) if many is None else [n == 1 for n in many for _ in range(n)]
        nothing = [torch.zeros(_tiles(config, size) if t else 1, side * side, 1) for size, t in zip(sizes, tiled)]
        # the model's own packing, of features one number wide: what it crops and shrinks is its own affair
        ratio = inputs.get("vision_aspect_ratio") or config.vision_aspect_ratio
        packed, _ = joiner.pack_image_features(
            nothing, torch.tensor(sizes), image_newline=torch.zeros(1), vision_aspect_ratio=ratio
        )
        lengths = [len(features) for features in packed]
    whole = side * side
    return [
        Picture((whole,), newline=1) if length == whole + 1 else Picture((whole, length - whole)) for length in lengths
    ]


def _tiles(config: Any, size: Sequence[int]) -> int:
    """Tiles of an image (height, width), the overview among them."""
    height, width = select_best_resolution(tuple(size), config.image_grid_pinpoints)
    side = config.vision_config.image_size
    return -(-height // side) * -(-width // side) + 1


def _by_video(joiner: Any, inputs: Mapping[str, Any], placeholders: int) -> list[Picture]:
    """LLaVA-OneVision's videos: frames pooled two by two, and one newline behind each video."""
    config = joiner.config
    side = -(-(config.vision_config.image_size // config.vision_config.patch_size) // 2)
    pixels, encoded = inputs.get("pixel_values_videos"), _encoded(inputs.get("mm_encoder_outputs"), "video")
    videos = len(pixels if pixels is not None else encoded.pooler_output)
    frames = (placeholders // max(videos, 1) - 1) // side**2
    return ([Picture((side**2,))] * (frames - 1) + [Picture((side**2,), newline=1)]) * videos


# --- what goes in front of the model's classes -----------------------------------------------------------------------


def find_joiner(model: nn.Module, decoder: nn.Module | None = None) -> Any:
    """The module that writes pictures among the embeddings and calls the decoder; None in a model of text alone."""
    if decoder is None:
        decoder = model.get_decoder()  # type: ignore[operator]
    for module in model.modules():
        if any(child is decoder for child in module.children()):
            sees = hasattr(module, "get_image_features") or hasattr(module, "get_video_features")
            return module if sees or hasattr(getattr(module, "config", None), "vision_config") else None
    return None


def vision_mixins(model: nn.Module, decoder: nn.Module) -> list[tuple[nn.Module, type]]:
    """What `apply_depth` puts in front of which module, besides what every causal LM gets."""
    joiner = find_joiner(model, decoder)
    if joiner is None:
        return []
    return [(joiner, DepthJoiner)] + ([(model, DepthVisionLM)] if joiner is not model else [])


class DepthJoiner(nn.Module):
    """Mix-in in front of the module that joins pictures and text: hands the decoder `frame_index` with each step."""

    def forward(self, *args: Any, frame_index: Tensor | None = None, **kwargs: Any) -> Any:
        """As the model's own; `frame_index` (batch, tokens) if the caller knows better."""
        if frame_index is None:
            named = dict(zip(inspect.signature(super().forward).parameters, args)) if args else {}
            frame_index = frame_index_of(self, {**named, **kwargs})
        return super().forward(*args, frame_index=frame_index, **kwargs)


class DepthVisionLM(nn.Module):
    """Mix-in in front of the whole model: `generate` encodes the pictures, and drops them, before the first forward,
    so the frames are read off what it is given.
    """

    def generate(
        self, inputs: Tensor | None = None, *args: Any, frame_index: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """As the model's own; `frame_index` (batch, prompt) if the caller knows better."""
        if frame_index is None:
            frame_index = _prompt_frames(self, kwargs if inputs is None else {**kwargs, "input_ids": inputs})
        return super().generate(inputs, *args, frame_index=frame_index, **kwargs)  # type: ignore[misc]


def _prompt_frames(model: nn.Module, inputs: Mapping[str, Any]) -> Tensor | None:
    """`frame_index` (batch, seen + new) of a prompt of which a cache may have seen the beginning, told as text here."""
    inputs = dict(inputs)
    cache, mask = inputs.get("past_key_values"), inputs.get("attention_mask")
    seen = cache.get_seq_length() if cache is not None else 0
    for name in ("input_ids", "inputs_embeds"):
        whole = inputs.get(name)
        # the prompt is the whole sequence, or the new tokens under a mask of the whole
        if whole is not None and seen and (mask is None or mask.shape[1] == whole.shape[1]):
            inputs[name] = whole[:, seen:]
    if inputs.get("input_ids") is None and inputs.get("inputs_embeds") is None:
        return None
    return nn.functional.pad(frame_index_of(model, inputs), (seen, 0), value=-1)
