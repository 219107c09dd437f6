"""A gallery in one process and in several searchers: memory of each process, and how long a search takes.

    python jobs/benchmarks/bench_shards.py [images=400000] [width=256] [shards=[1,2,4]] [seconds=5] [kind=faiss]

The gallery is one that is written to, of random normalised vectors, and is asked for ten answers a query, one query
after the other and in batches of 32; 1: in this process, as without `shards`. Searchers are deployments of Ray Serve
on this machine, asked as a replica asks them; answers must be those of the one process. Memory is what a process holds
by itself (`Private` in /proc/PID/smaps_rollup).
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray
from bench_gallery import BenchConfig, bulk, drawn
from machine import machine
from pydantic import Field
from ray import serve

from cirray.catalogue.opening import Description, open_gallery
from cirray.catalogue.table import Catalogue
from cirray.cli.main import guarded
from cirray.core.artifacts import open_stage
from cirray.core.config import load_config
from cirray.core.environ import private_cluster, set_default
from cirray.core.fields import Place
from cirray.core.log import say
from cirray.index.config import IndexBackend
from cirray.index.faiss_index import limit_faiss_threads
from cirray.index.store import LIVING, GalleryIndex, IndexMeta
from cirray.serving.config import OWN_CLUSTER, ServeArgs
from cirray.serving.gathering import Gathering, Line
from cirray.serving.searchers import asking, searchers_of


class ShardsConfig(BenchConfig):
    """What is measured."""

    images: int = Field(400_000, ge=2_000)
    seconds: float = Field(5.0, gt=0)
    shards: tuple[int, ...] = (1, 2, 4)
    out: Place = ""
    """Where the gallery is made; empty: in a folder that is deleted."""


def made(config: ShardsConfig) -> str:
    """Make the gallery."""
    stage = open_stage(config, LIVING)
    bulk(config, stage.work_uri)
    Catalogue.open(stage.work_uri).compact(keep_s=0)
    backend = IndexBackend.model_validate({"kind": config.kind})
    described = Description(IndexMeta("bench"), (1, config.width), backend, 0)
    stage.publish({"images": config.images}, extra=described.extra())
    return str(config.out)


def timed(gallery: GalleryIndex, config: ShardsConfig, batch: int) -> tuple[float, float, list[tuple[str, ...]]]:
    """Median and 95th percentile of a search in milliseconds, and the answers of the first."""
    rng, times, first = np.random.default_rng(7), list[float](), list[tuple[str, ...]]()
    end = time.perf_counter() + config.seconds
    while time.perf_counter() < end or len(times) < 5:
        queries = drawn(rng, batch, config.width)[:, 0].astype(np.float32)
        begin = time.perf_counter()
        found = gallery.search(queries, 10)
        times.append(1000 * (time.perf_counter() - begin))
        first = first or found.ids
    return float(np.median(times)), float(np.percentile(times, 95)), first


def private_mb(process: int | str) -> float:
    """Memory of a process that no other one shares, in MB."""
    text = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(size) for size in re.findall(r"Private_\w+: +(\d+) kB", text)) * 1024 / 1e6


def searcher_mb(name: str) -> list[float]:
    """Memory of the processes of an application of Serve."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            found += [private_mb(place.name)] if f":{name}:".encode() in (place / "cmdline").read_bytes() else []
        except OSError:  # it has ended
            continue
    return found


def measure(uri: str, config: ShardsConfig, of: int, wanted: list[list[tuple[str, ...]]]) -> None:
    """Measure a number of searchers and print it."""
    begin, name = time.perf_counter(), f"shards{of}-"
    if of == 1:
        gallery: GalleryIndex = open_gallery(uri, None).gallery  # type: ignore[union-attr]
    else:
        applications = searchers_of(ServeArgs(index=uri, shards=of), {})
        handles = [serve.run(app, name=f"{name}{at}", route_prefix=None) for at, app in enumerate(applications)]
        gallery = Gathering(uri, "bench", "", Line([asking(handle) for handle in handles], 60.0)).gallery
    start_s = time.perf_counter() - begin
    parts = [searcher_mb(f"{name}{at}")[0] for at in range(of)] if of > 1 else [private_mb("self")]
    lines = [(batch, *timed(gallery, config, batch)) for batch in (1, 32)]
    for batch, p50, p95, found in lines:
        if of == 1:
            wanted.append(found)
        assert found in wanted or not wanted, "the searchers answer otherwise than one process"
        say(f"{of} shards, batches of {batch}: p50 {p50:.1f} ms, p95 {p95:.1f} ms")
    say(f"{of} shards: ready after {start_s:.1f} s; MB a process: {', '.join(f'{size:,.0f}' for size in parts)}")
    for at in range(of) if of > 1 else ():
        serve.delete(f"{name}{at}")


def run(config: ShardsConfig) -> None:
    """Measure everything and print it."""
    limit_faiss_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        private_cluster()
        for name, value in OWN_CLUSTER.items():
            set_default(name, value)
        ray.init(log_to_driver=False)
        uri = made(config.model_copy(update={"out": config.out or f"{folder}/gallery"}))
        wanted: list[list[tuple[str, ...]]] = []
        for of in config.shards:
            measure(uri, config, of, wanted)
        serve.shutdown()
    say(machine())


if __name__ == "__main__":
    sys.exit(guarded(lambda: run(load_config(ShardsConfig, None, sys.argv[1:]))))
