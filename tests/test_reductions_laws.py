"""What every registered reduction promises, on the same small models: identity, counts, causality, streaming, W."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stream_cases import frames, tiny_model

from videollm_mod.depth import DepthPlan, keep_count
from videollm_mod.dialogue import Assistant, Segment, Stream, System, User
from videollm_mod.model import StreamingVideoLM
from videollm_mod.reductions import Reduction, Signals, Tokens, methods
from videollm_mod.stream.session import StreamSession

TALK: list[Segment] = [System("Say what happens."), Stream(3), Assistant("A red square enters"), Stream(2)]
TALK += [User("What happened?"), Assistant("A red square"), Stream(1)]
each = pytest.mark.parametrize("name", methods())


def features_of(model: StreamingVideoLM, count: int = 6, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return model.encoder(torch.stack([torch.from_numpy(frame.image) for frame in frames(count, seed)]))


def one_pass(model: StreamingVideoLM, features: torch.Tensor) -> torch.Tensor:
    example = model.template.encode(TALK)
    with torch.no_grad():
        out = model(example.input_ids[None], example.frame_index[None], features, logits_to_keep=0)
    return out.logits[0, example.decision]  # (frames, vocabulary)


@each
@pytest.mark.parametrize("decide", ["last", "own"])
def test_with_keep_1_the_model_is_untouched(name: str, decide: str) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4), decide)
    features = features_of(model)
    expected = one_pass(model, features)
    with methods()[name](keep=1.0).on(model):
        assert torch.equal(one_pass(model, features), expected)


@each
@given(keep=st.floats(0.01, 1.0), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_the_declared_count_is_the_real_one_and_w_tells_where_everything_came_from(
    name: str, keep: float, rows: int, columns: int
) -> None:
    method: Reduction = methods()[name](keep=keep)
    n = rows * columns
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    tokens = Tokens.of_frame(x, (rows, columns), traced=True)
    out = method.reduce(tokens, Signals(total=n))
    assert len(out) == method.count(n) == keep_count(keep, n)
    w = out.w.to_dense()
    assert torch.allclose(w.sum(1), torch.ones(len(out), dtype=w.dtype))
    assert torch.allclose(w @ x, out.x)
    if method.merges:
        assert float(out.sizes.sum()) == pytest.approx(n)
    else:
        assert ((w == 0) | (w == 1)).all() and (out.sizes == 1).all()
    if method.ordered:
        places = out.positions[:, 1] * columns + out.positions[:, 2]
        assert (places.diff() > 0).all()


@each
def test_frame_by_frame_equals_one_pass(name: str) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.4), "own")
    with methods()[name](keep=0.5).on(model):
        session = StreamSession(model, threshold=0.0)
        silences = []
        for frame in frames(4):
            session.push(frame)
            silences.append(session.silence)
        example = model.template.encode([System(session.settings.system), Stream(4)])
        with torch.no_grad():
            out = model(example.input_ids[None], example.frame_index[None], features_of(model, 4), logits_to_keep=0)
    chance = out.logits[0, example.decision].softmax(-1)[:, model.template.interval_id]
    assert torch.allclose(chance, torch.tensor(silences, dtype=torch.float64), atol=1e-6)


@each
def test_it_is_gone_behind_the_with_also_after_an_error(name: str) -> None:
    model = tiny_model(DepthPlan("full"))
    features = features_of(model)
    expected = one_pass(model, features)
    with pytest.raises(ZeroDivisionError), methods()[name](keep=0.25).on(model):
        assert not torch.equal(one_pass(model, features), expected)
        raise ZeroDivisionError
    assert model.reducing is None
    assert torch.equal(one_pass(model, features), expected)
