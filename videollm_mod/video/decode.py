"""One video container, decoded from beginning to end through PyAV: sane times, damage survived and told."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import av
import numpy as np
from av.container import Flags as ContainerFlags
from av.format import Flags as FormatFlags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from videollm_mod.types import InputError
from videollm_mod.video.opening import Address, Pipe, open_container, reason
from videollm_mod.video.pixels import Turn, orientation, to_rgb
from videollm_mod.video.timing import STEP_BACK, TOLERANCE, Clock

MAX_PIXELS = 2**26  # of one picture (8192 x 8192): larger ones are decompression bombs rather than videos
SEEK_FROM = 20.0  # s; nearer starts are reached by decoding
FAILURES_IN_A_ROW = 50  # reads that fail one after another before a source is given up
UNKNOWN_RATE = 25.0  # what FFmpeg assumes where a container states none


@dataclass(frozen=True)
class Picture:
    """One decoded picture; its pixels are converted only if somebody asks."""

    time: float  # seconds since the source's first picture
    duration: float  # seconds it stays on the screen if nothing follows
    rgb: Callable[[], np.ndarray]  # -> (height, width, 3) uint8


class Decoder:
    """The pictures of one container, in order of time; memory does not grow with their number.

    Opening decodes the first picture, so a source with nothing to see fails here, with an InputError.
    """

    def __init__(self, address: Address) -> None:
        self.name, self._address = address.name, address
        self.warnings: list[str] = []
        self.frames_decoded = 0
        self._container = open_container(address)
        # PyAV has FFmpeg invent missing timestamps, wrongly for AVI with B-frames; decoding order dates those better
        self._container.flags &= ~ContainerFlags.gen_pts.value
        try:
            self._stream = self._video_stream()
            self._codec = self._make_codec()
            self._reformatter = VideoReformatter()
            self._turns: dict[int, Turn] = {}
            rate = self._stream.average_rate or self._stream.guessed_rate
            self.source_fps = float(rate) if rate and 0 < rate <= 1000 else UNKNOWN_RATE
            self.duration, self.duration_sure = self._stated_duration()
            self.live = address.live or (self.duration is None and address.protocols != "file" and address.seekable)
            self._suspected_at: float | None = None  # newest picture when the first fault was reported, seconds
            self._damage_at: float | None = None  # last picture before the first hole after that
            self._damaged = 0
            self._undecodable: av.FFmpegError | None = None
            self._broken: str | None = None
            self._clock = Clock(period=1 / self.source_fps, latest=None if self.live else self.duration)
            self._ahead: tuple[av.VideoFrame, Picture] | None = None
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is None:
                raise InputError(self._nothing_to_see())
            self._ahead = first
            self.width, self.height = self._shown_size(first[0])
        except BaseException:
            self.close()
            raise

    def pictures(self, start: float = 0.0) -> Iterator[Picture]:
        """Every picture from the one on the screen at `start` on (earlier ones may come as well). Runs once."""
        if self._ahead is not None:
            picture, self._ahead = self._ahead[1], None
            if self._address.seekable and not self.live and start - picture.time > SEEK_FROM:
                yield from self._from(start)
                return
            yield picture
        for _, picture in self._decoded:
            yield picture

    def finish(self, complete: bool, hung_up: bool) -> None:
        """Put what went wrong into `warnings`, one sentence.

        complete: the source was read to its end. hung_up: a live one ended before anybody asked it to.
        """
        seen = (self._clock.last or 0.0) + 1 / self.source_fps
        missing = 0.0
        if complete and self.duration is not None and self.duration_sure and not self.live:
            missing = self.duration - seen
        short = missing > max(0.5, 2 / self.source_fps, self._last_duration)
        if self._broken:
            self.warnings.append(f"{self.name} broke off at {seen:.1f} s: {self._broken}")
        elif self._damaged:
            end = f" and ends at {seen:.1f} of {self.duration:.1f} s" if short else ""
            where = self._damage_at if self._damage_at is not None else seen if short else self._suspected_at
            faults = (
                "one faulty packet or picture" if self._damaged == 1 else f"{self._damaged} faulty packets or pictures"
            )
            self.warnings.append(
                f"{self.name} is damaged near {where:.1f} s ({faults})"
                f"{end}: what could be decoded was used, copy the file again if you can"
            )
        elif short:
            self.warnings.append(
                f"{self.name} is damaged or cut off: it ends at {seen:.1f} s but promises {self.duration:.1f} s, "
                "copy the file again if you can"
            )
        elif hung_up:
            self.warnings.append(f"{self.name} ended after {seen:.1f} s: whoever sends it has stopped")
        elif self._clock.repaired:
            self.warnings.append(
                f"{self.name} has {self._clock.repaired} stuck or unordered timestamps: times of events may be off, "
                "rewrite it with a sound tool if they matter"
            )

    def close(self) -> None:
        """Release the file, socket or device; may be called again."""
        self._container.close()
        if isinstance(self._address.url, Pipe):
            self._address.url.close()

    # --- opening ---------------------------------------------------------------------------------------------------

    def _video_stream(self) -> Any:
        stream = self._container.streams.best("video")
        if stream is None or stream.disposition & Disposition.attached_pic:  # a cover picture is no video
            held = "only sound" if self._container.streams.audio else "not a single picture"
            raise InputError(f"{self.name} holds {held}; give a file with pictures.")
        if stream.codec_context is None:
            raise InputError(
                f"{self.name} holds video of a kind that cannot be decoded here; convert it to H.264 first."
            )
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > MAX_PIXELS:
            size = f"{stream.codec_context.width} x {stream.codec_context.height}"
            raise InputError(
                f"{self.name} has pictures of {size} pixels; scale it to at most {MAX_PIXELS} pixels first."
            )
        return stream

    def _make_codec(self) -> Any:
        """The stream's decoder; for VP8 and VP9 with transparency libvpx's, since FFmpeg's own drop the alpha plane."""
        stream = self._stream
        codec = stream.codec_context
        tags = {key.lower(): value for key, value in stream.metadata.items()}
        if tags.get("alpha_mode") == "1" and codec.name in ("vp8", "vp9"):
            with contextlib.suppress(av.FFmpegError, ValueError):  # a build without libvpx: colours without alpha
                codec = av.CodecContext.create(f"libvpx-{codec.name}" if codec.name == "vp9" else "libvpx", "r")
        codec.thread_type = "AUTO"
        codec.options = {**codec.options, "max_pixels": str(MAX_PIXELS)}
        return codec

    def _stated_duration(self) -> tuple[float | None, bool]:
        """Length in seconds, and whether the container itself states it of the pictures (else it is an estimate)."""
        stream = self._stream
        if (
            self._address.live or self._container.format.flags & FormatFlags.no_timestamps.value
        ):  # a guess from the bit rate
            return None, False
        # these write their length into a header; others' is worked out from what there is, so it promises nothing
        indexed = any(name in self._container.format.name.split(",") for name in ("mov", "matroska", "avi"))
        if stream.duration and stream.duration > 0:
            return float(stream.duration * stream.time_base), indexed
        # Matroska states when the last picture ends, not how long they last
        late = "matroska" in self._container.format.name and stream.start_time
        begin = max(0.0, float(stream.start_time * stream.time_base)) if late else 0.0
        tag = stream.metadata.get("DURATION", "")  # Matroska: "00:00:10.333000000"
        with contextlib.suppress(ValueError):
            hours, minutes, seconds = tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - begin, True
        whole = self._container.duration
        if whole and whole > 0:
            return whole / av.time_base - begin, indexed and len(self._container.streams) == 1
        return None, False

    def _shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        width = max(1, round(frame.width * self._pixel_aspect))
        return (frame.height, width) if self._turn(frame)[0] else (width, frame.height)

    def _turn(self, frame: av.VideoFrame) -> Turn:
        """The frame's orientation, looked up again only where its angle is a new one."""
        if frame.rotation not in self._turns:
            self._turns[frame.rotation] = orientation(frame)
        return self._turns[frame.rotation]

    @property
    def _pixel_aspect(self) -> float:
        ratio = self._stream.codec_context.sample_aspect_ratio
        return float(ratio) if ratio and 0.2 <= ratio <= 5 else 1.0

    def _nothing_to_see(self) -> str:
        if self._broken:
            return f"no picture came from {self.name}: {self._broken}"
        if self._damaged:
            return f"not one picture of {self.name} can be decoded ({self._undecodable}); copy it again or convert it."
        if self._address.live:
            return f"no picture came from {self.name}; check the camera and its address."
        return f"{self.name} holds not a single picture; record or convert it again."

    # --- decoding --------------------------------------------------------------------------------------------------

    _last_duration = 0.0

    def _decode(self) -> Iterator[tuple[av.VideoFrame, Picture]]:
        for frame in self._frames():
            if frame.width * frame.height > MAX_PIXELS:
                self._note_damage()
                continue
            base = float(frame.time_base or 0)
            shown = frame.dts if frame.pts is None else frame.pts
            stamp = None if shown is None or not base else shown * base
            if self._clock.last is None and self._clock.origin is None:
                self._clock.origin = self._origin(stamp)
            before, now = self._clock.last, self._clock(stamp)
            self.frames_decoded += 1
            if frame.is_corrupt:
                self._note_damage()
            self._locate_damage(before, now)
            length = (frame.duration or 0) * base
            self._last_duration = length if 0 < length <= 3600 else self._clock.period
            yield frame, Picture(now, self._last_duration, partial(self._rgb, frame))

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        try:
            return to_rgb(frame, self._reformatter, self._pixel_aspect, self._turn(frame))
        except (av.FFmpegError, ValueError) as error:
            kind = frame.format.name
            raise InputError(
                f"{self.name} has pixels of a kind that cannot be shown ({kind}); convert it to H.264 first."
            ) from error

    def _origin(self, first: float | None) -> float | None:
        """The timestamp that is time 0: the first picture's, unless more than a second before it was undecodable."""
        start = self._stream.start_time
        if first is None or start is None or self._address.live or not self._damaged:
            return first
        begin = float(start * self._stream.time_base)
        return begin if STEP_BACK < first - begin < (self.duration or 0) else first

    def _frames(self) -> Iterator[av.VideoFrame]:
        """Decode packet by packet; a faulty packet costs its own pictures only."""
        failures, quiet_since = 0, time.monotonic()
        while failures < FAILURES_IN_A_ROW:
            try:
                for packet in self._container.demux(self._stream):
                    self._raise_interrupt()
                    if packet.is_corrupt:
                        self._note_damage()
                    try:
                        frames = self._codec.decode(packet)
                    except av.EOFError:
                        return
                    except av.FFmpegError as error:
                        self._undecodable = error
                        self._note_damage()
                        continue
                    failures, quiet_since = 0, time.monotonic()
                    yield from frames
                self._raise_interrupt()
                return
            except av.BlockingIOError:  # a capture device without a new picture yet
                if time.monotonic() - quiet_since > 30:
                    self._broken = "it sent nothing for 30 s, check the device"
                    return
                time.sleep(0.005)
            except (av.InvalidDataError, av.UndefinedError) as error:
                self._undecodable = error
                self._note_damage()
                failures += 1
            except (av.FFmpegError, OSError) as error:
                self._broken = f"{reason(error)}, check the connection or the disk"
                return

    def _note_damage(self) -> None:
        self._damaged += 1
        if self._suspected_at is None:
            self._suspected_at = self._clock.last or 0.0

    def _locate_damage(self, before: float | None, now: float) -> None:
        """Decoders report a fault several pictures early or late, so its place is the first hole that follows."""
        hole = before is not None and now - before > 1.5 * self._clock.period
        if self._suspected_at is not None and self._damage_at is None and hole:
            self._damage_at = before

    def _raise_interrupt(self) -> None:
        if isinstance(self._address.url, Pipe) and self._address.url.interrupted:
            raise KeyboardInterrupt

    def _from(self, start: float) -> Iterator[Picture]:
        """Pictures from the key frame before `start` on; where seeking misses, all of them from the beginning."""
        origin = self._clock.origin or 0.0
        for target in (start, 0.0):
            offset = int((origin + target) / float(self._stream.time_base))
            try:
                self._container.seek(offset, stream=self._stream, backward=True)
            except av.FFmpegError:
                continue
            self._codec.flush_buffers()
            self._clock = Clock(origin, self._clock.period, self._clock.latest)
            self._decoded = self._decode()
            first = next(self._decoded, None)
            if first is not None and (first[1].time <= start + TOLERANCE or target == 0.0):
                yield first[1]
                for _, picture in self._decoded:
                    yield picture
                return
