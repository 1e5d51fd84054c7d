"""A stream of seconds -> the conversation of frames that is trained and evaluated: dialogue segments and frame numbers.

Frame k of a video is the one at k / fps. A time t stands for frame ceil(t * fps), the first at or after it: so no reply
comes before what it tells of can be seen. A stretch from s to e shows frames ceil(s * fps) to ceil(e * fps), both of
them, as in VideoLLM-online's data (github.com/showlab/videollm-online).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import videollm_mod.dialogue as dialogue
from videollm_mod.data.segments import Segment, Stream, frame_at, frame_count
from videollm_mod.types import InputError


@dataclass(frozen=True)
class Conversation:
    """F frames of a video, and what is said between them."""

    frames: tuple[int, ...]  # their numbers, ascending; F of them
    learn: tuple[bool, ...]  # whether the decision at each is learned
    said: tuple[tuple[int, Segment], ...]  # (frames shown before it, text), in order

    def dialogue(self, system: str | None = None) -> list[dialogue.Segment]:
        """For `StreamTemplate.encode`. A system text of the stream's own goes before `system`."""
        segments: list[dialogue.Segment] = []
        shown = 0

        def show(until: int) -> None:
            nonlocal shown
            while shown < until:
                run = shown
                while run < until and self.learn[run] == self.learn[shown]:
                    run += 1
                segments.append(dialogue.Stream(run - shown, self.learn[shown]))
                shown = run

        texts = list(self.said)
        if texts and texts[0][1].kind == "system":
            system = texts.pop(0)[1].text
        if system is not None:
            segments.append(dialogue.System(system))
        for place, text in texts:
            show(place)
            if text.kind == "user":
                segments.append(dialogue.User(text.text))
            else:
                segments.append(dialogue.Assistant(text.text, text.learn))
        show(len(self.frames))
        return segments


def converse(
    stream: Stream, fps: float, *, frames: int | None = None, limit: int | None = None, join: bool = True
) -> Conversation:
    """Lay a stream out at a frame rate.

    frames: how many the video has (of a features file, say); by its `duration` if None.
    limit: shows at most so many, see `clip`.
    join: replies in a row on one frame are one reply, for a model speaks once a frame; else the last of them stays.
    Raises InputError when nobody knows how long the video is.
    """
    if frames is None and stream.duration is not None:
        frames = frame_count(stream.duration, fps)
    watched = stream.of("stream")
    if not watched and frames is None:
        raise InputError(f"stream '{stream.id}' does not say how long it is; add \"duration\" in seconds, or a stream.")
    if not watched:
        watched = [Segment("stream", start=0.0, end=math.inf)]
    numbers: list[int] = []
    learn: list[bool] = []
    last = math.inf if frames is None else frames - 1
    for stretch in watched:
        assert stretch.start is not None and stretch.end is not None
        first = max(frame_at(stretch.start, fps), numbers[-1] + 1 if numbers else 0)
        if not numbers and first > last:  # it begins behind the end: the last frame, as published
            first = int(last)
        end = last if stretch.end == math.inf else min(frame_at(stretch.end, fps), last)
        for number in range(first, int(end) + 1):
            numbers.append(number)
            learn.append(stretch.learn)
    laid = Conversation(tuple(numbers), tuple(learn), tuple(_places(stream, numbers, fps, join)))
    return laid if limit is None else clip(laid, limit)


def clip(laid: Conversation, limit: int) -> Conversation:
    """At most `limit` frames: the first ones, and what is said before the next. A question before all frames keeps
    those last ones that its answer follows instead."""
    if len(laid.frames) <= limit:
        return laid
    replies = [place for place, text in laid.said if text.kind == "assistant"]
    drop = 0
    if replies and min(replies) > limit:
        drop = min(replies) - limit
    end = drop + limit
    said = tuple((max(place - drop, 0), text) for place, text in laid.said if place <= end)
    while said and said[-1][1].kind == "user":  # its answer has gone
        said = said[:-1]
    return Conversation(laid.frames[drop:end], laid.learn[drop:end], said)


def _places(stream: Stream, numbers: list[int], fps: float, join: bool) -> list[tuple[int, Segment]]:
    """(frames shown before it, text) for each text, in order."""
    before, after = [], []
    streams = bool(stream.of("stream"))
    for segment in stream.segments:
        if segment.kind == "stream":
            streams = False
        elif segment.kind == "system" or streams:
            before.append((0, segment))
        else:
            after.append(segment)
    after.sort(key=lambda segment: segment.time or 0.0)  # stable: a question stays before its answer
    places: list[tuple[int, Segment]] = before
    shown = 0
    for segment in after:
        frame = frame_at(segment.time or 0.0, fps)
        while shown < len(numbers) and (shown == 0 or numbers[shown] <= frame):
            shown += 1
        if places and segment.kind == "assistant" and places[-1][1].kind == "assistant" and places[-1][0] == shown:
            last = places.pop()[1]
            text = f"{last.text} {segment.text}" if join else segment.text
            segment = replace(segment, text=text, learn=last.learn and segment.learn)
        places.append((shown, segment))
    return places
