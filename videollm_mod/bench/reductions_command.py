"""`videollm-mod bench reductions`: every token reduction on one model, as it is and adapted to, cell by cell.

videollm-mod bench reductions --quick                      # two streams, to see that it works
videollm-mod bench reductions --only uniform faster_vlm    # goes on where it stopped
videollm-mod bench reductions --costs                      # time and FLOPs anew, when the machine does nothing else
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from videollm_mod.flags import check_keep, check_least


@dataclass(frozen=True)
class BenchReductions:
    """Which model, which methods, and on how much."""

    model: str = "tiny"
    """The bundled model "tiny", or a model's folder; all cells have its weights."""
    only: tuple[str, ...] = ()
    """Methods, such as faster_vlm; all of them if not given."""
    keep: tuple[float, ...] = (0.5, 0.25, 0.1)
    """Shares of each frame's tokens that are left."""
    pairs: float = 0.25
    """The share at which each method is paired with depth routing, interleaved at 0.2."""
    adapt: int = 100
    """Steps of a short training with each method in place, four streams each, after which it is measured again at the
    share of --pairs; 0: none."""
    streams: int = 20
    """Streams of the world's test split."""
    calibration: int = 16
    """Streams of its validation split, on which each cell's threshold is chosen."""
    seconds: float = 30.0
    """Length of each, seconds."""
    dials: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")] = ()
    """Dials of the world, such as scale=1.2 events_per_minute=15; `world/config.py` lists them."""
    frames: int = 120
    """Length of the stream on which time is measured."""
    repeats: int = 45
    """Timed frames at its end; the median counts."""
    workers: int = 1
    """Processes that watch streams. Time is measured by one, before they begin."""
    threads: int = 1
    """CPU threads of PyTorch."""
    home: Path = Path("out/reductions")
    """Where adapted models are."""
    out: Path = Path("out/reductions.json")
    """The JSON of all cells, written as they are measured: what is there is not done again."""
    costs: bool = False
    """Measure time, FLOPs and bytes of every cell anew, on a machine that does nothing else; nothing else is done."""
    plot: Path | None = None
    """Draw quality against measured time here, PNG."""
    page: Path | None = None
    """Write the page of all methods with what this file and --fidelity hold, such as docs/reductions.md."""
    fidelity: tuple[Path, ...] = ()
    """What runs/reduction_fidelity.py and its like wrote, for the page."""
    page_only: bool = False
    """Measure nothing: draw plot and page of what is there."""
    quick: bool = False
    """Two short streams, to see that it works; its numbers mean nothing."""


def bench_reductions(config: BenchReductions) -> dict[str, Any]:
    """Run the command; returns the JSON of all cells. Raises InputError for what the user can mend."""
    check_least(
        1, streams=config.streams, calibration=config.calibration, frames=config.frames, repeats=config.repeats,
        workers=config.workers, threads=config.threads,
    )  # fmt: skip
    check_least(0, adapt=config.adapt)
    for keep in (*config.keep, config.pairs):
        check_keep(keep)
    from dataclasses import replace

    import torch

    from videollm_mod.bench.measure import progress
    from videollm_mod.bench.reductions import fill, write
    from videollm_mod.bench.reductions_page import page
    from videollm_mod.bench.reductions_plot import draw_plot
    from videollm_mod.evaluate.world import world_of
    from videollm_mod.files import atomic_write, check_writable
    from videollm_mod.reductions import methods
    from videollm_mod.types import InputError

    world_of("medium", config.dials, seconds=config.seconds)
    for name in config.only:
        if name not in methods():
            raise InputError(f"--only '{name}' is no reduction; take one of {', '.join(methods())}.")
    for path in config.fidelity:
        if not path.is_file():
            raise InputError(f"--fidelity {path} is missing; runs/reduction_fidelity.py writes it.")
    for target in (config.out, config.plot, config.page):
        if target is not None:
            check_writable(target)
    if config.quick:
        progress("--quick: two short streams, to see that it works; the numbers below mean nothing")
        config = replace(
            config, streams=2, calibration=1, seconds=6.0, frames=10, repeats=3, adapt=min(config.adapt, 2)
        )
    before = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        result = fill(config)
    finally:
        torch.set_num_threads(before)
    write(config.out, result)
    if config.plot is not None:
        draw_plot(result, config.plot)
    if config.page is not None:
        told = {name: same for path in config.fidelity for name, same in json.loads(path.read_text("utf-8")).items()}
        with atomic_write(config.page) as file:
            file.write(page(result, told, config.plot.name if config.plot else None))
    return {name: value for name, value in result.items() if name != "known"}
