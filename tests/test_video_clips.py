"""Every real clip comes in with the size, length and frames that an independent look at its packets finds."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from videollm_mod.video import open_video

CLIPS = Path(__file__).parents[1].parent / "shared" / "data" / "videos"

# name: (width, height) upright; seconds; pictures that can be decoded; source fps
EXPECTED = {
    "bikes.mp4": ((640, 272), 10.0, 250, 25.0),
    "bottle-detection.mp4": ((640, 360), 39.854749, 1189, 29.8333),
    "bt2020_10bit.mp4": ((320, 240), 2.0, 60, 30.0),
    "corrupted.mp4": ((1280, 720), 5.0, 49, 10.0),
    "flipping_a_pancake.mkv": ((426, 240), 10.333, 310, 30.0),
    "nasa_13013.mp4": ((480, 270), 13.013, 390, 29.97003),
    "one-by-one-person-detection.mp4": ((768, 432), 139.4, 1394, 10.0),
    "rotated_90.mov": ((320, 568), 0.1, 3, 30.0),
    "testsrc2_vp9.webm": ((1280, 720), 1.0, 30, 30.0),
    "unordered_pts.mov": ((50, 50), 0.125, 4, 32.0),
}
UNSOUND_OR_LONG = ("corrupted.mp4", "one-by-one-person-detection.mp4")


def clip(name: str) -> Path:
    path = CLIPS / name
    if not path.exists():
        pytest.skip(f"{path} is not here")
    return path


def packet_times(path: Path) -> list[float]:
    """Presentation times of the largest video stream's packets, sorted, from the first on; nothing is decoded."""
    with av.open(str(path)) as container:
        stream = max(container.streams.video, key=lambda stream: stream.width)
        times = sorted(packet.pts * stream.time_base for packet in container.demux(stream) if packet.pts is not None)
    return [float(time - times[0]) for time in times]


def test_every_clip_there_is_has_its_expectations() -> None:
    assert {path.name for path in clip("bikes.mp4").parent.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_at_two_frames_per_second_each_grid_time_until_the_end_has_its_frame(name: str) -> None:
    size, seconds, _, source_fps = EXPECTED[name]
    with open_video(clip(name)) as video:
        assert (video.width, video.height) == size
        assert video.duration == pytest.approx(seconds, abs=1e-3)
        assert video.source_fps == pytest.approx(source_fps, abs=1e-3)
        assert (video.fps, video.live) == (2.0, False)
        frames = list(video)
    assert [frame.time for frame in frames] == [k / 2 for k in range(1400) if k / 2 < seconds - 1e-3]
    assert [frame.index for frame in frames] == list(range(len(frames)))
    for frame in frames:
        assert frame.image.shape == (size[1], size[0], 3) and frame.image.dtype == np.uint8
        assert frame.image.flags.c_contiguous
    assert len(video.warnings) == (name == "corrupted.mp4"), video.warnings


@pytest.mark.parametrize("name", [name for name in EXPECTED if name not in UNSOUND_OR_LONG])
def test_at_its_own_rate_every_picture_comes_at_its_own_time(name: str) -> None:
    _, _, pictures, _ = EXPECTED[name]
    with open_video(clip(name), fps=None) as video:
        times = [frame.time for frame in video]
        assert video.frames_decoded == pictures
    assert times == pytest.approx(packet_times(clip(name)), abs=1e-6)


def test_the_pictures_on_the_grid_are_those_of_their_time_in_the_whole_video() -> None:
    path = clip("flipping_a_pancake.mkv")  # times rounded to milliseconds: 0, 33, 67, ...
    times = packet_times(path)
    with open_video(path, fps=None) as video:
        everything = [frame.image for frame in video]
    with open_video(path, fps=3) as video:
        for frame in video:
            number = max(i for i, time in enumerate(times) if time <= frame.time + 0.001)
            assert np.array_equal(frame.image, everything[number])


def test_a_cut_out_part_has_the_same_frames_as_the_whole() -> None:
    path = clip("bottle-detection.mp4")
    with open_video(path) as video:
        whole = {frame.time: frame.image for frame in video}
    for start, end in [(0, 3), (7.3, 9.5), (30.2, 33.0), (39.2, None)]:  # 30.2 is reached by seeking
        with open_video(path, start=start, end=end) as video:
            part = list(video)
            decoded = video.frames_decoded
        assert [frame.time for frame in part] == [time for time in whole if start <= time < (end or 99)]
        assert [frame.index for frame in part] == list(range(len(part)))
        assert all(np.array_equal(frame.image, whole[frame.time]) for frame in part)
        assert decoded < 30 * ((end or 40) + 1)
    assert decoded < 1189, "a late start is sought, not decoded up to"


def test_a_damaged_clip_shows_what_can_be_decoded_and_then_says_so_once() -> None:
    with open_video(clip("corrupted.mp4"), fps=None) as video:
        times = [frame.time for frame in video]
        assert times[:20] == pytest.approx([k / 10 for k in range(20)])
        assert times[-1] == pytest.approx(4.9), "it goes on behind the damage"
        assert 45 <= len(times) < 50
    assert len(video.warnings) == 1
    assert "corrupted.mp4 is damaged near 2.9 s" in video.warnings[0]  # the picture of 3.0 s is missing


def test_a_rotated_clip_comes_upright() -> None:
    path = clip("rotated_90.mov")
    with av.open(str(path)) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    with open_video(path, fps=None) as video:
        upright = next(video).image
    assert np.array_equal(upright, np.rot90(stored, k=-1))  # the file asks for 90 degrees clockwise
