"""CIDEr, ROUGE-L and, where Java is there, METEOR of pairs of sentences: pycocoevalcap's, on words of our own cutting.

It is the code that the captioning papers use, so numbers compare; only its tokenizer (Stanford's PTB) and METEOR need
Java. Instead of that tokenizer, words are lower-cased runs of letters and digits: for short narrations the same, but
for contractions ("doesn't" stays one word). `rouge-score` stems, and `aac-metrics` pulls in speech models.

compat=True compares sentences as they stand, full stops and capitals included, as FlowNar's code does.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from videollm_mod.types import InputError

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*", re.UNICODE)


def words(text: str) -> str:
    """A sentence in lower case, its words with one space between them and without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def cider(pairs: Sequence[tuple[str, str]], *, compat: bool = False) -> list[float]:
    """CIDEr-D of each (said, true) pair, 0 to 10; n-grams count by how rare they are among all true sentences here.

    With fewer than two different true sentences nothing is rare, and every score is 0. Papers print 100 times this.
    """
    return _score("cider", pairs, compat) if pairs else []


def rouge_l(pairs: Sequence[tuple[str, str]], *, compat: bool = False) -> list[float]:
    """ROUGE-L of each (said, true) pair, in [0, 1]: F of the longest common subsequence, beta 1.2."""
    return _score("rouge", pairs, compat) if pairs else []


def meteor(pairs: Sequence[tuple[str, str]], *, compat: bool = False) -> list[float] | None:
    """METEOR 1.5 of each (said, true) pair, in [0, 1]; None where there is no Java to run it."""
    if shutil.which("java") is None:
        return None
    return _score("meteor", pairs, compat) if pairs else []


def _score(name: str, pairs: Sequence[tuple[str, str]], compat: bool) -> list[float]:
    cut = str if compat else words
    said = {number: [cut(ours)] for number, (ours, _) in enumerate(pairs)}
    true = {number: [cut(theirs)] for number, (_, theirs) in enumerate(pairs)}
    _, each = _scorer(name)().compute_score(true, said)
    return [float(value) for value in each]


@cache
def _scorer(name: str) -> Callable[[], Any]:
    try:
        if name == "cider":
            from pycocoevalcap.cider.cider import Cider

            return Cider
        if name == "rouge":
            from pycocoevalcap.rouge.rouge import Rouge

            return Rouge
        from pycocoevalcap.meteor.meteor import Meteor

        return Meteor
    except ImportError as error:
        raise InputError("CIDEr and ROUGE-L need pycocoevalcap; pip install 'videollm-mod[eval]'.") from error
