"""The engine benchmark: its keys, what it compares, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from videollm_mod.bench.engine import Streams, arrivals, build, summary
from videollm_mod.bench.engine_command import BenchEngine, bench_engine, small
from videollm_mod.stream.engine import Engine, EngineStream
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError

SMALL = small(BenchEngine(threads=1))


def test_the_json_has_the_keys_that_others_rely_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.json"
    result = bench_engine(BenchEngine(quick=True, sessions=(2, 1, 16), threads=1, out=path))
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert list(result["speedup"]) == ["1", "2"] and all(ratio > 0 for ratio in result["speedup"].values())
    assert set(result["sustained_2fps"]) == {"engine", "in_turn"}
    for count in ("1", "2"):
        point = result["sessions"][count]
        for name in ("engine", "in_turn"):
            assert 0 < point[name]["p50_ms"] <= point[name]["p99_ms"] and point[name]["frames_per_second"] > 0
    profile = result["sessions"]["2"]["profile"]
    assert sum(profile[kind] for kind in ("attention", "linear", "copies", "other")) == pytest.approx(1, abs=1e-3)
    assert result["threads"] == 1 and result["quick"] and "mean nothing" in capsys.readouterr().err


def test_what_was_measured_is_in_the_file_when_a_larger_number_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, open_stream, opened = tmp_path / "engine.json", Engine.open, []

    def full(engine: Engine, *args: Any, **options: Any) -> EngineStream:
        opened.append(engine)
        if len(opened) > 2:
            raise MemoryError
        return open_stream(engine, *args, **options)

    monkeypatch.setattr(Engine, "open", full)
    with pytest.raises(MemoryError):
        bench_engine(BenchEngine(quick=True, sessions=(1, 2), threads=1, out=out))
    told = json.loads(out.read_text())
    assert told["interrupted"] and list(told["speedup"]) == ["1"] and list(told["sessions"]) == ["1"]


def test_any_published_decoder_can_be_measured_in_half_precision(tmp_path: Path) -> None:
    """Heads of keys that others share, and of a width of their own."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50, "head_dim": 24}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **sizes, **heads}))
    flags: dict[str, Any] = dict(sessions=(1, 2), frames=3, steps=1, seconds=1.0, threads=1)
    result = bench_engine(BenchEngine(llm=str(tmp_path), dtype="bfloat16", **flags))
    entries = result["sessions"]["1"]["kv_mib"] * 2**20 / (2 * 2 * 24 * 2)  # keys and values, heads, width, bytes
    frames = 3 + 2 * (1 + 1) + 2 * 2  # old, warm-up and a timed round of each way, a second at 2 fps of each way
    opening = 2 * len(build(SMALL).template.system("Watch."))  # in both layers
    assert entries == pytest.approx(frames * (11 + 3) + opening, abs=0.3), "kv_mib is told to four decimals"
    with pytest.raises(InputError, match="layer 5, but the model has layers 0 to 1"):
        bench_engine(BenchEngine(llm=str(tmp_path), plan="5", **flags))


def test_a_decoder_that_does_not_fit_into_memory_is_refused_before_it_is_made() -> None:
    with pytest.raises(InputError, match=r"weights take \d+\.\d GiB in float32, of which .* give a smaller --llm"):
        bench_engine(BenchEngine(llm="llama-3-70b", sessions=(1,)))


def test_a_session_that_was_made_old_holds_what_watching_would_have_left() -> None:
    streams = Streams.of(SMALL, build(SMALL), 1)
    grown, watched = streams.streams[0]._session, StreamSession(streams.engine.model, threshold=0.0)
    for _ in range(SMALL.frames):
        watched.push_tokens(streams.frame())
    assert grown._cache.stored == watched._cache.stored and grown._cache.seen == watched._cache.seen
    assert len(grown.context) == len(watched.context) and grown._frames == watched._frames
    streams.together()
    watched.push_tokens(streams.frame())
    assert grown._cache.stored == watched._cache.stored


def test_a_round_gives_every_stream_one_frame_in_the_engine_and_in_turn() -> None:
    streams = Streams.of(SMALL, build(SMALL), 3)
    streams.together()
    streams.in_turn()
    assert [stream.state().frames for stream in streams.streams] == [SMALL.frames + 2] * 3


def test_frames_of_all_streams_come_evenly_spread() -> None:
    times = arrivals(BenchEngine(seconds=2, fps=2), 4)
    assert [time for time, _ in times] == [0.125 * n for n in range(16)]
    assert [number for _, number in times] == [0, 1, 2, 3] * 4


def test_a_number_of_streams_is_sustained_if_nothing_is_late_or_dropped() -> None:
    assert summary([0.1] * 200 + [0.9], 0)["sustained"]
    assert not summary([0.1] * 20 + [0.9], 0)["sustained"]
    assert not summary([0.1], 1)["sustained"]
    assert summary([0.1, 0.2, 0.3], 0)["p50_ms"] == pytest.approx(200)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sessions": ()}, "--sessions is empty"),
        ({"sessions": (4, 0)}, "--sessions 0 is too small"),
        ({"tokens": 12}, "--tokens 12 is not 1 \\+ a square; give 10 or 50"),
        ({"seconds": 0.0}, "--seconds 0 is out of range"),
        ({"keep": 1.5}, "--keep 1.5 is outside"),
        ({"steps": 0}, "--steps 0 is too small"),
        ({"width": 100}, "--width 100 does not split into 16 heads"),
        ({"plan": "1,99"}, "layer 99"),
        ({"llm": "llama-9"}, "--llm llama-9 is unknown"),
        ({"dtype": "int8"}, "--dtype 'int8' is unknown"),
        ({"device": "tpu"}, "--device 'tpu' is unknown"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        bench_engine(BenchEngine(**wrong))
