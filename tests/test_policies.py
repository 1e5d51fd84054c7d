"""Cache policies: bounds that are never exceeded, what must stay stays, and what a session says of what has gone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import WORDS, frames, tiny_model
from test_window import conversation, llama, step

import videollm_mod as vm
from videollm_mod.depth import DepthPlan, RaggedCache
from videollm_mod.depth.swap import find_decoder
from videollm_mod.depth.turning import turned
from videollm_mod.flags import parse_size
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.memory import LOW, Memory, reach_of
from videollm_mod.stream.policies import POLICIES, policy_of
from videollm_mod.stream.policies.carrier import TOKENS, Carrier
from videollm_mod.stream.policies.norm import Norm
from videollm_mod.stream.policies.window import Window
from videollm_mod.stream.session import Step, StreamSession
from videollm_mod.types import InputError, StreamEvent

PLANS = (DepthPlan("full"), DepthPlan("interleaved", 0.4), DepthPlan("all", 0.2), DepthPlan("early-exit"))
ENTRY = 2 * 2 * 8 * 8  # bytes of an entry of the tiny model: key and value, 2 heads of 8, float64
BOUNDED = [
    Window(2.0, words=20),
    Window(words=0),
    *(Carrier(2.0, token, words=20) for token in TOKENS),
    Norm(1.0, words=20),
    Norm(1.0, smallest=False, words=0),
]


@lru_cache
def model_of(plan: DepthPlan, decide: str = "last") -> StreamingVideoLM:
    return tiny_model(plan, decide)


def least(model: StreamingVideoLM) -> int:
    """The smallest budget that a session accepts, as its refusal says."""
    with pytest.raises(InputError, match=r"budget 1 is too small: .* take") as refused:
        StreamSession(model, policy="window", budget=1)
    return int(str(refused.value).split(" take ")[1].split()[0])


def enough(model: StreamingVideoLM) -> int:
    """The smallest budget that leaves room for questions, one after another."""
    return least(model) + 2 * len(model.template.user("What happened?")) * model.num_layers * ENTRY


def drive(session: StreamSession, acts: list[str], check: Callable[[], None] = lambda: None) -> None:
    """Do what `acts` say: "f" a silent frame, "n" a frame that is spoken of, "q" a question."""
    film = iter(frames(len(acts), seed=len(acts)))
    for act in acts:
        if act == "q":
            session.ask("What happened?")
        else:
            session.threshold = float(act == "n")
            session.push(next(film))
        check()


def well_formed(session: StreamSession) -> None:
    """The pieces are what stands in the context, and their order is one that a template could have laid out."""
    memory, template, ids = session.memory, session.template, session.context
    assert memory.frames and memory.cache.seen == len(ids) == sum(piece.size for piece in memory.pieces)
    begin, spans = 0, []
    for before, piece in pairwise([None, *memory.pieces]):
        own = ids[begin : begin + piece.size]
        if piece.kind == "system":
            assert before is None and own == template.system(session.settings.system)
        elif piece.kind == "frame":
            follows = before is not None and before.kind == "frame"
            assert piece.opens == (not follows), "a stream begins with [, and nothing else does"
            lead = [template.open_id if piece.opens else template.interval_id]
            assert piece.lead == (1 if piece.opens or template.decide == "last" else 0)
            tail = [template.interval_id] if template.decide == "own" else []
            assert own == lead[: piece.lead] + [template.vision_id] * piece.vision + tail
            if piece.vision:
                spans.append((begin + piece.lead, begin + piece.lead + piece.vision))
        elif piece.kind == "close":
            assert before is not None and before.kind == "frame" and own == template.close()
        else:
            assert before is not None and before.kind != "frame" and (before.done or not before.said)
            prompt = template.reply_prompt() if piece.kind == "narration" else template.user("What happened?")
            assert own[: len(prompt)] == prompt and (own[-1] == template.eos_id) == piece.done
            assert own.count(template.eos_id) == piece.done and (piece.done or piece is memory.pieces[-1])
        begin += piece.size
    assert [(span.begin, span.end) for span in memory.cache.frames[0]] == spans


def in_order(session: StreamSession) -> None:
    """No layer holds an entry twice or beyond what was seen, and those that hold text hold all of it."""
    vision = torch.tensor(session.context) == session.template.vision_id
    for layer in session._cache.layers:
        assert layer.seen == len(session.context) and layer.slots is not None
        slots = layer.slots[0, : layer.lengths[0]]
        assert (slots.diff() > 0).all() and (layer.slots[0, layer.lengths[0] :] == -1).all()
        assert slots[~vision[slots]].tolist() == (~vision).nonzero()[:, 0].tolist(), "words are never thinned"


@st.composite
def watched(draw: st.DrawFn) -> dict[str, Any]:
    """A layout of a stream, a plan, a policy, and bounds."""
    return dict(
        acts=draw(st.lists(st.sampled_from("ffffnq"), min_size=2, max_size=18)),
        plan=draw(st.sampled_from(PLANS)),
        decide=draw(st.sampled_from(["last", "own"])),
        policy=draw(st.sampled_from(BOUNDED)),
        share=draw(st.floats(1.0, 3.0)),
        reach=draw(st.sampled_from([None, 1.0, 1.6])),
    )


@settings(max_examples=10, deadline=None)
@given(watched())
def test_the_budget_is_never_exceeded_not_even_by_a_step_and_neither_are_positions(case: dict[str, Any]) -> None:
    stays_within_bounds(**case)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(watched())
def test_the_same_for_many_more_streams(case: dict[str, Any]) -> None:
    stays_within_bounds(**case)


def stays_within_bounds(
    acts: list[str], plan: DepthPlan, decide: str, policy: Any, share: float, reach: float | None
) -> None:
    model = model_of(plan, decide)
    budget, steps = int(enough(model) * share), 0
    session = StreamSession(model, policy=policy, budget=budget)
    if reach is not None:  # what two frames and replies need at least
        smallest = session.memory._least_text + 2 * len(session.template.frame(first=True)[0])
        smallest += 2 * len(session.template.user("What happened?"))
        session.memory.reach = math.ceil(smallest * reach)

    def stepped(*_: Any) -> None:
        nonlocal steps
        steps += 1
        cache = session._cache
        assert cache.kv_bytes == sum(map(sum, cache.stored)) * ENTRY <= budget
        assert cache.seen <= session.memory.reach

    hook = model.register_forward_hook(stepped)
    try:
        drive(session, ["f", *acts], lambda: (well_formed(session), in_order(session))[0])
    finally:
        hook.remove()
    assert steps > len(acts) or "n" not in acts
    state, memory = session.state(), session.memory
    gone = state.forgotten
    assert gone["frames"] + len(memory.frames) == state.frames
    for kind in ("narration", "answer"):
        left = sum(piece.kind == kind for piece in memory.pieces)
        assert gone[f"{kind}s"] + left == (acts.count("n") if kind == "narration" else acts.count("q"))
    assert gone["shrunk"] >= sum(not piece.whole for piece in memory.frames)
    assert memory.frames[-1].whole, "the newest frame stays as it was"
    assert (sum(gone.values()) == 0) == (len(session.context) == state.seen)


@pytest.mark.parametrize("policy", [Window(words=500), Carrier(2.0, words=500), Norm(1.0, words=500)])
def test_questions_and_replies_outlive_their_frames_and_the_oldest_of_them_go_first(policy: Any) -> None:
    model = model_of(PLANS[1])
    session = StreamSession(model, policy=policy, budget=2 * enough(model))
    order: list[Any] = []

    def look() -> None:
        order.extend(p for p in session.memory.pieces if p.said and not any(p is other for other in order))

    drive(session, ["n", "q", *"ffffffffffffffff"], look)
    assert session.state().forgotten["vision_tokens"] > 0, "room was made"
    assert [piece.kind for piece in session.memory.pieces if piece.said] == ["narration", "answer"]
    drive(session, ["q"] * 9, look)
    left = [piece for piece in session.memory.pieces if piece.said]
    assert 0 < len(left) < len(order) and all(a is b for a, b in zip(left, order[-len(left) :]))
    assert session.state().forgotten["narrations"] == 1


def test_words_are_bounded_beside_an_ample_budget() -> None:
    model = model_of(PLANS[1])
    session = StreamSession(model, policy=Window(2.0, words=30), budget=10**9)
    drive(session, ["n", "q", *"ffffff"] * 3)
    before = [piece for piece in session.memory.pieces if piece.said and piece.time < session.memory.frames[0].time]
    assert 0 < sum(piece.size for piece in before) <= 30


def test_a_named_window_keeps_words_and_a_nameless_one_does_not() -> None:
    model = model_of(PLANS[1])
    kept = []
    for policy in ("window", None):
        session = StreamSession(model, policy=policy, window=2.0)
        drive(session, ["n", *"fffffffff"])
        assert len(session.memory.frames) == 5 and session.state().forgotten["frames"] == 5
        kept.append([piece.kind for piece in session.memory.pieces if piece.said])
        assert session.context[: len(model.template.system(model.settings.system))] == model.template.system(
            model.settings.system
        )
    assert kept == [["narration"], []]


@pytest.mark.parametrize("decide", ["last", "own"])
def test_until_something_goes_every_policy_equals_none_to_the_bit(decide: str) -> None:
    model = model_of(PLANS[1], decide)
    acts, plain = list("fnfqfnf"), StreamSession(model, window=math.inf)
    wanted: list[float] = []
    drive(plain, acts, lambda: wanted.append(plain.silence))
    for name in POLICIES:
        session = StreamSession(model, policy=name, budget=None if name == "full" else 10**9)
        seen: list[float] = []
        drive(session, acts, lambda s=session, seen=seen: seen.append(s.silence))  # type: ignore[misc]
        assert seen == wanted and session.context == plain.context, name
        for layer, other in zip(session._cache.layers, plain._cache.layers):
            entries = layer.lengths[0]
            assert torch.equal(layer.keys[:, :, :entries], other.keys[:, :, :entries]), name
        assert session.state().forgotten.keys() and not sum(session.state().forgotten.values())


@pytest.mark.parametrize("policy", [Window(2.0), Window(), Carrier(2.0, "chosen"), Norm(1.0)])
def test_a_stream_of_twenty_windows_takes_no_more_memory_than_one_of_three(policy: Any) -> None:
    model = model_of(PLANS[1])
    session = StreamSession(model, threshold=0.0, policy=policy, budget=2 * enough(model))
    used, context, peaks = [], [], [0] * 4
    for frame in frames(80):  # 2 s of window at two frames per second
        session.push(frame)
        used.append(session._cache.kv_bytes)
        context.append(len(session.context))
        peaks = [max(peak, layer.lengths[0]) for peak, layer in zip(peaks, session._cache.layers)]
    for series in (used, context):
        assert max(series[40:]) <= 1.05 * max(series[:40])
    for layer, peak in zip(session._cache.layers, peaks):
        assert layer.keys.shape[2] <= max(64, 1.5 * peak), "buffers have no more than their growing room"
    assert session.state().frames == 80 and session.state().forgotten["entries"] > 0


def test_frames_shrink_to_the_token_that_carries_them() -> None:
    for decide, token, left in (("last", "last", 1), ("own", "last", 0), ("own", "cls", 1), ("last", "chosen", 1)):
        model = model_of(PLANS[1], decide)
        session = StreamSession(model, threshold=0.0, policy=Carrier(2.0, token))
        for frame in frames(9):
            session.push(frame)
        sizes = [piece.vision for piece in session.memory.frames]
        assert sizes == [left] * 5 + [5] * 4 and session.state().forgotten["shrunk"] == 5
        assert session.state().forgotten["frames"] == 0
        if token == "chosen" and left:
            slots = [set(layer.slots[0, : layer.lengths[0]].tolist()) for layer in session._cache.layers]
            carriers = [span.begin for span in session._cache.frames[0][:5]]
            held = [sum(slot in mine for mine in slots) for slot in carriers]
            assert max(held) > 2, "of the two routed layers some hold it, too"


@pytest.mark.parametrize("token", TOKENS)
def test_of_carriers_only_the_newest_stay(token: str) -> None:
    session = StreamSession(model_of(PLANS[1]), threshold=0.0, policy=Carrier(2.0, token, most=6))
    for number, frame in enumerate(frames(60)):
        session.push(frame)
        held = session.memory.frames
        carriers = [piece for piece in held if not piece.whole]
        assert len(carriers) <= 6
        assert [piece.time for piece in held] == [frame.time - 0.5 * back for back in range(len(held))][::-1]
        assert number < 20 or len(carriers) == 6
    assert session.state().forgotten["frames"] == 60 - len(held)


@pytest.mark.parametrize("smallest", [True, False])
def test_the_entries_that_stay_have_the_norms_that_were_asked_for(smallest: bool) -> None:
    model = model_of(PLANS[0])
    session = StreamSession(model, threshold=0.0, policy=Norm(1.0, smallest), budget=3 * least(model))
    film = iter(frames(60))
    session.push(next(film))
    while not session.state().forgotten["entries"]:
        before = [layer.key_norms(0)[layer.slots[0, : layer.lengths[0]] >= 0] for layer in session._cache.layers]
        context = torch.tensor(session.context)
        old = list(session._cache.frames[0][:-1])  # but for the newest, all are older than a second
        session.push(next(film))
    vision = torch.zeros(len(context), dtype=torch.bool)
    for span in old:
        vision[span.begin : span.end] = True
    for layer, norms in zip(session._cache.layers, before):
        now = layer.key_norms(0)
        stayed = torch.tensor([bool((now - norm).abs().min() < 1e-5) for norm in norms])
        went, kept = norms[vision & ~stayed], norms[vision & stayed]
        assert len(went) and len(kept)
        assert went.min() >= kept.max() if smallest else went.max() <= kept.min()


def test_a_policy_that_cannot_work_with_a_decoder_is_refused_by_name() -> None:
    model = tiny_model(PLANS[1])
    find_decoder(model.lm).rotary_emb.rope_type = "dynamic"
    for name in POLICIES:
        if name == "full":
            assert StreamSession(model, policy=name)
            continue
        with pytest.raises(InputError, match="LlamaForCausalLM cannot forget: its keys do not turn"):
            StreamSession(model, policy=name, budget=10**9)


def test_what_does_not_go_together_is_refused_in_a_sentence() -> None:
    for options, told in (
        (dict(policy="fifo"), "policy 'fifo' is unknown; take one of full, window, carrier, norm"),
        (dict(policy="full", budget=10**9), "'full' forgets nothing and so holds no budget"),
        (dict(policy="full", window=5.0), "'full' forgets nothing, so a window of 5 s"),
        (dict(policy="norm"), "'norm' forgets when its budget is full"),
        (dict(policy="window", budget=0), "budget 0 is no number of bytes"),
        (dict(policy="window", words=-1), "words -1 is no number"),
    ):
        with pytest.raises(InputError, match=told):
            StreamSession(model_of(PLANS[1]), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no token 'middle' to carry it"):
        Carrier(token="middle")
    with pytest.raises(InputError, match="at most 0 carriers are none"):
        Carrier(most=0)
    assert policy_of(None) == policy_of("full") and policy_of(None, budget=5) == Window(math.inf, 0)
    assert policy_of(None, own=30) == Window(30, 0) and policy_of("carrier", own=30) == Carrier(30)


def test_a_budget_that_holds_too_little_says_how_much_it_needs_and_with_that_it_works() -> None:
    model = model_of(PLANS[1])
    budget = least(model)
    with pytest.raises(InputError, match=f"budget {budget - 1} is too small"):
        StreamSession(model, policy="norm", budget=budget - 1)
    session = StreamSession(model, policy="norm", budget=budget)
    drive(session, list("fnfnnffn"), lambda: well_formed(session))


def test_a_question_that_fits_into_no_budget_is_refused_and_the_stream_goes_on() -> None:
    model = model_of(PLANS[1])
    session = StreamSession(model, policy="window", budget=2 * least(model))
    drive(session, list("fnf"))
    context = list(session.context)
    with pytest.raises(InputError, match=r"the question takes \d+ tokens.*ask a shorter one"):
        session.ask("What happened ? " * 200)
    assert session.context == context
    session.ask("What happened?")
    well_formed(session)


@pytest.mark.parametrize("policy", ["window", "carrier", "norm"])
def test_of_more_to_recall_than_its_bounds_hold_the_newest_stays_and_the_stream_begins(policy: str) -> None:
    model = model_of(PLANS[1])
    said = [StreamEvent(float(number), "narration", WORDS.split()[number % 7], number) for number in range(99)]
    said[3] = StreamEvent(3.0, "answer", "square", 3, "What happened ?", 3.0)
    budget = 2 * least(model)
    session = StreamSession(model, policy=policy, budget=budget, threshold=0.0)
    session.recall(said)
    forgotten = session.state().forgotten
    assert forgotten["answers"] == 1 and 0 < forgotten["narrations"] < 98
    tail = [*session.template.reply_prompt(), *session.template.reply(said[-1].text), *session.template.after_reply]
    assert session._pending[-len(tail) :] == tail
    for frame in frames(12):
        session.push(frame)
        assert session.state().kv_bytes <= budget
    unbounded = StreamSession(model, policy="full")
    unbounded.recall(said)
    assert unbounded.state().forgotten["narrations"] == 0


@pytest.mark.parametrize("where", ["in a layer", "behind the decoder"])
def test_a_step_that_fails_leaves_no_trace(where: str) -> None:
    model = model_of(PLANS[1])
    session, other = (StreamSession(model, policy="window", budget=3 * least(model), threshold=0.0) for _ in range(2))
    film = frames(20)
    for frame in film[:9]:
        session.push(frame)
        other.push(frame)

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    place = find_decoder(model.lm).layers[2] if where == "in a layer" else model.lm.lm_head
    hook = place.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"), torch.inference_mode():
        session.run(Step([session.template.interval_id], [-1], [0], ()))
    hook.remove()
    assert session.context == other.context and session._cache.stored == other._cache.stored
    for frame in film[9:]:
        assert session.push(frame) == other.push(frame)
    assert session.context == other.context and session.silence == other.silence
    well_formed(session)


def test_positions_stay_within_what_the_model_has_learned() -> None:
    tiny = vm.load("tiny")
    assert tiny.settings.window == 14
    assert reach_of(tiny, 14.0) == math.ceil(2 * 14 * 2 * 51 * 1.1) == reach_of(tiny, 5.0)
    assert reach_of(tiny, 60.0) == math.ceil(2 * 60 * 2 * 51 * 1.1)
    assert reach_of(model_of(PLANS[1]), math.inf) == 2048, "without a window of its own, what its config says"
    session = StreamSession(tiny, policy="window", window=10.0)
    assert session.memory.reach == reach_of(tiny, 14.0) and session.memory.policy == Window(10.0, 512)


def test_a_clearing_leaves_room_so_that_clearings_are_rare() -> None:
    model = model_of(PLANS[1])
    for policy in (Window(4.0), Carrier(4.0), Norm(1.0)):
        session = StreamSession(model, threshold=0.0, policy=policy, budget=2 * enough(model))
        cleared, before = 0, 0
        for frame in frames(48):
            session.push(frame)
            gone = session.state().forgotten["entries"]
            cleared, before = cleared + (gone > before), gone
            if cleared and policy.name == "norm":
                assert session._cache.kv_bytes > 0.9 * LOW * 2 * enough(model), "no more than is needed goes"
        assert 0 < cleared <= 10, policy


# -- the core's two moves ----------------------------------------------------------------------------------------------


def test_entries_dropped_from_a_layer_are_as_if_masked_and_positions_stay() -> None:
    """In an ordinary layer and in a routed one; the reference is one pass with a mask that hides their columns."""
    for plan in (DepthPlan("full"), DepthPlan("all", 0.4, scorer="uniform")):
        model, cache = llama(1, plan), RaggedCache(1)
        ids, index = conversation([2, 0, 1, 0, 0, 3])
        first = ids.shape[1] - 3 - 5  # the last frame and three words come later
        step(model, ids[:, :first], index[:, :first], cache)
        slots = cache.layers[0].slots[0, : cache.layers[0].lengths[0]].tolist()
        stay = torch.tensor([i for i, slot in enumerate(slots) if i % 3 or index[0, slot] < 0])
        dropped = [slot for i, slot in enumerate(slots) if i not in stay.tolist()]
        cache.layers[0].keep_entries(0, stay)
        assert dropped and cache.kv_bytes == len(stay) * cache.layers[0].entry_bytes and cache.seen == first
        seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        seen[first:, dropped] = False
        with torch.no_grad():
            whole = model(input_ids=ids, frame_index=index, attention_mask=seen[None, None]).logits[:, first:]
        cuts = ((first, first + 5), (first + 5, first + 8))
        parts = [step(model, ids[:, a:b], index[:, a:b], cache) for a, b in cuts]
        assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-6), plan
        assert cache.layers[0].lengths == [len(stay) + (2 if plan.layers == "all" else 5) + 3]


@settings(max_examples=15, deadline=None)
@given(data=st.data(), parts=st.lists(st.integers(0, 3), min_size=1, max_size=6), seed=st.integers(0, 9))
def test_after_dropping_entries_and_tokens_bytes_are_the_count_and_cropping_leaves_nothing_later(
    data: st.DataObject, parts: list[int], seed: int
) -> None:
    model, cache = llama(3, DepthPlan("interleaved", 0.4)), RaggedCache(3)
    ids, index = conversation([2, *parts, 0])
    step(model, ids, index, cache)
    random = torch.Generator().manual_seed(seed)
    for layer in cache.layers:
        layer.keep_entries(0, (torch.rand(layer.lengths[0], generator=random) < 0.7).nonzero()[:, 0])
    gone = torch.rand(cache.seen, generator=random) < 0.3
    slots = [layer.slots[0, : layer.lengths[0]].clone() for layer in cache.layers]
    values = [layer.values[0, :, : layer.lengths[0]].clone() for layer in cache.layers]
    cache.compact(gone, lambda keys, by: turned(find_decoder(model), keys, by))
    moved = (~gone).long().cumsum(0) - 1
    for layer, old, value in zip(cache.layers, slots, values):
        assert layer.slots[0, : layer.lengths[0]].tolist() == moved[old[~gone[old]]].tolist()
        assert torch.equal(layer.values[0, :, : layer.lengths[0]], value[:, ~gone[old]])
    assert cache.seen == int((~gone).sum())
    assert cache.kv_bytes == sum(map(sum, cache.stored)) * cache.layers[0].entry_bytes
    position = data.draw(st.integers(0, cache.seen))
    cache.crop_to(position)
    assert cache.seen == position
    for layer in cache.layers:
        assert (layer.slots[0] < position).all() and (layer.slots[0, : layer.lengths[0]] >= 0).all()
    assert cache.kv_bytes == sum(map(sum, cache.stored)) * cache.layers[0].entry_bytes
    assert all(span.end <= position for span in cache.frames[0])


def test_keys_are_turned_each_by_its_own_number() -> None:
    decoder = find_decoder(llama(1, DepthPlan("full")))
    keys = torch.randn(2, 3, 8, dtype=torch.float64)
    by = torch.tensor([-4, 0, 7])
    each = torch.stack([turned(decoder, keys[:, i : i + 1], int(n))[:, 0] for i, n in enumerate(by)], 1)
    assert torch.allclose(turned(decoder, keys, by), each)


# -- the command line's words ------------------------------------------------------------------------------------------


def test_sizes_are_read_as_people_write_them() -> None:
    assert [parse_size("--budget", words) for words in ("64MB", "1.5 GiB", "65536", "2kb", "7 B", None)] == [
        64 * 10**6,
        3 * 2**29,
        65536,
        2000,
        7,
        None,
    ]
    for words in ("", "MB", "64 TB", "-3MB", "nan", "0", "1e40GB", "6 4 MB"):
        with pytest.raises(InputError, match=r"--budget '.*' is"):
            parse_size("--budget", words)


def test_memory_is_a_plain_object_that_a_session_shows() -> None:
    session = StreamSession(model_of(PLANS[1]), policy="carrier", budget=10**9)
    assert isinstance(session.memory, Memory) and session.state().policy == "carrier"
    assert session.state().budget == 10**9
