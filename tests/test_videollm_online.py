"""Public VideoLLM-online checkpoints load as they are: same ids, same logits, dense or routed; a broken one by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from online_cases import llama_3_tokenizer, logits_by_hand, write_checkpoint
from torch import Tensor
from transformers import PreTrainedTokenizerFast

import videollm_mod as vm
from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import IGNORE, Assistant, OnlineTemplate, Segment, Stream, System, User
from videollm_mod.loading import ONLINE_LM, ONLINE_SETTINGS, ONLINE_TOWER
from videollm_mod.model import StreamingVideoLM
from videollm_mod.types import Frame, InputError

TALK = [
    System("A helper watches."),
    User("Please narrate the video in real time."),
    Stream(2),
    Assistant("You pick up 2 cups."),
    Stream(1),
    User("What happened?"),
    Assistant("Nothing yet"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_checkpoint(tmp_path_factory.mktemp("online"), with_tokenizer=True)


def load(places: dict[str, Path], **options: object) -> StreamingVideoLM:
    return vm.load(places["checkpoint"], tower=places["tower"], **options)  # type: ignore[arg-type]


def whole_text(talk: list[Segment], tokenizer: PreTrainedTokenizerFast) -> str:
    """The conversation as one string, in the layout that the checkpoints were trained on."""
    text = ""
    for segment in talk:
        if isinstance(segment, System):
            text += f"{tokenizer.bos_token}{segment.text}\n"
        elif isinstance(segment, Stream):
            text += "\n[" + ",".join(["<v>" * 10] * segment.frames) + "]"
        elif isinstance(segment, User):
            text += f"\nUser: {segment.text}"
        else:
            text += f"\nAssistant: {segment.text}{tokenizer.eos_token}"
    return text


# -- the template ------------------------------------------------------------------------------------------------------

PLAIN = llama_3_tokenizer()
MARKED = llama_3_tokenizer()
MARKED.add_special_tokens({"additional_special_tokens": ["<v>"]})
WORDS = st.text("ab C2.?!,'[]é\t:", min_size=1, max_size=12).map(str.strip).filter(bool)


@st.composite
def talks(draw: st.DrawFn) -> list[Segment]:
    """System text, then anything up to a reply or a stream; no stream after a stream, which would be one stream."""
    talk: list[Segment] = [System(draw(WORDS))]
    for kind in draw(st.lists(st.sampled_from([Stream, User, Assistant]), min_size=1, max_size=7)):
        if kind is Stream and isinstance(talk[-1], Stream):
            continue
        talk.append(Stream(draw(st.integers(1, 3))) if kind is Stream else kind(draw(WORDS)))
    return talk if not isinstance(talk[-1], User) else [*talk, Assistant(draw(WORDS))]


@settings(max_examples=60)
@given(talks())
def test_ids_are_those_of_the_whole_text_tokenised_at_once(talk: list[Segment]) -> None:
    expected = MARKED(whole_text(talk, MARKED), add_special_tokens=False).input_ids
    if isinstance(talk[-1], Stream):
        expected = expected[:-1]  # theirs closes a stream at the end, ours stays open: more frames may come
    for tokenizer in (PLAIN, MARKED):  # the base's, and the one that a checkpoint brings
        template = OnlineTemplate(tokenizer, 10)
        assert template.encode(talk).input_ids.tolist() == expected


def test_the_placeholder_is_one_past_the_vocabulary_and_a_closing_bracket_ends_its_line() -> None:
    for tokenizer in (PLAIN, MARKED):
        template = OnlineTemplate(tokenizer, 10)
        assert template.vision_id == len(PLAIN)
        assert PLAIN.convert_ids_to_tokens([template.interval_id, template.close_id]) == [",", "]Ċ"]
        assert template.close() == [template.close_id]


def test_learned_are_decisions_prompt_reply_and_eos() -> None:
    template = OnlineTemplate(PLAIN, 10)
    example = template.encode(TALK)
    learned = example.labels[example.labels != IGNORE].tolist()
    first = [template.interval_id, template.close_id, *template.reply_prompt(), *template.reply(TALK[3].text)]
    assert learned[: len(first)] == first
    assert example.labels[example.decision].tolist() == [template.interval_id, template.close_id, template.interval_id]
    text = (example.labels != IGNORE) & ~example.decision
    assert torch.equal(example.labels[text], example.input_ids.roll(-1)[text]), "each predicts what comes next"


def test_a_tokenizer_without_bos_is_refused() -> None:
    tokenizer = llama_3_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(InputError, match="has no BOS token, which opens every stream"):
        OnlineTemplate(tokenizer, 10)


# -- the checkpoint ----------------------------------------------------------------------------------------------------


def test_the_layout_is_the_public_one(places: dict[str, Path]) -> None:
    weights = safetensors.torch.load_file(places["checkpoint"] / "adapter_model.safetensors")
    for name in (
        "base_model.model.connector.0.weight",
        "base_model.model.connector.2.bias",
        "base_model.model.lm_head.lora_B.weight",
        "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight",
    ):
        assert name in weights
    config = json.loads((places["checkpoint"] / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["connector"] and config["base_model_name_or_path"] == str(places["base"])
    assert (ONLINE_LM, ONLINE_TOWER) == ("meta-llama/Meta-Llama-3-8B-Instruct", "google/siglip-large-patch16-384")


def images(count: int, size: int = 48) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def by_us(model: StreamingVideoLM) -> tuple[Tensor, Tensor]:
    """(ids, logits) of TALK, its three frames being noise."""
    example = model.template.encode(TALK)
    with torch.no_grad():
        features = model.encoder(torch.from_numpy(images(3)))
        ids, index = example.input_ids[None], example.frame_index[None]
        return ids, model(ids, index, features, logits_to_keep=0).logits


@pytest.mark.parametrize("plan", [None, DepthPlan("interleaved", 1.0, gate="straight")])
@pytest.mark.filterwarnings("ignore:the LayerExperts of layers")
def test_logits_are_those_of_the_parts_composed_by_hand(places: dict[str, Path], plan: DepthPlan | None) -> None:
    model = load(places, depth=plan, dtype=torch.float64)
    ids, ours = by_us(model)
    pixels = torch.from_numpy(images(3)).permute(0, 3, 1, 2).float() / 127.5 - 1
    theirs = logits_by_hand(places, ids, model.template.vision_id, pixels)
    assert model.settings == ONLINE_SETTINGS and model.encoder.grid == (3, 3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # pixels are normalised in float32


def test_with_a_plan_it_is_routed_and_its_experts_are_said_to_be_fresh(places: dict[str, Path]) -> None:
    with pytest.warns(UserWarning, match=r"layers \[1\] were never trained"):
        model = load(places, depth=DepthPlan("interleaved", 0.2))
    assert model.plan.routed(2) == (1,)
    dense, routed = by_us(load(places))[1], by_us(model)[1]
    assert not torch.allclose(dense, routed, atol=1e-3)


def test_a_live_session_puts_the_very_same_ids_into_its_context(places: dict[str, Path]) -> None:
    model = load(places)
    session = vm.StreamSession(model, threshold=0.0)
    for number, image in enumerate(images(2)):
        assert session.push(Frame(image, number / 2, number)) == []
    answer = session.ask("What happened?")
    for number, image in enumerate(images(2), start=2):
        session.push(Frame(image, number / 2, number))
    session.ask("And now?")
    reply = session.context[: session.context.index(model.template.eos_id)]
    said = model.template.tokenizer.decode(reply[-len(answer.text) * 4 :]) if answer.text else ""
    talk = [System(model.settings.system), Stream(2), User("What happened?")]
    prefix = [*model.template.encode(talk).input_ids.tolist(), *model.template.reply_prompt()]
    assert session.context[: len(prefix)] == prefix, said
    after = session.context.index(model.template.eos_id) + 1
    expected = [*model.template.after_reply, *model.template.frame(first=True)[0]]
    assert session.context[after : after + len(expected)] == expected


def test_the_bases_tokenizer_serves_where_the_checkpoint_brings_none(tmp_path: Path) -> None:
    places = write_checkpoint(tmp_path, with_tokenizer=False)
    assert load(places).template.vision_id == len(PLAIN)


def test_a_base_elsewhere_is_taken_from_there(places: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(places["checkpoint"], tmp_path / "c")
    _edit(tmp_path / "c" / "adapter_config.json", lambda config: {**config, "base_model_name_or_path": "/gone"})
    with pytest.raises(InputError, match="base model folder '/gone' does not exist"):
        vm.load(tmp_path / "c", tower=places["tower"])
    assert vm.load(tmp_path / "c", tower=places["tower"], base=places["base"]).base is None


def test_once_loaded_it_is_saved_as_ours_and_loads_without_being_told_where_its_parts_are(
    places: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning):
        model = load(places, depth=DepthPlan("interleaved", 0.2))
    model.save_pretrained(tmp_path / "ours")
    back = vm.load(tmp_path / "ours")
    assert back.plan == model.plan and back.settings == model.settings
    torch.testing.assert_close(by_us(back)[1], by_us(model)[1], rtol=0, atol=1e-6)


# -- broken ones -------------------------------------------------------------------------------------------------------

Weights = dict[str, Tensor]
A = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
CONNECTOR = "base_model.model.connector.2.weight"


def _without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def _edit(path: Path, change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without(A), f"lacks the tensor '{A}'"),
        (_without(CONNECTOR), f"lacks the tensor '{CONNECTOR}'"),
        (
            lambda w: {**w, "base_model.model.third.weight": torch.zeros(2)},
            "a tensor 'base_model.model.third.weight' too",
        ),
        (
            lambda w: {**w, A.replace("layers.1", "layers.2"): torch.zeros(4, 32)},
            "a tensor 'base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight' too many",
        ),
        (
            lambda w: {**w, "base_model.model.model.layers.0.depth_expert.weight": torch.zeros(1, 32)},
            "a tensor 'base_model.model.model.layers.0.depth_expert.weight' too many",
        ),
        (lambda w: {**w, A: torch.zeros(3, 32)}, rf"'{A}' has shape \(3, 32\), the model \(4, 32\)"),
        (lambda w: {**w, CONNECTOR: torch.zeros(32, 31)}, rf"'{CONNECTOR}' has shape \(32, 31\), the model \(32, 32\)"),
    ],
)
def test_a_checkpoint_with_a_tensor_missing_misshapen_or_too_many_is_refused_by_its_name(
    places: dict[str, Path], tmp_path: Path, change: Callable[[Weights], Weights], words: str
) -> None:
    shutil.copytree(places["checkpoint"], tmp_path / "c")
    path = tmp_path / "c" / "adapter_model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    with pytest.raises(InputError, match=words) as told:
        vm.load(tmp_path / "c", tower=places["tower"])
    assert "\n" not in str(told.value) and str(told.value).endswith("adapter_config.json.")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"r": "four"}, "adapter_config.json: r is 'four'; it is LoRA's rank"),
        ({"lora_alpha": "x"}, "adapter_config.json"),
        ({"peft_type": "IA3"}, "adapter_config.json: peft_type is 'IA3'; only LORA can be loaded"),
        ({"target_modules": ["third_proj"]}, "none of LoRA's targets"),
    ],
)
def test_an_adapters_configuration_that_cannot_be_is_refused_in_a_sentence(
    places: dict[str, Path], tmp_path: Path, change: dict[str, object], words: str
) -> None:
    shutil.copytree(places["checkpoint"], tmp_path / "c")
    _edit(tmp_path / "c" / "adapter_config.json", lambda config: {**config, **change})
    with pytest.raises(InputError, match=words) as told:
        vm.load(tmp_path / "c", tower=places["tower"])
    assert "\n" not in str(told.value) and str(told.value).endswith(".")


def test_a_base_that_lacks_a_weight_is_refused_instead_of_drawn_at_random(
    places: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(places["base"], tmp_path / "base")
    path, name = tmp_path / "base" / "model.safetensors", "model.layers.1.mlp.up_proj.weight"
    safetensors.torch.save_file(_without(name)(safetensors.torch.load_file(path)), path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=rf"^base model .* lacks the weight '{name}'; use a whole one\.$"):
        load(places, base=tmp_path / "base")


def test_an_adapter_without_its_weights_is_refused(places: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(places["checkpoint"], tmp_path / "c")
    (tmp_path / "c" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no adapter_model.safetensors; copy the whole checkpoint"):
        vm.load(tmp_path / "c", tower=places["tower"])
