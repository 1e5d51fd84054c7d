"""The command line `videollm-mod`: picks the command, reads its flags, prints one JSON object as the last stdout line.

A command is one line in COMMANDS: its words -> "module:function" and what it does. The function takes one dataclass,
whose fields are the flags, and returns a dict of plain JSON values. Modules are imported only when their command is
asked for, and import torch only when they run: `--help` stays fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from videollm_mod.arguments import FlagError, parse_flags
from videollm_mod.evaluate.names import BENCHMARK_NAMES
from videollm_mod.pace import safe_point
from videollm_mod.quiet import hush

COMMANDS: dict[str, tuple[str, str]] = {
    "watch": ("videollm_mod.watch:watch", "Narrate a video file, folder, address or camera as it plays."),
    "show": ("videollm_mod.show.command:show", "Draw the tokens that each routed layer keeps, as video and picture."),
    "serve": ("videollm_mod.serve.command:serve", "A server and its page: live cameras narrated, questions answered."),
    "train": ("videollm_mod.train.command:train_command", "Train a model from a recipe, such as `tiny`."),
    "tables": ("videollm_mod.tables.command:fill_tables", "Fill the paper's tables at a small scale, cell by cell."),
    "eval world": ("videollm_mod.evaluate.world:evaluate_world", "Measure a model on the synthetic world."),
    "eval leaderboard": (
        "videollm_mod.evaluate.leaderboard:leaderboard",
        "Models beside silence, chance and frame differences.",
    ),
    "eval clips": ("videollm_mod.evaluate.clips:evaluate_clips", "What a model says of real clips, against labels."),
    "eval endless": ("videollm_mod.evaluate.endless:evaluate_endless", "Long streams under every cache policy."),
    "eval report": ("videollm_mod.evaluate.tables:report", "Tables and plots of a folder of results."),
    **{
        f"eval {name}": (f"videollm_mod.evaluate.command:{name.replace('-', '_')}", about)
        for name, about in BENCHMARK_NAMES.items()
    },
    "bench depth": ("videollm_mod.bench.command:bench_depth", "Time and weigh a routed decoder against the dense one."),
    "bench flops": (
        "videollm_mod.bench.fronts:bench_flops",
        "FLOPs and KV bytes of plans at true size, by formula and counted.",
    ),
    "bench train": ("videollm_mod.bench.fronts:bench_train", "Time a training step of every plan against dense."),
    "bench stream": ("videollm_mod.bench.fronts:bench_stream", "Time frames early and late in a stream, every plan."),
    "bench engine": ("videollm_mod.bench.engine_command:bench_engine", "Many sessions in one engine against in turn."),
    "bench soak": ("videollm_mod.bench.soak:bench_soak", "Cost per frame and memory of a stream of 100,000 frames."),
    "bench decode": ("videollm_mod.bench.fronts:bench_decode", "Time the video reader against PyAV and torchcodec."),
    "bench reductions": (
        "videollm_mod.bench.reductions_command:bench_reductions",
        "Every token reduction on the same model and streams.",
    ),
    "bench predict": (
        "videollm_mod.bench.fronts:bench_predict",
        "Reckon what a model and a camera of your own will cost.",
    ),
    "bench report": ("videollm_mod.bench.fronts:bench_report", "Draw the page and the plots of all results."),
    "data check": ("videollm_mod.data.command:check", "Tell what is wrong with a file of streams, line by line."),
    "data make": ("videollm_mod.data.command:make", "Your own videos and timed sentences as a file of streams."),
    "data list": ("videollm_mod.data.command:list_data", "Data sets that can be read, and where to get them."),
    "data stats": ("videollm_mod.data.command:stats", "Count a data set's videos, sentences and seconds."),
    "data build": ("videollm_mod.data.command:build", "A data set's streams as a file, to train on or to evaluate."),
    "extract": ("videollm_mod.data.extract_command:extract", "Frames of videos as a tower's features, on disk."),
    "doctor": ("videollm_mod.doctor:doctor", "Check versions, video decoders, devices, and what is missing."),
}

OK, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130

FULL = "free some space or write elsewhere"
WRITE_ERRORS = {errno.ENOSPC: FULL, errno.EDQUOT: FULL, errno.EFBIG: "write elsewhere", errno.EROFS: "write elsewhere"}
# what else a machine, and not our code, may be the cause of
PATH_ERRORS = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO}
PATH_ERRORS |= {errno.EACCES, errno.EPERM, errno.ETXTBSY, errno.EBUSY, errno.ESTALE, errno.ENODEV}
DEVICE_ERRORS = {
    errno.EIO: "check the disk or device",
    errno.ENOMEM: "close other programs",
    errno.EMFILE: "raise the limit with `ulimit -n`",
    errno.ENFILE: "close other programs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 if a check failed, 2 for bad input, 130 if interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = _command(words)
    if name is None:
        return _usage(words)
    module, function = COMMANDS[name][0].split(":")
    config: Any = None
    hush()
    try:
        safe_point()
        command: Callable[[Any], dict[str, Any]] = getattr(importlib.import_module(module), function)
        safe_point()
        config = parse_flags(command, words[len(name.split()) :], f"videollm-mod {name}", COMMANDS[name][1])
        safe_point()
        result = command(config)
        return _finish(name, result)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our stdout has gone, as in `| head`; nobody is left to tell
        _give_up_stdout()
        return FAILED
    except FlagError as error:
        print(f"videollm-mod {name}: {error}", file=sys.stderr)
        return BAD_INPUT
    except (ValueError, OSError) as error:
        sentence = _sentence(error, config)
        if sentence is None:
            raise
        print(f"videollm-mod {name}: {sentence}", file=sys.stderr)
        return BAD_INPUT


def _finish(name: str, result: dict[str, Any]) -> int:
    """Print the result; returns the exit code."""
    try:
        print(json.dumps(result, ensure_ascii=False), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or "it cannot be used").lower()
        print(f"videollm-mod {name}: cannot write the result to standard output: {reason}.", file=sys.stderr)
        _give_up_stdout()
        return BAD_INPUT
    if result.get("interrupted"):
        return INTERRUPTED
    return OK if result.get("ok", True) else FAILED


def _give_up_stdout() -> None:
    """What is still in its buffer goes nowhere, without an error when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# -- words -> command --------------------------------------------------------------------------------------------------


def _command(words: Sequence[str]) -> str | None:
    """The longest command name that the words begin with: "eval world" before "eval"."""
    for count in (2, 1):
        if " ".join(words[:count]) in COMMANDS and len(words) >= count:
            return " ".join(words[:count])
    return None


def _usage(words: Sequence[str]) -> int:
    """The version; or the list of commands, on stdout when asked for, else on stderr with what is wrong."""
    if list(words) == ["--version"]:
        from videollm_mod import __version__

        print(f"videollm-mod {__version__}")
        return OK
    group = words[0] if words and any(name.startswith(f"{words[0]} ") for name in COMMANDS) else ""
    listed = {name: about for name, (_, about) in COMMANDS.items() if name.startswith(f"{group} " if group else "")}
    lines = ["usage: videollm-mod COMMAND [FLAGS]", ""]
    lines += [f"  {name:<30}{about}" for name, about in listed.items()]
    lines += ["", "videollm-mod COMMAND --help lists the flags of a command."]
    asked = bool({"-h", "--help"} & set(words)) and (bool(group) or words[0].startswith("-"))
    if not asked and words:
        print(f"videollm-mod: {_no_command(words, group)}", file=sys.stderr)
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    return OK if asked else BAD_INPUT


def _no_command(words: Sequence[str], group: str) -> str:
    """Why the words name no command."""
    if group:
        inner = [name.split()[1] for name in COMMANDS if name.startswith(f"{group} ")]
        needs = f"{group} needs one of: {', '.join(inner)}."
        named = words[1:] and not words[1].startswith("-")
        return f"there is no command '{group} {words[1]}'; {needs}" if named else needs
    near = difflib.get_close_matches(words[0], [*COMMANDS, *(name.split()[0] for name in COMMANDS)], 1)
    mend = f"did you mean '{near[0]}'?" if near else "take one of those below."
    return f"there is no command '{words[0]}'; {mend}"


# -- errors -> sentences -----------------------------------------------------------------------------------------------


def _sentence(error: Exception, config: Any) -> str | None:
    """What to tell a person who can mend it; None if the error is ours, and a traceback is due."""
    from videollm_mod.types import InputError  # imports torch, which by now costs nothing

    if isinstance(error, InputError):
        return str(error)
    if not isinstance(error, OSError):
        return None
    reason = (error.strerror or "cannot be used").lower()
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    if error.errno in WRITE_ERRORS:
        # a full disk shows when a buffer is written out, and that error names no file: one of the outputs it is
        what = path or " or ".join(_outputs(config)) or "a file"
        return f"cannot write {what}: {reason}; {WRITE_ERRORS[error.errno]}."
    if error.errno in PATH_ERRORS and path:
        return f"'{path}': {reason}; check the path and its permissions."
    if error.errno in DEVICE_ERRORS:
        prefix = f"'{path}': " if path else ""
        return f"{prefix}{reason}; {DEVICE_ERRORS[error.errno]}."
    return None


def _outputs(config: Any) -> list[str]:
    """The paths among a command's flags: all of them are written to."""
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    return [str(value) for field in fields if isinstance(value := getattr(config, field.name), Path)]
