"""The model card, README.md of a model's folder: its plan, its base, its numbers if they are known, how to load it.

A card is made anew at every save, unless a person has taken it over, that is, has deleted the line that says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CARD = "README.md"
MARK = "<!-- written by videollm-mod at every save; delete this line to keep your own changes -->"


def write_card(folder: Path, config: dict[str, Any], metrics: dict[str, float] | None) -> None:
    """Write the card of a model with this config.json, unless there is one of somebody's own."""
    path = folder / CARD
    if not path.exists() or MARK in path.read_text(encoding="utf-8"):
        path.write_text(card(config, metrics or {}), encoding="utf-8")


def card(config: dict[str, Any], metrics: dict[str, float]) -> str:
    """The card's text; the block at its head is what a hub reads."""
    base, plan, tower = config.get("base"), config["plan"], config["tower"]
    h, w = config["grid"]
    on_hub = [place for place in (base or {}).values() if _is_id(place)]
    head = ["library_name: videollm-mod", "pipeline_tag: video-text-to-text"]
    head += ["base_model:", *(f"- {place}" for place in on_hub)] if on_hub else []
    head += ["tags:", "- streaming-video", "- mixture-of-depths"]
    lines = [
        *("---", *head, "---", MARK, ""),
        "# A streaming video language model",
        "",
        "It watches a video frame by frame, keeps silent while nothing needs saying, speaks when something happens and "
        "answers questions (VideoLLM-MoD, [arXiv 2408.16730](https://arxiv.org/abs/2408.16730)).",
        "",
        f"- Plan: {_plan(plan)}",
        f"- Frames: {config['settings']['fps']:g} a second, {1 + h * w} tokens each (1 + {h}x{w}), tower "
        f"`{tower['kind']}`",
    ]
    if base:
        places = ", ".join(f"`{place if _is_id(place) else Path(place).name}` ({part})" for part, place in base.items())
        lines += [f"- Base: {places}; this folder holds LoRA, connector and experts only, not the base's weights"]
    if metrics:
        lines += ["", "| metric | value |", "|---|---|", *(f"| {key} | {value:g} |" for key, value in metrics.items())]
    lines += [
        *("", "```python", "import videollm_mod as vm", ""),
        'session = vm.StreamSession(vm.load("FOLDER OR OWNER/NAME"))',
        f'for frame in vm.open_video("clip.mp4", fps={config["settings"]["fps"]:g}):',
        "    for event in session.push(frame):",
        "        print(event.time, event.text)",
        *("```", ""),
    ]
    return "\n".join(lines)


def _plan(plan: dict[str, Any]) -> str:
    """A plan in words."""
    if plan["layers"] == "full":
        return "full (every vision token goes through every layer)"
    layers = plan["layers"] if isinstance(plan["layers"], str) else f"layers {', '.join(map(str, plan['layers']))}"
    if layers in ("early-exit", "layer-skip"):
        return str(layers)
    return f"{layers}, keep {plan['keep']} of each frame's vision tokens; scorer {plan['scorer']}, gate {plan['gate']}"


def _is_id(place: str) -> bool:
    """Whether a base is named by a hub id, not by a folder of this machine, which is nobody's business."""
    return place.count("/") == 1 and not place.startswith((".", "/", "~"))
