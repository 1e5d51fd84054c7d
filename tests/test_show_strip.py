"""The narration as one picture: each sentence under the frame that it was said of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videollm_mod.show.overlay import CELL, GAP
from videollm_mod.show.strip import COLUMNS, MOST, Shot, StripSink, draw_strip
from videollm_mod.types import Frame, StreamEvent


def colour(number: int) -> np.ndarray:
    return np.full((90, 160, 3), (number % 256, 255 - number % 256, 77), dtype=np.uint8)


def narrated(number: int) -> StreamEvent:
    return StreamEvent(number / 2, "narration", f"Sentence {number}.", number)


def played(path: Path, frames: int, said: set[int]) -> np.ndarray:
    """A stream in which something is said of some frames; the picture's pixels."""
    with StripSink(path) as sink:
        for number in range(frames):
            if number in said:
                sink.event(narrated(number))
            sink.frame(Frame(colour(number), number / 2, number))
    return np.asarray(Image.open(path).convert("RGB"))


def test_each_sentence_stands_under_the_frame_it_was_said_of_and_others_are_not_shown(tmp_path: Path) -> None:
    strip = played(tmp_path / "strip.png", 9, {2, 5})
    assert strip.shape[1] == GAP + 2 * (CELL + GAP)
    for column, number in enumerate((2, 5)):
        assert tuple(strip[GAP + 5, GAP + column * (CELL + GAP) + 5]) == tuple(colour(number)[0, 0])
    assert (strip[-GAP - 30 :] < 100).any(), "words below"


def test_an_answer_is_shown_with_the_frame_before_it(tmp_path: Path) -> None:
    with StripSink(tmp_path / "strip.png") as sink:
        sink.event(StreamEvent(0.0, "answer", "Nothing.", 0, "What?", 0.0))  # nothing was seen yet
        for number in range(2):
            sink.frame(Frame(colour(100 * number), number / 2, number))
        sink.event(StreamEvent(0.7, "answer", "A ring.", 1, "What?", 0.7))
        sink.frame(Frame(colour(200), 1.0, 2))
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape[1] == GAP + CELL + GAP and tuple(strip[GAP + 5, GAP + 5]) == tuple(colour(100)[0, 0])


def test_rows_are_filled_one_after_another_and_grow_with_their_words() -> None:
    shots = [Shot(colour(number), 0.0, ("Short.",)) for number in range(COLUMNS + 1)]
    long = [*shots[:-1], Shot(colour(0), 0.0, ("A much longer sentence, of which a cell holds only a part.",))]
    one, two, grown = draw_strip(shots[:1]), draw_strip(shots), draw_strip(long)
    assert two.shape[1] == GAP + COLUMNS * (CELL + GAP)
    assert two.shape[0] - GAP == 2 * (one.shape[0] - GAP)
    assert grown.shape[0] > two.shape[0]


def test_a_long_stream_keeps_its_newest_sentences_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"last 60 shots; 5 earlier ones are left out"):
        strip = played(tmp_path / "strip.png", MOST + 5, set(range(MOST + 5)))
    assert tuple(strip[GAP + 5, GAP + 5]) == tuple(colour(5)[0, 0])


def test_a_silent_stream_gives_its_last_frame_and_an_empty_one_no_file(tmp_path: Path) -> None:
    strip = played(tmp_path / "strip.png", 3, set())
    assert tuple(strip[GAP + 5, GAP + 5]) == tuple(colour(2)[0, 0])
    with StripSink(tmp_path / "none.png"):
        pass
    assert not (tmp_path / "none.png").exists()


def test_a_run_that_fails_leaves_no_picture_and_one_that_is_stopped_does(tmp_path: Path) -> None:
    for error, there in ((ValueError, False), (KeyboardInterrupt, True)):
        with pytest.raises(error), StripSink(tmp_path / "strip.png") as sink:
            sink.frame(Frame(colour(1), 0.0, 0))
            raise error
        assert (tmp_path / "strip.png").exists() == there
