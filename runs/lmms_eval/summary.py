"""What lmms-eval found, in one file: the newest results below a folder, how many samples, and which versions found it.

python runs/lmms_eval/summary.py out/lmms/results docs/results/lmms_eval.json
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path

from videollm_mod.evaluate.result import versions

KEPT = ("results", "n-samples")


def main(folder: Path, out: Path) -> None:
    found = sorted(folder.rglob("*_results.json"))
    if not found:
        raise SystemExit(f"lmms-eval left no results in {folder}")
    told = json.loads(found[-1].read_text())
    result = {key: told[key] for key in KEPT if key in told}
    result["versions"] = {"lmms_eval": importlib.metadata.version("lmms-eval"), **versions()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
