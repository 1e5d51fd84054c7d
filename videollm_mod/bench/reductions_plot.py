"""The plot of `bench reductions`: quality against measured time, every method with its number, none over another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videollm_mod.bench.reductions_page import WHERE
from videollm_mod.files import atomic_write
from videollm_mod.reductions import methods

Label = tuple[float, float, str, str]  # where, a word, a colour
Box = tuple[float, float, float, float]  # left, bottom, right, top
PLAIN = {"dense": "black", "depth routing": "crimson"}  # which are no methods of the folder
COLOURS = {
    "frames": "tab:brown",
    "tower": "tab:green",
    "tokens": "tab:blue",
    "layer": "tab:orange",
    "cache": "tab:purple",
}
ANGLES = [k * math.pi / 8 for k in (2, 0, 4, 6, 8, 14, 12, 10, 1, 3, 5, 7, 9, 11, 13, 15)]


def draw_plot(result: dict[str, Any], path: Path) -> None:
    """F1 against measured time, as a share of the dense model's. Panels on the same axes: the model as it is, one for
    each share of tokens; adapted; adapted with depth routing. What is not measured yet has no panel. Each point has
    its method's number, which the list in the last place explains; the grey band is what the dense model's F1 may be.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [cell for cell in result["cells"] if "f1" in cell and "time_share" in cell]
    names = dict.fromkeys(_method(cell) for cell in found)
    numbers = {name: str(number) for number, name in enumerate((each for each in names if each not in PLAIN), 1)}
    free, learned = ([cell for cell in found if bool(cell["steps"]) == steps] for steps in (False, True))
    share = next((cell["keep"] for cell in learned if cell["name"] != "dense"), None)
    left = "" if share is None else f", {share:g} of the tokens"
    titled = {
        f"the model as it is, {keep:g} of the tokens": [
            cell for cell in free if "+" not in cell["name"] and (cell["keep"] == keep or cell["name"] == "dense")
        ]
        for keep in dict.fromkeys(cell["keep"] for cell in free if "+" not in cell["name"] and cell["name"] != "dense")
    }
    titled[f"after {result['adapt']} steps with the method in place{left}"] = [
        cell for cell in learned if "+" not in cell["name"]
    ]
    titled[f"after {result['adapt']} steps, with depth routing besides{left}"] = [
        cell for cell in learned if "+" in cell["name"] or _method(cell) in PLAIN
    ]
    shown = [(title, cells) for title, cells in titled.items() if cells or not found]
    columns = min(len(shown) + 1, 3)
    rows = -(-(len(shown) + 1) // columns)
    figure, places = pyplot.subplots(
        rows, columns, figsize=(6 * columns, 6 * rows), sharex=True, sharey=True, layout="constrained", squeeze=False
    )
    panels, spare = places.flatten()[: len(shown)], places.flatten()[len(shown) :]
    written = [_panel(axes, cells, numbers) for axes, (_, cells) in zip(panels, shown)]
    for axes, (title, _) in zip(panels, shown):
        axes.set_title(title)
    _key(spare[0], numbers)
    for axes in spare[1:]:
        axes.axis("off")
    figure.canvas.draw()  # so that places on the picture are known
    for axes, labels in zip(panels, written):
        _label(axes, labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=90)
    pyplot.close(figure)


def _panel(axes: Any, shown: Sequence[dict[str, Any]], numbers: dict[str, str]) -> list[Label]:
    """Draws these cells, a point each; returns where their numbers should be."""
    labels: list[Label] = []
    for cell in shown:
        name = _method(cell)
        colour, plain = PLAIN.get(name) or _colour(name), name in PLAIN
        across, up = cell["time_share"], cell["f1"]
        axes.scatter([across], [up], s=150 if plain else 40, zorder=3, marker="*" if plain else "o", color=colour)
        low, high = cell.get("f1_interval", (up, up))
        if name == "dense":
            axes.axhspan(low, high, color="0.93", zorder=0)
            axes.axhline(up, color="0.6", linewidth=1, zorder=1)
        else:
            axes.vlines(across, low, high, color=colour, linewidth=0.6, alpha=0.4)
        if name in numbers:
            labels.append((across, up, numbers[name], colour))
    axes.grid(alpha=0.3)
    axes.set_ylabel("event F1 on its own words")
    axes.set_xlabel("time a frame, measured, as a share of the dense model's")
    axes.tick_params(labelbottom=True, labelleft=True)
    return labels


def _method(cell: dict[str, Any]) -> str:
    name: str = cell["name"].split(" + ")[0]
    return name if name == "dense" else name.rsplit(" ", 1)[0]


def _colour(name: str) -> str:
    kind = methods().get(name)
    return "gray" if kind is None else COLOURS[kind.stage]


def _key(axes: Any, numbers: dict[str, str]) -> None:
    """The list of methods by number, in the colours of where they act."""
    axes.axis("off")
    lines = [
        ("★  dense. Grey band, thin lines: 95 % of the bootstrap over streams", "black"),
        ("★  depth routing alone", "crimson"),
    ]
    lines += [(f"{number:>2}  {name}", _colour(name)) for name, number in numbers.items()]
    half = (len(lines) + 3) // 2
    for at, (words, colour) in enumerate(lines):
        column, row = (0, at) if at < 2 else ((at - 2) // half, 2 + (at - 2) % half)
        axes.text(
            0.02 + 0.5 * column, 0.97 - row / (half + 9), words, color=colour, fontsize=11, transform=axes.transAxes
        )
    for at, (stage, colour) in enumerate(COLOURS.items()):
        axes.text(0.02, 0.97 - (half + 3 + at) / (half + 9), f"●  {WHERE[stage]}", color=colour, fontsize=10,
                  transform=axes.transAxes)  # fmt: skip


def _label(axes: Any, labels: list[Label]) -> list[Box]:
    """Writes each word beside its point, where no other point or word is, with a line to it. Returns where they are."""
    points = [axes.transData.transform(label[:2]) for label in labels]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    for (across, up, word, colour), (x, y) in sorted(zip(labels, points), key=lambda each: -each[1][1]):
        wide, high = 4.5 * len(word) + 1, 7
        spots = [(x + r * math.cos(a), y + r * math.sin(a)) for r in range(13, 200, 8) for a in ANGLES]
        box = next(
            (box for box in ((p - wide, q - high, p + wide, q + high) for p, q in spots) if not _hits(box, taken)), None
        )
        if box is None:
            continue
        taken.append(box)
        middle = axes.transData.inverted().transform(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))
        axes.annotate(
            word, (across, up), middle, color=colour, fontsize=10, ha="center", va="center", zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.6, "shrinkB": 2},
        )  # fmt: skip
    return taken[len(points) :]


def _hits(box: Box, others: Sequence[Box]) -> bool:
    return any(
        box[0] < right and left < box[2] and box[1] < top and bottom < box[3] for left, bottom, right, top in others
    )
