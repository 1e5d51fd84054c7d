#!/bin/sh
# How many live cameras one server watches: streams up to the limit, 2 frames a second each, then as many again, which
# are refused. Writes lag, p99 of a step, refusals.
#     runs/serve_load.sh 16 60          # streams, seconds; -> docs/results/serve_load.json
set -eu
cd "$(dirname "$0")/.."
LOAD_STREAMS="${1:-16}" LOAD_SECONDS="${2:-60}" LOAD_REPORT="${3:-docs/results/serve_load.json}" \
    "${PYTHON:-.venv/bin/python}" -m pytest -q -s -m slow tests/test_serve_slow.py -k twice_as_many
