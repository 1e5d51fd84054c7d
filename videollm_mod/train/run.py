"""A run's folder: recipe.json, log.jsonl (one object a line), curves.png, checkpoint/, best/ and model/ (the results).

best/ is the model at its best validation, model/ the one at the end.

checkpoint/ holds the newest checkpoint of each stage, STAGE-STEP. It appears under its name only when it is complete,
and remembers how long the log was: a run that goes on from it drops what was logged after it, and logs the very same
lines again.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from videollm_mod.files import atomic_write
from videollm_mod.train.curves import draw_curves
from videollm_mod.train.recipe import MEANS, Recipe
from videollm_mod.types import InputError

Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk."""

    folder: Path
    stage: str
    step: int  # of the stage: so many are done
    seconds: float  # of work since the run began
    lines: int  # of the log
    means: dict[str, float]  # running means of the log's numbers


class Run:
    """An open run. `show` gets every line as it is logged.

    Where several processes train together, one of them opens the run, and a `Guest` stands for it in the others.
    Raises InputError when the folder holds a run and `resume` is off, or holds one of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, resume: bool = False, show: Log = lambda line: None) -> None:
        self.recipe, self.folder, self._show = recipe, folder, show
        check_folder(recipe, folder, resume)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / "recipe.json") as file:
            file.write(json.dumps(recipe.to_dict(), indent=2) + "\n")
        newest = max(self._checkpoints(), key=lambda kept: kept.seconds, default=None)
        self._lines = newest.lines if newest else 0
        self._began = time.monotonic() - (newest.seconds if newest else 0.0)
        self._saved = time.monotonic()
        path = folder / "log.jsonl"
        kept = path.read_text().splitlines(keepends=True)[: self._lines] if path.exists() else []
        with atomic_write(path) as file:
            file.write("".join(kept))
        rows = [json.loads(line) for line in kept]
        self.best_loss: float = min((row["loss"] for row in rows if row["stage"] == "validation"), default=math.inf)
        self._log = path.open("a", buffering=1)

    def log(self, stage: str, step: int, **numbers: float) -> None:
        """One line, stamped with the seconds of work so far."""
        line = {"stage": stage, "step": step, "seconds": round(time.monotonic() - self._began, 1), **numbers}
        self._log.write(json.dumps(line) + "\n")
        self._lines += 1
        if stage == "validation":
            self.best_loss = min(self.best_loss, numbers["loss"])
        self._show(line)

    def draw(self) -> None:
        """curves.png: the log as a picture."""
        draw_curves(self.folder / "log.jsonl", self.folder / "curves.png")

    def close(self) -> None:
        self.draw()
        self._log.close()

    @contextmanager
    def replacing(self, name: str) -> Iterator[Path]:
        """A folder to fill; when the block ends it takes the place of the folder of that name."""
        writing, final = self.folder / f"{name}.writing", self.folder / name
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        yield writing
        shutil.rmtree(final, ignore_errors=True)
        writing.rename(final)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved > self.recipe.checkpoint_every

    def checkpoint(self, stage: str) -> Checkpoint | None:
        """The newest of a stage."""
        own = [kept for kept in self._checkpoints() if kept.stage == stage]
        return max(own, key=lambda kept: kept.step, default=None)

    @contextmanager
    def saving(self, stage: str, step: int, means: dict[str, float]) -> Iterator[Path]:
        """A folder to fill; when the block ends it is the stage's checkpoint, and older ones are gone."""
        home = self.folder / "checkpoint"
        writing, final = home / "writing", home / f"{stage}-{step}"
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        yield writing
        about = Checkpoint(final, stage, step, time.monotonic() - self._began, self._lines, means)
        values = {name: value for name, value in asdict(about).items() if name != "folder"}
        (writing / "run.json").write_text(json.dumps(values))
        writing.rename(final)
        for older in self._checkpoints():
            if older.stage == stage and older.step != step:
                shutil.rmtree(older.folder)
        self._saved = time.monotonic()

    def _checkpoints(self) -> list[Checkpoint]:
        found = []
        for about in sorted((self.folder / "checkpoint").glob("*-*/run.json")):
            found.append(Checkpoint(about.parent, **json.loads(about.read_text())))
        return found


class Guest(Run):
    """A run that another process has opened: nothing is written, and it asks for nothing."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder, self.best_loss = recipe, folder, math.inf

    @property
    def due(self) -> bool:
        return False

    def log(self, stage: str, step: int, **numbers: float) -> None:
        pass

    def draw(self) -> None:
        pass

    def close(self) -> None:
        pass


def check_folder(recipe: Recipe, folder: Path, resume: bool) -> None:
    """Raise InputError when the folder holds a run and `resume` is off, or holds one of another recipe."""
    if not (folder / "recipe.json").exists():
        return
    if not resume:
        raise InputError(f"{folder} holds a run already; add --resume to go on with it, or give another --out.")
    before, asked = json.loads((folder / "recipe.json").read_text()), json.loads(json.dumps(recipe.to_dict()))
    changed = sorted(key for key in {*asked, *before}.difference(MEANS) if asked.get(key) != before.get(key))
    if changed:
        raise InputError(f"{folder} holds a run whose recipe differs in '{changed[0]}'; give another --out.")
