"""A streaming model under lmms-eval: a document's videos and images are streamed, then its question is asked.

    lmms-eval --model videollm_mod --model_args model=tiny --tasks TASK --batch_size 1

Runs inside lmms-eval only, which this file imports.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from rich.console import Console
from rich.progress import Progress

from videollm_mod.depth.plan import parse_layers
from videollm_mod.flags import reduced_by, stored_as
from videollm_mod.model import load
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame, InputError
from videollm_mod.video import open_video

TOKENS = 128  # of an answer at most, where a task does not say


class StreamingLmms(lmms):  # type: ignore[misc]
    """One session for each document. `model`: "tiny", a folder or a hub id.

    fps: frames per second that are watched; the model's own if None. frames: of a video at most, the newest ones.
    quiet: it says nothing before it is asked, as tasks for offline models expect; else it narrates as it likes, and
    what it said stays in its context.
    """

    is_simple = False

    def __init__(
        self,
        model: str = "tiny",
        pretrained: str | None = None,
        fps: float | None = None,
        frames: int | None = None,
        threshold: float | None = None,
        keep: float | None = None,
        plan: str | None = None,
        dtype: str = "float32",
        kv: str | None = None,
        reduction: str | None = None,
        quiet: bool = True,
        batch_size: int | str = 1,
        device: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        if others:
            raise InputError(f"--model_args has an unknown entry '{min(others)}'; see docs/lmms_eval.md.")
        if str(batch_size) != "1":
            raise InputError(f"--batch_size {batch_size} is not possible; a stream is watched by itself, give 1.")
        layers = parse_layers(str(plan)) if plan is not None else None
        wishes = stored_as(dtype, kv) | reduced_by(reduction)
        self._model = load(pretrained or model, plan=layers, keep=keep, threshold=threshold, **wishes)
        if device is not None:
            self._model.to(device)
        self._model.eval()
        self.fps = float(fps) if fps is not None else self._model.settings.fps
        self.frames = frames
        self.quiet = quiet
        self.batch_size = 1

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answer to each request."""
        answers = []
        with Progress(console=Console(stderr=True), transient=True) as progress:
            for request in progress.track(requests, description="videollm_mod"):
                _, messages_of, how, number, task, split = request.args
                answers.append(self.answer(messages_of(self.task_dict[task][split][number]), how))
        return answers

    def answer(self, messages: Iterable[Any], how: dict[str, Any]) -> str:
        """Watch what the messages show, in their order, and answer what they ask."""
        settings = dataclasses.replace(self._model.settings, max_reply_tokens=int(how.get("max_new_tokens") or TOKENS))
        told = [message for message in messages if _role(message) == "system"]
        system = " ".join(text for message in told for text in _texts(message)) or None
        session = StreamSession(self._model, threshold=0.0 if self.quiet else None, system=system)
        session.settings = settings
        asked: list[str] = []
        count, clock = 0, 0.0
        for message in messages:
            if _role(message) == "system":
                continue
            for content in message["content"]:
                kind = content["type"]
                if kind == "text":
                    asked.append(str(content["text"]).strip())
                    continue
                for image, time in self._pictures(kind, content):
                    session.push(Frame(image, clock + time, count))
                    count += 1
                if count:
                    clock = session.state().time + 1 / self.fps  # what comes next is a frame later
        if not count:
            raise InputError("a document has neither video nor image, and a stream needs one; take another task.")
        text = session.ask("\n".join(filter(None, asked)) or "What happens?").text
        until = how.get("until") or ()
        for end in (until,) if isinstance(until, str) else until:
            text = text.split(end)[0] if end else text
        return text.strip()

    def _pictures(self, kind: str, content: dict[str, Any]) -> Iterable[tuple[np.ndarray, float]]:
        """(picture (height, width, 3) uint8, seconds from its own beginning) of a video or an image."""
        value = content["url"]
        if kind == "image":
            return [(_array(value), 0.0)]
        if kind != "video":
            raise InputError(f"a document has {kind}, which this model cannot perceive; take another task.")
        if isinstance(value, str | Path):
            start, end = content.get("start_time"), content.get("end_time")
            with open_video(str(value), fps=self.fps, start=float(start or 0.0), end=end) as source:
                found = [(frame.image, frame.time) for frame in source]
        else:  # pictures that a task has decoded itself
            found = [(_array(picture), place / self.fps) for place, picture in enumerate(value)]
        found = found[-self.frames :] if self.frames else found
        return [(image, time - found[0][1]) for image, time in found]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError("videollm_mod answers; it does not score continuations: take a generate_until task.")

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("videollm_mod answers once; multi-round tasks are not supported.")


def _role(message: dict[str, Any]) -> str:
    return str(message["role"])


def _texts(message: dict[str, Any]) -> list[str]:
    return [str(content["text"]).strip() for content in message["content"] if content["type"] == "text"]


def _array(picture: Any) -> np.ndarray:
    """Of a PIL image, an array or a path: (height, width, 3) uint8."""
    if isinstance(picture, str | Path):
        from PIL import Image

        picture = Image.open(picture)
    if hasattr(picture, "convert"):
        picture = picture.convert("RGB")
    return np.ascontiguousarray(np.asarray(picture, dtype=np.uint8))
