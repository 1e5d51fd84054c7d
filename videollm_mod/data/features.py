"""A video's frames as a vision tower's vectors, in one safetensors file: `extract` writes it, training reads it.

    features  (F, 1 + h * w, width)  float32, float16 or bfloat16
    times     (F,) float64           seconds of the video
    metadata  format, fps, duration, grid, tower (its configuration), weights (a digest of them), video

A file appears under its name when it is complete, and only the frames that are asked for are read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from videollm_mod.files import publish, temporary_name
from videollm_mod.types import InputError
from videollm_mod.vision import FrameEncoder

FORMAT = "videollm-mod features 1"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Kind:
    """What files must have in common to be of one set: everything but the video."""

    fps: float
    grid: tuple[int, int]
    tower: dict[str, Any]  # its configuration
    weights: str  # digest of them
    dtype: str  # of DTYPES

    @property
    def tokens(self) -> int:
        """Of a frame."""
        return 1 + self.grid[0] * self.grid[1]


@dataclass(frozen=True)
class FeatureFile:
    """What a file says of itself, without reading its vectors."""

    path: Path
    kind: Kind
    times: np.ndarray  # (F,) float64, seconds, ascending
    width: int
    duration: float  # of the video, seconds
    video: str  # its name

    @property
    def frames(self) -> int:
        """How many frames the video has at the file's rate."""
        return max(1, math.floor(float(self.times[-1]) * self.kind.fps + 1e-3) + 1)

    def rows(self, numbers: Sequence[int], fps: float) -> np.ndarray:
        """The row that shows each of the frames k / fps: (numbers,) int64; a picture stays until the next one comes.

        Raises InputError when more frames per second are asked for than there are.
        """
        if fps > self.kind.fps * 1.01:
            raise InputError(
                f"{self.path} has {self.kind.fps:g} frames per second, fewer than the {fps:g} asked for; extract "
                f"again with --fps {fps:g}."
            )
        wanted = np.asarray(numbers, dtype=np.float64) / fps
        return np.maximum(np.searchsorted(self.times, wanted + 1e-3, side="right") - 1, 0)


def tower_digest(encoder: FrameEncoder) -> str:
    """Sixteen letters that differ where weights do."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_features(
    path: Path, kind: Kind, features: Tensor, times: Sequence[float], *, duration: float, video: str
) -> int:
    """Write (F, tokens, width) vectors and their times; returns the file's bytes. Raises InputError for what is not
    finite in the file's type."""
    stored = features.to(DTYPES[kind.dtype]).cpu().contiguous()
    if not torch.isfinite(stored).all():
        raise InputError(f"the features of {video} do not fit {kind.dtype}; give --dtype bf16 or fp32.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        save_file(
            {"features": stored, "times": torch.tensor(list(times), dtype=torch.float64)},
            temporary,
            metadata={**_told(kind), "duration": repr(float(duration)), "video": video},
        )
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        publish(temporary, path)
    except SafetensorError as error:  # its writer knows no other, and a full disk is what it meets
        raise OSError(errno.ENOSPC, str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def open_features(path: str | Path) -> FeatureFile:
    """What a file holds. Raises InputError when it is none of ours, or broken."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no features file {path}; make it with `videollm-mod extract`.")
    try:
        with safe_open(path, "pt") as file:
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise ValueError(f"it is of the format {told.get('format')!r}")
            shape, dtype = file.get_slice("features").get_shape(), file.get_slice("features").get_dtype()
            times = file.get_tensor("times").double().numpy()
            grid = json.loads(told["grid"])
            kind = Kind(
                float(told["fps"]), (int(grid[0]), int(grid[1])), json.loads(told["tower"]), told["weights"],
                {"F32": "fp32", "F16": "fp16", "BF16": "bf16"}[dtype],
            )  # fmt: skip
            duration = float(told["duration"])
        if len(shape) != 3 or shape[0] != len(times) or shape[1] != kind.tokens or not len(times):
            raise ValueError(f"its features are {tuple(shape)}, its times {len(times)}, its grid {kind.grid}")
        if not (math.isfinite(kind.fps) and kind.fps > 0 and np.isfinite(times).all() and (np.diff(times) > 0).all()):
            raise ValueError("its times do not ascend")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path} is no features file of ours ({error}); make it again with `extract`.") from error
    return FeatureFile(path, kind, times, int(shape[2]), duration, told.get("video", path.stem))


def read_rows(file: FeatureFile, rows: np.ndarray) -> Tensor:
    """The vectors of some rows, which ascend: (rows, tokens, width) float32."""
    first, last = int(rows[0]), int(rows[-1])
    with safe_open(file.path, "pt") as opened:
        part = opened.get_slice("features")[first : last + 1]
    return part[torch.from_numpy(rows - first)].float()


def check_fits(file: FeatureFile, encoder: FrameEncoder, fps: float) -> None:
    """Raise InputError when a model with this encoder and frame rate cannot use a file's vectors."""
    if file.kind.grid != encoder.grid or file.width != encoder.width:
        raise InputError(
            f"{file.path} has 1 + {file.kind.grid[0]}x{file.kind.grid[1]} tokens of {file.width}, the model wants "
            f"1 + {encoder.grid[0]}x{encoder.grid[1]} of {encoder.width}; extract again with the model's tower."
        )
    file.rows([0], fps)


def expected_bytes(seconds: float, fps: float, tokens: int, width: int, dtype: str) -> int:
    """What vectors of so many seconds of video take: seconds * fps frames of tokens * width numbers."""
    return int(seconds * fps) * tokens * width * DTYPES[dtype].itemsize


def _told(kind: Kind) -> dict[str, str]:
    return {
        "format": FORMAT,
        "fps": repr(float(kind.fps)),
        "grid": json.dumps(list(kind.grid)),
        "tower": json.dumps(kind.tower),
        "weights": kind.weights,
    }
