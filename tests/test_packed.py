"""Laid-out weights give the same products, follow their weights, and leave training alone."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import frames, tiny_model
from torch import nn

from videollm_mod import packed
from videollm_mod.depth import DepthPlan
from videollm_mod.packed import PackedLinear, lays_out, pack_linears, unpack_linears
from videollm_mod.stream.session import StreamSession

pytestmark = pytest.mark.skipif(not packed.available(), reason="PyTorch is built without oneDNN")


class Own(nn.Linear):
    """Somebody else's layer."""


def linear(inner: int = 24, outer: int = 40, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inner, outer, bias=bias)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 70),
    batch=st.integers(0, 3),
    sizes=st.tuples(st.integers(1, 65), st.integers(1, 65)),
    bias=st.booleans(),
)
def test_products_are_those_of_the_plain_layer(rows: int, batch: int, sizes: tuple[int, int], bias: bool) -> None:
    layer = linear(*sizes, bias)
    x = torch.randn(*[batch] * (batch > 0), rows, sizes[0])
    with torch.no_grad():
        plain = layer(x)
        assert torch.allclose(pack_linears(layer)(x), plain, atol=1e-5)


def test_a_weight_that_changes_is_laid_out_anew() -> None:
    layer, x = pack_linears(linear()), torch.randn(3, 24)
    with torch.no_grad():
        before = layer(x)
        layer.weight.mul_(2)
        layer.bias.zero_()
        assert torch.allclose(layer(x), x @ layer.weight.T, atol=1e-5) and not torch.allclose(layer(x), before)
        layer.weight.data = torch.ones_like(layer.weight)
        assert torch.allclose(layer(x), x.sum(-1, keepdim=True).expand(-1, 40), atol=1e-5)


def test_a_model_made_in_inference_mode_is_packed_too() -> None:
    with torch.inference_mode():
        layer, x = pack_linears(linear()), torch.randn(3, 24)
        assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
        assert layer.weight in packed._packed


def test_training_autocast_and_other_types_go_the_ordinary_way() -> None:
    layer, x = pack_linears(linear()), torch.randn(2, 3, 24)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight not in packed._packed
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert layer.double()(x.double()).dtype == torch.float64
        assert layer.float()(x[0, 0]).shape == (40,) and layer(x[:, :0]).shape == (2, 0, 40)
    assert layer.weight not in packed._packed


def test_bf16_is_multiplied_on_any_cpu_laid_out_where_it_has_such_products(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(24, 16).bfloat16()
    plain, packed = copy.deepcopy(layer), pack_linears(layer)
    x = torch.randn(3, 24).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(packed(x), plain(x), rtol=0.02, atol=0.02)

        def refuse(*args: object) -> None:  # as oneDNN does with AVX2 alone
            raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")

        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse)
        lays_out.cache_clear()
        assert torch.equal(packed(x), plain(x))
    lays_out.cache_clear()


def test_only_plain_layers_are_packed_and_names_copies_and_pickles_stay_whole() -> None:
    model = nn.Sequential(linear(), Own(40, 8), nn.Sequential(linear(8, 8)))
    names, x = list(model.state_dict()), torch.randn(3, 24)
    pack_linears(model)
    assert [type(module) for module in (model[0], model[1], model[2][0])] == [PackedLinear, Own, PackedLinear]
    assert list(model.state_dict()) == names
    with torch.no_grad():
        here = model(x)
        assert (copy.deepcopy(model)(x) == here).all() and (pickle.loads(pickle.dumps(model))(x) == here).all()
        assert model[0].weight in packed._packed
        unpack_linears(model)
    assert type(model[0]) is nn.Linear and model[0].weight not in packed._packed


def test_a_session_packs_its_decoder_and_says_the_same() -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4)).float()
    film, silences = frames(5), []
    for plain in (False, True):
        session = StreamSession(model, threshold=0)
        if plain:
            unpack_linears(model)
        assert any(isinstance(module, PackedLinear) for module in model.lm.modules()) != plain
        for frame in film:
            session.push(frame)
        silences.append(session.silence)
    assert silences[0] == pytest.approx(silences[1], abs=1e-6)
