"""Real H.264 by PyAV: frames through the encoder and back in memory, and frames into an mp4 file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

# One thread: the same bytes on every machine, and streams are rendered in parallel by processes anyway.
_OPTIONS = {"preset": "superfast", "tune": "zerolatency", "threads": "1"}


def compress(frames: np.ndarray, crf: int) -> np.ndarray:
    """What is left of frames after H.264 at a quality: (F, S, S, 3) uint8 RGB -> the same shape and type."""
    out = np.empty_like(frames)
    for index, frame in enumerate(compressed(frames, frames.shape[1], crf)):
        out[index] = frame
    return out


def compressed(frames: Iterable[np.ndarray], size: int, crf: int) -> Iterator[np.ndarray]:
    """As `compress`, one by one: square frames (S, S, 3) of that size in, the same out, a few of them later."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = size, size, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
    encoder.options = {**_OPTIONS, "crf": str(crf)}
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    there, back = VideoReformatter(), VideoReformatter()  # kept: making a new scaler for each frame is slow
    count = done = 0

    def read(packets: Iterable[av.Packet | None]) -> Iterator[np.ndarray]:
        nonlocal done
        for packet in packets:
            for decoded in decoder.decode(packet):
                done += 1
                yield back.reformat(decoded, format="rgb24").to_ndarray()

    for frame in frames:
        picture = there.reformat(av.VideoFrame.from_ndarray(frame, format="rgb24"), format="yuv420p")
        picture.pts, count = count, count + 1
        yield from read(encoder.encode(picture))
    yield from read(encoder.encode(None))
    yield from read([None])
    assert done == count, f"H.264 gave back {done} of {count} frames"


def write_mp4(path: Path, frames: Iterable[np.ndarray], size: int, fps: float, crf: int) -> None:
    """Encode square frames (S, S, 3) uint8 RGB at a constant rate into an mp4 file, whatever the path's suffix."""
    rate = Fraction(fps).limit_denominator(1000)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "medium", "crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        reformatter = VideoReformatter()
        for i, frame in enumerate(frames):
            picture = reformatter.reformat(av.VideoFrame.from_ndarray(frame, format="rgb24"), format="yuv420p")
            picture.pts, picture.time_base = i, 1 / rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
