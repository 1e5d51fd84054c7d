"""Depth routing of existing vision-language models, over five tiny ones: the laws, generation, costs, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_cases import Pass, far, routed, same_kept, shake_experts
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
)
from vlm_cases import (
    FAMILIES,
    IMAGE,
    LAYERS,
    SIBLINGS,
    SPECIAL,
    TEXT,
    Piece,
    batch,
    joined,
    pieces,
    text,
    tiny_sibling,
    tiny_vlm,
    written_frames,
)

from videollm_mod.depth import DepthPlan, apply_depth, frame_index_of, get_plan, load_experts, remove_depth
from videollm_mod.depth.flops import forward_flops, kv_bytes, kv_entries
from videollm_mod.depth.layer import _take
from videollm_mod.types import InputError

pytestmark = pytest.mark.slow  # every law once more, over many models

Vlms = Callable[..., PreTrainedModel]
ROW = "2t IMAGE 1t video 1t image 3t"  # several images and a video
SHORT = "1t image 2t"
WORDS = ("image", "IMAGE", "video", "1t", "3t")
NEW = 4  # tokens to generate
PLANS = (
    DepthPlan("interleaved", 0.4, gate="update"),
    DepthPlan("all", 0.3, gate="straight", keep_last=True, reads="norm"),
    DepthPlan((1, 2), (0.2, 0.6), scorer="random", gate="tanh"),
    DepthPlan("early-exit", exit_after=1),
)
PLAN = PLANS[0]
ALL_KEPT = DepthPlan("all", 1.0, gate="identity")
QWEN = ("qwen2_5_vl", "qwen3_vl")

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def built() -> dict[tuple[Any, ...], PreTrainedModel]:
    return {}


@pytest.fixture
def vlms(built: dict[tuple[Any, ...], PreTrainedModel]) -> Iterator[Vlms]:
    """`vlms("internvl")`, in double precision unless told; built at the first call, to be given back unrouted."""

    def get(family: str, dtype: torch.dtype = torch.float64) -> PreTrainedModel:
        if (family, dtype) not in built:
            built[family, dtype] = tiny_vlm(family, dtype)
        return built[family, dtype]

    yield get
    assert all(get_plan(model) is None for model in built.values()), "a test has left its routing on a shared model"


def row_of(family: str, words: str, seed: int = 0) -> Piece:
    return joined(pieces(family, words, seed))


def inputs_of(family: str, *words: str, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """What the processor returns for rows of these words."""
    return batch(family, [row_of(family, word, seed) for seed, word in enumerate(words)], dtype)


@torch.no_grad()
def run(model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Pass:
    """One forward, watched before the decoder's final norm."""
    seen: list[Tensor] = []
    kept: dict[int, Tensor] = {}
    hook = model.get_decoder().norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        out = model(**inputs, kept_out=kept, **options)
    finally:
        hook.remove()
    return Pass(seen[0], kept, out.past_key_values)


def rotary_positions(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """(3, 1, tokens) for Qwen, whose pictures have three coordinates; (1, tokens) else."""
    if "mm_token_type_ids" not in inputs:
        return torch.arange(inputs["input_ids"].shape[1])[None]
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    return model.model.get_rope_index(inputs["input_ids"], inputs["mm_token_type_ids"], **grids)[0]


def stream(model: PreTrainedModel, family: str, steps: Sequence[Piece], cache: Any = None, start: int = 0) -> Pass:
    """The row step by step, each with the pictures that are in it; positions are told, as for the plain model."""
    whole = batch(family, [joined(steps)])
    if family in QWEN:  # a video that is cut counts its time by the grid of the whole
        whole |= {name: grid for name, grid in inputs_of(family, ROW).items() if name.endswith("_thw")}
    positions = rotary_positions(model, whole)
    parts, begin = [], 0
    for step in steps:
        end = begin + len(step.ids)
        if begin >= start:
            inputs = batch(family, [step])
            del inputs["attention_mask"]
            inputs["position_ids"] = positions[..., begin:end]
            parts.append(run(model, inputs, past_key_values=cache, use_cache=True))
            cache = parts[-1].cache
        begin = end
    kept = {layer: torch.cat([part.kept[layer] for part in parts], dim=1) for layer in parts[0].kept}
    return Pass(torch.cat([part.hidden for part in parts], dim=1), kept, cache)


def steps_of(row: Sequence[Piece]) -> list[Piece]:
    """The pieces of a row, cut between the frames of a video where the model can take them one by one."""
    return [step for piece in row for step in (piece.steps or [piece])]


# --- which token is of which frame ----------------------------------------------------------------------------------


@families
@settings(max_examples=12)
@given(rows=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join), min_size=1, max_size=3))
def test_frames_are_read_off_the_inputs_as_they_were_written(vlms: Vlms, family: str, rows: list[str]) -> None:
    made = [row_of(family, row, seed) for seed, row in enumerate(rows)]
    assert torch.equal(frame_index_of(vlms(family), batch(family, made)), written_frames(made))


@families
def test_frames_are_found_among_embeddings_as_among_ids(vlms: Vlms, family: str) -> None:
    model, inputs = vlms(family), inputs_of(family, ROW, SHORT)
    by_ids = frame_index_of(model, inputs)
    inputs["inputs_embeds"] = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert torch.equal(frame_index_of(model, inputs), by_ids)


@families
def test_an_image_can_be_one_frame_instead_of_its_tiles(vlms: Vlms, family: str) -> None:
    model, row = vlms(family), pieces(family, "2t IMAGE 1t video")
    index = frame_index_of(model, batch(family, [joined(row)]), by="image")[0].tolist()
    end = 2 + len(row[1].ids)
    image, after = [frame for frame in index[2:end] if frame >= 0], [frame for frame in index[end:] if frame >= 0]
    if family == "smolvlm":  # text stands between its tiles
        assert sorted(set(image)) == [0, 1, 2]
    else:
        assert set(image) == {0} and len(image) == sum(frame >= 0 for frame in row[1].frames)
    assert len(set(after)) == 3  # a video keeps its frames


def test_llava_onevision_shows_several_images_of_a_row_without_tiles(vlms: Vlms) -> None:
    """So its processor says by `batch_num_images`; each is then an overview and a newline, which is text."""
    inputs = inputs_of("llava_onevision", "1t image image", SHORT)
    several = torch.tensor([[7] + [IMAGE] * 20, [IMAGE] * 21])
    inputs |= {"input_ids": several, "batch_num_images": torch.tensor([2, 1])}
    inputs["attention_mask"] = torch.ones_like(several)
    index = frame_index_of(vlms("llava_onevision"), inputs)
    assert index[0].tolist() == [-1, *[0] * 9, -1, *[1] * 9, -1]
    assert index[1].tolist() == [*[0] * 9, *[1] * 12]  # alone in its row: an overview and a map
    with torch.no_grad():
        vlms("llava_onevision")(**inputs)  # would raise if the model itself counted otherwise


@families
def test_a_placeholder_without_a_picture_is_text_as_it_is_to_the_model(vlms: Vlms, family: str) -> None:
    """A model may say its placeholder's id; and what a cache has seen is not shown again."""
    ids = torch.tensor([[9, IMAGE, 8]])
    assert frame_index_of(vlms(family), {"input_ids": ids}).tolist() == [[-1, -1, -1]]


@families
def test_what_the_caller_says_wins(vlms: Vlms, family: str) -> None:
    model, inputs = vlms(family), inputs_of(family, ROW)
    dense = model(**inputs).logits
    text_only = torch.full_like(inputs["input_ids"], -1)
    read = frame_index_of(model, inputs)
    with routed(model, PLAN):
        assert torch.equal(model(**inputs, frame_index=text_only).logits, dense)
        assert torch.equal(model(**inputs, frame_index=read).logits, model(**inputs).logits)
        said = generate(model, inputs)
        assert torch.equal(generate(model, inputs, frame_index=read), said)
        as_dense = generate(model, inputs, frame_index=text_only)
    assert torch.equal(as_dense, generate(model, inputs))


# --- the laws --------------------------------------------------------------------------------------------------------


def generate(model: PreTrainedModel, inputs: dict[str, Tensor], **options: Any) -> Any:
    """(batch, NEW): what is said, never a placeholder; or all that `generate` returns, if asked for."""
    options = dict(do_sample=False, max_new_tokens=NEW, pad_token_id=0, eos_token_id=None) | options
    options["suppress_tokens"] = list(SPECIAL)
    out = model.generate(**inputs, **options)
    return out if options.get("return_dict_in_generate") else out[:, -NEW:]


@families
def test_law_1_keeping_all_is_the_untouched_model_to_the_bit(vlms: Vlms, family: str) -> None:
    model = vlms(family, torch.float32)
    told = dict(return_dict_in_generate=True, output_logits=True)
    for words in ("2t image 1t", ROW):
        inputs = inputs_of(family, words, dtype=torch.float32)
        with torch.no_grad():
            dense = model(**inputs).logits
            said, beams = generate(model, inputs, **told), generate(model, inputs, num_beams=2)
            with routed(model, ALL_KEPT):
                assert torch.equal(model(**inputs).logits, dense)
                again = generate(model, inputs, **told)
                assert torch.equal(again.sequences, said.sequences)
                assert all(torch.equal(a, b) for a, b in zip(again.logits, said.logits))
                assert torch.equal(generate(model, inputs, num_beams=2), beams)


@families
def test_law_1_keeping_all_of_a_padded_batch_is_the_untouched_model_to_the_bit(vlms: Vlms, family: str) -> None:
    model = vlms(family, torch.float32)
    inputs = inputs_of(family, ROW, SHORT, dtype=torch.float32)
    with torch.no_grad():
        dense = model(**inputs).logits
        said = [generate(model, inputs, num_beams=beams) for beams in (1, 2)]
        with routed(model, ALL_KEPT):
            kept: dict[int, Tensor] = {}
            assert torch.equal(model(**inputs, kept_out=kept).logits, dense)
            assert all(torch.equal(each, inputs["attention_mask"].bool()) for each in kept.values()) and len(kept) == 4
            assert all(torch.equal(generate(model, inputs, num_beams=n + 1), ids) for n, ids in enumerate(said))


@families
def test_law_1_without_pictures_it_is_the_untouched_model_to_the_bit(vlms: Vlms, family: str) -> None:
    model, inputs = vlms(family, torch.float32), inputs_of(family, "5t", dtype=torch.float32)
    dense, said = model(**inputs).logits, generate(model, inputs)
    with routed(model, replace(PLAN, gate="output")):
        assert torch.equal(model(**inputs).logits, dense) and torch.equal(generate(model, inputs), said)


@families
def test_law_1_remove_depth_gives_the_original_back(vlms: Vlms, family: str) -> None:
    model, inputs = vlms(family), inputs_of(family, SHORT)
    with torch.no_grad():
        dense, said = model(**inputs).logits, generate(model, inputs)
    kinds = [type(module) for module in model.modules()]
    attributes = [set(module.__dict__) for module in model.modules()]
    config, keys = model.config.to_dict(), list(model.state_dict())
    for plan in PLANS:
        assert apply_depth(model, plan) is model and get_plan(model) == plan
        assert [type(module).__name__ for module in (model, model.model)] == [kinds[0].__name__, kinds[1].__name__]
    assert remove_depth(model) is model and get_plan(model) is None
    assert [type(module) for module in model.modules()] == kinds
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert model.config.to_dict() == config and list(model.state_dict()) == keys
    assert torch.equal(model(**inputs).logits, dense) and torch.equal(generate(model, inputs), said)


@families
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan.layers))
def test_law_2_a_stream_of_whole_frames_equals_one_pass(vlms: Vlms, family: str, plan: DepthPlan) -> None:
    model, row = vlms(family), pieces(family, ROW)
    with routed(model, plan):
        once = run(model, batch(family, [joined(row)]), use_cache=False)
        streamed = stream(model, family, steps_of(row))
    assert same_kept(streamed.kept, once.kept)
    assert far(streamed.hidden, once.hidden) < 1e-10
    assert streamed.cache.seen == len(joined(row).ids)


@pytest.mark.parametrize("family", QWEN)
def test_control_positions_of_text_for_pictures_break_law_2(vlms: Vlms, family: str) -> None:
    """So the three coordinates of a picture do reach the kept tokens."""
    model, inputs = vlms(family), inputs_of(family, ROW)
    positions = torch.arange(inputs["input_ids"].shape[1]).expand(3, 1, -1)
    with routed(model, PLAN):
        assert far(run(model, inputs).hidden, run(model, inputs, position_ids=positions).hidden) > 1e-2


@families
def test_law_3_nothing_later_changes_anything_earlier(vlms: Vlms, family: str) -> None:
    model, begin = vlms(family), pieces(family, ROW)[:-2]
    border = len(joined(begin).ids)
    ends = [pieces(family, end, seed) for seed, end in ((7, "image 3t"), (8, "IMAGE video 1t"))]
    for plan in PLANS:
        with routed(model, plan):
            first, second = (run(model, batch(family, [joined([*begin, *end])])) for end in ends)
        assert far(first.hidden[:, :border], second.hidden[:, :border]) < 1e-11
        assert all(torch.equal(kept[:, :border], second.kept[layer][:, :border]) for layer, kept in first.kept.items())
    changed = first.hidden[:, border : border + 3], second.hidden[:, border : border + 3]
    assert far(*changed) > 1e-2, "the change did nothing at all"


@families
def test_law_4_a_batch_of_two_equals_two_batches_of_one(vlms: Vlms, family: str) -> None:
    model, rows = vlms(family), [row_of(family, words, seed) for seed, words in enumerate((ROW, SHORT))]
    both, alone = batch(family, rows), [batch(family, [row]) for row in rows]
    if family not in QWEN:  # which counts positions by the mask itself
        both["position_ids"] = (both["attention_mask"].cumsum(1) - 1).clamp(min=0)
    short = len(rows[1].ids)
    for plan in PLANS:
        with routed(model, plan):
            together, first, second = run(model, both), run(model, alone[0]), run(model, alone[1])
        assert far(together.hidden[:1], first.hidden) < 1e-10
        assert far(together.hidden[1:, -short:], second.hidden) < 1e-10
        for layer, kept in together.kept.items():
            assert torch.equal(kept[:1], first.kept[layer]) and torch.equal(kept[1:, -short:], second.kept[layer])
            assert not kept[1, :-short].any()


@families
def test_law_5_experts_learn_are_saved_and_come_back(vlms: Vlms, family: str, tmp_path: Path) -> None:
    model, inputs = tiny_vlm(family, torch.float32), inputs_of(family, ROW, dtype=torch.float32)
    own, plan = type(model), DepthPlan("interleaved", 0.4, gate="update")
    apply_depth(model, plan)
    shake_experts(model, strength=0.05)
    experts = [weight for name, weight in model.named_parameters() if "depth_expert" in name]
    assert len(experts) == 4
    before = [weight.detach().clone() for weight in experts]
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().max() > 1e-6 for weight in experts)
    torch.optim.SGD(experts, lr=1.0).step()
    assert not any(torch.equal(weight, old) for weight, old in zip(experts, before))

    with torch.no_grad():
        trained = model(**inputs).logits
        model.save_pretrained(tmp_path)
        fresh = own.from_pretrained(tmp_path).eval()
        assert type(fresh) is own
        saved = DepthPlan.from_dict(fresh.config.get_text_config().depth_plan)
        assert saved == plan
        load_experts(apply_depth(fresh, saved), tmp_path)
        assert torch.equal(fresh(**inputs).logits, trained)
    with pytest.raises(InputError, match="layer 1: the model has none"):
        load_experts(apply_depth(fresh, DepthPlan((2, 3))), tmp_path)


def test_gradient_checkpointing_gives_the_same_gradients_with_deepstack(vlms: Vlms) -> None:
    model, inputs = vlms("qwen3_vl").train(), inputs_of("qwen3_vl", ROW)
    gradients = []
    with routed(model, PLAN):
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model(**inputs, labels=inputs["input_ids"], use_cache=False).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
            model.zero_grad()
        model.gradient_checkpointing_disable()
    model.eval()
    assert gradients[0].keys() == gradients[1].keys()
    assert any("depth_expert" in name for name in gradients[0]) and any("visual" in name for name in gradients[0])
    assert all(far(gradient, gradients[1][name]) < 1e-10 for name, gradient in gradients[0].items())


@families
def test_law_6_cropped_to_a_border_the_stream_goes_on_as_if_nothing_had_been_behind_it(vlms: Vlms, family: str) -> None:
    model, row = vlms(family), pieces(family, ROW)
    steps = steps_of(row)
    with routed(model, PLAN):
        once = run(model, batch(family, [joined(row)]))
        for number in (0, len(steps) // 2, len(steps) - 1):
            border = sum(len(step.ids) for step in steps[:number])
            cache = run(model, batch(family, [joined(row)])).cache
            cache.crop_to(border)
            assert all(bool((layer.slots < border).all()) for layer in cache.layers)
            assert far(stream(model, family, steps, cache, border).hidden, once.hidden[:, border:]) < 1e-10


# --- generation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def naive(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[int]:
    """Greedy decoding that computes everything anew, pictures included, at every token."""
    said: list[int] = []
    for _ in range(NEW):
        now = dict(inputs)
        now["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
        now["attention_mask"] = torch.ones_like(now["input_ids"])
        if "mm_token_type_ids" in now:
            now["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, len(said)))
        logits = model(**now, use_cache=False).logits[0, -1]
        said.append(len(SPECIAL) + int(logits[len(SPECIAL) :].argmax()))
    return said


@families
@pytest.mark.parametrize("words", ["1t image 2t", ROW], ids=["one image", "images and video"])
def test_greedy_generation_equals_a_loop_that_computes_everything_anew(vlms: Vlms, family: str, words: str) -> None:
    model, inputs = vlms(family), inputs_of(family, words)
    for plan in PLANS[:2]:
        with routed(model, plan):
            assert generate(model, inputs)[0].tolist() == naive(model, inputs)


@families
def test_beam_search_with_the_cache_equals_beam_search_without(vlms: Vlms, family: str) -> None:
    model, inputs = vlms(family), inputs_of(family, ROW)
    with routed(model, PLAN):
        cached, bare = (generate(model, inputs, num_beams=2, use_cache=use) for use in (True, False))
    assert torch.equal(cached, bare)


@families
@pytest.mark.parametrize("beams", [1, 2])
def test_a_batch_of_two_left_padded_prompts_says_what_each_says_alone(vlms: Vlms, family: str, beams: int) -> None:
    model, rows = vlms(family), [row_of(family, words, seed) for seed, words in enumerate((ROW, SHORT))]
    with routed(model, PLAN):
        both = generate(model, batch(family, rows), num_beams=beams)
        alone = [generate(model, batch(family, [row]), num_beams=beams) for row in rows]
    assert torch.equal(both, torch.cat(alone))


@families
def test_a_second_question_goes_on_from_the_cache_of_the_first(vlms: Vlms, family: str) -> None:
    """By ids of the whole talk, as for any model; what the cache has seen is not shown again."""
    model, inputs = vlms(family), inputs_of(family, ROW)
    question = torch.tensor([text(3, seed=5).ids])
    with routed(model, PLAN):
        first = generate(model, inputs, return_dict_in_generate=True)
        whole = torch.cat([first.sequences, question], dim=1)
        assert first.past_key_values.seen == whole.shape[1] - 4  # the last word has not gone in yet
        again = {"input_ids": whole, "attention_mask": torch.ones_like(whole)}
        second = generate(model, again, past_key_values=first.past_key_values)
        anew = inputs | again
        if "mm_token_type_ids" in anew:
            anew["mm_token_type_ids"] = torch.nn.functional.pad(inputs["mm_token_type_ids"], (0, NEW + 3))
        assert torch.equal(second, generate(model, anew))


@pytest.mark.parametrize("family", ["llava_onevision", "internvl", "smolvlm"])
def test_a_second_question_may_show_another_picture(vlms: Vlms, family: str) -> None:
    """Qwen cannot: Transformers takes its positions from the grids of the whole talk, and pixels of the new part."""
    model, row = vlms(family), pieces(family, ROW)
    more = pieces(family, "1t IMAGE 2t", seed=3)
    with routed(model, replace(PLAN, scorer="random")):  # whose choice depends on the frames' numbers
        first = generate(model, batch(family, [joined(row)]), return_dict_in_generate=True)
        said = Piece(first.sequences[0, -NEW:].tolist(), [-1] * NEW)
        anew = batch(family, [joined([*row, said, *more])])
        ids = {name: anew[name] for name in ("input_ids", "attention_mask")}
        second = generate(model, batch(family, [joined(more)]) | ids, past_key_values=first.past_key_values)
        assert torch.equal(second, generate(model, anew))


# --- what it costs ---------------------------------------------------------------------------------------------------


@families
def test_flops_of_the_decoder_and_kv_bytes_are_those_of_the_formula_and_fall(
    vlms: Vlms, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videollm_mod.depth.layout.ROW_BLOCK", 1)
    model, inputs = vlms(family, torch.float32), inputs_of(family, ROW, dtype=torch.float32)
    index = frame_index_of(model, inputs)[0]
    sizes = tuple(int((index == number).sum()) for number in range(int(index.max()) + 1))
    words = int((index < 0).sum())
    costs = {}
    for plan in (DepthPlan("full"), DepthPlan("interleaved", 0.2)):
        passed: list[dict[str, Any]] = []
        with routed(model, plan), torch.no_grad():
            decoder = model.get_decoder()
            hook = decoder.register_forward_pre_hook(lambda _, args, kw, to=passed: to.append(kw), with_kwargs=True)
            cache = model(**inputs).past_key_values
            hook.remove()
            with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                decoder(**passed[0] | dict(past_key_values=None, use_cache=False))
        assert counter.get_total_flops() == forward_flops(model.config, plan, words, sizes)
        assert [rows[0] for rows in cache.stored] == list(kv_entries(model.config, plan, words, sizes))
        assert cache.kv_bytes == kv_bytes(model.config, plan, words, sizes, bytes_per_value=4)
        costs[plan.layers] = (counter.get_total_flops(), cache.kv_bytes)
    assert all(routed_ < dense for routed_, dense in zip(costs["interleaved"], costs["full"]))


# --- what is particular to one ---------------------------------------------------------------------------------------


def test_a_token_that_skips_all_layers_of_qwen3_vl_still_gets_its_deepstack_features(vlms: Vlms) -> None:
    model, inputs = vlms("qwen3_vl"), inputs_of("qwen3_vl", "2t IMAGE image 2t")
    with routed(model, DepthPlan("early-exit", exit_after=0)), torch.no_grad():
        hidden = run(model, inputs).hidden
        seen = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    expected = torch.cat(seen.pooler_output)
    for features in seen.deepstack_features:
        expected = expected + torch.cat(features)
    assert len(seen.deepstack_features) == 2
    assert torch.equal(hidden[inputs["input_ids"] == IMAGE], expected)


@families
def test_the_model_without_its_head_can_be_routed(vlms: Vlms, family: str) -> None:
    model, inputs = vlms(family), inputs_of(family, ROW)
    with routed(model, PLAN):
        whole = run(model, inputs)
    with routed(model.model, PLAN), torch.no_grad():
        alone = model.model(**inputs).last_hidden_state
    assert torch.equal(alone, model.get_decoder().norm(whole.hidden))


def test_rotary_tables_of_three_coordinates_are_gathered_like_those_of_one() -> None:
    table = torch.arange(3 * 2 * 5 * 2).view(3, 2, 5, 2)
    place = torch.tensor([[0, 4], [1, 1]])
    assert torch.equal(_take(table, place, -2), torch.stack([_take(one, place, -2) for one in table]))
    assert torch.equal(_take(table[0], place, -2), torch.stack([table[0, 0, [0, 4]], table[0, 1, [1, 1]]]))
    assert torch.equal(_take(table[0, :1], place, -2), torch.stack([table[0, 0, [0, 4]], table[0, 0, [1, 1]]]))


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_model_of_the_same_structure_needs_no_line_of_its_own(name: str) -> None:
    model, row = tiny_sibling(name), row_of(SIBLINGS[name], ROW)
    inputs = batch(SIBLINGS[name], [row], torch.float32)
    index = written_frames([row])
    assert torch.equal(frame_index_of(model, inputs), index)
    with torch.no_grad():
        dense, said = model(**inputs).logits, generate(model, inputs)
        with routed(model, ALL_KEPT):
            assert torch.equal(model(**inputs).logits, dense) and torch.equal(generate(model, inputs), said)
        with routed(model, DepthPlan("early-exit", exit_after=1)):
            stored = model(**inputs).past_key_values.stored
    assert stored == [[len(row.ids)], *[[int((index < 0).sum())]] * (LAYERS - 1)]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_model_of_unknown_structure_is_refused_when_shown_a_picture_unless_the_caller_says_where_it_is() -> None:
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    vision.image_size, vision.patch_size = 12, 4
    config = LlavaNextConfig(
        vision_config=vision, text_config=LlamaConfig(**TEXT), image_token_index=IMAGE, image_grid_pinpoints=[[12, 12]]
    )
    model = apply_depth(LlavaNextForConditionalGeneration(config).eval(), DepthPlan("all", 0.4))
    ids = torch.tensor([[7, *[IMAGE] * 21, 8]])
    inputs = dict(input_ids=ids, pixel_values=torch.randn(1, 2, 3, 12, 12), image_sizes=torch.tensor([[12, 12]]))
    for call in (model, model.generate):
        with pytest.raises(InputError, match=r"how LlavaNextModel lays out its images is not known.*pass frame_index"):
            call(**inputs)
    index = torch.where(ids == IMAGE, 0, -1)
    with torch.no_grad():
        stored = model(**inputs, frame_index=index).past_key_values.stored
    assert stored == [[2 + 9]] * LAYERS  # 0.4 of 21, and the text
    assert generate(model, inputs, frame_index=index).shape == (1, NEW)
    assert model(ids[:, -1:]).logits.shape[1] == 1  # text alone needs no telling


@families
def test_pictures_that_do_not_fit_the_placeholders_are_refused(vlms: Vlms, family: str) -> None:
    model, inputs = vlms(family), inputs_of(family, "2t image 1t")
    inputs["input_ids"][0, -1] = IMAGE  # one placeholder too many
    inputs.pop("mm_token_type_ids", None)
    with routed(model, PLAN), pytest.raises(InputError, match="placeholder"):
        model(**inputs)


def test_what_cannot_be_told_is_refused_in_a_sentence(vlms: Vlms) -> None:
    model, inputs = vlms("qwen2_5_vl"), inputs_of("qwen2_5_vl", SHORT)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    with pytest.raises(InputError, match=r"inputs_embeds alone do not tell.*pass frame_index"):
        frame_index_of(model, {"inputs_embeds": embeds})
    with pytest.raises(InputError, match="image_grid_thw is missing"):
        frame_index_of(model, {**inputs, "image_grid_thw": None})
    with pytest.raises(InputError, match="frames by 'row' are unknown; take one of tile, image"):
        frame_index_of(model, inputs, by="row")
    with pytest.raises(InputError, match="input_ids or inputs_embeds"):
        frame_index_of(model, {})
    with pytest.raises(InputError, match="has no vision tower"):
        frame_index_of(model.get_decoder(), inputs)
