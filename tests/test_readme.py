"""What the README says is so: its Python runs, and what its tree names is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_of_python_runs_as_it_stands(number: int) -> None:
    run = subprocess.run([sys.executable, "-c", BLOCKS[number]], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    told = re.findall(r"print\(.*\)  # (.*)", BLOCKS[number])
    assert run.stdout.strip() and all(line in run.stdout for line in told)


def test_every_file_and_folder_of_the_tree_is_there() -> None:
    tree = README.split("## The tree")[1].split("\n## ")[0]
    names = re.findall(r"(?<![\w/.*])([a-z_0-9]+(?:\.py|/))(?=[\s,;])", tree)
    places = (
        ROOT,
        ROOT / "tests",
        *(path for path in (ROOT / "videollm_mod").rglob("*") if path.is_dir()),
        ROOT / "videollm_mod",
    )
    assert len(names) > 40
    assert not [name for name in names if not any((place / name).exists() for place in places)]


def test_every_script_result_and_picture_that_it_names_is_there() -> None:
    names = set(re.findall(r"(?:runs|docs|tests)/[\w/.]+\w", README))
    assert len(names) > 15 and not [name for name in names if not (ROOT / name).exists()]
