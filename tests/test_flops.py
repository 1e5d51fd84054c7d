"""The cost formulas against PyTorch's own FLOP counter and against the real cache, tiny and at Llama-3-8B size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from videollm_mod.depth import DepthPlan, RaggedCache, apply_depth
from videollm_mod.depth.flops import (
    Step,
    forward_flops,
    kv_bytes,
    kv_entries,
    step_flops,
    stream_flops,
    stream_steps,
    train_flops,
)
from videollm_mod.depth.layout import ROW_BLOCK, FrameGroup, FrameLayout
from videollm_mod.types import InputError

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "vocab_size": 40}
EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}  # each expert multiplies its tokens and no more
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=2)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**TINY, num_key_value_heads=1, head_dim=16)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=4, **EXPERTS)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**TINY, head_dim=8, num_experts=6, moe_intermediate_size=24, mlp_only_layers=[2], **EXPERTS)
    ),
}
PLANS = {
    "full": DepthPlan(layers="full"),
    "interleaved": DepthPlan(),
    "interleaved-deep, a ratio per layer": DepthPlan(layers=(1, 3), keep=(0.1, 0.5)),
    "all, random": DepthPlan(layers="all", keep=0.3, scorer="random", gate="update"),
    "all-deep, no expert": DepthPlan(layers="all-deep", scorer="uniform", gate="identity"),
    "expert without a gradient": DepthPlan(layers="all", gate="identity"),
    "early-exit": DepthPlan(layers="early-exit"),
    "layer-skip": DepthPlan(layers="layer-skip"),
}
SIZES = (10, 10, 1, 25)  # vision tokens per frame
TEXT = 9
# Since 5.23 Transformers makes the rotary table without a matrix product, and the counts are equal; 5.17 counts one.
OLD = tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 23)
ROTARY = 1e-3 if OLD else 0.0

LLAMA_3_8B = LlamaConfig(
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    vocab_size=128256,
)


@pytest.fixture(autouse=True)
def no_padding_of_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU few rows are padded to a multiple of four because that is faster; the formula leaves that out."""
    monkeypatch.setattr("videollm_mod.depth.layout.ROW_BLOCK", 1)


def conversation(text: int, sizes: tuple[int, ...]) -> Tensor:
    """`frame_index` (1, tokens): an interval token behind every frame, the rest of the text in front."""
    frames = [index for number, size in enumerate(sizes) for index in (*[number] * size, -1)]
    return torch.tensor([[-1] * (text - len(sizes)) + frames])


def counted(run: object) -> int:
    """FLOPs that PyTorch counts in `run()`; the math kernel, because the CPU's flash kernel has no formula there."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()  # type: ignore[operator]
    return counter.get_total_flops()


@pytest.fixture(params=PLANS.values(), ids=PLANS)
def plan(request: pytest.FixtureRequest) -> DepthPlan:
    return request.param


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, plan: DepthPlan) -> LlamaForCausalLM | Qwen3ForCausalLM:
    torch.manual_seed(0)
    return apply_depth(MODELS[request.param](), plan)


def test_one_pass_costs_what_pytorch_counts(model: LlamaForCausalLM, plan: DepthPlan) -> None:
    index = conversation(TEXT, SIZES)
    with torch.no_grad():
        measured = counted(lambda: model(input_ids=index.clamp(min=0), frame_index=index, logits_to_keep=3))
    assert forward_flops(model.config, plan, TEXT, SIZES, logits=3) == pytest.approx(measured, rel=ROTARY)


def test_a_training_step_costs_what_pytorch_counts(model: LlamaForCausalLM, plan: DepthPlan) -> None:
    index = conversation(TEXT, SIZES)
    measured = counted(
        lambda: model(input_ids=index.clamp(min=0), frame_index=index, logits_to_keep=3).logits.sum().backward()
    )
    assert train_flops(model.config, plan, TEXT, SIZES, logits=3) == pytest.approx(measured, rel=ROTARY)


def test_a_stream_costs_what_pytorch_counts_and_stores_what_the_formula_says(
    model: LlamaForCausalLM, plan: DepthPlan
) -> None:
    cache = RaggedCache(model.config.num_hidden_layers)
    steps = stream_steps(5, SIZES)

    @torch.no_grad()
    def run() -> None:
        for number, step in enumerate(steps):
            index = torch.tensor([[number] * sum(step.frames) + [-1] * step.text])
            keep = {"logits_to_keep": 1} if step.logits else {"logits_to_keep": torch.tensor([], dtype=torch.long)}
            model(input_ids=index.clamp(min=0), frame_index=index, past_key_values=cache, **keep)

    assert stream_flops(model.config, plan, steps) == pytest.approx(counted(run), rel=ROTARY)
    assert tuple(row for (row,) in cache.stored) == kv_entries(model.config, plan, 5 + len(SIZES), SIZES)
    assert cache.kv_bytes == kv_bytes(model.config, plan, 5 + len(SIZES), SIZES, bytes_per_value=4)


@pytest.mark.parametrize(
    ("name", "text", "kept", "computed"),
    [("interleaved", 1, 3, 4), ("all, random", 2, 5, 8), ("interleaved", 20, 22, 22)],
    ids=["a frame and its interval token", "with a gate", "not few"],
)
def test_as_it_runs_on_a_cpu_it_costs_the_formula_and_the_rows_that_pad_few_to_a_multiple_of_four(
    name: str, text: int, kept: int, computed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame of 10 tokens with `text` behind it, after two tokens that the cache holds already."""
    monkeypatch.setattr("videollm_mod.depth.layout.ROW_BLOCK", ROW_BLOCK)
    plan = PLANS[name]
    model, cache = apply_depth(MODELS["llama"](), plan), RaggedCache(4)

    @torch.no_grad()
    def run(index: Tensor) -> None:
        model(input_ids=index.clamp(min=0), frame_index=index, past_key_values=cache, logits_to_keep=1)

    run(torch.tensor([[-1, -1]]))
    measured = counted(lambda: run(torch.tensor([[0] * 10 + [-1] * text])))
    weights = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48  # q and o; k and v; the MLP
    attention = 2 * 32 * (2 + kept)  # of one more query: the keys are those of kept tokens alone
    row = 2 * (weights + attention) + (2 * 32 if plan.gate == "update" else 0)
    formula = step_flops(model.config, plan, Step(text, (10,), 1), kv_entries(model.config, plan, 2))
    padding = len(plan.routed(4)) * (computed - kept) * row
    assert measured == pytest.approx(formula + padding, rel=ROTARY)
    assert {layer.lengths[0] for layer in cache.layers} == {2 + kept, *([] if name == "all, random" else [12 + text])}


def test_a_step_with_a_past_is_the_step_of_the_stream() -> None:
    config, plan = LlamaConfig(**TINY), DepthPlan()
    past = kv_entries(config, plan, 12, 7, 10)
    stream = stream_flops(config, plan, stream_steps(5, 8, 10)) - stream_flops(config, plan, stream_steps(5, 7, 10))
    assert step_flops(config, plan, Step(1, (10,), 1), past) == stream


@pytest.fixture(scope="module")
def llama_3_8b() -> LlamaForCausalLM:
    with torch.device("meta"):
        return LlamaForCausalLM(LLAMA_3_8B).eval()


@torch.no_grad()
def counted_on_meta(model: LlamaForCausalLM, plan: DepthPlan, index: Tensor, logits: int) -> int:
    """One pass at full size without a weight in memory."""
    apply_depth(model, plan)
    # Meta tensors have no values to read frames from, so the decoder is handed a layout that was read on the CPU;
    # an explicit mask spares Transformers from looking into positions, which have no values either.
    meta, tokens = torch.device("meta"), index.shape[1]
    layout = FrameLayout.of(index)
    layout = replace(
        layout,
        device=meta,
        text=layout.text.to(meta),
        vision=layout.vision.to(meta),
        groups=[FrameGroup(group.tokens.to(meta), group.number.to(meta), group.rows) for group in layout.groups],
    )

    def run() -> None:
        hidden = LlamaModel.forward(
            model.model,
            inputs_embeds=torch.empty(1, tokens, model.config.hidden_size, device=meta),
            attention_mask=torch.empty(1, 1, tokens, tokens, dtype=torch.bool, device=meta),
            use_cache=False,
            depth=layout,
        )[0]
        model.lm_head(hidden[:, -logits:])

    return counted(run)


@pytest.mark.parametrize(("tokens", "design"), [(10, 0.644), (50, 0.568)])
def test_llama_3_8b_over_600_frames_costs_what_pytorch_counts(
    llama_3_8b: LlamaForCausalLM, tokens: int, design: float
) -> None:
    """One pass, 600 frames, each with an interval token, and as much text again (630 tokens); logits at 2 positions."""
    text, plan = 600 + 630, DepthPlan(layers="interleaved", keep=0.2)
    index = conversation(text, (tokens,) * 600)
    routed = counted_on_meta(llama_3_8b, plan, index, logits=2)
    dense = counted_on_meta(llama_3_8b, DepthPlan(layers="full"), index, logits=2)
    assert forward_flops(LLAMA_3_8B, plan, text, 600, tokens, logits=2) == pytest.approx(routed, rel=ROTARY)
    assert forward_flops(LLAMA_3_8B, None, text, 600, tokens, logits=2) == pytest.approx(dense, rel=ROTARY)
    print(f"{tokens} tokens per frame, one pass over 600 frames: {routed / dense:.4f} of the dense FLOPs")
    assert routed / dense == pytest.approx(design, abs=5e-4)


@pytest.mark.parametrize(("plan", "mib"), [(None, 1.375), (DepthPlan(layers="interleaved", keep=0.2), 0.875)])
def test_a_10_token_frame_of_llama_3_8b_takes_the_known_mib_in_16_bit(plan: DepthPlan | None, mib: float) -> None:
    assert kv_bytes(LLAMA_3_8B, plan, text=1, frames=1, tokens_per_frame=10) == mib * 2**20


def test_no_plan_is_the_dense_model() -> None:
    config, plan = LlamaConfig(**TINY), DepthPlan(layers="full")
    assert forward_flops(config, None, 7, 3, 10, 1) == forward_flops(config, plan, 7, 3, 10, 1)
    assert kv_entries(config, None, 7, 3, 10) == (37,) * 4


def test_the_size_of_frames_must_be_given() -> None:
    with pytest.raises(InputError, match="tokens_per_frame"):
        kv_bytes(LlamaConfig(**TINY), None, text=1, frames=3)
