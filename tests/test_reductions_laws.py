"""What every registered reduction promises: identity, counts, W, causality, streaming, batches, leaving no trace."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reduction_cases import FRAMES, all_cuts, decisions, features_of, logits_of, method, small_model
from stream_cases import frames
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from videollm_mod.depth import DepthPlan, RaggedCache
from videollm_mod.depth.expert import uniform_places
from videollm_mod.dialogue import Stream, System, collate
from videollm_mod.model import StreamingVideoLM
from videollm_mod.reductions import Compose, Tokens, methods
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError

pytestmark = pytest.mark.slow  # every law once more, for every method

each = pytest.mark.parametrize("name", methods())
QUESTION = "What happened?"
ROUTED = DepthPlan("interleaved", 0.4)


@each
def test_with_keep_1_the_model_is_untouched(name: str) -> None:
    for decide in ("last", "own"):
        model, one = small_model("clip", decide), method(name, 1.0)
        expected = decisions(model, features_of(model))
        with one.on(model, question=QUESTION):
            found = decisions(model, features_of(model))
        if one.stage in ("layer", "cache"):  # other steps, other orders of summing up
            assert torch.allclose(found, expected, atol=1e-9)
        else:
            assert torch.equal(found, expected)


@each
@settings(max_examples=6)
@given(keep=st.floats(0.01, 1.0), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_the_declared_count_is_the_real_one_and_w_tells_where_everything_came_from(
    name: str, keep: float, rows: int, columns: int
) -> None:
    one, n = method(name, keep), rows * columns
    x = torch.randn(n, 12, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    if one.stage == "frames":
        x = x.sigmoid()
    out = all_cuts(one, Tokens.of_frame(x, (rows, columns), traced=True))
    assert 1 <= len(out) <= one.count(n) and (len(out) == one.count(n) or not one.exact)
    assert out.w is not None
    w = out.w.to_dense()
    assert torch.allclose(w.sum(1), torch.ones(len(out), dtype=w.dtype))
    assert torch.allclose(w @ x, out.x)
    mixed = one.prepare(Tokens.of_frame(x, (rows, columns), traced=True))
    assert mixed.w is not None and len(mixed) == n
    assert torch.allclose(mixed.w.to_dense().sum(1), torch.ones(n, dtype=w.dtype))
    assert torch.allclose(mixed.w.to_dense() @ x, mixed.x)
    if one.merges:
        assert float(out.sizes.sum()) <= n + 1e-6
    else:
        assert ((w == 0) | (w == 1)).all() and (out.sizes == 1).all()
        assert torch.equal(out.x, x[w.argmax(1)])
    places = out.positions[:, 1] * columns + out.positions[:, 2]
    assert len(places.unique()) == len(out)
    if one.ordered:
        assert (places.diff() > 0).all()


@each
def test_the_cache_holds_as_many_entries_as_declared(name: str) -> None:
    model, one = small_model(), method(name, 0.3)
    if one.streamable == "whole":
        pytest.skip("its count is of a whole video")
    with one.on(model, question=QUESTION):
        session = StreamSession(model, threshold=0.0)
        for frame in frames(2):
            session.push(frame)
    text = len(model.template.system(model.settings.system)) + 3  # "[", two of ","
    reached = [text + 2 * (1 + one.count(16))] * 4  # CLS besides
    whole = text + 2 * 17
    if one.stage == "layer":  # the first layers see all
        last = max(one.cuts(4))
        stored = session.state().stored
        assert stored[0] == whole and all(a >= b for a, b in zip(stored, stored[1:]))
        assert not one.exact or stored[last + 1 :] == reached[last + 1 :]
    elif one.exact:
        assert session.state().stored == reached
    else:
        assert all(text + 2 < entries <= most for entries, most in zip(session.state().stored, reached))


@each
@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("keep", [0.001, 0.4, 0.99])
def test_frame_by_frame_equals_one_pass_also_with_a_depth_plan(name: str, kind: str, keep: float) -> None:
    for decide, plan in (("own", None), ("last", ROUTED)):
        model, one = small_model(kind, decide, plan), method(name, keep)
        with one.on(model, question=QUESTION):
            if one.streamable == "whole":
                if type(one.causal()) is type(one):
                    raise AssertionError("a method over the whole video is no form for streams")
                continue
            session, silences = StreamSession(model, threshold=0.0), []
            for frame in frames(4):
                session.push(frame)
                silences.append(session.silence)
            found = decisions(model, features_of(model, 4), [System(session.settings.system), Stream(4)])
        chance = found.softmax(-1)[:, model.template.interval_id]
        if not _looks_at_later_text(name):
            assert torch.allclose(chance, torch.tensor(silences, dtype=torch.float64), atol=1e-6)


def _looks_at_later_text(name: str) -> bool:
    """Whether what it keeps of a frame hangs on text that a stream has behind it: then it may not stream unasked."""
    one = method(name, 0.4)
    later = any(signal == "text_attention" for signal, _ in one.needs)
    return later and one.streamable == "question"


@each
def test_the_future_changes_nothing_where_it_says_that_it_streams(name: str) -> None:
    model, one = small_model(), method(name, 0.4)
    if one.streamable in ("whole", "lookahead"):
        pytest.skip("it says that it does not")
    with one.on(model, question=QUESTION):
        film = features_of(model)
        other = torch.cat([film[:3], features_of(model, FRAMES, seed=1)[3:]])
        assert torch.equal(decisions(model, film)[:3], decisions(model, other)[:3])


@each
def test_in_chunks_and_after_rolling_back_it_is_the_same(name: str) -> None:
    model, one = small_model(), method(name, 0.4)
    if one.streamable in ("whole", "lookahead") or _looks_at_later_text(name):
        pytest.skip("what it keeps of a frame hangs on what comes after it")
    example = model.template.encode([System("Say what happens."), Stream(4)])
    ends = [int(at) + 1 for at in example.decision.nonzero()[:, 0]]
    with one.on(model, question=QUESTION), torch.no_grad():
        film, cache = features_of(model, 4), RaggedCache(4)
        whole = model(example.input_ids[None], example.frame_index[None], film, logits_to_keep=0).logits[0]

        def go(begin: int, end: int, shown: torch.Tensor) -> torch.Tensor:
            part, how = slice(begin, end), dict(past_key_values=cache, use_cache=True, logits_to_keep=0)
            return model(example.input_ids[None, part], example.frame_index[None, part], shown, **how).logits[0]

        go(0, ends[1], film[:2])
        go(ends[1], ends[3], film[:2])  # others than those that come
        cache.crop_to(ends[1])
        rest = go(ends[1], ends[3], film[2:])
    assert torch.allclose(rest, whole[ends[1] :], atol=1e-9)


@each
def test_nothing_is_left_behind_the_with_also_after_an_error(name: str) -> None:
    model, sdpa = small_model(), ALL_ATTENTION_FUNCTIONS["sdpa"]
    features = features_of(model)
    expected = logits_of(model, features)[0]
    with pytest.raises(ZeroDivisionError), method(name, 0.1).on(model, question=QUESTION):
        changed = not torch.equal(logits_of(model, features_of(model))[0], expected)
        assert changed or not methods()[name].exact  # what drops only what nobody looks at may drop nothing
        raise ZeroDivisionError
    assert model.reducing is None and "forward" not in vars(model.encoder)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is sdpa
    assert torch.equal(logits_of(model, features)[0], expected)


@each
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_batch_of_two_equals_two_batches_of_one(name: str, kind: str) -> None:
    model, one = small_model(kind), method(name, 0.4)
    talks = [[System("Say what happens."), Stream(2)], [Stream(1)]]
    examples = [model.template.encode(talk) for talk in talks]
    batch = collate(examples)
    with one.on(model, question=QUESTION), torch.no_grad():
        features = features_of(model, 3)
        how = dict(logits_to_keep=0)
        both = model(batch.input_ids, batch.frame_index, features, attention_mask=batch.attention_mask, **how).logits
        for row, (example, own) in enumerate(zip(examples, (features[:2], features[2:]))):
            alone = model(example.input_ids[None], example.frame_index[None], own, **how).logits[0]
            assert torch.allclose(both[row, : len(alone)], alone, atol=1e-9)


@each
@pytest.mark.parametrize("kind", ["siglip", "conv"])
def test_with_other_towers_it_works_or_says_why_not(name: str, kind: str) -> None:
    model, one = small_model(kind), method(name, 0.3)
    try:
        context = one.on(model, question=" ")  # an empty question
    except InputError as error:
        assert kind == "conv" and ("attention" in str(error) or "blocks" in str(error))
        return
    with context:
        assert decisions(model, features_of(model, 1), [Stream(1)]).isfinite().all()


@pytest.mark.parametrize("decide", ["last", "own"])
def test_positions_numbered_anew_are_those_of_a_stream_with_shorter_frames(decide: str) -> None:
    """FasterVLM's own habit: what is left stands side by side. Also in a stream, and when it forgets its beginning."""
    model, one = small_model("clip", decide), method("uniform", 0.25)  # 5 of 17 tokens are left, CLS among them
    talk = [System(model.settings.system), Stream(3)]
    with one.on(model, positions="renumber"):
        film = features_of(model, 3)
        found = decisions(model, film, talk)
        session, silences = StreamSession(model, threshold=0.0), []
        for frame in frames(3):
            session.push(frame)
            silences.append(session.silence)
    chance = found.softmax(-1)[:, model.template.interval_id]
    assert torch.allclose(chance, torch.tensor(silences, dtype=torch.float64), atol=1e-6)
    places = [0, *(1 + p for p in uniform_places(16, 4))]
    index, embeds = shorter(model, film[:, places], 3)
    with torch.no_grad():
        logits = model.lm(inputs_embeds=embeds, frame_index=index[None], logits_to_keep=0).logits[0]
    deciding = [i for i, n in enumerate(index.tolist()) if n >= 0 and index[i + 1 : i + 2].tolist() != [n]]
    deciding = [i + (decide == "own") for i in deciding]
    assert torch.allclose(logits[deciding], found, atol=1e-9)


def shorter(model: StreamingVideoLM, features: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A stream whose frames have fewer placeholders: frame index (tokens,), embeddings (1, tokens, d)."""
    template = model.template
    ids, index = template.system(model.settings.system), [-1] * len(template.system(model.settings.system))
    for number in range(count):
        chunk, vision = template.frame(first=number == 0)
        short = [token for token, is_vision in zip(chunk, vision) if not is_vision]
        at = vision.index(True)
        ids += short[:at] + [template.vision_id] * features.shape[1] + short[at:]
        index += [-1] * at + [number] * features.shape[1] + [-1] * (len(short) - at)
    with torch.no_grad():
        embeds = model.embed(torch.tensor([ids]), torch.tensor([index]), features)
    return torch.tensor(index), embeds


def test_methods_in_a_row_share_a_frame() -> None:
    model: StreamingVideoLM = small_model()
    both = Compose([method("faster_vlm", 0.5), method("quick_video", 0.5)])
    with both.on(model):
        session = StreamSession(model, threshold=0.0)
        session.push(frames(1)[0])
    text = len(model.template.system(model.settings.system)) + 2
    assert session.state().stored == [text + 1 + 4] * 4  # 16 -> 8 -> 4, and CLS


def test_stages_do_not_go_backwards() -> None:
    with pytest.raises(InputError, match="goes backwards; order the parts"):
        Compose([method("quick_video", 0.5), method("faster_vlm", 0.5)])


def test_a_model_has_one_reduction_at_a_time() -> None:
    model = small_model()
    with method("uniform", 0.5).on(model), pytest.raises(InputError, match="use Compose"):
        method("random", 0.5).on(model).__enter__()
    assert model.reducing is None


def test_a_method_that_needs_a_question_refuses_a_stream_without_one() -> None:
    model = small_model()
    asking = [name for name, kind in methods().items() if kind.needs_query]
    for name in asking:
        with method(name, 0.5).on(model), pytest.raises(InputError, match=r"cannot stream without a question"):
            StreamSession(model)


def test_a_session_that_does_not_begin_with_the_question_says_so() -> None:
    model = small_model()
    with method("trans_prune", 0.5).on(model, question=QUESTION):
        with pytest.warns(UserWarning, match=r"but the stream does not begin with 'What happened\?'; give StreamS"):
            StreamSession(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            StreamSession(model, system=f"Say what happens. {QUESTION}")


@each
def test_behind_a_depth_plan_no_method_ranks_by_what_is_no_number(name: str) -> None:
    """A token that skipped a layer has zeros for signals: a share of nothing would be NaN, and the first cells stay."""
    model, one = small_model("clip", "own", ROUTED), method(name, 0.4)
    ranked: list[torch.Tensor] = []
    own = torch.Tensor.sort

    def watched(values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        ranked.append(values.detach().clone())
        return own(values, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, one.on(model, question=QUESTION):
        patch.setattr(torch.Tensor, "sort", watched)
        decisions(model, features_of(model))
    assert ranked and not any(bool(values.isnan().any()) for values in ranked if values.is_floating_point())


@pytest.mark.parametrize("keep", [0, 1.5, float("nan"), True, "half"])
def test_a_share_that_is_none_is_refused(keep: object) -> None:
    with pytest.raises(InputError, match="give a share in"):
        methods()["uniform"](keep=keep)  # type: ignore[arg-type]
