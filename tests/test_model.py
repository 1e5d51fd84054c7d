"""The model: where vision tokens go, what the loss counts, and a folder that comes back as it was or says why not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from stream_cases import frames, tiny_model
from test_vision import config_of
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import videollm_mod as vm
from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import Assistant, Stream, System, User, collate
from videollm_mod.model import StreamingVideoLM
from videollm_mod.types import InputError
from videollm_mod.vision import FrameEncoder, TransformersTower

ROUTED = DepthPlan("interleaved", 0.4, gate="tanh")
TALKS = (
    [System("Say what happens."), Stream(3), Assistant("A red square enters."), Stream(2)],
    [System("Say."), Stream(1), User("What happened?"), Assistant("the left"), Stream(1), Assistant("leaves")],
)


def batch_of(model: StreamingVideoLM, *talks: list) -> tuple:
    batch = collate([model.template.encode(talk) for talk in talks])
    count = sum(segment.frames for talk in talks for segment in talk if isinstance(segment, Stream))
    pixels = torch.stack([torch.from_numpy(frame.image) for frame in frames(count)])
    return batch, model.encoder(pixels)


def test_vision_placeholders_become_frame_tokens_in_order_and_words_stay_words() -> None:
    model = tiny_model(ROUTED)
    batch, features = batch_of(model, *TALKS)
    embeds = model.embed(batch.input_ids, batch.frame_index, features)
    vision = batch.frame_index >= 0
    assert torch.equal(embeds[vision], model.connector(features).flatten(0, 1))
    words = model.lm.get_input_embeddings()(batch.input_ids[~vision])
    assert torch.equal(embeds[~vision], words)


def test_the_loss_is_replies_plus_weighted_decisions_over_the_number_of_labels() -> None:
    model = tiny_model(ROUTED)
    model.settings = type(model.settings)(stream_weight=3.0)
    # one row does not learn a decision where another one does
    talks = (*TALKS, [System("Say."), Stream(1, learn=False), Stream(1), Assistant("leaves")])
    batch, features = batch_of(model, *talks)
    assert ((batch.labels == -100) & batch.decision & (batch.labels != -100).any(0)).any()
    out = model(batch.input_ids, batch.frame_index, features, labels=batch.labels, decision=batch.decision)
    assert out.positions.tolist() == (batch.labels != -100).any(0).nonzero()[:, 0].tolist()
    assert out.logits.shape[1] == len(out.positions) < batch.labels.shape[1], "logits where there are labels alone"
    logits = model(batch.input_ids, batch.frame_index, features, logits_to_keep=0).logits
    replies, decisions = [], []
    for row in range(3):
        for place in range(batch.labels.shape[1]):
            label = batch.labels[row, place]
            if label != -100:
                each = cross_entropy(logits[row, place].float(), label).item()
                (decisions if batch.decision[row, place] else replies).append(each)
    total, count = sum(replies) + 3.0 * sum(decisions), len(replies) + len(decisions)
    assert len(replies) != len(decisions) > 0
    assert out.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert out.lm_loss.item() == pytest.approx(sum(replies) / len(replies), rel=1e-5)
    assert out.stream_loss.item() == pytest.approx(sum(decisions) / len(decisions), rel=1e-5)
    assert out.loss.requires_grad and not out.lm_loss.requires_grad and not out.stream_loss.requires_grad
    # a part of a batch of 1000 labels, in several processes or one part after another
    part = model(
        batch.input_ids,
        batch.frame_index,
        features,
        labels=batch.labels,
        decision=batch.decision,
        label_count=1000,
    )
    assert part.loss.item() == pytest.approx(total / 1000, rel=1e-5)


def test_the_loss_of_a_model_in_bfloat16_is_reckoned_in_single_precision() -> None:
    model = tiny_model(ROUTED).bfloat16()
    batch, features = batch_of(model, *TALKS)
    out = model(batch.input_ids, batch.frame_index, features.bfloat16(), labels=batch.labels, decision=batch.decision)
    assert (out.logits.dtype, out.loss.dtype) == (torch.bfloat16, torch.float32)
    target = batch.labels[:, out.positions].flatten()
    mean = cross_entropy(out.logits.flatten(0, 1).float(), target, ignore_index=-100)
    assert out.loss.item() == pytest.approx(mean.item(), rel=1e-6)


def test_a_batch_in_which_nothing_is_learned_costs_nothing() -> None:
    model = tiny_model(ROUTED)
    batch, features = batch_of(model, *TALKS)
    nothing = torch.full_like(batch.labels, -100)
    out = model(batch.input_ids, batch.frame_index, features, labels=nothing, decision=batch.decision)
    assert (out.loss.item(), out.lm_loss.item(), out.stream_loss.item()) == (0.0, 0.0, 0.0)


def test_right_padding_without_a_mask_changes_no_number() -> None:
    """Training leaves the attention mask out; a batch must still equal its rows."""
    model = tiny_model(ROUTED)
    batch, features = batch_of(model, *TALKS)
    both = model(batch.input_ids, batch.frame_index, features, logits_to_keep=0).logits
    for row, (talk, own) in enumerate(zip(TALKS, features.split([5, 2]))):
        alone, _ = batch_of(model, talk)
        single = model(alone.input_ids, alone.frame_index, own, logits_to_keep=0).logits[0]
        assert torch.allclose(both[row, : len(single)], single, atol=1e-10)


def test_every_part_gets_a_gradient_the_experts_included() -> None:
    # keep_last: nothing looks at what the last layer makes of other vision tokens, so its expert would learn nothing
    model = tiny_model(dataclasses.replace(ROUTED, keep_last=True)).train()
    batch, features = batch_of(model, *TALKS)
    model(batch.input_ids, batch.frame_index, features, labels=batch.labels, decision=batch.decision).loss.backward()
    for name, parameter in model.named_parameters():
        if name == "encoder.tower.pool.score.bias":
            continue  # a constant added to all scores of a softmax changes nothing
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_saved_model_comes_back_with_the_same_logits_plan_and_settings(tmp_path: Path) -> None:
    model = tiny_model(ROUTED)
    model.save_pretrained(tmp_path / "m")
    back = vm.load(tmp_path / "m", dtype=torch.float64)
    batch, features = batch_of(model, *TALKS)
    assert back.plan == model.plan and back.settings == model.settings
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    ours, theirs = (m(batch.input_ids, batch.frame_index, features).logits for m in (model, back))
    assert torch.equal(ours, theirs)


class Draws(TorchDispatchMode):
    """Notes what is drawn at random, or filled, in real memory while it is on."""

    DRAWS = ("normal", "uniform", "rand", "bernoulli", "exponential", "trunc", "erfinv", "fill", "zero")

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, int]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.__name__.split(".")[0]
        if any(name.startswith(word) for word in self.DRAWS) and isinstance(out, torch.Tensor) and not out.is_meta:
            self.drawn.append((name, out.numel()))
        return out


def test_nothing_is_drawn_at_random_for_weights_that_a_file_will_replace(tmp_path: Path) -> None:
    with Draws() as built:
        tiny_model(ROUTED).save_pretrained(tmp_path)
    assert sum(count for name, count in built.drawn if name == "normal_") > 1000, "the control: a fresh model is drawn"
    with Draws() as loaded:
        model = vm.load(tmp_path)
    assert [name for name, count in loaded.drawn if count > 16] == []
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    convolution = next(weight for weight in model.encoder.parameters() if weight.dim() == 4)
    assert convolution.is_contiguous(memory_format=torch.channels_last), "as it was built, or it runs slower"
    again = nn.Linear(2, 2)  # and the world is as before
    assert not again.weight.is_meta


def test_tied_weights_are_one_tensor_again_after_loading(tmp_path: Path) -> None:
    model = tiny_model(ROUTED)
    model.lm.config.tie_word_embeddings = True
    model.lm.lm_head.weight = model.lm.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    back = vm.load(tmp_path, dtype=torch.float64)
    assert back.lm.lm_head.weight is back.lm.model.embed_tokens.weight
    assert torch.equal(back.lm.lm_head.weight, model.lm.lm_head.weight)


def test_angles_of_the_positions_stay_exact_when_weights_are_rounded(tmp_path: Path) -> None:
    model = tiny_model(ROUTED)
    model.save_pretrained(tmp_path)
    half = vm.load(tmp_path, dtype=torch.bfloat16)
    assert half.lm.dtype == torch.bfloat16
    assert torch.equal(half.lm.model.rotary_emb.inv_freq, model.lm.model.rotary_emb.inv_freq.float())


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clip", "dinov2", "dinov2_with_registers", "dinov3_vit"])
def test_a_tower_of_transformers_is_saved_with_the_model_and_comes_back(kind: str, tmp_path: Path) -> None:
    tower = TransformersTower.build(config_of(kind)).double()
    plain = tiny_model(ROUTED)
    model = StreamingVideoLM(
        FrameEncoder(tower, (3, 2)), plain.connector, plain.lm, plain.template.tokenizer, ROUTED
    ).eval()
    model.save_pretrained(tmp_path)
    back = vm.load(tmp_path, dtype=torch.float64)
    assert back.encoder.tower.to_config() == tower.to_config()
    pixels = torch.randint(0, 256, (1, 48, 48, 3), dtype=torch.uint8)
    torch.testing.assert_close(
        back.encoder(pixels), model.encoder(pixels), rtol=0, atol=1e-6
    )  # DINOv3's angles: float32


def test_plan_keep_and_threshold_can_be_replaced_on_loading(tmp_path: Path) -> None:
    tiny_model(ROUTED).save_pretrained(tmp_path)
    assert vm.load(tmp_path, keep=1.0).plan.keep == 1.0
    assert vm.load(tmp_path, plan="full").plan.routed(4) == ()
    assert vm.load(tmp_path, depth=DepthPlan((0,), 0.5), keep=0.4).plan == DepthPlan((0,), 0.4)
    assert vm.load(tmp_path, threshold=0.5).settings.threshold == 0.5
    with pytest.warns(UserWarning, match=r"layers \[0, 2\] were never trained"):
        model = vm.load(tmp_path, plan="all")
    with pytest.warns(UserWarning):
        again = vm.load(tmp_path, plan="all")
    for name, tensor in model.state_dict().items():  # arbitrary, but the same every time
        assert torch.equal(again.state_dict()[name], tensor)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def _break(folder: Path, how: str) -> None:
    weights = _weights(folder)
    if how == "missing":
        del weights["connector.inner.weight"]
    elif how == "shape":
        weights["connector.inner.weight"] = weights["connector.inner.weight"][:, :3].contiguous()
    elif how == "unknown":
        weights["connector.third.weight"] = torch.zeros(2)
    elif how == "expert too many":
        weights["lm.model.layers.2.depth_expert.bias"] = torch.zeros(1)
    elif how == "expert":
        del weights["lm.model.layers.1.depth_expert.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    if how == "truncated":
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
    elif how == "no weights":
        (folder / "model.safetensors").unlink()
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "no JSON":
        (folder / "config.json").write_text("{")
    elif how == "no plan":
        config = json.loads((folder / "config.json").read_text())
        del config["plan"]
        (folder / "config.json").write_text(json.dumps(config))
    elif how == "no lm":
        shutil.rmtree(folder / "lm")
    elif how == "no tokenizer":
        shutil.rmtree(folder / "tokenizer")
    elif how == "no words":
        (folder / "tokenizer" / "tokenizer.json").unlink()
    elif how == "words no JSON":
        (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    elif how == "lm no JSON":
        (folder / "lm" / "config.json").write_text("no JSON")
    elif how == "lm unknown":
        (folder / "lm" / "config.json").write_text('{"model_type": "no-such-type"}')
    elif how == "lm sizes":
        (folder / "lm" / "config.json").write_text('{"model_type": "llama", "hidden_size": "x"}')
    elif how == "no object":
        (folder / "config.json").write_text("[1]")
    elif how == "no text":
        (folder / "config.json").write_bytes(b"\xff\xfe\xfa")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "lacks the tensor 'connector.inner.weight'"),
        ("shape", r"'connector.inner.weight' has shape \(32, 3\), the model \(32, 16\)"),
        ("unknown", "a tensor 'connector.third.weight' too many"),
        ("expert too many", "a tensor 'lm.model.layers.2.depth_expert.bias' too many"),
        ("expert", "lacks the tensor 'lm.model.layers.1.depth_expert.weight'"),
        ("truncated", "is damaged"),
        ("no weights", "has no model.safetensors"),
        ("no config", "has no config.json"),
        ("no JSON", "is not the JSON"),
        ("no plan", "lacks 'plan'"),
        ("no lm", "has no lm/config.json; give a folder"),
        ("no tokenizer", "has no tokenizer/tokenizer_config.json; give a folder"),
        ("no words", "tokenizer holds no tokenizer that Transformers can read"),
        ("words no JSON", "tokenizer holds no tokenizer that Transformers can read"),
        ("lm no JSON", "lm/config.json is not the JSON"),
        ("lm unknown", "lm/config.json describes no decoder that Transformers can build .*no-such-type"),
        ("lm sizes", "lm/config.json describes no decoder that Transformers can build"),
        ("no object", "config.json is not the JSON"),
        ("no text", "config.json is not the JSON"),
    ],
)
def test_a_broken_model_folder_is_refused_by_what_is_wrong(
    tmp_path: Path, how: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(ROUTED).save_pretrained(tmp_path)
    _break(tmp_path, how)
    monkeypatch.setattr(socket.socket, "connect", _no_network)
    with pytest.raises(InputError, match=message) as told:
        vm.load(tmp_path)
    assert "\n" not in str(told.value) and "__init__" not in str(told.value), "one sentence, and no Python in it"


def _no_network(*address: object) -> None:
    raise AssertionError(f"a folder that lacks a file must not be looked for elsewhere: {address}")


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("settings", "x", "settings is 'x'; give an object"),
        ("settings.colour", 1, "settings has an unknown entry 'colour'; remove it or upgrade"),
        ("settings.system", 3, "settings: system 3 is no text"),
        ("settings.threshold", "high", r"settings: threshold 'high' is outside \[0, 1\]; it is a probability"),
        ("settings.threshold", 1.5, r"settings: threshold 1.5 is outside \[0, 1\]"),
        ("settings.threshold", True, "settings: threshold True"),
        ("settings.fps", 0, "settings: fps 0 is no frame rate; give frames per second"),
        ("settings.fps", None, "settings: fps None"),
        ("settings.decide", "foo", 'settings: decide \'foo\' is unknown; take "last" or "own"'),
        ("settings.stream_weight", -1.0, "settings: stream_weight -1.0 is no weight"),
        ("settings.max_reply_tokens", 0, "settings: max_reply_tokens 0 is no number of tokens; give 1 or more"),
        ("tower", 7, "tower is 7; give an object"),
        ("tower", {"type": "blah"}, 'tower kind is None; choose one of "conv", "siglip", "siglip2", "clip", "dinov2"'),
        ("tower.channels", "x", "tower.channels is 'x'; give three whole numbers"),
        ("tower.blah", 1, "tower has an unknown entry 'blah'"),
        ("plan", [1, 3], r"plan is \[1, 3\]; give an object"),
        ("plan.layers", "x", "plan layers 'x' are unknown"),
        ("plan.layers", [1, 9], "the plan names layer 9, but the model has layers 0 to 3"),
        ("plan.keep_last", "x", "plan: keep_last is 'x'; give true or false"),
        ("plan.exit_after", "x", "plan: exit_after is 'x'; give a number of layers, or null"),
        ("plan.colour", 1, "unknown entry 'colour'"),
        ("grid", "x", r"grid is 'x'; give two whole numbers, rows and columns, such as \[7, 7\]"),
        ("grid", [2], r"grid is \[2\]; give two whole numbers"),
        ("grid", [2, 3], "grid 2x3 cannot be pooled from the tower's 2x2 cells"),
    ],
)
def test_a_bad_entry_of_config_json_is_told_with_its_file_its_name_and_the_mend(
    tmp_path: Path, entry: str, value: object, message: str
) -> None:
    tiny_model(ROUTED).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    part, _, key = entry.partition(".")
    if key:
        config[part][key] = value
    else:
        config[part] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=rf"{tmp_path}/config.json: .*{message}") as told:
        vm.load(tmp_path)
    assert "\n" not in str(told.value) and "_" * 2 not in str(told.value)


def test_a_plan_given_on_loading_is_not_blamed_on_the_folder(tmp_path: Path) -> None:
    tiny_model(ROUTED).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^the plan names layer 9"):
        vm.load(tmp_path, plan=(1, 9))
    with pytest.raises(InputError, match=r"^threshold 2 is outside \[0, 1\]"):
        vm.load(tmp_path, threshold=2)


def test_a_model_that_is_no_folder_is_refused_by_its_name() -> None:
    with pytest.raises(InputError, match="'nowhere' is neither 'tiny', 'camera' nor a folder"):
        vm.load("nowhere")


def test_half_precision_on_disk_halves_the_file(tmp_path: Path) -> None:
    model = tiny_model(ROUTED).float()
    model.save_pretrained(tmp_path / "full")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")]
    assert sizes[1] < 0.6 * sizes[0]
    assert vm.load(tmp_path / "half").lm.dtype == torch.float32
