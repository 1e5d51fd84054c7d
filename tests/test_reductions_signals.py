"""Signals are what the plain attention maps say, of the layers asked for and no others; pruning inside the tower."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from reduction_cases import decisions, features_of, method, small_model
from stream_cases import frames

from videollm_mod.depth import RaggedCache
from videollm_mod.dialogue import Stream, System
from videollm_mod.model import StreamingVideoLM
from videollm_mod.reductions import Reduction, Signals, Tokens
from videollm_mod.reductions.attention import _ears
from videollm_mod.reductions.base import HERE
from videollm_mod.reductions.tower import patch_entropy
from videollm_mod.types import InputError
from videollm_mod.vision import FrameEncoder


@dataclass
class Asking(Reduction):
    """Keeps all, and notes what it is told."""

    keep: float = 1.0
    wants: tuple[tuple[str, int], ...] = ()
    after: tuple[int, ...] = ()
    told: list[dict[Any, torch.Tensor]] = field(default_factory=list)

    title: ClassVar[str] = "asking"

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return self.wants

    def cuts(self, layers: int) -> dict[int, float]:
        return dict.fromkeys(self.after, 1.0)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        self.told.append(signals.values)
        return tokens


@dataclass
class AskingInside(Asking):
    stage: ClassVar = "layer"


def maps_of(model: StreamingVideoLM, layer: int) -> torch.Tensor:
    """The tower's attention in a layer, by its own eager path: (frames, heads, tokens, tokens)."""
    tower = copy.deepcopy(model.encoder.tower)
    tower.model.set_attn_implementation("eager")
    found: list[torch.Tensor] = []
    for name, module in tower.model.named_modules():
        if name.endswith(f"layers.{layer}.self_attn"):
            module.register_forward_hook(lambda module, args, output: found.append(output[1]))
    with torch.no_grad():
        FrameEncoder(tower, model.encoder.grid)(images(2))
    return found[0]


def images(count: int) -> torch.Tensor:
    return torch.stack([torch.from_numpy(frame.image) for frame in frames(count)])


def signals_of(model: StreamingVideoLM, *needs: tuple[str, int]) -> list[dict[Any, torch.Tensor]]:
    asking = Asking(wants=needs)
    with asking.on(model):
        decisions(model, features_of(model, 2), [Stream(2)])
    return asking.told


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_attention_of_the_tower_is_that_of_its_eager_path(kind: str) -> None:
    model = small_model(kind)
    told = signals_of(model, ("cls_attention", -2), ("received_attention", 1), ("tower_attention", -1))
    skipped = int(kind == "clip")
    for frame in range(2):
        second, deep, last = (maps_of(model, layer)[frame] for layer in (1, 3, 4))
        cls = deep.mean(0)[0, 1:] if kind == "clip" else deep.mean((0, 1))
        assert torch.allclose(told[frame]["cls_attention", -2], cls)
        assert torch.allclose(told[frame]["received_attention", 1], second.mean((0, 1))[skipped:])
        cells = last[:, skipped:, skipped:].transpose(0, 1)
        assert torch.allclose(told[frame]["tower_attention", -1], cells)


def test_where_cells_are_pooled_so_are_their_signals() -> None:
    model = small_model()
    fine = signals_of(model, ("cls_attention", -2))[0]["cls_attention", -2].view(4, 4)
    own, tokens = model.encoder.grid, model.encoder.tokens_per_frame
    try:
        model.encoder.grid, model.encoder.tokens_per_frame, model.template.tokens_per_frame = (2, 2), 5, 5
        coarse = signals_of(model, ("cls_attention", -2))[0]["cls_attention", -2]
    finally:
        model.encoder.grid, model.encoder.tokens_per_frame, model.template.tokens_per_frame = own, tokens, tokens
    assert torch.allclose(coarse, fine.unflatten(1, (2, 2)).unflatten(0, (2, 2)).mean((1, 3)).flatten())


def test_the_conv_towers_one_attention_stands_for_what_cls_attends_to() -> None:
    model = small_model("conv")
    told = signals_of(model, ("cls_attention", -2))[0]["cls_attention", -2]
    assert float(told.sum()) == pytest.approx(1.0) and len(told) == 4
    with pytest.raises(InputError, match="the conv tower has no attention between its cells"):
        Asking(wants=(("received_attention", 3),)).on(model)


def test_a_layer_that_the_tower_has_not_is_refused_by_its_number() -> None:
    with pytest.raises(InputError, match="of layer 8, but the tower has 5 layers"):
        Asking(wants=(("received_attention", 8),)).on(small_model())


def test_nobody_listens_but_to_the_layers_that_were_asked_for() -> None:
    model, heard = small_model(), []
    layers = model.encoder.tower.model.encoder.layers
    hook = layers[3].self_attn.register_forward_pre_hook(lambda module, args, kwargs: heard.append(set(_ears)),
                                                         with_kwargs=True)  # fmt: skip
    try:
        signals_of(model, ("cls_attention", 3))
    finally:
        hook.remove()
    assert heard[0] == {layers[3].self_attn} and not _ears
    with method("uniform", 0.5).on(model):
        features_of(model, 1)
        assert not _ears


def test_entropy_is_that_of_grey_levels_in_bits() -> None:
    picture = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    picture[0, :4, 4:] = torch.arange(16, dtype=torch.uint8).view(4, 4)[..., None]  # 16 levels, each once
    picture[0, 4:, :2] = 255  # half of the cell
    assert torch.allclose(patch_entropy(picture, (2, 2)), torch.tensor([[[0.0, 4.0], [1.0, 0.0]]]), atol=1e-5)


def test_attention_of_the_deciding_token_is_a_row_of_the_decoders_map() -> None:
    """In one pass, and in the same stream frame by frame, where keys come from the cache."""
    model = small_model()
    asking = AskingInside(wants=(("last_attention", HERE), ("text_attention", HERE)), after=(1,))
    talk = [System("Say what happens."), Stream(2)]
    example = model.template.encode(talk)
    with asking.on(model):
        decisions(model, features_of(model, 2), talk)
    lm = copy.deepcopy(model.lm)
    lm.set_attn_implementation("eager")
    found: list[torch.Tensor] = []
    lm.model.layers[1].self_attn.register_forward_hook(lambda module, args, output: found.append(output[1]))
    with torch.no_grad():
        embeds = model.embed(example.input_ids[None], example.frame_index[None], features_of(model, 2))
        lm(inputs_embeds=embeds, frame_index=example.frame_index[None])
    deciding = example.decision.nonzero()[:, 0].tolist()
    for frame in range(2):
        cells = (example.frame_index == frame).nonzero()[1:, 0]
        expected = found[0][0, :, deciding[frame], cells].mean(0)
        assert torch.allclose(asking.told[frame]["last_attention", HERE], expected)
        assert torch.allclose(asking.told[frame]["text_attention", HERE], expected)  # no other text is there
    alone, cache = AskingInside(wants=asking.wants, after=(1,)), RaggedCache(4)
    first = deciding[0] + 1
    with alone.on(model), torch.no_grad():
        for part, at in ((slice(0, first), 0), (slice(first, None), 1)):
            model(
                example.input_ids[None, part],
                example.frame_index[None, part],
                features_of(model, 2)[at : at + 1],
                past_key_values=cache,
                use_cache=True,
            )
    for one, other in zip(asking.told, alone.told):
        assert torch.allclose(one["last_attention", HERE], other["last_attention", HERE])


def test_flowcut_spares_later_blocks_the_cells_that_are_gone() -> None:
    model, sizes = small_model(), []
    blocks = model.encoder.tower.model.encoder.layers
    hooks = [block.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1])) for block in blocks]
    try:
        with method("flow_cut", 0.25).on(model):
            found = features_of(model, 1)
    finally:
        for hook in hooks:
            hook.remove()
    assert sizes[0] == 17 and sizes[-2:] == [5, 5] and sizes == sorted(sizes, reverse=True)
    alive = found[0, 1:, -1]
    assert alive.sum() == 4 and (found[0, 1:, :-1][alive == 0] == 0).all()
    assert found.shape == (1, 17, 17)  # 16 wide, and who is alive


def test_flowcut_keeps_whole_tokens_where_cells_are_pooled() -> None:
    model = small_model("siglip")
    own, tokens = model.encoder.grid, model.encoder.tokens_per_frame
    try:
        model.encoder.grid, model.encoder.tokens_per_frame = (2, 2), 5
        with method("flow_cut", 0.5).on(model):
            found = features_of(model, 1)
    finally:
        model.encoder.grid, model.encoder.tokens_per_frame = own, tokens
    assert found[0, 1:, -1].sum() == 2
    assert found.isfinite().all()
