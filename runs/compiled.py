"""What `torch.compile` makes of a streaming step on this machine: time, and whether the result stays the same.

    python runs/compiled.py --out docs/results/compiled.json     # on a quiet machine
    python runs/compiled.py --frames 12 --out /dev/null          # to see that it works

Three models of the same weights watch the bundled clip, frame by frame in turn: one as it is; one whose tower is
compiled; one whose decoder has its norms and MLPs compiled, the parts of a layer that no cache and no mask goes into.
Compiled parts have PyTorch's ordinary linear layers, which its compiler lays out by itself; whole layers do not compile
in useful time, for each length of the cache is another graph. Needs a C++ compiler. The last stdout line is the JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
from torch import Tensor, nn

import videollm_mod as vm
from videollm_mod.bench.measure import environment, progress
from videollm_mod.depth.swap import find_decoder
from videollm_mod.files import atomic_write
from videollm_mod.loading import ASSETS
from videollm_mod.packed import unpack_linears

WARM = 8  # first frames, in which graphs are made


class Watcher:
    """A session that remembers how long each frame took, the last logits of each step, and what was said."""

    def __init__(self, name: str, compiled: str) -> None:
        model = vm.load(name)
        self.session = vm.StreamSession(model)  # asks the decoder whether its keys turn, so before anything is compiled
        self.taken: list[float] = []
        self.logits: list[Tensor] = []
        self.said: list[str] = []
        model.register_forward_hook(lambda module, args, output: self.logits.append(output.logits[0, -1]))
        for part in parts(model, compiled):
            unpack_linears(part).compile(dynamic=compiled == "decoder")

    def push(self, frame: vm.Frame) -> None:
        began = time.perf_counter()
        events = self.session.push(frame)
        self.taken.append(1e3 * (time.perf_counter() - began))
        self.said += [event.text for event in events]


def parts(model: Any, compiled: str) -> list[nn.Module]:
    """The modules to compile."""
    if compiled == "tower":
        return [model.encoder.tower]
    if compiled == "decoder":
        layers = find_decoder(model.lm).layers
        return [part for layer in layers for part in (layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)]
    return []


def run(flags: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(flags.threads)
    torch._inductor.config.freezing = True  # weights are constants: it may lay them out
    frames = [frame for _, frame in zip(range(flags.frames), vm.open_video(ASSETS / "demo.mp4", fps=2))]
    watchers = {compiled: Watcher(flags.model, compiled) for compiled in ("nothing", "tower", "decoder")}
    for number, frame in enumerate(frames):
        for compiled in list(watchers)[:: 1 - 2 * (number % 2)]:
            watchers[compiled].push(frame)
        if number + 1 == WARM:
            progress(f"{WARM} frames, all compiled")
    plain = watchers["nothing"]
    median = {compiled: statistics.median(watcher.taken[WARM:]) for compiled, watcher in watchers.items()}
    rows = {
        compiled: {
            "ms_per_frame": round(median[compiled], 3),
            "ratio": round(median[compiled] / median["nothing"], 4),
            "ms_until_warm": round(sum(watcher.taken[:WARM])),
            "largest_difference": largest_difference(plain.logits, watcher.logits),
            "said_the_same": plain.said == watcher.said,
        }
        for compiled, watcher in watchers.items()
    }
    return {"compiled": rows, "model": flags.model, "frames": len(frames), **environment()}


def largest_difference(one: list[Tensor], other: list[Tensor]) -> float | None:
    """Of two models' logits; None where they did not take the same steps."""
    if len(one) != len(other):
        return None
    return max(float((a - b).abs().max()) for a, b in zip(one, other))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    result = run(flags)
    line = json.dumps(result)
    if flags.out is not None:
        with atomic_write(flags.out) as file:
            file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
