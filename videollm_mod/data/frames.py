"""The frames of a stream, by their numbers: pictures of its video, or a tower's vectors, stored or computed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from videollm_mod.data.features import FeatureFile, check_fits, open_features, read_rows
from videollm_mod.data.segments import Stream, frame_count
from videollm_mod.types import InputError
from videollm_mod.video import letterbox, open_video
from videollm_mod.vision import FrameEncoder


@lru_cache(maxsize=4096)
def features_of_file(path: Path) -> FeatureFile:
    """What a features file holds; asked once."""
    return open_features(path)


def frame_total(stream: Stream, fps: float) -> int:
    """How many frames the stream's video has: as its features, its line or the video itself tells.

    Raises InputError when none of them does.
    """
    if stream.features is not None:
        file = features_of_file(stream.features)
        return int((file.frames - 1) / file.kind.fps * fps + 1e-3) + 1
    return frame_count(seconds_of(stream), fps)


def seconds_of(stream: Stream) -> float:
    """How long the stream's video is. Raises InputError when nothing tells."""
    if stream.duration is not None:
        return stream.duration
    if stream.features is not None:
        return features_of_file(stream.features).duration
    if stream.video is None:
        raise InputError(f"stream '{stream.id}' has neither video nor features; add one of them.")
    with open_video(stream.video) as source:
        if source.duration is None:
            raise InputError(f'{stream.video} does not tell how long it is; add "duration" in seconds to its line.')
        return source.duration


def pictures(video: Path, numbers: Sequence[int], fps: float, size: int) -> Tensor:
    """The frames k / fps of a video, letterboxed: (numbers, size, size, 3) uint8. `numbers` ascend.

    Where the video ends early its last picture stays. Raises InputError when it cannot be read, or shows nothing there.
    """
    start, end = numbers[0] / fps, (numbers[-1] + 0.5) / fps
    wanted, images = iter(numbers), list[Tensor]()
    due: int | None = next(wanted)
    last: Tensor | None = None
    with open_video(video, fps=fps, start=start, end=end) as source:
        for frame in source:
            while due is not None and last is not None and due / fps < frame.time - 1e-3:
                images.append(last)  # the picture before stays on the screen
                due = next(wanted, None)
            last = letterbox(frame.image[None], size)[0]
            if due is not None and abs(due / fps - frame.time) <= 1e-3:
                images.append(last)
                due = next(wanted, None)
    if last is None:
        raise InputError(f"{video} shows nothing from {start:g} s on; correct its times.")
    return torch.stack(images + [last] * (len(numbers) - len(images)))


def stored_vectors(path: Path, numbers: Sequence[int], fps: float, encoder: FrameEncoder | None = None) -> Tensor:
    """The frames k / fps of a features file: (numbers, 1 + h * w, width) float32.

    Raises InputError when it has fewer frames per second, or another shape than the `encoder` gives.
    """
    file = features_of_file(path)
    if encoder is not None:
        check_fits(file, encoder, fps)
    return read_rows(file, file.rows(numbers, fps))


@torch.inference_mode()
def vectors(stream: Stream, numbers: Sequence[int], fps: float, encoder: FrameEncoder, batch: int = 64) -> Tensor:
    """A stream's frames as an encoder gives them, (numbers, 1 + h * w, width), on its device; from its features file
    if it has one, else of its video."""
    parameter = next(encoder.parameters())
    if stream.features is not None:
        found = stored_vectors(stream.features, numbers, fps, encoder)
        return found.to(parameter.device, parameter.dtype)
    if stream.video is None:
        raise InputError(f"stream '{stream.id}' has neither video nor features; add one of them.")
    images = pictures(stream.video, numbers, fps, encoder.tower.image_size)
    return torch.cat([encoder(part.to(parameter.device)) for part in images.split(batch)])
