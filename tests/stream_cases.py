"""A tiny streaming model with random weights, and films of noise, for the tests of model, session and evaluation."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import word_tokenizer
from videollm_mod.model import StreamingVideoLM, StreamSettings
from videollm_mod.types import Frame
from videollm_mod.vision import Connector, ConvTower, ConvTowerConfig, FrameEncoder

WORDS = "A red square enters leaves from the left . What happened ? Say what happens"


def tiny_model(plan: DepthPlan, decide: str = "last", max_reply_tokens: int = 6) -> StreamingVideoLM:
    """Random weights, 32 px, 1 + 2x2 tokens per frame, 4 layers, float64 so that parity is strict."""
    torch.manual_seed(0)
    tokenizer = word_tokenizer(WORDS.split())
    tower = ConvTower(ConvTowerConfig(image_size=32, channels=(8, 8, 16), heads=2))
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        initializer_range=0.4,
    )
    settings = StreamSettings(system="Say what happens.", decide=decide, max_reply_tokens=max_reply_tokens)
    lm = LlamaForCausalLM(config)
    encoder = FrameEncoder(tower, (2, 2))
    model = StreamingVideoLM(encoder, Connector(16, 32), lm, tokenizer, plan, settings).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "depth_expert" in name:
                parameter.normal_(std=0.5)
    return model


def frames(count: int, seed: int = 0) -> list[Frame]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Frame(image, 0.5 * i, i) for i, image in enumerate(pixels)]
