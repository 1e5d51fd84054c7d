"""Each format's whole way: annotations as published, `data build`, two epochs of `train own`, `eval`, and chance.

    python runs/formats.py --out scratch/formats                 # all formats
    python runs/formats.py --out scratch/formats --only coin-step --train 8 --test 4 --epochs 1    # does it run at all

The videos are streams of the synthetic world, as features of the bundled model's tower; what happens in them is written
in each data set's own layout, in the world's words (the bundled model is to learn the format, not a language). The last
line is JSON: for each benchmark its main metric, what chance gets, and whether the model is far above (or below it,
where less is better).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import videollm_mod as vm
from videollm_mod.data.features import Kind, tower_digest, write_features
from videollm_mod.evaluate.streams import features_of
from videollm_mod.model import StreamingVideoLM
from videollm_mod.world import WorldConfig, WorldStream, make_stream

FPS = 2.0
KINDS = ("appears", "enters", "leaves", "disappears", "turns", "starts", "stops")
BATCH = 2  # samples of a step, recipes/own.py


@dataclass(frozen=True)
class Film:
    """A world stream as a video of a data set."""

    name: str
    train: bool
    stream: WorldStream


@dataclass(frozen=True)
class Format:
    """How a data set is written, and what is judged."""

    write: Callable[[Path, Sequence[Film]], None]
    splits: tuple[str, str]  # training, test
    metric: str
    less_is_better: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=sorted(FORMATS), choices=sorted(FORMATS))
    parser.add_argument("--train", type=int, default=160, help="training videos")
    parser.add_argument("--test", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=24.0)
    parser.add_argument("--epochs", type=int, default=2)
    flags = parser.parse_args()
    films = make_films(flags.train, flags.test, flags.seconds)
    features = flags.out / "features"
    store(vm.load("tiny"), films, features)
    rows = {}
    for name in flags.only:
        rows[name] = run(name, FORMATS[name], films, features, flags.out / name, flags.epochs)
        print(f"{name}: {rows[name]}", file=sys.stderr)
    print(json.dumps({"ok": all(row["far"] for row in rows.values()), "formats": rows}))


def run(name: str, kind: Format, films: Sequence[Film], features: Path, folder: Path, epochs: int) -> dict[str, Any]:
    """One format from its files to its numbers."""
    root = folder / "annotations"
    root.mkdir(parents=True, exist_ok=True)
    kind.write(root, films)
    data = folder / "train.jsonl"
    split, test = kind.splits
    command("data", "build", name, "--root", root, "--split", split, "--features", features, "--out", data)
    samples = sum(1 for _ in data.open())
    steps = max(1, epochs * samples // BATCH)
    (folder / "recipe.py").write_text(RECIPE.format(steps=steps, every=max(steps // 2, 1), warmup=min(20, steps)))
    command("train", folder / "recipe.py", "--data", data, "--out", folder / "run", "--workers", "0")
    shared = ("--data", root, "--split", test)
    told = command(
        "eval",
        name,
        *shared,
        "--features",
        features,
        "--model",
        folder / "run" / "model",
        "--out",
        folder / "result.json",
    )
    chance = command("eval", name, *shared, "--chance", "--out", folder / "chance.json")
    ours, theirs = (float(one["metrics"][kind.metric]["value"]) for one in (told, chance))
    far = ours < 0.7 * theirs if kind.less_is_better else ours > max(2 * theirs, theirs + 0.1)
    return {"metric": kind.metric, "model": ours, "chance": theirs, "far": far, "samples": samples, "steps": steps}


RECIPE = '''"""Two epochs on what a data set says."""

import dataclasses

from recipes import own


def recipe():
    plain = own.recipe()
    phase = dataclasses.replace(plain.phases[0], steps={steps})
    return dataclasses.replace(plain, phases=(phase,), validate_every={every}, warmup={warmup}, corrupt=0.0)
'''


def command(*words: object) -> dict[str, Any]:
    """Run videollm-mod; its last line."""
    told = subprocess.run(
        [sys.executable, "-m", "videollm_mod", *map(str, words)], stdout=subprocess.PIPE, text=True, check=False
    )
    if told.returncode:
        raise SystemExit(f"videollm-mod {' '.join(map(str, words))} failed with {told.returncode}")
    return dict(json.loads(told.stdout.splitlines()[-1]))


# -- videos ------------------------------------------------------------------------------------------------------------


def make_films(train: int, test: int, seconds: float) -> list[Film]:
    """World streams whose events are told by what happens to one thing."""
    config = WorldConfig(seconds=seconds, fps=FPS, events_per_minute=15)
    films = []
    for part, split, count in ((True, "train", train), (False, "test", test)):
        for number in range(count):
            stream = make_stream(split, number, config)
            films.append(Film(f"{split}{number:04d}", part, stream))
    return films


def store(model: StreamingVideoLM, films: Sequence[Film], folder: Path) -> None:
    """Features of each film, as `extract` writes them."""
    kind = Kind(FPS, model.encoder.grid, model.encoder.tower.to_config(), tower_digest(model.encoder), "fp32")
    for film in films:
        path = folder / f"{film.name}.safetensors"
        if not path.exists():
            vectors = features_of(model, film.stream)
            times = film.stream.times.tolist()
            write_features(path, kind, vectors, times, duration=film.stream.config.seconds, video=film.name)


def events(film: Film) -> list[tuple[float, float, str]]:
    """(start, end, sentence) of what is told, apart from each other."""
    told = [event for event in film.stream.events if event.look is not None]
    found = []
    for event, after in zip(told, [*told[1:], None]):
        end = min(event.time + 1.0, film.stream.config.seconds, after.time if after else 1e9)
        found.append((max(0.0, event.time - 1.0), max(end, event.time), event.text))
    return found


# -- layouts -----------------------------------------------------------------------------------------------------------


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_ego4d(root: Path, films: Sequence[Film]) -> None:
    """all_narrations_redacted.json; the test films are those that the benchmark nlq validates on."""
    from videollm_mod.data.ego4d import BENCHMARKS

    videos = {}
    for film in films:
        told = [
            {"time": event.time, "text": f"#C {event.text}", "_annotation_uid": "a"} for event in film.stream.events
        ]
        videos[film.name] = {"status": "complete", "narrations": told, "summaries": []}
    write_json(root / "all_narrations_redacted.json", {"videos": videos})
    for benchmark, key in BENCHMARKS.items():
        held = [{"video_uid": film.name} for film in films if not film.train] if benchmark == "nlq" else []
        write_json(root / f"{benchmark}_val.json", {"version": "v2", key: held})
        write_json(root / f"{benchmark}_test_unannotated.json", {"version": "v2", key: []})
    durations = [{"video_uid": film.name, "duration_sec": film.stream.config.seconds} for film in films]
    write_json(root / "ego4d.json", {"videos": durations})


def write_egoexo4d(root: Path, films: Sequence[Film]) -> None:
    """atomic_descriptions_{split}.json and keystep_{split}.json."""
    steps = sorted({text for film in films for _, _, text in events(film)})
    vocabulary = {str(place): text for place, text in enumerate(steps)}
    for split, train in (("train", True), ("val", False)):
        told: dict[str, Any] = {}
        keysteps: dict[str, Any] = {}
        for film in films:
            if film.train != train:
                continue
            descriptions = [{"text": e.text, "timestamp": e.time, "subject": "C"} for e in film.stream.events]
            told[film.name] = [{"annotation_uid": "a", "rejected": False, "descriptions": descriptions}]
            segments = [
                {"start_time": start, "end_time": end, "step_unique_id": steps.index(text), "step_name": text}
                for start, end, text in events(film)
            ]
            keysteps[film.name] = {"take_uid": film.name, "take_name": film.name, "scenario": "x", "segments": segments}
        write_json(root / "annotations" / f"atomic_descriptions_{split}.json", {"annotations": told})
        write_json(root / "annotations" / f"keystep_{split}.json", {"annotations": keysteps, "vocabulary": vocabulary})
    takes = [{"take_uid": f.name, "take_name": f.name, "duration_sec": f.stream.config.seconds} for f in films]
    write_json(root / "takes.json", takes)


def write_coin(root: Path, films: Sequence[Film]) -> None:
    """COIN.json; the class of a video is what happens most in it."""
    database = {}
    for film in films:
        told = events(film)
        if not told:
            continue
        kinds = [event.kind for event in film.stream.events]
        most = max(sorted(set(kinds)), key=kinds.count)
        database[film.name] = {
            "duration": film.stream.config.seconds,
            "class": f"What{most.capitalize()}",
            "subset": "training" if film.train else "testing",
            "start": 0.0,
            "end": told[-1][1],
            "recipe_type": 0,
            "video_url": "",
            "annotation": [
                {"id": str(place), "segment": [start, end], "label": text.rstrip(".").lower()}
                for place, (start, end, text) in enumerate(told)
            ],
        }
    write_json(root / "COIN.json", {"database": database})


def write_epic(root: Path, films: Sequence[Film]) -> None:
    """EPIC_100_{split}.csv with classes: the verb is the kind of event, the noun the thing's shape."""
    verbs = sorted({e.kind for film in films for e in film.stream.events if e.look is not None})
    nouns = sorted({e.look.shape for film in films for e in film.stream.events if e.look is not None})
    columns = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    ).split(",")
    for split, train in (("train", True), ("validation", False)):
        rows = []
        for film in films:
            if film.train != train:
                continue
            for place, event in enumerate(e for e in film.stream.events if e.look is not None):
                assert event.look is not None
                times = [_clock(t) for t in (event.time, max(0.0, event.time - 0.5), event.time + 0.5)]
                verb, noun = verbs.index(event.kind), nouns.index(event.look.shape)
                row = [f"{film.name}_{place}", "P", film.name, *times, "0", "0", event.text, event.kind, str(verb)]
                rows.append([*row, event.look.shape, str(noun), f"['{event.look.shape}']", f"[{noun}]"])
        _table(root / f"EPIC_100_{split}.csv", columns, rows)
    _table(root / "EPIC_100_verb_classes.csv", ["id", "key"], [[str(i), key] for i, key in enumerate(verbs)])
    _table(root / "EPIC_100_noun_classes_v2.csv", ["id", "key"], [[str(i), key] for i, key in enumerate(nouns)])
    lengths = [[film.name, str(film.stream.config.seconds)] for film in films]
    _table(root / "EPIC_100_video_info.csv", ["video_id", "duration"], lengths)


def _clock(time: float) -> str:
    return f"00:{int(time // 60):02d}:{time % 60:06.3f}"


def _table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


FORMATS = {
    "ego4d-narration": Format(write_ego4d, ("train", "val"), "sentence_f1"),
    "egoexo4d-narration": Format(write_egoexo4d, ("train", "val"), "sentence_f1"),
    "egoexo4d-keystep": Format(write_egoexo4d, ("train", "val"), "step_top1"),
    "coin-step": Format(write_coin, ("train", "test"), "accuracy"),
    "coin-procedure": Format(write_coin, ("train", "test"), "accuracy"),
    "epic-narration": Format(write_epic, ("train", "validation"), "sentence_f1"),
}

if __name__ == "__main__":
    main()
