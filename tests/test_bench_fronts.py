"""`bench flops`, `train`, `stream`, `decode`: what their JSON holds and how it hangs together; small and quick runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import pytest
import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from videollm_mod.bench.decode import load_torchcodec, make_clip, parse_size, read_ours, read_pyav
from videollm_mod.bench.fronts import (
    BenchDecode,
    BenchFlops,
    BenchStream,
    BenchTrain,
    bench_decode,
    bench_flops,
    bench_stream,
    bench_train,
)
from videollm_mod.bench.measure import Timing, ceilings, environment, free_memory
from videollm_mod.bench.models import (
    DENSE,
    UNTOUCHED,
    Competitor,
    Stream,
    against,
    competitors,
    fill_up,
    on_the_same_weights,
    parse_route,
)
from videollm_mod.bench.stream import add_floors, cache_bytes, measure_point
from videollm_mod.depth import DepthPlan, apply_depth
from videollm_mod.depth.flops import kv_bytes
from videollm_mod.types import InputError

ROUTES = ("interleaved@0.2", "early-exit")
NAMES = [UNTOUCHED, DENSE, *ROUTES]
TINY = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
}
# Since 5.23 Transformers makes the rotary table without a matrix product; 5.17 counts one
OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)


@pytest.fixture(scope="module")
def train() -> dict[str, Any]:
    return bench_train(BenchTrain(routes=ROUTES, quick=True, threads=1))


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "stream.json"
    bench_stream(BenchStream(routes=ROUTES, tokens=(10,), quick=True, threads=1, out=path))
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def decode() -> dict[str, Any]:
    return bench_decode(BenchDecode(codecs=("mpeg4",), quick=True))


# --- flops -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_on_the_meta_device_pytorch_counts_what_the_formulas_say(kind: str, tmp_path: Path) -> None:
    """One pass, a training step, and a late frame on a filled cache."""
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "model_type": kind, "head_dim": 8}))
    routes = ("interleaved@0.2", "early-exit")
    found = bench_flops(BenchFlops(llm=str(tmp_path), routes=routes, frames=3, tokens=(7,), text=5))
    assert list(found["flops"]["7"]) == [DENSE, *routes]
    for cost in found["flops"]["7"].values():
        for what, counted in cost["counted"].items():
            assert counted == pytest.approx(cost["analytic"][what], rel=1e-2 if OLD else 0), what
        assert 0 < cost["ratio"]["last_frame"] <= 1


# --- train -----------------------------------------------------------------------------------------------------------


def test_every_competitor_trains_with_logits_at_labels_and_at_all_positions(train: dict[str, Any]) -> None:
    assert list(train["train"]) == ["labels", "all"]
    for rivals in train["train"].values():
        assert list(rivals) == NAMES
        assert rivals[DENSE]["ratio"] == rivals[DENSE]["flops_bound"] == rivals[UNTOUCHED]["flops_bound"] == 1
        for told in rivals.values():
            assert told["times_bound"] == pytest.approx(told["ratio"] / told["flops_bound"], rel=1e-2)
        for name in ROUTES:
            assert rivals[name]["flops_bound"] < 1 and rivals[name]["activation_peak"] < 1
    labels, every = (train["train"][logits][DENSE]["flops"] for logits in ("labels", "all"))
    assert every > labels
    assert train["quick"] is True


def test_what_was_saved_of_what_could_be() -> None:
    assert against(0.7, 0.6) == {
        "ratio": 0.7,
        "flops_bound": 0.6,
        "times_bound": pytest.approx(7 / 6),
        "saving_reached": pytest.approx(0.75),
    }
    assert "saving_reached" not in against(0.9, 1.0)


# --- stream ----------------------------------------------------------------------------------------------------------


def test_each_point_has_every_competitor_and_the_ratio_stands_in_short_as_well(stream: dict[str, Any]) -> None:
    assert list(stream["points"]) == ["10"] and list(stream["points"]["10"]) == ["5", "10"]
    for frames, point in stream["points"]["10"].items():
        assert sorted(point) == sorted(NAMES)
        for name, told in point.items():
            assert told["p50"] <= told["p95"] <= told["p99"]
            assert told["timed_frames"] == (4 if name != DENSE else 4 * (len(NAMES) - 1))
            assert stream["stream"]["10"][frames][name] == told["ratio"]
        assert point[DENSE]["ratio"] == 1


def test_points_that_were_measured_are_in_the_file_when_a_later_one_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fits = tmp_path / "stream.json", iter([1e12] * 2)  # bytes: of the second point's pairs nobody is told
    monkeypatch.setattr("videollm_mod.bench.stream.free_memory", lambda device: next(fits))
    with pytest.raises((StopIteration, RuntimeError)):
        bench_stream(BenchStream(routes=("early-exit",), tokens=(10,), quick=True, threads=1, out=out))
    told = json.loads(out.read_text())
    assert told["interrupted"] and list(told["points"]["10"]) == ["5"]
    assert set(told["stream"]["10"]["5"]) == {UNTOUCHED, DENSE, "early-exit"}


def test_the_bytes_of_each_cache_are_the_formula(stream: dict[str, Any]) -> None:
    setup = stream["setup"]
    config = LlamaConfig(
        hidden_size=setup["width"], num_hidden_layers=setup["layers"], num_attention_heads=setup["heads"]
    )
    for frames, point in stream["points"]["10"].items():
        for name, told in point.items():
            plan = None if name in (DENSE, UNTOUCHED) else parse_route(name)
            assert told["kv_bytes"] == kv_bytes(config, plan, int(frames), int(frames), 10, bytes_per_value=4)


def test_a_pair_that_does_not_fit_into_memory_is_left_out_with_its_reason() -> None:
    """100,000 frames of 1000 tokens: more than 200 GB for two layers of width 512."""
    sizes = {**TINY, "hidden_size": 512, "num_key_value_heads": 4}
    if free_memory("cpu") > 1e12:
        pytest.skip("this machine has more memory than that")
    rivals = competitors(LlamaConfig(**sizes), {"early-exit": parse_route("early-exit")})
    point = measure_point(BenchStream(threads=1), rivals, 1000, 100_000)
    assert sorted(point) == ["early-exit", UNTOUCHED]
    assert all("needs" in told["left_out"] and "are free" in told["left_out"] for told in point.values())


@pytest.mark.parametrize("route", [None, "full", "interleaved@0.2"])
def test_a_pair_is_left_out_by_what_its_caches_take_and_not_by_half_as_much_again(route: str | None) -> None:
    config = BenchStream(steps=10, threads=1)
    name = route or UNTOUCHED
    first = LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    plan = None if route is None else parse_route(route)
    rival = Competitor(name, first if plan is None else apply_depth(first, plan), plan)
    stream = Stream.of(rival, 10, 189)
    for _ in range(11):
        stream.step()
    cache = stream.cache
    if isinstance(cache, DynamicCache):
        taken = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    else:
        taken = cache.allocated_bytes
    assert taken <= cache_bytes(config, first.config, rival, 10, 200) <= 1.21 * taken


@pytest.mark.parametrize("plan", [DepthPlan("full"), DepthPlan()], ids=["dense", "routed"])
def test_buffers_without_room_grow_at_the_next_step_and_hold_the_same(plan: DepthPlan) -> None:
    model = apply_depth(transformers.LlamaForCausalLM(LlamaConfig(**TINY)), plan)
    cut = Stream.filled(model, 10, 8, plan)
    before = cut.cache.kv_bytes
    fill_up(cut.cache)
    assert cut.cache.allocated_bytes == cut.cache.kv_bytes == before
    keys = [layer.keys.clone() for layer in cut.cache.layers]
    cut.step()
    assert cut.cache.allocated_bytes > cut.cache.kv_bytes > before
    for layer, old in zip(cut.cache.layers, keys):
        assert torch.equal(layer.keys[:, :, : old.shape[2]], old)


def test_a_twin_shares_every_weight_and_gives_the_same_numbers() -> None:
    model = transformers.LlamaForCausalLM(LlamaConfig(**TINY)).eval()
    twin = on_the_same_weights(model)
    assert {weight.data_ptr() for weight in twin.parameters()} == {weight.data_ptr() for weight in model.parameters()}
    ids = torch.arange(12)[None]
    assert torch.equal(twin(ids).logits, model(ids).logits)


def test_a_percentile_is_a_time_that_was_measured() -> None:
    timing = Timing(tuple(float(ms) for ms in range(1, 101)), ())
    assert [timing.percentile(p) for p in (0, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert Timing((3.0, 1.0), ()).percentile(99) == 3.0


# --- decode ----------------------------------------------------------------------------------------------------------


def test_all_readers_read_the_same_frames(decode: dict[str, Any]) -> None:
    tasks = decode["decode"]["mpeg4"]["160x120"]
    assert list(tasks) == ["every", "sampled"]
    assert tasks["every"]["frames_given"]["ours"] == tasks["every"]["frames_given"]["pyav"] == 10
    assert tasks["sampled"]["frames_given"]["ours"] == tasks["sampled"]["frames_given"]["pyav"] == 2
    for told in tasks.values():
        speed = told["frames_per_second"]
        assert told["speedup_over_pyav"] == pytest.approx(speed["ours"] / speed["pyav"], rel=0.01, abs=1e-3)


def test_torchcodec_is_timed_or_it_is_said_why_not(decode: dict[str, Any]) -> None:
    speeds = decode["decode"]["mpeg4"]["160x120"]["every"]["frames_per_second"]
    if load_torchcodec()[0] is None:
        assert decode["left_out"]["torchcodec"] and "torchcodec" not in speeds
    else:
        assert speeds["torchcodec"] > 0


@pytest.mark.parametrize("codec", ["h264", "mjpeg"])
def test_a_clip_has_the_size_the_codec_and_the_frames_that_were_asked_for(codec: str, tmp_path: Path) -> None:
    clip = make_clip(tmp_path, codec, 64, 48, 0.5, 10)
    with av.open(str(clip)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.width, context.height) == (codec, 64, 48)
    assert read_ours(clip, None) == read_pyav(clip, 0, "AUTO", 1) == 5


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (BenchTrain(steps=0), "--steps 0 is too small"),
        (BenchTrain(width=100), "--width 100 does not split into 16 heads"),
        (BenchTrain(routes=("sideways@0.2",)), "'sideways' is unknown"),
        (BenchTrain(routes=("interleaved@a bit",)), "'interleaved@a bit' is not LAYERS@KEEP"),
        (BenchTrain(routes=("interleaved@0",)), "keep ratio 0.0 is outside"),
        (BenchTrain(device="tpu"), "--device 'tpu' is unknown; take cpu or cuda"),
        (BenchTrain(dtype="int8"), "--dtype 'int8' is unknown"),
        (BenchStream(routes=("1,99@0.2",)), "layer 99, but the model has layers 0 to 15"),
        (BenchStream(routes=("early-exit", "early-exit")), "names a plan twice"),
        (BenchStream(frames=()), "--frames is empty"),
        (BenchStream(tokens=(10, 0)), "--tokens 0 is too small"),
        (BenchStream(llm="llama-9"), "--llm llama-9 is unknown"),
        (BenchStream(out=Path("nowhere/stream.json")), "there is no folder nowhere"),
        (BenchDecode(codecs=("divx",)), "--codecs 'divx' is unknown; take some of h264"),
        (BenchDecode(sizes=("large",)), "--sizes 'large' is not WIDTHxHEIGHT"),
        (BenchDecode(sizes=("641x360",)), "--sizes 641x360 is out of range"),
        (BenchDecode(seconds=-1.0), "--seconds -1 is out of range"),
        (BenchFlops(frames=0), "--frames 0 is too small"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_minutes_are_spent(config: Any, said: str) -> None:
    run = {BenchTrain: bench_train, BenchStream: bench_stream, BenchDecode: bench_decode, BenchFlops: bench_flops}
    with pytest.raises(InputError, match=said):
        run[type(config)](config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_least_that_a_step_could_take_stands_beside_its_time() -> None:
    told = {"kv_bytes": 3e9, "flops": 4e12, "p50": 6.0}
    point: dict[str, Any] = {"dense": told, "routed": {**told, "flops": 1e12}, "left": {"left_out": "needs 400 GiB"}}
    add_floors(point, weights=9_000_000_000, bytes_per_second=4e12, flops_per_second=1e15)
    assert point["dense"]["weights_ms"] == pytest.approx(2.25) and point["dense"]["floor_ms"] == pytest.approx(4.0)
    assert point["routed"]["floor_ms"] == pytest.approx(3.0)  # to read weights and cache
    assert point["routed"]["times_weights"] == pytest.approx(6 / 2.25) and point["routed"]["times_floor"] == 2.0
    assert point["left"] == {"left_out": "needs 400 GiB"}


def test_what_a_device_reaches_is_measured_on_it() -> None:
    reached = ceilings("cpu", "bfloat16", megabytes=1, side=32)
    assert all(value > 0 for value in reached.values()) and len(reached) == 2
    assert "gpu" not in environment()


def test_memory_of_a_gpu_that_pytorch_only_holds_back_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append(True))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3e9 if given_back else 1e9, 8e9))
    assert free_memory("cuda") == 3e9


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="--device cuda: PyTorch sees no such device"):
        bench_stream(BenchStream(device="cuda"))


def test_sizes_are_read_as_width_and_height() -> None:
    assert parse_size("1280x720") == (1280, 720)
