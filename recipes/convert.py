"""A dense streaming model made a routed one: `videollm-mod train convert --start FOLDER [--data FILE.jsonl]`.

The gate starts as the plain layer, and routed layers keep all tokens at first and fewer with every step, down to a
fifth: so the model begins as it was and never meets a jump. A frame's last token, which may be the one that decides,
skips no layer, so that an expert in the last layer can learn too. Grid, prompt, frame rate and picture size stay as
they are. One with LoRA (a VideoLLM-online checkpoint, say) goes on with it: connector and experts are trained in full,
its base stays as it is. The paper's low learning rate, as the weights are good already.
"""

from __future__ import annotations

from videollm_mod.depth import DepthPlan
from videollm_mod.train.recipe import Phase, Recipe
from videollm_mod.world import WorldConfig


def recipe() -> Recipe:
    """On the coloured shapes' world, or on one's own videos; the keep ratio falls over the first half."""
    return Recipe(
        name="convert",
        as_start=True,
        tower_stage=None,
        plan=DepthPlan(layers="interleaved", keep=0.2, keep_last=True),
        phases=(Phase(600, 2, WorldConfig(seconds=28, events_per_minute=15, questions=10)),),
        keep_warmup=300,
        lr=2e-4,
        tower_lr=0.0,
        change_weight=0.0,
        weight_decay=0.0,
        validate_every=100,
    )
