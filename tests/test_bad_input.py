"""What cannot be, at the command line: exit code 2 and a sentence that says how to mend it; nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from videollm_mod import cli
from videollm_mod.loading import ASSETS

DEMO = str(ASSETS / "demo.mp4")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["watch", DEMO, "--plan", "1,9"], "names layer 9, but the model has layers 0 to 4; name some of those."),
        (["watch", DEMO, "--keep", "1.5"], "--keep 1.5 is outside (0, 1]; 0.2 keeps a fifth of each frame's tokens."),
        (["watch", DEMO, "--model", "odd"], "image_size of the conv tower is 100; give a multiple of its stride, 16."),
        (
            ["watch", DEMO, "--model", "fine"],
            "grid 9x9 cannot be pooled from the tower's 7x7 cells; choose 1 to 7 rows.",
        ),
        (["extract", DEMO, "--grid", "9x9", "--out", "f"], "7x7 cells; choose 1 to 7 rows."),
    ],
)
def test_plan_keep_ratio_and_grid_that_cannot_be_are_one_sentence_with_the_mend(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in {"odd", "fine"} & set(words):
        shutil.copytree(ASSETS / "tiny", name)
        config = json.loads(Path(name, "config.json").read_text())
        if name == "odd":
            config["tower"]["image_size"] = 100
        else:
            config["grid"] = [9, 9]
        Path(name, "config.json").write_text(json.dumps(config))
    before = sorted(tmp_path.iterdir())
    assert cli.main(words) == cli.BAD_INPUT
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]  # `watch` has said before what it watches
    assert told in last and last.endswith(".") and "Traceback" not in printed.err and not printed.out
    assert sorted(tmp_path.iterdir()) == before
