"""The decoder's weights in eight or four bits, for inference: through torchao, which the extra `quant` brings.

The linear layers of attention and MLP are rounded; embeddings, head, norms, LayerExperts, connector and tower stay as
they are. int8: one scale per output. int4: one scale per group of 32 inputs; on a CPU torchao keeps its codes a byte
each, so that four bits save no more memory there than eight. Activations keep their type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from videollm_mod.depth.swap import find_decoder
from videollm_mod.packed import unpack_linears
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.model import StreamingVideoLM

WEIGHTS = ("int8", "int4")
INT4 = "int4"  # a type that torch has and its stubs have not
GROUP = 32  # inputs that share a scale, of int4
WHOLE = ("depth_expert", "lora_")  # parts of names of what is not rounded


def quantise_weights(model: StreamingVideoLM, kind: str) -> StreamingVideoLM:
    """Round the weights of the model's decoder layers to `kind`, in place and for good; returns the model.

    It can then no longer be trained nor saved. Raises InputError for another kind, where torchao is missing, and for
    widths that do not split into groups.
    """
    if kind not in WEIGHTS:
        raise InputError(f"weights in '{kind}' are unknown; take one of {', '.join(WEIGHTS)}.")
    if model.weights is not None:
        raise InputError(f"the weights are in {model.weights} already; load the model again.")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_
    except ImportError as error:
        raise InputError(
            f"weights in {kind} need torchao; install it with pip install -c constraints.txt -e '.[quant]'."
        ) from error
    layers = find_decoder(unpack_linears(model).lm).layers
    narrow = {m.in_features for name, m in layers.named_modules() if _rounded(m, name) and m.in_features % GROUP}
    if kind == "int4" and narrow:
        raise InputError(f"a width of {min(narrow)} does not split into groups of {GROUP}; take weights in int8.")
    # without its advice to a compiler that is not used, which would be set for the whole process
    config = (
        Int8WeightOnlyConfig(set_inductor_config=False)
        if kind == "int8"
        else IntxWeightOnlyConfig(weight_dtype=getattr(torch, INT4), granularity=PerGroup(GROUP))
    )
    with torch.no_grad():
        quantize_(layers, config, filter_fn=_rounded)
    model.weights = kind
    return model


def _rounded(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not any(part in name for part in WHOLE)
