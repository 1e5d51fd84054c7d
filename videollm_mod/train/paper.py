"""A run as the field has them, as plain data: a pretrained decoder and tower, adapted by LoRA to a data set.

What it takes is known before it can run: `videollm-mod train NAME --dry-run`. With a file of the data set's streams,
which `videollm-mod data build` makes, `as_recipe` gives what runs: `train NAME --data FILE.jsonl`. VideoLLM-MoD's own
settings (arXiv 2408.16730, and VideoLLM-online's, which it follows) are the defaults.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from videollm_mod.adapters import LoraSettings
from videollm_mod.data.own import read_videos, split_videos
from videollm_mod.depth import DepthPlan
from videollm_mod.loading import has_adapter, has_words
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import Phase, Recipe, check_means
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig


@dataclass(frozen=True)
class Pretrained:
    """A published model."""

    id: str  # on the hub, or a folder
    architecture: dict[str, Any]  # of its Transformers configuration, so that nothing need be fetched to reckon

    @property
    def config(self) -> Any:
        """Its Transformers configuration."""
        return AutoConfig.for_model(**self.architecture)


@dataclass(frozen=True)
class PaperRecipe:
    """A run. The connector and the experts are trained in full, the tower not at all."""

    name: str
    data: str  # the data set, as `data build` knows it
    lm: Pretrained
    tower: Pretrained
    # What a sample is like, to reckon with; the longest are longer. `--set frames=1200` reckons with the paper's limit.
    frames: int  # at `settings.fps`
    text: int  # tokens that are words: system text, questions, replies
    replies: int  # of these, learned ones
    narrated: bool  # whether each frame's decision to speak is learned, too
    samples: int = 0  # of an epoch; 0 = unknown until the data set's streams are counted
    max_frames: int = 1200  # of a sample: longer ones are clipped
    epochs: int = 2
    plan: DepthPlan = field(default_factory=DepthPlan)
    grid: tuple[int, int] = (3, 3)
    adapter: LoraSettings = field(default_factory=LoraSettings)
    settings: StreamSettings = field(default_factory=StreamSettings)
    corrupt: float = 1.0  # share of samples in which one earlier reply is wrong: see corrupt.py
    streams: int = 64  # per step, of all processes together: 8 of batch 1, accumulated 8 times
    accumulate: int = 8
    devices: int = 8
    checkpointing: bool = True
    sharding: str = "ddp"  # the paper has ZeRO-2, between ddp and fsdp2
    bf16: bool = True  # frozen weights and arithmetic; what is trained stays in float32
    lr: float = 2e-4
    warmup: float = 0.05  # share of the steps; then a cosine down to 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_means(self.accumulate, self.sharding)

    @property
    def tokens_per_frame(self) -> int:
        return 1 + self.grid[0] * self.grid[1]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    def missing(self) -> str:
        """Why it cannot run yet, and what can be done."""
        return (
            f"{self.name} cannot run yet, without its data: give it as --data FILE.jsonl, which `videollm-mod data "
            f"build {self.data} --split train ...` writes; --dry-run tells what it would take."
        )


def as_recipe(
    paper: PaperRecipe, data: Path, *, start: str | None = None, size: int = 384, processes: int = 1
) -> Recipe:
    """The run on a file of streams, as one that can be trained.

    start: a streaming model to go on from, in place of the published decoder and tower. One with words for tokens is
        trained in full, for LoRA cannot teach it the data set's words; one with LoRA goes on with its own.
    size: of the tower's pictures, pixels. processes: how many train together; each takes one sample at a time.
    Raises InputError when the file cannot be read, or its lines do not say what is watched.
    """
    videos = read_videos(data)
    if not videos[0].is_sample:
        raise InputError(
            f"{data} does not say which stretches are watched; {paper.name} wants what `videollm-mod data build "
            f"{paper.data}` writes (your own videos go with `train own`)."
        )
    samples, held = len(split_videos(videos, "train")), len(split_videos(videos, "validation"))
    streams = min(paper.streams, samples)
    steps = paper.epochs * -(-samples // streams)
    world = WorldConfig(seconds=paper.max_frames / paper.settings.fps, fps=paper.settings.fps, size=size)
    return Recipe(
        name=paper.name,
        phases=(Phase(steps, streams, world),),
        plan=paper.plan,
        grid=paper.grid,
        settings=paper.settings,
        tower_stage=None,
        start=start,
        pretrained=None if start is not None else (paper.lm.id, paper.tower.id),
        as_start=start is not None,
        lora=None if start is not None and (has_words(start) or has_adapter(start)) else paper.adapter,
        data=str(data),
        corrupt=paper.corrupt,
        change_weight=0.0,
        lr=paper.lr,
        tower_lr=0.0,
        warmup=round(paper.warmup * steps),
        final_lr=0.0,
        weight_decay=0.0,
        bf16=paper.bf16,
        seed=paper.seed,
        validate_every=max(1, steps // 10),
        validation_streams=min(16, held),
        accumulate=max(1, -(-streams // processes)),
        checkpointing=paper.checkpointing,
        sharding=paper.sharding,
    )
