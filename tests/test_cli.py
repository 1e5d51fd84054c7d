"""The command line: what is checked before anything runs, exit codes, and what goes to which stream."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from evaluate_cases import random_model
from hypothesis import given
from hypothesis import strategies as st

import videollm_mod as vm
from videollm_mod.bench.command import BenchDepth
from videollm_mod.cli import COMMANDS, main
from videollm_mod.depth.plan import LAYERS, PLANS, parse_layers
from videollm_mod.evaluate.report import NAMES
from videollm_mod.types import InputError
from videollm_mod.watch import StreamFlags, check_times, parse_question

ROOT = Path(__file__).parents[1]
BENCHES = [name.removeprefix("bench ") for name in COMMANDS if name.startswith("bench ")]


@pytest.mark.parametrize("words", [[], ["eval"], *(name.split() for name in COMMANDS)], ids=" ".join)
def test_help_goes_to_stdout_and_does_not_wait_for_torch(words: list[str]) -> None:
    script = "import sys; from videollm_mod.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += (
        "heavy = {'torch', 'transformers', 'av', 'numpy', 'matplotlib'} & set(sys.modules); assert not heavy, heavy"
    )
    run = subprocess.run([sys.executable, "-c", script, *words, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "usage: videollm-mod" in run.stdout and not run.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_says_what_it_is_for_and_none_has_the_default_none(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")  # one line per flag
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert "(default: None)" not in printed and "(default: )" not in printed
    for line in printed.splitlines():
        if line.startswith("│ --"):
            text = re.sub(r"│ --\S+ (\S+|\[\S+ .*?\]\])?", "", line)
            assert re.search(r"[A-Z].*[.:,a-z]", text.split("(default")[0]), f"no help in {line!r}"


def test_help_texts_are_filled_and_do_not_break_where_their_source_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    for name, whole in (("train", "a line each, {"), ("watch", "where there is a window, and words with them.")):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert whole in capsys.readouterr().out


def test_a_file_of_streams_that_is_not_there_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", "nope.jsonl"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("videollm-mod data check: there is no file nope.jsonl; give") and "Errno" not in told


def test_train_calls_its_argument_recipe_and_says_so_behind_a_recipe_too(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["train", "--help"], ["train", "tiny", "--help"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "usage: videollm-mod train [-h] [OPTIONS] RECIPE" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["train", "bench depth", "eval world"])
def test_help_lists_every_plan(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        main([*name.split(), "--help"])
    assert PLANS in capsys.readouterr().out
    for layers in LAYERS:
        assert layers in PLANS.replace(" or ", " ").split(", ")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"videollm-mod {vm.__version__}\n" and not printed.err


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
    ("words", "told"),
    [
        (["eval"], "videollm-mod: eval needs one of: world, leaderboard, clips, "),
        (["bench"], f"videollm-mod: bench needs one of: {', '.join(BENCHES)}."),
        (["bench", "--quick"], f"videollm-mod: bench needs one of: {', '.join(BENCHES)}."),
        (["eval", ""], "videollm-mod: there is no command 'eval '; eval needs one of: world, leaderboard, clips, "),
        (
            ["eval", "moon"],
            "videollm-mod: there is no command 'eval moon'; eval needs one of: world, leaderboard, clips, ",
        ),
        (["whatch", "clip.mp4"], "videollm-mod: there is no command 'whatch'; did you mean 'watch'?"),
        (["xyz"], "videollm-mod: there is no command 'xyz'; take one of those below."),
    ],
)
def test_half_a_command_and_a_misspelt_one_are_told_what_was_meant(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert not printed.out and printed.err.splitlines()[0].startswith(told)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("watch", "SOURCE is missing; give a video file, a folder of images"),
        ("watch --fps 1", "SOURCE is missing"),
        ("watch --nope", "there is no flag --nope; `videollm-mod watch --help` lists its flags."),
        ("watch clip.mp4 --jsnol x", "there is no flag --jsnol; did you mean --jsonl?"),
        ("watch clip.mp4 --fsp=3", "there is no flag --fsp; did you mean --fps?"),
        ("watch clip.mp4 -v", "there is no flag -v"),
        ("watch clip.mp4 --fps fast", "--fps 'fast' is not a number; write for example --fps 0.5."),
        ("watch clip.mp4 --fps=fast", "--fps 'fast' is not a number"),
        ("watch clip.mp4 --threads 1.5", "--threads '1.5' is not a whole number"),
        ("watch clip.mp4 --fps", "--fps has no value; give a number."),
        ("watch clip.mp4 --speed x", "--speed 'x' is unknown; take one of realtime, max."),
        ("watch clip.mp4 --kv x", "--kv 'x' is unknown; take one of int8, fp8."),
        ("watch clip.mp4 other.mp4", "'other.mp4' is too many; leave it out"),
        ("serve --port abc", "--port 'abc' is not a whole number; write for example --port 8000."),
        ("train", "RECIPE is missing; give a recipe"),
        ("train tiny --steps 3", "there is no flag --steps"),
        ("bench depth --tokens 10 many", "--tokens '10 many' is not a whole number; write for example --tokens 10 50."),
        ("bench depth --stream_step 3", "there is no flag --stream_step; did you mean --stream-steps?"),
        ("eval world --split all", "--split 'all' is unknown; take one of test, validation, heldout."),
    ],
)
def test_a_flag_that_cannot_be_read_is_one_sentence_on_stderr_with_exit_code_2(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    printed = capsys.readouterr()
    name = max((name for name in COMMANDS if words.startswith(name)), key=len)
    assert printed.err.startswith(f"videollm-mod {name}: {told}") and printed.err.count("\n") == 1
    assert not printed.out


def test_what_is_wrong_with_the_flags_is_told_without_waiting_for_torch() -> None:
    script = "import sys; from videollm_mod.cli import main; code = main(['train', '--nope']); "
    script += "sys.exit(code if 'torch' not in sys.modules else 'torch was imported')"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2 and run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--seconds", "0"], "--seconds 0 is out of range; give a number from 1 to 3600."),
        (["--seconds", "nan"], "--seconds nan is out of range"),
        (["--report", "taken"], "--report taken is a file; give the name of a folder."),
        (["--plan", "sideways"], f"--plan 'sideways' is unknown; take {PLANS}."),
        (["--streams", "0"], "--streams 0 is too small; give 1 or more."),
        (["--threshold", "2"], "--threshold 2.0 is outside [0, 1]"),
    ],
)
def test_eval_refuses_in_one_sentence_what_cannot_be(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("mine")
    assert main(["eval", "world", *flags]) == 2
    printed = capsys.readouterr()
    assert told in printed.err and printed.err.count("\n") == 1 and not printed.out


def test_eval_shows_a_short_table_with_intervals_and_warns_of_few_streams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model().save_pretrained(tmp_path)
    flags = ["--streams", "2", "--heldout", "1", "--seconds", "5", "--workers", "1", "--model", str(tmp_path)]
    flags += ["--report", str(tmp_path / "report")]
    assert main(["eval", "world", *flags]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)  # one object, and nothing else on stdout
    assert "test (2 streams)" in printed.err and "heldout (1 stream)" in printed.err
    rows = {line.split("  ")[0]: line for line in printed.err.splitlines()}
    low, high = result["intervals"]["timing_f1"]
    assert f"{result['timing_f1']:.3f}  [{low:.3f}, {high:.3f}]" in rows[NAMES["timing_f1"]]
    for key in (
        "f1",
        "false_alarms_per_minute",
        "question_accuracy",
        "lm_ppl",
        "time_diff",
        "fluency",
        "lm_correctness",
    ):
        assert NAMES[key] in rows
    assert result["warnings"] == ["intervals from 2 streams and 1 stream say little; give 10 or more."]
    assert f"warning: {result['warnings'][0]}" in printed.err


# -- what the machine is to blame for ----------------------------------------------------------------------------------


def run_of(error: Exception) -> int:
    """The exit code of a command that takes the flags of `bench depth`, and fails with this error."""

    def broken(config: BenchDepth) -> dict[str, Any]:
        raise error

    module = types.ModuleType("broken_command")
    module.broken = broken  # type: ignore[attr-defined]
    sys.modules["broken_command"] = module
    COMMANDS["broken"] = ("broken_command:broken", "Fails.")
    try:
        return main(["broken", "--out", "result.json"])
    finally:
        del COMMANDS["broken"], sys.modules["broken_command"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "cannot write result.json: no space left on device; free"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.srt"),
            "cannot write a.srt: no space left on device; free",
        ),
        (OSError(errno.EROFS, "Read-only file system"), "cannot write result.json: read-only file system; write else"),
        (OSError(errno.EROFS, "Read-only file system", b"a.srt"), "cannot write a.srt: read-only file system; write"),
        (OSError(errno.EIO, "Input/output error"), "input/output error; check the disk or device."),
        (OSError(errno.EMFILE, "Too many open files", "x"), "'x': too many open files; raise the limit"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), "'x': permission denied; check the path"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), "'x': file name too long; check the path"),
    ],
)
def test_a_failing_machine_is_one_sentence(error: OSError, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_of(error) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"videollm-mod broken: {told}") and printed.err.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), OSError("x"), OSError(errno.EINVAL, "x", "y"), OSError(errno.EBADF, "x"), KeyError("x")],
)
def test_an_error_of_ours_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_of(error)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_by_the_name_of_the_output(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "videollm_mod", "watch", str(ROOT / "videollm_mod" / "assets" / "demo.mp4")]
    words += ["--end", "1", "--threads", "1", "--jsonl", "/dev/full", "--threshold", "1"]
    run = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2 and not run.stdout and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith("videollm-mod watch: cannot write /dev/full: no space left on device")
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "videollm_mod", "doctor"]
        run = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.returncode == 2 and "Traceback" not in run.stderr and "Exception ignored" not in run.stderr
    assert run.stderr.splitlines()[-1].endswith("cannot write the result to standard output: no space left on device.")


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
        (["--strip", "strip.mp4"], "--strip strip.mp4 is not a picture's name"),
        (["--window", "0"], "--window 0 is no time"),
        (["--window", "nan"], "--window nan is no time"),
        (["--fps", "0"], "--fps 0 makes no sense; give a number above 0, such as 2."),
        (["--start", "-1"], "--start -1 makes no sense; give 0 or more seconds."),
        (["--start", "3", "--end", "2"], "--end 2 does not lie after --start 3; give a later end."),
        (
            ["--model", "nope"],
            "nor a folder; give a folder that save_pretrained wrote, or a hub id such as owner/name.",
        ),
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
    for name in LAYERS:
        assert parse_layers(name) == name


@pytest.mark.parametrize("words", ["", "sideways", "1,x", "Full", "-1"])
def test_a_plan_that_is_unknown_is_refused_with_everything_that_is_taken(words: str) -> None:
    with pytest.raises(InputError) as told:
        parse_layers(words)
    assert str(told.value) == f"--plan '{words}' is unknown; take {PLANS}."
    assert all(name in PLANS for name in LAYERS)


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
