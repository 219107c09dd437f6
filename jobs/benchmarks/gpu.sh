#!/bin/sh
# Full-size models with random weights on one GPU: training steps, generation, memory, against the floor and the loop.
# Needs torch >= 2.11, transformers >= 5.17, pydantic, PyYAML and tokenizers; no ray, deepspeed, faiss or open_clip.
#
#     sh jobs/benchmarks/gpu.sh out=gpu.jsonl            # full size, about ten minutes on one H200
#     sh jobs/benchmarks/gpu.sh parts=[cached,pixels,generator]     # or in pieces, where a command has a time limit:
#     sh jobs/benchmarks/gpu.sh parts=[generate] beams=[5]          # figures are printed and kept as they are made
#     sh jobs/benchmarks/gpu.sh --device cpu --small     # the same code in a minute, on any machine
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" "$root/jobs/benchmarks/bench_gpu.py" "$@"
