"""docs/backbones.md: every family of decoders through the laws of the core, and what routing saves on each of them.

    python runs/backbones.py                  # laws and numbers, about three minutes on two quiet cores
    python runs/backbones.py --no-numbers     # laws alone

Laws: tests/test_backbones.py is run, and a law is passed when every test of its name has passed for that family.
Numbers: each family as 8 layers of width 256 with random weights, a stream of frames of 50 tokens and an interval
token, dense (plan `full`) and routed (interleaved, keep 0.2) taken in turn, median of several frames.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from depth_cases import FAMILIES, GLOBAL, LOCAL, REFUSED, VOCABULARY, refused_model, tiny_model  # noqa: E402

from videollm_mod.bench.measure import environment, progress, time_in_turn  # noqa: E402
from videollm_mod.depth import DepthPlan, RaggedCache, apply_depth  # noqa: E402
from videollm_mod.depth import families as help_table  # noqa: E402
from videollm_mod.types import InputError  # noqa: E402

LAYERS, TOKENS, FRAMES, WINDOW = 8, 50, 100, 1024  # vision tokens per frame; frames gone by; of those that slide
SIZES: dict[str, Any] = dict(
    hidden_size=256, intermediate_size=704, num_hidden_layers=LAYERS, num_attention_heads=8, num_key_value_heads=4
)
OWN_SIZES: dict[str, dict[str, Any]] = {  # what a family's options give layer by layer, or in heads and windows
    "mistral": dict(sliding_window=WINDOW),
    "qwen2": dict(sliding_window=WINDOW, max_window_layers=LAYERS // 2),
    "qwen3": dict(head_dim=32),
    "gemma3": dict(head_dim=32, sliding_window=WINDOW, layer_types=[LOCAL, LOCAL, LOCAL, GLOBAL] * 2),
    "smollm3": dict(no_rope_layers=[1, 1, 1, 0] * 2),
    "qwen3_moe": dict(head_dim=32, moe_intermediate_size=352),
}
PLAN = DepthPlan("interleaved", 0.2)


# --- laws ------------------------------------------------------------------------------------------------------------


def run_laws() -> dict[str, dict[str, list[bool]]]:
    """family -> name of a test -> whether it passed, for each of its parameters. Skipped is not passed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "tests/test_backbones.py", f"--junitxml={report}"]
        finished = subprocess.run(command, cwd=ROOT, stdout=sys.stderr)
        if not report.exists():
            raise SystemExit(f"pytest ended with {finished.returncode} and without a report")
        cases = ElementTree.parse(report).getroot().iter("testcase")
        results: dict[str, dict[str, list[bool]]] = {family: defaultdict(list) for family in FAMILIES}
        for case in cases:
            name, _, parameters = case.get("name", "").partition("[")
            passed = not any(case.find(word) is not None for word in ("failure", "error", "skipped"))
            for family in set(re.split(r"[-\]]", parameters)) & set(FAMILIES):
                results[family][name].append(passed)
    return results


def laws_passed(results: dict[str, list[bool]]) -> list[int]:
    """The numbers of the laws of which every test has passed."""
    by_law: dict[int, list[bool]] = defaultdict(list)
    for name, passed in results.items():
        if found := re.match(r"test_law_(\d)", name):
            by_law[int(found[1])] += passed
    return sorted(law for law, passed in by_law.items() if all(passed))


def others(results: dict[str, list[bool]]) -> tuple[int, int]:
    """How many tests that belong to no law have passed, and how many there are."""
    passed = [each for name, every in results.items() if "_law_" not in name for each in every]
    return sum(passed), len(passed)


# --- numbers ---------------------------------------------------------------------------------------------------------


class Stream:
    """One model watching: frames of TOKENS tokens, each with an interval token behind it."""

    def __init__(self, model: PreTrainedModel, plan: DepthPlan) -> None:
        self.model = apply_depth(model, plan)
        self.cache, self.frames = RaggedCache(LAYERS), 0

    @torch.no_grad()
    def watch(self, frames: int = 1) -> None:
        index = [number for i in range(frames) for number in (*[self.frames + i] * TOKENS, -1)]
        ids = torch.randint(1, VOCABULARY, (1, len(index)), generator=torch.Generator().manual_seed(self.frames))
        self.model(ids, frame_index=torch.tensor([index]), past_key_values=self.cache, logits_to_keep=1)
        self.frames += frames


@torch.no_grad()
def own_cache_bytes(model: PreTrainedModel) -> int:
    """What Transformers' own cache of the untouched model holds after as many frames: sliding layers forget."""
    cache = DynamicCache(config=model.config)
    for _ in range(FRAMES // 10):
        model(torch.ones(1, 10 * (TOKENS + 1), dtype=torch.long), past_key_values=cache, logits_to_keep=1)
    entries: list[Any] = [part for layer in cache.layers for part in (layer.keys, layer.values)]  # type: ignore[union-attr]
    return sum(part.nbytes for part in entries)


def measure(family: str, repeats: int) -> dict[str, float]:
    """Milliseconds per frame and bytes, dense and routed."""
    progress(f"timing {family}")
    model = tiny_model(family, torch.float32, **SIZES, **OWN_SIZES.get(family, {}))
    own = own_cache_bytes(model)
    streams = {"dense": Stream(copy.deepcopy(model), DepthPlan("full")), "routed": Stream(model, PLAN)}
    for stream in streams.values():
        for _ in range(FRAMES // 10):
            stream.watch(10)
    kv = {name: stream.cache.kv_bytes for name, stream in streams.items()}
    timing = time_in_turn({name: stream.watch for name, stream in streams.items()}, repeats, warmup=3)
    return {
        "dense_ms": timing["dense"].wall_ms,
        "routed_ms": timing["routed"].wall_ms,
        "own_kv": own,
        "dense_kv": kv["dense"],
        "routed_kv": kv["routed"],
    }


# --- the page --------------------------------------------------------------------------------------------------------


INTRO = """# Decoders

Made by `python runs/backbones.py` from a run of `tests/test_backbones.py`; not to be edited by hand. Transformers
{transformers}, torch {torch}.

`vm.apply_depth(model, plan)` and `vm.StreamingVideoLM` go by structure: a list of decoder layers that take hidden
states first, and whose tokens meet in causal attention over a KV cache and nowhere else. These families are tested, as
small random models with all that is peculiar to them.

Laws: **1** keep ratio 1 is the untouched model to the bit, and `remove_depth` gives it back. **2** A stream equals one
pass, and a brute-force reference. **3** Nothing later changes anything earlier. **4** A batch equals its rows, also
where they are padded between their steps (a sliding window then counts a row's own tokens; Transformers' untouched
model counts the padding, too). **5** The expert learns, is saved and comes back; gradient checkpointing changes
nothing. **6** KV bytes equal the formula, and rolling back leaves nothing. The other tests: generation, greedy and in
beams; masks made beforehand; eager attention; what the expert reads; a streaming video model around it; and that no
skipped token reaches an expert of a mixture.
"""
ABOUT_NUMBERS = """Numbers: {layers} layers of width {width}, float32, {threads} threads of {cpu}; frames of {tokens}
tokens and one more, after {frames} frames; windows of {window} tokens. Routed is interleaved with keep 0.2; dense is
the plan `full`, the same code without routing. Own cache is Transformers', of the untouched model: its sliding layers
forget what has left the window. Ours keep it, so that a stream can be rolled back; there a long stream takes more
memory than it need.
"""


def page(laws: dict[str, dict[str, list[bool]]], numbers: dict[str, dict[str, float]], where: dict[str, Any]) -> str:
    """docs/backbones.md"""
    head = ["decoder", "what is peculiar to it", "laws", "other tests"]
    head += ["ms per frame, dense", "routed", "ratio", "KV MiB, own cache", "dense", "routed"] if numbers else []
    rows = []
    for key, family in FAMILIES.items():
        passed = laws_passed(laws[key])
        told = "all six" if passed == [1, 2, 3, 4, 5, 6] else ", ".join(map(str, passed)) or "none"
        cells = [family.title, family.peculiar, told, "{} of {}".format(*others(laws[key]))]
        if numbers:
            n = numbers[key]
            cells += [f"{n['dense_ms']:.1f}", f"{n['routed_ms']:.1f}", f"{n['routed_ms'] / n['dense_ms']:.2f}"]
            cells += [f"{n[name] / 2**20:.2f}" for name in ("own_kv", "dense_kv", "routed_kv")]
        rows.append(cells)
    lines = [INTRO.format(**where), *table(head, rows), ""]
    if numbers:
        sizes = dict(layers=LAYERS, width=SIZES["hidden_size"], tokens=TOKENS, frames=FRAMES, window=WINDOW)
        lines += [ABOUT_NUMBERS.format(**sizes, **where)]
    lines += ["## Families that need a word of help", ""]
    lines += ["One row each in `videollm_mod/depth/families.py`.", ""]
    lines += table(["model type", "why"], [[f"`{name}`", row.why] for name, row in help_table.FAMILIES.items()])
    lines += ["", *every_decoder(), "## Refused", "", "Before anything is changed, with one sentence.", ""]
    lines += table(["for example", "sentence"], [[name, refusal(name)] for name in REFUSED])
    return "\n".join(lines) + "\n"


def every_decoder() -> list[str]:
    """What runs/every_decoder.py has found, if it has been run."""
    path = ROOT / "docs" / "results" / "every_decoder.json"
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    lines = ["## Every causal LM of Transformers", ""]
    lines += [
        "`runs/every_decoder.py` -> `docs/results/every_decoder.json`, Transformers "
        f"{found['transformers']}: each in its default config made small, laws 1 to 4 in double precision. Why one was "
        "refused, or could not be made small, stands in the file.",
        "",
    ]
    for name in ("works", "wrong", "refused", "not built"):
        kinds = ", ".join(found[name])
        lines += [f"* **{name}**, {len(found[name])}{': ' if kinds else ''}{kinds}"]
    return [*lines, ""]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def refusal(name: str) -> str:
    try:
        apply_depth(refused_model(name), PLAN)
    except InputError as error:
        return str(error)
    raise AssertionError(f"{name} is not refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-numbers", action="store_true", help="laws alone")
    parser.add_argument("--repeats", type=int, default=15, help="frames timed of each, dense and routed in turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "backbones.md")
    flags = parser.parse_args()
    laws = run_laws()
    torch.set_num_threads(flags.threads)
    numbers = {} if flags.no_numbers else {family: measure(family, flags.repeats) for family in FAMILIES}
    flags.out.write_text(page(laws, numbers, environment()))
    progress(f"wrote {flags.out}")
    passed = {family: laws_passed(results) for family, results in laws.items()}
    print(json.dumps({"laws": passed, "numbers": numbers, **environment()}))


if __name__ == "__main__":
    main()
