"""What tells an expert which tokens matter: slopes of the loss in a token's factors, by sign and by size.

    python runs/salience.py --out docs/results/salience.json     # the tables' dense model; five minutes
    python runs/salience.py --streams 1 --frames 1               # to see that it works

A slope says how the loss falls as one vision token counts for more in one layer:

    own         in its own way through the layer, y - x: what the gate `straight` learns from
    own+input   and in what it gives to the layer's attention: what the gate `salience` learns from, but for the sign
    own+bias    and in the weight with which others look at it, exactly: needs a mask with a gradient, so no fast kernel

Printed per layer: `sign` and `size`, in how many pairs of a frame's tokens, one on a thing or hand and one not, the
first has the higher slope, or the larger one (0.5 is chance; CLS apart); `rank`, the rank correlation within a frame
with what leaving the token out of that layer really costs, of every second layer. The last stdout line is the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
from torch import Tensor, nn

from recipes.tables import base, recipe
from videollm_mod.bench.measure import progress, rounded
from videollm_mod.depth.swap import find_decoder
from videollm_mod.dialogue import collate
from videollm_mod.evaluate.result import versions
from videollm_mod.files import atomic_write
from videollm_mod.model import StreamingVideoLM, load
from videollm_mod.tables.fill import base_path
from videollm_mod.train.data import StreamSample, stream_sample

FIRST = 100  # streams of the validation split from this number on: not those that runs validate on
OUT = -1e9


class Watched:
    """One stream through a dense model, teacher-forced."""

    def __init__(self, model: StreamingVideoLM, item: StreamSample) -> None:
        self.model, self.batch = model, collate([model.template.encode(item.segments)])
        with torch.no_grad():
            self.features = model.encoder(item.frames)
        index = self.batch.frame_index[0]
        self.places = (index >= 0).nonzero().squeeze(1).view(len(item.frames), -1)  # (frames, tokens of each)
        self.causal = torch.full((len(index), len(index)), OUT).triu(1)
        assert item.matter is not None
        self.on_things = item.matter[:, 1:] > 0  # (frames, h * w)

    def losses(self, copies: int = 1) -> Tensor:
        """(copies,) the sums of cross-entropies at all labels."""
        batch = self.batch
        output = self.model(
            batch.input_ids.expand(copies, -1),
            batch.frame_index.expand(copies, -1),
            self.features.repeat(copies, 1, 1),
            labels=batch.labels.expand(copies, -1),
            decision=batch.decision.expand(copies, -1),
        )
        labels = batch.labels[:, output.positions].expand(copies, -1)
        logits = output.logits.float().transpose(1, 2)
        return nn.functional.cross_entropy(logits, labels, reduction="none").sum(1)


@contextmanager
def hooked(layer: nn.Module, attention: Any, layer_hook: Any) -> Iterator[None]:
    """A hook before a layer's attention, and one behind the layer, for a while."""
    hooks = [
        layer.self_attn.register_forward_pre_hook(attention, with_kwargs=True),  # type: ignore[union-attr, operator]
        layer.register_forward_hook(layer_hook),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def slopes(watched: Watched, layers: nn.ModuleList) -> dict[tuple[int, str], Tensor]:
    """(layer, name) -> (frames, tokens): how the loss falls as a token counts for more."""
    seen: dict[tuple[int, str], Tensor] = {}
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            bias = torch.zeros(len(watched.causal), requires_grad=True)  # of how much others look at a token
            seen[number, "bias"] = bias

            def attention(module: Any, args: Any, kwargs: Any, number: int = number, bias: Tensor = bias) -> Any:
                hidden = kwargs["hidden_states"]
                hidden.retain_grad()
                seen[number, "input"] = hidden
                others = bias.expand_as(watched.causal) * (1 - torch.eye(len(bias)))
                return args, {**kwargs, "attention_mask": (watched.causal + others)[None, None]}

            def behind(module: Any, args: Any, y: Tensor, number: int = number) -> None:
                y.retain_grad()
                seen[number, "x"], seen[number, "y"] = args[0], y

            stack.enter_context(hooked(layer, attention, behind))
        watched.losses().sum().backward()
    found = {}
    for number in range(len(layers)):
        x, y, hidden, bias = (seen[number, name] for name in ("x", "y", "input", "bias"))
        assert y.grad is not None and hidden.grad is not None and bias.grad is not None
        own = -(y.grad * (y - x)).sum(-1)[0]
        of_input, of_bias = -(hidden.grad * hidden).sum(-1)[0], -bias.grad
        for name, slope in (("own", own), ("own+input", own + of_input), ("own+bias", own + of_bias)):
            found[number, name] = slope.detach()[watched.places]
    return found


@torch.no_grad()
def costs(watched: Watched, layer: nn.Module, frame: int) -> Tensor:
    """(tokens,) by how much the loss rises as each of a frame's tokens alone is left out of a layer."""
    places = watched.places[frame].tolist()
    masks = watched.causal.repeat(len(places), 1, 1)
    for row, place in enumerate(places):
        masks[row, place + 1 :, place] = OUT

    def attention(module: Any, args: Any, kwargs: Any) -> Any:
        return args, {**kwargs, "attention_mask": masks[:, None]}

    def behind(module: Any, args: Any, y: Tensor) -> Tensor:
        y = y.clone()
        for row, place in enumerate(places):
            y[row, place] = args[0][row, place]
        return y

    whole = watched.losses()
    with hooked(layer, attention, behind):
        return watched.losses(len(places)) - whole


def pairs(values: Tensor, on_things: Tensor) -> list[float]:
    """Per frame that has both: in how many pairs a token on a thing has the higher value; ties are half a pair.

    values, on_things: (frames, h * w).
    """
    frames = ((row[here], row[~here]) for row, here in zip(values, on_things))
    return [
        float(((high[:, None] > low).float() + 0.5 * (high[:, None] == low)).mean())
        for high, low in frames
        if len(high) and len(low)
    ]


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Spearman's, of values without ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (one, other)])
    return float(ranks.corrcoef()[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=base_path(base(), Path("docs/results/tables")))
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--frames", type=int, default=3, help="of each stream, whose tokens are left out one by one")
    parser.add_argument("--out", type=Path)
    config = parser.parse_args()
    model = load(config.model, dtype=torch.float32).eval()
    layers, shared = find_decoder(model.lm).layers, recipe()
    sums: dict[tuple[str, str, int], list[float]] = {}
    for stream in range(FIRST, FIRST + config.streams):
        progress(f"stream {stream - FIRST + 1} of {config.streams}")
        item = stream_sample("validation", stream, shared.phases[0], shared)
        watched = Watched(model, item)
        found = slopes(watched, layers)
        for (number, name), slope in found.items():
            for by, values in (("sign", slope), ("size", slope.abs())):
                sums.setdefault((by, name, number), []).extend(pairs(values[:, 1:], watched.on_things))
        every = len(watched.places) // (config.frames + 1)
        for number in range(1, len(layers), 2):
            for frame in range(every, every * (config.frames + 1), every):
                true = costs(watched, layers[number], frame)
                for name in ("own", "own+input", "own+bias"):
                    rank = rank_correlation(true, found[number, name][frame])
                    sums.setdefault(("rank", name, number), []).append(rank)
    result: dict[str, Any] = {"streams": config.streams, "frames_left_out": config.frames, "versions": versions()}
    for (by, name, number), every_one in sorted(sums.items()):
        result.setdefault(by, {}).setdefault(name, {})[str(number)] = sum(every_one) / len(every_one)
        progress(f"{by:5} {name:10} layer {number}: {sum(every_one) / len(every_one):.2f}")
    line = json.dumps(rounded(result))
    if config.out is not None:
        with atomic_write(config.out) as file:
            file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
