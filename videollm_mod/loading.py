"""A name -> a streaming model: "tiny", "camera", a folder or a hub id; whole ones, with LoRA, or VideoLLM-online's.

VideoLLM-online's public checkpoints (github.com/showlab/videollm-online, "live1+") are peft adapters over
Llama-3-8B-Instruct with the connector among the saved modules, and nothing else: base, tower, grid and prompt are the
defaults of its training script, written down here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from videollm_mod.adapters import is_learned, read_adapter
from videollm_mod.depth import DepthPlan
from videollm_mod.depth.quantised import layer_of
from videollm_mod.depth.swap import find_decoder
from videollm_mod.flags import BUNDLED
from videollm_mod.hub import folder_of, is_hub_id
from videollm_mod.model import StreamingVideoLM, StreamSettings
from videollm_mod.pretrained import (
    ADAPTER,
    ADAPTER_CONFIG,
    CONFIG,
    WEIGHTS,
    build_lm,
    or_refuse,
    read_config,
    read_object,
    read_tensors,
    read_tokenizer,
    told_of,
    without_weights,
)
from videollm_mod.reductions.base import Reduction, reduction_of
from videollm_mod.types import InputError
from videollm_mod.vision import Connector, FrameEncoder, TransformersTower, tower_from_config
from videollm_mod.weights import quantise_weights

ASSETS = Path(__file__).parent / "assets"
ONLINE_LM, ONLINE_TOWER = "meta-llama/Meta-Llama-3-8B-Instruct", "google/siglip-large-patch16-384"
ONLINE_GRID = (3, 3)
ONLINE_SETTINGS = StreamSettings(
    system=(
        "A multimodal AI assistant is helping users with some activities. Below is their conversation, interleaved "
        "with the list of video frames received by the assistant."
    ),
    fps=2.0,
    threshold=0.725,
    decide="last",
    template="videollm-online",
    max_reply_tokens=100,
)


@dataclass(frozen=True)
class Wishes:
    """What the caller wants otherwise than the folder has it; None = as it is."""

    plan: DepthPlan | str | tuple[int, ...] | None = None  # whole, or just its layers
    keep: float | None = None
    threshold: float | None = None
    dtype: torch.dtype = torch.float32
    base: str | Path | None = None  # where an adapter's base is: a folder or hub id
    tower: str | Path | None = None  # where its tower is
    weights: str | None = None  # rounded to "int8" or "int4", for inference
    kv: str | None = None  # a cache of "int8" or "fp8"
    learned: torch.dtype | None = None  # of what may learn beside a frozen decoder: the rest, and its LoRA and experts
    reduction: Reduction | dict[str, Any] | str | None = None  # in it for good

    def dtype_of(self, name: str) -> torch.dtype:
        """Of a tensor of the model, by its name."""
        return self.of_rest if is_learned(name) or name.startswith("encoder.") else self.dtype

    @property
    def of_rest(self) -> torch.dtype:
        """Of all but the decoder's own weights."""
        return self.learned or self.dtype

    def plan_for(self, trained: DepthPlan) -> DepthPlan:
        """The plan to route by, where the folder's own is `trained`."""
        plan = self.plan
        chosen = plan if isinstance(plan, DepthPlan) else dataclasses.replace(trained, layers=plan or trained.layers)
        return chosen if self.keep is None else dataclasses.replace(chosen, keep=self.keep)

    def settings_for(self, settings: StreamSettings) -> StreamSettings:
        return settings if self.threshold is None else dataclasses.replace(settings, threshold=self.threshold)


def find(name: str | Path) -> Path:
    """The folder of a model by its name. Raises InputError when there is none."""
    if str(name) in BUNDLED:
        return ASSETS / str(name)
    if not Path(name).is_dir() and not is_hub_id(str(name)):
        raise InputError(
            f"model '{name}' is neither 'tiny', 'camera' nor a folder; give a folder written by save_pretrained, or a "
            "hub id such as owner/name."
        )
    return folder_of(name, "model")


def read_model(name: str | Path, wishes: Wishes) -> StreamingVideoLM:
    """The model, in eval mode. Raises InputError when it cannot be had or a file of it is not as it should be."""
    folder = find(name)
    if _is_online(folder):
        model = _read_online(folder, wishes)
    elif (folder / ADAPTER_CONFIG).is_file():
        model = _read_with_lora(folder, wishes)
    else:
        model = _read_whole(folder, wishes)
        model.base = {"model": str(Path(name).resolve()) if Path(name).is_dir() else str(name)}
    model.eval()
    if wishes.kv is not None:
        layer_of(wishes.kv)  # refuses what does not exist
        model.kv = wishes.kv
    if wishes.weights is not None:
        model = quantise_weights(model, wishes.weights)
    if wishes.reduction is not None:
        reduction_of(wishes.reduction).on(model, question=model.settings.system).__enter__()
    return model


def described(name: str | Path) -> tuple[StreamSettings, tuple[int, int], int]:
    """Settings, grid and picture size (px) of a model, without reading its weights."""
    folder = find(name)
    if _is_online(folder):
        return ONLINE_SETTINGS, ONLINE_GRID, 384
    config = read_config(folder)
    with told_of(folder / CONFIG):
        settings = StreamSettings.from_dict(config["settings"])
        with without_weights():
            size = tower_from_config(config["tower"]).image_size
    return settings, tuple(config["grid"]), size


def has_adapter(name: str | Path) -> bool:
    """Whether a model's folder is an adapter over another model."""
    return (find(name) / ADAPTER_CONFIG).is_file()


def has_words(name: str | Path) -> bool:
    """Whether a model's tokens are whole words, so that new ones need new rows: our own small models."""
    path = find(name) / "tokenizer" / "tokenizer.json"
    return path.is_file() and read_object(path).get("model", {}).get("type") == "WordLevel"


# -- the three kinds of folders ----------------------------------------------------------------------------------------


def _read_whole(folder: Path, wishes: Wishes) -> StreamingVideoLM:
    config = read_config(folder)
    with without_weights():
        trained, settings, encoder = _described(folder, config)
        lm = build_lm(folder)
        with told_of(folder / CONFIG):
            trained.ratios(len(find_decoder(lm).layers))  # the folder's own plan must fit its decoder
        connector = Connector(encoder.width, lm.config.hidden_size)
        chosen = wishes.plan_for(trained)
        settings = wishes.settings_for(settings)
        model = StreamingVideoLM(encoder, connector, lm, read_tokenizer(folder), chosen, settings)
    names = {name: name for name in model.state_dict()}
    read_tensors(folder / WEIGHTS, model, names, wishes.dtype_of, other_plan=model.plan != trained)
    model.trained_plan = trained
    return model


def _read_with_lora(folder: Path, wishes: Wishes) -> StreamingVideoLM:
    config = read_config(folder)
    base, own_tower = _base(folder, config, wishes), bool(config.get("own_tower", False))
    with without_weights():
        trained, settings, encoder = _described(folder, config)
    if "model" in base:
        known = read_model(base["model"], Wishes(DepthPlan("full"), dtype=wishes.dtype, learned=wishes.learned))
        lm, tower = known.lm, known.encoder.tower
    else:
        lm = read_lm(base["lm"], wishes.dtype)
        tower = encoder.tower if own_tower else read_tower(base["tower"], wishes.of_rest)
    with without_weights():
        connector = Connector(tower.width, lm.config.hidden_size)
    encoder = FrameEncoder(tower, encoder.grid)
    with told_of(folder / CONFIG):
        trained.ratios(len(find_decoder(lm).layers))
    chosen, settings = wishes.plan_for(trained), wishes.settings_for(settings)
    model = StreamingVideoLM(encoder, connector, lm, read_tokenizer(folder), chosen, settings)
    read_adapter(folder, model, wishes.dtype_of, own_tower=own_tower, other_plan=model.plan != trained)
    model.trained_plan, model.base = trained, base
    return model


def _read_online(folder: Path, wishes: Wishes) -> StreamingVideoLM:
    told = read_object(folder / ADAPTER_CONFIG)
    if not (folder / ADAPTER).is_file():
        raise InputError(f"model folder {folder} has no {ADAPTER}; copy the whole checkpoint.")
    base = wishes.base or told.get("base_model_name_or_path") or ONLINE_LM
    lm, tower = read_lm(base, wishes.dtype), read_tower(wishes.tower or ONLINE_TOWER, wishes.of_rest)
    # its Trainer saved the tokenizer it trained with; without one, the base's is the same but for the placeholder
    home = folder if (folder / "tokenizer_config.json").is_file() else folder_of(base, "base model")
    tokenizer = or_refuse(
        lambda: AutoTokenizer.from_pretrained(home, local_files_only=True, trust_remote_code=False),
        f"{home} holds no tokenizer that Transformers can read",
        "copy it again",
    )
    with without_weights():
        connector = Connector(tower.width, lm.config.hidden_size)
    trained = DepthPlan("full")
    chosen, settings = wishes.plan_for(trained), wishes.settings_for(ONLINE_SETTINGS)
    model = StreamingVideoLM(FrameEncoder(tower, ONLINE_GRID), connector, lm, tokenizer, chosen, settings)
    read_adapter(folder, model, wishes.dtype_of, other_plan=model.plan != trained)
    model.trained_plan = trained
    return model


def _is_online(folder: Path) -> bool:
    """Whether a folder is a peft adapter that is not ours: ours says in config.json what its base is."""
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    return not (folder / CONFIG).is_file() or "tower" not in read_object(folder / CONFIG)


# -- parts of them -----------------------------------------------------------------------------------------------------


def _described(folder: Path, config: dict[str, Any]) -> tuple[DepthPlan, StreamSettings, FrameEncoder]:
    """Plan, settings and encoder of a config.json, whose name goes before what is wrong with them."""
    with told_of(folder / CONFIG):
        trained = _plan_from(config["plan"])
        settings = StreamSettings.from_dict(config["settings"])
        return trained, settings, FrameEncoder(tower_from_config(config["tower"]), tuple(config["grid"]))


def _base(folder: Path, config: dict[str, Any], wishes: Wishes) -> dict[str, str]:
    """Where the base of an adapter is: as the caller says, else as it was when the adapter was saved."""
    base = config["base"]
    if not isinstance(base, dict) or not all(isinstance(place, str) for place in base.values()):
        raise InputError(f'{folder / CONFIG}: base is {base!r}; give an object, such as {{"lm": "owner/name"}}.')
    if not base.keys() & {"model", "lm"}:
        raise InputError(f"{folder / CONFIG}: base lacks 'lm'; give the folder or hub id of the decoder.")
    moved = {"model" if "model" in base else "lm": wishes.base, "tower": wishes.tower}
    return {**base, **{key: str(place) for key, place in moved.items() if place is not None}}


def read_lm(name: str | Path, dtype: torch.dtype) -> PreTrainedModel:
    """A decoder with its weights, from a folder or the hub. Runs no remote code, reads no pickles."""
    folder = folder_of(name, "base model")

    def read() -> tuple[PreTrainedModel, dict[str, Any]]:
        with _quietly():
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
            model, info = found
            return model, info

    lm, told = or_refuse(read, f"base model {str(name)!r} cannot be loaded", "check the folder, or copy it again")
    if told["missing_keys"]:  # Transformers draws them at random, with no more than a warning
        raise InputError(f"base model {str(name)!r} lacks the weight {min(told['missing_keys'])!r}; use a whole one.")
    lm.config._name_or_path = str(name)  # not the cache's folder: it goes into what is saved
    return lm


def read_base_tokenizer(name: str | Path) -> Any:
    """A decoder's tokenizer, from a folder or the hub. Runs no remote code."""
    folder = folder_of(name, "base model")
    return or_refuse(
        lambda: AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        f"{folder} holds no tokenizer that Transformers can read",
        "copy it again",
    )


def read_tower(name: str | Path, dtype: torch.dtype) -> TransformersTower:
    return TransformersTower.from_pretrained(name, dtype=dtype)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Transformers' progress bars and advice."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _plan_from(values: dict[str, Any]) -> DepthPlan:
    """`DepthPlan.from_dict`, and the types of those entries whose values it does not look at."""
    for key, kinds, mend in (
        ("keep_last", (bool,), "true or false"),
        ("exit_after", (int, type(None)), "a number of layers, or null"),
        ("seed", (int,), "a whole number"),
    ):
        if key in values and type(values[key]) not in kinds:
            raise InputError(f"plan: {key} is {values[key]!r}; give {mend}.")
    return DepthPlan.from_dict(values)
