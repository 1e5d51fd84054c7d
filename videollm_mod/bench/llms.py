"""Language models by name, as their published configurations have them: what decides on shapes and costs.

`llm_config("llama-3-8b")`, or the path of a config.json (or of a folder with one). No weight is ever read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from videollm_mod.types import InputError


def _llama(d: int, inner: int, layers: int, heads: int, kv_heads: int, words: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": d,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": words,
        **more,
    }


def _qwen3(d: int, inner: int, layers: int, heads: int, tied: bool) -> dict[str, Any]:
    more = {"model_type": "qwen3", "head_dim": 128, "tie_word_embeddings": tied}
    return _llama(d, inner, layers, heads, 8, 151936, **more)


# from the config.json of each model's page on the hub
LLMS: dict[str, dict[str, Any]] = {
    "llama-3-8b": _llama(4096, 14336, 32, 32, 8, 128256),
    "llama-3-70b": _llama(8192, 28672, 80, 64, 8, 128256),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, 8, 128256, tie_word_embeddings=True),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, 8, 128256, tie_word_embeddings=True),
    "qwen2.5-7b": _llama(3584, 18944, 28, 28, 4, 152064, model_type="qwen2"),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, True),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, False),
    "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32768, model_type="mistral", sliding_window=None),
}
SHAPE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def llm_config(name: str) -> Any:
    """The Transformers config of a decoder with gated MLPs; the decoder's part of a multimodal one.

    Raises InputError for a name that is no entry of LLMS and no file, and for a file that is no such config.
    """
    from transformers import AutoConfig

    values = LLMS.get(name.lower()) or _read(name)
    kind = values.get("model_type")
    try:
        whole = AutoConfig.for_model(**values)
        config = whole.get_text_config()
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"--llm {name}: Transformers has no model of type '{kind}'; give a config.json that it knows, or one of "
            f"{', '.join(LLMS)}."
        ) from error
    if not hasattr(config, "tie_word_embeddings"):  # the head is the multimodal model's
        config.tie_word_embeddings = getattr(whole, "tie_word_embeddings", False)
    if any(getattr(config, key, None) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise InputError(f"--llm {name} is a mixture of experts, whose costs are not known here; give a dense decoder.")
    missing = [key for key in SHAPE if not isinstance(getattr(config, key, None), int)]
    if missing:
        raise InputError(
            f"--llm {name}: a model of type '{kind}' has no {missing[0]}, so its costs are not known; give a decoder "
            "with gated MLPs, such as llama-3-8b."
        )
    return config


def causal_config(name: str) -> Any:
    """As `llm_config`, for a decoder that is to run, and whose costs are reckoned: InputError if it cannot."""
    config = llm_config(name)
    if not is_causal(config):
        raise InputError(
            f"--llm {name}: Transformers has the decoder of type '{config.model_type}' only within a multimodal model; "
            "give the language model that it was made from, such as qwen3-8b, or ask `bench predict`."
        )
    check_layers(config, on_meta(config))
    return config


def is_causal(config: Any) -> bool:
    """Whether it is a language model of its own; else a multimodal one's decoder, whose head stands outside."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING


def on_meta(config: Any) -> Any:
    """The model of a config, without any number in it."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    with torch.device("meta"):
        return (AutoModelForCausalLM if is_causal(config) else AutoModel).from_config(config)


def check_layers(config: Any, model: Any) -> None:
    """Raise InputError if the layers' matrices are others than attention and a gated MLP, as the formulas have it."""
    from videollm_mod.depth import flops
    from videollm_mod.depth.swap import find_decoder

    layers = find_decoder(model).layers
    none, token = (flops.step_flops(config, None, flops.Step(1), [past] * len(layers)) for past in (0, 1))
    one = none - (token - none)  # without a token's look at itself, which costs what a look at another one does
    there = sum(weight.numel() for weight in layers.parameters() if weight.dim() > 1)
    if one != 2 * there:
        raise InputError(
            f"--llm: a model of type '{config.model_type}' has {there:,} weights in its layers where attention and "
            f"gated MLPs would have {one // 2:,}, so its costs are not known; give a decoder such as llama-3-8b."
        )


def _read(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise InputError(
            f"--llm {name} is unknown; take one of {', '.join(LLMS)}, or the path of a config.json or of its folder."
        )
    try:
        values = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"--llm {name} is not a JSON file; give a model's config.json.") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise InputError(f"--llm {name} names no model_type; give a model's config.json, as Transformers writes it.")
    return values
