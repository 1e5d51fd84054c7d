"""The file that an evaluation leaves: what was measured, how sure it is, and all that is needed to get it again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from videollm_mod.files import atomic_write
from videollm_mod.types import InputError

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "av", "numpy", "rapidfuzz", "pycocoevalcap")
FORMAT = 1


def versions() -> dict[str, Any]:
    """Of this package, Python and the libraries that numbers depend on; of FFmpeg's libraries, which decode."""
    import av
    import torch

    from videollm_mod import __version__

    found: dict[str, Any] = {"videollm_mod": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = torch.__version__  # with its build, "+cpu" or "+cu130", which a package from an index leaves out
    ffmpeg = {name: ".".join(map(str, number)) for name, number in sorted(av.library_versions.items())}
    return found | {"decoder": {"name": "PyAV", "version": av.__version__, **ffmpeg}}


def hash_times(times: Sequence[float] | np.ndarray) -> str:
    """Of frame times in seconds, to a tenth of a millisecond: runs with the same hash have seen the same frames."""
    return hashlib.sha256(np.round(np.array(times) * 1e4).astype("<i8").tobytes()).hexdigest()[:16]


def hash_frames(hashes: Mapping[str, str]) -> str:
    """Of the frame times of all streams, by their names: equal if and only if the same frames were seen."""
    text = "\n".join(f"{name} {value}" for name, value in sorted(hashes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def provenance(frames: Mapping[str, Sequence[float] | np.ndarray], *, seed: int = 0) -> dict[str, Any]:
    """What a result says besides its numbers: the seed of its intervals, which frames were seen, by what.

    frames: of each stream's name the times of its frames, seconds.
    """
    seen = {name: hash_times(times) for name, times in frames.items()}
    return {"seed": seed, "frame_times": hash_frames(seen), "versions": versions()}


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """As JSON; the file appears when it is complete."""
    with atomic_write(path) as file:
        json.dump(result, file, ensure_ascii=False, indent=2)
        file.write("\n")


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The results below a folder, by benchmark and name. Other JSON files are left out.

    Those of `eval world` are read, too. Raises InputError when there is none.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; give one with results of `eval NAME --out FILE`.")
    found = []
    for path in sorted(folder.rglob("*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        result = _known(values)
        if result is not None:
            found.append(result | {"file": str(path.relative_to(folder))})
    if not found:
        raise InputError(f"{folder} has no results; write some with `eval NAME --out {folder}/NAME.json`.")
    return sorted(found, key=lambda result: (result["benchmark"], bool(result.get("chance")), result["file"]))


def _known(values: Any) -> dict[str, Any] | None:
    if not isinstance(values, dict):
        return None
    if isinstance(values.get("metrics"), dict) and isinstance(values.get("benchmark"), str):
        return values
    if isinstance(values.get("intervals"), dict) and "world" in values:  # of eval world
        metrics = {}
        for name, ends in values["intervals"].items():
            low, high = ends or (None, None)
            metrics[name] = {"value": values.get(name), "low": low, "high": high}
        forced = [name for name in metrics if name in WORLD_FORCED]
        of_cameras = ["f1_kind_and_side"] if values["world"] == "cameras" else []
        return {
            "benchmark": "world",
            "model": values.get("model"),
            "metrics": metrics,
            "teacher_forced": forced,
            "main": ["f1", *of_cameras, "timing_f1", "question_accuracy", *forced],
            "samples": values.get("events"),
            "videos": values.get("streams"),
            **{key: values.get(key) for key in ("plan", "split", "threshold", "warnings")},
            **{key: values.get(key) for key in ("seed", "frame_times", "versions")},
        }
    return None


WORLD_FORCED = ("f1_teacher_forced", "lm_ppl", "time_diff", "fluency", "lm_correctness")


def warnings_for(videos: int, missing: Iterable[str], skipped: Sequence[str]) -> list[str]:
    """What a reader of the numbers must know."""
    found = []
    if videos < 10:
        found.append(f"intervals from {videos} video{'' if videos == 1 else 's'} say little; 10 or more are needed.")
    gone = list(missing)
    if gone:
        found.append(f"{len(gone)} videos were not there and do not count: the numbers are not the benchmark's.")
    if skipped:
        found.append(f"{len(skipped)} records were not right and do not count.")
    return found
