"""Our half of `runs/peer_videollm_online.py`: what both sides load, and that ours is silent on what theirs is asked."""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from videollm_mod.bench.models import on_the_same_weights
from videollm_mod.depth import DepthPlan

SCRIPT = Path(__file__).parents[1] / "runs" / "peer_videollm_online.py"
SIZES = {"frames": 4, "width": 32, "inner": 48, "layers": 2, "heads": 2, "vocabulary": 300}


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("peer_videollm_online", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(peer: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peer")
    peer.write_model(path, argparse.Namespace(**SIZES))
    return path


def session_of(peer: ModuleType, folder: Path) -> Callable[[DepthPlan], object]:
    lm, connector, features = peer.load_ours(folder)
    return lambda plan: peer.Ours(on_the_same_weights(lm), connector, folder, features, plan)


def test_ours_takes_the_ids_of_their_template_and_stays_silent(peer: ModuleType, folder: Path) -> None:
    """BOS, system text, an empty line, "[", a frame, ",", a frame ...: a byte is a token."""
    make = session_of(peer, folder)
    logits = {}
    for name, plan in (("dense", DepthPlan("full")), ("routed", DepthPlan("interleaved", 0.2))):
        ours = make(plan)
        assert len(ours.frames(0, 4)) == 4  # it raises if anything is said
        template, context = ours.model.template, ours.session.context
        text = [token for token in context if token != template.vision_id]
        assert context.count(template.vision_id) == 40
        assert text[0] == template.tokenizer.bos_token_id
        assert template.tokenizer.decode(text[1:]) == peer.SYSTEM + "\n\n[,,,"
        logits[name] = ours.logits
    assert logits["dense"] != logits["routed"]
    silent = template.interval_id
    assert peer.compare_logits(logits["dense"], logits["dense"], silent)["largest_difference"] == 0
    with pytest.raises(RuntimeError, match="not the same model"):
        peer.compare_logits(logits["dense"], logits["routed"], silent)


def test_what_is_written_is_what_an_old_transformers_reads(folder: Path) -> None:
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["rope_theta"] == 10000.0 and config["torch_dtype"] == "float32"
    assert json.loads((folder / "model" / "tokenizer.json").read_text())["model"]["merges"] == []


def test_the_curve_is_the_median_of_each_chunk(peer: ModuleType) -> None:
    taken = {"theirs": [1.0] * 20 + [3.0] * 20, "ours, dense": [2.0] * 40, "ours, routed": [1.0] * 40}
    assert peer.curves(taken)["theirs"] == [1.0, 3.0]
    told = peer.told_at(taken, 40)
    assert (told["peer_ms"], told["dense_ratio"], told["routed_ratio"]) == (3.0, 2 / 3, 1 / 3)
    assert peer.told_at(taken, 20)["dense_ratio"] == 2.0


def test_logits_of_other_sizes_are_no_agreement(peer: ModuleType) -> None:
    with pytest.raises(RuntimeError):
        peer.compare_logits(torch.ones(2, 3).tolist(), torch.ones(2, 4).tolist(), 0)
