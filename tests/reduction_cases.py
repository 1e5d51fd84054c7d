"""What the tests of reductions share: small models with three kinds of towers, small settings, made-up signals."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from stream_cases import WORDS, frames
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM, SiglipVisionConfig

from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import Assistant, Segment, Stream, System, User, word_tokenizer
from videollm_mod.model import StreamingVideoLM, StreamSettings
from videollm_mod.reductions import Reduction, Signals, Tokens, methods
from videollm_mod.vision import Connector, ConvTower, ConvTowerConfig, FrameEncoder, TransformersTower, VisionTower

TALK: list[Segment] = [System("Say what happens."), Stream(3), Assistant("A red square enters"), Stream(2)]
TALK += [User("What happened?"), Assistant("A red square"), Stream(1)]
FRAMES = 6
HEADS, WIDTH = 2, 16
SIZES = dict(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=5, num_attention_heads=HEADS)
PICTURE = dict(image_size=32, patch_size=8)  # 4 x 4 cells


def tower(kind: str) -> VisionTower:
    if kind == "conv":
        return ConvTower(ConvTowerConfig(image_size=32, channels=(8, 8, WIDTH), heads=HEADS))
    if kind == "clip":
        return TransformersTower.build(CLIPVisionConfig(**SIZES, **PICTURE))
    return TransformersTower.build(SiglipVisionConfig(**SIZES, **PICTURE))


@functools.cache
def small_model(kind: str = "clip", decide: str = "own", plan: DepthPlan | None = None) -> StreamingVideoLM:
    """1 + 4x4 tokens a frame (2x2 with the conv tower), 4 layers of width 32, random weights, float64."""
    torch.manual_seed(0)
    tokenizer, eyes = word_tokenizer(WORDS.split()), tower(kind)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        initializer_range=0.4,
    )
    settings = StreamSettings(system="Say what happens.", decide=decide, max_reply_tokens=4)
    lm, connector = LlamaForCausalLM(config), Connector(WIDTH, 32)
    encoder = FrameEncoder(eyes, eyes.grid)
    model = StreamingVideoLM(encoder, connector, lm, tokenizer, plan or DepthPlan("full"), settings).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "depth_expert" in name or "q_proj" in name or "k_proj" in name:
                parameter.normal_(std=0.5)  # attention with opinions
    return model


def method(name: str, keep: float, **more: Any) -> Reduction:
    """A registered method; layers that only large towers have are brought down."""
    kind = methods()[name]
    known = {field.name for field in dataclasses.fields(kind)}
    if name == "hi_prune":
        more = {"layer": 2, **more}
    if name == "to_dre_exit":  # else random attention never lets a frame leave
        more = {"threshold": 1.0, **more}
    return kind(keep=keep, **{key: value for key, value in more.items() if key in known})


def features_of(model: StreamingVideoLM, count: int = FRAMES, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return model.encoder(torch.stack([torch.from_numpy(frame.image) for frame in frames(count, seed)]))


def logits_of(
    model: StreamingVideoLM, features: torch.Tensor, talk: list[Segment] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits of every position of one pass, which of them decide)."""
    example = model.template.encode(TALK if talk is None else talk)
    with torch.no_grad():
        out = model(example.input_ids[None], example.frame_index[None], features, logits_to_keep=0)
    return out.logits[0], example.decision


def decisions(model: StreamingVideoLM, features: torch.Tensor, talk: list[Segment] | None = None) -> torch.Tensor:
    """Logits at the frames' decisions, (frames, vocabulary)."""
    logits, deciding = logits_of(model, features, talk)
    return logits[deciding]


def made_up(method: Reduction, tokens: Tokens, **more: Any) -> Signals:
    """Random signals for whatever a method asks for, of the right shapes: heads of 2, e of 4."""
    n, generator = len(tokens), torch.Generator().manual_seed(len(tokens))
    shapes: dict[str, tuple[int, ...]] = {
        "tower_attention": (n, 2, n),
        "tower_cls_values": (2, 4),
        **dict.fromkeys(("tower_keys", "tower_values", "queries", "keys"), (n, 2, 4)),
        **dict.fromkeys(("attention_in", "attention_out", "mlp_in", "mlp_out"), (n, 8)),
    }
    values = {}
    for name, layer in method.needs:
        value = torch.rand(shapes.get(name, (n,)), generator=generator, dtype=torch.float64)
        values[name, layer] = value - 0.5 if name in shapes and name != "tower_attention" else value / n
    return Signals(values, text=torch.zeros(2, 8, dtype=torch.float64), **{"total": n, **more})


def all_cuts(method: Reduction, tokens: Tokens, layers: int = 8) -> Tokens:
    """The method on the tokens of a frame, as often as its stage calls it; signals follow who is left."""
    if method.stage not in ("tower", "layer"):
        return method.reduce(tokens, made_up(method, tokens))
    memory: dict[str, Any] = {}
    total = len(tokens)
    for layer in sorted(method.cuts(layers)):
        signals = made_up(method, tokens, memory=memory, layer=layer, layers=layers, total=total)
        tokens = method.reduce(tokens, signals)
    return tokens
