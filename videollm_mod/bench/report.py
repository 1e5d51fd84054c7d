"""`bench report`: the JSON files of the benches -> one Markdown page with a plot for each that has curves.

A file that is not there is named as missing; one that has another form than its section knows is told as a table of its
numbers. Nothing is computed here but ratios of what stands in a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from videollm_mod.files import atomic_write
from videollm_mod.types import InputError

OWN_PAGES = {"bench_reductions": "docs/reductions.md"}  # results that `bench report` leaves to their own page
Found = dict[str, Any]
Draw = Callable[[Any], None]  # draws on a figure's axes
HEADER = (
    "Made by `videollm-mod bench report` from the JSON files in `{results}`. Ratios are to our own dense model on the "
    "same weights in the same run, medians; *FLOPs* is the ratio of FLOPs, which nothing bound by them can beat, "
    "and *× bound* how far above it a time is (1.00 = at the bound). `docs/performance.md` says what it means."
)


def write_report(results: Path, out: Path) -> dict[str, Any]:
    """Write the page and its pictures; returns where, and which results are in it.

    out: a page's name, whose pictures go into a folder of that name beside it, or a folder. Raises InputError if there
    is no result at all.
    """
    if not results.is_dir():
        raise InputError(f"--results {results} is no folder; give the one that the benches wrote into.")
    page = out / "README.md" if out.is_dir() or not out.suffix else out
    pictures = page.parent if page.name == "README.md" else page.with_suffix("")
    found = {path.stem: _read(path) for path in sorted(results.glob("*.json"))}
    benches = {name: value for name, value in found.items() if name in SECTIONS or name.startswith(("bench_", "peer_"))}
    known = {name: value for name, value in benches.items() if name not in OWN_PAGES}
    if not known:
        names = ", ".join(f"{name}.json" for name in SECTIONS)
        raise InputError(f"--results {results} holds no result of a bench; run one with --out, to make one of {names}.")
    pictures.mkdir(parents=True, exist_ok=True)
    parts = ["# Benchmarks", HEADER.format(results=results)]
    order = [name for name in SECTIONS if name in known] + [name for name in known if name not in SECTIONS]
    drawn: list[str] = []
    for name in order:
        title, section = _section(name)
        try:
            lines, draw = section(known[name])
        except (KeyError, TypeError, AttributeError, IndexError):  # of another version: its numbers, at least
            lines, draw = _plain(known[name])
        parts.append(f"## {title}")
        if known[name].get("quick"):
            parts.append("**Made with --quick: the numbers below mean nothing.**")
        if known[name].get("interrupted") and name != "bench_soak":
            parts.append("**Stopped early: points are missing.**")
        parts += lines
        if draw is not None:
            picture = pictures / f"{name}.png"
            _save(draw, picture)
            drawn.append(picture.name)
            parts.append(f"![{title}]({picture.relative_to(page.parent)})")
        parts.append(f"*{name}.json: {_where(known[name])}*")
    missing = [f"`{name}.json`" for name in SECTIONS if name not in known]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    parts += [f"`{name}.json` has a page of its own, `{own}`." for name, own in OWN_PAGES.items() if name in benches]
    with atomic_write(page) as file:
        file.write("\n\n".join(parts) + "\n")
    return {"page": str(page), "results": order, "pictures": drawn}


# --- a section per bench: its lines of Markdown, and what draws its plot ---------------------------------------------


def _depth(found: Found) -> tuple[list[str], Draw | None]:
    rows = [["training step, logits at labels", found["train_step"], found["flops_bound"]["train_step"]]]
    rows += [
        [f"frame of {tokens} tokens, {frames} frames old", point["ratio"], point["flops_bound"]]
        for tokens, points in found["stream_all"].items()
        for frames, point in points.items()
    ]
    table = _table(["", "routed / dense", "FLOPs", "× bound"], [[*row, row[1] / row[2]] for row in rows])
    shares = ", ".join(f"{ratio:.3f} ({tokens} tokens)" for tokens, ratio in found["kv_bytes"].items())

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (tokens, points) in enumerate(found["stream_all"].items()):
            frames, colour = [int(age) for age in points], f"C{number}"
            axes.plot(frames, [point["ratio"] for point in points.values()], f"{colour}o-", label=f"{tokens} tokens")
            bounds = [point["flops_bound"] for point in points.values()]
            axes.plot(frames, bounds, f"{colour}--", label=f"{tokens} tokens, FLOPs")
        axes.set_xlabel("frames seen")
        axes.set_ylabel("ms per frame, routed / dense")
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    return [table, f"Activation peak {found['activation_peak']:.3f}; KV bytes {shares}."], draw


def _train(found: Found) -> tuple[list[str], Draw | None]:
    lines = []
    for logits, rivals in found["train"].items():
        lines.append(f"Logits at {'the labels only' if logits == 'labels' else 'all positions'}:")
        rows = [
            [name, _ms(told["ms"]), told["ratio"], told["flops_bound"], told["times_bound"], told["activation_peak"]]
            for name, told in rivals.items()
        ]
        lines.append(_table(["", "ms", "time / dense", "FLOPs", "× bound", "activation peak"], rows))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for number, (logits, rivals) in enumerate(found["train"].items()):
            names = list(rivals)
            places = [place + 0.4 * number for place in range(len(names))]
            axes.bar(places, [rivals[name]["ratio"] for name in names], width=0.38, label=f"logits: {logits}")
            bounds = [rivals[name]["flops_bound"] for name in names]
            axes.plot(places, bounds, "k_", markersize=14, label="FLOPs" if number == 0 else None)
        axes.set_xticks([place + 0.2 for place in range(len(names))], names, rotation=20, fontsize=8)
        axes.set_ylabel("training step / dense")
        axes.legend(fontsize=8)

    return lines, draw


def _stream(found: Found) -> tuple[list[str], Draw | None]:
    lines = []
    heads = ["frames", "", "p50 ms", "p95", "p99", "time / dense", "FLOPs", "× bound", "bytes read", "KV MiB"]
    heads += ["× reading weights", "× floor"] if "ceilings" in found else []
    for tokens, points in found["points"].items():
        lines.append(f"{tokens} tokens per frame:")
        rows = []
        for frames, point in points.items():
            for name, told in point.items():
                if "left_out" in told:
                    rows.append([frames, name, told["left_out"], *[""] * (len(heads) - 3)])
                    continue
                times = [_ms(told[which]) for which in ("p50", "p95", "p99")]
                mib = f"{told['kv_bytes'] / 2**20:,.0f}"
                floor = [told["times_weights"], told["times_floor"]] if "times_floor" in told else []
                rows.append([frames, name, *times, told["ratio"], told["flops_bound"], told["times_bound"],
                             told["bytes_bound"], mib, *floor])  # fmt: skip
        lines.append(_table(heads, rows))
    if "ceilings" in found:
        reached = found["ceilings"]
        lines.append(
            f"The card copies {reached['bytes_per_second'] / 1e9:,.0f} GB and multiplies "
            f"{reached['flops_per_second'] / 1e12:,.0f} TFLOP a second; the floor of a step is to read weights and "
            "cache, or its FLOPs, whichever takes longer."
        )

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(found["points"]), squeeze=False)[0]
        for axes, (tokens, points) in zip(panels, found["points"].items()):
            names = dict.fromkeys(name for point in points.values() for name in point)
            for name in names:
                curve = [
                    (int(frames), point[name]["p50"])
                    for frames, point in points.items()
                    if "p50" in point.get(name, {})
                ]
                axes.plot(*zip(*curve), marker="o", label=name) if curve else None
            axes.set_title(f"{tokens} tokens per frame", fontsize=10)
            axes.set_xlabel("frames seen")
            axes.set_ylabel("ms per frame, median")
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)

    return lines, draw


def _step(found: Found) -> tuple[list[str], Draw | None]:
    rows = []
    kinds = ("step", "products", "attention", "operators", "python")
    for tokens, streams in found["steps"].items():
        for name, told in streams.items():
            if name == "ratio":
                rows.append([tokens, "routed / dense", *(told[kind] for kind in kinds), *[""] * 4])
                continue
            speeds = [
                f"{told[f'{kind}_{what}_per_second'] / 1e9:,.0f}"
                for kind in ("products", "attention")
                for what in ("flops", "bytes")
            ]
            rows.append([tokens, name, *(_ms(told[kind]) for kind in kinds), *speeds])
    reached = found["reached"]
    heads = ["tokens", "", "ms, under the profiler", *kinds[1:], "products, GFLOP/s", "GB/s of weights"]
    heads += ["attention, GFLOP/s", "GB/s of keys and values"]
    words = (
        f"A stream {found['setup']['frames']} frames old. The machine reaches {reached['flops_per_second'] / 1e9:,.0f} "
        f"GFLOP/s in a large product and reads a large tensor at {reached['bytes_per_second'] / 1e9:,.0f} GB/s."
    )
    return [words, _table(heads, rows), *_training(found.get("train"))], None


def _training(found: Found | None) -> list[str]:
    """Where a training step goes."""
    if found is None:
        return []
    kinds = ("step", "products", "attention", "operators", "python")
    steps = {name: told for name, told in found.items() if name != "ratio"}
    rows = [
        [name, *(_ms(told[kind]) for kind in kinds), told["flops_per_second"] / 1e9] for name, told in steps.items()
    ]
    flops = [told["flops"] for told in steps.values()]
    rows.append(["routed / dense", *(found["ratio"][kind] for kind in kinds), ""])
    words = f"A training step with logits at labels; of its FLOPs routing leaves {flops[1] / flops[0]:.3f}."
    return [words, _table(["", "ms, under the profiler", *kinds[1:], "GFLOP/s"], rows)]


def _flops(found: Found) -> tuple[list[str], Draw | None]:
    setup = found["setup"]
    lines = [f"{setup['llm']}, {setup['frames']} frames, {setup['text']} text tokens; of dense:"]
    whats = {"pass": "one pass", "train": "training step", "stream": "whole stream", "last_frame": "last frame",
             "kv_bytes_per_frame": "KV bytes"}  # fmt: skip
    for tokens, plans in found["flops"].items():
        rows = [
            [name, *(cost["ratio"][what] for what in whats), f"{cost['analytic']['last_frame'] / 1e9:,.1f}"]
            for name, cost in plans.items()
        ]
        off = max(cost["counted_off_by"] for cost in plans.values())
        lines.append(f"{tokens} tokens per frame (formula and PyTorch's counter differ by at most {off:.1e}):")
        lines.append(_table(["", *whats.values(), "GFLOP of the last frame"], rows))
    return lines, None


def _decode(found: Found) -> tuple[list[str], Draw | None]:
    rows = []
    for codec, sizes in found["decode"].items():
        for size, tasks in sizes.items():
            for task, told in tasks.items():
                speeds = told["frames_per_second"]
                rows.append([f"{codec} {size}", task, f"{speeds['ours']:,.0f}", f"{speeds['pyav']:,.0f}",
                             f"{speeds['pyav_auto']:,.0f}",
                             f"{speeds['torchcodec']:,.0f}" if "torchcodec" in speeds else "",
                             told["speedup_over_pyav"], told["of_decoding_alone"]])  # fmt: skip
    heads = [
        "clip",
        "frames wanted",
        "ours",
        "PyAV",
        "PyAV, AUTO threads",
        "torchcodec",
        "ours / PyAV",
        "of decoding alone",
    ]
    lines = ["Frames of the clip per second:", _table(heads, rows)]
    lines += [f"Left out: {what}: {why}." for what, why in found.get("left_out", {}).items()]
    return lines, None


def _peer(found: Found) -> tuple[list[str], Draw | None]:
    rows = [
        [
            frames,
            _ms(told["peer_ms"]),
            _ms(told["dense_ms"]),
            told["dense_ratio"],
            _ms(told["routed_ms"]),
            told["routed_ratio"],
        ]
        for frames, told in found["at"].items()
    ]
    heads = ["frame", "theirs, ms", "ours dense, ms", "/ theirs", "ours routed, ms", "/ theirs"]
    agree = found["logits"]
    lines = [
        f"On one random Llama, the same frames; logits of the first {agree['frames']} frames, ours dense and theirs, "
        f"differ by at most {agree['largest_difference']:.1e} (they are up to {agree['largest']:.1f}).",
        _table(heads, rows),
    ]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for name, values in found["curves"].items():
            axes.plot(found["curve_frames"], values, label=name)
        axes.set_xlabel("frame")
        axes.set_ylabel("ms per frame, median of its neighbours")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)

    return lines, draw


def _engine(found: Found) -> tuple[list[str], Draw | None]:
    rows = []
    for count, told in found["sessions"].items():
        engine, turn = told["engine"], told["in_turn"]
        rows.append([count, engine["frames_per_second"], turn["frames_per_second"], told["speedup"],
                     told["speedup_cpu_time"], engine["gflops"], turn["gflops"], _ms(engine["p99_ms"]),
                     _ms(turn["p99_ms"]), engine["dropped"], turn["dropped"], told["kv_mib"]])  # fmt: skip
    heads = ["sessions", "frames/s, engine", "in turn", "speedup", "of CPU time", "GFLOP/s, engine", "in turn",
             "p99 ms, engine", "in turn", "dropped, engine", "in turn", "KV MiB"]  # fmt: skip
    fps = found["setup"]["fps"]
    kept_up = found[f"sustained_{fps:g}fps"]
    lines = [
        "The very same sessions in one engine and one after another; both take the same FLOPs, so how many of them a "
        "second says how near each is to the machine's speed. Latency, from a frame's coming to its decision, and "
        f"dropped frames at {fps:g} frames per second each:",
        _table(heads, rows),
        f"Kept up with, p99 below half a second and nothing dropped: {kept_up['engine']} in the engine, "
        f"{kept_up['in_turn']} in turn.",
    ]
    for count, told in found["sessions"].items():
        if "profile" in told:
            shares = ", ".join(f"{kind} {share:.0%}" for kind, share in told["profile"].items() if kind != "outside")
            lines.append(
                f"Of the operators' time in a step of {count}: {shares}; {told['profile']['outside']:.0%} of the step "
                "is outside of them."
            )

    def draw(figure: Any) -> None:
        rate, late = figure.subplots(1, 2)
        counts = list(found["sessions"])
        for name, label in (("engine", "one engine"), ("in_turn", "in turn")):
            told = [found["sessions"][count][name] for count in counts]
            rate.plot(counts, [each["frames_per_second"] for each in told], "o-", label=label)
            late.plot(counts, [each["p99_ms"] for each in told], "o-", label=label)
        rate.set_ylabel("frames per second, all sessions")
        rate.set_ylim(bottom=0)
        late.set_ylabel(f"p99 ms at {fps:g} frames per second each")
        late.set_yscale("log")
        for axes in (rate, late):
            axes.set_xlabel("sessions")
            axes.grid(alpha=0.3)
            axes.legend(fontsize=8)

    return lines, draw


def _soak(found: Found) -> tuple[list[str], Draw | None]:
    points, every = found["points"], f"{found['every']:,}"
    known = [f"{found['frames']:,} frames through one session"]
    if found["slowdown"] is None:
        known.append("too few to compare")
    else:
        known.append(f"ms per frame, the last {every} over the second {every}: {found['slowdown']:.3f}")
    if found["rss_growth"] is not None:
        known.append(f"resident memory {found['rss_growth']:+.1%}")
    bound = "" if found["budget"] is None else f" of a budget of {found['budget'] / 2**20:,.1f} MiB"
    known.append(f"at most {found['kv_bytes_max'] / 2**20:,.1f} MiB of cache entries{bound}")
    line = f"Policy `{found['policy']}`: {'; '.join(known)}{'; stopped early' if found['interrupted'] else ''}."

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 3)
        for axes, key in zip(panels, ("ms", "rss", "kv_bytes")):
            scale = 1 if key == "ms" else 2**20
            axes.plot([point["frames"] / 1e3 for point in points], [point[key] / scale for point in points])
            axes.set_xlabel("thousand frames")
            axes.set_ylabel({"ms": "ms per frame", "rss": "resident MiB", "kv_bytes": "cache MiB"}[key])
            axes.set_ylim(0, 1.2 * axes.dataLim.ymax)  # a flat line would lie on the frame
            axes.grid(alpha=0.3)

    return [line], draw if points else None


def _plain(found: Found) -> tuple[list[str], Draw | None]:
    """All numbers of a file, named by their path in it."""
    rows = [[name, value] for name, value in _leaves(found) if not name.startswith("setup.")]
    return [_table(["", "value"], rows)], None


SECTIONS: dict[str, tuple[str, Callable[[Found], tuple[list[str], Draw | None]]]] = {
    "bench_depth": ("Dense and routed in short", _depth),
    "bench_flops": ("FLOPs at true size", _flops),
    "bench_train": ("Training", _train),
    "bench_stream": ("Streaming", _stream),
    "step_profile": ("Where a step goes", _step),
    "peer_videollm_online": ("Beside the public VideoLLM-online code", _peer),
    "bench_engine": ("Many sessions in one engine", _engine),
    "bench_soak": ("An endless stream", _soak),
    "bench_decode": ("Reading video", _decode),
}


def _section(name: str) -> tuple[str, Callable[[Found], tuple[list[str], Draw | None]]]:
    """The title of a result and what tells of it; `bench_stream_gpu`, `bench_stream_long` are as `bench_stream`."""
    if name in SECTIONS:
        return SECTIONS[name]
    for same, (title, section) in SECTIONS.items():
        if name.startswith(f"{same}_"):
            other = name.removeprefix(f"{same}_")
            return f"{title}, {'on a GPU' if other == 'gpu' else other.replace('_', ' ')}", section
    return name.removeprefix("bench_").replace("_", " ").capitalize(), _plain


# --- tools -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Found:
    try:
        value = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON; make it again with its bench, or remove it.") from error
    return value if isinstance(value, dict) else {}


def _leaves(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        yield name, value


def _where(found: Found) -> str:
    setup = found.get("setup", {})
    machine = [str(found[key]) for key in ("gpu", "cpu") if key in found]
    if "threads" in found:
        machine.append(f"{found['threads']} thread(s)")
    machine += [f"{key} {found[key]}" for key in ("torch", "transformers", "pyav") if key in found]
    sizes = [
        f"{key} {setup[key]}"
        for key in ("llm", "width", "layers", "dtype", "fillings", "steps", "repeats")
        if setup.get(key)
    ]
    return ", ".join([*machine, *sizes]) or "no setup told"


def _ms(value: float) -> str:
    return f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")


def _save(draw: Draw, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    with atomic_write(path, binary=True) as file:
        figure.savefig(file, format="png", dpi=110)
