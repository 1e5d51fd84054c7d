"""What an endless stream forgets, by name: `full`, `window`, `carrier`, `norm`. A policy is one file.

They stand here and not in `depth/`: they speak of frames, questions and replies, which the core does not know. The core
offers two moves, `RaggedCache.compact` (tokens go from all layers, what follows moves down) and
`RaggedLayer.keep_entries` (entries go from one layer, nothing moves).
"""

from __future__ import annotations

import math

from videollm_mod.stream.memory import Policy
from videollm_mod.stream.policies.carrier import Carrier
from videollm_mod.stream.policies.full import Full
from videollm_mod.stream.policies.norm import Norm
from videollm_mod.stream.policies.window import Window
from videollm_mod.types import InputError

POLICIES = ("full", "window", "carrier", "norm")
WORDS = 512  # tokens of questions and replies that a policy keeps at most, where it was asked for by name


def policy_of(
    policy: str | Policy | None,
    window: float | None = None,
    *,
    own: float | None = None,
    words: int | None = None,
    budget: int | None = None,
) -> Policy:
    """The policy of a session.

    policy: a name, an object with settings of its own, or None: then `window` with no words from before it, as the
    bundled model was measured, or `full` where there is no window. window: seconds of video that stay whole; by default
    the model's `own`. words: tokens of what was said that stay at most.
    Raises InputError for a name that does not exist, and for what does not go together.
    """
    if window is not None and not window > 0:
        raise InputError(f"window {window} is no time; give seconds of video, such as 30.")
    if words is not None and words < 0:
        raise InputError(f"words {words} is no number of tokens; give 0 or more.")
    seconds = window if window is not None else own if own is not None else math.inf
    kept = WORDS if words is None else words
    if policy is None:
        bounded = seconds < math.inf or budget is not None
        made: Policy = Window(seconds, words or 0) if bounded else Full()
    elif not isinstance(policy, str):
        made = policy
    elif policy == "window":
        made = Window(seconds, kept)
    elif policy == "carrier":
        made = Carrier(seconds if seconds < math.inf else Carrier.after, words=kept)
    elif policy == "norm":
        made = Norm(window if window is not None else Norm.recent, words=kept)
    elif policy == "full":
        if window is not None and window < math.inf:
            raise InputError(f"policy 'full' forgets nothing, so a window of {window:g} s means nothing; leave it out.")
        made = Full()
    else:
        raise InputError(f"policy '{policy}' is unknown; take one of {', '.join(POLICIES)}.")
    if budget is not None and not budget > 0:
        raise InputError(f"budget {budget} is no number of bytes; give 1 or more.")
    if budget is not None and made.name == "full":
        raise InputError("policy 'full' forgets nothing and so holds no budget; take window, carrier or norm.")
    if budget is None and made.name == "norm":
        raise InputError("policy 'norm' forgets when its budget is full; give a budget in bytes.")
    return made
