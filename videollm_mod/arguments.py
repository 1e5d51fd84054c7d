"""Words of a command line -> the dataclass of flags that a command takes; what is wrong with them is one sentence.

Tyro parses. It tells what it refuses through `tyro._errors.on_parse_error`, which is not part of its public face: where
a version lacks it, or has changed it, tyro's own box of text stands in for the sentence, with the same exit code.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

KINDS = {"FLOAT": "a number", "INT": "a whole number", "STR": "a word", "PATH": "a path"}  # tyro's types, in words
EXAMPLES = {"FLOAT": "0.5", "INT": "1"}


class FlagError(Exception):
    """Flags that cannot be read; the message is one sentence. (An InputError would have to import torch.)"""


def parse_flags(command: Callable[[Any], Any], words: Sequence[str], prog: str, about: str) -> Any:
    """The value of the command's one argument, a dataclass. Raises FlagError; --help prints and leaves with 0."""
    import tyro

    kind = next(kind for argument, kind in get_type_hints(command).items() if argument != "return")
    if {"-h", "--help"} & set(words):
        words = ["--help"]  # alone: behind a positional, tyro's usage would leave that out
    style = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    known = [_flag(field.name) for field in dataclasses.fields(kind) if not _is_positional(kind, field.name)]

    def refuse(event: Any) -> None:
        try:
            sentence = _why(event, known, words, prog)
        except AttributeError:  # another version of tyro
            return
        if sentence is not None:
            raise FlagError(sentence)

    with _on_parse_error(refuse), _lines_that_go_on():
        return tyro.cli(_without_none(kind), args=list(words), prog=prog, description=about, config=style)


def _on_parse_error(hook: Callable[[Any], None]) -> AbstractContextManager[Any]:
    try:
        from tyro._errors import on_parse_error
    except ImportError:  # another version of tyro
        return nullcontext()
    return on_parse_error(hook)


@contextmanager
def _lines_that_go_on() -> Iterator[None]:
    """Help texts are filled: tyro takes the indented second line of a text in our source for one that stands alone."""
    import inspect

    try:
        from tyro import _strings

        fill = _strings.remove_single_line_breaks
    except (ImportError, AttributeError):  # another version of tyro
        yield
        return

    def filled(helptext: str) -> str:
        return fill(inspect.cleandoc(helptext))

    _strings.remove_single_line_breaks = filled
    try:
        yield
    finally:
        _strings.remove_single_line_breaks = fill


def _without_none(kind: Any) -> Any:
    """The same flags without "(default: None)" or "(default: )": their texts say what happens if they are not given."""
    import tyro

    hints, silent = get_type_hints(kind, include_extras=True), tyro.conf.arg(help_behavior_hint="")
    unset = [field.name for field in dataclasses.fields(kind) if field.default is None or field.default == ()]
    annotations = {name: Annotated[hints[name], silent] for name in unset}
    return type(
        kind.__name__, (kind,), {"__annotations__": annotations, "__module__": kind.__module__, "__doc__": kind.__doc__}
    )


def _is_positional(kind: Any, name: str) -> bool:
    import tyro

    hint = get_type_hints(kind, include_extras=True)[name]
    return tyro.conf.Positional in getattr(hint, "__metadata__", ())


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _choices(argument: Any) -> str:
    """What an argument may be, in the order in which its type names it: tyro's own order differs from run to run.

    None is left out; it is not given at all.
    """
    kind = argument.field.type_stripped
    named = [str(word) for part in (kind, *get_args(kind)) if get_origin(part) is Literal for word in get_args(part)]
    choices = [choice for choice in argument.lowered.choices or () if choice != "None"]
    return ", ".join(sorted(choices, key=lambda choice: named.index(choice) if choice in named else len(named)))


def _why(event: Any, known: Sequence[str], words: Sequence[str], prog: str) -> str | None:
    """The sentence for an event of tyro; None for one that we do not know."""
    happened = type(event).__name__
    unknown = [word.split("=")[0] for word in words if word.startswith("--") and _spelt(word) not in known]
    if unknown and happened in ("UnrecognizedArgs", "MissingArgs", "BadValue"):
        near = difflib.get_close_matches(_spelt(unknown[0])[2:], [flag[2:] for flag in known], 1)
        mend = f"did you mean --{near[0]}?" if near else f"`{prog} --help` lists its flags."
        return f"there is no flag {unknown[0]}; {mend}"
    if happened == "UnrecognizedArgs":
        if event.tokens[0].startswith("-"):
            return f"there is no flag {event.tokens[0]}; `{prog} --help` lists its flags."
        return f"'{event.tokens[0]}' is too many; leave it out, or quote what belongs together."
    if happened == "MissingArgs":
        missing = event.missing_arguments[0].arg
        text = missing.field.helptext
        text = str(text() if callable(text) else text).strip().rstrip(".")
        return f"{_name(missing)} is missing; give {text[:1].lower()}{text[1:]}."
    argument = getattr(event, "argument", None)
    if argument is None:
        return None
    name, given, sign = _name(argument), _given(argument, words), str(argument.lowered.metavar).strip("[]").split()[0]
    if happened == "BadValue":
        choices = _choices(argument)
        return f"{name} has no value; give {f'one of {choices}' if choices else KINDS.get(sign, sign)}."
    if happened == "InvalidChoice":
        return f"{name} '{event.value}' is unknown; take one of {_choices(argument)}."
    if happened == "InstantiationFailure" and sign in EXAMPLES and given:
        default = argument.field.default
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else EXAMPLES[sign]
        if type(default) is int and default > 0:
            shown = str(default)
        return f"{name} '{given}' is not {KINDS[sign]}; write for example {name} {shown}."
    return None


def _spelt(word: str) -> str:
    """A flag as it is listed: without "=VALUE", with dashes where underscores were typed."""
    return "--" + word.split("=")[0][2:].replace("_", "-")


def _name(argument: Any) -> str:
    """ "--fps", or "SOURCE" for a positional."""
    return str(argument.lowered.metavar if argument.is_positional() else argument.lowered.name_or_flags[0])


def _given(argument: Any, words: Sequence[str]) -> str:
    """The words that were given for a flag."""
    flags = {_spelt(flag) for flag in argument.lowered.name_or_flags}
    found: list[str] = []
    for place, word in enumerate(words):
        if word.startswith("--") and _spelt(word) in flags:
            found = [word.split("=", 1)[1]] if "=" in word else []
            for following in words[place + 1 :] if not found else ():
                if following.startswith("--"):
                    break
                found.append(following)
    return " ".join(found)
