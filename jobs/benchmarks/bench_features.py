"""How fast training reads cached features: random batches out of a features artifact that lies in the page cache.

    python jobs/benchmarks/bench_features.py images=1024 folder=/tmp

Writes an artifact of BLIP-2's size (723 KB an image) and removes it afterwards.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from machine import machine

from cirray.cli.main import guarded
from cirray.cli.words import overrides_of
from cirray.core.artifacts import open_stage
from cirray.core.config import Config, load_config
from cirray.core.log import say
from cirray.core.storage import join
from cirray.features.shards import FOLDER, FeatureShardWriter, shard_digest
from cirray.features.store import FeatureStore
from cirray.pipelines.features.config import EmbedRun
from cirray.types import part_name


class Bench(Config):
    """What is measured."""

    images: int = 1024
    """Images of the artifact."""
    tokens: int = 257
    """Tokens of an image (ViT-g at 224 px)."""
    width: int = 1408
    """Their width."""
    shard_rows: int = 512
    """Images of a shard."""
    batch: int = 128
    """Triplets of a step; each reads two images."""
    seconds: float = 5.0
    """How long each row is measured."""
    folder: str = ""
    """Where the artifact is written; default: the system's temporary folder."""


def main() -> None:
    """Write, measure, print."""
    bench = load_config(Bench, None, overrides_of(sys.argv[1:]))
    with tempfile.TemporaryDirectory(prefix="cirray-bench-", dir=bench.folder or None) as folder:
        store = FeatureStore.open(_write(bench, Path(folder) / "features"), verified_bytes=0)
        rng, ids = np.random.default_rng(0), np.array(store.ids)
        store.get(list(ids[: bench.batch]))
        for begin in range(0, len(ids), bench.batch):
            store.get(list(ids[begin : begin + bench.batch]))
        take = 2 * bench.batch
        step = take * bench.tokens * bench.width * 2
        source = np.ones(step // 2, dtype=np.float16)
        rows = {
            "random batches, as training reads them": lambda: store.get(list(rng.choice(ids, take))),
            "copy of as many bytes into new memory": lambda: source.copy(),
            "copy of as many bytes into used memory": _copier(source),
        }
        load = os.getloadavg()[0]
        say(f"| reading, {step / 1e6:,.0f} MB a step | GB/s | GB per second of a core | images/s |\n|---|---|---|---|")
        for name, work in rows.items():
            rate, busy = _rate(work, bench.seconds)
            say(f"| {name} | {rate * step / 1e9:.2f} | {busy * step / 1e9:.2f} | {rate * take:,.0f} |")
        say(f"\n{machine()}; load {load:.2f} before.")


def _write(bench: Bench, place: Path) -> str:
    stage, rng = open_stage(EmbedRun(out=str(place)), "features", {"data": "", "tower": ""}), np.random.default_rng(1)
    writer = FeatureShardWriter(stage.work_uri)
    parts = range(0, bench.images, bench.shard_rows)
    for number, begin in enumerate(parts):
        count = min(bench.shard_rows, bench.images - begin)
        block = rng.standard_normal((1, bench.tokens, bench.width), dtype=np.float32).astype(np.float16)
        ids = [f"{row:07d}" for row in range(begin, begin + count)]
        writer.write(number, ids, np.broadcast_to(block, (count, bench.tokens, bench.width)))
    names = [part_name(number) for number in range(len(parts))]
    shards = {name: shard_digest(join(stage.work_uri, FOLDER), name) for name in names}
    shape = [bench.tokens, bench.width]
    extra = {"encoder_digest": "bench", "transform_digest": "bench", "shape": shape, "shards": shards}
    stage.publish({"images": bench.images}, extra=extra)
    return str(place)


def _copier(source: np.ndarray) -> Callable[[], None]:
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def _rate(work: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Calls a second, and calls a second of one core's time, which a busy machine does not lower."""
    work()
    begin, busy, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - begin < seconds:
        work()
        calls += 1
    return calls / (time.perf_counter() - begin), calls / (time.process_time() - busy)


if __name__ == "__main__":
    sys.exit(guarded(main))
