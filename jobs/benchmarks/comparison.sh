#!/bin/sh
# The whole comparison of `bench_comparison.py` on one GPU: six ways, three seeds, twenty times its pairs, bf16.
#
#     sh jobs/benchmarks/comparison.sh language=SMOLLM2                   # on the embedded world
#     sh jobs/benchmarks/comparison.sh language=SMOLLM2 nlvr=NLVR         # on the NLVR scenes
#     sh jobs/benchmarks/comparison.sh language=SMOLLM2 seeds=[0] steps=1200     # a later field counts
#
# Rows are kept in comparison-gpu.jsonl as they come; the same command goes on from there.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" "$root/jobs/benchmarks/bench_comparison.py" device=cuda steps=300 batch=64 align=400 \
    pairs=256 'seeds=[0,1,2]' results=comparison-gpu.jsonl "$@"
