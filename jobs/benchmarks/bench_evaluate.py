"""Evaluation at CIRCO's scale: 123,403 images, 800 queries, random unit vectors in a memory-mapped fp16 file.

    python jobs/benchmarks/bench_evaluate.py [tokens=32] [images=123403] [queries=800] [sums=float32] [device=cuda]

tokens=1 is one pooled vector an image. Writing the file is not part of the time; it is removed afterwards. Peak memory
is the process's largest resident set, which counts the pages of the mapped file that were in memory at once. Processor
seconds are those of all threads together: on a busy machine they say more than seconds.
"""

import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from machine import machine
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core.config import Config, load_config
from cirray.core.errors import DataError
from cirray.core.log import say
from cirray.data.benchmark import Protocol
from cirray.evaluation.chunked import Settings
from cirray.evaluation.evaluate import count_result
from cirray.evaluation.plan import make_plan
from cirray.evaluation.vectors import rank_vectors
from cirray.features.vector_files import read_vectors
from cirray.types import Query


class BenchConfig(Config):
    """What is measured."""

    images: int = Field(123_403, ge=100)
    queries: int = Field(800, ge=1)
    tokens: int = Field(1, ge=1)
    width: int = Field(256, ge=2)
    threads: int = Field(2, ge=1)
    sums: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    budget_mb: int = Field(256, ge=1)
    folder: str = ""
    """Where the file goes; empty: a temporary folder."""
    seed: int = 0


def write_vectors(path: Path, count: int, tokens: int, config: BenchConfig) -> None:
    """Random unit vectors, block by block, with ids beside them."""
    rng = np.random.default_rng(config.seed + count)
    shape = (count, config.width) if tokens == 1 else (count, tokens, config.width)
    vectors = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    for start in range(0, count, 2048):
        block = rng.standard_normal(vectors[start : start + 2048].shape, dtype=np.float32)
        vectors[start : start + 2048] = block / np.linalg.norm(block, axis=-1, keepdims=True)
    vectors.flush()
    path.with_suffix(".ids.json").write_text(json.dumps([f"{row:012d}" for row in range(count)]))


def make_queries(config: BenchConfig) -> list[Query]:
    """1 to 14 ground truths a query, as in CIRCO."""
    rng = np.random.default_rng(config.seed)
    found = []
    for at in range(config.queries):
        rows = rng.choice(config.images, 2 + int(rng.integers(0, 14)), replace=False)
        names = [f"{row:012d}" for row in rows]
        found.append(Query(f"{at:012d}", names[0], "text", tuple(names[1:])))
    return found


def measure(config: BenchConfig) -> None:
    """Write, evaluate, print."""
    torch.set_num_threads(config.threads)
    root = Path(tempfile.mkdtemp(dir=config.folder or None))
    try:
        size = 2 * config.images * config.tokens * config.width
        if shutil.disk_usage(root).free < 2 * size:
            raise DataError(f"The vectors take {size / 1e9:.1f} GB; {str(root)!r} has too little space. Set folder=...")
        write_vectors(root / "gallery.npy", config.images, config.tokens, config)
        write_vectors(root / "queries.npy", config.queries, 1, config)
        _evaluate(config, root)
    finally:
        shutil.rmtree(root)


def _evaluate(config: BenchConfig, root: Path) -> None:
    protocol = Protocol("circo", "bench", reference_rule="keep", metrics=("map", "target_recall"), ks=(5, 10, 25, 50))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begin, busy = time.perf_counter(), time.process_time()
    queries, gallery = read_vectors(root / "queries.npy"), read_vectors(root / "gallery.npy")
    plan = make_plan(make_queries(config), gallery.ids, protocol)
    settings = Settings(config.device, config.sums, normalize=False, budget=config.budget_mb * 2**20)
    result = count_result(rank_vectors(plan, queries, [gallery], settings))
    seconds, busy = time.perf_counter() - begin, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"{machine()}; {config.threads} threads, {config.device}")
    say(f"{config.images:,} images x {config.tokens} tokens x {config.width}, {config.queries:,} queries")
    say(f"sums in {config.sums}, blocks of {config.budget_mb} MiB; the first figure: {next(iter(result.metrics))}")
    say("| images/s | seconds | processor seconds | peak GB | before GB |")
    say("|---|---|---|---|---|")
    say(f"| {config.images / seconds:,.0f} | {seconds:.1f} | {busy:.1f} | {peak:.2f} | {before:.2f} |")


def main() -> int:
    """Entry point."""
    config = load_config(BenchConfig, None, sys.argv[1:])
    return guarded(lambda: measure(config))


if __name__ == "__main__":
    sys.exit(main())
