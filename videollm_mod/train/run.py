"""A run's folder: recipe.json, log.jsonl (one object a line), checkpoint/state.pt, model/ (the result).

A checkpoint appears under its name only when it is complete, and remembers how long the log was: a run that goes on
from it drops what was logged after it, and logs the very same lines again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from videollm_mod.files import atomic_write
from videollm_mod.train.recipe import Recipe
from videollm_mod.types import InputError

Log = Callable[[dict[str, Any]], None]


class Run:
    """An open run: `state` is what `save` wrote last, None at the beginning. `show` gets every line as it is logged.

    Raises InputError when the folder holds a run and `resume` is off, or holds one of another recipe.
    """

    def __init__(self, recipe: Recipe, folder: Path, *, resume: bool = False, show: Log = lambda line: None) -> None:
        self.recipe, self.folder, self._show = recipe, folder, show
        known = folder / "recipe.json"
        asked = json.loads(json.dumps(recipe.to_dict()))
        if known.exists():
            _refuse_another(folder, asked, resume)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(known) as file:
            file.write(json.dumps(asked, indent=2) + "\n")
        self.state: dict[str, Any] | None = None
        if self._checkpoint.exists():
            self.state = torch.load(self._checkpoint, weights_only=True)
        self._lines: int = self.state["lines"] if self.state else 0
        spent: float = self.state["seconds"] if self.state else 0.0
        self._began = time.monotonic() - spent
        self._saved = time.monotonic()
        path = folder / "log.jsonl"
        kept = path.read_text().splitlines(keepends=True)[: self._lines] if path.exists() else []
        with atomic_write(path) as file:
            file.write("".join(kept))
        self._log = path.open("a", buffering=1)

    @property
    def _checkpoint(self) -> Path:
        return self.folder / "checkpoint" / "state.pt"

    def log(self, stage: str, step: int, **numbers: float) -> None:
        """One line, stamped with the seconds of work so far."""
        line = {"stage": stage, "step": step, "seconds": round(time.monotonic() - self._began, 1), **numbers}
        self._log.write(json.dumps(line) + "\n")
        self._lines += 1
        self._show(line)

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.monotonic() - self._saved > self.recipe.checkpoint_every

    def save(self, stage: str, step: int, **parts: Any) -> None:
        """Write a checkpoint: a stage, how many of its steps are done, and state dicts and plain values by name."""
        self._checkpoint.parent.mkdir(parents=True, exist_ok=True)
        seconds = time.monotonic() - self._began
        state = {"stage": stage, "step": step, "seconds": seconds, "lines": self._lines, **parts}
        torch.save(state, self._checkpoint.with_suffix(".writing"))
        self._checkpoint.with_suffix(".writing").replace(self._checkpoint)
        self._saved = time.monotonic()

    def close(self) -> None:
        self._log.close()


def _refuse_another(folder: Path, asked: dict[str, Any], resume: bool) -> None:
    if not resume:
        raise InputError(f"{folder} holds a run already; add --resume to go on with it, or give another --out.")
    before = json.loads((folder / "recipe.json").read_text())
    changed = sorted(key for key in {*asked, *before} if asked.get(key) != before.get(key))
    if changed:
        raise InputError(f"{folder} holds a run whose recipe differs in '{changed[0]}'; give another --out.")
