"""What the README says is so: its Python runs, and what its tree names is there."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from videollm_mod.arguments import parse_flags
from videollm_mod.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
ENDLESS = (ROOT / "docs" / "endless.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README + ENDLESS, flags=re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_every_block_of_python_runs_as_it_stands(number: int) -> None:
    run = subprocess.run([sys.executable, "-c", BLOCKS[number]], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    told = re.findall(r"print\(.*\)  # (.*)", BLOCKS[number])
    assert run.stdout.strip() and all(line in run.stdout for line in told)


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "reproduce").glob("*.md"))]


def commands_of(page: Path) -> list[list[str]]:
    """The words of every command of ours in a page; of a loop, with a name for its variable."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("videollm-mod ")]
    found = []
    for line in lines:
        for variable, value in (("$task", "step"), ("$plan", "all"), ("$clip", "clip.mp4")):
            line = line.replace(variable, value)
        found.append(shlex.split(line, comments=True)[1:])
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "LOG.md"], ids=lambda page: page.name)
def test_every_command_of_the_documentation_has_flags_that_are_there(page: Path) -> None:
    for words in commands_of(page):
        name = next(" ".join(words[:count]) for count in (2, 1) if " ".join(words[:count]) in COMMANDS)
        module, function = COMMANDS[name][0].split(":")
        parse_flags(getattr(importlib.import_module(module), function), words[len(name.split()) :], name, "")


def test_no_page_of_reproduction_uses_a_file_for_two_things() -> None:
    for page in PAGES:
        if page.parent.name == "reproduce":
            written = [words[words.index(flag) + 1] for words in commands_of(page) for flag in ("--out", "--journal")
                       if flag in words]  # fmt: skip
            names = [name for name in written if name.endswith((".json", ".jsonl"))]
            assert len(names) == len(set(names)), page


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
    names = set(re.findall(r"(?:runs|docs|tests)/[\w/.-]+\w", README))
    assert len(names) > 15 and not [name for name in names if not (ROOT / name).exists()]
