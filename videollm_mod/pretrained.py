"""A model's folder on disk: config.json, lm/, tokenizer/ and model.safetensors; written whole, read with every check.

Nothing is unpickled, and nothing is drawn at random before it is read: a model is built without weights
(`without_weights`) and its tensors are put in place as they come off the disk (`read_tensors`). Of a model with LoRA
the folder holds what adapters.py says instead. loading.py reads both.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from videollm_mod.types import InputError

WEIGHTS, CONFIG = "model.safetensors", "config.json"
LM_CONFIG, TOKENIZER_CONFIG = "lm/config.json", "tokenizer/tokenizer_config.json"
ADAPTER, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # peft's names
T = TypeVar("T")


def write_folder(
    folder: Path, model: nn.Module, config: dict[str, Any], lm_config: Any, tokenizer: Any, dtype: torch.dtype | None
) -> None:
    """Write the folder; weights in `dtype`, if given. The weights appear under their name only when complete."""
    write_tensors(folder / WEIGHTS, model.state_dict(), dtype)
    for name in (ADAPTER, ADAPTER_CONFIG):  # of a model with LoRA that was here before
        (folder / name).unlink(missing_ok=True)
    lm_config.save_pretrained(folder / "lm")
    write_config(folder, config, tokenizer)


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], lora: Any, config: dict[str, Any], tokenizer: Any, dtype: Any
) -> None:
    """The same for a model with LoRA: `tensors` by the names that peft gives them, and `lora`, peft's configuration."""
    write_tensors(folder / ADAPTER, tensors, dtype)
    lora.save_pretrained(folder)  # ADAPTER_CONFIG
    (folder / WEIGHTS).unlink(missing_ok=True)  # of a model without LoRA that was here before
    shutil.rmtree(folder / "lm", ignore_errors=True)
    write_config(folder, config, tokenizer)


def write_config(folder: Path, config: dict[str, Any], tokenizer: Any) -> None:
    """config.json and tokenizer/."""
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> None:
    """A safetensors file that appears under its name when complete; a tied weight is in it once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {}
    storages: set[tuple[int, int]] = set()
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.numel())
        if place not in storages:
            storages.add(place)
            weights[name] = tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
    temporary = path.with_name(path.name + ".writing")
    safetensors.torch.save_file(weights, temporary, metadata={"format": "pt"})
    temporary.chmod(0o644)  # safetensors makes it readable by its owner alone
    temporary.replace(path)


def read_config(folder: Path) -> dict[str, Any]:
    """What the folder was given as `config`. Raises InputError for anything else, or if a file is missing."""
    adapter = (folder / ADAPTER_CONFIG).is_file()
    for name in (CONFIG, TOKENIZER_CONFIG, *((ADAPTER,) if adapter else (LM_CONFIG, WEIGHTS))):
        if not (folder / name).is_file():
            raise InputError(
                f"model folder {folder} has no {name}; give a folder written by save_pretrained, or 'tiny' or 'camera'."
            )
    path = folder / CONFIG
    config = read_object(path)
    needed = ("tower", "grid", "plan", "settings", *(("base",) if adapter else ()))
    missing = [key for key in needed if key not in config]
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
    """The decoder that lm/config.json describes, with no weights of its. Raises InputError; never asks a hub."""
    path = folder / LM_CONFIG
    read_object(path)

    def build() -> PreTrainedModel:
        config = AutoConfig.from_pretrained(path.parent, local_files_only=True, trust_remote_code=False)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    return or_refuse(build, f"{path} describes no decoder that Transformers can build")


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder. Raises InputError; never asks a hub."""
    path = (folder / TOKENIZER_CONFIG).parent
    read_object(folder / TOKENIZER_CONFIG)
    return or_refuse(
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


def read_object(path: Path) -> dict[str, Any]:
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


def or_refuse(make: Callable[[], T], what: str, mend: str = "save the model again") -> T:
    """What Transformers makes of a file. It checks little and fails in a hundred ways: all of them are the file's."""
    try:
        return make()
    except Exception as error:
        # a reason in words is passed on, its first sentence; a TypeError's speaks of Python
        words = str(error).strip().splitlines()[:1] if isinstance(error, ValueError | OSError) else []
        reason = words[0].split(". ")[0].rstrip(".") if words and not words[0].endswith((":", ": ")) else ""
        raise InputError(f"{what}{f' ({reason})' if reason else ''}; {mend}.") from error


@contextmanager
def without_weights() -> Iterator[None]:
    """Modules built in here have parameters with a shape and no memory (on the meta device); buffers are real.

    So nothing is drawn that a file will replace. For the whole process: build nothing else in another thread meanwhile.
    """
    own = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        own(module, name, parameter)

    nn.Module.register_parameter = register  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = own  # type: ignore[method-assign]


def read_tensors(
    path: Path,
    model: nn.Module,
    names: Mapping[str, str],
    dtype_of: Callable[[str], torch.dtype],
    *,
    other_plan: bool,
    optional: Collection[str] = (),
) -> None:
    """Put tensors of a safetensors file in their places in the model.

    names: the model's name of a tensor -> the file's. dtype_of: the model's name -> what it is read as. All must be
    there with their shapes, but for those `optional` (by the model's names), and for experts that another plan adds or
    drops: experts that are missing are drawn, the same every time, with a warning. Raises InputError that names the
    tensor which is missing, misshapen or too many.
    """
    belongs = f"it does not belong to this {CONFIG if path.name == WEIGHTS else ADAPTER_CONFIG}"
    try:
        with safe_open(path, "pt") as file:
            there = set(file.keys())
            untrained = []
            for group in _places(model, names):  # the names of one tensor: more than one where it is tied
                found = next((name for name in group if names[name] in there), None)
                if found is None:
                    name = next(iter(group))
                    if other_plan and "depth_expert" in name:
                        untrained.append(name)
                    elif not group.keys() <= set(optional):
                        raise InputError(f"{path} lacks the tensor '{names[name]}'; {belongs}.")
                    continue
                here, shape = tuple(file.get_slice(names[found]).get_shape()), tuple(_at(group, found).shape)
                if here != shape:
                    raise InputError(f"{path}: tensor '{names[found]}' has shape {here}, the model {shape}; {belongs}.")
                _put(group, file.get_tensor(names[found]), dtype_of(found))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged ({error}); copy or save the model again.") from error
    unknown = sorted(name for name in there - set(names.values()) if not (other_plan and "depth_expert" in name))
    if unknown:
        raise InputError(f"{path} has a tensor '{unknown[0]}' too many; {belongs}.")
    if untrained:
        _draw_experts(model, sorted({name.rpartition(".")[0] for name in untrained}), dtype_of(untrained[0]))


Places = dict[str, tuple[nn.Module, str]]  # name of a tensor -> the module that holds it, and its attribute there


def _places(model: nn.Module, names: Collection[str]) -> list[Places]:
    """Where the named parameters and buffers are; those that are one tensor stand together."""
    groups: dict[int, Places] = {}
    for name in names:
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        groups.setdefault(id(getattr(module, attribute)), {})[name] = (module, attribute)
    return list(groups.values())


def _at(group: Places, name: str) -> Tensor:
    module, attribute = group[name]
    tensor: Tensor = getattr(module, attribute)
    return tensor


def _put(group: Places, value: Tensor, dtype: torch.dtype) -> None:
    """One tensor into all its places; a parameter stays as trainable, and laid out in memory, as it was."""
    old = _at(group, next(iter(group)))
    # a copy: what safetensors gives is the file itself, mapped into memory at any odd address
    value = value.to(dtype if value.is_floating_point() else value.dtype, copy=True)
    if old.dim() == 4 and old.is_contiguous(memory_format=torch.channels_last):
        value = value.contiguous(memory_format=torch.channels_last)  # convolutions run on it without a copy
    new = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    for module, attribute in group.values():
        setattr(module, attribute, new)


def _draw_experts(model: nn.Module, names: list[str], dtype: torch.dtype) -> None:
    """Fresh weights for the experts of layers that a new plan routes and training did not: the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name in names:
            expert: Any = model.get_submodule(name)
            expert.to_empty(device="cpu").to(dtype).reset_parameters()
    layers = sorted(int(name.split(".layers.")[1].split(".")[0]) for name in names)
    warnings.warn(f"the LayerExperts of layers {layers} were never trained; their choice is arbitrary", stacklevel=4)
