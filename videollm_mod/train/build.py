"""The model that a recipe trains: fresh, or one that is there already, with the words that its data needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from videollm_mod.adapters import apply_lora, has_lora
from videollm_mod.data.features import check_fits, tower_digest
from videollm_mod.data.frames import features_of_file
from videollm_mod.data.own import has_features, read_videos
from videollm_mod.depth import DepthPlan
from videollm_mod.depth.swap import find_decoder
from videollm_mod.dialogue import word_tokenizer
from videollm_mod.loading import described, has_adapter, read_base_tokenizer, read_lm, read_tower
from videollm_mod.model import StreamingVideoLM, load
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.types import InputError
from videollm_mod.vision import Connector, ConvTower, ConvTowerConfig, FrameEncoder, tower_from_config
from videollm_mod.world import all_sentences
from videollm_mod.world.camera import all_camera_sentences


def build(recipe: Recipe) -> StreamingVideoLM:
    """The recipe's model, the same for the same seed: with fresh weights, or with those that `start` has.

    Of a model to start from, sizes, tower and words stay; plan, grid and settings are the recipe's. Experts that it has
    not are fresh. Raises InputError when `start` is no model.
    """
    torch.manual_seed(recipe.seed)
    texts = [recipe.settings.system, *(all_camera_sentences() if recipe.has_cameras else ())]
    if recipe.data is not None:
        texts += [s.text for video in read_videos(Path(recipe.data)) for s in video.stream.segments if s.text]
    if recipe.pretrained is not None:
        return _published(recipe, *recipe.pretrained)
    if recipe.start is None:
        if recipe.data is not None and has_features(Path(recipe.data)):
            raise InputError(f"{recipe.data} has features; go on from the model whose tower made them, with --start.")
        return _fresh(recipe, word_tokenizer([*all_sentences(), *texts]))
    known = _known(recipe, recipe.start)
    tokenizer = with_words(known.template.tokenizer, texts)
    if len(tokenizer) > known.lm.config.vocab_size:
        if recipe.lora is not None or has_lora(known):
            raise InputError("LoRA cannot teach a word-level model new words; train it without lora.")
        known.lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    encoder = FrameEncoder(known.encoder.tower, recipe.grid)
    model = StreamingVideoLM(encoder, known.connector, known.lm, tokenizer, recipe.plan, recipe.settings)
    model.base = known.base
    _check_features(model, recipe)
    return _with_lora(model, recipe)


def _known(recipe: Recipe, start: str) -> StreamingVideoLM:
    """The model to go on from: a decoder that LoRA leaves alone in the recipe's arithmetic, all else in float32."""
    adapted = recipe.lora is not None or has_adapter(start)
    depth = DepthPlan("full") if recipe.fresh_experts else None
    return load(start, depth=depth, dtype=frozen_dtype(recipe) if adapted else torch.float32, learned=torch.float32)


def frozen_dtype(recipe: Recipe) -> torch.dtype:
    """Of a decoder that LoRA leaves alone."""
    return torch.bfloat16 if recipe.bf16 else torch.float32


def _with_lora(model: StreamingVideoLM, recipe: Recipe) -> StreamingVideoLM:
    """With LoRA, if the recipe asks for it; and where there is LoRA, what learns in float32, experts of a new plan too,
    and a tower that does not learn in the recipe's arithmetic.
    """
    if recipe.lora is not None:
        apply_lora(model, recipe.lora)
    if has_lora(model):
        for parameter in model.lm.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
        for parameter in model.encoder.parameters() if recipe.tower_lr == 0 else ():
            parameter.data = parameter.data.to(frozen_dtype(recipe))
    return model


def like_start(recipe: Recipe) -> Recipe:
    """A recipe with `as_start` with the grid, settings, frame rate and picture size of the model it goes on from.

    Raises InputError when it does not say which model that is, or there is none.
    """
    if not recipe.as_start:
        return recipe
    if recipe.start is None:
        raise InputError(f"the recipe {recipe.name} goes on from a trained model; give it as --start FOLDER.")
    settings, grid, size = described(recipe.start)

    def phase(old: Phase) -> Phase:
        camera = old.camera and dataclasses.replace(old.camera, fps=settings.fps, size=size)
        return dataclasses.replace(
            old, world=dataclasses.replace(old.world, fps=settings.fps, size=size), camera=camera
        )

    return dataclasses.replace(recipe, settings=settings, grid=grid, phases=tuple(map(phase, recipe.phases)))


def _published(recipe: Recipe, lm_name: str, tower_name: str) -> StreamingVideoLM:
    """A published decoder and tower, frozen, in bf16 if the recipe computes in it; the rest fresh, in float32."""
    lm = read_lm(lm_name, frozen_dtype(recipe) if recipe.lora is not None else torch.float32)
    tower = read_tower(tower_name, torch.float32)
    tokenizer = read_base_tokenizer(lm_name)
    encoder, width = FrameEncoder(tower, recipe.grid), find_decoder(lm).config.hidden_size
    model = StreamingVideoLM(encoder, Connector(tower.width, width), lm, tokenizer, recipe.plan, recipe.settings)
    _check_features(model, recipe)
    return _with_lora(model, recipe)


def _check_features(model: StreamingVideoLM, recipe: Recipe) -> None:
    """Raise InputError when a recipe's data are features that its model's tower did not make."""
    if recipe.data is None or not has_features(Path(recipe.data)) or model.device.type == "meta":
        return
    if recipe.tower_lr > 0:
        raise InputError(
            f"{recipe.data} has features in place of frames, so the tower cannot learn; add --set tower_lr=0."
        )
    digest = tower_digest(model.encoder)
    rate = max(phase.world.fps for phase in recipe.phases)
    for path in {video.path for video in read_videos(Path(recipe.data))}:
        file = features_of_file(path)
        check_fits(file, model.encoder, rate)
        if recipe.pretrained is None and file.kind.weights != digest:  # of a published one, numbers may be rounded
            raise InputError(f"{path} was extracted with another tower than the model's; extract it with --model.")


def _fresh(recipe: Recipe, tokenizer: Any) -> StreamingVideoLM:
    sizes = recipe.lm
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.mlp,
        max_position_embeddings=65536,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    tower = ConvTower(recipe.tower) if isinstance(recipe.tower, ConvTowerConfig) else tower_from_config(recipe.tower)
    return StreamingVideoLM(
        FrameEncoder(tower, recipe.grid),
        Connector(tower.width, sizes.width),
        AutoModelForCausalLM.from_config(config),
        tokenizer,
        recipe.plan,
        recipe.settings,
    )


def with_words(tokenizer: Any, texts: Iterable[str]) -> Any:
    """A word-level tokenizer that knows every word of the texts too, ids as they were; any other one is given back."""
    state = json.loads(tokenizer.backend_tokenizer.to_str()) if hasattr(tokenizer, "backend_tokenizer") else {}
    if state.get("model", {}).get("type") != "WordLevel":
        return tokenizer
    words: dict[str, int] = state["model"]["vocab"]
    split = tokenizer.backend_tokenizer.pre_tokenizer
    new = dict.fromkeys(piece for text in texts for piece, _ in split.pre_tokenize_str(text) if piece not in words)
    if not new:
        return tokenizer
    words.update({piece: number for number, piece in enumerate(new, start=max(words.values()) + 1)})
    names = ("pad_token", "unk_token", "bos_token", "eos_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        clean_up_tokenization_spaces=False,
        **{name: getattr(tokenizer, name) for name in names},
    )
