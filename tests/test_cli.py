"""The command line: what is checked before anything runs, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videollm_mod.cli import COMMANDS, main
from videollm_mod.depth.plan import parse_layers
from videollm_mod.types import InputError
from videollm_mod.watch import StreamFlags, check_times, parse_question

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("words", [[], ["watch"], ["show"], ["doctor"]])
def test_help_goes_to_stdout_and_does_not_wait_for_torch(words: list[str]) -> None:
    script = "import sys; from videollm_mod.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules and 'av' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", script, *words, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "usage: videollm-mod" in run.stdout and not run.stderr


def test_the_list_of_commands_names_each_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = capsys.readouterr().out
    for name, (_, about) in COMMANDS.items():
        assert name in listed and about in listed


@pytest.mark.parametrize("words", [[], ["whatch"], ["--fps", "2"], ["whatch", "--help"]])
def test_without_a_known_command_the_list_goes_to_stderr_with_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert not printed.out and "watch" in printed.err


@pytest.mark.parametrize(
    "flags", [[], ["clip.mp4", "--nope"], ["clip.mp4", "--fps", "fast"], ["clip.mp4", "--speed", "x"]]
)
def test_a_wrong_flag_is_told_on_stderr_with_exit_code_2(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["watch", *flags])
    assert left.value.code == 2
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--keep", "0"], "--keep 0.0 is outside (0, 1]"),
        (["--keep", "1.01"], "--keep 1.01 is outside (0, 1]"),
        (["--keep", "nan"], "--keep nan is outside (0, 1]"),
        (["--threshold", "-0.1"], "--threshold -0.1 is outside [0, 1]"),
        (["--threads", "0"], "--threads 0"),
        (["--ask", "What is in view?"], "TEXT@SECONDS"),
        (["--ask", "@3"], "TEXT@SECONDS"),
        (["--plan", "sometimes"], "sometimes"),
        (["--plan", "1,,3"], "--plan '1,,3'"),
        (["--jsonl", "no/such/folder/out.jsonl"], "no/such/folder"),
        (["--srt", "."], "folder"),
        (["--video", "out.avi"], ".mp4"),
        (["--srt", "out.txt", "--jsonl", "./out.txt"], "out.txt is also --jsonl"),
        (["--jsonl", "no-such-clip.mp4"], "is also the source"),
    ],
)
def test_a_bad_flag_is_one_sentence_and_exit_code_2_before_the_source_is_looked_at(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["watch", "no-such-clip.mp4", *flags]) == 2  # that the clip is missing is never found out
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1 and "Traceback" not in printed.err
    assert not printed.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "nothing to draw"),
        (["--picture", "out.mp4"], "--picture out.mp4"),
        (["--video", "out.mp4", "--frames", "0"], "--frames 0"),
        (["--video", "a.png", "--picture", "b.png"], ".mp4"),
    ],
)
def test_show_tells_what_it_needs(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "no-such-clip.mp4", *flags]) == 2
    assert told in capsys.readouterr().err


def test_bad_input_leaves_with_exit_code_2_one_sentence_and_no_traceback(tmp_path: Path) -> None:
    out = tmp_path / "events.jsonl"
    words = [sys.executable, "-m", "videollm_mod", "watch", "no-such-clip.mp4", "--jsonl", str(out)]
    run = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2 and not run.stdout
    assert "no-such-clip.mp4" in run.stderr and run.stderr.count("\n") == 1
    assert not out.exists()


@given(st.text(alphabet="ab @?é", max_size=20).filter(str.strip), st.floats(0, 1e6))
def test_the_last_at_sign_parts_question_and_time(text: str, seconds: float) -> None:
    question = parse_question(f"{text}@{seconds!r}")
    assert (question.text, question.time) == (text.strip(), seconds)


@pytest.mark.parametrize(
    "words", ["", "@", "hello", "hello@", "hello@now", "hello@-1", "hello@nan", "hello@inf", " @3"]
)
def test_a_question_without_text_or_time_is_refused(words: str) -> None:
    with pytest.raises(InputError, match="TEXT@SECONDS"):
        parse_question(words)


def test_a_plan_is_a_name_or_a_list_of_layers() -> None:
    assert parse_layers(None) is None
    assert parse_layers("interleaved-deep") == "interleaved-deep"
    assert parse_layers("1, 3,5") == (1, 3, 5)


@pytest.mark.parametrize(
    ("asked", "duration", "end", "fits"),
    [
        (10.0, 10.0, None, True),
        (10.1, 10.0, None, False),
        (99.0, None, None, True),  # nobody knows yet
        (8.1, None, 8.0, False),
        (8.1, 10.0, 8.0, False),
        (1.9, 10.0, None, False),  # before --start
    ],
)
def test_a_question_must_fall_between_start_and_end_where_these_are_known(
    asked: float, duration: float | None, end: float | None, fits: bool
) -> None:
    questions = [parse_question(f"Now?@{asked}")]
    flags = StreamFlags("clip.mp4", start=2.0, end=end)
    if fits:
        check_times(questions, flags, duration)
    else:
        with pytest.raises(InputError, match=str(asked)):
            check_times(questions, flags, duration)


def test_doctor_prints_one_json_object_with_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor"])
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1
    result = json.loads(printed.out)
    assert code == (0 if result["ok"] else 1)
    assert {"python", "packages", "decoders", "devices", "attention", "bundled model", "cache"} <= set(result["checks"])
    assert result["checks"]["decoders"]["found"]["h264"] is True
    assert all(check["ok"] or check["mend"] for check in result["checks"].values()), "what is missing can be got"
    for name in result["checks"]:
        assert name in printed.err
