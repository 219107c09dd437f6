"""Seconds in which a large model's questions about first answers are made and asked: pictures prepared once or anew.

    python jobs/benchmarks/bench_rerank.py queries=50 top=10 images=100

The server is the tests' stub, which answers at once, so what is measured is this side's work. Answers of a query are
drawn from the gallery by a seed.
"""

import runpy
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from machine import machine
from PIL import Image

from cirray.cli.main import guarded, resolve
from cirray.cli.words import overrides_of
from cirray.core.config import validate
from cirray.core.environ import limit_threads
from cirray.core.places import Run
from cirray.core.seeding import numpy_generator
from cirray.data.benchmark import ImageTable
from cirray.evaluation.reranked import DataSights
from cirray.generators.pictures import LatestShots
from cirray.generators.rerankers.base import Asked, Reranking
from cirray.generators.rerankers.config import RerankChoice

LMM = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tests" / "fixtures" / "lmm_stub.py")))


class Bench(Run):
    """What is measured."""

    queries: int = 50
    """Queries, asked one after another as a service does."""
    top: int = 10
    """Answers of each."""
    images: int = 100
    """Pictures of the gallery."""
    side: int = 1024
    """Their side in pixels."""
    seed: int = 0
    """Of pictures and answers."""


def main() -> None:
    """Measure both ways and print them."""
    limit_threads()
    bench = resolve(Bench, [], overrides_of(sys.argv[1:])).config
    with tempfile.TemporaryDirectory(prefix="cirray-bench-") as folder:
        table = _gallery(bench, Path(folder))
        rows = {name: _seconds(bench, table, kept) for name, kept in (("anew", 1), ("once", 1024))}
    print(f"{bench.queries} queries x {bench.top}, {bench.images} pictures of {bench.side} px ({machine()})")
    for name, (wall, cpu) in rows.items():
        print(f"pictures prepared {name}: {wall:.2f} s, {cpu:.2f} CPU seconds, the stub's included")


def _gallery(bench: Bench, folder: Path) -> ImageTable:
    rng = numpy_generator(bench.seed, "pictures")
    paths = {}
    for number in range(bench.images):
        coarse = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        paths[f"im-{number}"] = str(folder / f"im-{number}.jpg")
        Image.fromarray(coarse).resize((bench.side, bench.side)).save(paths[f"im-{number}"], quality=90)
    return ImageTable(paths)


def _seconds(bench: Bench, table: ImageTable, kept: int) -> tuple[float, float]:
    rng = numpy_generator(bench.seed, "answers")
    sights = DataSights({}, table)  # type: ignore[arg-type]  # no features are read
    with LMM.Stub(lambda body, number: {"score": number % 10}) as stub:
        engine = {"settings": {"endpoints": [stub.url], "model": "tiny-vl"}}
        settings: dict[str, Any] = {"kind": "lmm", "top": bench.top, "settings": {"engine": engine}}
        reranking = Reranking(validate(RerankChoice, settings), None)
        reranking._reranker._latest = LatestShots(kept)  # type: ignore[attr-defined]
        begin, used = time.perf_counter(), time.process_time()
        for _ in range(bench.queries):
            reference, *ids = (f"im-{at}" for at in rng.choice(bench.images, bench.top + 1, replace=False))
            scores = tuple(np.linspace(1, 0, bench.top).tolist())
            reranking.orders([Asked("make it blue", tuple(ids), scores, sights, reference)])
        return time.perf_counter() - begin, time.process_time() - used


if __name__ == "__main__":
    sys.exit(guarded(main))
