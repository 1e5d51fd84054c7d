"""A model's folder on disk: config.json, lm/, tokenizer/ and model.safetensors; written whole, read with every check.

Nothing is unpickled. `StreamingVideoLM.save_pretrained` and `from_pretrained` are its users.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from videollm_mod.types import InputError

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def write_folder(
    folder: Path, model: nn.Module, config: dict[str, Any], lm_config: Any, tokenizer: Any, dtype: torch.dtype | None
) -> None:
    """Write the folder; weights in `dtype`, if given. The weights appear under their name only when complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    storages: set[tuple[int, int]] = set()
    for name, tensor in model.state_dict().items():
        place = (tensor.data_ptr(), tensor.numel())
        if place not in storages:  # a tied weight is written once
            storages.add(place)
            weights[name] = tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
    temporary = folder / (WEIGHTS + ".writing")
    safetensors.torch.save_file(weights, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    temporary.replace(folder / WEIGHTS)
    lm_config.save_pretrained(folder / "lm")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def read_config(folder: Path) -> dict[str, Any]:
    """What `write_folder` was given as `config`. Raises InputError for anything else."""
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(f"model folder {folder} has no {CONFIG}; give a folder written by save_pretrained, or 'tiny'.")
    try:
        config = json.loads(path.read_text())
        missing = [key for key in ("tower", "grid", "plan", "settings") if key not in config]
    except (json.JSONDecodeError, TypeError) as error:
        raise InputError(
            f"{path} is not the JSON that save_pretrained writes ({error}); save the model again."
        ) from error
    if missing:
        raise InputError(f"{path} lacks '{missing[0]}'; save the model again.")
    return config


def read_weights(folder: Path, model: nn.Module, *, other_plan: bool) -> None:
    """Copy tensors by name. All must be there with their shapes, but for experts that another plan adds or drops."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(f"model folder {folder} has no {path.name}; save the model again.")
    try:
        weights = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); copy or save the model again.") from error
    state = model.state_dict()
    names = {tensor.data_ptr(): name for name, tensor in state.items() if name in weights}
    untrained = []
    with torch.no_grad():
        for name, tensor in state.items():
            if name not in weights:
                if names.get(tensor.data_ptr()):
                    continue  # tied to a weight that is there
                if "depth_expert" in name and other_plan:
                    untrained.append(name)
                    continue
                raise InputError(f"{path} lacks the tensor '{name}'; it does not belong to this config.json.")
            if weights[name].shape != tensor.shape:
                raise InputError(
                    f"{path}: tensor '{name}' has shape {tuple(weights[name].shape)}, the model {tuple(tensor.shape)}; "
                    "it does not belong to this config.json."
                )
            tensor.copy_(weights[name])
    unknown = [name for name in weights if name not in state and "depth_expert" not in name]
    if unknown:
        raise InputError(f"{path} has a tensor '{unknown[0]}' too many; it does not belong to this config.json.")
    if untrained:
        layers = sorted({int(name.split(".layers.")[1].split(".")[0]) for name in untrained})
        warnings.warn(
            f"the LayerExperts of layers {layers} were never trained; their choice is arbitrary", stacklevel=3
        )
