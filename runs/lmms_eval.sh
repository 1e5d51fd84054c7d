#!/usr/bin/env bash
# The real lmms-eval on our model, in an environment of its own: clips of the world, and questions about them.
#   runs/lmms_eval.sh out/lmms 10        # folder, clips; the environment takes some minutes the first time
# -> docs/results/lmms_eval.json
set -euo pipefail
home=$(cd "$(dirname "$0")/.." && pwd)
out=$(mkdir -p "${1:-out/lmms}" && cd "${1:-out/lmms}" && pwd)
clips=${2:-10}
if [ ! -x "$out/env/bin/lmms-eval" ]; then
    python3 -m venv "$out/env"
    "$out/env/bin/pip" install -q -c "$home/constraints.txt" -e "$home[train]"
    # lmms-eval asks for fifty packages and for an old PyAV; these are what it needs to run a task like this one
    "$out/env/bin/pip" install -q -c "$home/constraints.txt" accelerate datasets evaluate loguru tenacity sacrebleu \
        pytablewriter pytz openai python-dotenv pydantic jsonlines numexpr tqdm-multiprocess zstandard httpx
    "$out/env/bin/pip" install -q --no-deps lmms-eval==0.7.3
fi
"$out/env/bin/python" "$home/runs/lmms_eval/tiny_world.py" "$out/task" --clips "$clips"
cp "$home/runs/lmms_eval/tiny_world.yaml" "$home/runs/lmms_eval/tiny_world.py" "$out/task/"
cd "$out/task"
HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$out/env/bin/lmms-eval" --model videollm_mod --model_args model=tiny \
    --tasks tiny_world --include_path "$out/task" --batch_size 1 --output_path "$out/results" --log_samples
"$out/env/bin/python" "$home/runs/lmms_eval/summary.py" "$out/results" "$home/docs/results/lmms_eval.json"
