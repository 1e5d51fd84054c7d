"""What the world says: narrations, questions and answers as text, and every word that can occur in them.

One sentence form per kind of event, so that a narration is either right or wrong.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from videollm_mod.world.config import COLOURS, SHAPES, SIDES, SIZES, Look

QUESTION_KINDS = ("view", "count", "last", "where")

ASK_VIEW = "What is in view?"
ASK_COUNT = "How many things are there?"
ASK_LAST = "What happened last?"
ASK_FIRST = "What happened first?"  # of tests of long memory, as is `ask_minutes_ago`; not in `vocabulary`
NOTHING = "Nothing."
NOTHING_YET = "Nothing yet."
COUNTS = ("None.", "One.", "Two.", "Three.")
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


def describe(look: Look) -> str:
    """A thing in words, without an article: "small red square"."""
    return f"{look.size} {look.colour} {look.shape}"


def narration(kind: str, look: Look | None = None, side: str | None = None, became: str | None = None) -> str:
    """The sentence of an event; `side` for enters and leaves, `became` (a colour) for turns, no look for cut."""
    if kind == "cut" or look is None:
        return "The scene changes."
    name = describe(look)
    if kind == "leaves":  # one says "to the left", also "to the top"
        return f"The {name} leaves to the {side}."
    return {
        "enters": f"A {name} enters from the {side}.",
        "appears": f"A {name} appears.",
        "disappears": f"The {name} disappears.",
        "placed": f"A hand places a {name}.",
        "taken": f"A hand takes the {name}.",
        "turns": f"The {name} turns {became}.",
        "starts": f"The {name} starts to move.",
        "stops": f"The {name} stops.",
    }[kind]


def ask_where(look: Look) -> str:
    """The question for a thing's place."""
    return f"Where is the {describe(look)}?"


def ask_minutes_ago(minutes: float) -> str:
    """The question for what had just happened so long ago."""
    return f"What happened {minutes:g} minute{'' if minutes == 1 else 's'} ago?"


def say_view(looks: Sequence[Look]) -> str:
    """The things in view, in the order given: "A ..., a ... and a ..."."""
    if not looks:
        return NOTHING
    names = [f"a {describe(look)}" for look in looks]
    text = names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
    return "A" + text[1:] + "."


def say_where(x: float, y: float) -> str:
    """The cell of a 3 x 3 grid in which the point (0..1, 0..1) lies, row first: "In the top left."."""
    row, column = _ROWS[min(int(y * 3), 2)], _COLUMNS[min(int(x * 3), 2)]
    return "In the middle." if row == column == "middle" else f"In the {row} {column}."


def all_sentences() -> list[str]:
    """Every narration, question and answer once, except views of two and three things: one example of each."""
    looks = _looks()
    sentences = [narration("cut"), ASK_VIEW, ASK_COUNT, ASK_LAST, NOTHING, NOTHING_YET, *COUNTS]
    sentences += [say_where((column + 0.5) / 3, (row + 0.5) / 3) for row in range(3) for column in range(3)]
    sentences += [say_view(looks[:2]), say_view(looks[:3])]
    for look in looks:
        sentences += [*_narrations_of(look), ask_where(look), say_view([look])]
    return sentences


def all_narrations() -> list[str]:
    """Every narration once."""
    return [narration("cut"), *(text for look in _looks() for text in _narrations_of(look))]


def _looks() -> list[Look]:
    return [Look(colour, shape, size) for size in SIZES for colour in COLOURS for shape in SHAPES]


def _narrations_of(look: Look) -> list[str]:
    return [
        *(narration(kind, look, side) for kind in ("enters", "leaves") for side in SIDES),
        *(narration(kind, look) for kind in ("appears", "disappears", "placed", "taken", "starts", "stops")),
        *(narration("turns", look, became=colour) for colour in COLOURS if colour != look.colour),
    ]


def split_words(text: str) -> list[str]:
    """Words and punctuation marks in order, as written: "A ring." -> ["A", "ring", "."]."""
    return re.findall(r"\w+|[^\w\s]", text)


def vocabulary() -> list[str]:
    """Every word and mark that the world can produce, sorted; case matters ("A" and "a" are two)."""
    return sorted({word for sentence in all_sentences() for word in split_words(sentence)})
