"""The paper's runs: Ego4D narration, COIN, long-term anticipation on Ego4D, EgoExo4D narration; Llama-3-8B + SigLIP-L.

`videollm-mod train paper.coin --dry-run` tells what one takes, and with `--data coin.jsonl`, which `videollm-mod data
build` makes, it runs; the same runs with Qwen3-4B end in `_qwen3`. Settings are those of VideoLLM-MoD and of
VideoLLM-online, which it follows. What a sample is like is our estimate; how many there are is told where it is
published (113K narration streams: VideoLLM-online's README).
"""

from __future__ import annotations

from typing import Any

from videollm_mod.train.paper import PaperRecipe, Pretrained

# Architectures as their published configurations have them: what decides on shapes and costs.
LLAMA_3_8B = Pretrained(
    "meta-llama/Meta-Llama-3-8B-Instruct",
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
        "bos_token_id": 128000,
        "eos_token_id": 128009,
    },
)
QWEN3_4B = Pretrained(
    "Qwen/Qwen3-4B",
    {
        "model_type": "qwen3",
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
)
SIGLIP_L_384 = Pretrained(
    "google/siglip-large-patch16-384",
    {
        "model_type": "siglip_vision_model",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 384,
        "patch_size": 16,
    },
)


def _run(name: str, data: str, lm: Pretrained, **settings: Any) -> PaperRecipe:
    """What all of them share: 1 + 3x3 tokens a frame, 2 frames a second, layers routed alternately at 0.2, LoRA."""
    return PaperRecipe(name=f"paper.{name}", data=data, lm=lm, tower=SIGLIP_L_384, **settings)


def ego4d_narration(lm: Pretrained = LLAMA_3_8B, name: str = "ego4d_narration") -> PaperRecipe:
    """What the camera wearer does, told as it happens: five minutes, a narration every ten seconds."""
    about = {"frames": 600, "text": 630, "replies": 400, "narrated": True}
    return _run(name, "ego4d-narration", lm, samples=113_000, **about)


def coin(lm: Pretrained = LLAMA_3_8B, name: str = "coin") -> PaperRecipe:
    """Questions at the end of an instructional video: its step, its task, what comes next. 2.4 minutes in the mean."""
    about = {"frames": 283, "text": 100, "replies": 20, "narrated": False}
    return _run(name, "coin-step", lm, epochs=5, lr=1e-4, **about)


def ego4d_lta(lm: Pretrained = LLAMA_3_8B, name: str = "ego4d_lta") -> PaperRecipe:
    """Twenty actions to come, after eight that were seen."""
    about = {"frames": 120, "text": 180, "replies": 100, "narrated": False}
    return _run(name, "ego4d-lta", lm, epochs=5, **about)


def egoexo4d(lm: Pretrained = LLAMA_3_8B, name: str = "egoexo4d") -> PaperRecipe:
    """What a skilled person does, told as it happens, from that person's view."""
    about = {"frames": 600, "text": 630, "replies": 400, "narrated": True}
    return _run(name, "egoexo4d-narration", lm, **about)


def ego4d_narration_qwen3() -> PaperRecipe:
    return ego4d_narration(QWEN3_4B, "ego4d_narration_qwen3")


def coin_qwen3() -> PaperRecipe:
    return coin(QWEN3_4B, "coin_qwen3")


def ego4d_lta_qwen3() -> PaperRecipe:
    return ego4d_lta(QWEN3_4B, "ego4d_lta_qwen3")


def egoexo4d_qwen3() -> PaperRecipe:
    return egoexo4d(QWEN3_4B, "egoexo4d_qwen3")


RECIPES = (
    ego4d_narration,
    coin,
    ego4d_lta,
    egoexo4d,
    ego4d_narration_qwen3,
    coin_qwen3,
    ego4d_lta_qwen3,
    egoexo4d_qwen3,
)
