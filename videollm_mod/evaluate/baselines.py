"""What a model has to beat: three ways to narrate the world without one, judged like a model.

`silent` never says anything. `chance` speaks as often as the training split does, and says what is said there.
`difference` compares each frame with the one before and fills a template: it knows that something changed, where, and
its colour, and guesses the shape.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from videollm_mod.evaluate.metrics import Said, match, precision_recall_f1
from videollm_mod.evaluate.self_conditioned import SelfConditioned
from videollm_mod.evaluate.summary import true_narration
from videollm_mod.types import StreamEvent
from videollm_mod.world import COLOURS, Look, WorldConfig, WorldStream, make_stream
from videollm_mod.world.draw import RGB
from videollm_mod.world.words import NOTHING, narration

TRAINING_STREAMS = 200  # of the training split, from which `chance` learns what is said and how often
CALIBRATION_STREAMS = 16  # of the validation split, on which `difference` chooses its threshold
THRESHOLDS = (6.0, 8.0, 10.0, 14.0, 18.0, 24.0, 32.0)  # of the change of a cell's mean colour, 8-bit levels
CELLS = 14  # per side, of the grid on which frames are compared
LARGE = 12  # cells that a large thing covers, at least

Baseline = Callable[[WorldStream], SelfConditioned]


def silent(stream: WorldStream) -> SelfConditioned:
    """Never speaks, and answers nothing."""
    return _result(stream, [], ["" for _ in stream.questions])


def chance(stream: WorldStream) -> SelfConditioned:
    """Says random sentences of training at random frames, and gives a random answer of training to such a question."""
    prior, rng = _prior(stream.config), random.Random(f"{stream.name}/chance")
    said = [Said(time, rng.choice(prior.sentences)) for time in stream.times.tolist() if rng.random() < prior.per_frame]
    return _result(stream, said, [rng.choice(prior.answers[question.kind]) for question in stream.questions])


def difference(stream: WorldStream) -> SelfConditioned:
    """Says what a comparison of neighbouring frames tells; answers with the answer that training gives most often."""
    prior = _prior(stream.config)
    said = tell_differences(stream.frames(), stream.config.fps, _threshold(stream.config))
    usual = {kind: Counter(answers).most_common(1)[0][0] for kind, answers in prior.answers.items()}
    return _result(stream, said, [usual.get(question.kind, NOTHING) for question in stream.questions])


BASELINES: dict[str, Baseline] = {"silent": silent, "chance": chance, "difference": difference}


# -- what training says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prior:
    """What is said in training, without a look at the pictures."""

    per_frame: float  # probability that a frame is narrated
    sentences: tuple[str, ...]  # as often as they occur
    answers: dict[str, tuple[str, ...]]  # kind of question -> the same


@lru_cache(maxsize=8)
def _prior(config: WorldConfig) -> Prior:
    streams = [make_stream("train", number, config) for number in range(TRAINING_STREAMS)]
    sentences = tuple(event.text for stream in streams for event in stream.events)
    answers: dict[str, list[str]] = {}
    for stream in streams:
        for question in stream.questions:
            answers.setdefault(question.kind, []).append(question.answer)
    frames = sum(len(stream.times) for stream in streams)
    return Prior(len(sentences) / frames, sentences, {kind: tuple(texts) for kind, texts in answers.items()})


@lru_cache(maxsize=8)
def _threshold(config: WorldConfig) -> float:
    """The one at which `difference` finds events best on the validation split, whatever it says of them."""
    streams = [make_stream("validation", number, config) for number in range(CALIBRATION_STREAMS)]
    films = [stream.frames() for stream in streams]

    def timing_f1(threshold: float) -> float:
        found = said_count = true_count = 0
        for stream, film in zip(streams, films):
            said, true = tell_differences(film, config.fps, threshold), true_narration(stream)
            found += len(match(said, true, by_text=False))
            said_count, true_count = said_count + len(said), true_count + len(true)
        return precision_recall_f1(found, said_count, true_count)[2]

    return max(THRESHOLDS, key=timing_f1)


# -- what pixels say ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Change:
    """What is different between a frame and the one before."""

    cells: np.ndarray  # (CELLS, CELLS) bool: the changed ones
    before: np.ndarray  # (3,) mean colour of the most colourful changed cell one frame ago
    after: np.ndarray  # (3,) and of the most colourful one now

    @property
    def side(self) -> str | None:
        """The edge of the picture that the change touches."""
        edges = {
            "left": self.cells[:, 0],
            "right": self.cells[:, -1],
            "top": self.cells[0],
            "bottom": self.cells[-1],
        }
        touched = {side: int(cells.sum()) for side, cells in edges.items()}
        return max(touched, key=lambda side: touched[side]) if any(touched.values()) else None


def tell_differences(frames: np.ndarray, fps: float, threshold: float) -> list[Said]:
    """Sentences about (F, S, S, 3) uint8 pictures. Frames that change stand in runs; a run has a start and an end."""
    changes = [None, *(_change(a, b, threshold) for a, b in zip(_cells(frames), _cells(frames)[1:]))]
    said: list[Said] = []
    start = 0
    for frame in range(1, len(changes) + 1):
        change = changes[frame] if frame < len(changes) else None
        if change is not None and changes[frame - 1] is None:
            start = frame
        if change is None and changes[frame - 1] is not None:
            run = [item for item in changes[start:frame] if item is not None]
            said += [Said(number / fps, text) for number, text in _tell(run, start) if number < len(frames)]
    return said


def _tell(run: Sequence[Change], start: int) -> list[tuple[int, str]]:
    """(frame, sentence) of a run of changed frames that begins at frame `start`."""
    first, last, end = run[0], run[-1], start + len(run)
    if len(run) == 1:
        if first.cells.mean() > 0.5:
            return [(start, narration("cut"))]
        was, now = _colourful(first.before), _colourful(first.after)
        if max(was, now) > 2 * min(was, now):
            kind = "appears" if now > was else "disappears"
            return [(start, narration(kind, _look(first, first.after if now > was else first.before)))]
        return [(start, narration("turns", _look(first, first.before), became=_colour(first.after)))]
    if first.side and not last.side:
        return [(end - 1, narration("enters", _look(last, last.after, 2), side=first.side))]
    if last.side and not first.side:
        return [(end - 1, narration("leaves", _look(first, first.before, 2), side=last.side))]
    if first.side:  # in and out again, as a hand goes
        return [(end - 1, narration("placed", _look(last, last.after, 2)))]
    return [
        (start, narration("starts", _look(first, first.after, 2))),
        (end, narration("stops", _look(last, last.after, 2))),
    ]


def _cells(frames: np.ndarray) -> np.ndarray:
    """(F, S, S, 3) uint8 -> mean colours, (F, CELLS, CELLS, 3) float32."""
    size = frames.shape[1]
    edges = np.arange(CELLS) * size // CELLS
    counts = np.diff([*edges, size])
    sums = np.add.reduceat(np.add.reduceat(frames.astype(np.float32), edges, axis=1), edges, axis=2)
    return np.asarray(sums / (counts[:, None] * counts[None, :])[..., None])


def _change(before: np.ndarray, after: np.ndarray, threshold: float) -> Change | None:
    """The cells (CELLS, CELLS, 3) whose colour differs by more than `threshold`; what drifts everywhere is light, if it
    drifts by less, and a new scene if it does not."""
    moved = after - before
    light = np.median(moved, axis=(0, 1))
    cells = np.abs(moved - light).max(-1) > threshold
    if np.abs(light).max() > threshold:
        cells[:] = True
    if not cells.any():
        return None
    most = [colours[cells][np.argmax(_colourful(colours[cells]))] for colours in (before, after)]
    return Change(cells, *most)


def _colourful(colour: np.ndarray) -> np.ndarray:
    """How far from grey a colour (..., 3) is."""
    return np.asarray(colour.max(-1) - colour.min(-1))


def _colour(colour: np.ndarray) -> str:
    return min(COLOURS, key=lambda name: float(np.square(np.array(RGB[name]) - colour).sum()))


def _look(change: Change, colour: np.ndarray, places: int = 1) -> Look:
    """Colour and size are seen, the shape is guessed. What moves changes two places: where it was, and where it is."""
    return Look(_colour(colour), "circle", "large" if change.cells.sum() >= places * LARGE else "small")


def _result(stream: WorldStream, said: Sequence[Said], answers: Sequence[str]) -> SelfConditioned:
    events = (StreamEvent(time, "narration", text, round(time * stream.config.fps)) for time, text in said)
    return SelfConditioned(tuple(events), tuple(answers), np.ones(len(stream.times)))
