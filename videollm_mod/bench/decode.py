"""`bench decode`: frames per second of `open_video` on generated clips, against plain PyAV and torchcodec.

Two tasks per clip: `every`, each frame as RGB at the clip's own rate; `sampled`, what a model asks for, two frames per
second. The readers, in turn:

    ours        open_video
    pyav        a loop over container.decode(video=0), each wanted frame converted by to_ndarray("rgb24")
    pyav_auto   the same with thread_type "AUTO", which PyAV leaves off
    torchcodec  VideoDecoder: next frame by next frame, or get_frames_played_at
    decoding    PyAV (AUTO) that converts nothing: no reader that decodes here can be faster

Clips are moving gradients with a patch of noise, made afresh by the encoders inside PyAV; nothing is read from outside.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np

from videollm_mod.bench.fronts import BenchDecode
from videollm_mod.bench.measure import environment, progress, time_in_turn
from videollm_mod.types import InputError
from videollm_mod.video import open_video

# codec -> FFmpeg's encoder, container, options that keep encoding short
ENCODERS: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264": ("libx264", "mp4", {"preset": "fast", "crf": "23"}),
    "hevc": ("libx265", "mp4", {"preset": "superfast", "crf": "26", "x265-params": "log-level=error"}),
    "vp8": ("libvpx", "webm", {"deadline": "realtime", "cpu-used": "6", "b": "2M"}),
    "vp9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "7", "crf": "32", "b": "0"}),
    "av1": ("libsvtav1", "mp4", {"preset": "10", "crf": "35"}),
    "mpeg4": ("mpeg4", "mp4", {"qscale": "4"}),
    "mjpeg": ("mjpeg", "avi", {"qscale": "4"}),
}
KEY_FRAMES = 2  # seconds between key frames, as cameras and cutters set it


def measure(config: BenchDecode) -> dict[str, Any]:
    """{"decode": {codec: {size: {task: {"frames_per_second", "speedup_over_pyav", ...}}}}}"""
    sizes = [parse_size(size) for size in config.sizes]
    for codec in config.codecs:
        if codec not in ENCODERS:
            raise InputError(f"--codecs '{codec}' is unknown; take some of {', '.join(ENCODERS)}.")
    found: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    torchcodec, why = load_torchcodec()
    if torchcodec is None:
        left_out["torchcodec"] = why
        progress(f"torchcodec is left out: {why}")
    with tempfile.TemporaryDirectory(prefix="bench_decode_") as folder:
        for codec in config.codecs:
            found[codec] = {}
            for width, height in sizes:
                size = f"{width}x{height}"
                try:
                    clip = make_clip(Path(folder), codec, width, height, config.seconds, config.rate)
                except (av.FFmpegError, ValueError) as error:  # this PyAV has no such encoder
                    left_out[f"{codec} {size}"] = f"cannot be made here: {error}"
                    progress(f"{codec} {size}: {left_out[f'{codec} {size}']}")
                    continue
                found[codec][size] = measure_clip(config, clip, torchcodec)
                clip.unlink()
    setup = {name: value for name, value in asdict(config).items() if name not in ("out", "quick")}
    return {"decode": found, "left_out": left_out, "setup": setup, "pyav": av.__version__, **environment()}


def parse_size(word: str) -> tuple[int, int]:
    """ "640x360" -> (640, 360). Raises InputError for anything else, odd numbers, and what is larger than 8K."""
    width, cross, height = word.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()):
        raise InputError(f"--sizes '{word}' is not WIDTHxHEIGHT; write for example 1280x720.")
    size = int(width), int(height)
    if any(side % 2 or not 16 <= side <= 8192 for side in size):
        raise InputError(f"--sizes {word} is out of range; give even numbers from 16 to 8192.")
    return size


def make_clip(folder: Path, codec: str, width: int, height: int, seconds: float, rate: int) -> Path:
    """A clip of so many seconds; raises ValueError or an av.FFmpegError where the encoder is missing or refuses."""
    encoder, container, options = ENCODERS[codec]
    os.environ.setdefault("SVT_LOG", "1")  # or its encoder tells its whole configuration, to stderr
    path = folder / f"{codec}_{width}x{height}.{container}"
    rng = np.random.default_rng(0)
    columns = np.linspace(0, 255, width, dtype=np.float32)[None, :, None]
    lines = np.linspace(0, 255, height, dtype=np.float32)[:, None, None]
    colours = np.array([1.0, 0.6, 0.3], np.float32)
    noise = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(encoder, rate=rate, options=options)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = KEY_FRAMES * rate
        stream.codec_context.time_base = Fraction(1, rate)
        for number in range(max(round(seconds * rate), 1)):
            image = ((columns + lines + 7 * number) % 256 * colours).astype(np.uint8)  # (height, width, 3)
            left = (5 * number) % (width - width // 4)
            image[height // 3 : height // 3 + height // 4, left : left + width // 4] = noise
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def measure_clip(config: BenchDecode, clip: Path, torchcodec: Any) -> dict[str, Any]:
    """Both tasks on one clip: frames that each reader gives per second of its time, and of what the clip holds."""
    told: dict[str, Any] = {}
    for task, fps in (("every", None), ("sampled", config.fps)):
        every = max(round(config.rate / config.fps), 1) if fps else 1
        readers: dict[str, Callable[[], int]] = {
            "ours": partial(read_ours, clip, fps),
            "pyav": partial(read_pyav, clip, every, "SLICE", config.threads),
            "pyav_auto": partial(read_pyav, clip, every, "AUTO", config.threads),
            "decoding": partial(read_pyav, clip, 0, "AUTO", config.threads),
        }
        if torchcodec is not None:
            readers["torchcodec"] = partial(read_torchcodec, torchcodec, clip, fps, config.threads)
        given = {name: read() for name, read in readers.items()}  # which also warms up
        frames = given["decoding"]
        if abs(given["ours"] - given["pyav"]) > 1:  # the last grid time may lie in the last picture's own time
            raise RuntimeError(f"{clip.name}: ours gives {given['ours']} frames, PyAV {given['pyav']}")
        timing = time_in_turn(readers, config.repeats, warmup=0)
        rate = {name: 1e3 * frames / timing[name].wall_ms for name in readers}  # frames of the clip, decoded or not
        told[task] = {
            "frames_per_second": rate,
            "cpu_ms_per_frame": {name: timing[name].cpu_ms / frames for name in readers},
            "speedup_over_pyav": rate["ours"] / rate["pyav"],
            "speedup_over_pyav_auto": rate["ours"] / rate["pyav_auto"],
            "of_decoding_alone": rate["ours"] / rate["decoding"],
            "frames_given": given,
        }
        if torchcodec is not None:
            told[task]["speedup_over_torchcodec"] = rate["ours"] / rate["torchcodec"]
        speeds = ", ".join(f"{name} {speed:.0f}" for name, speed in rate.items())
        speedup = told[task]["speedup_over_pyav"]
        progress(f"{clip.stem} {task}: {speeds} frames per second; ours {speedup:.2f} times as fast as PyAV")
    return told


def read_ours(clip: Path, fps: float | None) -> int:
    """How many frames our reader gives."""
    with open_video(clip, fps=fps) as video:
        return sum(1 for _ in video)


def read_pyav(clip: Path, every: int, threads: str, count: int) -> int:
    """Decode from beginning to end, converting each `every`-th frame to RGB; 0 converts none, and counts all."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        stream.thread_type = threads
        if count:
            stream.codec_context.thread_count = count
        given = 0
        for number, frame in enumerate(container.decode(stream)):
            if not every:
                given += 1
            elif number % every == 0:
                frame.to_ndarray(format="rgb24")
                given += 1
    return given


def load_torchcodec() -> tuple[Any, str]:
    """torchcodec's VideoDecoder and "", or None and why: it needs FFmpeg's libraries, of versions that fit."""
    try:
        from torchcodec.decoders import VideoDecoder
    except Exception as error:  # a library that does not load raises what it likes
        return None, f"{type(error).__name__}: {error}".splitlines()[0]
    return VideoDecoder, ""


def read_torchcodec(decoder: Any, clip: Path, fps: float | None, threads: int) -> int:
    """The same frames from torchcodec, which counts them beforehand."""
    video = decoder(str(clip), num_ffmpeg_threads=threads)
    if fps is None:
        return sum(1 for _ in video)
    end = float(video.metadata.end_stream_seconds)
    times = [k / fps for k in range(int(end * fps) + 1) if k / fps < end]
    return len(video.get_frames_played_at(seconds=times))
