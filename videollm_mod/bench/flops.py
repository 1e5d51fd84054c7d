"""`bench flops`: what plans cost at true size, by the formulas of `depth.flops` and counted by FlopCounterMode.

Counting runs the models on the meta device, where tensors have shapes and no numbers: a Llama-3-70B needs no memory.
"""

from __future__ import annotations

from dataclasses import asdict
from itertools import chain
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from videollm_mod.bench.fronts import BenchFlops
from videollm_mod.bench.llms import causal_config
from videollm_mod.bench.measure import environment, progress
from videollm_mod.bench.models import DENSE, Stream, parse_route
from videollm_mod.depth import DepthPlan, apply_depth, flops
from videollm_mod.depth.swap import find_decoder

META = torch.device("meta")


def measure(config: BenchFlops) -> dict[str, Any]:
    """{"flops": {tokens: {plan: {"pass", "train", "stream", "last_frame", "kv_bytes_per_frame", ...}}}}"""
    llm = causal_config(config.llm)
    with META:
        model = AutoModelForCausalLM.from_config(llm, attn_implementation="sdpa")
    plans = {DENSE: DepthPlan("full"), **{word: parse_route(word) for word in config.routes}}
    found: dict[str, dict[str, Any]] = {}
    for tokens in config.tokens:
        progress(f"{config.llm}, {config.frames} frames of {tokens} tokens, {config.text} text tokens")
        costs = {name: cost_of(config, model, plan, tokens) for name, plan in plans.items()}
        for name, cost in costs.items():
            cost["ratio"] = {what: cost["analytic"][what] / costs[DENSE]["analytic"][what] for what in cost["analytic"]}
            off = max(abs(cost["counted"][what] / cost["analytic"][what] - 1) for what in cost["counted"])
            cost["counted_off_by"] = off  # at most, of all that was counted
            told = ", ".join(f"{what} {ratio:.3f}" for what, ratio in cost["ratio"].items())
            progress(f"  {name:<18} of dense: {told}; counted within {off:.1e}")
        found[str(tokens)] = costs
    return {
        "flops": found,
        "setup": {name: value for name, value in asdict(config).items() if name != "out"},
        **{key: value for key, value in environment().items() if key in ("torch", "transformers")},
    }


def cost_of(config: BenchFlops, model: Any, plan: DepthPlan, tokens: int) -> dict[str, Any]:
    """One plan: FLOPs by formula, and what is counted of them."""
    llm, text, frames = model.config, config.text + config.frames, config.frames
    past = frames - 1
    analytic = {
        "pass": flops.forward_flops(llm, plan, text, frames, tokens, logits=text),
        "train": flops.train_flops(llm, plan, text, frames, tokens, logits=text),
        "stream": flops.stream_flops(llm, plan, flops.stream_steps(config.text, frames, tokens)),
        "last_frame": flops.step_flops(
            llm, plan, flops.Step(1, (tokens,), 1), flops.kv_entries(llm, plan, past, past, tokens)
        ),
        "kv_bytes_per_frame": flops.kv_bytes(llm, plan, 1, 1, tokens),
    }
    apply_depth(model, plan)
    index = torch.tensor([[*[-1] * config.text, *chain(*([number] * tokens + [-1] for number in range(frames)))]])
    return {
        "analytic": analytic,
        "counted": {
            "pass": count(lambda: one_pass(model, index, text)),
            "train": count(lambda: one_pass(model, index, text, learn=True)),
            "last_frame": count(Stream.filled(model, tokens, past, plan, logits=True).step),
        },
    }


def count(run: Any) -> int:
    """FLOPs that PyTorch counts in `run()`; attention as plain matrix products, which it has formulas for."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return int(counter.get_total_flops())


def one_pass(model: Any, index: torch.Tensor, logits: int, *, learn: bool = False) -> None:
    """A whole conversation, index (1, tokens), with logits at its last positions; backward, too, to `learn`."""
    tokens = index.shape[1]
    with torch.set_grad_enabled(learn):
        hidden = find_decoder(model)(
            input_ids=torch.empty(1, tokens, dtype=torch.long, device=META),
            # made beforehand, so that Transformers looks for it in no position ids: those have no values here
            attention_mask=torch.empty(1, 1, tokens, tokens, dtype=torch.bool, device=META),
            frame_index=index,
            use_cache=False,
        ).last_hidden_state
        out = model.lm_head(hidden[:, -logits:])
        if learn:
            out.sum().backward()
            model.zero_grad(set_to_none=True)
