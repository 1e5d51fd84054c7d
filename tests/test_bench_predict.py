"""`bench predict` against sums worked by hand, and what its floors and limits must keep to whatever the camera."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from videollm_mod.bench.cards import CARDS, Card
from videollm_mod.bench.fronts import BenchFlops, BenchPredict, bench_flops, bench_predict
from videollm_mod.bench.llms import LLMS, llm_config
from videollm_mod.bench.predict import Camera, Cost, Weights, count_weights, statement
from videollm_mod.depth import DepthPlan
from videollm_mod.types import InputError

MIB = 2**20
TINY = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path / "config.json")


@pytest.fixture(scope="module")
def llama() -> dict[str, Any]:
    """Llama-3-8B, one hour at 2 frames of 10 tokens per second, on a card of 100 GB, 1 TB/s and 1000 TFLOPS."""
    return bench_predict(BenchPredict(memory=100.0, bandwidth=1000.0, flops=1000.0))


def test_a_frame_of_ten_tokens_takes_1_375_mib_of_cache_in_llama_3_8b_and_0_875_routed(llama: dict[str, Any]) -> None:
    """(10 + 1) entries x 32 layers x 8 heads x 128 numbers x 2 x 2 bytes; routed 16 x 11 + 16 x 3 entries."""
    assert llama["dense"]["kv_bytes_per_frame"] == 1.375 * MIB
    assert llama["routed"]["kv_bytes_per_frame"] == 0.875 * MIB
    assert llama["dense"]["kv_bytes_per_session"] == 7200 * 1.375 * MIB  # an hour at two frames per second
    assert llama["ratio"]["kv_bytes"] == pytest.approx(0.6364, abs=1e-4)


def test_the_weights_of_llama_3_8b_are_counted_and_the_embeddings_are_not_read(llama: dict[str, Any]) -> None:
    """8,030,261,248 parameters, of which 128256 x 4096 are only looked into."""
    assert llama["weights_bytes"] == 2 * 8_030_261_248
    assert llama["weights_read_per_step"] == 2 * (8_030_261_248 - 128256 * 4096)


def test_the_floor_of_a_late_frame_is_the_bytes_it_reads_over_the_bandwidth(llama: dict[str, Any]) -> None:
    floor = llama["dense"]["latency_floor"]
    read = 2 * (8_030_261_248 - 128256 * 4096) + 7200 * 1.375 * MIB
    assert floor["ms"] == pytest.approx(1e3 * read / 1e12, abs=1e-3)
    assert floor["bound_by"] == "weights"  # 15.0 ms of 25.4
    assert llama["dense"]["longest_stream_hours"] == pytest.approx(
        (100e9 - 16_060_522_496) / (1.375 * MIB * 7200), abs=1e-3
    )


def test_a_small_frame_costs_what_a_sum_by_hand_says(tiny: str) -> None:
    """A layer: q, o 128, k, v 64, MLP 384 weights x 2 x 11 tokens; attention 4 x 8 x 11 x 11; the head 2 x 8 x 32."""
    found = bench_predict(BenchPredict(llm=tiny, fps=1.0, hours=2 / 3600))
    first = 2 * (2 * 576 * 11 + 4 * 8 * 11 * 11) + 2 * 8 * 32
    assert found["dense"]["flops_per_frame"]["first"] == first
    last = first + 2 * (4 * 8 * 11 * 11)  # the second frame attends to the first as well
    assert found["dense"]["flops_per_frame"]["last"] == last
    assert found["dense"]["flops_per_second"] == (first + last) / 2
    assert "latency_floor" not in found["dense"] and found["card"] is None


def test_quantised_weights_leave_embeddings_and_head_in_bf16() -> None:
    config = LlamaConfig(**TINY)
    layers = 2 * (576 + 2 * 8) + 8  # with the norms
    four = count_weights(config, "int4")
    assert four.stored == layers * (0.5 + 2 / 64) + 2 * 2 * 8 * 32
    assert four.read == four.stored - 2 * 8 * 32
    assert count_weights(LlamaConfig(**TINY, tie_word_embeddings=True), "float32").read == 4 * (layers + 8 * 32)


cameras = st.builds(
    Camera, tokens=st.integers(1, 200), fps=st.sampled_from([0.5, 2.0, 30.0]), hours=st.floats(0.001, 100.0)
)
cards = st.builds(
    Card,
    memory=st.floats(1e6, 1e12),
    bandwidth=st.floats(1e9, 1e13),
    flops=st.floats(1e12, 1e16),
    source=st.just("made up"),
)


@given(camera=cameras, card=cards, keep=st.floats(0.01, 1.0), read=st.floats(1e3, 1e9))
def test_what_a_card_sustains_fits_and_keeps_up_and_one_more_would_not(
    camera: Camera, card: Card, keep: float, read: float
) -> None:
    cost = Cost.of(LlamaConfig(**TINY), DepthPlan(keep=keep), camera, Weights(2 * read, read), "bfloat16")
    most = cost.sessions(card, camera.fps)["sustained"]

    def works(sessions: int) -> bool:
        fits = cost.weights.stored + sessions * cost.kv <= card.memory * (1 + 1e-9)
        return fits and cost.floor(card, sessions)["ms"] <= 1e3 / camera.fps * (1 + 1e-9)

    assert most == 0 or works(most)
    near = 1 + max(1, most // 10**6)  # what is rounded away in numbers this large
    assert not works(most + near)


@given(camera=cameras, card=cards, keep=st.floats(0.01, 1.0))
def test_routing_never_costs_more_than_its_experts(camera: Camera, card: Card, keep: float) -> None:
    config, weights = LlamaConfig(**TINY), Weights(1e6, 1e6)
    dense, routed = (
        Cost.of(config, plan, camera, weights, "bfloat16") for plan in (DepthPlan("full"), DepthPlan(keep=keep))
    )
    assert routed.kv <= dense.kv
    assert routed.flops_last <= dense.flops_last + 2 * 8 * (camera.tokens + 1)  # a score for every token of the frame
    assert routed.sessions(card, camera.fps)["memory"] >= dense.sessions(card, camera.fps)["memory"]


def test_one_young_session_is_said_to_be_bound_by_reading_the_weights(llama: dict[str, Any]) -> None:
    assert "With one session a step is bound by reading the weights" in llama["statement"]
    assert "2 frames per second" in llama["statement"]


def test_many_old_sessions_are_said_to_be_bound_by_their_caches() -> None:
    config, card, camera = llm_config("llama-3-8b"), CARDS["h200"], Camera(10, 2.0, 1.0)
    weights = Weights(16e9, 15e9)
    costs = {
        name: Cost.of(config, plan, camera, weights, "bfloat16")
        for name, plan in (("dense", DepthPlan("full")), ("routed", DepthPlan()))
    }
    told = statement(costs, card, 10, 2.0)
    assert "With 10 sessions a step is bound by reading the caches" in told
    assert "limit: memory" in told


@pytest.mark.parametrize("name", LLMS)
def test_every_published_size_is_a_config_that_transformers_knows(name: str) -> None:
    config = llm_config(name)
    assert config.hidden_size == LLMS[name]["hidden_size"]
    assert config.num_hidden_layers == LLMS[name]["num_hidden_layers"]


@pytest.mark.parametrize("name", CARDS)
def test_every_card_is_accepted_by_name_and_tells_its_source(name: str, tiny: str) -> None:
    found = bench_predict(BenchPredict(llm=tiny, card=name.upper()))
    assert found["card"]["source"] and math.isfinite(found["ratio"]["latency_floor"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"llm": "llama-9"}, "--llm llama-9 is unknown; take one of llama-3-8b"),
        ({"card": "voodoo"}, "--card 'voodoo' is unknown; take one of h200"),
        ({"bandwidth": 100.0}, "--memory is missing"),
        ({"memory": -1.0}, "--memory -1.0 is no size"),
        ({"card": "h200", "bandwidth": math.inf}, "--bandwidth inf is no size"),
        ({"card": "h200", "dtype": "float32"}, "give --flops as well"),
        ({"dtype": "int3"}, "--dtype 'int3' is unknown"),
        ({"kv_dtype": "int3"}, "--kv-dtype 'int3' is unknown"),
        ({"fps": 0.0}, "--fps 0 is out of range"),
        ({"hours": float("nan")}, "--hours nan is out of range"),
        ({"sessions": 0}, "--sessions 0 is too small"),
        ({"keep": 2.0}, "--keep 2.0 is outside"),
        ({"plan": "1,99"}, "layer 99, but the model has layers 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(flags: dict[str, Any], said: str, tiny: str) -> None:
    with pytest.raises(InputError, match=said):
        bench_predict(BenchPredict(**{"llm": tiny, **flags}))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("not JSON", "is not a JSON file"),
        ({"hidden_size": 8}, "names no model_type"),
        ({"model_type": "no-such-model"}, "has no model of type 'no-such-model'"),
        ({"model_type": "mixtral"}, "is a mixture of experts"),
        ({"model_type": "siglip_vision_model"}, "so its costs are not known"),
    ],
)
def test_a_file_that_is_no_decoders_config_is_refused(values: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    with pytest.raises(InputError, match=said):
        llm_config(str(tmp_path))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_the_decoder_of_a_vision_language_model_costs_what_its_text_model_would(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    """Its head, and whether that is the table of embeddings, are the whole model's to say."""
    path = tmp_path / "config.json"
    text = {**TINY, "model_type": f"{kind}_text", "head_dim": 4}
    path.write_text(json.dumps({"model_type": kind, "text_config": text, "tie_word_embeddings": tied}))
    weights = count_weights(llm_config(str(tmp_path)), "float32")
    assert weights.stored - weights.read == (0 if tied else 4 * 32 * 8), "the table is only looked into"
    alone = {**text, "model_type": "qwen2" if kind == "qwen2_5_vl" else "qwen3", "tie_word_embeddings": tied}
    path.write_text(json.dumps(alone))
    assert weights == count_weights(llm_config(str(tmp_path)), "float32")
    assert bench_predict(BenchPredict(llm=str(tmp_path), card="h200"))["ratio"]["kv_bytes"] < 1


@pytest.mark.parametrize("kind", ["phi", "starcoder2"])
def test_a_decoder_whose_mlp_has_no_gate_is_refused_for_its_sum_would_be_wrong(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "model_type": kind}))
    with pytest.raises(InputError, match=f"type '{kind}' has [0-9,]+ weights in its layers where .* have [0-9,]+"):
        bench_predict(BenchPredict(llm=str(tmp_path)))
    with pytest.raises(InputError, match="so its costs are not known"):
        bench_flops(BenchFlops(llm=str(tmp_path), frames=2))


def test_a_decoder_that_is_only_part_of_a_multimodal_model_is_reckoned_but_not_run(tmp_path: Path) -> None:
    text = {**TINY, "model_type": "qwen3_vl_text", "head_dim": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", "text_config": text}))
    with pytest.raises(InputError, match="'qwen3_vl_text' only within a multimodal model; give the language model"):
        bench_flops(BenchFlops(llm=str(tmp_path), frames=2))


def test_the_table_of_docs_performance_is_what_the_command_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
    rows = [
        line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(tuple(f"| {c} |" for c in CARDS))
    ]
    assert len(rows) >= 8
    for card, tokens, minutes, floors, ratio, dense, routed in rows:
        found = bench_predict(BenchPredict(card=card, tokens=int(tokens), hours=int(minutes) / 60))
        floor = {name: found[name]["latency_floor"]["ms"] for name in ("dense", "routed")}
        assert floors == f"{floor['dense']:.1f} → {floor['routed']:.1f}"
        assert float(ratio) == pytest.approx(found["ratio"]["latency_floor"], abs=0.0051)
        held = {name: found[name]["sessions_per_card"] for name in ("dense", "routed")}
        assert (int(dense), int(routed)) == (held["dense"]["sustained"], held["routed"]["sustained"])
        assert held["dense"]["limited_by"] == held["routed"]["limited_by"] == "memory"


def test_what_docs_performance_says_of_a_stream_that_forgets_is_what_the_command_says() -> None:
    page = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()
    told = page.split("**A stream that forgets**")[1].split("\n\n")[0].replace("\n", " ")
    one, many = (bench_predict(BenchPredict(card="h200", hours=0.016667, sessions=n)) for n in (1, 64))
    assert f"at least {one['dense']['latency_floor']['ms']:.2f} ms" in told
    assert f"routed {one['ratio']['latency_floor']:.3f} of that" in told
    assert one["dense"]["latency_floor"]["bound_by"] == "weights"
    assert many["dense"]["latency_floor_of_all_sessions"]["bound_by"] == "FLOPs"
    assert f"its share: {many['ratio']['latency_floor_of_all_sessions']:.3f}" in told
    held = [one[name]["sessions_per_card"]["sustained"] for name in ("dense", "routed")]
    assert "Memory holds {} of them dense and {} routed".format(*held) in told
