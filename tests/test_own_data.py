"""Training on one's own videos: the JSONL file, stretches of its videos, the words it brings, and the same `train`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from test_train import small_recipe

from videollm_mod.data.own import own_stream, read_videos, split_videos
from videollm_mod.dialogue import word_tokenizer
from videollm_mod.evaluate.calibrate import calibrate
from videollm_mod.model import load
from videollm_mod.train.build import build, with_words
from videollm_mod.train.data import stream_sample
from videollm_mod.train.loop import train
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig, make_stream, narrations, write_stream
from videollm_mod.world.conversation import segments

WORLD = WorldConfig(seconds=8, size=48, events_per_minute=18, questions=8)
CUP = "A cup is placed on the desk."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of the world, and one line that says a sentence which the world does not know."""
    folder = tmp_path_factory.mktemp("own")
    lines = []
    for number in range(3):
        stream = make_stream("train", number, WORLD)
        video = write_stream(stream, folder)
        lines.append(json.loads(video.with_suffix(".jsonl").read_text()))
    lines[0]["segments"].append({"time": 7.0, "role": "assistant", "text": CUP})
    (folder / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def own_recipe(folder: Path, **changes: object) -> Recipe:
    return dataclasses.replace(
        small_recipe(phases=(Phase(3, 2, dataclasses.replace(WORLD, seconds=4)),), data=str(folder / "all.jsonl")),
        **changes,  # type: ignore[arg-type]
    )


def test_a_stretch_of_a_written_world_stream_tells_what_the_stream_tells(folder: Path) -> None:
    for number, video in enumerate(read_videos(folder / "all.jsonl")):
        stream, own = make_stream("train", number, WORLD), video.window(0.0, WORLD)
        assert own.times.tolist() == stream.times.tolist()
        told = [(event.frame, event.text) for event in own.events if event.text != CUP]
        assert told == [(event.frame, event.text) for event in stream.events]
        asked = [(q.frame, q.question, q.answer) for q in own.questions]
        assert asked == [(q.frame, q.question, q.answer) for q in stream.questions]
        frames, truth = own.frames(), np.stack([stream.render(time) for time in own.times])
        assert frames.shape == truth.shape and frames.dtype == np.uint8
        assert np.abs(frames.astype(float) - truth).mean() < 12  # but for compression


def test_times_of_a_later_stretch_begin_at_0(folder: Path) -> None:
    video = read_videos(folder / "all.jsonl")[0]
    whole, part = video.window(0.0, WORLD), video.window(3.5, dataclasses.replace(WORLD, seconds=3))
    assert part.times.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert [(e.frame + 7, e.text) for e in part.events] == [
        (e.frame, e.text) for e in whole.events if 3.5 <= e.time and e.frame < 13
    ]
    assert np.abs(part.frames()[0].astype(float) - whole.frames()[7]).mean() < 3
    conversation = segments(part, "Say what happens.")
    assert sum(getattr(segment, "frames", 0) for segment in conversation) == 6


def test_what_falls_on_one_frame_is_one_narration(tmp_path: Path, folder: Path) -> None:
    video = next(folder.glob("*.mp4"))
    told = [{"time": time, "role": "assistant", "text": text} for time, text in ((1.1, "One."), (1.3, "Two."))]
    (tmp_path / "a.jsonl").write_text(json.dumps({"video": str(video), "segments": told}))
    (narration,) = narrations(read_videos(tmp_path / "a.jsonl")[0].window(0.0, WORLD))
    assert narration == (pytest.approx(1.3), 3, "narration", "One. Two.")


def test_one_video_in_ten_is_held_out_and_the_same_number_gives_the_same_stretch(folder: Path) -> None:
    videos = read_videos(folder / "all.jsonl")
    assert split_videos(videos, "validation") == videos[2:] and split_videos(videos, "train") == videos[:2]
    many = tuple(dataclasses.replace(videos[0], duration=float(i + 1)) for i in range(25))
    assert [video.duration for video in split_videos(many, "validation")] == [10.0, 20.0]
    assert split_videos(videos[:1], "train") == split_videos(videos[:1], "validation") == videos[:1]
    path, short = folder / "all.jsonl", dataclasses.replace(WORLD, seconds=4)
    some = [own_stream(path, "train", number, short) for number in range(20)]
    assert some == [own_stream(path, "train", number, short) for number in range(20)]
    assert len({stream.name for stream in some}) > 5
    assert {stream.video for stream in some} == set(videos[:2])


def test_new_words_come_behind_the_ones_that_are_there() -> None:
    tokenizer = word_tokenizer(["A red ring appears."])
    grown = with_words(tokenizer, ["A cup is placed on the desk.", "A red cup."])
    old, new = tokenizer.get_vocab(), grown.get_vocab()
    assert {word: new[word] for word in old} == old
    assert sorted(new.values()) == list(range(len(old) + 6))  # cup, is, placed, on, the, desk
    assert grown.decode(grown.encode(CUP, add_special_tokens=False)) == CUP
    assert (grown.eos_token, grown.pad_token_id) == (tokenizer.eos_token, tokenizer.pad_token_id)
    assert with_words(tokenizer, ["A ring."]) is tokenizer


@pytest.mark.slow
def test_a_model_is_taught_on_own_videos_and_learns_their_words(folder: Path, tmp_path: Path) -> None:
    base = build(small_recipe())
    base.save_pretrained(tmp_path / "base")
    recipe = own_recipe(folder, start=str(tmp_path / "base"), tower_stage=None, corrupt=0.5)
    before, grown = load(tmp_path / "base").state_dict(), build(recipe)
    embeddings = "lm.model.embed_tokens.weight"
    words = len(before[embeddings])
    assert len(grown.state_dict()[embeddings]) > words
    assert (grown.state_dict()[embeddings][:words] == before[embeddings]).all()
    model = load(train(recipe, tmp_path / "run", workers=0))
    assert model.template.decode(model.template.reply(CUP)[:-1]) == CUP  # all but EOS
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in log} == {"stream", "validation"}  # no tower stage: nobody says what is where
    held = [own_stream(folder / "all.jsonl", "validation", n, WORLD) for n in range(2)]
    threshold, _ = calibrate(model, held, grid=(0.3, 0.5))
    assert threshold in (0.3, 0.5)


def test_a_sample_of_an_own_video_has_no_truth_about_its_cells(folder: Path) -> None:
    recipe = own_recipe(folder)
    sample = stream_sample("train", 0, recipe.phases[0], recipe)
    assert sample.changes is None and sample.matter is None and sample.frames.shape == (8, 48, 48, 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nonsense", "line 1: it is no JSON"),
        ("[1]", "line 1: a line is"),
        ('{"video": "none.mp4", "segments": []}', "stream 'none': there is no video .*none.mp4"),
        ('{"video": "V", "segments": [{"time": -1, "role": "assistant", "text": "A."}]}', "segment 0 has time -1"),
        ('{"video": "V", "segments": [{"time": "1", "role": "assistant", "text": "A."}]}', "segment 0 has time '1'"),
        (
            '{"video": "V", "segments": [{"time": 1, "role": "robot", "text": "A."}]}',
            "has role 'robot'; give assistant",
        ),
        (
            '{"video": "V", "segments": [{"time": 1, "role": "assistant", "text": " "}]}',
            "has text ' '; give a sentence",
        ),
        ('{"video": "V", "segments": [{"time": 1, "role": "user", "text": "A?"}]}', "question at 1 s has no answer"),
        ('{"video": "V", "duration": 0, "segments": []}', "line 1: duration 0 is no number of seconds"),
        ("", "has no line"),
    ],
)
def test_a_line_that_cannot_be_right_is_named(folder: Path, tmp_path: Path, line: str, said: str) -> None:
    video = next(folder.glob("*.mp4"))
    (tmp_path / "a.jsonl").write_text(line.replace('"V"', json.dumps(str(video))))
    with pytest.raises(InputError, match=said):
        read_videos(tmp_path / "a.jsonl")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*none\.jsonl"):
        read_videos(tmp_path / "none.jsonl")
