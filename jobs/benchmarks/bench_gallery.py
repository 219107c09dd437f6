"""A gallery that is written to: adds a second, searches beside writes, and the start of a replica.

    python jobs/benchmarks/bench_gallery.py [images=100000] [width=256] [seconds=10] [kind=faiss]

Vectors are given, random and normalised. Bulk adds come in groups of 2,000; single adds are one commit each, then by
many askers at once through the service's batches, which make one commit of all that wait. As in a service, a thread
merges small files after every 128 commits; processor time, which other work cannot slow, is that of this process with
all its threads. Searches are timed in this
process, which follows the gallery, idle and beside a second process that adds and removes images at a given rate: with
what a service asks of the gallery besides (the filter, the rows and values of the answers), of all images and of the
one in a hundred that a filter passes.
"""

import asyncio
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.synchronize import Event

import numpy as np
import pyarrow as pa
from machine import machine
from pydantic import Field

from cirray.catalogue.change import Change
from cirray.catalogue.follower import Follower
from cirray.catalogue.table import MERGE_EVERY, Catalogue
from cirray.cli.main import guarded
from cirray.core.config import Config, load_config
from cirray.core.log import say
from cirray.index.config import IndexBackend
from cirray.index.store import IndexMeta
from cirray.serving.batches import Batcher

GROUP = 2_000


class BenchConfig(Config):
    """What is measured."""

    images: int = Field(100_000, ge=GROUP)
    width: int = Field(256, ge=2)
    kind: str = "faiss"
    seconds: float = Field(10.0, gt=0)
    """Length of each timed part."""
    rate: float = Field(200.0, gt=0)
    """Changes a second beside the searches."""
    askers: int = Field(32, ge=1)
    seed: int = 0


def drawn(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    """Normalised vectors [count, 1, width] (fp16)."""
    found = rng.standard_normal((count, 1, width), dtype=np.float32)
    return (found / np.linalg.norm(found, axis=2, keepdims=True)).astype(np.float16)


class Writer:
    """A table that is tidied in a thread, as a service does."""

    def __init__(self, uri: str) -> None:
        """Open it."""
        self.table, self._uri, self._threads = Catalogue.open(uri), uri, ThreadPoolExecutor(1)

    def write(self, changes: Sequence[Change]) -> int:
        """One commit; returns its version."""
        version = self.table.write(changes)
        if self.table.commits % MERGE_EVERY == 0:
            self._threads.submit(lambda: Catalogue.open(self._uri).merge())
        return version


def bulk(config: BenchConfig, uri: str) -> float:
    """Fill a new gallery; adds a second."""
    table = Catalogue.create(uri, (1, config.width), {"price": pa.float64()})
    rng, spent = np.random.default_rng(config.seed), 0.0
    for start in range(0, config.images, GROUP):
        vectors, prices = drawn(rng, GROUP, config.width), rng.random(GROUP).tolist()
        begin = time.perf_counter()
        table.load([
            Change(f"image {start + at:08d}", row, metadata={"price": price})
            for at, (row, price) in enumerate(zip(vectors, prices, strict=True))
        ])  # fmt: skip
        spent += time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(2):  # small files, then middling ones: what a service does beside the next writes
        table.merge()
    return config.images / (spent + time.perf_counter() - begin)


def single(config: BenchConfig, uri: str) -> tuple[float, float]:
    """Adds a second, one after the other, and milliseconds of processor time each."""
    writer, row, done = Writer(uri), drawn(np.random.default_rng(1), 1, config.width)[0], 0
    begin, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - begin < config.seconds:
        writer.write([Change(f"single {done}", row)])
        done += 1
    return done / (time.perf_counter() - begin), 1000 * (time.process_time() - used) / done


def grouped(config: BenchConfig, uri: str) -> float:
    """Single adds a second of many askers at once, who share commits."""
    table, row, done = Writer(uri), drawn(np.random.default_rng(1), 1, config.width)[0], [0]

    async def commit(changes: Sequence[Change]) -> list[int]:
        version = await asyncio.to_thread(table.write, changes)
        return [version] * len(changes)

    async def ask(batcher: Batcher[Change, int], number: int, end: float) -> None:
        while time.perf_counter() < end:
            await batcher(Change(f"asker {number} {done[0]}", row))
            done[0] += 1

    async def everyone() -> None:
        batcher: Batcher[Change, int] = Batcher(commit, GROUP)
        end = time.perf_counter() + config.seconds
        await asyncio.gather(*(ask(batcher, number, end) for number in range(config.askers)))

    begin = time.perf_counter()
    asyncio.run(everyone())
    return done[0] / (time.perf_counter() - begin)


def churn(uri: str, width: int, rate: float, stop: Event) -> None:
    """Add and remove images at a rate until told to stop."""
    table, row, number = Writer(uri), drawn(np.random.default_rng(2), 1, width)[0], 0
    begin = time.perf_counter()
    while not stop.is_set():
        due = int((time.perf_counter() - begin) * rate)
        if due > number:
            changes = [Change(f"churn {at % 500}", None if at % 3 == 2 else row) for at in range(number, due)]
            table.write(changes)
            number = due
        time.sleep(0.005)


def searched(follower: Follower, width: int, seconds: float, chosen: str | None = None) -> tuple[float, float, int]:
    """Median and 95th percentile of a search in ms, and the galleries that were seen."""
    rng, times, seen, end = np.random.default_rng(3), list[float](), set[int](), time.perf_counter() + seconds
    while time.perf_counter() < end:
        query = rng.standard_normal((1, width), dtype=np.float32)
        begin = time.perf_counter()
        gallery = follower.gallery
        mask_N = gallery.columns.mask(chosen) if chosen else None
        names = gallery.search_index.search(query, 10, mask_N)[0][0]
        gallery.columns.rows([gallery.row(name) for name in names], gallery.columns.chosen(["*"]))
        times.append(1000 * (time.perf_counter() - begin))
        seen.add(gallery.version)
        time.sleep(0.01)
    return float(np.median(times)), float(np.percentile(times, 95)), len(seen)


def tell_searches(config: BenchConfig, follower: Follower, when: str) -> None:
    """Print the times of both kinds of search."""
    for what, chosen in (("search", None), ("filter of 1 % and search", "price < 0.01")):
        p50, p95, seen = searched(follower, config.width, config.seconds, chosen)
        say(f"{what}, {when}: p50 {p50:.1f} ms, p95 {p95:.1f} ms, {seen} versions seen")


def run(config: BenchConfig) -> None:
    """Measure everything and print it."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"{folder}/gallery"
        say(f"bulk adds: {bulk(config, uri):,.0f} a second")
        rate, used_ms = single(config, uri)
        say(f"single adds, one commit each: {rate:,.0f} a second, {used_ms:.1f} ms of processor time each")
        say(f"single adds of {config.askers} askers: {grouped(config, uri):,.0f} a second")
        begin = time.perf_counter()
        Catalogue.open(uri).compact(keep_s=0)
        say(f"compaction: {time.perf_counter() - begin:.1f} s")
        begin = time.perf_counter()
        backend = IndexBackend.model_validate({"kind": config.kind})
        follower = Follower(uri, IndexMeta("bench"), (1, config.width), backend, "bench")
        say(f"start of a replica with {len(follower.gallery):,} images: {time.perf_counter() - begin:.1f} s")
        follower.start()
        tell_searches(config, follower, "idle")
        context = multiprocessing.get_context("spawn")
        stop = context.Event()
        process = context.Process(target=churn, args=(uri, config.width, config.rate, stop))
        before = follower.gallery.version
        process.start()
        while follower.gallery.version == before:
            time.sleep(0.1)
        tell_searches(config, follower, f"beside {config.rate:g} changes a second")
        stop.set()
        process.join()
        follower.stop()
    say(machine())


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(load_config(BenchConfig, None, sys.argv[1:]))))
