"""Files that are either whole or absent: written under a temporary name beside the target, renamed when complete.

`check_writable` is asked before long work starts, so that an hour of narration is never lost to a typing error.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from videollm_mod.types import InputError

FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
)  # what a write may fail with, long after `open`


def check_writable(path: str | Path) -> Path:
    """Make sure that a file can be written at `path`; raises InputError with the mend. Nothing is left behind."""
    target = Path(path)
    if not str(path) or target.is_dir():
        raise InputError(f"cannot write {str(path)!r}: it is a folder; give the name of a file in it.")
    folder = target.parent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"cannot write {path}: {folder} is a file; give a name in a folder.")
    if not folder.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {folder}; create it first.")
    if target.exists() and not os.access(target, os.W_OK):
        raise InputError(f"cannot write {path}: the file is write-protected; choose another name.")
    if _is_regular(target):
        probe = temporary_name(target)
        try:
            probe.touch(exist_ok=False)
            probe.unlink()
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; choose another folder.") from error
    return target


def temporary_name(path: Path) -> Path:
    """A new name in the folder of `path` (a symbolic link is followed: its target is what gets replaced)."""
    real = Path(os.path.realpath(path))
    # 50 characters leave room for the rest: file systems end names at 255 bytes, and UTF-8 takes up to four for each
    return real.parent / f".{real.name[:50]}.{secrets.token_hex(4)}.part"


def publish(temporary: Path, path: Path) -> None:
    """Give a finished temporary file its final name, keeping the permissions of a file that it replaces."""
    real = Path(os.path.realpath(path))
    if real.exists():
        with suppress(OSError):
            shutil.copymode(real, temporary)
    os.replace(temporary, real)


def part_name(path: str | Path) -> Path:
    """Where a file grows that can be followed (`tail -f`) before it gets its name: NAME.part beside it."""
    real = os.path.realpath(path)
    return Path(real + ".part")


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """A block that writes a file: a full disk shows in an error that names none, and gets its name here."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and (error.filename is None or str(error.filename).endswith(".part")):
            error.filename = str(path)
        raise


@contextmanager
def atomic_write(
    path: str | Path, *, binary: bool = False, keep_on_interrupt: bool = False, follow: bool = False
) -> Iterator[IO[Any]]:
    """Open a file (UTF-8 text, or bytes if `binary`) that appears under its name only when the block ends well.

    If the block raises, nothing is left and an older file of that name stays as it was. `keep_on_interrupt`: Ctrl-C
    also counts as a good end; for files that are valid after every line, such as JSONL. `follow`: until then it is
    NAME.part, which can be followed, and stays with what it has after an error.
    Pipes and devices (/dev/stdout, a named pipe) cannot be renamed onto and are written directly.
    """
    target = check_writable(path)
    mode, encoding, newline = ("b", None, None) if binary else ("", "utf-8", "\n")
    if not _is_regular(target):
        with naming(target), open(target, "w" + mode, encoding=encoding, newline=newline) as file:
            yield file
        return
    temporary = part_name(target) if follow else temporary_name(target)
    try:
        with (
            naming(target),
            open(temporary, ("w" if follow else "x") + mode, encoding=encoding, newline=newline) as file,
        ):
            try:
                yield file
            except KeyboardInterrupt:
                if keep_on_interrupt:
                    _flush(file)
                    publish(temporary, target)
                raise
            if not follow:  # it was flushed as it grew, and is no worse off than a log
                _flush(file)
        publish(temporary, target)
    finally:
        if not (follow and temporary.exists() and temporary.stat().st_size):
            temporary.unlink(missing_ok=True)


def _flush(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _is_regular(path: Path) -> bool:
    """True for an ordinary file and for a name that is still free."""
    return not path.exists() or stat.S_ISREG(path.stat().st_mode)
