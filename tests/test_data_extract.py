"""`extract`: files of features that hold what the tower gives, come back to any frame, and are gone on with."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import VIDEOS, needs_videos
from transformers import SiglipVisionConfig, SiglipVisionModel

from videollm_mod.cli import main
from videollm_mod.data.conversation import converse
from videollm_mod.data.extract import (
    Job,
    Outcome,
    extract_all,
    extract_video,
    find_videos,
    frames_of,
    is_done,
    shard_of,
)
from videollm_mod.data.features import Kind, expected_bytes, open_features, tower_digest, write_features
from videollm_mod.data.frames import frame_total, pictures, stored_vectors, vectors
from videollm_mod.data.segments import Segment, Stream, read_streams, write_streams
from videollm_mod.types import InputError
from videollm_mod.video import VideoWriter
from videollm_mod.vision import ConvTower, ConvTowerConfig, FrameEncoder, TransformersTower

SIZE = 32


def encoder(seed: int = 0) -> FrameEncoder:
    torch.manual_seed(seed)
    tower = ConvTower(ConvTowerConfig(image_size=SIZE, channels=(8, 8, 16), heads=2))
    return FrameEncoder(tower, (2, 2)).eval().requires_grad_(False)


def kind_of(made: FrameEncoder, dtype: str = "fp32", fps: float = 2.0) -> Kind:
    return Kind(fps, made.grid, made.tower.to_config(), tower_digest(made), dtype)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips of 4 and 3 s whose brightness tells the time, one of them in a folder, and one that is none."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "deep").mkdir()
    for path, seconds in ((folder / "a.mp4", 4), (folder / "deep" / "b.mp4", 3)):
        with VideoWriter(path, fps=8) as writer:
            for number in range(seconds * 8):
                writer.write(np.full((SIZE, SIZE, 3), 40 + 5 * number, np.uint8))
    (folder / "broken.mp4").write_bytes(b"no video at all")
    return folder


def run(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> tuple[dict[str, Any], str]:
    assert main(words) == code
    out, err = capsys.readouterr()
    return json.loads(out.splitlines()[-1]) if out else {}, err


def test_ego4d_at_two_frames_a_second_and_ten_tokens_takes_about_a_terabyte() -> None:
    # 3670 h * 3600 s * 2 frames * 10 tokens * 1024 numbers * 4 bytes
    assert expected_bytes(3670 * 3600, 2, 10, 1024, "fp32") == 1_082_327_040_000
    assert expected_bytes(3670 * 3600, 2, 10, 1024, "fp16") == 541_163_520_000
    assert expected_bytes(1.9, 2, 1, 1, "bf16") == 6  # three frames


@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2)])
def test_a_file_holds_what_the_tower_gives_of_each_frame(clips: Path, tmp_path: Path, dtype: str, error: float) -> None:
    made = encoder()
    job = Job(clips / "a.mp4", tmp_path / "a.safetensors", "a.mp4", 4.0)
    frames, size, early = extract_video(job, made, kind_of(made, dtype), batch=3)
    assert early is None
    assert frames == 8 and size == job.out.stat().st_size > 8 * 5 * 16 * (4 if dtype == "fp32" else 2)
    file = open_features(job.out)
    assert file.times.tolist() == [k / 2 for k in range(8)] and file.duration == pytest.approx(4.0, abs=0.01)
    assert (file.kind, file.width, file.frames) == (kind_of(made, dtype), 16, 8)
    images = pictures(clips / "a.mp4", range(8), 2.0, SIZE)
    assert [abs(int(image.float().mean()) - (40 + 20 * k)) < 4 for k, image in enumerate(images)] == [True] * 8
    assert torch.allclose(stored_vectors(job.out, range(8), 2.0, made), made(images), atol=error, rtol=error)


def test_any_frames_can_be_had_at_any_lower_rate(clips: Path, tmp_path: Path) -> None:
    made = encoder()
    out = tmp_path / "a.safetensors"
    extract_video(Job(clips / "a.mp4", out, "a.mp4", 4.0), made, kind_of(made))
    every = stored_vectors(out, range(8), 2.0)
    assert torch.equal(stored_vectors(out, [2, 3, 7], 2.0), every[[2, 3, 7]])
    assert torch.equal(stored_vectors(out, [0, 1, 3], 1.0), every[[0, 2, 6]])
    assert torch.equal(stored_vectors(out, [7, 9], 2.0), every[[7, 7]])  # the last picture stays
    stream = Stream("a", (), features=out)
    assert frame_total(stream, 2.0) == 8 and frame_total(stream, 1.0) == 4
    with pytest.raises(InputError, match="has 2 frames per second, fewer than the 4 asked for"):
        stored_vectors(out, [0], 4.0)
    with pytest.raises(InputError, match=r"has 1 \+ 2x2 tokens of 16, the model wants 1 \+ 1x1"):
        stored_vectors(out, [0], 2.0, FrameEncoder(made.tower, (1, 1)))


def test_a_stream_gives_the_same_vectors_from_its_video_and_from_its_features(clips: Path, tmp_path: Path) -> None:
    made = encoder()
    out = tmp_path / "a.safetensors"
    extract_video(Job(clips / "a.mp4", out, "a.mp4", 4.0), made, kind_of(made))
    told = (Segment("user", text="A?"), Segment("stream", start=1.0, end=2.2), Segment("assistant", 2.2, text="B."))
    both = [Stream("a", told, clips / "a.mp4", features) for features in (None, out)]
    laid = [converse(stream, 2.0, frames=frame_total(stream, 2.0)) for stream in both]
    assert laid[0] == laid[1] and laid[0].frames == (2, 3, 4, 5)
    first, second = (vectors(stream, one.frames, 2.0, made) for stream, one in zip(both, laid))
    assert torch.allclose(first, second, atol=1e-6)


def test_what_is_no_features_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no features file .*make it with `videollm-mod extract`"):
        open_features(tmp_path / "none.safetensors")
    (tmp_path / "a.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError, match="is no features file of ours"):
        open_features(tmp_path / "a.safetensors")
    made = encoder()
    with pytest.raises(InputError, match="do not fit fp16; give --dtype bf16 or fp32"):
        huge = torch.full((1, 5, 16), 1e6)
        write_features(tmp_path / "b.safetensors", kind_of(made, "fp16"), huge, [0.0], duration=1.0, video="b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors"]  # no leftover


def test_shards_share_out_all_videos(clips: Path, tmp_path: Path) -> None:
    found = find_videos([clips], tmp_path)
    assert [name for _, _, name in found] == ["a.mp4", "broken.mp4", "deep/b.mp4"]
    assert found[2][1] == tmp_path / "deep" / "b.safetensors"
    shards = [found[part - 1 :: parts] for part, parts in (shard_of("1/2"), shard_of("2/2"))]
    assert sorted(shards[0] + shards[1]) == sorted(found)
    for text in ("0/2", "3/2", "1", "a/b", "1/0"):
        with pytest.raises(InputError, match="is no share"):
            shard_of(text)
    (tmp_path / "a.mkv").write_bytes((clips / "a.mp4").read_bytes())
    (tmp_path / "a.mp4").write_bytes((clips / "a.mp4").read_bytes())
    with pytest.raises(InputError, match="would both go to"):
        find_videos([tmp_path], tmp_path / "out")


def test_a_broken_video_is_told_and_the_rest_goes_on_and_is_gone_on_with(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["extract", str(clips), "--out", str(tmp_path / "f"), "--dtype", "bf16"]
    told, err = run([*words, "--dry-run"], capsys)
    assert told["videos"] == 2 and told["expected_bytes"] == 7 * 2 * 50 * 128 * 2 and "about" in err
    first, err = run([*words, "--shard", "1/2"], capsys)
    assert (first["done"], first["skipped"], first["failed"], first["frames"]) == (2, 0, 0, 14)
    assert sorted(path.name for path in (tmp_path / "f").rglob("*.*")) == ["a.safetensors", "b.safetensors"]
    again, err = run(words, capsys)
    assert (again["done"], again["skipped"], again["failed"]) == (0, 2, 1) and "failed: broken.mp4: " in err
    _, err = run([*words[:-2], "--fps", "1", "--dtype", "bf16"], capsys, code=2)
    assert "was extracted with fps 2.0, not 1.0; give another --out" in err


def test_a_download_that_was_cut_off_is_told_and_a_broken_features_file_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, out = tmp_path / "videos", tmp_path / "f"
    videos.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (SIZE, SIZE, 3), np.uint8)
    with VideoWriter(tmp_path / "whole.mp4", fps=8) as writer:
        for number in range(20 * 8):
            writer.write(np.roll(noise, number, axis=1))
    whole = (tmp_path / "whole.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    words = ["extract", str(videos), "--out", str(out)]
    result, err = run(words, capsys)
    assert (result["done"], result["failed"]) == (1, 0) and list(result["short"]) == ["cut.mp4"]
    assert "short: cut.mp4: its pictures end at" in err and "of 20.0" in err
    (videos / "cut.mp4").write_bytes(whole)
    (out / "cut.safetensors").unlink()
    assert run(words, capsys)[0]["short"] == {}
    (out / "cut.safetensors").write_bytes(b"something else")
    _, err = run(words, capsys, code=2)
    assert "cut.safetensors is broken, or no features file of ours; remove it, and extract again." in err
    assert (out / "cut.safetensors").read_bytes() == b"something else"


def test_a_run_that_is_stopped_leaves_whole_files_and_is_gone_on_with(clips: Path, tmp_path: Path) -> None:
    made = encoder()
    kind, outcome = kind_of(made), Outcome()
    jobs = [
        Job(clips / name, tmp_path / f"{i}.safetensors", name, 4.0) for i, name in enumerate(("a.mp4", "deep/b.mp4"))
    ]

    def stop(job: Job) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_all(jobs, made, kind, outcome, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"] and outcome.done == 1
    assert [is_done(job.out, kind) for job in jobs] == [True, False]
    extract_all([job for job in jobs if not is_done(job.out, kind)], made, kind, outcome, lambda job: None)
    assert outcome.done == 2 and all(is_done(job.out, kind) for job in jobs)


def test_streams_get_their_features(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = (Segment("assistant", 1.0, text="Brighter."),)
    write_streams(tmp_path / "s.jsonl", [Stream("a", told, clips / "a.mp4"), Stream("x", told, clips / "broken.mp4")])
    words = ["extract", str(tmp_path / "s.jsonl"), "--out", str(tmp_path / "f"), "--streams", str(tmp_path / "t.jsonl")]
    result, _ = run(words, capsys)
    assert (result["done"], result["failed"], result["streams_without_features"]) == (1, 1, 1)
    first, second = read_streams(tmp_path / "t.jsonl")
    assert first.features == tmp_path / "f" / "a.safetensors" and first.duration == pytest.approx(4.0, abs=0.01)
    assert second.features is None


def test_a_published_tower_is_taken_by_its_folder(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=48, patch_size=8)).save_pretrained(tmp_path / "tower")
    words = ["extract", str(clips / "a.mp4"), "--tower", str(tmp_path / "tower"), "--grid", "2x3", "--dtype", "fp32"]
    result, _ = run([*words, "--out", str(tmp_path / "f")], capsys)
    assert (result["done"], result["frames"]) == (1, 8)
    made = FrameEncoder(TransformersTower.from_pretrained(tmp_path / "tower"), (2, 3)).eval()
    images = pictures(clips / "a.mp4", range(8), 2.0, 48)
    with torch.inference_mode():
        assert torch.allclose(
            stored_vectors(tmp_path / "f" / "a.safetensors", range(8), 2.0, made), made(images), atol=1e-5
        )


def test_a_full_disk_ends_the_run_and_is_told(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10_000))
    _, err = run(["extract", str(clips), "--out", str(tmp_path / "f")], capsys, code=2)
    assert "the features will take about 179.2 kB" in err and "has 10.0 kB free; give another --out" in err


@needs_videos
def test_real_clips_are_extracted_and_damaged_ones_do_not_stop_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["bikes.mp4", "rotated_90.mov", "unordered_pts.mov", "corrupted.mp4"]
    words = ["extract", *(str(VIDEOS / name) for name in names), "--out", str(tmp_path), "--fps", "1"]
    result, _ = run(words, capsys)
    assert result["done"] + result["failed"] == 4 and result["done"] >= 3
    assert open_features(tmp_path / "bikes.safetensors").kind.fps == 1.0


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install -e '.[cluster]'")
@needs_videos
def test_ray_gives_the_same_files_but_for_rounding(
    tmp_path: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import ray

    sources = [str(VIDEOS / "bikes.mp4"), str(VIDEOS / "rotated_90.mov"), str(clips)]
    plain, _ = run(["extract", *sources, "--out", str(tmp_path / "plain"), "--dtype", "bf16"], capsys)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    try:
        spread, err = run(["extract", *sources, "--out", str(tmp_path / "ray"), "--dtype", "bf16", "--ray"], capsys)
    finally:
        ray.shutdown()
    counted = ("done", "skipped", "failed", "frames")
    assert [plain[key] for key in counted] == [spread[key] for key in counted] and "failed: broken.mp4" in err
    for path in (tmp_path / "plain").rglob("*.safetensors"):
        first, second = open_features(path), open_features(tmp_path / "ray" / path.relative_to(tmp_path / "plain"))
        assert first.kind == second.kind and first.times.tolist() == second.times.tolist()
        numbers = range(first.frames)
        ours, theirs = stored_vectors(first.path, numbers, 2.0), stored_vectors(second.path, numbers, 2.0)
        assert torch.allclose(ours, theirs, atol=2e-2, rtol=2e-2)


def test_frames_come_in_batches_and_none_is_lost(clips: Path) -> None:
    batches = list(frames_of(clips / "a.mp4", 2.0, SIZE, batch=3))
    assert [len(frames) for frames, _, _ in batches] == [3, 3, 2]
    assert [time for _, times, _ in batches for time in times] == [k / 2 for k in range(8)]
