"""Annotation files with something wrong in them: told with the record's id, or left out alone and counted."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_cases import write_ovo, write_streamingbench
from data_cases import write_coin, write_ego4d, write_egoexo4d, write_epic, write_json

from videollm_mod.data import coin
from videollm_mod.data.registry import data_set
from videollm_mod.data.segments import Stream, parse_stream, stream_record
from videollm_mod.evaluate.benchmarks import BENCHMARKS
from videollm_mod.types import InputError

WRITERS = {
    "ego4d": write_ego4d,
    "egoexo4d": write_egoexo4d,
    "coin": write_coin,
    "ovo": write_ovo,
    "streamingbench": write_streamingbench,
}
WRONG: tuple[Any, ...] = (None, [], {}, "", "x", -1, True, float("nan"), 1e999, [[1]])
FILES = [
    ("ego4d-narration", "all_narrations_redacted.json"),
    ("ego4d-narration", "nlq_val.json"),
    ("ego4d-narration", "ego4d.json"),
    ("ego4d-narration-refined", "refined_narration_stream_val.json"),
    ("ego4d-livechat", "goalstep_livechat_trainval_filtered_21k.json"),
    ("ego4d-lta", "fho_lta_val.json"),
    ("ego4d-lta", "fho_lta_taxonomy.json"),
    ("egoexo4d-narration", "annotations/atomic_descriptions_val.json"),
    ("egoexo4d-narration", "takes.json"),
    ("egoexo4d-keystep", "annotations/keystep_val.json"),
    ("coin-step", "COIN.json"),
    ("coin-task", "COIN.json"),
    ("coin-procedure-goal", "COIN.json"),
    ("ovo-bench", "ovo_bench_new.json"),
    ("streamingbench", "questions_real.json"),
    ("streamingbench", "questions_sqa.json"),
    ("streamingbench", "questions_proactive.json"),
]


def places(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to each value of a JSON file; of long lists the first two."""
    yield path
    inner = values.items() if isinstance(values, dict) else enumerate(values[:2]) if isinstance(values, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def changed(values: Any, path: tuple[Any, ...], value: Any, *, gone: bool = False) -> Any:
    """With another value there, or without any."""
    if not path:
        return value
    values = copy.deepcopy(values)
    inside = values
    for key in path[:-1]:
        inside = inside[key]
    if gone:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return values


@pytest.mark.parametrize(("name", "file"), FILES)
def test_whatever_stands_in_a_file_is_read_or_refused_in_a_sentence(name: str, file: str, tmp_path: Path) -> None:
    write = WRITERS[next(key for key in WRITERS if name.startswith(key))]
    write(tmp_path)
    path = tmp_path / file
    values = json.loads(path.read_text())
    refused = 0
    for place in places(values):
        variants = [changed(values, place, wrong) for wrong in WRONG]
        variants += [changed(values, place, None, gone=True)] if place else []
        for variant in variants:
            path.write_text(json.dumps(variant))
            for skip_bad in (False, True):
                entry = BENCHMARKS[name].data if name in BENCHMARKS else data_set(name)
                streams = entry.read(entry.source(tmp_path, skip_bad=skip_bad))
                try:
                    for stream in streams:
                        assert parse_stream(json.loads(json.dumps(stream_record(stream))), tmp_path).id == stream.id
                except InputError as error:
                    refused += 1
                    assert ".json" in str(error) and str(error).endswith(".") and "index out of range" not in str(error)
                    assert not skip_bad or len(place) < 3, error  # what holds the records, not one of them
    assert refused > 20


def read(name: str, root: Path, **options: Any) -> tuple[list[Stream], list[str]]:
    source = data_set(name).source(root, **options)
    return list(data_set(name).read(source)), source.skipped


def test_of_an_annotators_pass_only_the_bad_sentence_is_left_out(tmp_path: Path) -> None:
    write_ego4d(tmp_path)
    path = tmp_path / "all_narrations_redacted.json"
    values = json.loads(path.read_text())
    whole, _ = read("ego4d-narration", tmp_path)
    del values["videos"]["val-uid"]["narrations"][1]["time"]  # "C looks around."
    path.write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=r"all_narrations_redacted\.json, record val-uid/1: it lacks 'time'; .*--skip-bad"
    ):
        read("ego4d-narration", tmp_path)
    rest, skipped = read("ego4d-narration", tmp_path, skip_bad=True)
    assert len(skipped) == 1 and [stream.id for stream in rest] == [stream.id for stream in whole]
    said = [[reply.text for reply in stream.replies] for stream in (whole[0], rest[0])]
    assert said[0][0] == "C looks around." and said[1] == said[0][1:]


def test_of_a_take_only_the_bad_description_and_the_bad_keystep_are_left_out(tmp_path: Path) -> None:
    write_egoexo4d(tmp_path)
    for file, records in (("atomic_descriptions_val.json", "descriptions"), ("keystep_val.json", "segments")):
        path = tmp_path / "annotations" / file
        values = json.loads(path.read_text())
        take = values["annotations"]["take-uid"]
        (take[0] if isinstance(take, list) else take)[records][0] = {}
        path.write_text(json.dumps(values))
    (told,), skipped = read("egoexo4d-narration", tmp_path, skip_bad=True)
    assert [reply.text for reply in told.replies] == ["C touches the screw."] and len(skipped) == 1
    (step,), skipped = read("egoexo4d-keystep", tmp_path, skip_bad=True)
    assert step.replies[0].text == "Read the instructions." and "record take-uid/0: it lacks" in skipped[0]


def test_a_bad_record_counts_once_though_labels_and_streams_are_read_apart(tmp_path: Path) -> None:
    write_coin(tmp_path)
    values = json.loads((tmp_path / "COIN.json").read_text())
    values["database"]["vid0"]["class"] = None
    values["database"]["vid2"]["duration"] = "long"
    (tmp_path / "COIN.json").write_text(json.dumps(values))
    source = data_set("coin-step").source(tmp_path, "train", skip_bad=True)
    assert {stream.meta["video"] for stream in data_set("coin-step").read(source)} == {"vid1"}
    coin.labels(source)
    assert len(source.skipped) == 2 and "record vid2: its duration is 'long', no number of seconds" in source.skipped[1]


def test_times_that_nobody_can_mean_are_no_durations(tmp_path: Path) -> None:
    write_epic(tmp_path)
    (tmp_path / "EPIC_100_video_info.csv").write_text("video_id,duration\nP01_01,nan\n")
    with pytest.raises(InputError, match=r"EPIC_100_video_info\.csv, record P01_01: its duration is nan"):
        read("epic-narration", tmp_path)
    lines = (tmp_path / "EPIC_100_validation.csv").read_text().splitlines()
    (tmp_path / "EPIC_100_video_info.csv").unlink()
    (tmp_path / "EPIC_100_validation.csv").write_text("\n".join([lines[0], "P01_01_0,P01,P01_01", *lines[2:]]))
    with pytest.raises(InputError, match="record P01_01_0: start_timestamp is None, not like"):
        read("epic-narration", tmp_path)
    (stream,), skipped = read("epic-narration", tmp_path, skip_bad=True)
    assert len(stream.replies) == 29 and len(skipped) == 1


def test_narrations_in_any_order_of_any_words_become_one_stream_a_pass(tmp_path: Path) -> None:
    write_ego4d(tmp_path)
    told = [
        (9.0, "#C C slices the jalapeño 🌶 ", "p"),
        (3.0, "#O a person Y waves", "p"),
        (9.0, "#C C puts  the knife\tdown", "p"),  # at the same time: the later line stays
        (3.2, "#O A person Y waves.", "p"),  # the same again
        (400.0, "#C C walks away", "p"),  # beyond the end, 300 s
        (5.0, "#unsure", "q"),
        (5.0, "#C", "q"),
    ]
    narrations = [{"time": time, "text": text, "_annotation_uid": name} for time, text, name in told]
    write_json(tmp_path / "all_narrations_redacted.json", {"videos": {"val-uid": {"narrations": narrations}}})
    (stream,), _ = read("ego4d-narration", tmp_path)
    assert [(reply.time, reply.text) for reply in stream.replies] == [
        (3.0, "A person Y waves."),
        (9.0, "C puts the knife down."),
        (300.0, "C walks away."),
    ]
    assert (stream.meta["pass"], stream.span) == ("p", (3.0, 300.0))
