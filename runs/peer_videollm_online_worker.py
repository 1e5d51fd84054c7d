"""The half of `runs/peer_videollm_online.py` that runs in the environment of the public VideoLLM-online code.

Their model code (`models/`) and their inference loop (`demo/inference.py`, LiveInfer) run as they are, from a checkout.
What stands in for what is not here, and nothing else:

    torchvision     an empty module, if it is not installed: the loop imports it to read video files, which none is
    "cuda"          means the CPU while LiveInfer is built and reset (its device is written into it)
    vision tower    hands features on: frames come as the tower's output, and go through their connector

It speaks JSON, a line each: {"do": "frames", "from": 0, "to": 20} -> {"ms": [...]}; {"do": "logits"} -> those of
the first frames; {"do": "reset"}; {"do": "stop"}. Python and packages are theirs: this file imports nothing of ours.
"""

import argparse
import importlib.machinery
import importlib.util
import json
import os
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode


class CudaMeansCpu(TorchFunctionMode):
    """Every device "cuda" in a call of torch is the CPU instead."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def mended(value: Any) -> Any:
            if isinstance(value, torch.device) and value.type == "cuda":
                return torch.device("cpu")
            return "cpu" if isinstance(value, str) and value == "cuda" else value

        return func(*map(mended, args), **{name: mended(value) for name, value in (kwargs or {}).items()})


def stand_in_for_torchvision() -> None:
    """What the loop and the tower's file import of it; none of it is called here."""
    if importlib.util.find_spec("torchvision") is not None:
        return
    for name in ("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    whole: dict[str, Any] = sys.modules  # their attributes are none that a module is known to have
    whole["torchvision"].set_video_backend = lambda backend: None
    whole["torchvision.io"].read_video = None
    whole["torchvision.transforms.functional"].normalize = None


class Peer:
    """Their LiveInfer on the folder's model, fed with the folder's features."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        sys.path.insert(0, str(checkout))
        stand_in_for_torchvision()
        import models.modeling_live

        def no_tower(config: Any) -> Any:
            return torch.nn.Identity(), lambda encoder, frames: frames

        models.modeling_live.build_live_vision = no_tower
        from demo.inference import LiveInfer

        sys.argv = ["peer", "--llm_pretrained", str(folder / "model"), "--attn_implementation", "sdpa"]
        sys.argv += ["--output_dir", str(folder / "theirs"), "--report_to", "none"]
        system = json.loads((folder / "setup.json").read_text())["system"]
        sys.argv += ["--system_prompt", system]
        with CudaMeansCpu():
            self.infer = LiveInfer()
        self.infer.model.eval()
        self.features = load_file(str(folder / "features.safetensors"))["features"]  # (frames, 10, width)
        self.logits: list[Any] = []  # of the first frames
        self.keep_logits = 5

        def remember(module: Any, args: Any, output: Any) -> None:
            if len(self.logits) < self.keep_logits:
                self.logits.append(output.logits[0, -1].tolist())

        self.infer.model.register_forward_hook(remember)
        self.reset()

    def reset(self) -> None:
        with CudaMeansCpu():
            self.infer.reset()
        self.infer.video_tensor = self.features
        self.logits = []

    @torch.inference_mode()
    def frames(self, first: int, last: int) -> list[float]:
        """Milliseconds of each frame: its connector, and a turn of their loop."""
        taken = []
        for number in range(first, last):
            began = time.perf_counter()
            self.infer.input_video_stream(number / self.infer.frame_fps)
            _, response = self.infer()
            taken.append(1e3 * (time.perf_counter() - began))
            if response is not None:
                raise RuntimeError(f"their model spoke at frame {number}: {response}")
        return taken

    def cached(self) -> tuple[int, str]:
        """Tokens in their cache, and its kind."""
        cache = self.infer.past_key_values
        length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else cache[0][0].shape[2]
        return int(length), type(cache).__name__


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    flags = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever their code prints goes to stderr
    torch.set_num_threads(flags.threads)
    peer = Peer(flags.peer.resolve(), flags.folder)

    def answer(value: Any) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    model = peer.infer.model
    answer({
        "torch": torch.__version__, "transformers": transformers.__version__, "python": sys.version.split()[0],
        "threads": torch.get_num_threads(), "model": type(model).__name__,
        "attention": type(model.model.layers[0].self_attn).__name__, "dtype": str(model.dtype),
    })  # fmt: skip
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["do"] == "stop":
            break
        if asked["do"] == "reset":
            peer.reset()
            answer({})
        elif asked["do"] == "logits":
            answer({"logits": peer.logits, "cached": peer.cached()})
        else:
            answer({"ms": peer.frames(asked["from"], asked["to"])})


if __name__ == "__main__":
    main()
