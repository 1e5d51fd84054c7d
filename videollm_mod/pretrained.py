"""A model's folder on disk: config.json, lm/, tokenizer/ and model.safetensors; written whole, read with every check.

Nothing is unpickled. `StreamingVideoLM.save_pretrained` and `from_pretrained` are its users.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from videollm_mod.types import InputError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LM_CONFIG, TOKENIZER_CONFIG = "lm/config.json", "tokenizer/tokenizer_config.json"
T = TypeVar("T")


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
    """What `write_folder` was given as `config`. Raises InputError for anything else, or if a file is missing."""
    for name in (CONFIG, LM_CONFIG, TOKENIZER_CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(
                f"model folder {folder} has no {name}; give a folder written by save_pretrained, or 'tiny'."
            )
    path = folder / CONFIG
    config = _read_object(path)
    missing = [key for key in ("tower", "grid", "plan", "settings") if key not in config]
    if missing:
        raise InputError(f"{path} lacks '{missing[0]}'; save the model again.")
    grid = config["grid"]
    if not isinstance(grid, list) or len(grid) != 2 or not all(type(side) is int and side > 0 for side in grid):
        raise InputError(f"{path}: grid is {grid!r}; give two whole numbers, rows and columns, such as [7, 7].")
    for key, example in (("plan", '{"layers": "interleaved", "keep": 0.2}'), ("settings", '{"fps": 2.0}')):
        if not isinstance(config[key], dict):
            raise InputError(f"{path}: {key} is {config[key]!r}; give an object, such as {example}.")
    return config


def build_lm(folder: Path) -> PreTrainedModel:
    """The decoder that lm/config.json describes, with random weights. Raises InputError; never asks a hub."""
    path = folder / LM_CONFIG
    _read_object(path)

    def build() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    return _or_refuse(build, f"{path} describes no decoder that Transformers can build")


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises InputError; never asks a hub."""
    path = (folder / TOKENIZER_CONFIG).parent
    _read_object(folder / TOKENIZER_CONFIG)
    return _or_refuse(
        lambda: AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False),
        f"{path} holds no tokenizer that Transformers can read",
    )


@contextmanager
def told_of(path: Path) -> Iterator[None]:
    """Put the file's name before the sentence of an InputError that its contents have caused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError for anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not even UTF-8
        raise InputError(
            f"{path} is not the JSON that save_pretrained writes ({error}); save the model again."
        ) from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is not the JSON that save_pretrained writes (no object); save the model again.")
    return value


def _or_refuse(make: Callable[[], T], what: str) -> T:
    """What Transformers makes of a file. It checks little and fails in a hundred ways: all of them are the file's."""
    try:
        return make()
    except Exception as error:
        # a reason in words is passed on, its first sentence; a TypeError's speaks of Python
        words = str(error).strip().splitlines()[:1] if isinstance(error, ValueError | OSError) else []
        reason = words[0].split(". ")[0].rstrip(".") if words and not words[0].endswith((":", ": ")) else ""
        raise InputError(f"{what}{f' ({reason})' if reason else ''}; save the model again.") from error


def read_weights(folder: Path, model: nn.Module, *, other_plan: bool) -> None:
    """Copy tensors by name. All must be there with their shapes, but for experts that another plan adds or drops."""
    path = folder / WEIGHTS
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
