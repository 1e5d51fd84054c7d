"""Times for people: seconds as a video player writes them."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Seconds as people read them on a player: `0:07.5`, `12:40.0`, `1:02:03.0`."""
    tenths = round(abs(seconds) * 10)
    hours, minutes, rest = tenths // 36000, tenths // 600 % 60, tenths % 600 / 10
    sign = "-" if seconds < 0 and tenths else ""
    return f"{sign}{hours}:{minutes:02d}:{rest:04.1f}" if hours else f"{sign}{minutes}:{rest:04.1f}"
