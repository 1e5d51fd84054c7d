"""The chance baseline: says and answers what the data itself says elsewhere, without a look at the pictures.

It narrates as often as the data does, in sentences drawn from it; it answers a question with an answer drawn from those
to questions of the same kind, or with any of the options.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from videollm_mod.data.conversation import converse
from videollm_mod.data.segments import Segment, Stream
from videollm_mod.evaluate.metrics import Said
from videollm_mod.evaluate.playing import POLL_AFTER, Answer, Result
from videollm_mod.evaluate.result import hash_times

ROUNDS = 10  # draws of each stream, so that luck in the drawing averages out


def chance_results(
    streams: Sequence[Stream], protocols: Sequence[str], fps: float, candidates: int = 1, seed: int = 0
) -> list[list[Result]]:
    """ROUNDS results for each stream."""
    kinds: dict[str, list[str]] = {}
    for stream in streams:
        for reply in stream.replies:
            kinds.setdefault(_kind(reply), []).append(reply.text)
    pool = [reply.text for stream in streams for reply in stream.replies]
    frames = [len(converse(stream, fps).frames) for stream in streams]
    rate = len(pool) / max(sum(frames), 1)
    found = []
    for stream, protocol in zip(streams, protocols):
        rng = random.Random(f"{seed}/{stream.id}/chance")
        numbers = converse(stream, fps).frames
        times = [number / fps for number in numbers]
        empty = Result(len(times), times[0], times[-1], fps, hash_times(times))
        rounds = []
        for _ in range(ROUNDS):
            if protocol == "narrate":
                said = tuple(Said(time, rng.choice(pool)) for time in times if pool and rng.random() < rate)
                rounds.append(replace(empty, said=said, answers=tuple(None for _ in stream.replies)))
            elif protocol == "proactive":
                start, due = times[0], stream.replies[0].time or 0.0
                drawn = [Answer((rng.choice(pool),), rng.uniform(start, due + POLL_AFTER)) for _ in range(2)]
                rounds.append(replace(empty, answers=tuple(drawn)))
            else:
                rounds.append(
                    replace(empty, answers=tuple(_draw(reply, kinds, candidates, rng) for reply in stream.replies))
                )
        found.append(rounds)
    return found


def _kind(reply: Segment) -> str:
    return str(reply.meta.get("task", ""))


def _draw(reply: Segment, kinds: dict[str, list[str]], candidates: int, rng: random.Random) -> Answer:
    options = reply.meta.get("options")
    pool = [chr(65 + place) for place in range(len(options))] if options else kinds[_kind(reply)]
    return Answer(tuple(rng.choice(pool) for _ in range(candidates)), float(reply.time or 0.0))
