"""What readers of data sets share: where files are, which video belongs to an id, what to do about bad records."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from videollm_mod.data.segments import MAX_SECONDS
from videollm_mod.types import InputError

_CALLED: dict[type, str] = {list: "list", dict: "object"}
VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".flv", ".mpg", ".ts")
FEATURES = (".safetensors",)


@dataclass
class Source:
    """The files of a data set on this machine; what its reader takes.

    A record that is not as it should be raises InputError with its id, or is counted in `skipped` if `skip_bad`. A
    video that is not there raises InputError that says where it is to be had, or is counted in `missing` if
    `skip_missing`; nothing is looked for if neither `videos` nor `features` is given.
    """

    root: Path  # the folder of the annotation files
    split: str
    name: str = "data"  # of the data set, for messages
    page: str = ""  # the page or command that gives the annotations
    video_page: str = ""  # and the videos
    fps: float = 2.0  # frames per second for which the published code makes its streams
    instruction: str | None = None  # what the user asks for, in place of the data set's usual words
    videos: Path | None = None  # a folder of videos, at any depth
    features: Path | None = None  # a folder of files of `extract`
    skip_bad: bool = False
    skip_missing: bool = False
    skipped: list[str] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)

    # -- files ---------------------------------------------------------------------------------------------------------

    def find(self, *names: str, needed: bool = True) -> Path | None:
        """The first of these files that is there: in the root, in its folder `annotations`, or up to two above it."""
        for name in names:
            # metadata lie beside or above the folder of the annotations
            for folder in (self.root, self.root / "annotations", self.root.parent, self.root.parent.parent):
                if (folder / name).is_file():
                    return folder / name
        if not needed:
            return None
        wanted = " or ".join(names)
        raise InputError(f"{self.name} needs {wanted}, which is not in {self.root}; get it with: {self.page}.")

    def json(self, *names: str, of: type = dict) -> Any:
        """The values of a JSON file, which is an object, or of a list."""
        path = self.find(*names)
        assert path is not None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON ({error}); get it again with: {self.page}.") from error
        if not isinstance(values, of):
            raise InputError(f"{path} is no {_CALLED[of]}; get it again with: {self.page}.")
        return values

    def table(self, *names: str, columns: tuple[str, ...], needed: bool = True) -> list[dict[str, str]]:
        """The rows of a CSV file; [] if it is not there and not needed."""
        path = self.find(*names, needed=needed)
        if path is None:
            return []
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                lacking = [column for column in columns if column not in (reader.fieldnames or ())]
                if lacking:
                    raise InputError(f"{path} has no column '{lacking[0]}'; get it again with: {self.page}.")
                return list(reader)
        except (OSError, ValueError, csv.Error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be read as CSV ({error}); get it again with: {self.page}.") from error

    def inside(self, values: dict[str, Any], key: str, file: str, of: type = list) -> Any:
        """What stands under the key that holds a file's records: a list, or an object of them."""
        if not isinstance(values.get(key), of):
            raise InputError(f"{file} has no {_CALLED[of]} '{key}'; get it again with: {self.page}.")
        return values[key]

    # -- records -------------------------------------------------------------------------------------------------------

    @contextmanager
    def record(self, file: str, name: object) -> Iterator[None]:
        """A block that reads a record: whatever is wrong with it is told with its id, or skipped."""
        try:
            yield
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            told = f"{file}, record {name}: {why}"
            if not self.skip_bad:
                raise InputError(f"{told}; correct it, or add --skip-bad.") from error
            if told not in self.skipped:  # labels and streams are read apart
                self.skipped.append(told)

    # -- videos --------------------------------------------------------------------------------------------------------

    def has(self, video: str) -> bool:
        """Whether a video is there, by the name of its file."""
        return bool(
            (self.videos and _look_up(self._video_files, video, ""))
            or (self.features and _look_up(self._feature_files, video, ""))
        )

    def place(self, video: str, mark: str = "") -> dict[str, Path | None] | None:
        """{"video", "features"} of a video, by the name of its file, or of a folder on its way and a `mark` in it.

        A name may have folders in front, FOLDER/NAME: of several files NAME the one in such a folder is taken.

        None if it is to be left out, because it is not there.
        """
        if self.videos is None and self.features is None:
            return {"video": None, "features": None}
        found: dict[str, Path | None] = {
            "video": _look_up(self._video_files, video, mark) if self.videos else None,
            "features": _look_up(self._feature_files, video, mark) if self.features else None,
        }
        if any(found.values()):
            return found
        if not self.skip_missing:
            folder = " or ".join(str(folder) for folder in (self.videos, self.features) if folder)
            raise InputError(
                f"the video {video} of {self.name} is not in {folder}; get it with: {self.video_page}, or add "
                "--skip-missing."
            )
        self.missing.add(video)
        return None

    @cached_property
    def _video_files(self) -> dict[str, list[Path]]:
        return _index(self.videos, VIDEOS)

    @cached_property
    def _feature_files(self) -> dict[str, list[Path]]:
        return _index(self.features, FEATURES)


def _index(folder: Path | None, endings: tuple[str, ...]) -> dict[str, list[Path]]:
    """Every name by which a file below a folder may be looked up: its own, and those of the folders on its way."""
    assert folder is not None
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; check the path.")
    found: dict[str, list[Path]] = {}
    for home, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(home, name)
            if path.suffix.lower() in endings:
                for key in {path.stem, *path.relative_to(folder).parts[:-1]}:
                    found.setdefault(key, []).append(path)
    return found


def _look_up(index: dict[str, list[Path]], name: str, mark: str) -> Path | None:
    stem = name.rsplit("/", 1)[-1]
    found = index.get(stem, [])
    own = [path for path in found if path.stem == stem]
    there = [path for path in own if f"/{path.with_suffix('').as_posix()}".endswith(f"/{name}")]
    marked = [path for path in found if mark and mark in path.name]
    return next(iter(there or own or marked), None)


# -- values ------------------------------------------------------------------------------------------------------------


def seconds(value: Any, what: str = "a time") -> float:
    """A number of seconds; ValueError for anything else."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"{what} is {value!r}, no number of seconds")
    return float(value)


def length(value: Any, what: str = "its duration") -> float:
    """Seconds that a video lasts; ValueError for anything else, and for nothing."""
    if not seconds(value, what):
        raise ValueError(f"{what} is {value!r}, no length of a video")
    return float(value)


def stretch(start: Any, end: Any) -> tuple[float, float]:
    """(start, end) in seconds; ValueError when the end lies before the start."""
    first, last = seconds(start, "its start"), seconds(end, "its end")
    if last < first:
        raise ValueError(f"it ends at {last:g} s, before it starts at {first:g} s")
    return first, last


def sentence(value: Any, what: str = "its text") -> str:
    """A text that says something, spaces in order; ValueError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r}, no text")
    return " ".join(value.split())


def as_written(value: Any, what: str = "its text") -> str:
    """As `sentence`, but every character stays as it is: for prompts that others have to get again."""
    sentence(value, what)
    return str(value)


def number(value: Any, what: str) -> int:
    """A label: a whole number from 0 on; ValueError for anything else."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{what} is {value!r}, no number of a class")
    return value


def clock(text: str, what: str = "a time") -> float:
    """Seconds of "00:01:23.450"; ValueError for anything else."""
    parts = text.split(":") if isinstance(text, str) else []
    try:
        if len(parts) != 3:
            raise ValueError
        hours, minutes, rest = int(parts[0]), int(parts[1]), float(parts[2])
        if hours < 0 or not 0 <= minutes < 60 or not 0 <= rest < 60 or not math.isfinite(rest):
            raise ValueError
    except ValueError:
        raise ValueError(f"{what} is {text!r}, not like 00:01:23.450") from None
    return seconds(round(3600 * hours + 60 * minutes + rest, 6), what)
