"""`videollm-mod eval clips`: what a model says of real videos of fixed cameras, against events labelled by hand.

    videollm-mod eval clips clips/*.mp4 --labels events/

Labels of NAME.mp4 are in NAME.jsonl, one event a line: {"time": 6.1, "event": "enter", "side": "bottom"}, and "place"
("left", "middle", "right") instead of "side" for what is placed or removed. Right is what has the event and the side or
place right, within --tolerance; the thing's name does not count.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from videollm_mod.flags import REDUCTION_HELP, check_keep, check_probability, reduced_by, stored_as

if TYPE_CHECKING:
    from videollm_mod.evaluate.metrics import Said
    from videollm_mod.model import StreamingVideoLM


MAIN = ("precision", "recall", "f1")


@dataclass(frozen=True)
class EvalClipsConfig:
    """Which clips, and which model."""

    clips: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="CLIP...", help_behavior_hint="")]
    """Video files with labels."""
    labels: Path
    """The folder of their labels."""
    model: str = "camera"
    """A bundled model, tiny (coloured shapes) or camera (what fixed cameras see), or a model's folder."""
    tolerance: float = 1.0
    """Seconds that a sentence may be off."""
    threshold: float | None = None
    """Speak when the probability of silence falls below this; the model's own if not given."""
    keep: float | None = None
    """Share of each frame's vision tokens that routed layers keep, in (0, 1]; the model's own if not given."""
    reduction: Annotated[str | None, tyro.conf.arg(metavar="NAME=SHARE", help=REDUCTION_HELP)] = None
    dtype: Literal["float32", "bfloat16", "int8", "int4"] = "float32"
    """How the model's weights are stored; the last two round the decoder's, with torchao (`[quant]`)."""
    kv: Literal["int8", "fp8"] | None = None
    """How keys and values are stored; as they are if not given."""
    json: Path | None = None
    """Write the result here too."""


def evaluate_clips(config: EvalClipsConfig) -> dict[str, Any]:
    """Run the command; returns the final JSON. Raises InputError for what the user can mend."""
    from videollm_mod.files import atomic_write, check_writable
    from videollm_mod.types import InputError

    check_probability(threshold=config.threshold)
    check_keep(config.keep)
    if not 0 < config.tolerance <= 60:
        raise InputError(f"--tolerance {config.tolerance:g} is out of range; give up to 60 seconds.")
    if config.json is not None:
        check_writable(config.json)
    true = {clip: read_labels(config.labels / f"{clip.stem}.jsonl") for clip in config.clips}
    from rich.console import Console

    from videollm_mod.evaluate.bootstrap import bootstrap
    from videollm_mod.evaluate.metrics import false_alarms, match, precision_recall_f1
    from videollm_mod.evaluate.result import provenance, warnings_for
    from videollm_mod.model import load

    console = Console(stderr=True)
    wishes = stored_as(config.dtype, config.kv) | reduced_by(config.reduction)
    model = load(config.model, keep=config.keep, threshold=config.threshold, **wishes)
    rows: dict[str, dict[str, Any]] = {}
    sums: list[dict[str, int]] = []
    seen: dict[str, list[float]] = {}
    for clip in config.clips:
        said, told, seen[clip.name] = narrate(model, clip)
        pairs = match(said, true[clip], tolerance=config.tolerance)
        found = {j for _, j in pairs}
        counts = len(pairs), len(said), len(true[clip])
        sums.append(dict(zip(("right", "said", "true"), counts)))
        precision, recall, f1 = precision_recall_f1(*counts)
        rows[clip.name] = {
            "f1": round(f1, 4),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
            "events": counts[2],
            "false_alarms": len(false_alarms(said, true[clip], tolerance=config.tolerance)),
            "missed": [event._asdict() for j, event in enumerate(true[clip]) if j not in found],
            "said": [{"time": time, "text": text} for time, text in told],
        }
        summary = f"{clip.name}: F1 {f1:.2f}, {counts[0]} of {counts[2]} events, {len(told)} sentences"
        console.print(summary, highlight=False, markup=False, soft_wrap=True)
        for time, text in told:
            console.print(f"  {time:6.1f}  {text}", highlight=False, markup=False, soft_wrap=True)
    metrics = bootstrap(sums, lambda sum: dict(zip(MAIN, precision_recall_f1(sum["right"], sum["said"], sum["true"]))))
    events = sum(len(labels) for labels in true.values())
    result = {
        "f1": round(float(metrics["f1"]["value"] or 0), 4),
        "events": events,
        "clips": rows,
        "benchmark": "clips",
        "model": config.model,
        "metrics": metrics,
        "main": ["f1"],
        "samples": events,
        "videos": len(rows),
        "plan": model.plan.to_dict(),
        "reduction": reduced_by(config.reduction).get("reduction"),
        "threshold": model.settings.threshold,
        "tolerance": config.tolerance,
        **provenance(seen),
        "warnings": warnings_for(len(rows), (), ()),
    }
    if config.json is not None:
        with atomic_write(config.json) as file:
            file.write(json.dumps(result, indent=1) + "\n")
    return result


def narrate(model: StreamingVideoLM, clip: Path) -> tuple[list[Said], list[tuple[float, str]], list[float]]:
    """A clip's events as the model tells them, in the words of the labels ("enter bottom"), its sentences, and the
    times of the frames that it saw.

    A sentence that tells of no such event stands among the events as it is: it counts as wrong.
    """
    from videollm_mod.evaluate.events import events_told
    from videollm_mod.evaluate.metrics import Said
    from videollm_mod.stream.session import StreamSession
    from videollm_mod.video import open_video

    session = StreamSession(model)
    told: list[tuple[float, str]] = []
    times: list[float] = []
    with open_video(clip, fps=model.settings.fps) as video:
        for frame in video:
            times.append(frame.time)
            for event in session.push(frame):
                told.append((event.time, event.text))
    return events_told([Said(*each) for each in told]), told, times


def read_labels(path: Path) -> list[Said]:
    """The events of a file of labels, ascending by time. Raises InputError that names the line."""
    from videollm_mod.evaluate.metrics import Said
    from videollm_mod.types import InputError

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"there are no labels in {path} ({error}); give their folder as --labels.") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            label = json.loads(line)
            where = label.get("side", label.get("place"))
            if not isinstance(label["event"], str) or not isinstance(where, str):
                raise TypeError
            found.append(Said(float(label["time"]), f"{label['event']} {where}"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            example = '{"time": 6.1, "event": "enter", "side": "bottom"}'
            raise InputError(f"{path}, line {number}, is no label; write it like {example}.") from error
    return sorted(found, key=lambda event: event.time)
