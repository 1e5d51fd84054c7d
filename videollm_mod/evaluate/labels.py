"""Free text onto labels: exactly, else the nearest by Levenshtein distance, as COIN's and LTA's metrics want it.

An answer against 61,000 verb-noun pairs is one call of rapidfuzz; the public code's loop in Python takes minutes for
what takes this a fraction of a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

from videollm_mod.types import InputError

_NUMBERED = re.compile(r"^\s*\d+\s*[.):]\s*")
_NUMBER = re.compile(r"(?:^|(?<=\s))(\d{1,3})\s*[.):]\s+")


class LabelSpace:
    """A set of labels in which the nearest to any text is found.

    Ties go to the label that comes first in alphabetical order (which is what `min` over (distance, label) gives).
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.labels = sorted(set(labels))
        if not self.labels:
            raise InputError("there are no labels to map answers to; give the file that lists them.")
        self._known = set(self.labels)
        self._found: dict[str, str] = {}

    def nearest(self, texts: Sequence[str]) -> list[str]:
        """The label of each text: the text itself if it is one, else the one with the fewest edits to it."""
        new = list(dict.fromkeys(text for text in texts if text not in self._known and text not in self._found))
        if new:
            try:
                from rapidfuzz.distance import Levenshtein
                from rapidfuzz.process import cdist
            except ImportError as error:
                raise InputError("nearest labels need rapidfuzz; pip install 'videollm-mod[eval]'.") from error
            for begin in range(0, len(new), 64):  # 64 x 61,000 distances are 8 MB
                part = new[begin : begin + 64]
                apart = cdist(part, self.labels, scorer=Levenshtein.distance, dtype=np.uint16)
                for text, best in zip(part, apart.argmin(1).tolist()):
                    self._found[text] = self.labels[best]
        return [text if text in self._known else self._found[text] for text in texts]


def plain(text: str) -> str:
    """A label or an answer to compare: lower case, one space between words, no full stop at the end."""
    return " ".join(text.lower().split()).rstrip(".").rstrip()


def steps(text: str, *, compat: bool = False) -> list[str]:
    """The steps of an answer, one a line, without their numbers: "1. Cut it.\\n2. Fry it." -> ["cut it", "fry it"].

    Several on one line count, too, where their numbers count up: some models have no word for a new line.
    compat: as VideoLLM-online's code for COIN: what is behind the last ". " of each line, empty ones too, as it stands.
    """
    if compat:
        return [line.split(". ")[-1] for line in text.split("\n")]
    lines = [part for line in text.strip().splitlines() for part in _counted(line)]
    found = [plain(_NUMBERED.sub("", line)) for line in lines]
    return [step for step in found if step]


def numbered_lines(text: str) -> list[str]:
    """What VideoLLM-online's code for LTA takes for actions: the lines with a number and a full stop, from there on."""
    found = [re.search(r"\d+\.\s*(.*)", line) for line in text.strip(" \n").split("\n")]
    return [match[1].lower().rstrip(".") for match in found if match]


def _counted(line: str) -> list[str]:
    """ "1. Cut it. 2. Fry 3 eggs." -> ["1. Cut it. ", "2. Fry 3 eggs."]."""
    parts, begin, count = [], 0, None
    for mark in _NUMBER.finditer(line):
        if count is None and mark.start() == 0:
            count = int(mark[1])
        elif count is not None and int(mark[1]) == count + 1:
            parts.append(line[begin : mark.start()])
            begin, count = mark.start(), count + 1
    return [*parts, line[begin:]]


def step_hits(said: Sequence[str], true: Sequence[str], *, compat: bool = False) -> tuple[int, int]:
    """(right, counted) steps of a procedure, place by place. A step that is missing counts as wrong.

    compat: missing steps are not counted at all, as in the public code of VideoLLM-online.
    """
    right = sum(a == b for a, b in zip(said, true))
    return right, min(len(said), len(true)) if compat else len(true)


class ActionSpace:
    """Verbs x nouns: the nearest pair to a text gives the two numbers."""

    def __init__(self, verbs: Sequence[str], nouns: Sequence[str]) -> None:
        self.verbs, self.nouns = list(verbs), list(nouns)
        self._pairs = {f"{verb} {noun}": (i, j) for (i, verb), (j, noun) in product(enumerate(verbs), enumerate(nouns))}
        self._space = LabelSpace(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def numbers(self, texts: Sequence[str]) -> list[tuple[int, int]]:
        """(verb, noun) of each text."""
        return [self._pairs[label] for label in self._space.nearest([plain(text) for text in texts])]

    def sequence(self, text: str, length: int, fill: tuple[int, int], *, compat: bool = False) -> list[tuple[int, int]]:
        """The `length` actions that an answer lists, see `steps`; the last one fills up what is missing, or `fill`.

        compat: those of `numbered_lines`.
        """
        found = self.numbers((numbered_lines(text) if compat else steps(text))[:length])
        return found + [found[-1] if found else fill] * (length - len(found))
