"""`watch` and `show` from end to end: a real clip, a real session on a small random model, real files."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from videollm_mod.cli import main
from videollm_mod.depth import DepthPlan
from videollm_mod.dialogue import word_tokenizer
from videollm_mod.doctor import Check, install_command
from videollm_mod.flags import PLANS
from videollm_mod.model import StreamingVideoLM, StreamSettings, load
from videollm_mod.pace import catch_interrupts, safe_point
from videollm_mod.show.overlay import CELL, GAP
from videollm_mod.show.terminal import Terminal
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import Frame, StreamEvent
from videollm_mod.video import VideoWriter
from videollm_mod.vision import Connector, ConvTower, ConvTowerConfig, FrameEncoder
from videollm_mod.watch import Tally, _watched

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a model that was never trained; with threshold 1 it speaks at every frame, with 0 never."""
    torch.manual_seed(0)
    settings = StreamSettings(max_reply_tokens=4)
    tokenizer = word_tokenizer([settings.system, "A small red square enters from the left.", "What is in view?"])
    tower = ConvTower(ConvTowerConfig(image_size=32, channels=(4, 4, 8), heads=1))
    sizes = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1)
    lm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=4, **sizes))
    encoder, plan = FrameEncoder(tower, (2, 2)), DepthPlan("interleaved", keep=0.4)
    folder = tmp_path_factory.mktemp("model")
    StreamingVideoLM(encoder, Connector(8, 16), lm, tokenizer, plan, settings).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three seconds at 8 frames per second: a square that moves."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    with VideoWriter(path, fps=8) as writer:
        for number in range(24):
            image = np.full((48, 64, 3), 60, dtype=np.uint8)
            image[10:20, number : number + 10] = (220, 30, 30)
            writer.write(image)
    return str(path)


def decoded(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_watch_writes_events_subtitles_and_video_and_ends_with_one_json_object(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        name: str(tmp_path / f"out.{ending}") for name, ending in [("jsonl", "jsonl"), ("srt", "srt"), ("video", "mp4")]
    }
    flags = [word for name, path in files.items() for word in (f"--{name}", path)]
    asked = ["--ask", "What is in view?@2.2", "--ask", "mail me@home?@1"]
    assert main(["watch", clip, "--model", model, "--threshold", "1", *asked, *flags]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)  # one object, and nothing else on stdout
    assert (result["frames"], result["events"], result["seconds"]) == (6, 8, 3.0)
    assert result["files"] == files and not result["interrupted"] and result["lag_max"] >= 0
    assert result["kv_bytes"] < result["kv_bytes_dense"]
    assert [(q["text"], q["time"]) for q in result["questions"]] == [("mail me@home?", 1.0), ("What is in view?", 2.2)]
    rows = [json.loads(line) for line in Path(files["jsonl"]).read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["narration"] * 3 + ["answer"] + ["narration"] * 2 + ["answer", "narration"]
    assert [row["time"] for row in rows] == [0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.2, 2.5]
    assert [row["asked"] for row in rows if row["kind"] == "answer"] == [1.0, 2.2]
    for row in rows:
        assert row["text"] in printed.err, "said on the terminal too"
    assert Path(files["srt"]).read_text().count(" --> ") == 7  # what is said at one time shares a subtitle
    assert len(decoded(Path(files["video"]))) == 6


def test_a_silent_stream_says_nothing_and_every_output_is_still_valid(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    flags = ["--threshold", "0", "--start", "1", "--end", "2", "--plan", "full", "--threads", "1"]
    assert main(["watch", clip, "--model", model, "--jsonl", str(out), *flags]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["frames"], result["events"], result["plan"]["layers"]) == (2, 0, "full")
    assert result["kv_bytes"] == result["kv_bytes_dense"]
    assert out.read_bytes() == b""


def test_a_policy_and_a_budget_are_held_and_told(model: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--threshold", "0", "--fps", "8", "--policy", "window", "--budget", "16kB", "--kv", "fp8"]
    assert main(["watch", clip, "--model", model, *flags]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert plain["kv_bytes"] <= 16_000 and (plain["policy"], plain["budget"]) == ("window", 16_000)
    assert main(["watch", clip, "--model", model, *flags[:-2], "--dtype", "bfloat16"]) == 0
    assert json.loads(capsys.readouterr().out)["frames"] == 24
    assert main(["watch", clip, "--model", model, *flags[:-2]]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frames"] == 24 and result["forgotten"]["frames"] > 0 == plain["forgotten"]["frames"]


def test_realtime_takes_as_long_as_the_video_and_max_does_not_wait(
    model: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = {}
    for speed in ("realtime", "max"):
        assert main(["watch", clip, "--model", model, "--threshold", "0", "--end", "1.6", "--speed", speed]) == 0
        seconds[speed] = json.loads(capsys.readouterr().out)["wall_seconds"]
    assert seconds["realtime"] >= 1.5  # the last of four frames is due at 1.5 s
    assert seconds["max"] < seconds["realtime"]


def test_a_machine_that_is_too_slow_is_told_once_with_what_to_do(
    model: str, clip: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videollm_mod.watch.LATE", -1.0)  # every frame is late
    for speed, count in (("realtime", 1), ("max", 0)):
        assert main(["watch", clip, "--model", model, "--threshold", "0", "--end", "1", "--speed", speed]) == 0
        told = json.loads(capsys.readouterr().out)["warnings"]
        assert len(told) == count and all("--drop newest" in warning for warning in told)


def test_what_is_dropped_has_a_policy_and_is_reported(
    model: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", model, "--threshold", "0", "--fps", "8", "--end", "1"]
    for more, policy in (([], "all"), (["--drop", "adaptive"], "adaptive"), (["--drop", "newest"], "newest")):
        assert main(["watch", clip, *flags, *more]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["drop"], result["frames"], result["dropped"], result["drops"]) == (policy, 8, 0, {})
    assert main(["watch", clip, *flags, "--drop", "newest", "--speed", "realtime"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["frames"] + result["dropped"] == 8 and sum(result["drops"].values()) == result["dropped"]
    assert main(["watch", clip, *flags, "--drop", "oldest"]) == 2
    assert "--drop 'oldest' is unknown; take one of auto, newest, all, adaptive" in capsys.readouterr().err


def test_a_frame_rate_above_the_sources_is_a_warning(model: str, clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", clip, "--model", model, "--threshold", "0", "--fps", "50", "--end", "1"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["frames"] == 8
    (rate,) = result["warnings"]  # one cause, one warning
    assert "fewer than the 50 asked for" in rate and "the model was trained at 2 frames per second; at 8" in rate
    assert f"warning: {rate}" in printed.err


@pytest.mark.parametrize(
    ("last", "period", "end", "seconds"),
    [
        (2.5, 0.5, 3.0, 3.0),
        (0.0, 10.0, 1.0, 1.0),  # --fps 0.1 --end 1
        (0.0, 0.5, 0.1, 0.1),  # a clip of a tenth of a second
        (2.5, 0.5, 2.0, 2.5),  # an end that was only estimated
        (2.5, 0.5, None, 3.0),
    ],
)
def test_no_more_seconds_are_told_than_there_were(
    last: float, period: float, end: float | None, seconds: float
) -> None:
    assert _watched(Tally(frames=6, last=last), period, end) == pytest.approx(seconds)
    assert _watched(Tally(), period, end) == 0


def test_show_without_a_named_output_draws_both_and_says_where(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", clip, "--model", model, "--threshold", "0", "--frames", "2"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert files == {"video": "out/show/clip.mp4", "picture": "out/show/clip.png"}
    assert all(Path(path).is_file() for path in files.values())


@pytest.mark.parametrize(
    ("fps", "told"),
    [
        ("2", None),
        ("1.95", None),
        ("4", "the model was trained at 2 frames per second; at 4 it may misjudge motion"),
        ("0.5", "the model was trained at 2 frames per second; at 0.5 it may misjudge motion"),
    ],
)
@pytest.mark.parametrize("command", ["watch", "show"])
def test_a_frame_rate_that_the_model_was_not_trained_at_is_a_warning(
    command: str, fps: str, told: str | None, model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = ["--picture", str(tmp_path / "kept.png"), "--frames", "1"] if command == "show" else []
    assert main([command, clip, "--model", model, "--threshold", "0", "--fps", fps, *picture]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == ([told] if told else [])


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], None),
        (["--plan", "interleaved"], None),
        (["--plan", "1,3"], None),  # the same layers by their numbers
        (["--keep", "0.4"], None),
        (["--plan", "full"], "trained with the plan interleaved, keep 0.4; with full it may speak badly"),
        (["--plan", "3"], "trained with the plan interleaved, keep 0.4; with 3, keep 0.4 it may speak badly"),
        (["--keep", "1"], "trained with the plan interleaved, keep 0.4; with interleaved, keep 1.0 it may speak badly"),
        (["--plan", "all"], "the LayerExperts of layers [0, 2] were never trained"),  # and no second warning
    ],
)
def test_a_plan_that_the_model_was_not_trained_with_is_one_warning(
    flags: list[str], told: str | None, model: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", clip, "--model", model, "--threshold", "0", "--end", "1", *flags]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert len(warnings) == (told is not None)
    assert told is None or told in warnings[0]


def test_an_answer_at_the_end_is_told_after_its_question_in_every_output(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endings = {"jsonl": "jsonl", "srt": "srt", "video": "mp4", "strip": "png"}
    outputs = {name: tmp_path / f"out.{ending}" for name, ending in endings.items()}
    flags = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]
    asked = ["--threshold", "0", "--start", "1", "--end", "2.5", "--ask", "What is in view?@2.4"]
    assert main(["watch", clip, "--model", model, *asked, *flags]) == 0
    row = json.loads(outputs["jsonl"].read_text())
    assert (row["time"], row["asked"], row["frame"]) == (2.4, 2.4, 2)
    assert "00:00:02,400 --> " in outputs["srt"].read_text()
    assert re.search(r"0:02\.4  What is in view\?", capsys.readouterr().err)
    assert len(decoded(outputs["video"])) == 3 + 1, "one more picture, on which it can be read"
    assert Image.open(outputs["strip"]).width == GAP + CELL + GAP, "one shot"


@pytest.mark.parametrize("command", ["watch", "show"])
def test_a_model_that_is_not_there_is_refused_before_anything_is_printed_of_the_source(
    command: str, clip: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture = ["--picture", str(tmp_path / "kept.png")] if command == "show" else []
    assert main([command, clip, "--model", "nope", *picture]) == 2
    told = capsys.readouterr().err
    assert (
        "--model nope is neither 'tiny', 'camera' nor a folder" in told and told.count("\n") == 1 and clip not in told
    )


def test_a_question_beyond_the_end_is_refused_by_its_text(
    model: str, clip: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--ask", "What is in view?@1", "--ask", "Who left?@9999"]
    assert main(["watch", clip, "--model", model, *asked]) == 2
    assert "--ask 'Who left?' at 9999 s is beyond the end (3.00 s)" in capsys.readouterr().err


def test_the_help_names_every_plan(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("watch", "show"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        listed = re.sub(r"[│|\s]", "", capsys.readouterr().out)  # a narrow terminal breaks lines at commas
        assert PLANS.replace(" ", "") in listed


@pytest.mark.parametrize(
    ("start", "end", "told"),
    [
        (55.0, 60.0, "clip.mp4, 0:55.0 to 1:00.0"),
        (0.0, 60.0, "clip.mp4, 0:00.0 to 1:00.0"),
        (5.0, None, "clip.mp4, from 0:05.0"),
        (0.0, None, "clip.mp4"),
    ],
)
def test_the_headline_names_the_source_and_the_span_that_is_watched(start: float, end: float | None, told: str) -> None:
    screen = io.StringIO()
    with Terminal("clip.mp4", Console(file=screen, width=80)) as terminal:
        terminal.begin(start, end)
    assert screen.getvalue() == told + "\n"


def test_a_question_beyond_an_end_nobody_knew_is_answered_at_the_end_with_a_warning(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    endless = tmp_path / "clip.mkv"  # written as by a live recorder, it tells no duration
    with av.open(clip) as source, av.open(str(endless), "w", options={"live": "1"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with endless.open() as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        assert main(["watch", "-", "--model", model, "--threshold", "0", "--ask", "Now?@99"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert [question["text"] for question in result["questions"]] == ["Now?"]
    assert any("99" in warning for warning in result["warnings"])
    assert "0:03.0  Now?" in printed.err, "when it was put, not when it was meant to be"


def test_a_model_that_cannot_be_loaded_leaves_no_output_file(
    clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    outputs = [
        "--jsonl",
        str(tmp_path / "a.jsonl"),
        "--srt",
        str(tmp_path / "a.srt"),
        "--video",
        str(tmp_path / "a.mp4"),
    ]
    assert main(["watch", clip, "--model", str(tmp_path / "empty"), *outputs]) == 2
    told = capsys.readouterr().err
    assert "config.json" in told and told.count("\n") == 1, "no headline of a source that nobody will watch"
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("end", ["3", "0.4"])  # a cue that fails among frames, and one that fails when all is over
def test_an_output_that_fails_is_named_and_leaves_all_final_names_as_they_were(
    end: str, model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endings = {"jsonl": "jsonl", "video": "mp4", "strip": "png"}
    outputs = {name: tmp_path / f"half.{ending}" for name, ending in endings.items()}
    outputs["jsonl"].write_text("precious")
    flags = [word for name, path in outputs.items() for word in (f"--{name}", str(path))]
    watch = ["watch", clip, "--model", model, "--threshold", "1", "--end", end]
    assert main([*watch, "--srt", "/dev/full", *flags]) == 2
    told = capsys.readouterr().err.splitlines()
    part = tmp_path / "half.jsonl.part"
    assert told[-1].startswith("videollm-mod watch: cannot write /dev/full: no space left on device; free some space")
    assert told[-2] == f"what was said before the error is in {part}" and json.loads(part.read_text().splitlines()[0])
    assert {path.name for path in tmp_path.iterdir()} == {"half.jsonl", part.name}
    assert outputs["jsonl"].read_text() == "precious"
    assert main([*watch, *flags]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in outputs.values()}
    assert outputs["jsonl"].read_text().startswith("{")


@pytest.mark.slow
def test_ctrl_c_ends_with_the_json_valid_files_and_exit_code_130(model: str, clip: str, tmp_path: Path) -> None:
    files = {
        name: tmp_path / f"out.{ending}" for name, ending in [("jsonl", "jsonl"), ("srt", "srt"), ("video", "mp4")]
    }
    words = [sys.executable, "-m", "videollm_mod", "watch", clip, "--model", model, "--threshold", "1"]
    words += ["--speed", "realtime", *(word for name, path in files.items() for word in (f"--{name}", str(path)))]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        waited = time.monotonic()
        growing = tmp_path / "out.jsonl.part"
        while not (growing.exists() and growing.read_text().count("\n") >= 2):
            assert process.poll() is None and time.monotonic() - waited < 120
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in told
    result = json.loads(out)
    assert result["interrupted"] and 2 <= result["frames"] < 6
    assert len([json.loads(line) for line in files["jsonl"].read_text().splitlines()]) == result["events"]
    assert files["srt"].read_text().count(" --> ") == result["events"]
    assert len(decoded(files["video"])) == result["frames"]
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in files.values()}, "nothing half-written"


def test_show_draws_a_video_and_a_sheet_with_the_layers_the_plan_routes(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = ["--video", str(tmp_path / "kept.mp4"), "--picture", str(tmp_path / "kept.png")]
    for plan, name in (("1,3", "two"), ("0,1,2,3", "four")):
        assert main(["show", clip, "--model", model, "--frames", "3", "--plan", plan, *outputs]) == 0
        (tmp_path / "kept.png").rename(tmp_path / f"{name}.png")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["frames"] == 6
    assert len(decoded(tmp_path / "kept.mp4")) == 6
    two, four = (Image.open(tmp_path / f"{name}.png").size for name in ("two", "four"))
    assert four[0] == two[0] and four[1] > two[1]


def test_show_says_when_no_layer_is_routed_and_when_there_are_fewer_frames_than_wanted(
    model: str, clip: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show = ["show", clip, "--model", model, "--picture", str(tmp_path / "kept.png")]
    for flags, told in [
        (["--plan", "full", "--frames", "6"], "no layer is routed (plan full), so there is nothing to see but the"),
        (["--frames", "100"], "--frames 100 is more than there are: the picture shows all 6 frames"),
        (["--frames", "2", "--end", "0.4"], "--frames 2 is more than there are: the picture shows the only frame"),
    ]:
        assert main([*show, *flags]) == 0
        printed = capsys.readouterr()
        assert f"warning: {told}" in printed.err
        assert any(told in warning for warning in json.loads(printed.out)["warnings"])
    assert main([*show, "--frames", "6"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []


def test_doctor_fails_nothing_that_is_optional_and_names_the_mend_that_applies_here(tmp_path: Path) -> None:
    missing = Check("extra dev", False, "optional, not here: ruff", install_command(extra="dev"), essential=False)
    assert missing.ok and not Check("packages", False, "torch missing").ok
    (tmp_path / "clone").mkdir()
    (tmp_path / "clone" / "pyproject.toml").write_text("")
    assert install_command(extra="dev", root=tmp_path / "clone") == "pip install -c constraints.txt -e '.[dev]'"
    assert install_command(extra="dev", root=tmp_path) == "pip install 'videollm-mod[dev]'"
    assert install_command("--force-reinstall", root=tmp_path) == "pip install --force-reinstall 'videollm-mod'"


def test_an_interrupt_in_the_middle_of_an_import_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(0.05)", "whole = True"]
    (tmp_path / "slow_to_import.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), catch_interrupts():
        import slow_to_import

        safe_point()
        pytest.fail("the signal was lost")
    assert slow_to_import.whole and signal.getsignal(signal.SIGINT) is before
    with catch_interrupts():
        safe_point()
        time.sleep(0.02)  # told once: nothing comes again


@pytest.mark.slow
@pytest.mark.parametrize(("command", "seconds"), [("watch", 0.02), ("watch", 1.0), ("watch", 1.8), ("doctor", 1.0)])
def test_ctrl_c_while_everything_is_imported_and_loaded_is_one_word(command: str, seconds: float) -> None:
    script = f"""if True:
        import _thread, os, signal, sys, time
        from videollm_mod.__main__ import main
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _thread.start_new_thread(lambda: (time.sleep({seconds}), os.kill(os.getpid(), signal.SIGINT)), ())
        sys.exit(main())"""
    clip = [str(ROOT / "videollm_mod" / "assets" / "demo.mp4")] if command == "watch" else []
    run = subprocess.run([sys.executable, "-c", script, command, *clip], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stderr, run.stdout) == (130, "interrupted\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_end_of_a_frame_and_a_second_one_does_not(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    done = []
    with pytest.raises(KeyboardInterrupt), catch_interrupts() as interrupts, interrupts.shielded():
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        done.append("frame")
    assert done == ["frame"]
    with pytest.raises(KeyboardInterrupt), catch_interrupts() as interrupts, interrupts.shielded():
        for _ in range(2):
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        done.append("never")
    assert done == ["frame"]
    assert signal.getsignal(number) is before


def test_on_a_terminal_the_status_line_tells_time_speed_lag_and_kv_bytes(model: str) -> None:
    session = StreamSession(load(model), threshold=0.0)
    session.push(Frame(np.zeros((48, 64, 3), dtype=np.uint8), 12.5, 0))
    screen = io.StringIO()
    with Terminal("clip.mp4", Console(file=screen, force_terminal=True, width=160)) as terminal:
        terminal.begin(0.0, 60.0)
        terminal.progress(Tally(frames=26, last=12.5, wall_seconds=2.0, lag=0.25, dropped=3), session)
        terminal.event(StreamEvent(12.5, "narration", "It [leaves].", 0))
    written = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(
        r"0:12\.5 / 1:00\.0 ━+·+  13\.0 fps  lag 0\.25 s  KV \d+.* of .* dense \(0\.\d\dx\)  dropped 3", written
    )
    assert "0:12.5  It [leaves]." in written, "brackets are words, not markup"
    with Terminal("clip.mp4", Console(file=io.StringIO(), width=160)) as terminal:
        terminal.begin(0.0, 60.0)
        plain = terminal.status(Tally(frames=26, last=12.5, wall_seconds=2.0), session).plain
        assert plain.startswith("0:12.5 / 1:00.0  13.0 fps"), "a log has no bar"
        session.memory.forgotten.update(frames=29, narrations=3, answers=1, entries=700)
        plain = terminal.status(Tally(frames=26, last=12.5, wall_seconds=2.0), session).plain
    assert plain.endswith("forgot 29 frames, 3 narrations, 1 answer")


@pytest.mark.parametrize("on_terminal", [True, False])
def test_a_sentence_grows_word_by_word_on_a_terminal_and_comes_whole_elsewhere(on_terminal: bool) -> None:
    screen = io.StringIO()
    with Terminal("clip.mp4", Console(file=screen, force_terminal=on_terminal, width=80)) as terminal:
        for piece in ("Nothing", " yet."):
            terminal.word(piece, 3.0, "What now?")
        growing = screen.getvalue()
        terminal.event(StreamEvent(3.0, "answer", "Nothing yet.", 5, "What now?", 3.0))
        terminal.word("One.", 4.0)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", growing)
    assert ("0:03.0  What now? Nothing ..." in plain) == on_terminal
    assert ("0:03.0  What now? Nothing yet. ..." in plain) == on_terminal
    whole = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "0:03.0  What now? Nothing yet.\n" in whole
    assert ("0:04.0  One. ..." in whole) == on_terminal, "the next sentence starts anew"
