"""Sources of every kind come in as frames in time: odd timing, folders, pipes, addresses; memory stays flat."""

from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from rtsp_camera import RtspCamera
from video_cases import TENTHS, numbers, serving, write_video

from videollm_mod.types import InputError
from videollm_mod.video import VideoWriter, open_video


def test_a_variable_frame_rate_is_sampled_by_presentation_time(tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.3, 1.4, 1.5, 3.2, 3.3, 3.35, 3.4]
    for path in [tmp_path / "vfr.mkv", tmp_path / "vfr.mp4"]:
        write_video(path, times, bf="0")
        with open_video(path, fps=2) as video:
            frames = list(video)
        assert [frame.time for frame in frames] == [0, 0.5, 1, 1.5, 2, 2.5, 3]
        assert numbers(frames) == [0, 3, 3, 5, 5, 5, 5]
        frames[4].image[:] = 255
        assert numbers(frames[5:]) == [5, 5], "drawing on one frame leaves its repetition alone"


def test_reordered_pictures_and_times_that_do_not_start_at_zero_come_in_order_from_zero(tmp_path: Path) -> None:
    for name, first in [("b.mp4", 0.0), ("b.mkv", 7.0), ("b.ts", 7.0), ("b.avi", 0.0), ("b.flv", 0.0)]:
        path = write_video(tmp_path / name, [first + time for time in TENTHS], bf="3")
        with open_video(path, fps=None) as video:
            frames = list(video)
            assert video.warnings == []
        assert numbers(frames) == list(range(30))
        assert [frame.time for frame in frames] == pytest.approx(TENTHS, abs=1e-3)


def test_a_stream_without_timestamps_advances_at_its_nominal_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", [k / 10 for k in range(20)], bf="0")
    with open_video(path, fps=None) as video:
        frames = list(video)
    assert numbers(frames) == list(range(20))
    steps = np.diff([frame.time for frame in frames])
    assert steps == pytest.approx(1 / video.source_fps)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "flv", "mov"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_file_of_one_or_two_pictures_is_a_video(tmp_path: Path, suffix: str, count: int) -> None:
    path = write_video(tmp_path / f"short.{suffix}", TENTHS[:count])
    with open_video(path) as video:
        frames = list(video)
        assert video.warnings == []
    assert numbers(frames) == [0]
    assert (frames[0].time, frames[0].index) == (0, 0)


def test_sizes_may_be_odd(tmp_path: Path) -> None:
    path = write_video(tmp_path / "odd.mkv", TENTHS[:3], "ffv1", size=(51, 37))
    with open_video(path) as video:
        assert (video.height, video.width) == (51, 37)
        assert next(video).image.shape == (51, 37, 3)


def test_interlaced_video_comes_woven(tmp_path: Path) -> None:
    path = write_video(tmp_path / "tv.ts", TENTHS, size=(64, 96), flags="+ildct+ilme")
    with open_video(path, fps=None) as video:
        assert numbers(list(video)) == list(range(30))


def test_sound_beside_the_pictures_is_ignored_and_longer_sound_is_no_damage(tmp_path: Path) -> None:
    for name in ("sound.mp4", "sound.mkv"):
        path = write_video(tmp_path / name, TENTHS[:10], sound=5.0)
        with open_video(path, fps=None) as video:
            assert numbers(list(video)) == list(range(10))
            assert video.warnings == []


def test_a_rate_above_the_sources_is_the_sources_with_a_warning(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", TENTHS)
    with open_video(path, fps=60) as video:
        assert video.fps == video.source_fps == 10
        assert len(video.warnings) == 1 and "10 frames per second" in video.warnings[0]
        assert numbers(list(video)) == list(range(30))
    with open_video(path, fps=10) as video:
        assert video.warnings == []


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_file_cut_off_shows_what_is_there_and_then_says_so_once(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    if suffix == "mp4":  # with the index in front, as VideoWriter puts it
        noise = np.random.default_rng(0)
        with VideoWriter(path, 10) as writer:
            for _ in TENTHS:
                writer.write(noise.integers(0, 256, (64, 64, 3), np.uint8))
    else:
        write_video(path, TENTHS)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * 0.7)])
    with open_video(path, fps=None) as video:
        times = [frame.time for frame in video]
    assert 3 <= len(times) < 30
    assert times == pytest.approx(TENTHS[: len(times)], abs=1e-3)
    assert len(video.warnings) == 1
    assert path.name in video.warnings[0] and ("cut off" in video.warnings[0] or "damaged" in video.warnings[0])


@pytest.mark.parametrize(("suffix", "codec"), [("mkv", "ffv1"), ("ts", "libx264"), ("mp4", "libx264")])
def test_bytes_overwritten_in_the_middle_cost_what_they_held_and_are_told_once(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path = write_video(tmp_path / f"hurt.{suffix}", TENTHS, codec, size=(120, 160))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    path.write_bytes(content)
    with open_video(path, fps=None) as video:
        times = [frame.time for frame in video]
    assert 10 <= len(times) < 30
    assert set(np.round(times, 6)) <= set(TENTHS), "no picture has moved"
    assert len(video.warnings) == 1 and f"hurt.{suffix} is damaged near 1." in video.warnings[0]


def test_files_are_files_whatever_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = write_video(tmp_path / "clip.mkv", TENTHS[:5]).read_bytes()
    for name in ["a:b.mkv", "http:x.mkv", "file:x.mkv", "concat:a|b.mkv", "img%03d.mkv", "ü ñ'\".mkv", "-x", "data:,x"]:
        Path(name).write_bytes(content)
        for source in (name, Path(name)):
            with open_video(source) as video:
                assert len(list(video)) == 1


# --- folders of images -------------------------------------------------------------------------------------------


def save(path: Path, level: int, **options: object) -> None:
    Image.new("RGB", (20, 10), (level,) * 3).save(path, **options)


def test_a_folder_is_a_video_in_natural_order_by_content(tmp_path: Path) -> None:
    save(tmp_path / "shot10.png", 80)
    save(tmp_path / "shot2.jpg", 16, quality=100)
    save(tmp_path / "Shot1.webp", 8, lossless=True)
    save(tmp_path / "shot9", 72, format="BMP")  # no suffix: recognised by content
    (tmp_path / "shot3.png").write_text("no image at all")
    (tmp_path / ".hidden.png").write_bytes((tmp_path / "shot10.png").read_bytes())
    (tmp_path / "folder").mkdir()
    with open_video(tmp_path) as video:
        assert (video.fps, video.duration, video.width, video.height) == (2, 2, 20, 10)
        frames = list(video)
        (warning,) = video.warnings
    assert "shot3.png" in warning, "what is named like an image and is none is told"
    assert numbers(frames) == [1, 2, 9, 10]
    assert [frame.time for frame in frames] == [0, 0.5, 1, 1.5]
    with open_video(str(tmp_path), fps=4, start=0.25, end=0.75) as video:
        frames = list(video)
    assert numbers(frames) == [2, 9]
    assert [(frame.time, frame.index) for frame in frames] == [(0.25, 0), (0.5, 1)]


def test_a_broken_image_is_left_out_its_time_passes_and_a_warning_names_it(tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / f"{number}.png", 8 * number)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:40])
    with open_video(tmp_path) as video:
        frames = list(video)
    assert [frame.time for frame in frames] == [0, 1]
    assert len(video.warnings) == 1 and "1.png" in video.warnings[0]


def test_images_come_upright_over_black_and_in_eight_bits(tmp_path: Path) -> None:
    turned = Image.fromarray(np.repeat(np.arange(0, 200, 10, np.uint8)[None, :, None], 8, 0).repeat(3, 2))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned 90 degrees clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    Image.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "b.png")
    Image.fromarray(np.full((8, 8), 0x8040, np.uint16)).save(tmp_path / "c.png")
    Image.new("CMYK", (8, 8), (0, 0, 0, 0)).save(tmp_path / "d.jpg")
    with open_video(tmp_path) as video:
        turned_frame, alpha, deep, cmyk = (frame.image for frame in video)
    assert turned_frame.shape == (20, 8, 3)
    assert turned_frame[:, 0, 0].tolist() == list(range(0, 200, 10))
    assert alpha[0, 0].tolist() == [100, 50, 25]
    assert deep[0, 0].tolist() == [128, 128, 128]
    assert cmyk.min() >= 254


def test_a_single_image_is_a_video_of_one_frame(tmp_path: Path) -> None:
    save(tmp_path / "still.png", 40)
    with open_video(tmp_path / "still.png") as video:
        assert numbers(list(video)) == [5]


# --- pipes and addresses -----------------------------------------------------------------------------------------


def test_a_video_piped_into_standard_input_is_read_as_it_comes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", TENTHS)
    code = "import videollm_mod.video as v; print([frame.time for frame in v.open_video('-', fps=2)])"
    with path.open("rb") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdin=file, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=60,
        )  # fmt: skip
    assert done.stdout.strip() == "[0.0, 0.5, 1.0, 1.5, 2.0, 2.5]", done.stderr


def test_a_named_pipe_works_and_frames_come_before_its_end(tmp_path: Path) -> None:
    content = write_video(tmp_path / "clip.ts", [k / 10 for k in range(200)], size=(240, 320)).read_bytes()
    pipe, seen = tmp_path / "pipe", threading.Event()
    os.mkfifo(pipe)

    def feed() -> None:
        with pipe.open("wb") as file:
            file.write(content[: len(content) * 3 // 4])
            file.flush()
            assert seen.wait(20), "no frame came before the end of the stream"
            file.write(content[len(content) * 3 // 4 :])

    thread = threading.Thread(target=feed)
    thread.start()
    with open_video(pipe, fps=1) as video:
        frames = [next(video)]
        seen.set()
        frames += video
    thread.join()
    assert [frame.time for frame in frames] == list(range(20))


def test_ctrl_c_while_waiting_for_a_pipe_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO(write_video(tmp_path / "clip.ts", TENTHS).read_bytes()[:-2000])

    class Interrupted(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:
            got = content.readinto(buffer)
            if not got:
                raise KeyboardInterrupt
            return got

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Interrupted())))
    with pytest.raises(KeyboardInterrupt), open_video("-", fps=None) as video:
        for _ in video:
            pass


def test_a_video_comes_over_http_also_as_a_playlist(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.mkv", TENTHS)
    write_video(tmp_path / "part.ts", TENTHS)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3.0,\npart.ts\n#EXT-X-ENDLIST\n")
    for name in ("clip.mkv", "list.m3u8"):
        with serving(tmp_path) as server, open_video(f"{server}/{name}") as video:
            assert video.name == f"{server}/{name}"
            assert [frame.time for frame in video] == [0, 0.5, 1, 1.5, 2, 2.5]
            assert video.warnings == []


# --- life cycle --------------------------------------------------------------------------------------------------


def test_closing_twice_is_fine_and_no_frame_comes_afterwards(tmp_path: Path) -> None:
    video = open_video(write_video(tmp_path / "clip.mp4", TENTHS))
    next(video)
    video.close()
    video.close()
    assert list(video) == []
    assert video.warnings == []


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc to read the memory in use")
@pytest.mark.parametrize("fps", [None, 5])
def test_memory_does_not_grow_with_length(tmp_path: Path, fps: float | None) -> None:
    path = write_video(tmp_path / "long.mp4", [k / 10 for k in range(200)], size=(240, 640), preset="ultrafast")
    in_use = []
    gc.collect()
    gc.disable()  # what only the garbage collector would find would grow with the pictures' size
    try:
        with open_video(path, fps=fps) as video:
            for frame in video:
                if frame.time in (5, 15):
                    in_use.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
                    alive = sum(type(thing) is av.VideoFrame for thing in gc.get_objects())
                    assert alive <= 8, "decoded pictures are let go"
    finally:
        gc.enable()
    assert in_use[1] - in_use[0] < 20 * 240 * 640 * 3, "of the 50 or 100 pictures in between"


def test_frames_that_are_skipped_are_never_converted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", TENTHS)
    with open_video(path, fps=1, end=2) as video:
        assert len(list(video)) == 2
        assert video.frames_decoded <= 25, "nothing much beyond the end is decoded"


# --- a camera on the network ---------------------------------------------------------------------------------------


def test_an_rtsp_camera_is_watched_as_it_sends_and_told_when_it_hangs_up() -> None:
    with RtspCamera(seconds=2.5) as camera:
        secret = camera.address.replace("//", "//guard:sesame@")
        with open_video(secret, fps=2) as video:
            assert video.live and video.duration is None and (video.width, video.height) == (64, 64)
            frames = list(video)
    assert [frame.time for frame in frames] == [0.0, 0.5, 1.0, 1.5, 2.0]
    grey = [frame.image.mean() for frame in frames]
    assert grey == pytest.approx([40, 40, 80, 80, 120], abs=2)
    (warning,) = video.warnings
    assert "ended after 2.5 s" in warning and "guard:***@" in warning and "sesame" not in warning


def test_an_rtsp_camera_is_left_at_the_end_that_was_asked_for() -> None:
    with RtspCamera(seconds=60) as camera:
        with open_video(camera.address, fps=2, end=1.0) as video:
            assert [frame.time for frame in video] == [0.0, 0.5]
        assert not video.warnings
        assert camera.sent < 40


def test_a_camera_that_hangs_up_before_its_first_picture_is_one_sentence() -> None:
    with RtspCamera(seconds=0) as camera:
        with pytest.raises(InputError, match=r"no picture came from rtsp.*; check the camera and its address"):
            open_video(camera.address)


def test_nobody_behind_an_rtsp_address_is_one_sentence() -> None:
    with RtspCamera(seconds=1) as camera:
        address = camera.address
    with pytest.raises(InputError, match=r"cannot be opened .*check the address and the network"):
        open_video(address)
