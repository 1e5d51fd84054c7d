"""StreamingVideoLM: vision tower + connector + any causal LM + a depth plan, with its losses and its folder on disk.

The vision tokens of a frame stand where the dialogue's placeholders are. Loss (VideoLLM-MoD, arXiv 2408.16730, after
VideoLLM-online): cross-entropy on replies + weight x cross-entropy on each frame's decision to speak or not, both
summed and divided by the number of labels.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from videollm_mod.adapters import has_lora, save_adapter
from videollm_mod.card import write_card
from videollm_mod.depth import DepthPlan, apply_depth, get_plan
from videollm_mod.depth.swap import find_decoder
from videollm_mod.dialogue import IGNORE, TEMPLATES
from videollm_mod.hub import push_folder
from videollm_mod.pretrained import write_folder
from videollm_mod.types import InputError
from videollm_mod.vision import FrameEncoder

if TYPE_CHECKING:
    from videollm_mod.reductions.base import Reduction
    from videollm_mod.reductions.runner import Reducing


@dataclass(frozen=True)
class StreamSettings:
    """How the model is used on a stream; stored with its weights. Raises InputError for a value that cannot be."""

    system: str = "You watch a video stream and say what happens."
    fps: float = 2.0  # frames per second it was trained on
    threshold: float = 0.725  # it speaks when the probability of the interval token falls below this
    decide: str = "last"  # which token decides to speak: see StreamTemplate
    template: str = "plain"  # how conversations are laid out: see dialogue.TEMPLATES
    stream_weight: float = 1.0  # of the decision loss
    max_reply_tokens: int = 32
    # seconds of video that a session remembers at least, and twice as many at most; None: all of it. A model does not
    # understand more than it saw at a time in training, so half of that is right
    window: float | None = None

    def __post_init__(self) -> None:
        share, weight, tokens, window = self.threshold, self.stream_weight, self.max_reply_tokens, self.window
        for name, fits, why in (
            ("system", isinstance(self.system, str), "is no text; give what the model is told first"),
            ("fps", _finite(self.fps) and self.fps > 0, "is no frame rate; give frames per second, such as 2"),
            ("threshold", _finite(share) and 0 <= share <= 1, "is outside [0, 1]; it is a probability"),
            ("decide", self.decide in ("last", "own"), 'is unknown; take "last" or "own"'),
            ("template", self.template in TEMPLATES, f"is unknown; take one of {', '.join(TEMPLATES)}"),
            ("stream_weight", _finite(weight) and weight >= 0, "is no weight; give a number of 0 or more"),
            ("window", window is None or (_finite(window) and window > 0), "is no time; give seconds, such as 30"),
            ("max_reply_tokens", type(tokens) is int and tokens > 0, "is no number of tokens; give 1 or more"),
        ):
            if not fits:
                raise InputError(f"{name} {getattr(self, name)!r} {why}.")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StreamSettings:
        """From `dataclasses.asdict`; an unknown key is an error, not silently dropped."""
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise InputError(f"settings has an unknown entry '{min(unknown)}'; remove it or upgrade.")
        try:
            return cls(**values)
        except InputError as error:
            raise InputError(f"settings: {error}") from error


@dataclass
class Output:
    """What one forward gives. Losses are None without labels."""

    loss: Tensor | None
    lm_loss: Tensor | None  # mean over reply labels
    stream_loss: Tensor | None  # mean over decision labels
    logits: Tensor  # (batch, positions, vocabulary)
    positions: Tensor | None  # (positions,) int64: where the logits are; None = the last ones
    past_key_values: Any


class StreamingVideoLM(nn.Module):
    """A causal LM that watches: `encoder` makes frames tokens, `connector` takes them to the `lm`, routed by a plan."""

    def __init__(
        self,
        encoder: FrameEncoder,
        connector: nn.Module,
        lm: PreTrainedModel,
        tokenizer: Any,
        plan: DepthPlan | None = None,
        settings: StreamSettings | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.connector, self.lm = encoder, connector, lm
        self.settings = settings or StreamSettings()
        self.reducing: Reducing | None = None  # within `with reduction.on(model)`: see reductions/
        self.trained_plan: DepthPlan | None = None  # of a model that was loaded; `plan` may be another one
        self.weights: str | None = None  # "int8", "int4": what weights.py has made of the decoder's
        self.kv: str | None = None  # "int8", "fp8": how its sessions store keys and values, unless told otherwise
        self.base: dict[str, str] | None = None  # where the weights are that LoRA leaves alone: see adapters.base_of
        kind = TEMPLATES[self.settings.template]
        self.template = kind(tokenizer, encoder.tokens_per_frame, self.settings.decide)  # type: ignore[arg-type]
        apply_depth(lm, plan if plan is not None else DepthPlan("full"))

    @property
    def plan(self) -> DepthPlan:
        plan = get_plan(self.lm)
        assert plan is not None  # __init__ applied one
        return plan

    @property
    def told_layers(self) -> list[int]:
        """The layers that tell which tokens went through: routed ones, and those behind which a reduction shows."""
        return sorted({*self.plan.routed(self.num_layers), *(self.reducing.tells if self.reducing else [])})

    @property
    def feature_width(self) -> int:
        """Numbers in a row of a frame's tokens: the tower's, and behind them what a reduction asked for."""
        return self.encoder.width if self.reducing is None else self.reducing.tower.width

    @property
    def device(self) -> torch.device:
        return next(self.lm.parameters()).device

    @property
    def num_layers(self) -> int:
        return len(find_decoder(self.lm).layers)

    def embed(self, input_ids: Tensor, frame_index: Tensor, features: Tensor | None) -> Tensor:
        """Word embeddings, with the connected frame tokens at the placeholders: (batch, tokens, d).

        features: (frames, tokens per frame, tower width), all frames of the batch, row by row and in order. Signals of
            the tower for a reduction may stand behind a row's vector.
        """
        vision = (frame_index >= 0).to(input_ids.device)
        embeds = self.lm.get_input_embeddings()(input_ids.masked_fill(vision, 0))
        if features is None:
            return embeds
        # a connector that learns is float32 beside a frozen tower and decoder in bf16
        rows = features[..., : self.encoder.width]
        rows = rows.to(next(self.connector.parameters(), rows).dtype)
        tokens = self.connector(rows).flatten(0, 1).to(embeds.dtype)  # (frames * tokens, d)
        return embeds.masked_scatter(vision[..., None], tokens)

    def forward(
        self,
        input_ids: Tensor,
        frame_index: Tensor,
        features: Tensor | None = None,
        *,
        frame_scores: Tensor | None = None,
        labels: Tensor | None = None,
        decision: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool = False,
        logits_to_keep: int | Tensor = 1,
        kept_out: dict[int, Tensor] | None = None,
        scores_out: dict[int, Tensor] | None = None,
        label_count: int | None = None,
    ) -> Output:
        """One step or one pass over (batch, tokens) ids; `features` are the encoder's tokens of its frames.

        `frame_scores` (frames, tokens per frame), as `features`: who is kept, for a plan with the scorer `given`.
        With `labels` (already shifted: labels[i] is what position i predicts) logits are computed at labelled positions
        only, and the loss is divided by `label_count`, or by the number of labels in this batch if that is None.
        `kept_out` and `scores_out` are filled: layer -> (batch, tokens), who went through, for `told_layers`; who
        scored how much, for those that have experts.
        """
        if labels is not None:
            logits_to_keep = (labels != IGNORE).any(0).nonzero().squeeze(1)
        inputs: dict[str, Any] = {
            "inputs_embeds": self.embed(input_ids, frame_index, features),
            "frame_index": frame_index,
            "token_scores": None if frame_scores is None else _at_vision(frame_index, frame_scores),
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep,
            "kept_out": kept_out,
            "scores_out": scores_out,
        }
        out = self.lm(**inputs) if self.reducing is None else self.reducing.run(inputs, features)
        positions = logits_to_keep if isinstance(logits_to_keep, Tensor) else None
        if labels is None:
            return Output(None, None, None, out.logits, positions, out.past_key_values)
        assert positions is not None and decision is not None
        target, decides = labels[:, positions], decision[:, positions]  # (batch, positions)
        each = nn.functional.cross_entropy(
            out.logits.flatten(0, 1).float(), target.flatten(), ignore_index=IGNORE, reduction="none"
        ).view_as(target)  # 0 where nothing is learned
        learned = target != IGNORE
        stream, text = each[decides].sum(), each[~decides].sum()
        stream_labels, text_labels = int((learned & decides).sum()), int((learned & ~decides).sum())
        loss = (text + self.settings.stream_weight * stream) / max(label_count or (stream_labels + text_labels), 1)
        return Output(
            loss,
            text.detach() / max(text_labels, 1),
            stream.detach() / max(stream_labels, 1),
            out.logits,
            positions,
            out.past_key_values,
        )

    # -- on disk -------------------------------------------------------------------------------------------------------

    def save_pretrained(
        self, folder: str | Path, *, dtype: torch.dtype | None = None, metrics: dict[str, float] | None = None
    ) -> None:
        """Write config.json, lm/, tokenizer/, model.safetensors (weights in `dtype`, if given) and a model card.

        With LoRA: adapter, connector, experts and the name of the base instead of its weights (adapters.py).
        Raises InputError for a model with rounded weights: what was lost would pass for the model.
        """
        if self.weights is not None:
            raise InputError(f"weights in {self.weights} are for inference; save the model as it was loaded without.")
        config: dict[str, Any] = {
            "format": 1,
            "tower": self.encoder.tower.to_config(),
            "grid": list(self.encoder.grid),
            "plan": self.plan.to_dict(),
            "settings": dataclasses.asdict(self.settings),
        }
        if has_lora(self):
            config = save_adapter(Path(folder), self, config, dtype)
        else:
            write_folder(Path(folder), self, config, self.lm.config, self.template.tokenizer, dtype)
        write_card(Path(folder), config, metrics)

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool = False,
        token: str | None = None,
        dtype: torch.dtype | None = None,
        metrics: dict[str, float] | None = None,
    ) -> str:
        """Put what `save_pretrained` writes on the hub as `name`, "owner/name"; returns its address.

        Raises InputError when the hub cannot be reached or refuses.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, dtype=dtype, metrics=metrics)
            return push_folder(Path(folder), name, private=private, token=token)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        plan: DepthPlan | str | tuple[int, ...] | None = None,
        keep: float | None = None,
        threshold: float | None = None,
        dtype: torch.dtype = torch.float32,
        learned: torch.dtype | None = None,
        weights: str | None = None,
        kv: str | None = None,
        base: str | Path | None = None,
        tower: str | Path | None = None,
        reduction: Reduction | dict[str, Any] | str | None = None,
    ) -> StreamingVideoLM:
        """Read what `save_pretrained` wrote, or a public VideoLLM-online checkpoint: a folder, or a hub id.

        `plan` (whole, or just its layers) and `keep` replace its own. Weights are read as `dtype`; tower, connector,
        experts and LoRA's as `learned`, if given: so that they learn in float32 over a decoder in bf16. For inference:
        `weights` "int8" or "int4" rounds the decoder's (weights.py), `kv` "int8" or "fp8" what its sessions cache
        (depth/quantised.py); `reduction`, an object, its `to_dict` or words such as "faster_vlm=0.25", is in the model
        for good, as within its `on`, with the system text for a question. `base` and `tower` say where those are that
        an adapter was trained on, if not where it says. Raises InputError when a file or a tensor is missing, of a
        wrong shape, or unknown, when the name cannot be reached, or the reduction does not fit the model.
        """
        from videollm_mod.loading import Wishes, read_model  # which imports this

        return read_model(name, Wishes(plan, keep, threshold, dtype, base, tower, weights, kv, learned, reduction))


def _at_vision(frame_index: Tensor, frame_scores: Tensor) -> Tensor:
    """(frames, tokens per frame) -> (batch, tokens), 0 at text."""
    zeros = torch.zeros(frame_index.shape, dtype=frame_scores.dtype)
    return zeros.masked_scatter(frame_index.cpu() >= 0, frame_scores.cpu())


def _finite(value: Any) -> bool:
    """Whether a value is a number that counts; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def load(
    name: str | Path, *, depth: DepthPlan | str | tuple[int, ...] | None = None, **options: Any
) -> StreamingVideoLM:
    """A model by name: `tiny`, which is bundled, a folder, or a hub id; routed by the plan `depth`, if one is given.

    Options: see `StreamingVideoLM.from_pretrained`.
    """
    return StreamingVideoLM.from_pretrained(name, **options if depth is None else {**options, "plan": depth})
