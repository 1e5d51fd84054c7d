"""A reduction by a flag or an option: in the model for good, told in the result, and drawn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluate_cases import random_model
from reduction_cases import features_of, method, small_model
from stream_cases import frames

import videollm_mod as vm
from videollm_mod.cli import main
from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import Stream, System, collate
from videollm_mod.evaluate.world import EvalWorldConfig, evaluate_world
from videollm_mod.reductions import Compose, Signals, Tokens, Uniform, from_dict, parse_reduction
from videollm_mod.reductions.base import nearest
from videollm_mod.stream.engine import Engine
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError
from videollm_mod.video import VideoWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    random_model().save_pretrained(path)
    return str(path)


def silences(model: vm.StreamingVideoLM) -> list[float]:
    session, found = StreamSession(model, threshold=0.0), []
    for frame in frames(3):
        session.push(dataclasses.replace(frame, image=np.kron(frame.image, np.ones((2, 2, 1), np.uint8))))
        found.append(session.silence)
    return found


def test_a_model_loaded_with_a_reduction_is_as_within_its_with(folder: str) -> None:
    model = vm.load(folder)
    with Uniform(keep=0.5).on(model):
        within = silences(model)
    assert silences(model) != within
    for wish in ("uniform=0.5", Uniform(keep=0.5), {"name": "uniform", "keep": 0.5}):
        assert silences(vm.load(folder, reduction=wish)) == within
    with pytest.raises(InputError, match=r"there is no reduction 'uniforn'; did you mean uniform\?"):
        vm.load(folder, reduction="uniforn=0.5")
    with pytest.raises(InputError, match="has no attention between its cells"):
        vm.load(folder, reduction="hi_prune=0.5")
    with pytest.raises(InputError, match="is no reduction; give one such as Uniform"):
        vm.load(folder, reduction=Uniform)  # type: ignore[arg-type]


def test_several_are_typed_with_a_plus_between_them() -> None:
    assert (
        from_dict(parse_reduction("grt=0.5+ uniform")).to_dict()
        == Compose([vm.reductions.GRT(0.5), Uniform()]).to_dict()
    )
    with pytest.raises(InputError, match="goes backwards"):
        parse_reduction("uniform+grt")
    fields = {"name": "hi_prune", "keep": 0.5, "layer": 2}
    assert from_dict(parse_reduction(json.dumps(fields))) == vm.reductions.HiPrune(0.5, layer=2)
    with pytest.raises(InputError, match="is no JSON"):
        parse_reduction('{"name": uniform}')
    with pytest.raises(InputError, match="parts of a composition is 3; give a list of reductions"):
        from_dict({"name": "compose", "parts": 3})
    with pytest.raises(InputError, match=r'needs a "name" beside its fields, such as \{"name": "uniform"'):
        parse_reduction('{"fo_pru": {"keep": 0.25}}')
    with pytest.raises(InputError, match=r"'uniform=0.5\+' has nothing on one side of a \+"):
        parse_reduction("uniform=0.5+")
    with pytest.raises(InputError, match=r"takes one list; write Compose\(\[first, second\]\)"):
        Compose([Uniform()], Uniform())
    with pytest.raises(InputError, match=r"has no share; write for example uniform=0.25"):
        parse_reduction("grt+uniform=half")


@pytest.mark.parametrize(
    "word, meant",
    [("FasterVLM", "faster_vlm"), ("faster", "faster_vlm"), ("quick-video", "quick_video"), ("xyz", None)],
)
def test_a_name_that_is_almost_right_is_told(word: str, meant: str | None) -> None:
    assert nearest(word) == meant
    with pytest.raises(InputError, match=f"did you mean {meant}" if meant else "take one of aim, "):
        parse_reduction(word)
    with pytest.raises(AttributeError, match="its methods are AIM, "):
        vm.reductions.FastV  # noqa: B018


@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["quick_video", "video_scan"])
def test_a_rounded_cache_loses_entries_by_the_keys_that_its_codes_stand_for(name: str, kv: str) -> None:
    model, one = small_model("clip", "own"), method(name, 1.0)
    chosen: list[tuple[list[int], list[int]]] = []

    def reduce(tokens: Tokens, signals: Signals) -> Tokens:
        layer = session._cache.layers[signals.layer]
        codes = layer.slots[0, : layer.lengths[0]] >= layer.slots[0, layer.lengths[0] - 1] - 17
        read = layer.stored_keys(0)[:, codes][:, 1:17].transpose(0, 1)  # of the cells, between CLS and interval
        assert torch.equal(tokens.x, read.flatten(1)) and tokens.x.dtype == torch.float32
        kept = type(one).reduce(method(name, 0.3), tokens, signals)
        chosen.append((len(kept), len(tokens)))
        return kept

    one.reduce = reduce  # type: ignore[method-assign]
    with one.on(model):
        session = StreamSession(model, threshold=0.0, kv=kv)
        for frame in frames(2):
            session.push(frame)
    assert chosen == [(5, 16)] * 8


def test_a_frame_of_which_no_entry_is_left_is_forgotten_also_where_a_reduction_dropped_some_of_its_tokens() -> None:
    model = small_model("clip", "own")
    with Uniform(keep=0.3).on(model):
        session = StreamSession(model, threshold=0.0, policy="norm", window=1.0, budget=60_000)
        for frame in frames(40):
            session.push(frame)
    held = {slot for layer in session._cache.layers for slot in layer.slots[0, : layer.lengths[0]].tolist()}
    begin = 0
    for piece in session.memory.pieces:
        first = begin + piece.lead
        assert piece.kind != "frame" or held & set(range(first, first + piece.vision))
        begin += piece.size
    assert session.state().forgotten["frames"] > 0 and session.state().kv_bytes <= 60_000


@pytest.mark.parametrize(
    "name, keep, plan, told",
    [
        ("uniform", 0.5, None, {0: 9}),
        ("uniform", 1.0, None, {0: 17}),
        ("uniform", 0.5, DepthPlan((2,), 0.4), {0: 9, 2: 4}),
        ("uniform", 0.5, DepthPlan((0, 2), 0.4), {0: 4, 2: 4}),  # the first layer tells for both
        ("aim_prune", 0.5, None, {3: 9}),
    ],
)
def test_what_is_told_as_kept_is_what_went_through(
    name: str, keep: float, plan: DepthPlan | None, told: dict[int, int]
) -> None:
    model, one = small_model("clip", "own", plan), method(name, keep)
    with one.on(model):
        assert model.told_layers == sorted(told)
        session, kept = StreamSession(model, threshold=0.0, record_kept=True), []
        for frame in frames(2):
            session.push(frame)
            kept.append(session.kept)
        if one.stage != "layer":
            engine = Engine(model)
            for _ in range(2):
                stream = engine.open(threshold=0.0, record_kept=True, drop="all")
                for frame in frames(2):
                    stream.push(frame)
            kept += [output.kept for output in engine.step() if output.kept is not None]
            assert len(kept) == 6
    assert all({layer: int(mask.sum()) for layer, mask in each.items()} == told for each in kept)


def test_a_pass_tells_what_went_through_in_all_of_its_frames_also_where_it_runs_frame_by_frame() -> None:
    plan = DepthPlan((1, 2), 0.4)
    model, both = small_model("clip", "own", plan), Compose([method("uniform", 0.5), method("quick_video", 0.5)])
    batch = collate([model.template.encode([System("Say what happens."), Stream(count)]) for count in (3, 1)])
    told: dict[str, dict[int, torch.Tensor]] = {"kept_out": {}, "scores_out": {}}
    with both.on(model), torch.no_grad():
        model(batch.input_ids, batch.frame_index, features_of(model, 4), attention_mask=batch.attention_mask, **told)
    vision = batch.frame_index >= 0
    each = vision.sum(1) // 17
    for layer, left in ((0, 9), (1, 4), (2, 4)):
        kept = told["kept_out"][layer]
        assert kept.shape == vision.shape and ((kept & vision).sum(1) == left * each).all()
    assert sorted(told["scores_out"]) == [1, 2]
    assert all(scores.shape == vision.shape for scores in told["scores_out"].values())


def test_watch_takes_one_and_draws_what_it_left(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip.mp4"
    with VideoWriter(clip, fps=4) as writer:
        for number in range(12):
            writer.write(np.full((48, 64, 3), 20 * number, dtype=np.uint8))
    command = ["watch", str(clip), "--model", folder, "--plan", "full"]
    assert main([*command, "--reduction", "uniform=0.3", "--video", str(tmp_path / "out.mp4")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["reduction"] == {"name": "uniform", "keep": 0.3}
    assert result["kv_bytes"] < 0.8 * result["kv_bytes_dense"]
    assert main([*command, "--reduction", "uniform=3"]) == 2
    assert "give a share in (0, 1]" in capsys.readouterr().err
    assert main(["serve", "--model", folder, "--reduction", "quick_video=0.5", "--port", "0"]) == 2
    assert "take a reduction that acts before the decoder" in capsys.readouterr().err


def test_eval_world_measures_a_model_with_one_and_a_journal_knows(folder: str, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    config = EvalWorldConfig(
        model=folder, streams=2, heldout=0, seconds=6.0, workers=1, report=tmp_path / "report", journal=journal
    )
    dense = evaluate_world(config)
    with pytest.raises(InputError, match="another"):
        evaluate_world(dataclasses.replace(config, reduction="uniform=0.2"))
    reduced = evaluate_world(dataclasses.replace(config, reduction="uniform=0.2", journal=None))
    assert dense["reduction"] is None and reduced["reduction"] == {"name": "uniform", "keep": 0.2}
    assert dense["lm_ppl"] != reduced["lm_ppl"]
