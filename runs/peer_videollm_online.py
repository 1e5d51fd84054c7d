"""Beside the public VideoLLM-online code: its model and its inference loop, and ours, frame by frame on the same Llama.

    python runs/peer_videollm_online.py --peer ../videollm-online --python ../their_env/bin/python \\
        --out docs/results/peer_videollm_online.json
    ... --quick       # a small model and 40 frames, to see that it works; its ratios mean nothing

CHECKOUT is github.com/showlab/videollm-online; THEIR_PYTHON has an older Transformers, as that code needs: for example

    python -m venv their_env
    their_env/bin/pip install torch==2.13.0 transformers==4.44.2 peft==0.12.0 accelerate==0.33.0

What stands in for what they need of a GPU is told in peer_videollm_online_worker.py.

A Llama with random weights is written once and loaded by both, with the connector. Frames are random features, as a
tower would give them. A bias of the connector points at the word for silence, so that neither speaks. Both take the
same ids: the logits of the first frames must agree. Then theirs, ours dense and ours routed take 20 frames each in
turn, with the same number of threads. The last line on stdout is the JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, SiglipVisionConfig

from videollm_mod.bench.measure import environment, progress, rounded
from videollm_mod.bench.models import on_the_same_weights
from videollm_mod.depth import DepthPlan
from videollm_mod.files import atomic_write
from videollm_mod.model import StreamingVideoLM, StreamSettings
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import FrameTokens
from videollm_mod.vision import Connector, FrameEncoder, TransformersTower

WORKER = Path(__file__).with_name("peer_videollm_online_worker.py")
SYSTEM = "A multimodal AI assistant is helping users with some activities."
GRID, VISION_WIDTH, FPS = (3, 3), 1024, 2.0  # 1 + 3x3 tokens of SigLIP-L: what their code is written for
FIRST = 5  # frames of which the logits are compared
AGREE = 1e-3  # of the largest logit but that of silence, which stands above all; float32 in another order of sums
CHUNK = 20  # frames that each takes before it is the next one's turn


# --- what both load --------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path) -> None:
    """A byte each: the same ids whichever pieces a text is cut into, and files that old versions read."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("<s>", "</s>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(folder: Path, flags: argparse.Namespace) -> None:
    """model/: a Llama and its connector in one file; features.safetensors; setup.json."""
    model = folder / "model"
    model.mkdir(parents=True)
    write_tokenizer(model)
    ends = json.loads((model / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in ends}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": flags.width,
        "intermediate_size": flags.inner,
        "num_hidden_layers": flags.layers,
        "num_attention_heads": flags.heads,
        "num_key_value_heads": flags.heads,
        "vocab_size": flags.vocabulary,
        "max_position_embeddings": flags.frames * 11 + 1000,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "initializer_range": flags.width**-0.5,  # large enough for every layer to matter in the logits
        "bos_token_id": ids["<s>"],
        "eos_token_id": ids["</s>"],
    }
    (model / "config.json").write_text(json.dumps(config, indent=1))
    torch.manual_seed(0)
    lm = LlamaForCausalLM(LlamaConfig(**{key: value for key, value in config.items() if key != "torch_dtype"}))
    connector = Connector(VISION_WIDTH, flags.width)
    comma = PreTrainedTokenizerFast(tokenizer_file=str(model / "tokenizer.json")).convert_tokens_to_ids(",")
    with torch.no_grad():
        silent = torch.randn(flags.width).sign()  # every frame token looks there
        connector.outer.bias.copy_(4 * silent)
        lm.lm_head.weight[comma].copy_(silent)
    weights = {name: weight.contiguous().clone() for name, weight in lm.state_dict().items()}
    for name, part in (("0", connector.inner), ("2", connector.outer)):  # as their Sequential numbers it
        weights[f"connector.{name}.weight"], weights[f"connector.{name}.bias"] = part.weight.data, part.bias.data
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    features = torch.randn(flags.frames, 1 + GRID[0] * GRID[1], VISION_WIDTH)
    save_file({"features": features}, folder / "features.safetensors")
    (folder / "setup.json").write_text(json.dumps({"system": SYSTEM}))


# --- ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """A StreamSession on the folder's model, routed by a plan."""

    def __init__(self, lm: Any, connector: Connector, folder: Path, features: Tensor, plan: DepthPlan) -> None:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
        small = SiglipVisionConfig(hidden_size=VISION_WIDTH, intermediate_size=8, num_hidden_layers=1,
                                   num_attention_heads=1, image_size=48, patch_size=16)  # fmt: skip
        with torch.device("meta"):  # the tower is not run: frames come as its output
            encoder = FrameEncoder(TransformersTower.build(small), GRID)
        settings = StreamSettings(system=SYSTEM, fps=FPS, template="videollm-online")
        self.model = StreamingVideoLM(encoder, connector, lm, tokenizer, plan, settings).eval()
        self.features = features
        self.logits: list[list[float]] = []
        self.session: StreamSession
        self.model.register_forward_hook(self._remember)
        self.reset()

    def _remember(self, module: Any, args: Any, output: Any) -> None:
        if len(self.logits) < FIRST:
            self.logits.append(output.logits[0, -1].tolist())

    def reset(self) -> None:
        self.logits = []
        self.session = StreamSession(self.model)

    def frames(self, first: int, last: int) -> list[float]:
        """Milliseconds of each frame: the connector, and what a session does with it."""
        taken = []
        for number in range(first, last):
            began = time.perf_counter()
            said = self.session.push_tokens(FrameTokens(self.features[number], GRID, number / FPS, number))
            taken.append(1e3 * (time.perf_counter() - began))
            if said:
                raise RuntimeError(f"our model spoke at frame {number}: {said[0].text}")
        return taken


def load_ours(folder: Path) -> tuple[Any, Connector, Tensor]:
    """The Llama, the connector, the features."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model" / "model.safetensors")
    config = LlamaConfig(**json.loads((folder / "model" / "config.json").read_text()))
    lm = LlamaForCausalLM(config).eval()
    lm.load_state_dict({name: weight for name, weight in weights.items() if not name.startswith("connector.")})
    connector = Connector(VISION_WIDTH, config.hidden_size)
    for name, part in (("0", connector.inner), ("2", connector.outer)):
        part.load_state_dict({"weight": weights[f"connector.{name}.weight"], "bias": weights[f"connector.{name}.bias"]})
    return lm, connector, load_file(folder / "features.safetensors")["features"]


# --- theirs, in another process --------------------------------------------------------------------------------------


class Theirs:
    """The worker; asked by lines of JSON."""

    def __init__(self, python: Path, checkout: Path, folder: Path, threads: int) -> None:
        command = [
            str(python),
            str(WORKER),
            "--peer",
            str(checkout),
            "--folder",
            str(folder),
            "--threads",
            str(threads),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"their half has ended with code {self.process.wait()}; its last words stand above")
        value: dict[str, Any] = json.loads(line)
        return value

    def ask(self, **words: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def frames(self, first: int, last: int) -> list[float]:
        taken: list[float] = self.ask(**{"do": "frames", "from": first, "to": last})["ms"]
        return taken

    def close(self) -> None:
        if self.process.poll() is None and self.process.stdin is not None:
            self.process.stdin.close()  # it then ends by itself
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()


# --- the comparison --------------------------------------------------------------------------------------------------


def compare_logits(theirs: list[list[float]], ours: list[list[float]], silent: int) -> dict[str, Any]:
    """Raises RuntimeError where they are not the same numbers: then the times below would compare nothing.

    theirs, ours: (frames, words); silent: the word whose logit was made to stand out.
    """
    one, other = torch.tensor(theirs), torch.tensor(ours)
    largest = float(one.index_fill(1, torch.tensor(silent), 0).abs().max())
    off = float((one - other).abs().max()) if one.shape == other.shape else math.inf
    if not off <= AGREE * largest:
        raise RuntimeError(f"the first logits differ by {off:.2e} (they are up to {largest:.1f}): not the same model")
    return {"frames": len(theirs), "largest_difference": off, "largest": largest}


def curves(taken: dict[str, list[float]]) -> dict[str, list[float]]:
    """The median of each chunk of frames."""
    return {
        name: [statistics.median(values[start : start + CHUNK]) for start in range(0, len(values), CHUNK)]
        for name, values in taken.items()
    }


def told_at(taken: dict[str, list[float]], frames: int) -> dict[str, float]:
    """Milliseconds around a frame's number: the median of the chunk that it ends."""
    ms = {name: statistics.median(values[max(frames - CHUNK, 0) : frames]) for name, values in taken.items()}
    return {
        "peer_ms": ms["theirs"],
        "dense_ms": ms["ours, dense"],
        "routed_ms": ms["ours, routed"],
        "dense_ratio": ms["ours, dense"] / ms["theirs"],
        "routed_ratio": ms["ours, routed"] / ms["theirs"],
    }


def run(flags: argparse.Namespace, folder: Path) -> dict[str, Any]:
    write_model(folder, flags)
    lm, connector, features = load_ours(folder)
    plans = {"ours, dense": DepthPlan("full"), "ours, routed": DepthPlan("interleaved", flags.keep)}
    twin = on_the_same_weights(lm)
    ours = {
        name: Ours(each, connector, folder, features, plan) for each, (name, plan) in zip((lm, twin), plans.items())
    }
    theirs = Theirs(flags.python, flags.peer, folder, flags.threads)
    try:
        progress(f"theirs: {json.dumps(theirs.about)}")
        theirs.frames(0, FIRST)
        for mine in ours.values():
            mine.frames(0, FIRST)
        told = theirs.ask(do="logits")
        mine = ours["ours, dense"]
        logits = compare_logits(told["logits"], mine.logits, mine.model.template.interval_id)
        seen = ours["ours, dense"].session._cache.seen
        if told["cached"][0] != seen:
            raise RuntimeError(f"their cache holds {told['cached'][0]} tokens, ours {seen}: not the same stream")
        progress(f"first logits agree: {json.dumps(logits)}; both caches hold {seen} tokens")
        theirs.ask(do="reset")
        for mine in ours.values():
            mine.reset()
        rivals: dict[str, Any] = {"theirs": theirs, **ours}
        taken: dict[str, list[float]] = {name: [] for name in rivals}
        order = list(rivals)
        for first in range(0, flags.frames, CHUNK):
            last = min(first + CHUNK, flags.frames)
            for name in order:
                taken[name] += rivals[name].frames(first, last)
            order.reverse()
            if last % (5 * CHUNK) == 0 or last == flags.frames:
                progress(f"frame {last}: {json.dumps(rounded(told_at(taken, last)))}")
    finally:
        theirs.close()
    drawn = curves(taken)
    return {
        "at": {
            str(frames): told_at(taken, frames)
            for frames in sorted({*flags.at, flags.frames})
            if frames <= flags.frames
        },
        "worst_ratio": {
            "dense": max(a / b for a, b in zip(drawn["ours, dense"], drawn["theirs"])),
            "routed": max(a / b for a, b in zip(drawn["ours, routed"], drawn["theirs"])),
        },
        "whole_stream": {name: sum(values) / 1e3 for name, values in taken.items()},
        "logits": logits,
        "curve_frames": [min(start + CHUNK, flags.frames) for start in range(0, flags.frames, CHUNK)],
        "curves": drawn,
        "setup": {
            key: value for key, value in vars(flags).items() if key not in ("peer", "python", "out", "quick", "at")
        },
        "theirs": {**theirs.about, "cache": told["cached"][1]},
        "plan": dataclasses.asdict(plans["ours, routed"]),
        "quick": flags.quick,
        **environment(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of github.com/showlab/videollm-online")
    parser.add_argument("--python", type=Path, required=True, help="the Python of an environment in which it runs")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--at", type=int, nargs="+", default=[100, 300, 600], help="frames to tell of")
    parser.add_argument("--keep", type=float, default=0.2)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2816)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a small model and 40 frames")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    if not (flags.peer / "demo" / "inference.py").is_file():
        parser.error(f"--peer {flags.peer} is no checkout of VideoLLM-online: it has no demo/inference.py")
    if flags.quick:
        flags.frames, flags.width, flags.inner, flags.layers, flags.heads, flags.vocabulary = 40, 64, 160, 4, 4, 300
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory(prefix="peer_") as folder:
        found = run(flags, Path(folder))
    result = {**rounded(found), "logits": found["logits"]}  # differences of float32 are below four decimals
    if flags.out is not None:
        with atomic_write(flags.out) as file:
            file.write(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
