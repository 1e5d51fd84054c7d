"""The LayerExperts of a model that Transformers' own `save_pretrained` wrote.

`from_pretrained` builds the plain model, which has no place for them. So: load it, `apply_depth` the plan that its text
config holds (`depth_plan`), then `load_experts`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from videollm_mod.types import InputError

# Some models are saved under the names that their hub folders have; what stands in front of `layers` is then another.
NAME = re.compile(r"(?:^|\.)layers\.(\d+)\.depth_expert\.(weight|bias)$")


def load_experts(model: nn.Module, folder: str | Path) -> None:
    """Copy the experts in the folder's safetensors files into a routed model; all of them, or none with InputError."""
    folder = Path(folder)
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():
                match = NAME.search(key)
                if match:
                    found[int(match[1]), match[2]] = file.get_tensor(key)
    decoder = model.get_decoder()  # type: ignore[operator]
    wanted = {
        (index, name): weight
        for index, layer in enumerate(decoder.layers)
        if hasattr(layer, "depth_expert")
        for name, weight in layer.depth_expert.named_parameters()
    }
    for index, name in sorted(found.keys() ^ wanted.keys()):
        where = "the model has none" if (index, name) in found else f"{folder} has none"
        raise InputError(f"layer {index}: {where} of expert.{name}; apply_depth with the plan that the folder holds.")
    for (index, name), weight in wanted.items():
        if weight.shape != found[index, name].shape:
            raise InputError(
                f"layer {index}: expert.{name} in {folder} has shape {tuple(found[index, name].shape)}, "
                f"the model's {tuple(weight.shape)}; it belongs to another model."
            )
    with torch.no_grad():
        for place, weight in wanted.items():
            weight.copy_(found[place])
