"""Wrong words in the context: one earlier reply of a conversation is not what it should have been.

A model that has only ever read true replies does not know what to make of its own mistakes. As in VideoLLM-online's
training (and VideoLLM-MoD's, which follows it), one learned narration, never the last, is replaced by another sentence,
by an empty one, or dropped. Half the time the model learns to put it right at the next frame; else nothing is learned
until somebody speaks again, for nobody can say what should have been said.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from videollm_mod.dialogue import Assistant, Segment, Stream

WAYS = ("another", "empty", "dropped")


def corrupt(segments: Sequence[Segment], rng: random.Random, others: Sequence[str]) -> list[Segment]:
    """The conversation with one reply corrupted; unchanged if it has fewer than two learned narrations.

    others: sentences that may stand where another one belonged. Every frame stays where it was.
    """
    told = [i for i in range(1, len(segments) - 1) if _is_learned_narration(segments, i)]
    told = [i for i in told[:-1] if isinstance(segments[i + 1], Stream)]
    if not told:
        return list(segments)
    place = rng.choice(told)
    before, reply, after = segments[place - 1 : place + 2]
    assert isinstance(before, Stream) and isinstance(reply, Assistant) and isinstance(after, Stream)
    instead: list[Segment]
    way = rng.choice(WAYS)
    if way == "dropped":  # that the frame is passed over in silence must not be learned
        instead = [Stream(before.frames - 1, before.learn)] if before.frames > 1 else []
        instead.append(Stream(1, learn=False))
    else:
        wrong = [text for text in others if text != reply.text] if way == "another" else []
        instead = [before, Assistant(rng.choice(wrong) if wrong else "", learn=False)]
    if after.frames > 1 and rng.random() < 0.5:
        instead += [Stream(1), reply, replace(after, frames=after.frames - 1)]
    else:
        instead.append(replace(after, learn=False))
    return [*segments[: place - 1], *instead, *segments[place + 2 :]]


def _is_learned_narration(segments: Sequence[Segment], i: int) -> bool:
    reply, before = segments[i], segments[i - 1]
    return isinstance(reply, Assistant) and reply.learn and isinstance(before, Stream) and before.learn
