"""Benchmarks from published files to numbers: readers, judges, chance, results, reports."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_cases import (
    FPS,
    features_of_all,
    folder_of,
    perfect,
    random_features,
    streams_of,
    wordless,
    write_all,
    write_ovo,
)
from data_cases import write_json
from evaluate_cases import random_model

from videollm_mod.cli import COMMANDS
from videollm_mod.data import ovo_bench, streamingbench
from videollm_mod.data.segments import Segment, Stream, write_streams
from videollm_mod.evaluate import command
from videollm_mod.evaluate.benchmarks import BENCHMARKS, Settings, protocol_of
from videollm_mod.evaluate.bootstrap import add
from videollm_mod.evaluate.command import BenchmarkConfig, evaluate, parse_shard
from videollm_mod.evaluate.judges import chosen, right_answer
from videollm_mod.evaluate.metrics import Said
from videollm_mod.evaluate.names import BENCHMARK_NAMES
from videollm_mod.evaluate.playing import Answer, Result, play
from videollm_mod.evaluate.result import read_results
from videollm_mod.evaluate.tables import ReportConfig, cell, report
from videollm_mod.model import StreamingVideoLM
from videollm_mod.types import InputError

PUBLISHED = [name for name in BENCHMARKS if name not in ("video-qa", "narration")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model() -> StreamingVideoLM:
    return random_model()


@pytest.fixture(scope="module")
def model_folder(model: StreamingVideoLM, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    return str(folder)


# -- readers -----------------------------------------------------------------------------------------------------------


def test_ovo_bench_puts_all_questions_of_a_video_to_one_stream_in_order_of_time(data: Path) -> None:
    _, streams = streams_of("ovo-bench", data)
    by_name = {stream.id: stream for stream in streams}
    assert list(by_name) == [
        "Ego4D/clips/one.mp4",
        "AutoEvalMetaData/two.mp4",
        "perception_test/two.mp4",
        "MovieNet/three.mp4",
    ]
    one = by_name["Ego4D/clips/one.mp4"]
    assert [(reply.time, reply.text, reply.meta["task"]) for reply in one.replies] == [
        (3, "Yes", "SSR"),
        (5, "B", "EPM"),
    ]
    assert one.span == (0, 5)
    assert "Question: What did I drop?\nOptions:\nA. a cup; B. a pan; C. a knife; D. a tap;\n" in one.of("user")[1].text
    counts = by_name["perception_test/two.mp4"].replies
    assert [(reply.text, reply.meta["count"]) for reply in counts] == [("0", 0), ("1", 1)]


def test_of_videos_of_one_name_that_in_the_right_folder_is_taken(data: Path, tmp_path: Path) -> None:
    for name in ("AutoEvalMetaData/two", "perception_test/two", "Ego4D/clips/one", "three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.mp4").touch()
    streams = BENCHMARKS["ovo-bench"].read(data / "ovo", None, videos=tmp_path)[1]
    found = {stream.id: str(stream.video.relative_to(tmp_path)) for stream in streams if stream.video}
    assert found["AutoEvalMetaData/two.mp4"] == "AutoEvalMetaData/two.mp4"
    assert found["perception_test/two.mp4"] == "perception_test/two.mp4"
    assert found["MovieNet/three.mp4"] == "three.mp4"  # in whatever folder, if there is one of this name only


def test_an_item_of_ovo_bench_that_is_not_right_is_named_or_skipped(tmp_path: Path) -> None:
    write_ovo(tmp_path)
    items = json.loads((tmp_path / "ovo_bench_new.json").read_text())
    items[0]["gt"] = 7
    write_json(tmp_path / "ovo_bench_new.json", items)
    with pytest.raises(InputError, match=r"record 0.*--skip-bad"):
        list(BENCHMARKS["ovo-bench"].read(tmp_path, None)[1])
    source, streams = BENCHMARKS["ovo-bench"].read(tmp_path, None, skip_bad=True)
    assert sum(len(stream.replies) for stream in streams) == 6 and len(source.skipped) == 1


def test_streamingbench_tells_earlier_questions_and_gives_letters_to_options_without_them(data: Path) -> None:
    _, streams = streams_of("streamingbench", data)
    real, sequence, proactive = streams
    assert [reply.time for reply in real.replies] == [4, 6]  # "0:06" has no hours
    first, second = sequence.of("user")
    assert "\nA. A cup.\nB. A pan.\n" in first.text and "At timestamp" not in first.text
    told = "the following question and answer occurred: Question: What is on the table right now?; Options: A. A cup., "
    assert f"At timestamp 00:00:03, {told}" in second.text and "D. A tap.; Answer: A; " in second.text
    assert real.of("user")[0].text.endswith("\nD. A tap.\n\nThe best option is:")
    assert proactive.span == (2, 9)
    assert protocol_of(BENCHMARKS["streamingbench"], proactive) == "proactive"


def test_prompts_are_letter_by_letter_those_of_the_benchmarks() -> None:
    """SHA-256 of the templates in OVO-Bench's constant.py (REC with utils/OVOBench.py's question in it) and
    StreamingBench's src/benchmark/*.py, options as one list."""
    published = {
        ovo_bench: {
            "CHOICE": "f825899ecacf",
            "COUNT": "71208a6226a8",
            "STEP": "8a941c4cdd3a",
            "ENOUGH": "c8fc7989ca58",
        },
        streamingbench: {
            "CHOICE": "ce8b16df12ef",
            "SEQUENTIAL": "662e9332f74a",
            "CONTEXT": "08f7c44903f2",
            "TOLD": "e44529e283ed",
            "PROACTIVE": "0d167487595d",
            "POLL": "be2f4a6434a3",
        },
    }
    for module, prompts in published.items():
        for name, digest in prompts.items():
            assert hashlib.sha256(getattr(module, name).encode()).hexdigest()[:12] == digest, name


def test_questions_of_a_file_are_read_with_their_answers_beside_them(tmp_path: Path) -> None:
    write_json(tmp_path / "test_q.json", [{"video_name": "1QIUV7WYKXg", "question": "is it day", "question_id": "v_1"}])
    write_json(tmp_path / "test_a.json", [{"answer": "yes", "type": 3, "question_id": "v_1"}])
    (stream,) = BENCHMARKS["video-qa"].read(tmp_path / "test_q.json", None)[1]
    assert (stream.id, stream.meta["video"], stream.replies[0].text) == ("v_1", "1QIUV7WYKXg", "yes")
    (tmp_path / "mine.jsonl").write_text('{"video": "a.mp4", "question": "who?", "answer": "a man", "time": 4}\n')
    (stream,) = BENCHMARKS["video-qa"].read(tmp_path / "mine.jsonl", None)[1]
    assert (stream.span, stream.replies[0].text) == ((0, 4), "a man")
    (tmp_path / "test_a.json").unlink()
    with pytest.raises(InputError, match=r"put test_a\.json"):
        list(BENCHMARKS["video-qa"].read(tmp_path / "test_q.json", None)[1])


@pytest.fixture(scope="module")
def features(model: StreamingVideoLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return features_of_all(model, tmp_path_factory.mktemp("features"))


# -- judges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_who_knows_everything_gets_the_best_numbers_and_who_says_nothing_the_worst(name: str, data: Path) -> None:
    source, streams = streams_of(name, data)
    judge = BENCHMARKS[name].judge(source, Settings(0.5, 2.0, compat=False))
    best, worst = (judge.measure(add(judge.tally([(s, how(s)) for s in streams]))) for how in (perfect, wordless))
    checked = 0
    for key in BENCHMARKS[name].main:
        value, other = best[key], worst[key]
        if key.endswith("_ed"):
            assert value == 0
        elif key == "cider":
            assert value is not None and value >= 0 and other is None
        elif value is None:
            assert key in ("lm_ppl", "time_diff", "fluency", "lm_correctness", "exact_replies", "omni")
            continue
        else:
            assert value == pytest.approx(1), key
            assert other == 0, key
        checked += 1
    assert checked


def test_missing_steps_are_wrong_unless_the_public_code_is_followed(data: Path) -> None:
    source, streams = streams_of("coin-procedure", data)
    stream = streams[0]
    assert stream.replies[0].meta["labels"] == ["crop and fold paper", "dry hair"]
    half = Result(1, 0, 1, FPS, "", (), (Answer(("1. Crop and fold paper.",), 1.0),))
    for compat, accuracy in ((False, 0.5), (True, 1.0)):
        judge = BENCHMARKS["coin-procedure"].judge(source, Settings(0.5, 2.0, compat))
        assert judge.measure(add(judge.tally([(stream, half)])))["accuracy"] == accuracy


def test_answers_to_choices_are_letters_or_the_words_of_an_option() -> None:
    options = ["a cup", "A pan"]
    assert chosen("B", options) == chosen("The answer is B.", options) == chosen("a pan.", options) == "B"
    assert chosen("C", options) is None and chosen("", options) is None
    assert chosen("Because", options, compat=True) == "B"
    letter = Segment("assistant", 1.0, text="A", meta={"options": options, "style": "ovo"})
    assert not right_answer(letter, "ABsolutely B")
    assert right_answer(letter, "ABsolutely B", compat=True)
    count = Segment("assistant", 1.0, text="12", meta={"count": 12})
    assert right_answer(count, "12 times, or 3") and not right_answer(count, "1 or 2")
    assert right_answer(count, "1 or 2", compat=True) and not right_answer(count, "12 times, or 3", compat=True)
    yes = Segment("assistant", 1.0, text="No", meta={"yes": False})
    assert right_answer(yes, "no, not yet") and not right_answer(yes, "I do Not know")
    assert right_answer(yes, "I do Not know, No", compat=True)


def test_a_sentence_at_the_wrong_time_is_a_false_alarm_per_hour_of_quiet(data: Path) -> None:
    source, _ = streams_of("epic-narration", data)
    judge = BENCHMARKS["narration"].judge(source, Settings(0.5, 2.0, compat=False))
    segments = (Segment("stream", start=0.0, end=99.5), Segment("assistant", 50.0, text="A cup."))
    stream = Stream("s", segments, duration=100.0)
    told = Result(200, 0.0, 99.5, FPS, "", (Said(10.0, "A cup."), Said(51.0, "A pan."), Said(51.5, "A pan.")))
    found = judge.measure(add(judge.tally([(stream, told)])))
    assert found["false_alarms_per_quiet_hour"] == pytest.approx(3600 / 95.5)
    assert found["time_f1"] == pytest.approx(2 / 4) and found["sentence_f1"] == 0
    assert found["duplicates"] == found["repeats"] == pytest.approx(1 / 3)
    assert found["iou_f1"] == pytest.approx(2 / 4)  # 10 to 51 s against 0 to 50 s


# -- the command -------------------------------------------------------------------------------------------------------


def test_every_benchmark_is_a_command_with_a_line_of_help() -> None:
    assert set(BENCHMARK_NAMES) == set(BENCHMARKS)
    for name in BENCHMARKS:
        module, function = COMMANDS[f"eval {name}"][0].split(":")
        assert module == "videollm_mod.evaluate.command" and callable(getattr(command, function))
    with pytest.raises(AttributeError):
        command.nonsense  # noqa: B018


@pytest.mark.parametrize(
    "name",
    [
        "coin-step",
        "ovo-bench",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("epic-narration", "streamingbench", "egoexo4d-keystep", "ego4d-narration", "coin-procedure")
        ),
    ],
)
def test_a_random_model_gets_numbers_with_all_that_is_needed_to_get_them_again(
    name: str, data: Path, features: Path, model_folder: str, tmp_path: Path
) -> None:
    config = BenchmarkConfig(
        data / folder_of(name), model_folder, features=features, out=tmp_path / "r.json", workers=1, frames=40
    )
    result = evaluate(name, config)
    assert json.loads((tmp_path / "r.json").read_text()) == json.loads(json.dumps(result))
    for value in result["metrics"].values():
        assert set(value) == {"value", "low", "high"}
    assert result["samples"] > 0 and result["videos"] > 0 and result["seed"] == 0
    assert result["plan"]["layers"] == "interleaved" and len(result["frame_times"]) == 16
    assert result["versions"]["torch"] == torch.__version__
    assert result["versions"]["decoder"]["name"] == "PyAV" and "libavcodec" in result["versions"]["decoder"]
    forced = result["teacher_forced"]
    assert ("lm_ppl" in forced) == BENCHMARKS[name].forced
    if forced:
        assert result["metrics"]["lm_ppl"]["value"] > 1
    assert any(key not in forced and value["value"] is not None for key, value in result["metrics"].items())


@pytest.mark.slow
def test_a_large_model_can_be_evaluated_in_bf16_with_rounded_caches(
    data: Path, features: Path, model_folder: str, tmp_path: Path
) -> None:
    """And numbers of different precisions do not get into one journal."""
    journal = tmp_path / "j.jsonl"
    config = BenchmarkConfig(
        data / "coin", model_folder, features=features, workers=2, frames=10, streams=2, journal=journal
    )
    rounded = dataclasses.replace(config, dtype="bfloat16", kv="int8")
    result = evaluate("coin-step", rounded)
    assert (result["dtype"], result["kv"], result["streams"]) == ("bfloat16", "int8", 2)
    with pytest.raises(InputError, match="journal"):
        evaluate("coin-step", config)


def test_shards_put_together_are_the_whole_and_nothing_is_watched_twice(
    data: Path, features: Path, model_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BenchmarkConfig(data / "ovo", model_folder, features=features, workers=1)
    whole = evaluate("ovo-bench", config)
    sharded = dataclasses.replace(config, journal=tmp_path / "j.jsonl")
    parts = [evaluate("ovo-bench", dataclasses.replace(sharded, shard=f"{i}/2")) for i in (1, 2)]
    assert [part["videos"] for part in parts] == [2, 2]
    assert sum(part["samples"] for part in parts) == whole["samples"]
    played = []
    plain = play

    def watch(model: StreamingVideoLM, job: Any) -> Any:
        played.append(job[0].id)
        return plain(model, job)

    monkeypatch.setattr("videollm_mod.evaluate.playing.play", watch)
    together = evaluate("ovo-bench", sharded)
    assert played == []
    for key in set(whole) - {"wall_seconds", "frames_per_second"}:
        assert together[key] == whole[key], key
    with pytest.raises(InputError, match="of another 'settings'"):
        evaluate("ovo-bench", dataclasses.replace(sharded, threshold=0.9))


def test_chance_answers_a_choice_of_four_right_in_a_quarter_and_needs_no_video(
    data: Path, model_folder: str, tmp_path: Path
) -> None:
    questions = [
        {
            "video": f"v{n}.mp4",
            "question": "Which?",
            "options": ["a", "b", "c", "d"],
            "answer": "ABCD"[n % 4],
            "time": 2,
        }
        for n in range(200)
    ]
    write_json(tmp_path / "mcq.json", questions)
    result = evaluate("video-qa", BenchmarkConfig(tmp_path / "mcq.json", model_folder, chance=True))
    assert result["model"] == "chance" and result["videos"] == 200
    assert result["metrics"]["accuracy"]["value"] == pytest.approx(0.25, abs=0.04)
    told = evaluate("epic-narration", BenchmarkConfig(data / "epic", model_folder, chance=True))
    assert "lm_ppl" not in told["metrics"]
    assert 0 < told["metrics"]["time_f1"]["value"] < 1


def test_own_videos_in_our_format_are_a_benchmark_too(
    model: StreamingVideoLM, model_folder: str, tmp_path: Path
) -> None:
    random_features(model, tmp_path, "mine", seconds=6)
    segments = (Segment("assistant", 2.0, text="A cup."), Segment("assistant", 4.0, text="A pan."))
    stream = Stream("mine", segments, features=tmp_path / "mine.safetensors", duration=6.0)
    write_streams(tmp_path / "mine.jsonl", [stream])
    result = evaluate("narration", BenchmarkConfig(tmp_path / "mine.jsonl", model_folder, workers=1))
    assert result["frames"] == 12 and result["metrics"]["lm_ppl"]["value"] > 1
    assert "say little" in result["warnings"][0]
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write('{"id": "bad", "segments": 7}\n{"id": "gone", "features": "gone.safetensors", "segments": []}\n')
    config = BenchmarkConfig(tmp_path / "mine.jsonl", model_folder, workers=1)
    for change, message in (({}, "line 2"), ({"skip_bad": True}, r"stream 'gone' needs .*gone\.safetensors")):
        with pytest.raises(InputError, match=message):
            evaluate("narration", dataclasses.replace(config, **change))
    rest = evaluate("narration", dataclasses.replace(config, skip_bad=True, skip_missing=True))
    assert (rest["skipped"], rest["missing"], rest["metrics"]) == (1, 1, result["metrics"])


def test_questions_with_numbers_for_videos_find_them_and_their_lengths(
    model: StreamingVideoLM, model_folder: str, tmp_path: Path
) -> None:
    random_features(model, tmp_path / "features", "vid7", "v_abc", seconds=6)
    questions = [  # as MSVD-QA and ActivityNet-QA have them: no length, the videos' names begin with something more
        {"id": 0, "video_id": 7, "question": "what is it?", "answer": "cup"},
        {"question_id": "abc_0", "video_name": "abc", "question": "what is it?", "answer": "pan", "type": 3},
    ]
    write_json(tmp_path / "qa.json", questions)
    config = BenchmarkConfig(tmp_path / "qa.json", model_folder, features=tmp_path / "features", workers=1)
    assert evaluate("video-qa", config)["frames"] == 24
    chance = evaluate("video-qa", dataclasses.replace(config, features=None, chance=True))
    assert chance["samples"] == 2 and chance["metrics"]["accuracy"]["value"] == pytest.approx(0.5, abs=0.3)
    write_json(tmp_path / "qa.json", [questions[0], {**questions[1], "question_id": 0}])
    with pytest.raises(InputError, match=r"two streams of .*qa\.json are called '0'; give each a name of its own"):
        evaluate("video-qa", config)
    write_json(tmp_path / "qa.json", [{**questions[0], "video_id": 8}])
    with pytest.raises(InputError, match="the video 8 of video-qa is not in"):
        evaluate("video-qa", config)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_says_where_its_files_and_its_videos_are_to_be_had(
    name: str, data: Path, tmp_path: Path
) -> None:
    page, videos = BENCHMARKS[name].data.page, BENCHMARKS[name].data.video_page
    files = tmp_path
    if name == "video-qa":
        files = tmp_path / "qa.json"
        write_json(files, [{"video": "a", "question": "What?", "answer": "B", "duration": 5}])
    elif name == "narration":
        files = tmp_path / "own.jsonl"
        write_json(files, {"video": "a.mp4", "segments": []})
    else:
        for folder in (tmp_path, tmp_path / "none"):  # empty, and not there
            with pytest.raises(InputError, match=re.escape(page)):
                evaluate(name, BenchmarkConfig(folder, "nowhere"))
        files = data / folder_of(name)
    told = re.escape(str(tmp_path / "a.mp4")) if name == "narration" else re.escape(videos)
    with pytest.raises(InputError, match=told):  # before the model is looked for
        evaluate(name, BenchmarkConfig(files, "nowhere", videos=tmp_path))
    if name != "narration":
        with pytest.raises(InputError, match="neither video nor features; give --videos or --features; .*" + told):
            evaluate(name, BenchmarkConfig(files, "nowhere"))


def test_a_journal_does_not_answer_for_other_data_of_the_same_names(
    model: StreamingVideoLM, model_folder: str, tmp_path: Path
) -> None:
    random_features(model, tmp_path, "a", seconds=4)

    def told(text: str) -> BenchmarkConfig:
        stream = Stream("a", (Segment("assistant", 2.0, text=text),), features=tmp_path / "a.safetensors", duration=4.0)
        write_streams(tmp_path / "mine.jsonl", [stream])
        return BenchmarkConfig(tmp_path / "mine.jsonl", model_folder, workers=1, journal=tmp_path / "j.jsonl")

    whole = evaluate("narration", told("A cup."))
    assert evaluate("narration", told("A cup."))["metrics"] == whole["metrics"]
    with pytest.raises(InputError, match=r"j\.jsonl is of other data, which has another stream 'a'"):
        evaluate("narration", told("A pan."))


def test_classes_are_counted_where_they_occur(data: Path) -> None:
    source, streams = streams_of("epic-anticipation", data)
    judge = BENCHMARKS["epic-anticipation"].judge(source, Settings(0.5, 2.0, compat=False))
    total = add(list(judge.tally([(stream, perfect(stream)) for stream in streams])))
    there = {(int(stream.replies[0].meta["verb"]), int(stream.replies[0].meta["noun"])) for stream in streams}
    assert len(total["action_counts"]) == len(there) and total["action_counts"].sum() == len(streams)
    assert judge.measure(total)["action_recall"] == 1


def test_cider_is_printed_as_papers_print_it(data: Path) -> None:
    source, _ = streams_of("epic-narration", data)
    judge = BENCHMARKS["narration"].judge(source, Settings(0.5, 2.0, compat=False))
    texts = ["open the red door", "take one big knife"]
    segments = tuple(Segment("assistant", 10.0 * (place + 1), text=text) for place, text in enumerate(texts))
    stream = Stream("s", (Segment("stream", start=0.0, end=30.0), *segments), duration=30.0)
    found = judge.measure(add(list(judge.tally([(stream, perfect(stream))]))))
    assert found["cider"] == pytest.approx(1000)  # CIDEr-D is 10 for a copy, and papers print it times 100


def test_flags_that_cannot_be_right_are_told_before_the_model_is_loaded(tmp_path: Path, data: Path) -> None:
    good = BenchmarkConfig(data / "coin", "nowhere")
    for change, message in (
        ({"shard": "5/4", "journal": tmp_path / "j"}, "--shard 5/4 is none"),
        ({"shard": "1/2"}, "needs --journal"),
        ({"tolerance": 0.0}, "--tolerance 0"),
        ({"candidates": 101}, "--candidates 101"),
        ({"streams": 0}, "--streams 0"),
        ({"split": "dev"}, "no split 'dev'"),
        ({"data": tmp_path / "none"}, "there is no .*none"),
        ({"videos": data}, "--skip-missing"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate("coin-step", dataclasses.replace(good, **change))
    assert parse_shard("1/1") == (0, 1) and parse_shard(None) is None


# -- reports -----------------------------------------------------------------------------------------------------------


def made_up(path: Path, model: str, value: float, chance: bool = False) -> None:
    metrics = {
        "accuracy": {"value": value, "low": value - 0.1, "high": value + 0.1},
        "lm_ppl": {"value": 2.4, "low": None, "high": None},
        "nothing": {"value": None, "low": None, "high": None},
    }
    if chance:
        del metrics["lm_ppl"]
    about = {
        "benchmark": "coin-step",
        "model": model,
        "chance": chance,
        "main": ["accuracy"],
        "samples": 9,
        "videos": 3,
    }
    write_json(path, {**about, "metrics": metrics, "teacher_forced": ["lm_ppl"], "frame_times": model, "plan": None})


def test_a_report_has_both_protocols_side_by_side_with_intervals_and_a_plot(tmp_path: Path) -> None:
    made_up(tmp_path / "a" / "one.json", "first|model", 0.7)
    made_up(tmp_path / "two.json", "chance", 0.2, chance=True)
    write_json(tmp_path / "other.json", {"no": "result"})
    told = report(ReportConfig(tmp_path, tmp_path / "out"))
    assert told["results"] == 2 and told["benchmarks"] == ["coin-step"]
    text = (tmp_path / "out" / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows[2] == "| first\\|model | 0.700 [0.600, 0.800] | 9 | 3 |"
    assert rows[3] == "| chance | 0.200 [0.100, 0.300] | 9 | 3 |"
    assert "lm_ppl ↓" in rows[4] and "2.400" in rows[6] and "nothing" not in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("on its own words") < page.index("teacher-forced")
    assert "http" not in page and "data:image/png" in page
    assert (tmp_path / "out" / "coin-step.png").stat().st_size > 1000
    with pytest.raises(InputError, match="has no results"):
        read_results(tmp_path / "out")
    assert cell({"value": 123.46, "low": None, "high": None}) == "123.5"
    assert cell({"value": None}) == cell(None) == ""


def test_results_of_the_world_stand_in_the_same_tables(tmp_path: Path) -> None:
    values = {"world": "shapes", "model": "tiny", "f1": 0.8, "lm_ppl": 1.1, "streams": 5, "events": 40}
    write_json(tmp_path / "world.json", {**values, "intervals": {"f1": [0.7, 0.9], "lm_ppl": None}})
    (result,) = read_results(tmp_path)
    assert result["benchmark"] == "world" and result["metrics"]["f1"] == {"value": 0.8, "low": 0.7, "high": 0.9}
    assert result["teacher_forced"] == ["lm_ppl"]
    assert np.isfinite(result["metrics"]["lm_ppl"]["value"])
