"""What the tests of benchmarks share: a model's folder, random features for any video, OVO-Bench and StreamingBench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from data_cases import write_coin, write_ego4d, write_egoexo4d, write_epic, write_json

from videollm_mod.data.features import Kind, tower_digest, write_features
from videollm_mod.data.segments import Segment, Stream
from videollm_mod.evaluate.benchmarks import BENCHMARKS
from videollm_mod.evaluate.playing import Answer, Result
from videollm_mod.model import StreamingVideoLM

FPS = 2.0


def random_features(model: StreamingVideoLM, folder: Path, *names: str, seconds: float = 20.0, seed: int = 0) -> Path:
    """A file of random features for each name, as `extract` writes them."""
    generator = torch.Generator().manual_seed(seed)
    grid = model.encoder.grid
    kind = Kind(FPS, grid, model.encoder.tower.to_config(), tower_digest(model.encoder), "fp32")
    frames = int(seconds * FPS)
    for name in names:
        values = torch.randn(frames, 1 + grid[0] * grid[1], model.encoder.width, generator=generator)
        times = [number / FPS for number in range(frames)]
        write_features(folder / f"{name}.safetensors", kind, values, times, duration=seconds, video=name)
    return folder


def features_of_all(model: StreamingVideoLM, folder: Path) -> Path:
    """Random features for all videos that `write_all` tells of."""
    names = "val-uid lab_01 vid2 P01_01 one two three sample_1_real sample_1_sqa sample_2_proactive"
    return random_features(model, folder, *names.split())


def write_ovo(root: Path) -> None:
    """One item of each way of asking, two of them on the same video."""
    options = ["a cup", "a pan", "a knife", "a tap"]
    items: list[dict[str, Any]] = [
        {"id": 0, "task": "EPM", "video": "Ego4D/clips/one.mp4", "realtime": 5, "question": "What did I drop?",
         "answer": "a pan", "options": options, "gt": 1},
        {"id": 1, "task": "OCR", "video": "AutoEvalMetaData/two.mp4", "realtime": 3.2, "question": "What is written?",
         "answer": "a cup", "options": options[:3], "gt": 0},
        {"id": 2, "task": "REC", "video": "perception_test/two.mp4", "activity": "breaking something",
         "start_times": [2], "end_times": [6],
         "test_info": [{"realtime": 2, "count": 0}, {"realtime": 6.0, "count": 1}]},
        {"id": 3, "task": "SSR", "video": "Ego4D/clips/one.mp4", "tutorial": "PutOnHair", "all_steps": ["wet the hair"],
         "start_time": [2], "end_time": [4], "test_info": [{"realtime": 3, "step": "wet the hair", "type": 1}]},
        {"id": 4, "task": "CRR", "video": "MovieNet/three.mp4", "question": "What does she do?", "answer": "She waves.",
         "ask_time": 2, "clue_time": 4, "test_info": [{"realtime": 2, "type": 0}, {"realtime": 5, "type": 1}]},
    ]  # fmt: skip
    write_json(root / "ovo_bench_new.json", items)


def write_streamingbench(root: Path) -> None:
    """A question of each file; the sequential ones belong together."""

    def entry(video: str, question: dict[str, Any]) -> dict[str, Any]:
        return {"time": "[0:00:00 - 0:00:30]", "questions": [question], "video_categories": "x", "video_path": video}

    def choice(task: str, time: str, answer: str, lettered: bool = True) -> dict[str, Any]:
        options = ["A cup.", "A pan.", "A knife.", "A tap."]
        if lettered:
            options = [f"{chr(65 + place)}. {option}" for place, option in enumerate(options)]
        return {"task_type": task, "question": "What is on the table right now?", "time_stamp": time, "answer": answer,
                "options": options, "required_ability": "working memory"}  # fmt: skip

    real = [
        entry("./videos/sample_1_real.mp4", choice("Object Recognition", "00:00:04", "B")),
        entry("./videos/sample_1_real.mp4", choice("Counting", "0:06", "C")),
    ]
    write_json(root / "questions_real.json", real)
    sequence = [
        entry("./videos/sample_1_sqa.mp4", choice("Sequential Question Answering", time, answer, lettered=False))
        for time, answer in (("00:00:03", "A"), ("00:00:05", "D"))
    ]
    write_json(root / "questions_sqa.json", [sequence])
    proactive = {
        "task_type": "Proactive Output", "question": 'When the lamp is red, output "red".', "time_stamp": "00:00:02",
        "ground_truth_time_stamp": "00:00:05", "ground_truth_output": "red", "required_ability": "working memory",
    }  # fmt: skip
    write_json(root / "questions_proactive.json", [entry("./videos/sample_2_proactive.mp4", proactive)])


def perfect(stream: Stream) -> Result:
    """What a model does that knows everything: it narrates and answers the truth at its time."""
    from videollm_mod.evaluate.metrics import Said

    said = tuple(Said(float(reply.time or 0.0), reply.text) for reply in stream.replies)
    answers: tuple[Answer, ...] = tuple(Answer((reply.text,), float(reply.time or 0.0)) for reply in stream.replies)
    if "proactive" in stream.meta:
        answers = answers * 2
    start, end = stream.span
    return Result(1, start, end or 0.0, FPS, "", said, answers)


def wordless(stream: Stream) -> Result:
    """What a model does that never opens its mouth, and answers with nothing when it must."""
    start, end = stream.span
    return Result(1, start, end or 0.0, FPS, "", (), tuple(None for _ in stream.replies))


def ask(time: float, text: str, answer: str) -> tuple[Segment, Segment]:
    """A question with its answer at once."""
    return Segment("user", time, text=text), Segment("assistant", time, text=answer)


WRITERS = {
    "ego4d": write_ego4d,
    "egoexo4d": write_egoexo4d,
    "coin": write_coin,
    "epic": write_epic,
    "ovo": write_ovo,
    "streamingbench": write_streamingbench,
}


def write_all(root: Path) -> Path:
    """Every data set, each in a folder of its own."""
    for name, write in WRITERS.items():
        (root / name).mkdir()
        write(root / name)
    return root


def folder_of(name: str) -> str:
    return next(key for key in WRITERS if name.startswith(key))


def streams_of(name: str, data: Path) -> tuple[Any, list[Stream]]:
    source, streams = BENCHMARKS[name].read(data / folder_of(name), None)
    return source, list(streams)
