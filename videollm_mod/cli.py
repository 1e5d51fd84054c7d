"""The command line `videollm-mod`: picks the command, reads its flags, prints one JSON object as the last stdout line.

A command is one line in COMMANDS: its words -> "module:function" and what it does. The function takes one dataclass,
whose fields are the flags, and returns a dict of plain JSON values. Modules are imported only when their command is
asked for, and import torch only when they run: `--help` stays fast.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

COMMANDS: dict[str, tuple[str, str]] = {
    "watch": ("videollm_mod.watch:watch", "Narrate a video file, folder, address or camera as it plays."),
    "show": ("videollm_mod.show.command:show", "Draw the tokens that each routed layer keeps, as video and picture."),
    "train": ("videollm_mod.train.command:train_command", "Train a model from a recipe, such as `tiny`."),
    "eval world": ("videollm_mod.evaluate.world:evaluate_world", "Measure a model on the synthetic world."),
    "bench depth": ("videollm_mod.bench.depth:bench_depth", "Time and weigh a routed decoder against the dense one."),
    "doctor": ("videollm_mod.doctor:doctor", "Check versions, video decoders, devices, and what is missing."),
}

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 if a check failed, 2 for bad input, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = _command(words)
    if name is None:
        return _usage(words)
    try:
        return _run(name, words[len(name.split()) :])
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout has gone, as in `| head`; nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (ValueError, OSError) as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        print(f"videollm-mod {name}: {sentence}", file=sys.stderr)
        return BAD_INPUT


def _run(name: str, flags: list[str]) -> int:
    import tyro

    target, about = COMMANDS[name]
    module, function = target.split(":")
    command: Callable[[Any], dict[str, Any]] = getattr(importlib.import_module(module), function)
    config_type = next(kind for argument, kind in get_type_hints(command).items() if argument != "return")
    style = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    config = tyro.cli(config_type, args=flags, prog=f"videollm-mod {name}", description=about, config=style)
    result = command(config)
    print(json.dumps(result, ensure_ascii=False), flush=True)
    if result.get("interrupted"):
        return INTERRUPTED
    return OK if result.get("ok", True) else FAILED


def _command(words: Sequence[str]) -> str | None:
    """The longest command name that the words begin with: "eval world" before "eval"."""
    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS and len(words) >= count:
            return " ".join(words[:count])
    return None


def _usage(words: Sequence[str]) -> int:
    """The list of commands: on stdout when asked for, else on stderr with what is wrong."""
    group = words[0] if words and not words[0].startswith("-") else ""
    listed = {name: about for name, (_, about) in COMMANDS.items() if name.startswith(f"{group} ")} or {
        name: about for name, (_, about) in COMMANDS.items()
    }
    lines = ["usage: videollm-mod COMMAND [FLAGS]", ""]
    lines += [f"  {name:<14}{about}" for name, about in listed.items()]
    lines += ["", "videollm-mod COMMAND --help lists the flags of a command."]
    asked = bool({"-h", "--help"} & set(words)) and (not group or len(listed) < len(COMMANDS))
    if not asked and words:
        print(f"videollm-mod: there is no command '{' '.join(words[:2])}'; take one of those below.", file=sys.stderr)
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return OK if asked else BAD_INPUT


def _sentence(error: Exception) -> str | None:
    """What to tell a person who can mend it; None if the error is ours, and a traceback is due."""
    from videollm_mod.types import InputError  # imports torch, which by now costs nothing

    if isinstance(error, InputError):
        return str(error)
    if (
        isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError | PermissionError)
        and error.filename
    ):
        reason = (error.strerror or "cannot be used").lower()
        return f"'{os.fsdecode(error.filename)}': {reason}; check the path and its permissions."
    return None
