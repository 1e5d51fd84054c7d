"""Parts: the few simple shapes that every figure, object, hand and piece of furniture is put together from.

Pure geometry, in fractions of the square's side; `paint` turns parts into pixels.
"""

from __future__ import annotations

from typing import NamedTuple

from videollm_mod.world.camera.motion import Box, Place, area, cut, union

Colour = tuple[float, float, float]  # RGB, 0..255


class Part(NamedTuple):
    """One shape.

    "cone": a limb from points[0] to points[1], as thick as radii[0] and radii[1] there.
    "oval": around points[0], with the half axes radii, turned by `angle` radians.
    "ring": a circle around points[0] of radius radii[0], as thick as radii[1].
    "plate": a convex polygon with corners `points`, in the order in which a clock's hand passes them on the picture.
    """

    shape: str
    points: tuple[Place, ...]
    radii: tuple[float, float]
    colour: Colour
    angle: float = 0.0
    weave: int = 0  # number of a cloth's pattern, 0 for none
    alpha: float = 1.0
    round: float = 0.25  # how much darker the rim is than the middle, as a fraction


def cone(start: Place, end: Place, r0: float, r1: float, colour: Colour, weave: int = 0, alpha: float = 1.0) -> Part:
    """A limb between two places."""
    return Part("cone", (start, end), (r0, r1), colour, 0.0, weave, alpha)


def oval(
    centre: Place, rx: float, ry: float, colour: Colour, angle: float = 0.0, weave: int = 0, alpha: float = 1.0
) -> Part:
    """An ellipse."""
    return Part("oval", (centre,), (rx, ry), colour, angle, weave, alpha)


def ring(centre: Place, radius: float, thick: float, colour: Colour) -> Part:
    """A circle's line."""
    return Part("ring", (centre,), (radius, thick), colour, round=0.0)


def plate(points: tuple[Place, ...], colour: Colour, weave: int = 0, alpha: float = 1.0) -> Part:
    """A convex polygon, flat in shade."""
    return Part("plate", points, (0.0, 0.0), colour, 0.0, weave, alpha, 0.0)


def slab(x0: float, y0: float, x1: float, y1: float, colour: Colour, weave: int = 0, alpha: float = 1.0) -> Part:
    """An upright rectangle."""
    return plate(((x0, y0), (x1, y0), (x1, y1), (x0, y1)), colour, weave, alpha)


def bounds(part: Part) -> Box:
    """The box of a part (for an oval that of its larger half axis)."""
    if part.shape == "plate":
        xs, ys = [p[0] for p in part.points], [p[1] for p in part.points]
        return min(xs), min(ys), max(xs), max(ys)
    if part.shape == "cone":
        (x0, y0), (x1, y1) = part.points
        r0, r1 = part.radii
        return min(x0 - r0, x1 - r1), min(y0 - r0, y1 - r1), max(x0 + r0, x1 + r1), max(y0 + r0, y1 + r1)
    x, y = part.points[0]
    rx, ry = part.radii
    if part.shape == "ring":
        rx = ry = rx + ry
    elif part.angle:
        rx = ry = max(rx, ry)
    return x - rx, y - ry, x + rx, y + ry


def around(parts: list[Part]) -> Box:
    """The box of all parts (at least one)."""
    return union([bounds(part) for part in parts])


def seen(parts: list[Part], frame: Box) -> tuple[Box | None, float, float]:
    """What shows of parts inside a frame: its box (None if nothing does), its area, and which fraction that is.

    Areas are sums over the parts; a limb across the border is taken piece by piece, as its box says little.
    """
    inside: list[Box] = []
    shows = whole = 0.0
    for part in parts:
        box = bounds(part)
        size = area(box)
        whole += size
        kept = cut(box, frame)
        if area(kept) == 0:
            continue
        if part.shape != "cone" or kept == box:
            inside.append(kept)
            shows += area(kept)
            continue
        pieces = [bounds(piece) for piece in _pieces(part)]
        share = 0.0
        for piece in pieces:
            kept = cut(piece, frame)
            if area(kept) > 0:
                inside.append(kept)
                share += area(kept)
        shows += size * share / sum(map(area, pieces))
    return (union(inside) if inside else None), shows, (shows / whole if whole else 0.0)


def _pieces(part: Part) -> list[Part]:
    """A cone in six pieces."""
    (x0, y0), (x1, y1) = part.points
    r0, r1 = part.radii

    def at(t: float) -> tuple[Place, float]:
        return (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t), r0 + (r1 - r0) * t

    ends = [at(i / 6) for i in range(7)]
    return [part._replace(points=(a[0], b[0]), radii=(a[1], b[1])) for a, b in zip(ends, ends[1:])]


def shaded(colour: Colour, factor: float) -> Colour:
    """A lighter or darker colour."""
    return min(255.0, colour[0] * factor), min(255.0, colour[1] * factor), min(255.0, colour[2] * factor)
