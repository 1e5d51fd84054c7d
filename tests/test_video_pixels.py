"""Decoded pixels become the RGB that a person would see: matrix, range, HDR, alpha, orientation, pixel shape."""

from __future__ import annotations

import itertools
import math
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter

from videollm_mod.video import VideoWriter, open_video
from videollm_mod.video.pixels import to_rgb

COEFFICIENTS = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}  # matrix code: Kr, Kb


def yuv_frame(
    rgb: tuple[float, float, float], matrix: int, full: bool, bits: int, size: int = 16, tags: tuple[int, int] = (2, 2)
) -> av.VideoFrame:
    """A frame of one colour (R'G'B' from 0 to 1), by the formulas of BT.601, BT.709 and BT.2020."""
    kr, kb = COEFFICIENTS[matrix]
    red, green, blue = rgb
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    chroma = ((blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr))
    unit, top = 2 ** (bits - 8), 2**bits - 1
    levels = [luma * top if full else (16 + 219 * luma) * unit]
    levels += [128 * unit + c * (top if full else 224 * unit) for c in chroma]
    kind = np.uint8 if bits == 8 else np.uint16
    array = np.stack([np.full((size, size), round(level), kind) for level in levels])
    frame = av.VideoFrame(size, size, "yuv444p" if bits == 8 else "yuv444p10le")
    for plane, values in zip(frame.planes, array, strict=True):
        padded = np.zeros((plane.height, plane.line_size // values.itemsize), kind)
        padded[:, :size] = values
        plane.update(padded.tobytes())
    frame.colorspace, frame.color_range = matrix, 2 if full else 1
    frame.color_trc, frame.color_primaries = tags
    return frame


@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", COEFFICIENTS)
def test_matrix_range_and_depth_are_honoured(matrix: int, full: bool, bits: int) -> None:
    for colour in [(0, 0, 0), (1, 1, 1), (0.5, 0.5, 0.5), (0.8, 0.2, 0.1), (0.1, 0.7, 0.3), (0.2, 0.1, 0.9)]:
        image = to_rgb(yuv_frame(colour, matrix, full, bits), VideoReformatter())
        assert abs(image[8, 8] - 255 * np.array(colour)).max() <= 3


@pytest.mark.parametrize(("size", "matrix"), [(64, 6), (720, 1)])
def test_an_unstated_matrix_is_bt601_for_small_and_bt709_for_large_pictures(size: int, matrix: int) -> None:
    frame = yuv_frame((0.8, 0.2, 0.1), matrix, False, 8, size=size)
    frame.colorspace = 2
    assert abs(to_rgb(frame, VideoReformatter())[8, 8] - [204, 51, 25.5]).max() <= 3


def pq_signal(nits: float) -> float:
    y = (nits / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def hlg_signal(scene: float) -> float:
    if scene <= 1 / 12:
        return math.sqrt(3 * scene)
    return 0.17883277 * math.log(12 * scene - 0.28466892) + 0.55991073


def srgb(light: float) -> float:
    return 255 * (12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


def grey(signal: float, transfer: int) -> np.ndarray:
    frame = yuv_frame((signal,) * 3, 9, False, 10, tags=(transfer, 9))
    return to_rgb(frame, VideoReformatter())[8, 8].astype(int)


@pytest.mark.parametrize("nits", [0, 0.5, 5, 20, 50, 100, 150])
def test_hdr_below_the_knee_keeps_its_light_relative_to_reference_white(nits: float) -> None:
    hlg_scene = (nits / 1000) ** (1 / 1.2)
    for pixel in [grey(pq_signal(nits), 16), grey(hlg_signal(hlg_scene), 18)]:
        assert abs(pixel - srgb(nits / 203)).max() <= 3  # 10-bit signals are up to 2 of our levels apart here


def test_hdr_highlights_are_rolled_off_and_keep_their_order() -> None:
    levels = [grey(pq_signal(nits), 16)[0] for nits in (150, 203, 300, 600, 1500, 10000)]
    assert all(b > a for a, b in itertools.pairwise(levels))
    assert levels[1] == pytest.approx(0.955 * 255, abs=2) and levels[-1] == 255


def test_hdr_primaries_become_those_of_srgb() -> None:
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # BT.2087
    light = np.array([0.5, 0.1, 0.05])  # in BT.709 primaries, of reference white
    signal = tuple(pq_signal(203 * value) for value in to_2020 @ light)
    image = to_rgb(yuv_frame(signal, 9, False, 10, tags=(16, 9)), VideoReformatter())
    assert abs(image[8, 8] - [srgb(value) for value in light]).max() <= 3


@pytest.mark.parametrize(
    ("suffix", "codec", "pixel_format"),
    [("mov", "png", "rgba"), ("mov", "qtrle", "argb"), ("mkv", "ffv1", "yuva420p"), ("webm", "libvpx-vp9", "yuva420p")],
)
def test_transparent_pixels_lie_over_black(tmp_path: Path, suffix: str, codec: str, pixel_format: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    rgba = np.zeros((64, 96, 4), np.uint8)
    rgba[..., 0], rgba[:, :32, 3], rgba[:, 32:64, 3] = 240, 255, 128  # red: opaque, half, gone
    path = tmp_path / f"alpha.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, pixel_format
        if codec == "libvpx-vp9":
            stream.metadata["alpha_mode"] = "1"
            stream.options = {"crf": "4", "auto-alt-ref": "0"}
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(rgba, format="rgba").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, 4)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with open_video(path, fps=None) as video:
        frames = list(video)
    assert [frame.time for frame in frames] == [0, 0.25, 0.5, 0.75]
    for frame in frames:
        for column, level in [(16, 240), (48, 120), (80, 0)]:
            assert abs(frame.image[32, column].astype(int) - [level, 0, 0]).max() <= 5


# the display matrix (a, b, c, d) of a container, and the same turn in numpy
TURNS = {
    "upright": ((1, 0, 0, 1), lambda image: image),
    "90 clockwise": ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
    "180": ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
    "90 anticlockwise": ((0, -1, 1, 0), lambda image: np.rot90(image, 1)),
    "mirrored": ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda image: image[::-1]),
    "transposed": ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
    "transposed and turned": ((0, -1, -1, 0), lambda image: np.rot90(image.swapaxes(0, 1), 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_all_eight_orientations_come_upright(tmp_path: Path, turn: str) -> None:
    (a, b, c, d), as_numpy = TURNS[turn]
    image = np.zeros((48, 80, 3), np.uint8)
    image[:24, :40], image[:24, 40:], image[24:, :40] = 250, 160, 80  # four corners, four levels
    path = tmp_path / "turned.mp4"
    with VideoWriter(path, 2, crf=5) as writer:
        writer.write(image)
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44  # ISO/IEC 14496-12: version 0 track header
    content[matrix : matrix + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    expected = as_numpy(image)
    with open_video(path) as video:
        assert (video.height, video.width) == expected.shape[:2]
        frame = next(video)
    assert abs(frame.image.astype(int) - expected).mean() < 4


def test_pixels_that_are_not_square_are_widened(tmp_path: Path) -> None:
    path = tmp_path / "dvd.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 72, 58, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((58, 72, 3), 99, np.uint8))))
        container.mux(stream.encode(None))
    with open_video(path) as video:
        assert (video.width, video.height) == (105, 58)
        assert next(video).image.shape == (58, 105, 3)
