"""What the tests of vision-language models share: five tiny models, and rows of text, images and videos for them.

Inputs are written as each model's processor documents them (Transformers 5.23), but by hand: processors may need
torchvision. While a row is written, so is the frame that each token belongs to: what reading it off must find.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from depth_cases import ExactNorm
from torch import Tensor
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

SIBLINGS = {"qwen2_vl": "qwen2_5_vl", "qwen3_vl_moe": "qwen3_vl", "idefics3": "smolvlm"}  # whose inputs look alike
FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "internvl", "smolvlm")
LAYERS = 4
VOCABULARY = 60  # words are 5..59
PAD, IMAGE, VIDEO, START, END = SPECIAL = 0, 1, 2, 3, 4  # START and END stand around a picture, whatever it puts there
SIDE = 12  # of a tile, in pixels

TEXT = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
TOWER = dict(hidden_size=16, intermediate_size=24, num_attention_heads=2, initializer_range=0.2)


def tiny_vlm(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A model of 4 decoder layers and 2 tower layers with large random weights, in eval mode."""
    torch.manual_seed(0)
    tokens = dict(image_token_id=IMAGE)
    both = dict(**tokens, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
    rotary = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    model: PreTrainedModel
    if family == "qwen2_5_vl":
        tower = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, window_size=16)
        tower |= dict(out_hidden_size=32, fullatt_block_indexes=[1])
        config = Qwen2_5_VLConfig(text_config=TEXT | dict(rope_parameters=rotary), vision_config=tower, **both)
        model = Qwen2_5_VLForConditionalGeneration(config)
    elif family == "qwen3_vl":
        tower = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32)
        tower |= dict(num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
        text = TEXT | dict(head_dim=8, rope_parameters=rotary | dict(mrope_interleaved=True))
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=tower, **both))
    elif family == "llava_onevision":
        vision = SiglipVisionConfig(**TOWER, num_hidden_layers=2, image_size=SIDE, patch_size=4, vision_use_head=False)
        config = LlavaOnevisionConfig(
            text_config=Qwen2Config(**TEXT),
            vision_config=vision,
            image_token_index=IMAGE,
            video_token_index=VIDEO,
            image_grid_pinpoints=[[SIDE * i, SIDE * j] for i in (1, 2) for j in (1, 2)],
        )
        model = LlavaOnevisionForConditionalGeneration(config)
    elif family == "internvl":
        vision = dict(**TOWER, num_hidden_layers=2, image_size=SIDE, patch_size=2)
        config = InternVLConfig(text_config=Qwen2Config(**TEXT), vision_config=vision, image_seq_length=9, **tokens)
        model = InternVLForConditionalGeneration(config)
    else:
        vision = dict(**TOWER, num_hidden_layers=2, image_size=SIDE, patch_size=2)
        config = SmolVLMConfig(text_config=LlamaConfig(**TEXT), vision_config=vision, **tokens)
        model = SmolVLMForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_()
    if dtype == torch.float64:
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.__class__ = ExactNorm
    return model.to(dtype).eval()


def tiny_sibling(name: str) -> PreTrainedModel:
    """A model of another name and the structure of one of the five, in single precision."""
    torch.manual_seed(0)
    both = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)
    rotary = {"rope_type": "default", "mrope_section": [2, 1, 1]}
    if name == "qwen2_vl":
        tower = dict(depth=2, embed_dim=16, hidden_size=32, mlp_ratio=2, num_heads=2, patch_size=4)
        config = Qwen2VLConfig(text_config=TEXT | dict(rope_parameters=rotary), vision_config=tower, **both)
        return Qwen2VLForConditionalGeneration(config).eval()
    if name == "qwen3_vl_moe":
        tower = dict(depth=2, hidden_size=16, intermediate_size=24, num_heads=2, patch_size=4, out_hidden_size=32)
        tower |= dict(num_position_embeddings=16, deepstack_visual_indexes=[0, 1])
        text = TEXT | dict(head_dim=8, rope_parameters=rotary | dict(mrope_interleaved=True))
        text |= dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
        config = Qwen3VLMoeConfig(text_config=text, vision_config=tower, **both)
        return Qwen3VLMoeForConditionalGeneration(config).eval()
    vision = dict(**TOWER, num_hidden_layers=2, image_size=SIDE, patch_size=2)
    config = Idefics3Config(text_config=LlamaConfig(**TEXT), vision_config=vision, image_token_id=IMAGE, scale_factor=2)
    return Idefics3ForConditionalGeneration(config).eval()


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass
class Piece:
    """A stretch of a row: its tokens, the frame of each (-1 = text, else counted within the piece), its pictures."""

    ids: list[int]
    frames: list[int]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    steps: list[Piece] = field(default_factory=list)  # the same in smaller steps, where the model can take it so


def text(count: int, seed: int) -> Piece:
    words = torch.randint(5, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
    return Piece(words.tolist(), [-1] * count)


def pixels(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def joined(pieces: Sequence[Piece]) -> Piece:
    """One piece: frames counted on, pictures behind one another."""
    ids: list[int] = []
    frames: list[int] = []
    tensors: dict[str, list[Tensor]] = {}
    for piece in pieces:
        ids += piece.ids
        base = max([-1, *frames]) + 1
        frames += [frame + base if frame >= 0 else -1 for frame in piece.frames]
        for name, tensor in piece.tensors.items():
            tensors.setdefault(name, []).append(tensor)
    return Piece(ids, frames, {name: behind(parts) for name, parts in tensors.items()})


def behind(parts: Sequence[Tensor]) -> Tensor:
    """Pictures behind one another; where they differ in their tiles (LLaVA-OneVision), filled up with black."""
    most = max(part.shape[1] if part.dim() == 5 else 0 for part in parts)
    filled = [torch.nn.functional.pad(p, (0, 0) * 3 + (0, most - p.shape[1])) if most else p for p in parts]
    return torch.cat(filled)


def around(ids: list[int], frames: list[int], tensors: dict[str, Tensor]) -> Piece:
    return Piece([START, *ids, END], [-1, *frames, -1], tensors)


def grid_piece(token: int, t: int, h: int, w: int, seed: int) -> Piece:
    """Qwen: t temporal patches of h x w patches (channels 3 x 2 in time x 4 x 4), merged two by two."""
    each = h * w // 4
    name, grid = ("pixel_values", "image_grid_thw") if token == IMAGE else ("pixel_values_videos", "video_grid_thw")
    tensors = {name: pixels(seed, t * h * w, 96), grid: torch.tensor([[t, h, w]])}
    return Piece([token] * each * t, [frame for frame in range(t) for _ in range(each)], tensors)


def qwen_image(seed: int, large: bool) -> Piece:
    piece = grid_piece(IMAGE, 1, 4, 6 if large else 4, seed)
    return around(piece.ids, piece.frames, piece.tensors)


def qwen2_5_video(seed: int, frames: int) -> Piece:
    """All temporal patches side by side."""
    whole = grid_piece(VIDEO, frames, 4, 4, seed)
    parts = [grid_piece(VIDEO, 1, 4, 4, seed) for _ in range(frames)]
    for part, patches in zip(parts, whole.tensors["pixel_values_videos"].split(16)):
        part.tensors["pixel_values_videos"] = patches
    piece = around(whole.ids, whole.frames, whole.tensors)
    piece.steps = [Piece([START], [-1]), *parts, Piece([END], [-1])]
    return piece


def qwen3_video(seed: int, frames: int) -> Piece:
    """A time stamp in front of each temporal patch, and one grid for the whole video."""
    whole = grid_piece(VIDEO, frames, 4, 4, seed)
    steps = []
    for number, patches in enumerate(whole.tensors["pixel_values_videos"].split(16)):
        part = grid_piece(VIDEO, 1, 4, 4, seed)
        part.tensors["pixel_values_videos"] = patches
        steps += [text(2, seed + number), around(part.ids, part.frames, part.tensors)]
    piece = joined(steps)
    piece.tensors, piece.steps = whole.tensors, steps
    return piece


def llava_image(seed: int, large: bool) -> Piece:
    """Large: 20 x 16 pixels, so an overview and 2 x 2 tiles; their map of 6 x 6 loses what padded the width."""
    height, width = (20, 16) if large else (SIDE, SIDE)
    tiles = 5 if large else 2  # an image of one tile has its overview as well
    rows, columns = (6, 4) if large else (3, 3)
    mapped = rows * (columns + 1)
    tensors = {"pixel_values": pixels(seed, 1, tiles, 3, SIDE, SIDE), "image_sizes": torch.tensor([[height, width]])}
    return Piece([IMAGE] * (9 + mapped), [0] * 9 + [1] * mapped, tensors)


def llava_video(seed: int, frames: int) -> Piece:
    """2 x 2 tokens a frame, and a newline behind the last."""
    tensors = {"pixel_values_videos": pixels(seed, 1, frames, 3, SIDE, SIDE)}
    return Piece([VIDEO] * (4 * frames + 1), [frame for frame in range(frames) for _ in range(4)] + [-1], tensors)


def internvl_image(seed: int, large: bool) -> Piece:
    """Large: two tiles and a thumbnail, side by side."""
    tiles = 3 if large else 1
    frames = [tile for tile in range(tiles) for _ in range(9)]
    return around([IMAGE] * 9 * tiles, frames, {"pixel_values": pixels(seed, tiles, 3, SIDE, SIDE)})


def internvl_video(seed: int, frames: int) -> Piece:
    """`Frame1:` and so on in front of each frame."""
    steps = [part for i in range(frames) for part in (text(2, seed + i), internvl_image(seed + i, False))]
    piece = joined(steps)
    piece.steps = steps
    return piece


def smolvlm_image(seed: int, large: bool) -> Piece:
    """Large: a row of two tiles, each named, a line break, and the whole image."""
    parts = [Piece([START, 5], [-1, -1])]
    for tile in range(3 if large else 1):
        tensors = {"pixel_values": pixels(seed + tile, 1, 3, SIDE, SIDE)}
        parts += [Piece([IMAGE] * 9, [0] * 9, tensors), Piece([START, 6 + tile], [-1, -1])]
    return joined(parts)


def smolvlm_video(seed: int, frames: int) -> Piece:
    """A sentence and a picture for each frame."""
    steps = [part for i in range(frames) for part in (text(2, seed + i), smolvlm_image(seed + i, False))]
    piece = joined(steps)
    piece.steps = steps
    return piece


IMAGES: dict[str, Callable[[int, bool], Piece]] = {
    "qwen2_5_vl": qwen_image,
    "qwen3_vl": qwen_image,
    "llava_onevision": llava_image,
    "internvl": internvl_image,
    "smolvlm": smolvlm_image,
}
VIDEOS: dict[str, Callable[[int, int], Piece]] = {
    "qwen2_5_vl": qwen2_5_video,
    "qwen3_vl": qwen3_video,
    "llava_onevision": llava_video,
    "internvl": internvl_video,
    "smolvlm": smolvlm_video,
}


def pieces(family: str, words: str, seed: int = 0) -> list[Piece]:
    """`pieces("internvl", "3t image IMAGE 1t video 2t")`: three words, a small and a large image, a video..."""
    row = []
    for number, word in enumerate(words.split()):
        own = 1000 * seed + 100 * number
        if word.endswith("t"):
            row.append(text(int(word[:-1]), own))
        elif word == "video":
            row.append(VIDEOS[family](own, 3))
        else:
            row.append(IMAGES[family](own, word == "IMAGE"))
    return row


def batch(family: str, rows: Sequence[Piece], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What a processor returns for rows of different length: padded on the left, pictures in the order of the rows."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[PAD] * (longest - len(row.ids)) + row.ids for row in rows])
    real = torch.tensor([[0] * (longest - len(row.ids)) + [1] * len(row.ids) for row in rows])
    inputs = {"input_ids": ids, "attention_mask": real}
    if family in ("qwen2_5_vl", "qwen3_vl"):
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    tensors = joined(rows).tensors
    if family == "smolvlm" and tensors:  # (batch, most tiles of a row, ...), filled up with black
        parts = [row.tensors.get("pixel_values", torch.zeros(0, 3, SIDE, SIDE)) for row in rows]
        tensors["pixel_values"] = torch.nn.utils.rnn.pad_sequence([part.double() for part in parts], batch_first=True)
    return inputs | {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }


def written_frames(rows: Sequence[Piece]) -> Tensor:
    """(batch, tokens): the frame index as the rows were written"""
    longest = max(len(row.ids) for row in rows)
    return torch.tensor([[-1] * (longest - len(row.ids)) + row.frames for row in rows])
