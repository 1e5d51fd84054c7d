"""Each format's whole way: annotations as published, `data build`, two epochs of `train`, `eval`, and chance.

    python runs/formats.py --out out/formats                  # all formats; goes on where it was stopped
    python runs/formats.py --out out/few --only coin-step --share 0.1 --epochs 1    # does it run at all
    python runs/formats.py --out out/formats --collect --json docs/results/formats.json    # of runs that are through

The videos are of the synthetic world, as features of the bundled model's tower (format_layouts.py); what happens in
them is written in each data set's own layout, in the world's words: the bundled model is to learn the format, not a
language. The last line is JSON: for each benchmark its main metric, what chance gets, and whether the model is far
above (or below it, where less is better): twice chance and a tenth more, or three tenths less, and the 95 % intervals
apart. `--json` stores it, too. Left out: ego4d-livechat, which no benchmark
judges, and those with nothing to train on (OVO-Bench, StreamingBench, video-qa).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import format_layouts as layouts
from format_layouts import Film

import videollm_mod as vm
from videollm_mod.cli import main as videollm_mod_main
from videollm_mod.evaluate.result import versions

BATCH = 2  # samples of a step, recipes/own.py


@dataclass(frozen=True)
class Format:
    """How a data set is written, of which films, and what is judged."""

    films: str  # a name of FILMS
    train: int  # of them
    test: int
    write: Callable[[Path, Sequence[Film]], None] | None  # None: our own format
    splits: tuple[str, str]  # training, test
    metric: str
    less_is_better: bool = False
    candidates: int | None = None


STORIES, ROUNDS, LONG = ("stories", 80, 20), ("rounds", 60, 20), ("long rounds", 120, 20)
VAL, TEST, VALIDATION = ("train", "val"), ("train", "test"), ("train", "validation")
FORMATS = {
    "ego4d-narration": Format(*STORIES, layouts.write_ego4d, VAL, "sentence_f1"),
    "ego4d-narration-refined": Format(*STORIES, layouts.write_refined, VAL, "sentence_f1"),
    "ego4d-lta": Format(*LONG, layouts.write_ego4d_lta, VAL, "action_ed", True, 1),
    "egoexo4d-narration": Format(*STORIES, layouts.write_egoexo4d, VAL, "sentence_f1"),
    "egoexo4d-keystep": Format(*STORIES, layouts.write_egoexo4d, VAL, "step_top1"),
    "coin-step": Format(*STORIES, layouts.write_coin, TEST, "accuracy"),
    "coin-task": Format("rounds", 200, 20, layouts.write_coin, TEST, "accuracy"),
    "coin-next": Format(*ROUNDS, layouts.write_coin, TEST, "accuracy"),
    "coin-procedure": Format(*ROUNDS, layouts.write_coin, TEST, "accuracy"),
    "coin-procedure-goal": Format(*ROUNDS, layouts.write_coin, TEST, "accuracy"),
    "epic-narration": Format(*STORIES, layouts.write_epic, VALIDATION, "sentence_f1"),
    "epic-anticipation": Format("rounds", 40, 10, layouts.write_epic, VALIDATION, "action_top1"),
    "epic-lta": Format(*LONG, layouts.write_epic, VALIDATION, "action_ed", True, 1),
    "narration": Format(*STORIES, None, TEST, "sentence_f1"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--share", type=float, default=1.0, help="of each format's films")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--collect", action="store_true", help="run nothing, take the rows of whatever share")
    parser.add_argument("--json", type=Path, help="write the last line here too")
    flags = parser.parse_args()
    rows = {}
    for name in flags.only:
        if not flags.collect:
            row(name, flags.out, flags.share, flags.epochs)
        rows[name] = told(name, flags.out / name / "row.json")
        print(f"{name}: {rows[name]}", file=sys.stderr)
    result = {
        "ok": all(one["far"] for one in rows.values()),
        "seconds": round(sum(one["seconds"] for one in rows.values()), 1),
        "formats": rows,
        "versions": versions(),
    }
    if flags.json is not None:
        flags.json.parent.mkdir(parents=True, exist_ok=True)
        flags.json.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


def told(name: str, kept: Path) -> dict[str, Any]:
    """What a format's file tells, and whether the model is far from chance."""
    if not kept.exists():
        raise SystemExit(f"there is no {kept}; run {name} first.")
    known: dict[str, Any] = json.loads(kept.read_text())
    return {**known.pop("asked"), **known, "far": far(known["model"], known["chance"], FORMATS[name].less_is_better)}


def far(ours: dict[str, float], theirs: dict[str, float], less_is_better: bool) -> bool:
    """Whether the values are far apart, and their intervals apart."""
    a, b = ours["value"], theirs["value"]
    if less_is_better:
        return a < 0.7 * b and ours["high"] < theirs["low"]
    return a > max(2 * b, b + 0.1) and ours["low"] > theirs["high"]


def row(name: str, out: Path, share: float, epochs: int) -> None:
    """One format's numbers into its file; nothing, if the same was asked for before."""
    kept, asked = out / name / "row.json", {"share": share, "epochs": epochs}
    if kept.exists() and json.loads(kept.read_text())["asked"] == asked:
        return
    began = time.monotonic()
    kind = FORMATS[name]
    train, test = (max(2, round(count * share)) for count in (kind.train, kind.test))
    features = out / kind.films.replace(" ", "-")
    every = films(kind.films, share)
    chosen = [film for film in every if film.train][:train] + [film for film in every if not film.train][:test]
    layouts.store(vm.load("tiny"), chosen, features)
    found = run(name, kind, chosen, features, out / name, epochs)
    found["seconds"] = round(time.monotonic() - began, 1)
    kept.write_text(json.dumps({"asked": asked, **found}) + "\n")


@cache
def films(name: str, share: float) -> list[Film]:
    """As many as any format wants of them."""
    train, test = (
        max(max(2, round(count * share)) for count in counts)
        for counts in zip(*((kind.train, kind.test) for kind in FORMATS.values() if kind.films == name))
    )
    if name == "stories":
        return layouts.stories(train, test, seconds=24.0)
    pieces, frames = (8, 4) if name == "rounds" else (29, 2)  # LTA: 8 actions that are seen, 20 to come
    return layouts.rounds(vm.load("tiny"), train, test, pieces, frames)


def run(name: str, kind: Format, films: Sequence[Film], features: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """One format from its files to its numbers."""
    root = folder / "annotations"
    root.mkdir(parents=True, exist_ok=True)
    split, test = kind.splits
    if kind.write is None:
        layouts.write_own(root, films, features)
        data, judged = root / "train.jsonl", ["--data", root / "test.jsonl"]
    else:
        kind.write(root, films)
        data, judged = folder / "train.jsonl", ["--data", root, "--split", test]
        command("data", "build", name, "--root", root, "--split", split, "--features", features, "--out", data)
        judged += ["--features", features]
    samples = sum(1 for _ in data.open())
    steps = max(1, epochs * samples // BATCH)
    (folder / "recipe.py").write_text(RECIPE.format(steps=steps, every=max(steps // 2, 1), warmup=min(20, steps)))
    shutil.rmtree(folder / "run", ignore_errors=True)  # of one that was stopped
    train("train", folder / "recipe.py", "--data", data, "--out", folder / "run", "--workers", "0")
    judged += [] if kind.candidates is None else ["--candidates", str(kind.candidates)]
    trained = ("--model", folder / "run" / "model", "--workers", "1")  # in this process: others take long to begin
    result = command("eval", name, *judged, *trained, "--out", folder / "result.json")
    chance = command("eval", name, *judged, "--chance", "--out", folder / "chance.json")
    return {
        "metric": kind.metric,
        "model": result["metrics"][kind.metric],
        "chance": chance["metrics"][kind.metric],
        "samples": samples,
        "judged": result["samples"],
        "videos": result["videos"],
        "steps": steps,
    }


RECIPE = '''"""Two epochs on what a data set says."""

import dataclasses

from recipes import own


def recipe():
    plain = own.recipe()
    phase = dataclasses.replace(plain.phases[0], steps={steps})
    short = dict(validate_every={every}, validation_streams=4, calibration_streams=4, warmup={warmup})
    return dataclasses.replace(plain, phases=(phase,), corrupt=0.0, **short)
'''


def command(*words: object) -> dict[str, Any]:
    """Run videollm-mod, in this process; its last line."""
    with contextlib.redirect_stdout(io.StringIO()) as told:
        code = videollm_mod_main([str(word) for word in words])
    if code:
        raise SystemExit(f"videollm-mod {' '.join(map(str, words))} failed with {code}")
    return dict(json.loads(told.getvalue().splitlines()[-1]))


def train(*words: object) -> None:
    """Run videollm-mod in a process of its own: what training changes in one must not reach what is measured."""
    done = subprocess.run(
        [sys.executable, "-m", "videollm_mod", *map(str, words)], stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise SystemExit(f"videollm-mod {' '.join(map(str, words))} failed with {done.returncode}")


if __name__ == "__main__":
    main()
