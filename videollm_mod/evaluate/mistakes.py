"""What a session got wrong, mistake by mistake, and which streams it got most wrong: what the report shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from videollm_mod.evaluate.metrics import Said, match
from videollm_mod.evaluate.streams import Watched
from videollm_mod.evaluate.summary import Spoken, spoken

NEAR = 3.0  # seconds within which the right sentence counts as said at the wrong time


@dataclass(frozen=True)
class Mistake:
    """One mistake; `true` and `said` as far as there is one."""

    kind: str  # "wrong sentence", "wrong time", "missed", "false alarm", "one too many" or "wrong answer"
    true: Said | None
    said: Said | None
    question: str | None = None

    @property
    def times(self) -> tuple[float, ...]:
        """When it happened: one or two times, ascending, seconds."""
        return tuple(sorted({item.time for item in (self.true, self.said) if item is not None}))


def narration_mistakes(result: Spoken) -> list[Mistake]:
    """What is not a pair in time with the right sentence, ascending by time."""
    said = [item for i, item in enumerate(result.said) if i not in {i for i, _ in result.right}]
    true = [item for j, item in enumerate(result.true) if j not in {j for _, j in result.right}]
    found: list[Mistake] = []
    for i, j in reversed(match(said, true, by_text=False)):
        found.append(Mistake("wrong sentence", true.pop(j), said.pop(i)))
    for item in list(true):
        same = [other for other in said if other.text == item.text and abs(other.time - item.time) <= NEAR]
        if same:
            nearest = min(same, key=lambda other: abs(other.time - item.time))
            found.append(Mistake("wrong time", item, nearest))
            true.remove(item)
            said.remove(nearest)
    alarms = {result.said[i] for i in result.alarms}
    found += [Mistake("missed", item, None) for item in true]
    found += [Mistake("false alarm" if item in alarms else "one too many", None, item) for item in said]
    return sorted(found, key=lambda mistake: mistake.times)


def mistakes_in(watched: Watched) -> list[Mistake]:
    """All mistakes in one stream, wrong answers included, ascending by time."""
    result = spoken(watched)
    found = narration_mistakes(result)
    for question, answer, right in zip(watched.stream.questions, watched.own.answers, result.answered):
        if not right:
            true, said = Said(question.time, question.answer), Said(question.time, answer)
            found.append(Mistake("wrong answer", true, said, question.question))
    return sorted(found, key=lambda mistake: mistake.times)


def worst(watched: Sequence[Watched], count: int = 10) -> list[tuple[Watched, list[Mistake]]]:
    """The streams with the most mistakes, at most `count`, worst first, ties in the order given; none without any."""
    pairs = [(item, mistakes_in(item)) for item in watched]
    ranked = sorted((pair for pair in pairs if pair[1]), key=lambda pair: -len(pair[1]))
    return ranked[:count]
