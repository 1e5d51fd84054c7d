"""Our selection functions against their authors', on the same random tensors: how often they agree, and where not.

    python runs/reduction_fidelity_b.py --peer HoliTom=../HoliTom --peer AIM=../AIM --out FILE.json

As reduction_fidelity.py, for the methods whose choice is not always a function of its own: statements, too, are taken
out of the authors' files and run by themselves. GRT is a folder with the file that defines its gate.
"""

from __future__ import annotations

import ast
import functools
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from reduction_fidelity import Case, main
from torch import Tensor, nn
from torch.nn import functional

from videollm_mod.reductions.aim import importance, merge_pass
from videollm_mod.reductions.base import HERE, Signals, Tokens, top
from videollm_mod.reductions.grt import dissimilarity
from videollm_mod.reductions.holitom import HoliTom, centres, gains, segments, shares
from videollm_mod.reductions.holitom_merge import fold
from videollm_mod.reductions.quickvideo import smallest_keys
from videollm_mod.reductions.transprune import TransPrune, transition
from videollm_mod.reductions.vflowopt import global_attention, recycled
from videollm_mod.reductions.videoscan import VideoScan, nearest_pair

NEAR = 1e-5  # of values; indices are compared exactly


@functools.cache
def parsed(root: Path, file: str) -> tuple[Path, ast.Module]:
    path = root / file if (root / file).is_file() else next(root.rglob(Path(file).name))
    return path, ast.parse(path.read_text(encoding="utf-8"))


def theirs(root: Path, file: str, *names: str, **given: Any) -> SimpleNamespace:
    """Functions of a file of theirs, wherever they stand in it, run with no more than torch and what is `given`."""
    path, tree = parsed(root, file)
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": functional, "math": math, "os": os, **given}
    space |= {name: object for name in ("LVUConfig", "LVULayerConfig", "DynamicCache", "LVUCache")}
    space |= {"Optional": dict, "Tuple": dict, "Union": dict}  # of annotations
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in names and node.name not in found:
            node.decorator_list, node.returns = [], None
            for each in (*node.args.args, *node.args.kwonlyargs):
                each.annotation = None
            exec(compile(ast.Module([node], []), str(path), "exec"), space)
            found[node.name] = space[node.name]
    return SimpleNamespace(**found, space=space)


def run_branch(root: Path, file: str, test: str, last: str, space: dict[str, Any]) -> dict[str, Any]:
    """Run the body of the innermost `if` of theirs whose condition contains `test` and whose body assigns `last`."""
    path, tree = parsed(root, file)
    branches = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and test in ast.unparse(node.test)
        and f"{last} =" in ast.unparse(ast.Module(node.body, []))
    ]
    body = min(branches, key=lambda node: len(ast.unparse(node))).body
    exec(compile(ast.Module(body, []), str(path), "exec"), space)
    return space


def near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=NEAR, atol=NEAR)


def size(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=generator))


# -- the cases ---------------------------------------------------------------------------------------------------------


def holitom_segments(root: Path, generator: torch.Generator) -> bool:
    """The partition of a video, and what it saves."""
    frames, n = size(generator, 2, 24), size(generator, 1, 30)
    similar = torch.rand(frames - 1, n, generator=generator) ** 0.1
    function = theirs(root, "holitom/llava_arch.py", "select_static_windows").select_static_windows
    expected, saved = function(None, similar, frames, 0.8, 1024)
    found = segments(gains(similar > 0.8))
    ours = sum(int(gains(similar > 0.8)[first, last]) for first, last in found)
    return found == expected and ours == saved


def holitom_clusters(root: Path, generator: torch.Generator) -> bool:
    """Centres and values of the clusters; the noise that breaks ties there is such that the lower index wins."""
    n, k = size(generator, 8, 60), size(generator, 2, 7)
    x = torch.randn(1, n, 16, generator=generator)
    quiet = SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch)})
    quiet.rand = lambda shape, **_: torch.linspace(1, 0, shape[-1]).expand(shape)
    names = ("cluster_dpc_knn", "merge_tokens_by_clustering")
    functions = theirs(root, "holitom/llava_arch.py", *names, torch=quiet)
    chosen, distance = functions.cluster_dpc_knn(None, x, k, k=min(7, k))
    chosen = chosen.sort(-1).values
    expected = functions.merge_tokens_by_clustering(None, x, chosen, distance, k, 0.6)[0]
    centre, to = centres(x[0], k, 7)
    found = Tokens.of_frame(x[0], (1, n)).merge(to, centre, shares(to, centre, 0.6)).x
    return centre.tolist() == chosen[0].tolist() and near(found, expected)


def holitom_video(root: Path, generator: torch.Generator) -> bool:
    """A whole video at a budget that all moving tokens fit into: these, and the means of those that stand still.

    Below it the numbers differ on purpose: theirs rounds up in every frame.
    """
    frames, n = size(generator, 2, 12), 16
    x = torch.randn(1, n, 8, generator=generator).repeat(frames, 1, 1)
    x = x + 0.3 * torch.randn(x.shape, generator=generator)
    moves = torch.rand(frames, n, generator=generator) < 0.2
    x = torch.where(moves[..., None], torch.randn(x.shape, generator=generator), x)
    attention = torch.rand(frames, n, generator=generator)
    names = [f"merge_tokens_by_{how}" for how in ("clustering", "density", "attention_density")]
    names += ["cluster_dpc_knn", "get_static_dynamic_features", "holitom", "select_static_windows"]
    functions = theirs(root, "holitom/llava_arch.py", *names)
    model = SimpleNamespace()
    for name in names:
        setattr(model, name, functools.partial(getattr(functions, name), model))
    similar = functional.cosine_similarity(x[:-1], x[1:], dim=-1)
    windows, saved = model.select_static_windows(similar, frames, 0.8, 1024)
    parts = model.get_static_dynamic_features(x, attention, windows, similar, 0.8)
    expected = [
        model.holitom(*(parts[i][at] for i in (0, 1, 3, 4, 5)), last - first + 1, 1.0, 0.0, 0.6, 7, x.dtype, "no_token")
        for at, (first, last) in enumerate(windows)
    ]
    told = Signals({("received_attention", -1): attention.flatten()}, total=frames * n)
    tokens = Tokens.join([Tokens.of_frame(each, (4, 4), t) for t, each in enumerate(x)])
    found = HoliTom(keep=(frames * n - max(saved, 1)) / (frames * n), alike=0.8).reduce(tokens, told).x
    theirs_in_order = torch.cat(expected)
    theirs_in_order = theirs_in_order[theirs_in_order[:, 0].argsort()]
    return saved == 0 or near(found[found[:, 0].argsort()], theirs_in_order)


def holitom_folding(root: Path, generator: torch.Generator) -> bool:
    """Who is kept inside the decoder, and what the others make of them."""
    n, before, behind = size(generator, 4, 40), 3, 5
    x = torch.randn(1, before + n + behind, 8, generator=generator)
    attention = torch.rand(1, 2, before + n + behind, before + n + behind, generator=generator)
    space: dict[str, Any] = {
        "torch": torch,
        "print": lambda *_: None,
        "layer_outputs": (None, attention),
        "hidden_states": x.clone(),
        "HOLITOM_image_token_start_index": before,
        "HOLITOM_image_token_length": n,
        "HOLITOM_r": 0.5,
        "seq_length_with_past": x.shape[1],
        "self": SimpleNamespace(rotary_emb=lambda *_: None),
        "cache_position": torch.arange(x.shape[1]),
    }
    run_branch(root, "holitom/modeling_qwen2.py", "layer_idx == HOLITOM_k", "keep_indexs", space)
    at = top(attention[0, :, -1, before : before + n].mean(0), round(n * 0.5))
    group, weights = fold(x[0, before : before + n], at)
    found = Tokens.of_frame(x[0, before : before + n], (1, n)).merge(group, at, weights).x
    kept = space["keep_indexs"]
    vision = (kept >= before) & (kept < before + n)
    return (kept[vision] - before).tolist() == at.tolist() and near(found, space["hidden_states"][0, vision])


def aim_merging(root: Path, generator: torch.Generator) -> bool:
    """Two passes over a frame: values, in their order."""
    n = 4 * size(generator, 1, 49)
    x = torch.randn(1, n, 12, generator=generator)
    function = theirs(root, "llava/model/token_merge.py", "bipartite_soft_matching_merge").bipartite_soft_matching_merge
    expected = function(x, n // 2, x)
    expected = function(expected, n // 4, expected)[0]
    found = merge_pass(merge_pass(x[0], n // 2)[0], n // 4)[0]
    return near(found, expected)


def aim_page_rank(root: Path, generator: torch.Generator) -> bool:
    """The importance of each token."""
    n = size(generator, 2, 60)
    logits = torch.randn(1, 4, n, n, generator=generator).masked_fill(torch.ones(n, n).triu(1) > 0, -torch.inf)
    file = "other_packages/transformers/src/transformers/models/qwen2/modeling_qwen2.py"
    return near(importance(logits[0]), theirs(root, file, "get_importance").get_importance(logits)[0])


def vflowopt_scores(root: Path, generator: torch.Generator) -> bool:
    """The map of a frame, thresholds at which somebody is global."""
    n = size(generator, 4, 60)
    attention = (4 * torch.randn(1, 3, n, n, generator=generator)).softmax(-1)
    highest = float(attention[0].mean((0, 1)).max()) * n
    threshold = highest * (0.5 + 0.49 * float(torch.rand(1, generator=generator)))  # somebody is; theirs is else NaN
    file = "src/LLaVA-OneVision/llava/model/multimodal_encoder/siglip_encoder.py"
    path, tree = parsed(root, file)
    layer = next(
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        and "perform_self_selection" in [each.arg for each in node.args.args]
        and "combined_attn_maps" in ast.unparse(node)
    )
    layer.returns = None
    for each in layer.args.args:
        each.annotation = None
    space: dict[str, Any] = {"torch": torch, "F": functional, "entropies": torch.zeros(1, 1, 1, n)}
    exec(compile(ast.Module([layer], []), str(path), "exec"), space)
    same = nn.Identity()
    block = SimpleNamespace(
        layer_norm1=same, layer_norm2=same, mlp=same, self_attn=lambda hidden_states, **_: (hidden_states, attention)
    )
    known = {each.arg for each in layer.args.args}
    values = {
        "hidden_states": torch.zeros(1, n, 2), "attention_mask": None, "output_attentions": False, "t": threshold,
        "perform_self_selection": True, "perform_selection": False, "selected_indice": None, "alpha_v": 0.0,
    }  # fmt: skip
    out = space[layer.name](block, **{name: value for name, value in values.items() if name in known})
    return near(global_attention(attention[0].mean(0), threshold), out[-1][0])


def vflowopt_recycling(root: Path, generator: torch.Generator) -> bool:
    """Which of a picture's 729 cells stay, and what the others become, at their number of grouped ones."""
    n, drop, cell = 729, size(generator, 50, 650), 3 + 20 * float(torch.rand(1, generator=generator))
    x, score = torch.randn(n, 4, generator=generator), torch.rand(n, generator=generator)
    space: dict[str, Any] = {
        "torch": torch,
        "os": SimpleNamespace(environ={}),
        "json": json,
        "illava_config": {"enable_illava_vit": True, "illava_vit_m": cell},
        "image_attn_map": score.clone(),
        "image_feature": x.clone(),
        "image_token_length": n,
        "reduce_tokens": drop,
        "local_w": 27,
    }
    file = "src/LLaVA-OneVision/llava/model/language_model/llava_qwen_training_free.py"
    run_branch(root, file, "enable_illava_vit", "low_k_groups", space)
    places = torch.stack([torch.arange(n) // 27, torch.arange(n) % 27], 1)
    group, at = recycled(score, places, drop + int(n / cell**2), cell)
    found = Tokens.of_frame(x, (27, 27)).merge(group, at, score)
    return near(found.x, space["image_feature"])


def transprune_transitions(root: Path, generator: torch.Generator) -> bool:
    """The weight of each token's change."""
    n = size(generator, 1, 80)
    before, after = torch.randn(2, 1, n, 16, generator=generator)
    name = "compute_transf_weight"
    function = getattr(theirs(root, "llava/model/modeling_llama_transprune.py", name), name)
    return near(transition(before[0], after[0]), function(None, before, after)[0])


def transprune_cut(root: Path, generator: torch.Generator) -> bool:
    """Who is left behind a cut, given the changes so far and the text's queries and the keys of the layer they ask."""
    before, n, behind, d = 3, 8 * size(generator, 1, 12), 5, 8
    total = before + n + behind
    x = torch.randn(1, total, d, generator=generator)
    x[0, :, 0] = torch.arange(total)
    query, key = torch.randn(2, d, d, generator=generator)
    attention = SimpleNamespace(
        q_proj=lambda hidden: hidden.clone().index_fill(2, torch.tensor([0]), 0) @ query,
        k_proj=lambda hidden: hidden.clone().index_fill(2, torch.tensor([0]), 0) @ key,
        v_proj=nn.Identity(),
        rotary_emb=lambda *_, **__: (None, None),
        num_heads=2,
        num_key_value_heads=2,
        head_dim=d // 2,
    )
    changes = torch.rand(1, total, generator=generator)
    model = SimpleNamespace(
        config=SimpleNamespace(),
        layers={7: SimpleNamespace(self_attn=attention, input_layernorm=nn.Identity())},
        image_tokens=[n],
        image_token_ratio_list=[1.0, 0.875, 0.625, 0.125],
        image_token_posi=[before],
        prompt_len=[before + behind],
        transf_weight_list=[changes.clone()],
    )
    later = torch.zeros(total, total).masked_fill(torch.ones(total, total).triu(1) > 0, -torch.inf)
    functions = theirs(
        root,
        "llava/model/modeling_llama_transprune.py",
        "transprune_rank_drop",
        apply_rotary_pos_emb=lambda queries, keys, *_: (queries, keys),
        _prepare_4d_causal_attention_mask=lambda *_, **__: later[None, None],
        IGNORE_INDEX=-100,
    )
    left = functions.transprune_rank_drop(model, 0, 7, x.clone(), None, None, None)[2][0, :, 0].round().long()
    expected = left[(left >= before) & (left < before + n)] - before
    queries, keys = (each(x)[0].view(total, 2, -1).transpose(0, 1) for each in (attention.q_proj, attention.k_proj))
    weights = (queries @ keys.transpose(1, 2) / (d // 2) ** 0.5 + later).softmax(-1)[:, before + n :]
    still = {(name, HERE): torch.ones(n, 2) for name in ("attention_in", "mlp_in")}
    still |= {(name, HERE): torch.zeros(n, 2) for name in ("attention_out", "mlp_out")}  # this layer changes nothing
    still["text_attention", HERE] = weights.mean((0, 1))[before : before + n]
    memory = {"transprune": (changes[0, before : before + n], torch.arange(n))}
    told = Signals(still, memory=memory, layer=6, layers=32, total=n)
    found = TransPrune().reduce(Tokens.of_frame(torch.zeros(n, 2), (1, n)), told)
    return found.positions[:, 2].tolist() == expected.tolist()


def grt_gate(root: Path, generator: torch.Generator) -> bool:
    """1 - SSIM of patches."""
    a, b = torch.randn(2, 20, 588, generator=generator)
    b = torch.where(torch.rand(20, 1, generator=generator) < 0.5, a + 0.1 * b, b)
    name = "_patch_ssim_dissimilarity"
    return near(dissimilarity(a, b), getattr(theirs(root, "grt.py", name), name)(a, b))


def quickvideo_keys(root: Path, generator: torch.Generator) -> bool:
    """Which entries of a group stay."""
    n = size(generator, 2, 200)
    k = size(generator, 1, n)
    keys = torch.randn(1, 4, n, 8, generator=generator)
    name = "get_top_k_mask_to_predict"
    function = getattr(theirs(root, "lvu/utils.py", name), name)
    mask = function(None, keys, keys, torch.zeros(1, n, 1), top_k=k, predict_type="key_norms_small")
    return smallest_keys(keys[0].transpose(0, 1).flatten(1), k).tolist() == mask[0].nonzero()[:, 0].tolist()


def videoscan_memory(root: Path, generator: torch.Generator) -> bool:
    """Which carrier is forgotten when 64 are there."""
    carriers = torch.randn(64, 8, generator=generator).cumsum(0)
    space: dict[str, Any] = {
        "torch": torch,
        "past_frames_embeds": [carriers.clone()],
        "batch_idx": 0,
        "forget_pos": [],
        "forget_idx": [True] * 64,
        "cur_frame_idx": 10,
        "MAX_MEMORY_LIMIT": 64,
    }
    run_branch(root, "llava/model/llava_arch.py", "MAX_MEMORY_LIMIT", "drop_pos", space)
    return nearest_pair(carriers) == space["drop_pos"]


def videoscan_chosen(root: Path, generator: torch.Generator) -> bool:
    """Which of a frame's entries stay beside its carrier, where nothing stands before the frame: theirs averages heads
    of which each has given a share of its attention to what stands there."""
    n = size(generator, 20, 210)
    queries, keys = torch.randn(2, n + 1, 4, 8, generator=generator)  # the carrier is the last, then a word
    weights = torch.einsum("he,nhe->hn", queries[-1], keys).div(8**0.5).softmax(-1)  # (heads, n + 1)
    attention = torch.zeros(1, 4, n + 2, n + 2)
    attention[0, :, n, : n + 1] = weights
    places = torch.arange(n + 2.0).view(1, 1, n + 2, 1)
    function = theirs(root, "llava/video_streamer.py", "set_w_more_kv").set_w_more_kv
    stored = function(SimpleNamespace(kv_select_layer=None), [(places, places)], [attention], [(0, 1, n + 1)], None)
    told = Signals({("queries", HERE): queries, ("keys", HERE): keys}, total=n + 1)
    found = VideoScan(keep=16.5 / (n + 1)).reduce(Tokens.of_frame(torch.zeros(n + 1, 2), (1, n + 1)), told)
    return found.positions[:, 2].tolist() == stored[0][0].flatten().tolist()


CASES: dict[str, dict[str, Case]] = {
    "HoliTom": {
        "segments": holitom_segments,
        "clusters": holitom_clusters,
        "video": holitom_video,
        "folding": holitom_folding,
    },
    "AIM": {"merging": aim_merging, "page rank": aim_page_rank},
    "VFlowOpt": {"map": vflowopt_scores, "recycling": vflowopt_recycling},
    "TransPrune": {"transitions": transprune_transitions, "cut": transprune_cut},
    "GRT": {"gate": grt_gate},
    "QuickVideo": {"keys": quickvideo_keys},
    "VideoScan": {"memory": videoscan_memory, "chosen": videoscan_chosen},
}


if __name__ == "__main__":
    main(CASES)
