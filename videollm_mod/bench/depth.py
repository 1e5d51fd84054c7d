"""A dense and a routed decoder in one run: training step, memory, KV bytes, streaming. `bench.command` is its front.

All numbers are ratios routed / dense, each beside the bound that the FLOPs of `depth.flops` set. Weights and inputs are
random: how long a step takes depends on shapes alone. Both are the same weights; dense is the plan `full`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from videollm_mod.bench.command import BenchDepth
from videollm_mod.bench.measure import PeakMemory, Timing, environment, progress, time_in_turn
from videollm_mod.bench.models import Stream, as_in_a_session, on_the_same_weights, train_step
from videollm_mod.depth import DepthPlan, apply_depth, flops
from videollm_mod.depth.plan import parse_layers


def measure(config: BenchDepth) -> dict[str, Any]:
    """All measurements; a line on stderr at the beginning of each part and for each result."""
    threads = torch.get_num_threads()
    progress(f"building decoders of {config.layers} layers, width {config.width}; {threads} CPU thread(s)")
    models = Models.of(config)
    progress(f"timing {config.train_steps} training steps of each, dense and routed in turn")
    train = measure_training(config, models)
    stream_all = {}
    for tokens in config.tokens:
        ages = ", ".join(map(str, config.frames))
        each = f"{config.fillings} times {config.stream_steps} frames"
        progress(f"timing streams of {tokens} tokens per frame, {each} of both models, up to {ages}")
        stream_all[str(tokens)] = measure_stream(config, models, tokens)
    last = str(max(config.frames))
    return {
        "train_step": train["ratio"],
        "activation_peak": train["activation_peak"],
        "kv_bytes": {tokens: points[last]["kv_bytes"] for tokens, points in stream_all.items()},
        "stream": {tokens: points[last]["ratio"] for tokens, points in stream_all.items()},
        "flops_bound": {
            "train_step": train["flops_bound"],
            "stream": {tokens: points[last]["flops_bound"] for tokens, points in stream_all.items()},
        },
        "train_all": train,
        "stream_all": stream_all,
        "setup": {name: value for name, value in asdict(config).items() if name not in ("out", "threads")},
        **environment(),
    }


# --- competitors -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """Three decoders on the same weights: Transformers' own, routed by the plan `full`, and routed by ours.

    The latter two stream as in a session: with laid-out weights (packed.py), of which they share the copies.
    """

    untouched: LlamaForCausalLM
    dense: LlamaForCausalLM
    routed: LlamaForCausalLM
    plan: DepthPlan

    @classmethod
    def of(cls, config: BenchDepth) -> Models:
        torch.manual_seed(0)
        llama = LlamaConfig(
            hidden_size=config.width,
            intermediate_size=config.inner,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            vocab_size=config.vocabulary,
            max_position_embeddings=max(config.frames) * (max(config.tokens) + 1) + 1,
        )
        layers = parse_layers(config.plan)
        assert layers is not None  # only None stays None
        plan = DepthPlan(layers=layers, keep=config.keep, scorer="learned", gate="straight")
        first = LlamaForCausalLM(llama)
        return cls(
            untouched=first,
            dense=as_in_a_session(apply_depth(on_the_same_weights(first), DepthPlan(layers="full"))),
            routed=as_in_a_session(apply_depth(on_the_same_weights(first), plan)),
            plan=plan,
        )


# --- training --------------------------------------------------------------------------------------------------------

TRAIN_TOKENS_PER_FRAME = 50


def measure_training(config: BenchDepth, models: Models) -> dict[str, Any]:
    """One sample, forward and backward, logits at the labels only; gradients add up in place, as with accumulation.

    The optimiser is left out: its work is the same for both, and with accumulation it runs once in many samples. With
    the default 20 frames of 50 tokens and 80 text tokens the FLOPs bound is 0.616.
    """
    text = config.train_text + config.train_frames
    frames = [[number] * TRAIN_TOKENS_PER_FRAME + [-1] for number in range(config.train_frames)]
    index = torch.tensor([[*chain(*frames), *[-1] * config.train_text]])  # (1, tokens)
    ids = torch.randint(config.vocabulary, index.shape)
    runs = {
        "dense": lambda: train_step(models.dense, ids, index),
        "routed": lambda: train_step(models.routed, ids, index),
    }
    for weight in models.untouched.parameters():  # the gradients of all three
        weight.grad = torch.zeros_like(weight)
    peak = {}
    for name, run in runs.items():  # which also warms up
        with PeakMemory() as memory:
            run()
        peak[name] = memory.peak
    timing = time_in_turn(runs, config.train_steps, warmup=0)
    workload = (text, config.train_frames, TRAIN_TOKENS_PER_FRAME, text)
    cost = {
        "dense": flops.train_flops(models.dense.config, None, *workload),
        "routed": flops.train_flops(models.routed.config, models.plan, *workload),
    }
    result = {
        "ratio": timing["routed"].wall_ms / timing["dense"].wall_ms,
        "ratio_cpu_time": timing["routed"].cpu_ms / timing["dense"].cpu_ms,
        "flops_bound": cost["routed"] / cost["dense"],
        "activation_peak": peak["routed"] / peak["dense"],
        "dense_ms": timing["dense"].wall_ms,
        "routed_ms": timing["routed"].wall_ms,
        "dense_flops": cost["dense"],
        "routed_flops": cost["routed"],
        "dense_peak_mib": peak["dense"] / 2**20,
        "routed_peak_mib": peak["routed"] / 2**20,
        "tokens": index.shape[1],
        "labels": text,
        "optimiser": "none: forward and backward, gradients accumulated in place",
    }
    models.untouched.zero_grad(set_to_none=True)
    progress(
        f"training step, {index.shape[1]} tokens: dense {result['dense_ms']:.0f} ms, "
        f"routed {result['routed_ms']:.0f} ms, ratio {result['ratio']:.3f} (FLOPs {result['flops_bound']:.3f}); "
        f"activation peak {result['dense_peak_mib']:.0f} and {result['routed_peak_mib']:.0f} MiB, "
        f"ratio {result['activation_peak']:.3f}"
    )
    return result


# --- streaming -------------------------------------------------------------------------------------------------------


def measure_stream(config: BenchDepth, models: Models, tokens: int) -> dict[str, dict[str, Any]]:
    """Milliseconds per frame of `tokens` vision tokens and an interval token, after 100, 300, ... frames of a stream.

    Decoder only, no logits. Each point is measured with caches filled several times; the medians are of all frames. The
    second baseline, the untouched model on Transformers' `DynamicCache`, is timed once, after them: it is slow, and all
    three caches of a long stream at once would need more than 12 GB.
    """
    points = {}
    for frames in config.frames:
        filled = [time_stream(config, models, tokens, frames) for _ in range(config.fillings)]
        timing = {name: Timing.pooled(times[name] for times, _ in filled) for name in ("dense", "routed")}
        untouched = Stream.untouched(models.untouched, tokens, max(frames - config.stream_steps - 1, 0))
        timing |= time_in_turn({"dynamic": untouched.step}, config.stream_steps)
        del untouched
        kv_bytes = filled[0][1]  # the same for all
        ratios = [times["routed"].wall_ms / times["dense"].wall_ms for times, _ in filled]
        step, interval_tokens = flops.Step(1, (tokens,)), frames - 1
        cost = {
            name: flops.step_flops(
                models.dense.config,
                plan,
                step,
                flops.kv_entries(models.dense.config, plan, interval_tokens, frames - 1, tokens),
            )
            for name, plan in (("dense", None), ("routed", models.plan))
        }
        points[str(frames)] = point = {
            "ratio": timing["routed"].wall_ms / timing["dense"].wall_ms,
            "ratio_of_each_filling": sorted(ratios),
            "ratio_cpu_time": timing["routed"].cpu_ms / timing["dense"].cpu_ms,
            "ratio_to_dynamic_cache": timing["routed"].wall_ms / timing["dynamic"].wall_ms,
            "flops_bound": cost["routed"] / cost["dense"],
            "kv_bytes": kv_bytes["routed"] / kv_bytes["dense"],
            "dense_ms": timing["dense"].wall_ms,
            "routed_ms": timing["routed"].wall_ms,
            "dynamic_cache_ms": timing["dynamic"].wall_ms,
            "dense_kv_mib": kv_bytes["dense"] / 2**20,
            "routed_kv_mib": kv_bytes["routed"] / 2**20,
        }
        ratios_seen = f"{min(ratios):.3f} to {max(ratios):.3f}"
        progress(
            f"stream, {tokens} tokens per frame, at {frames} frames: dense {point['dense_ms']:.1f} ms, "
            f"routed {point['routed_ms']:.1f} ms, ratio {point['ratio']:.3f} ({ratios_seen}; "
            f"FLOPs {point['flops_bound']:.3f}); Transformers' DynamicCache {point['dynamic_cache_ms']:.1f} ms; "
            f"KV bytes ratio {point['kv_bytes']:.3f}"
        )
    return points


def time_stream(
    config: BenchDepth, models: Models, tokens: int, frames: int
) -> tuple[dict[str, Timing], dict[str, int]]:
    """One filling: how long the last frames take, and the bytes of the caches.

    Dense and routed both use the growable `RaggedCache` and are timed in turn.
    """
    past = max(frames - config.stream_steps - 1, 0)  # one warm-up frame, then the timed ones
    streams = {
        "dense": Stream.filled(models.dense, tokens, past, None),
        "routed": Stream.filled(models.routed, tokens, past, models.plan),
    }
    timing = time_in_turn({name: stream.step for name, stream in streams.items()}, config.stream_steps)
    return timing, {name: stream.cache.kv_bytes for name, stream in streams.items()}
