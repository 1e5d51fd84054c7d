"""Which picture is shown when: the sampling rule against brute force, and the repair of timestamps."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.video.timing import TOLERANCE, Clock, on_grid

millis = st.integers(0, 20_000)
rates = st.sampled_from([0.1, 0.5, 1.0, 2.0, 3.0, 7.5, 10.0, 24.0, 29.97])


@st.composite
def pictures(draw: st.DrawFn) -> list[tuple[float, float, int]]:
    """Increasing times (also with gaps, also not from 0), any durations, and a number as the item."""
    steps = draw(st.lists(st.sampled_from([1, 3, 16, 17, 33, 34, 40, 500, 1000, 3700]), max_size=40))
    first = draw(st.sampled_from([0, 0, 0, 1, 250, 4100]))
    times = list(itertools.accumulate(steps, initial=first))
    last = draw(st.sampled_from([0, 20, 33, 2000]))
    return [(time / 1000, last / 1000, number) for number, time in enumerate(times)]


def brute_force(
    shown: list[tuple[float, float, int]], fps: float, start: float, end: float | None
) -> list[tuple[float, int]]:
    chosen = []
    gone = shown[-1][0] + max(shown[-1][1], 2 * TOLERANCE)
    for k in range(math.ceil(gone * fps) + 2):
        time = k / fps
        on_screen = [item for at, _, item in shown if at - TOLERANCE <= time]
        if time >= start - TOLERANCE and (end is None or time < end) and on_screen and time < gone - TOLERANCE:
            chosen.append((time, on_screen[-1]))
    return chosen


@given(pictures(), rates, st.none() | millis, st.none() | millis)
def test_each_grid_time_gets_the_picture_that_is_on_the_screen_then(
    shown: list[tuple[float, float, int]], fps: float, start_ms: int | None, end_ms: int | None
) -> None:
    # half a millisecond keeps cuts off the edges, where rounding and not the rule would decide
    start = 0.0 if start_ms is None else start_ms / 1000 + 0.0005
    end = None if end_ms is None else end_ms / 1000 + 0.0005
    assert list(on_grid(shown, fps, start, end)) == brute_force(shown, fps, start, end)


@given(pictures(), rates)
def test_a_live_source_never_repeats_a_picture_and_otherwise_follows_the_same_grid(
    shown: list[tuple[float, float, int]], fps: float
) -> None:
    still = list(on_grid(shown, fps))
    live = list(on_grid(shown, fps, live=True))
    assert set(live) <= set(still)
    inner = [item for _, item in live if item != shown[-1][2]]  # the last one stays for its duration
    assert len(inner) == len(set(inner))
    assert {item for _, item in live} == {item for _, item in still}


def test_sampling_asks_for_no_picture_beyond_the_end() -> None:
    taken = []

    def endless() -> itertools.chain:
        for number in itertools.count():
            taken.append(number)
            yield number * 0.04, 0.04, number

    assert [item for _, item in on_grid(endless(), 2.0, 1.0, 2.0)] == [25, 37]
    assert taken[-1] <= 50


stamps = st.lists(st.none() | st.floats(-100, 100) | st.integers(0, 5).map(float), min_size=1, max_size=60)


@given(stamps, st.sampled_from([1 / 60, 0.04, 0.5]), st.none() | st.floats(0, 50))
def test_times_increase_strictly_whatever_the_timestamps(
    given_stamps: list[float | None], period: float, latest: float | None
) -> None:
    clock = Clock(period=period, latest=latest)
    times = [clock(stamp) for stamp in given_stamps]
    assert times[0] == 0
    assert all(later > earlier for earlier, later in itertools.pairwise(times))


@given(st.lists(st.integers(1, 9_000), max_size=50), st.integers(-10_000, 10_000))
def test_sound_timestamps_come_through_unchanged_but_for_their_origin(steps: list[int], first: int) -> None:
    sound = [stamp / 1000 for stamp in itertools.accumulate(steps, initial=first)]
    clock = Clock()
    assert [clock(stamp) for stamp in sound] == [stamp - first / 1000 for stamp in sound]
    assert clock.repaired == 0


def test_missing_or_stuck_timestamps_advance_by_one_period() -> None:
    assert _times([None, None, None], 0.04) == [0, 0.04, 0.08]
    assert _times([5.0, 5.0, 5.0], 0.04) == [0, 0.04, 0.08]
    assert _times([1.0, None, None, 1.12], 0.04) == [0, 0.04, 0.08, 0.12]


def test_a_slip_back_is_caught_up_with() -> None:
    assert _times([0.0, 0.04, 0.08, 0.06, 0.12, 0.16], 0.04) == [0, 0.04, 0.08, 0.10, 0.12, 0.16]


def test_a_step_far_back_or_ahead_is_a_cut_and_time_goes_on() -> None:
    assert _times([50.0, 50.04, 0.0, 0.04], 0.04) == [0, 0.04, 0.08, 0.12]
    assert _times([0.0, 0.04, 95443.7, 95443.74], 0.04) == [0, 0.04, 0.08, 0.12]


def test_a_still_picture_may_last_for_minutes() -> None:
    assert _times([0.0, 600.0], 0.04) == [0, 600]


def _times(given_stamps: list[float | None], period: float) -> list[float]:
    clock = Clock(period=period)
    return [round(clock(stamp), 6) for stamp in given_stamps]
