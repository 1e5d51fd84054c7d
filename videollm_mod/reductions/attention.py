"""Listens to chosen attention modules while they run on the fast path (SDPA): their queries, keys and values.

Transformers' attentions, of towers and decoders alike, call the function that `ALL_ATTENTION_FUNCTIONS` has under their
implementation's name. While somebody listens, "sdpa" (and a session's own form of it) there is a function that hands on
to the ears of the module, if it has any, and then does what it did before. Modules without ears pay a look into a dict.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from videollm_mod.attention import STREAM_SDPA, stream_attention
from videollm_mod.types import InputError


@dataclass(frozen=True)
class Heard:
    """What went into one attention."""

    queries: Tensor  # (batch, heads, tokens, e), turned by the rotary embedding where there is one
    keys: Tensor  # (batch, heads, all keys, e), repeated to as many heads as queries
    values: Tensor  # as keys
    mask: Tensor | None  # as SDPA takes it
    scaling: float

    def attention(self, rows: Tensor, seen: Tensor | None = None, batch: int = 0) -> Tensor:
        """Attention of the queries `rows` (R,) of one batch row, each over the keys that `seen` (keys,) or (R, keys)
        bool allows: (heads, R, keys) in float32 or better."""
        queries = self.queries[batch][:, rows]
        logits = (queries @ self.keys[batch].transpose(-1, -2) * self.scaling).to(
            torch.promote_types(queries.dtype, torch.float32)
        )
        return (logits if seen is None else logits.masked_fill(~seen, -torch.inf)).softmax(-1)


Ear = Callable[[Heard], None]
_ears: dict[nn.Module, list[Ear]] = {}
_changing = threading.Lock()  # two models may be used in two threads


@contextmanager
def listening(ears: Mapping[nn.Module, Ear]) -> Iterator[None]:
    """While it lasts, each attention module tells its ear what goes into it; it may have others, too."""
    if not ears:
        yield
        return
    for module in ears:
        implementation = str(getattr(getattr(module, "config", None), "_attn_implementation", None))
        if implementation not in ("sdpa", STREAM_SDPA):
            raise InputError(f"attn_implementation='{implementation}' cannot be listened to; use 'sdpa'.")
    with _changing:
        own = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if not _ears:
            ALL_ATTENTION_FUNCTIONS["sdpa"] = _telling(own)
            ALL_ATTENTION_FUNCTIONS[STREAM_SDPA] = _telling(stream_attention)
        for module, ear in ears.items():
            _ears.setdefault(module, []).append(ear)
    try:
        yield
    finally:
        with _changing:
            for module, ear in ears.items():
                _ears[module].remove(ear)
                if not _ears[module]:
                    del _ears[module]
            if not _ears:
                for name, before in (("sdpa", own), (STREAM_SDPA, stream_attention)):
                    ALL_ATTENTION_FUNCTIONS[name] = getattr(ALL_ATTENTION_FUNCTIONS[name], "own", before)


def _telling(own: Callable[..., Any]) -> Callable[..., Any]:
    def sdpa(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        ears = _ears.get(module)
        if ears:
            groups = query.shape[1] // key.shape[1]
            keys, values = (each.repeat_interleave(groups, 1) if groups > 1 else each for each in (key, value))
            scaling = kwargs.get("scaling")
            heard = Heard(query, keys, values, attention_mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
            for ear in ears:
                ear(heard)
        return own(module, query, key, value, attention_mask, **kwargs)

    sdpa.own = own  # type: ignore[attr-defined]
    return sdpa
