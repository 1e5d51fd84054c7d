"""Our reductions beside their authors' code: the same random tensors into both, indices and values compared.

    python runs/reduction_fidelity.py --peer FasterVLM=../FasterVLM --peer DivPrune=../divprune --out FILE.json

A peer is a checkout of the authors' repository, which stays outside this project. Of its files only the functions named
here are taken, on their own: their modules would import a whole LLaVA. Nothing of theirs is copied. A case is a draw of
tensors; "same" means the same tokens in the same order (or, of values, all within 1e-5). The last line is JSON.
"""

from __future__ import annotations

import ast
import json
import math
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videollm_mod.files import atomic_write
from videollm_mod.reductions import Signals, Tokens
from videollm_mod.reductions.base import HERE
from videollm_mod.reductions.divprune import farthest_points
from videollm_mod.reductions.fastervlm import FasterVLM
from videollm_mod.reductions.flowcut import FlowCut
from videollm_mod.reductions.hiprune import anchors_and_registers
from videollm_mod.reductions.matryoshka import Matryoshka

Case = Callable[[Path, torch.Generator], bool]  # one draw: whether both say the same


def isolated(path: Path, name: str) -> Any:
    """A function or method of a file by its name, on its own: compiled with torch, numpy and os around it."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing; give a whole checkout.")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise SystemExit(f"{path} has no function {name}; another version of it?")
    node = found[0]
    node.decorator_list, node.returns = [], None
    for argument in [*node.args.args, *node.args.kwonlyargs]:
        argument.annotation = None
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional, "np": np, "os": os, "math": math}
    exec(compile(ast.Module([node], []), str(path), "exec"), space)
    return space[name]


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def pick(generator: torch.Generator, *choices: Any) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def llava(features: Tensor, attentions: Any, **more: Any) -> Any:
    """What stands in for the authors' model: a tower that gives these features and attentions, a projector that does
    nothing."""
    inner = SimpleNamespace(get_vision_tower=lambda: lambda images: (features, attentions), mm_projector=lambda x: x)
    return SimpleNamespace(get_model=lambda: inner, **more)


# -- the peers ---------------------------------------------------------------------------------------------------------


def fastervlm(checkout: Path, generator: torch.Generator) -> bool:
    theirs = isolated(checkout / "llava/model/llava_arch.py", "encode_images")
    heads, n, k = 16, 576, pick(generator, 288, 144, 58, 29)
    attention = draw(generator, 1, heads, n).mul(2).softmax(-1)
    features = draw(generator, 1, n, 8)
    _, mask, _ = theirs(llava(features, attention, get_visual_token_num=lambda: k), None)
    signals = Signals({("cls_attention", -2): attention[0].mean(0)})
    ours = FasterVLM(keep=k / n).reduce(Tokens.of_frame(features[0], (24, 24)), signals)
    return torch.equal(features[0][mask[0]], ours.x)


def divprune(checkout: Path, generator: torch.Generator) -> bool:
    path = checkout / "LLaVA/llava/model/llava_arch.py"
    choose, cosine = isolated(path, "DivPrune"), isolated(path, "pairwise_cosine_similarity")
    n, ratio = pick(generator, 64, 196, 576), pick(generator, 0.05, 0.098, 0.25)
    x = draw(generator, n, 64)
    stub = SimpleNamespace(pairwise_cosine_similarity=lambda matrix: cosine(None, matrix))
    theirs, _ = choose(stub, x, n, None, threshold_ratio=ratio)
    return theirs.tolist() == farthest_points(x, len(theirs)).tolist()


def matryoshka(checkout: Path, generator: torch.Generator) -> bool:
    pool = isolated(checkout / "llava/model/llava_arch.py", "matryoshka_vis_token_process")
    scale = pick(generator, 1, 9, 36, 144, 576)
    x = draw(generator, 1, 576, 32)
    theirs = pool(None, x, scale).reshape(-1, 32)
    ours = Matryoshka(keep=scale / 576).reduce(Tokens.of_frame(x[0], (24, 24)), Signals())
    return theirs.shape == ours.x.shape and bool(torch.allclose(theirs, ours.x, atol=1e-5))


def hiprune(checkout: Path, generator: torch.Generator) -> bool:
    theirs = isolated(checkout / "LLaVA/llava/model/llava_arch.py", "encode_images")
    heads, n, k, alpha = 2, 577, pick(generator, 192, 128, 64), pick(generator, 0.1, 0.3, 0.5)
    layers = [draw(generator, 1, heads, n, n).mul(2).softmax(-1) for _ in range(3)]
    features = draw(generator, 1, n - 1, 8)
    environment = {"HIPRUNE_RETENTION": k, "HIPRUNE_ALPHA": alpha, "HIPRUNE_OBJECT_LAYER": 1}
    os.environ.update({name: str(value) for name, value in environment.items()})
    with on_the_cpu():
        _, mask = theirs(llava(features, layers, config=SimpleNamespace(mm_vision_select_layer=-2)), None)
    middle, deep = (layers[i].mean(1)[0].mean(0)[1:] for i in (0, -2))
    return mask[0].nonzero()[:, 0].tolist() == anchors_and_registers(middle, deep, k, alpha, 24).tolist()


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Their code says `.cuda()`."""
    own = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        torch.Tensor.cuda = own  # type: ignore[method-assign]


def flowcut(checkout: Path, generator: torch.Generator) -> bool:
    """Their layer with stubs in it: attention from random projections of what is left, nothing added to the stream."""
    path = checkout / "flowcut/modeling_clip_flowcut.py"
    layer = isolated(path, "CLIPEncoderLayer_forward")
    for name in ("compute_score", "adaptive_prune_ratio"):
        layer.__globals__[name] = isolated(checkout / "flowcut/utils_flowcut.py", name)
    blocks, n, heads, e, k = pick(generator, 6, 9, 12), 144, 2, 4, pick(generator, 16, 48)
    x = draw(generator, 1 + n, heads * e)
    projections = [draw(generator, 3, heads * e, heads * e) / 2 for _ in range(blocks)]

    def attend(hidden: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k_, v = ((hidden @ p).unflatten(-1, (heads, e)).transpose(0, 1) for p in projections[block])
        return (q @ k_.transpose(1, 2) / e**0.5).softmax(-1), v, (v[:, :1] @ v.transpose(1, 2)).softmax(-1)[:, 0]

    hidden, scores, places = x[None], None, torch.arange(n)[None]
    for block in range(blocks):

        def self_attn(hidden_states: Tensor, block: int = block, **kwargs: Any) -> Any:
            weights, v, likeness = attend(hidden_states[0], block)
            return torch.zeros_like(hidden_states), weights[None], likeness.mean(0)[None], v.mean(0)[None]

        nothing = SimpleNamespace(
            layer_norm1=lambda h: h, layer_norm2=lambda h: h, mlp=torch.zeros_like, self_attn=self_attn
        )
        (hidden, *_), scores, places = layer(
            nothing, hidden, None, None, True, k + 1, blocks - 2 - block - 1, scores, places
        )
    one, tokens, memory = FlowCut(keep=k / n), Tokens.of_frame(x[1:], (12, 12)), dict[str, Any]()
    for block in one.cuts(blocks):
        weights, v, _ = attend(torch.cat([x[:1], tokens.x]), block)
        told = {("cls_attention", HERE): weights[:, 0, 1:].mean(0), ("tower_values", HERE): v[:, 1:].transpose(0, 1)}
        told["tower_cls_values", HERE] = v[:, 0]
        tokens = one.reduce(tokens, Signals(told, memory=memory, layer=block, layers=blocks, total=n))
    return places[0].tolist() == (tokens.positions[:, 1] * 12 + tokens.positions[:, 2]).tolist()


PEERS: dict[str, dict[str, Case]] = {
    "FasterVLM": {"who is kept": fastervlm},
    "HiPrune": {"who is kept": hiprune},
    "FlowCut": {"who is kept, all blocks": flowcut},
    "DivPrune": {"who is kept, in which order": divprune},
    "Matryoshka": {"the five scales": matryoshka},
}


def version(checkout: Path) -> str:
    """The commit of a checkout, or "" where it is none."""
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip()[:7]


def main(peers: dict[str, dict[str, Case]] = PEERS) -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--peer", action="append", required=True, metavar="NAME=CHECKOUT", help=", ".join(peers))
    parser.add_argument("--cases", type=int, default=200, help="random cases of each")
    parser.add_argument("--out", type=Path, help="write the JSON here too; what it had of other peers stays")
    words = parser.parse_args()
    found: dict[str, dict[str, str]] = {}
    for word in words.peer:
        name, _, folder = word.partition("=")
        if name not in peers or not Path(folder).is_dir():
            parser.error(f"--peer {word}: give NAME=CHECKOUT, a folder, with one of {', '.join(peers)}.")
        found[name] = {"version": version(Path(folder))}
        for what, case in peers[name].items():
            same = sum(case(Path(folder), torch.Generator().manual_seed(seed)) for seed in range(words.cases))
            found[name][what] = f"{same} of {words.cases}"
            print(f"{name}, {what}: the same in {found[name][what]}", file=sys.stderr)
    if words.out is not None:
        before = json.loads(words.out.read_text()) if words.out.exists() else {}
        found = before | found
        with atomic_write(words.out) as file:
            file.write(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
