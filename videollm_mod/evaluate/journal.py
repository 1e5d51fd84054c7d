"""What was measured on each stream, kept in a file the moment it is there: a stopped evaluation goes on from it.

The first line says what is measured (model, plan, threshold, world); each line after it is one stream. A line that was
cut off by a kill is dropped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from videollm_mod.evaluate.self_conditioned import SelfConditioned
from videollm_mod.evaluate.streams import Watched, run_streams, watch_both
from videollm_mod.evaluate.teacher_forced import TeacherForced, Turn
from videollm_mod.files import atomic_write
from videollm_mod.model import StreamingVideoLM
from videollm_mod.types import InputError, StreamEvent
from videollm_mod.world import WorldStream
from videollm_mod.world.camera import CameraStream

FORMAT = 2
AnyStream = WorldStream | CameraStream


def watch_streams(
    model: StreamingVideoLM, streams: Sequence[AnyStream], journal: Path | None, *, workers: int, batch: int, title: str
) -> tuple[list[Watched], int]:
    """Every stream watched, in order, and how many of them anew: what the journal knows is taken from it."""
    if journal is None or not streams:
        return run_streams(model, watch_both, streams, workers=workers, batch=batch, title=title), len(streams)
    with Journal(journal, subject(model, streams)) as kept:
        new = [stream for stream in streams if stream.name not in kept.done]

        def add(watched: Watched) -> None:
            kept.add(watched.stream.name, _plain(watched))

        found = run_streams(model, watch_both, new, workers=workers, batch=batch, title=title, done=add)
        by_name = {watched.stream.name: watched for watched in found}
        return [by_name.get(stream.name) or _watched(stream, kept.done[stream.name]) for stream in streams], len(new)


def subject(model: StreamingVideoLM, streams: Sequence[AnyStream]) -> dict[str, Any]:
    """What a journal's numbers are of: they may be mixed only if this is the same."""
    return model_subject(model) | {"world": json.loads(json.dumps(asdict(streams[0].config)))}


def model_subject(model: StreamingVideoLM) -> dict[str, Any]:
    """Of them, what is the model's: weights, plan and settings."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        plain = tensor.dequantize() if model.weights and type(tensor) not in (torch.Tensor, nn.Parameter) else tensor
        digest.update(plain.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    values = {
        "format": FORMAT,
        "weights": digest.hexdigest()[:16],
        "plan": model.plan.to_dict(),
        "settings": asdict(model.settings),
        **({"kv": model.kv} if model.kv else {}),
        **({"reduction": model.reducing.made_of} if model.reducing else {}),
    }
    return dict(json.loads(json.dumps(values)))  # as a file gives it back


class Journal:
    """An open journal. `done` holds what it knows of streams, by their names.

    Raises InputError when the file is no journal, or one of another subject.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.done = read_journal(path, about)
        kept = [{"about": about}, *self.done.values()]
        with atomic_write(path) as file:  # a kill here must not cost what is known
            file.write("".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", buffering=1)

    def add(self, name: str, values: dict[str, Any]) -> None:
        """Store a stream's result, plain JSON values; it is on the disk when this returns."""
        self._file.write(json.dumps({"stream": name, **values}) + "\n")
        os.fsync(self._file.fileno())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read_journal(path: Path, about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a journal knows, by names of streams; nothing if there is no such file. Raises InputError as `Journal`."""
    lines = whole_lines(path)
    if not lines:
        return {}
    before = lines[0]["about"]
    other = sorted(key for key in {*before, *about} if before.get(key) != about.get(key))
    if other:
        raise InputError(f"the journal {path} is of another '{other[0]}'; give another file.")
    return {line["stream"]: line for line in lines[1:]}


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are complete; none if there is no such file."""
    text = path.read_text(errors="replace") if path.exists() else ""
    try:
        if text and not text.startswith('{"about": {'):
            raise ValueError
        return [json.loads(line) for line in text.splitlines()[: text.count("\n")]]
    except ValueError as error:
        raise InputError(f"{path} is no journal of an evaluation; give another file.") from error


def _plain(watched: Watched) -> dict[str, Any]:
    truth, own = watched.truth, watched.own
    return {
        "silence": truth.silence.tolist(),
        "turns": [asdict(turn) for turn in truth.turns],
        "own_silence": own.silence.tolist(),
        "narrations": [asdict(event) for event in own.narrations],
        "answers": list(own.answers),
    }


def _watched(stream: AnyStream, line: dict[str, Any]) -> Watched:
    turns: list[dict[str, Any]] = [
        {key: tuple(value) if isinstance(value, list) else value for key, value in turn.items()}
        for turn in line["turns"]
    ]
    narrations = tuple(StreamEvent(**event) for event in line["narrations"])
    own = SelfConditioned(narrations, tuple(line["answers"]), np.array(line["own_silence"]))
    return Watched(stream, TeacherForced(np.array(line["silence"]), tuple(Turn(**turn) for turn in turns)), own)
