#!/usr/bin/env bash
# What weights in bf16, int8 and int4 and a KV cache in int8 and fp8 change on the world's test split: one evaluation each,
# docs/results/quantised.json holds their differences from float32. Stopped, the same command goes on from its journals.
# Laptop-sized: runs/quantised.sh --streams 4 (into out/ first, then over the result)
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
mkdir -p docs/results out/quantised
for pair in float32: bfloat16: int8: int4: float32:int8 float32:fp8 int8:int8; do
    dtype="${pair%%:*}" kv="${pair##*:}" name="${pair/:/_}"
    "$python" -m videollm_mod eval world --split test --streams 50 --heldout 0 --dtype "$dtype" ${kv:+--kv "$kv"} \
        --json "out/quantised/$name.json" --journal "out/quantised/$name.jsonl" "$@" > /dev/null
done
"$python" - <<'PYTHON'
import json
from pathlib import Path

keys = "f1 timing_f1 f1_teacher_forced question_accuracy false_alarms_per_minute lm_ppl time_diff fluency lm_correctness".split()
rows = {path.stem.rstrip("_"): json.loads(path.read_text()) for path in sorted(Path("out/quantised").glob("*.json"))}
exact = rows["float32"]
table = {
    name: {
        key: {"value": row[key], "change": round(row[key] - exact[key], 4)}
        for key in keys
        if row[key] is not None and exact[key] is not None  # what nothing could be measured for
    }
    for name, row in rows.items()
}
result = {"rows": table, "streams": exact["streams"], "description": exact["description"]}
Path("docs/results/quantised.json").write_text(json.dumps(result, indent=2) + "\n")
print(json.dumps(result))
PYTHON
