"""From a data set's files to a trained model: built, extracted, trained on; the paper's recipes on tiny models."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import write_coin, write_coin_videos
from online_cases import write_checkpoint
from test_train import small_recipe

import videollm_mod.dialogue as dialogue
from recipes.paper import coin
from videollm_mod.adapters import has_lora
from videollm_mod.cli import main
from videollm_mod.data.own import own_stream, read_videos, split_videos
from videollm_mod.data.segments import Segment, Stream, write_streams
from videollm_mod.model import load
from videollm_mod.train.build import build
from videollm_mod.train.data import stream_sample
from videollm_mod.train.loop import StreamStage, train
from videollm_mod.train.paper import PaperRecipe, as_recipe
from videollm_mod.train.recipe import Phase
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples of four COIN videos, as JSONL of videos; and a small model of words with its tower."""
    folder = tmp_path_factory.mktemp("coin")
    write_coin(folder, videos=4)
    write_coin_videos(folder / "videos", videos=4)
    words = [
        "data",
        "build",
        "coin-step",
        "--root",
        str(folder),
        "--split",
        "train",
        "--videos",
        str(folder / "videos"),
    ]
    assert main([*words, "--out", str(folder / "coin.jsonl")]) == 0
    build(small_recipe()).save_pretrained(folder / "model")
    return folder


@pytest.fixture(scope="module")
def features(folder: Path) -> Path:
    """The same as JSONL of features, of that model's tower."""
    words = ["extract", str(folder / "coin.jsonl"), "--out", str(folder / "features"), "--model", str(folder / "model")]
    assert main([*words, "--dtype", "fp32", "--streams", str(folder / "features.jsonl")]) == 0
    return folder / "features.jsonl"


def small_paper(**changes: Any) -> PaperRecipe:
    """COIN's recipe with few and large steps."""
    return dataclasses.replace(coin(), **{"epochs": 2, "streams": 4, "bf16": False, "checkpointing": False, **changes})


def test_samples_are_taken_epoch_by_epoch_and_no_video_is_in_both_splits(folder: Path) -> None:
    videos = read_videos(folder / "coin.jsonl")
    parts = {split: split_videos(videos, split) for split in ("train", "validation")}
    assert {split: len(part) for split, part in parts.items()} == {"train": 9, "validation": 3}
    assert not {video.path for video in parts["train"]} & {video.path for video in parts["validation"]}
    config = WorldConfig(seconds=30, size=48)
    names = [own_stream(folder / "coin.jsonl", "train", number, config).name for number in range(18)]
    assert set(names[:9]) == set(names[9:]) == {video.stream.id for video in parts["train"]}
    assert names[:9] != names[9:]


def test_a_sample_is_its_question_its_frames_and_its_answer(folder: Path) -> None:
    recipe = as_recipe(small_paper(), folder / "coin.jsonl", start=str(folder / "model"))
    recipe = dataclasses.replace(recipe, phases=(Phase(1, 1, WorldConfig(seconds=600, size=48)),), corrupt=0.0)
    sample = stream_sample("train", 0, recipe.phases[0], recipe)
    system, question, stream, answer = sample.segments
    assert isinstance(system, dialogue.System) and isinstance(question, dialogue.User)
    assert stream == dialogue.Stream(9) and isinstance(answer, dialogue.Assistant)  # 4 s at 2 fps, both ends
    assert sample.frames.shape == (9, 48, 48, 3) and sample.features is None and sample.changes is None
    brightness = {"Wet hair.": 40, "Crop and fold paper.": 100, "Dry hair.": 160}[answer.text]
    assert abs(float(sample.frames[4].float().mean()) - brightness) < 8
    short = own_stream(folder / "coin.jsonl", "train", 0, WorldConfig(seconds=2, size=48))
    assert [type(segment).__name__ for segment in short.conversation("S.")] == ["System", "User", "Stream", "Assistant"]
    assert len(short.frames()) == 4  # the last ones, which the answer follows


def test_features_train_as_their_videos_do(folder: Path, features: Path) -> None:
    losses = []
    for data in (folder / "coin.jsonl", features):
        recipe = as_recipe(small_paper(corrupt=0.0), data, start=str(folder / "model"), size=48)
        torch.manual_seed(0)
        stage = StreamStage(build(recipe), recipe)
        items = [stage.samples()[number] for number in range(2)]
        loss, _ = stage(items, 0)
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow
def test_the_papers_recipe_trains_on_coins_files(
    folder: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "paper.coin", "--data", str(features), "--start", str(folder / "model"), "--workers", "0"]
    words += ["--out", str(tmp_path / "run"), "--set", "epochs=3", "streams=9", "lr=0.01", "accumulate=1", "bf16=false"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["steps"] == 3  # nine samples, all in a step
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [line["loss"] for line in log if line["stage"] == "validation"]
    assert told[-1] < told[0]
    model = load(tmp_path / "run" / "model")
    assert model.template.decode(model.template.reply("Crop and fold paper.")[:-1]) == "Crop and fold paper."
    assert result["threshold"] == model.settings.threshold  # answers alone calibrate nothing


@pytest.mark.slow
def test_the_papers_recipe_puts_lora_around_a_published_decoder(features: Path, tmp_path: Path, folder: Path) -> None:
    places = write_checkpoint(tmp_path, with_tokenizer=False)
    paper = small_paper(
        lm=dataclasses.replace(coin().lm, id=str(places["base"])),
        tower=dataclasses.replace(coin().tower, id=str(places["tower"])),
    )
    recipe = as_recipe(paper, folder / "coin.jsonl", size=48)
    assert recipe.pretrained == (str(places["base"]), str(places["tower"])) and recipe.lora == paper.adapter
    recipe = dataclasses.replace(
        recipe,
        phases=(Phase(1, 2, recipe.phases[0].world),),
        lora=dataclasses.replace(paper.adapter, rank=2),
        accumulate=1,
    )
    model = load(train(recipe, tmp_path / "run", workers=0))
    assert has_lora(model) and model.plan.keep == 0.2 and model.encoder.grid == (3, 3)
    other = dataclasses.replace(recipe, data=str(_other_grid(features, tmp_path)))
    with pytest.raises(InputError, match=r"tokens of 16, the model wants 1 \+ 3x3"):
        build(other)


def _other_grid(features: Path, folder: Path) -> Path:
    """A file of streams whose features have another grid than the model wants."""
    words = ["extract", str(features.parent / "coin.jsonl"), "--model", str(features.parent / "model"), "--grid", "1x1"]
    assert main([*words, "--out", str(folder / "f"), "--streams", str(folder / "other.jsonl")]) == 0
    return folder / "other.jsonl"


@pytest.mark.slow
def test_whole_videos_of_features_are_taken_in_stretches(folder: Path, features: Path, tmp_path: Path) -> None:
    told = (Segment("assistant", 5.0, text="Wet hair."), Segment("assistant", 11.0, text="Dry hair."))
    paths = sorted((folder / "features").rglob("*.safetensors"))
    write_streams(tmp_path / "own.jsonl", [Stream(path.stem, told, features=path) for path in paths])
    recipe = small_recipe(
        start=str(folder / "model"), tower_stage=None, tower_lr=0.0, data=str(tmp_path / "own.jsonl"),
        phases=(Phase(2, 2, WorldConfig(seconds=8, size=48)),), change_weight=0.0,
    )  # fmt: skip
    sample = stream_sample("train", 3, recipe.phases[0], recipe)
    assert sample.features is not None and sample.features.shape == (16, 10, 16) and len(sample.frames) == 16
    assert load(train(recipe, tmp_path / "run", workers=0)).template.tokens_per_frame == 10
    with pytest.raises(InputError, match="so the tower cannot learn; add --set tower_lr=0"):
        build(dataclasses.replace(recipe, tower_lr=1e-3))
    with pytest.raises(InputError, match="go on from the model whose tower made them, with --start"):
        build(dataclasses.replace(recipe, start=None))
    other = build(small_recipe(seed=1))
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was extracted with another tower than the model's"):
        build(dataclasses.replace(recipe, start=str(tmp_path / "other")))


def test_lines_must_agree_on_what_they_are(folder: Path, features: Path, tmp_path: Path) -> None:
    line, stored = (path.read_text().splitlines()[0] for path in (folder / "coin.jsonl", features))
    whole = json.loads(line) | {"id": "whole"}
    whole["segments"] = [segment for segment in whole["segments"] if segment["kind"] == "assistant"]
    for name in ("whole", "stored"):
        other = json.dumps(whole) if name == "whole" else json.dumps(json.loads(stored) | {"id": "stored"})
        (folder / f"{name}.jsonl").write_text(f"{line}\n{other}\n")
    with pytest.raises(InputError, match="1 of 2 lines have a segment of kind stream; give one to all, or to none"):
        read_videos(folder / "whole.jsonl")
    with pytest.raises(InputError, match="1 of 2 lines have features"):
        build(small_recipe(data=str(folder / "stored.jsonl"), start=str(folder / "model"), tower_stage=None))
    with pytest.raises(InputError, match="does not say which stretches are watched"):
        own = [Stream("a", (Segment("assistant", 1.0, text="A."),), folder / "videos" / "vid0.mp4")]
        write_streams(tmp_path / "own.jsonl", own)
        as_recipe(small_paper(), tmp_path / "own.jsonl")
