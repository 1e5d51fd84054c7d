"""Every causal LM that Transformers has, small and random: routed and right, refused, or wrong?

    python runs/every_decoder.py              # all, some minutes -> docs/results/every_decoder.json
    python runs/every_decoder.py glm4 olmo3   # some, anew

tests/test_backbones.py takes eleven families through all laws. What `apply_depth` takes besides should be right as
well, or be refused: here laws 1 to 4 are put to whatever a model's default config gives when its sizes are made small,
in double precision. A line for each; the last line is JSON: outcome -> {model type: what there is to say}.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from depth_cases import far, right_padded, same_kept, shake_experts, talk  # noqa: E402

from videollm_mod.depth import DepthPlan, apply_depth, remove_depth  # noqa: E402
from videollm_mod.depth.swap import find_decoder  # noqa: E402
from videollm_mod.types import InputError  # noqa: E402

OUT = ROOT / "docs" / "results" / "every_decoder.json"
LAYERS, LARGEST, TOLERANCE = 4, 3_000_000, 1e-9
SMALL: dict[str, Any] = {  # by the names that configs have for these things; a config takes those that it knows
    **dict.fromkeys(("num_hidden_layers", "decoder_layers", "n_layer", "num_layers"), LAYERS),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 24),
    **dict.fromkeys(("num_attention_heads", "n_head", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "num_key_value_heads"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "zero_expert_num"), 1),
    **dict.fromkeys(("head_dim", "global_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "hidden_size_per_layer_input"), 8),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 61),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "num_kv_shared_layers"), 0),
    "max_position_embeddings": 512,
    "max_window_layers": 2,
    "use_sliding_window": True,
}
PLANS = (DepthPlan("interleaved", 0.2, gate="update"), DepthPlan("all", 0.4), DepthPlan("early-exit"))
TALK, SHORT = talk("2t 10 5 2t 1 10 10 2t"), talk("1t 10 3t 1 5 1t")
STEPS = [2, 19, 20, 30]


class Double(TorchFunctionMode):
    """What a model computes in float32 whatever it is in, it computes in double: a norm or a softmax that rounds makes
    a difference of 1e-15 one of 1e-7 where it falls on an edge.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if getattr(func, "__name__", "") == "float":
                return args[0]
            args, kwargs = tuple(map(wide, args)), {key: wide(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def build(kind: str) -> PreTrainedModel:
    """The default config with small sizes, and weights large enough that everything shows."""
    default = CONFIG_MAPPING[kind]().get_text_config()
    known = {**default.to_dict(), **type(default).attribute_map}
    sizes = {key: value for key, value in SMALL.items() if key in known}
    if "kv_lora_rank" in known:  # keys are made for each head
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    config = type(default)(**sizes)
    if hasattr(config, "attn_logit_softcapping"):
        config.attn_logit_softcapping = None  # which only eager attention knows
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size / 1e6:.0f} million weights even so")
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
            elif "norm" in name:
                weight.normal_(1, 0.3)
        nn.init.normal_(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    return model.double().eval()


def last_hidden(model: PreTrainedModel, ids: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """What leaves the last decoder layer, (batch, tokens, d), and the cache."""
    seen: list[Tensor] = []
    hook = find_decoder(model).layers[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        cache = model(input_ids=ids, **inputs).past_key_values
    finally:
        hook.remove()
    return seen[-1], cache


def broken_laws(model: PreTrainedModel) -> Iterator[str]:
    """A word for each law that does not hold."""
    ids, short = TALK.ids(), SHORT.ids(1)
    dense = model(input_ids=ids).logits
    apply_depth(model, DepthPlan("all", 1.0, gate="identity"))
    if not torch.equal(model(input_ids=ids, frame_index=TALK.index).logits, dense):
        yield "keep 1 is not the untouched model"
    for plan in PLANS:
        apply_depth(model, plan)
        shake_experts(model)
        kept: dict[int, Tensor] = {}
        once, _ = last_hidden(model, ids, frame_index=TALK.index, kept_out=kept, use_cache=False)
        if tuple(sorted(kept)) != plan.routed(LAYERS):
            yield "frame_index does not reach the layers"
        parts, streamed, cache = [], defaultdict(list), None
        for step in TALK.steps(STEPS):
            now: dict[int, Tensor] = {}
            index = TALK.index[:, step]
            part, cache = last_hidden(model, ids[:, step], frame_index=index, kept_out=now, past_key_values=cache)
            parts.append(part)
            for layer, mask in now.items():
                streamed[layer].append(mask)
        same = same_kept({layer: torch.cat(masks, 1) for layer, masks in streamed.items()}, kept)
        if not same or not far(torch.cat(parts, 1), once) < TOLERANCE:
            yield "a stream is not one pass"
        border = TALK.frame_index.index(3)
        other = torch.cat([ids[:, :border], TALK.ids(1)[:, border:]], 1)
        changed, _ = last_hidden(model, other, frame_index=TALK.index)
        if not far(changed[:, :border], once[:, :border]) < TOLERANCE:
            yield "the future changes the past"
        batch = dict(frame_index=right_padded([TALK.index, SHORT.index], -1))
        batch["attention_mask"] = right_padded([torch.ones_like(ids), torch.ones_like(short)])
        both, _ = last_hidden(model, right_padded([ids, short]), **batch)
        alone, _ = last_hidden(model, short, frame_index=SHORT.index)
        if not max(far(both[:1], once), far(both[1:, : len(SHORT)], alone)) < TOLERANCE:
            yield "a batch is not its rows"


def plain_works(model: PreTrainedModel) -> bool:
    """Whether the untouched model runs at all at this size, and is the same in two steps as in one."""
    ids = TALK.ids()
    first = model(input_ids=ids[:, :20], use_cache=True)
    second = model(input_ids=ids[:, 20:], past_key_values=first.past_key_values)
    return far(torch.cat([first.logits, second.logits], 1), model(input_ids=ids).logits) < TOLERANCE


@torch.no_grad()
def outcome(kind: str) -> tuple[str, str]:
    """Of what kind it is, and what there is to say of it."""
    try:
        model = build(kind)
    except Exception as error:  # a hundred ways in which a default config does not like to be small
        try:  # it may be refused at any size
            with torch.device("meta"):
                apply_depth(AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind]()), DepthPlan("full"))
        except InputError as refusal:
            return "refused", str(refusal)
        except Exception:
            pass
        return "not built", f"{type(error).__name__}: {error}"
    try:
        apply_depth(model, DepthPlan("full"))
    except InputError as error:
        return "refused", str(error)
    remove_depth(model)
    with Double():
        try:
            if not plain_works(model):
                return "not built", "the untouched model is not the same in two steps as in one"
        except Exception as error:
            return "not built", f"the untouched model fails with {type(error).__name__}: {error}"
        try:
            broken = sorted(set(broken_laws(model)))
        except InputError as error:
            return "refused", str(error)
        except Exception as error:
            return "wrong", f"{type(error).__name__}: {error}"
    return ("wrong", "; ".join(broken)) if broken else ("works", "")


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    kinds = sys.argv[1:] or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    before = json.loads(OUT.read_text()) if sys.argv[1:] and OUT.exists() else {}
    results: dict[str, dict[str, str]] = {
        name: {kind: told for kind, told in before.get(name, {}).items() if kind not in kinds}
        for name in ("works", "refused", "wrong", "not built")
    }
    for kind in kinds:
        name, told = outcome(kind)
        results[name][kind] = " ".join(told.split())[:300]
        print(f"{kind:28} {name:10} {results[name][kind]}", file=sys.stderr, flush=True)
    ordered = {name: dict(sorted(found.items())) for name, found in results.items()}
    OUT.write_text(json.dumps({**ordered, "transformers": transformers.__version__}, indent=1) + "\n")
    print(json.dumps({name: len(found) for name, found in results.items()}))


if __name__ == "__main__":
    main()
