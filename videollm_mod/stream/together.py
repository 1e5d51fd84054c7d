"""Steps of many sessions in one step of the model: linear layers once over all tokens, attention session by session.

What a session proposes and receives is what it would alone (depth/step.py). An `Engine` does this for streams that are
pushed to, evaluate/programs.py for whole streams that lie ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videollm_mod.depth.step import StepCache
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import Step, StreamSession

CHUNK = 8  # frames of one stream in one step: more would be more to roll back
# Tokens in one step before streams take more than a frame each. A CPU is busy with some hundred: beyond, a step takes
# just as much longer as it has more tokens, and all others wait for it.
STEP_TOKENS, STEP_TOKENS_CPU = 2048, 256


@dataclass(frozen=True)
class Share:
    """One session's part of a step."""

    session: StreamSession
    step: Step
    features: Sequence[Tensor] = ()  # of each of its frames (1 + h * w, width)
    scores: Sequence[Tensor] = ()  # and (1 + h * w,), for a plan with the scorer `given`


@dataclass(frozen=True)
class Given:
    """What a step gave one session, as `StreamSession.receive` takes it."""

    silence: list[float]
    words: list[int]
    kept: dict[int, np.ndarray] | None  # if it records: layer -> (ids,) bool


def frames_at_once(model: StreamingVideoLM, watching: int) -> int:
    """Frames that each of so many sessions should put into a step, if they wait."""
    most = STEP_TOKENS_CPU if model.device.type == "cpu" else STEP_TOKENS
    tokens = len(model.template.frame(first=True)[0])
    return min(CHUNK, max(1, most // (tokens * max(watching, 1))))


@torch.inference_mode()
def run_together(model: StreamingVideoLM, decoder: Any, shares: Sequence[Share]) -> list[Given]:
    """One step of the model for all shares; `decoder` is the model's, see `find_decoder`.

    What it gives is to be handed to each session's `receive`. If it fails, no session has changed.
    """
    features = [tokens.to(model.device) for share in shares for tokens in share.features]
    scores = [one for share in shares for one in share.scores]
    cache = StepCache(decoder, [share.session._cache for share in shares], [share.step.numbers for share in shares])
    try:
        return _run(model, shares, cache, features, scores)
    except BaseException:  # the decoder may be through, and what comes after it not
        cache.crop_to(0)
        raise


def _run(
    model: StreamingVideoLM, shares: Sequence[Share], cache: StepCache, features: list[Tensor], scores: list[Tensor]
) -> list[Given]:
    device = model.device
    ends = [part.begin + end for part, share in zip(cache.shares, shares) for end in share.step.ends]
    kept: dict[int, Tensor] | None = {} if any(share.session.records for share in shares) else None
    out = model(
        torch.tensor([[token for share in shares for token in share.step.ids]], device=device),
        cache.frame_index,
        torch.stack(features) if features else None,
        frame_scores=torch.stack(scores) if scores else None,
        position_ids=cache.position_ids,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=torch.tensor(ends, device=device),
        kept_out=kept,
    )
    rows = {layer: row[0].cpu().numpy() for layer, row in (kept or {}).items()}
    silence, words = shares[0].session.judge(out.logits[0], pick=False)  # the same for all that take the likeliest
    found, place = [], 0
    for part, share in zip(cache.shares, shares):
        mine = slice(place, place + len(share.step.ends))
        place = mine.stop
        chosen = words[mine] if share.session.pick is None else share.session.judge(out.logits[0][mine])[1]
        own = {layer: row[part.begin : part.end] for layer, row in rows.items()} if share.session.records else None
        found.append(Given(silence[mine], chosen, own))
    return found
