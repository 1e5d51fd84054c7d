"""`videollm-mod train` at the command line: what it refuses, recipes of one's own, going on after Ctrl-C."""

from __future__ import annotations

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from videollm_mod.cli import main
from videollm_mod.depth.plan import PLANS
from videollm_mod.loading import ASSETS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["tiny", "--threads", "0"], "--threads 0 is too small; give 1 or more."),
        (["tiny", "--workers", "-1"], "--workers -1 is too small; give 0 or more."),
        (["tiny", "--seed", "-1"], "--seed -1 is too small; give 0 or more."),
        (["tiny", "--seed", str(2**63)], "is too large"),
        (["tiny", "--keep", "2"], "--keep 2.0 is outside (0, 1]"),
        (["tiny", "--plan", "sideways"], f"--plan 'sideways' is unknown; take {PLANS}."),
        (["tiny", "--plan", "1,9"], "the plan names layer 9, but the model has layers 0 to 4; name some of those."),
        (["tiny", "--gate", "garden"], "gate 'garden' is unknown; take one of identity"),
        (["tiny", "--out", "taken"], "--out taken is a file; give the name of a folder."),
        (["tiny", "--out", "nowhere", "--resume"], "--resume finds no run in nowhere"),
        (["../../etc"], "there is no recipe '../../etc'; take one of camera, convert, own, paper.coin"),
        (["a.b"], "there is no recipe 'a.b'"),
        (["__init__"], "there is no recipe '__init__'"),
    ],
)
def test_train_refuses_in_one_sentence_what_cannot_be_and_writes_nothing(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    assert main(["train", *flags]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1 and not printed.out
    assert [path.name for path in tmp_path.iterdir()] == ["taken"] and Path("taken").read_text() == "mine"


def test_a_model_to_go_on_from_that_is_broken_leaves_no_run_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ASSETS / "tiny", "broken")
    weights = load_file("broken/model.safetensors")
    save_file({name: weights[name] for name in sorted(weights)[1:]}, "broken/model.safetensors")
    assert main(["train", "tiny", "--start", "broken", "--out", "run"]) == 2
    assert f"lacks the tensor '{min(weights)}'" in capsys.readouterr().err
    assert not Path("run").exists(), "the next try would be told that a run is there"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("gone.py", None, "there is no recipe file gone.py; check the path."),
        ("empty.py", "", "empty.py has no function `recipe` that returns a Recipe"),
        ("wrong.py", "def recipe(): return 1", "wrong.py has no function `recipe` that returns a Recipe"),
    ],
)
def test_a_recipe_file_of_ones_own_that_is_none_is_refused(
    name: str, text: str | None, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    if text is not None:
        Path(name).write_text(text)
    assert main(["train", name]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1


def test_without_accelerate_training_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "accelerate" else found(name))
    assert main(["train", "tiny"]) == 2
    assert (
        "needs accelerate, which is not installed; run pip install -c constraints.txt -e '.[train]'."
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_recipe_file_of_ones_own_is_trained(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.py"
    here = str(Path(__file__).parent)
    recipe.write_text(
        f"import sys\nsys.path.insert(0, {here!r})\nfrom test_train import small_recipe\n"
        "from videollm_mod.model import StreamSettings\n"
        "def recipe(): return small_recipe(calibration_streams=1, settings=StreamSettings(max_reply_tokens=1))\n"
    )
    words = ["train", str(recipe), "--workers", "0", "--out", str(tmp_path / "out")]
    run = subprocess.run([sys.executable, "-m", "videollm_mod", *words], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1])["steps"] == 7
    assert (tmp_path / "out" / "model" / "calibration.json").exists()


@pytest.mark.slow
def test_train_takes_numbers_of_layers_and_no_worker_at_all(tmp_path: Path) -> None:
    """Stopped by Ctrl-C as soon as the run has begun; what it says then goes on with the very same recipe."""
    out = tmp_path / "my run"
    words = ["train", "tiny", "--plan", "1,3", "--keep", "0.5", "--workers", "0", "--out", str(out)]
    run = subprocess.Popen(
        [sys.executable, "-m", "videollm_mod", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while run.poll() is None and not (out / "first" / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(2)  # the run must catch Ctrl-C itself by then
    run.send_signal(signal.SIGINT)
    printed, told = run.communicate()
    plan = json.loads((out / "first" / "recipe.json").read_text())["plan"]
    assert (plan["layers"], plan["keep"]) == ([1, 3], 0.5)
    assert run.returncode == 130 and json.loads(printed)["interrupted"] is True
    assert f"`videollm-mod train tiny --out '{out}' --workers 0 --plan 1,3 --keep 0.5 --resume`" in told
