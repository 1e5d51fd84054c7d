"""A run as the field has them, as plain data: a pretrained decoder and tower, adapted by LoRA to a data set.

What it takes is known before it can run: `videollm-mod train NAME --dry-run`. VideoLLM-MoD's own settings (arXiv
2408.16730, and VideoLLM-online's, which it follows) are the defaults.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig

from videollm_mod.adapters import LoraSettings
from videollm_mod.depth import DepthPlan
from videollm_mod.model import StreamSettings
from videollm_mod.train.recipe import check_means


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
    data: str  # the data set
    lm: Pretrained
    tower: Pretrained
    # What a sample is like, to reckon with; the longest are longer. `--set frames=1200` reckons with the paper's limit.
    frames: int  # at `settings.fps`
    text: int  # tokens that are words: system text, questions, replies
    replies: int  # of these, learned ones
    narrated: bool  # whether each frame's decision to speak is learned, too
    samples: int = 0  # of an epoch; 0 = unknown until the reader of the data set counts them
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
        return f"{self.name} cannot run yet: a reader of {self.data} is missing; --dry-run tells what it would take."
