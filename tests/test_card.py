"""The model card says what a folder is, and leaves a person's own words alone."""

from __future__ import annotations

from pathlib import Path

from stream_cases import tiny_model

from videollm_mod.card import MARK, card
from videollm_mod.depth import DepthPlan


def test_a_card_tells_plan_tokens_numbers_and_how_to_load(tmp_path: Path) -> None:
    model = tiny_model(DepthPlan("interleaved", 0.2, gate="tanh"))
    model.save_pretrained(tmp_path, metrics={"event F1": 0.84321, "false alarms per minute": 0.79})
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: videollm-mod\n")
    assert "- Plan: interleaved, keep 0.2 of each frame's vision tokens; scorer learned, gate tanh" in text
    assert "- Frames: 2 a second, 5 tokens each (1 + 2x2), tower `conv`" in text
    assert "| event F1 | 0.84321 |" in text and "vm.load(" in text
    assert "Base" not in text and "base_model" not in text


def test_a_base_on_the_hub_is_named_in_full_and_a_folder_only_by_its_last_word() -> None:
    config = {
        "base": {"lm": "meta-llama/Meta-Llama-3-8B-Instruct", "tower": "/home/me/siglip"},
        "plan": DepthPlan("full").to_dict(),
        "grid": [3, 3],
        "tower": {"kind": "siglip"},
        "settings": {"fps": 2.0},
    }
    text = card(config, {})
    assert "base_model:\n- meta-llama/Meta-Llama-3-8B-Instruct\n" in text
    assert "`siglip` (tower)" in text and "/home/me" not in text
    assert "full (every vision token goes through every layer)" in text


def test_a_card_that_somebody_has_taken_over_stays(tmp_path: Path) -> None:
    model = tiny_model(DepthPlan("full"))
    model.save_pretrained(tmp_path)
    mine = (tmp_path / "README.md").read_text().replace(MARK, "My words.")
    (tmp_path / "README.md").write_text(mine)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == mine
