"""Small films of the synthetic world, and what happens in them written as each data set publishes it; for formats.py.

`stories` are world streams as they are. `rounds` are cut together from stretches in which one thing is in view: shapes
come in turn, two and two, so that what comes next can be known from what is seen. Both are features of the bundled
model's tower, as `videollm-mod extract` writes them.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videollm_mod.data.features import Kind, tower_digest, write_features
from videollm_mod.data.segments import Segment, Stream, write_streams
from videollm_mod.evaluate.streams import features_of
from videollm_mod.model import StreamingVideoLM
from videollm_mod.world import WorldConfig, WorldStream, make_stream

FPS = 2.0
PAIRS = (("circle", "square"), ("triangle", "star"), ("cross", "ring"))  # of shapes that follow each other
VERBS = ("appears", "enters", "leaves")  # of each pair, where actions have verbs


@dataclass(frozen=True)
class Told:
    """Something that happens; times in seconds."""

    start: float
    end: float
    time: float  # when it is told
    text: str
    verb: str
    noun: str | None  # None: it happens to no thing


@dataclass(frozen=True)
class Film:
    """A video of a data set."""

    name: str
    train: bool
    seconds: float
    told: tuple[Told, ...]
    topic: str  # in camel case, as COIN's classes are
    stream: WorldStream | None = None  # that it shows, or
    pieces: tuple[Tensor, ...] = field(default=(), repr=False)  # (frames, 1 + h * w, width), in order

    @property
    def steps(self) -> list[Told]:
        """What happens to things."""
        return [one for one in self.told if one.noun is not None]


# -- films -------------------------------------------------------------------------------------------------------------


def stories(train: int, test: int, seconds: float) -> list[Film]:
    """World streams, told in the world's words."""
    config = WorldConfig(seconds=seconds, fps=FPS, events_per_minute=15)
    films = []
    for split, count in (("train", train), ("test", test)):
        for number in range(count):
            stream = make_stream(split, number, config)
            kinds = [event.kind for event in stream.events] or ["nothing"]
            topic = "What" + max(sorted(set(kinds)), key=kinds.count).capitalize()
            films.append(Film(f"{split}{number:04d}", split == "train", seconds, _told(stream), topic, stream))
    return films


def _told(stream: WorldStream) -> tuple[Told, ...]:
    found = []
    for event, after in zip(stream.events, [*stream.events[1:], None]):
        end = min(event.time + 1.0, stream.config.seconds, after.time if after else stream.config.seconds)
        noun = event.look.shape if event.look is not None else None
        span = max(0.0, event.time - 1.0), max(end, event.time)
        found.append(Told(*span, event.time, event.text, event.kind, noun))
    return tuple(found)


def rounds(model: StreamingVideoLM, train: int, test: int, pieces: int, frames: int) -> list[Film]:
    """Films of so many pieces of so many frames: the shapes of one of PAIRS in turn, each piece another stretch."""
    films = []
    for split, count in (("train", train), ("test", test)):
        library = _library(model, split, frames, streams=40 if split == "train" else 20)
        for number in range(count):
            rng = random.Random(f"{split}/{number}/rounds")
            pair, first = number % len(PAIRS), number // len(PAIRS) % 2  # as many of each
            told, shown = [], []
            for place in range(pieces):
                shape = PAIRS[pair][(first + place) % 2]
                start, end = place * frames / FPS, ((place + 1) * frames - 1) / FPS  # not the next one's first frame
                told.append(Told(start, end, end, f"A {shape} appears.", VERBS[pair], shape))
                shown.append(rng.choice(library[shape]))
            topic = "".join(shape.capitalize() for shape in PAIRS[pair])
            length = pieces * frames / FPS
            films.append(
                Film(f"{split}{number:04d}", split == "train", length, tuple(told), topic, pieces=tuple(shown))
            )
    return films


def _library(model: StreamingVideoLM, split: str, frames: int, streams: int) -> dict[str, list[Tensor]]:
    """Shape -> features of stretches in which a single thing is in view, of that shape, whole."""
    config = WorldConfig(seconds=30, fps=FPS, max_things=1, size=model.encoder.tower.image_size)
    found: dict[str, list[Tensor]] = {shape: [] for pair in PAIRS for shape in pair}
    for number in range(streams):
        stream = make_stream(split, 10_000 + number, config)
        vectors, seen, last = features_of(model, stream), 0, ""
        for place, time in enumerate(stream.times.tolist()):
            things = [thing for thing in stream.visible(time) if thing.role == "thing"]
            shape = things[0].shape if len(things) == 1 and things[0].visible > 0.95 else ""
            seen = seen + 1 if shape and shape == last else int(bool(shape))
            last = shape
            if seen == frames:
                found[shape].append(vectors[place + 1 - frames : place + 1].clone())
                seen = 0
    empty = [shape for shape, stretches in found.items() if not stretches]
    if empty:
        raise SystemExit(f"no stretch of {streams} streams shows a {empty[0]} alone; take more streams")
    return found


def store(model: StreamingVideoLM, films: Sequence[Film], folder: Path) -> None:
    """Features of each film, as `extract` writes them."""
    kind = Kind(FPS, model.encoder.grid, model.encoder.tower.to_config(), tower_digest(model.encoder), "fp32")
    for film in films:
        path = folder / f"{film.name}.safetensors"
        if not path.exists():
            vectors = torch.cat(film.pieces) if film.stream is None else features_of(model, film.stream)
            times = [number / FPS for number in range(len(vectors))]
            write_features(path, kind, vectors, times, duration=film.seconds, video=film.name)


# -- layouts -----------------------------------------------------------------------------------------------------------


def write_json(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_ego4d(root: Path, films: Sequence[Film]) -> None:
    """all_narrations_redacted.json; the test films are those that the benchmark nlq validates on."""
    from videollm_mod.data.ego4d import BENCHMARKS

    videos = {}
    for film in films:
        told = [{"time": one.time, "text": f"#C {one.text}", "_annotation_uid": "a"} for one in film.told]
        videos[film.name] = {"status": "complete", "narrations": told, "summaries": []}
    write_json(root / "all_narrations_redacted.json", {"videos": videos})
    for benchmark, key in BENCHMARKS.items():
        held = [{"video_uid": film.name} for film in films if not film.train] if benchmark == "nlq" else []
        write_json(root / f"{benchmark}_val.json", {"version": "v2", key: held})
        write_json(root / f"{benchmark}_test_unannotated.json", {"version": "v2", key: []})
    _write_durations(root, films)


def _write_durations(root: Path, films: Sequence[Film]) -> None:
    durations = [{"video_uid": film.name, "duration_sec": film.seconds} for film in films]
    write_json(root / "ego4d.json", {"videos": durations})


def write_refined(root: Path, films: Sequence[Film]) -> None:
    """refined_narration_stream_{split}.json: {video: {pass: [{"time", "text"}]}}."""
    for split, train in (("train", True), ("val", False)):
        told = {
            film.name: {"a": [{"time": one.time, "text": one.text} for one in film.told]}
            for film in films
            if film.train == train and film.told
        }
        write_json(root / f"refined_narration_stream_{split}.json", told)
    _write_durations(root, films)


def write_ego4d_lta(root: Path, films: Sequence[Film]) -> None:
    """fho_lta_{split}.json, a record an action, and fho_lta_taxonomy.json."""
    verbs, nouns = list(VERBS), [shape for pair in PAIRS for shape in pair]
    for split, train in (("train", True), ("val", False)):
        clips = [
            {
                "clip_uid": f"clip-{film.name}",
                "video_uid": film.name,
                "action_idx": place,
                "clip_parent_start_sec": 0.0,
                "action_clip_start_sec": one.start,
                "action_clip_end_sec": one.end,
                "verb_label": verbs.index(one.verb),
                "noun_label": nouns.index(str(one.noun)),
            }
            for film in films
            if film.train == train
            for place, one in enumerate(film.steps)
        ]
        write_json(root / f"fho_lta_{split}.json", {"version": "v2", "clips": clips})
    write_json(root / "fho_lta_taxonomy.json", {"verbs": verbs, "nouns": nouns})
    _write_durations(root, films)


def write_egoexo4d(root: Path, films: Sequence[Film]) -> None:
    """atomic_descriptions_{split}.json and keystep_{split}.json."""
    names = sorted({one.text for film in films for one in film.steps})
    vocabulary = {str(place): text for place, text in enumerate(names)}
    for split, train in (("train", True), ("val", False)):
        told: dict[str, Any] = {}
        keysteps: dict[str, Any] = {}
        for film in films:
            if film.train != train:
                continue
            descriptions = [{"text": one.text, "timestamp": one.time, "subject": "C"} for one in film.told]
            told[film.name] = [{"annotation_uid": "a", "rejected": False, "descriptions": descriptions}]
            segments = [
                {"start_time": o.start, "end_time": o.end, "step_unique_id": names.index(o.text), "step_name": o.text}
                for o in film.steps
            ]
            keysteps[film.name] = {"take_uid": film.name, "take_name": film.name, "scenario": "x", "segments": segments}
        write_json(root / "annotations" / f"atomic_descriptions_{split}.json", {"annotations": told})
        write_json(root / "annotations" / f"keystep_{split}.json", {"annotations": keysteps, "vocabulary": vocabulary})
    takes = [{"take_uid": film.name, "take_name": film.name, "duration_sec": film.seconds} for film in films]
    write_json(root / "takes.json", takes)


def write_coin(root: Path, films: Sequence[Film]) -> None:
    """COIN.json."""
    database = {
        film.name: {
            "duration": film.seconds,
            "class": film.topic,
            "subset": "training" if film.train else "testing",
            "start": 0.0,
            "end": film.steps[-1].end,
            "recipe_type": 0,
            "video_url": "",
            "annotation": [
                {"id": str(place), "segment": [one.start, one.end], "label": one.text.rstrip(".").lower()}
                for place, one in enumerate(film.steps)
            ],
        }
        for film in films
        if film.steps
    }
    write_json(root / "COIN.json", {"database": database})


def write_epic(root: Path, films: Sequence[Film]) -> None:
    """EPIC_100_{split}.csv with classes."""
    verbs = sorted({one.verb for film in films for one in film.steps})
    nouns = sorted({str(one.noun) for film in films for one in film.steps})
    columns = (
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
        "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"
    ).split(",")
    for split, train in (("train", True), ("validation", False)):
        rows = []
        for film in films:
            if film.train != train:
                continue
            for place, one in enumerate(film.steps):
                times = [_clock(time) for time in (one.time, one.start, one.end)]
                verb, noun = str(verbs.index(one.verb)), str(nouns.index(str(one.noun)))
                row = [f"{film.name}_{place}", "P", film.name, *times, "0", "0", one.text, one.verb, verb]
                rows.append([*row, str(one.noun), noun, f"['{one.noun}']", f"[{noun}]"])
        _table(root / f"EPIC_100_{split}.csv", columns, rows)
    _table(root / "EPIC_100_verb_classes.csv", ["id", "key"], [[str(i), key] for i, key in enumerate(verbs)])
    _table(root / "EPIC_100_noun_classes_v2.csv", ["id", "key"], [[str(i), key] for i, key in enumerate(nouns)])
    lengths = [[film.name, str(film.seconds)] for film in films]
    _table(root / "EPIC_100_video_info.csv", ["video_id", "duration"], lengths)


def _clock(time: float) -> str:
    return f"00:{int(time // 60):02d}:{time % 60:06.3f}"


def _table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def write_own(root: Path, films: Sequence[Film], features: Path) -> None:
    """train.jsonl and test.jsonl in our own format."""
    for split, train in (("train", True), ("test", False)):
        streams = [
            Stream(
                film.name,
                tuple(Segment("assistant", one.time, text=one.text) for one in film.told),
                features=features.absolute() / f"{film.name}.safetensors",
                duration=film.seconds,
            )
            for film in films
            if film.train == train and film.told
        ]
        write_streams(root / f"{split}.jsonl", streams)
