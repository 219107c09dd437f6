"""Mining's search for near neighbours: FAISS against whole rows of cosines, and inverted lists.

    python jobs/benchmarks/bench_mine.py images=20000
    python jobs/benchmarks/bench_mine.py images=1000000 recall=0.95 memory_mib=4096
    python jobs/benchmarks/bench_mine.py images=60000 nodes=2      # exact, by Ray tasks on 1 and on 2 nodes of one CPU

Vectors are synthetic: families of four around a point of one of `topics` clouds, as photographs of products come in
series. Processor seconds are those of all threads together: on a busy machine they say more than seconds.
"""

import logging
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import ray
from machine import machine
from own_memory import own_kib
from pydantic import Field
from ray.cluster_utils import Cluster

from cirray.cli.main import guarded
from cirray.core.artifacts import open_stage
from cirray.core.config import Config, load_config
from cirray.core.errors import ConfigError
from cirray.core.log import say
from cirray.core.storage import join
from cirray.features.shards import FOLDER, FeatureShardWriter, shard_digest
from cirray.features.store import FeatureInfo, FeatureStore
from cirray.mining import neighbours
from cirray.mining.config import WindowConfig
from cirray.mining.neighbours import Approximate, CentredVectors, Window, windows
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.texts.mining_tasks import LEAST_IMAGES, ray_finder
from cirray.types import part_name


class BenchConfig(Config):
    """What is measured."""

    images: int = Field(20_000, ge=1000)
    width: int = Field(256, ge=2)
    topics: int = Field(200, ge=1)
    window: WindowConfig = WindowConfig()
    recall: float = Field(1.0, gt=0.0, le=1.0)
    """Below 1 only the inverted lists are measured."""
    memory_mib: int = Field(256, ge=8)
    nodes: int = Field(0, ge=0)
    """Above 0 the search by Ray tasks is measured alone: on one simulated node of one CPU, then on so many."""
    seed: int = 0


def make_store(config: BenchConfig) -> tuple[FeatureStore, list[str]]:
    """Features of all images, a vector each."""
    rng = np.random.default_rng(config.seed)
    topics_TD = rng.standard_normal((config.topics, config.width), dtype=np.float32)
    vectors_ND = np.empty((config.images, 1, config.width), np.float16)
    for start in range(0, config.images, 65_536):
        count = len(vectors_ND[start : start + 65_536])
        families_FD = topics_TD[rng.integers(0, config.topics, -(-count // 4))]
        families_FD = families_FD + 0.7 * rng.standard_normal(families_FD.shape, dtype=np.float32)
        own_ND = 0.4 * rng.standard_normal((count, config.width), dtype=np.float32)
        vectors_ND[start : start + count, 0] = np.repeat(families_FD, 4, axis=0)[:count] + own_ND
    ids = [f"{row:09d}" for row in range(config.images)]
    return FeatureStore([vectors_ND], ids, FeatureInfo("e", "t", (1, config.width))), ids


def written(store: FeatureStore, place: Path) -> str:
    """The features as an artifact, for worker processes to read."""
    stage = open_stage(EmbedRun(out=str(place)), "features", {"data": "", "tower": ""})
    writer, shards = FeatureShardWriter(stage.work_uri), {}
    for number, (ids, vectors) in enumerate(store.blocks(65_536)):
        writer.write(number, ids, vectors)
        shards[part_name(number)] = shard_digest(join(stage.work_uri, FOLDER), part_name(number))
    extra = {"encoder_digest": "e", "transform_digest": "t", "shape": list(store.shape), "shards": shards}
    stage.publish({"images": len(store)}, extra=extra)
    return str(place)


def by_nodes(config: BenchConfig, features: str, ids: list[str]) -> None:
    """The same search on simulated nodes of one CPU each: one, then `config.nodes`. The head has no CPU for tasks."""
    part: dict[str, Any] = {"object_store_memory": 200_000_000, "include_dashboard": False}
    taken: list[float] = []
    for nodes in (1, config.nodes):
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **part})
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, **part)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        find = ray_finder(RayConfig(), [features], len(ids))
        memory, references = config.memory_mib * 2**20 // 2, np.arange(len(ids))
        if find is None:
            raise ConfigError(f"images={config.images}: fewer than {LEAST_IMAGES:,} are searched without Ray.")
        list(find(ids, config.window, memory, references[: 4096 * nodes]))
        begin = time.perf_counter()
        list(find(ids, config.window, memory, references))
        taken.append(time.perf_counter() - begin)
        ray.shutdown()
        cluster.shutdown()
        say(f"{f'{nodes} node(s) of one CPU':<24}{taken[-1]:8.1f} s {taken[0] / taken[-1]:8.2f} times as fast")


def timed(label: str, found: Iterator[Window]) -> list[Window]:
    """All windows, with a line that says how long they took."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = list(found)
    say(f"{label:<24}{time.perf_counter() - wall:8.1f} s {time.process_time() - cpu:8.1f} CPU s")
    return made


def main() -> int:
    """Measure, and check that the two exact ways agree."""
    config = load_config(BenchConfig, None, sys.argv[1:])
    memory = config.memory_mib * 2**20 // 2
    store, ids = make_store(config)
    vectors = CentredVectors(store, ids, "flat", memory)
    say(f"{config.images:,} images x {config.width}, ranks {config.window.rank_low} to {config.window.rank_high}")
    if config.nodes:
        with tempfile.TemporaryDirectory() as folder:
            by_nodes(config, written(store, Path(folder) / "features"), ids)
    elif config.recall < 1.0:
        begin, cpu = time.perf_counter(), time.process_time()
        lists = Approximate(vectors, config.window, memory, config.recall)
        say(
            f"{'lists and their recall':<24}{time.perf_counter() - begin:8.1f} s {time.process_time() - cpu:8.1f} CPU s"
        )
        timed("search in lists", windows(vectors, config.window, memory, None, lists))
        say(f"recall {lists.recall:.3f}, {lists.probes} of {lists.lists.lists} lists a reference")
    else:
        fast = timed("FAISS", windows(vectors, config.window, memory))
        neighbours.is_there = lambda: False
        whole = timed("whole rows", windows(vectors, config.window, memory))
        equal = all(np.array_equal(a.targets, b.targets) for a, b in zip(fast, whole, strict=True))
        say("equal to the index" if equal else "NOT EQUAL")
    peak = own_kib() / 2**10
    say(f"peak {peak:,.0f} MB; {machine()}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
