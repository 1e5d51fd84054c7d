"""LoRA (arXiv 2106.09685), through peft, on the decoder of a streaming model; what of such a model is saved, and how.

    y = W x + alpha / rank * B A dropout(x)

W is frozen. Trained in full, and saved with A and B, are the connector and the LayerExperts. The files are peft's own,
adapter_config.json and adapter_model.safetensors, in the public VideoLLM-online layout: the connector is among the
saved modules. Beside them config.json says which base model they belong to; its weights are never saved.

LoRA and `apply_depth` get on in either order, since one swaps the linear layers inside a decoder layer and the other
the decoder layer's class: on a model that is routed already, or routed anew afterwards (new experts are trainable).
The one order that does not make sense is `apply_depth` on a `PeftModel`, which hides the decoder: give it
`peft_model.get_base_model()`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from videollm_mod.pretrained import ADAPTER, ADAPTER_CONFIG, or_refuse, read_object, read_tensors, write_adapter
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.model import StreamingVideoLM

NAME = "default"  # peft's name for the only adapter
PREFIX = "base_model.model."  # peft's, before every name in its file
CONNECTOR = {"connector.inner.": "connector.0.", "connector.outer.": "connector.2."}  # VideoLLM-online's: a Sequential
TOWER = "encoder.tower."


@dataclass(frozen=True)
class LoraSettings:
    """As in VideoLLM-online and VideoLLM-MoD. Experts of a mixture that are one tensor in Transformers get no LoRA."""

    rank: int = 128
    alpha: float = 256
    dropout: float = 0.05
    # linear layers by the end of their names; the two fused ones are Phi-3's
    targets: tuple[str, ...] = (
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),
        *("qkv_proj", "gate_up_proj"),
    )

    def __post_init__(self) -> None:
        for name, fits, mend in (
            ("rank", type(self.rank) is int and self.rank > 0, "give a whole number of 1 or more"),
            ("alpha", self.alpha > 0, "give a number above 0"),
            ("dropout", 0 <= self.dropout < 1, "give a share in [0, 1)"),
            ("targets", len(self.targets) > 0, "name at least one linear layer, such as q_proj"),
        ):
            if not fits:
                raise InputError(f"{name} of LoRA is {getattr(self, name)!r}; {mend}.")


def has_lora(model: StreamingVideoLM) -> bool:
    """Whether the decoder has LoRA."""
    return bool(getattr(model.lm, "peft_config", None))


def apply_lora(model: StreamingVideoLM, settings: LoraSettings | None = None) -> StreamingVideoLM:
    """Put LoRA around the decoder's linear layers, in place, and freeze the rest but connector and experts.

    At first it changes nothing: B is 0. What learns is float32 from here on, though the model be bf16: a step of
    training is smaller than what bf16 can tell apart. Returns the model. Raises InputError without peft, on a model
    that has LoRA already, or when a decoder has none of the targets.
    """
    if has_lora(model):
        raise InputError("the model has LoRA already; go on training that, or begin from its base.")
    wrap_linears(model.lm, settings or LoraSettings())
    train_adapter(model)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    return model


def wrap_linears(lm: nn.Module, settings: LoraSettings) -> None:
    """Put LoRA around a decoder's linear layers, in place; what is frozen is the caller's affair."""
    config = _peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        task_type="CAUSAL_LM",
    )
    _inject(lm, config)


def train_adapter(model: StreamingVideoLM) -> None:
    """Freeze all but what is saved with an adapter: LoRA's matrices, the connector, the experts."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_learned(name))


def save_adapter(
    folder: Path, model: StreamingVideoLM, config: dict[str, Any], dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Write the folder of a model with LoRA; returns `config` as it was written, with its `base`.

    The tower goes with it if it has been trained or is nowhere else. Raises InputError when the base has no name.
    """
    base = model.base or base_of(model)
    own_tower = any(weight.requires_grad for weight in model.encoder.parameters()) or not base.keys() & {
        "model",
        "tower",
    }
    tensors = {
        _spelt(name): tensor
        for name, tensor in model.state_dict().items()
        if is_learned(name) or (own_tower and name.startswith(TOWER))
    }
    lora: Any = copy.copy(model.lm.peft_config[NAME])  # type: ignore[index]
    lora.base_model_name_or_path = base.get("lm") or base["model"]
    lora.modules_to_save = ["connector", *(["depth_expert"] if model.plan.has_experts else [])]
    lora.inference_mode = True
    written = {**config, "base": base, "own_tower": own_tower}
    write_adapter(folder, tensors, lora, written, model.template.tokenizer, dtype)
    return written


def base_of(model: StreamingVideoLM) -> dict[str, str]:
    """Where the frozen weights are: {"lm": folder or hub id, "tower": the same, if the tower is from one}."""
    name = str(model.lm.config.name_or_path)
    if not name:
        raise InputError(
            "a model with LoRA is saved without its base, which has no name; load the decoder with from_pretrained, or "
            "set model.base = {'lm': folder or hub id}."
        )
    lm = str(Path(name).resolve()) if Path(name).is_dir() else name
    tower = model.encoder.tower.name
    return {"lm": lm, **({"tower": tower} if tower else {})}


def read_adapter(
    folder: Path,
    model: StreamingVideoLM,
    dtype_of: Callable[[str], torch.dtype],
    *,
    own_tower: bool = False,
    other_plan: bool,
) -> None:
    """Put LoRA around the decoder as adapter_config.json says, and read it, connector and experts from the folder.

    dtype_of: a tensor's name in the model -> what it is read as.

    Raises InputError, by the names of the file, for a tensor that is missing, misshapen or too many. The decoder's own
    head and embedding may be among them: peft saves them when LoRA is on the head, or by hand.
    """
    _inject(model.lm, _read_config(folder), empty=True)
    optional = [f"lm.{name}" for name in ("lm_head.base_layer.weight", "lm_head.weight", "model.embed_tokens.weight")]
    state = model.state_dict()
    names = {
        name: _spelt(name)
        for name in state
        if is_learned(name) or name in optional or (own_tower and name.startswith(TOWER))
    }
    read_tensors(folder / ADAPTER, model, names, dtype_of, other_plan=other_plan, optional=optional)
    train_adapter(model)
    if own_tower:
        model.encoder.requires_grad_(True)


def _read_config(folder: Path) -> Any:
    """peft's configuration of a folder. Raises InputError when it is not LoRA's."""
    path = folder / ADAPTER_CONFIG
    values = read_object(path)
    if values.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {values.get('peft_type')!r}; only LORA can be loaded.")
    config = or_refuse(
        lambda: _peft().LoraConfig.from_pretrained(str(folder)), f"{path} is not what peft writes", "copy it again"
    )
    if type(config.r) is not int or config.r < 1:
        raise InputError(f"{path}: r is {config.r!r}; it is LoRA's rank, a whole number of 1 or more.")
    config.modules_to_save = None  # they are ours, and are trained without a wrapper around them
    config.inference_mode = False
    return config


def _inject(lm: nn.Module, config: Any, *, empty: bool = False) -> None:
    """peft's layers in place of the targets; `empty`: with no weights of their own yet."""
    peft = _peft()
    try:
        peft.inject_adapter_in_model(config, lm, adapter_name=NAME, low_cpu_mem_usage=empty)
    except TypeError as error:
        raise InputError(f"peft cannot make LoRA of {ADAPTER_CONFIG} ({error}); copy it again.") from error
    except ValueError as error:  # peft's is a page of names
        raise InputError(
            f"{type(lm).__name__} has none of LoRA's targets {config.target_modules}; name its linear layers."
        ) from error


def is_learned(name: str) -> bool:
    """Whether a tensor of the model, by its name, is trained and saved with LoRA: its matrices, connector, experts."""
    return ".lora_" in name or ".depth_expert." in name or name.startswith("connector.")


def _spelt(name: str) -> str:
    """A tensor's name in the model -> in peft's file."""
    for ours, theirs in CONNECTOR.items():
        name = theirs + name.removeprefix(ours) if name.startswith(ours) else name
    return PREFIX + name.removeprefix("lm.").replace(f".{NAME}.", ".")


def _peft() -> Any:
    """The package, which is an extra."""
    try:
        import peft
    except ImportError as error:
        from videollm_mod.doctor import install_command

        raise InputError(f"LoRA needs peft, which is not installed; run {install_command(extra='train')}.") from error
    return peft
