#!/usr/bin/env bash
# A recipe on one node of 8 GPUs, one process each: runs/train_8gpu.sh own --data mine.jsonl --out out/mine
# The global batch is the recipe's, however many processes share it. GPUS=2 takes two. Ctrl-C stops all and saves; the
# same line with --resume goes on. `accelerate launch` does as well. Where the model does not fit: --sharding fsdp2.
# Laptop-sized: GPUS=2 runs/train_8gpu.sh tiny --sharding fsdp2 (two processes on a CPU, over gloo)
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m torch.distributed.run --standalone --nproc-per-node "${GPUS:-8}" -m videollm_mod train "$@"
