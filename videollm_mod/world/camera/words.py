"""What the camera world says, one sentence form per kind of event, so that a narration is either right or wrong."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product

from videollm_mod.world.camera.config import KINDS, NAMES, PLACES, SIDES
from videollm_mod.world.words import ASK_COUNT, ASK_LAST, ASK_VIEW, COUNTS, NOTHING, NOTHING_YET

QUESTION_KINDS = ("view", "count", "last")
MOST_IN_VIEW = 3  # longer views are not told

_WALKERS, _OBJECTS = ("person", "car", "something"), ("bottle", "box", "ball", "something")
_PLACED = {"left": "on the left", "middle": "in the middle", "right": "on the right"}
_FORMS = {
    "enter": r"(?:A \w+|Something) enters from the (left|right|top|bottom)\.",
    "leave": r"(?:A \w+|Something) leaves to the (left|right|top|bottom)\.",
    "placed": r"(?:A \w+|Something) is placed (?:on|in) the (left|middle|right)\.",
    "removed": r"(?:A \w+|Something) is taken away (?:on|in) the (left|middle|right)\.",
}


def with_article(name: str) -> str:
    """ "a bottle", "something"."""
    return name if name == "something" else f"a {name}"


def narration(kind: str, name: str, where: str) -> str:
    """The sentence of an event; `where` is a side for enter and leave, a place for placed and removed."""
    who = with_article(name)
    does = {
        "enter": f"enters from the {where}",
        "leave": f"leaves to the {where}",
        "placed": f"is placed {_PLACED.get(where)}",
        "removed": f"is taken away {_PLACED.get(where)}",
    }[kind]
    return f"{who[0].upper()}{who[1:]} {does}."


def parse(text: str) -> tuple[str, str] | None:
    """A narration read back as (kind, side or place); None if it is not exactly of one of the four forms."""
    for kind, form in _FORMS.items():
        match = re.fullmatch(form, text.strip())
        if match:
            return kind, match[1]
    return None


def say_view(names: Sequence[str]) -> str:
    """The things in view, in the order given: "A person, something and a box."."""
    if not names:
        return NOTHING
    said = [with_article(name) for name in names]
    text = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    return text[0].upper() + text[1:] + "."


def all_camera_sentences() -> list[str]:
    """Every narration, question and answer that can occur, once each."""
    sentences = [ASK_VIEW, ASK_COUNT, ASK_LAST, NOTHING_YET, *COUNTS]
    for kind in KINDS:
        names, places = (_WALKERS, SIDES) if kind in ("enter", "leave") else (_OBJECTS, PLACES)
        sentences += [narration(kind, name, where) for name in names for where in places]
    for count in range(MOST_IN_VIEW + 1):
        sentences += [say_view(names) for names in product(NAMES, repeat=count)]
    return sentences
