"""Puts a reduction into a model and takes it out again: calls its one method at its stage, frame by frame.

A dropped token stays in the sequence, under its own position, and goes through no decoder layer: to the decoder it is a
vision token that every layer skips (depth/layout.py, `thin`). So dialogue, session, evaluation and training need not
know of reductions, and a reduced stream equals one pass over it as a routed one does.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videollm_mod.reductions.base import Compose, Positions, Reduction, Signals, Tokens
from videollm_mod.types import InputError

if TYPE_CHECKING:
    from videollm_mod.model import StreamingVideoLM


class Reducing:
    """A model with a reduction in it; made by `Reduction.on`."""

    def __init__(
        self,
        model: StreamingVideoLM,
        reduction: Reduction,
        *,
        question: str | None = None,
        positions: Positions = "keep",
        traced: bool = False,
    ) -> None:
        self.model, self.reduction, self.positions, self.traced = model, reduction, positions, traced
        self.parts = reduction.parts if isinstance(reduction, Compose) else [reduction]
        self.question = question
        self.last: list[Tokens] = []  # if traced: what the newest forward's frames became, row by row and in order

    def __enter__(self) -> Reducing:
        if self.model.reducing is not None:
            raise InputError(f"the model has {self.model.reducing.reduction.label} already; use Compose for several.")
        self.model.reducing = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.model.reducing = None

    # -- stage tokens --------------------------------------------------------------------------------------------------

    def enter(
        self, embeds: Tensor, frame_index: Tensor, features: Tensor | None, cache: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The step's embeddings (batch, tokens, d) with what the frames became, and which tokens are alive."""
        parts = [part for part in self.parts if part.stage == "tokens"]
        vision = frame_index.cpu() >= 0
        if features is None or not parts or not bool(vision.any()):
            return embeds, None
        frames, (rows, columns) = len(features), self.model.encoder.grid
        where = vision.to(embeds.device)
        x = embeds[where].view(frames, 1 + rows * columns, -1)
        numbers = frame_index.cpu()[vision].view(frames, -1)[:, 0].tolist()
        out, alive = x.clone(), torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        alive[:, 0] = True  # the CLS
        self.last = []
        for at, number in enumerate(numbers):
            tokens = Tokens.of_frame(x[at, 1:], (rows, columns), number, traced=self.traced)
            for part in parts:
                tokens = part.reduce(tokens, Signals(total=rows * columns))
            slots = self._slots(tokens, columns)
            out[at] = out[at].index_copy(0, slots, tokens.x)
            alive[at, slots] = True
            self.last.append(tokens)
        return embeds.masked_scatter(where[..., None], out), where.masked_scatter(where, alive)

    def _slots(self, tokens: Tokens, columns: int) -> Tensor:
        """Which of the frame's places its tokens take: their own, or in the method's order the same ones.

        Where a frame's last token decides whether to speak, the last survivor stands in that place.
        """
        slots = (1 + tokens.positions[:, 1] * columns + tokens.positions[:, 2]).sort().values
        if self.model.settings.decide == "last":
            slots[-1] = self.model.encoder.tokens_per_frame - 1
        return slots
