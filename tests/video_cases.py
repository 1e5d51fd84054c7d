"""Small videos of every kind for the tests, written on the spot with PyAV: picture n is grey of level 8 n."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LEVEL = 8
TENTHS = [k / 10 for k in range(30)]  # 3 s at 10 frames per second


def write_video(
    path: Path,
    times: Sequence[float],
    codec: str = "libx264",
    size: tuple[int, int] = (48, 64),
    sound: float = 0.0,
    **options: str,
) -> Path:
    """One grey picture of `size` (height, width) per time in seconds; `sound`: seconds of silence beside them."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        base = Fraction(1, 10 if path.suffix == ".avi" else 1000)  # AVI takes the time base for its frame rate
        stream.codec_context.time_base = base
        stream.options = {"g": "5", "crf": "10"} if codec == "libx264" else {}
        stream.options |= options
        silence = container.add_stream("aac", rate=8000) if sound else None
        stream.codec_context.open()
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), LEVEL * number % 256, np.uint8))
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if silence is not None:
            _write_silence(container, silence, sound)
    return path


def write_sound(path: Path, codec: str) -> Path:
    """Half a second of silence and no picture."""
    with av.open(str(path), "w") as container:
        _write_silence(container, container.add_stream(codec, rate=8000), 0.5)
    return path


def _write_silence(container: av.container.OutputContainer, stream: av.AudioStream, seconds: float) -> None:
    for number in range(int(seconds * 8)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 8000, 1000 * number
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_empty(path: Path) -> Path:
    """A video stream with all its headers and not one picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return path


def numbers(frames: Sequence[object]) -> list[int]:
    """Which pictures of `write_video` these frames show."""
    return [round(float(frame.image.mean()) / LEVEL) for frame in frames]  # type: ignore[attr-defined]


class Handler(http.server.SimpleHTTPRequestHandler):
    """Python's own file server, silent."""

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; gives the address."""
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
