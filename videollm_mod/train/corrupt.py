"""Wrong words in the context: one earlier reply of a conversation is not what it should have been.

A model that has only ever read true replies does not know what to make of its own mistakes. As in VideoLLM-online's
training (and VideoLLM-MoD's, which follows it), one learned narration, never the last, is replaced by another sentence,
by an empty one, or dropped. Half the time the model learns to put it right at the next frame; else nothing is learned
until somebody speaks again, for nobody can say what should have been said.

That is one wrong reply. `mislead` makes most of them wrong, in the same few words, as a model does that has misjudged
where it is: where true replies tell much of the next one (whether a camera sees people or a table), a model learns to
go by them instead of by what it sees, and one mistake becomes all of them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from videollm_mod.dialogue import Assistant, Segment, Stream, User

WAYS = ("another", "empty", "dropped")
FEW = (1, 2, 3, 6)  # so many different sentences stand in for true ones in a misled conversation


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


def mislead(segments: Sequence[Segment], rng: random.Random, others: Sequence[str]) -> list[Segment]:
    """The conversation with every narration but the last replaced by a wrong one with a probability drawn for it all.

    What is replaced is not learned, nor are answers that repeat it; all else is: when to speak, and what of the rest.
    others: sentences that may stand in for true ones; a few of them at most are taken.
    """
    told = [i for i in range(1, len(segments)) if _is_learned_narration(segments, i)][:-1]
    few = rng.sample(list(others), min(rng.choice(FEW), len(others)))
    chance = rng.uniform(0.4, 1.0)
    instead, lost = list(segments), set[str]()
    for i in told:
        true = segments[i]
        wrong = [text for text in few if isinstance(true, Assistant) and text != true.text]
        if isinstance(true, Assistant) and wrong and rng.random() < chance:
            instead[i] = Assistant(rng.choice(wrong), learn=False)
            lost.add(true.text)
    for i in range(1, len(segments)):
        reply = instead[i]
        if isinstance(reply, Assistant) and isinstance(segments[i - 1], User) and reply.text in lost:
            instead[i] = replace(reply, learn=False)
    return instead


def _is_learned_narration(segments: Sequence[Segment], i: int) -> bool:
    reply, before = segments[i], segments[i - 1]
    return isinstance(reply, Assistant) and reply.learn and isinstance(before, Stream) and before.learn
