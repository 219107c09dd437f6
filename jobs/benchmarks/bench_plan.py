"""The driver's part of generation: plan and order pairs, find finished parts, account for all rows, filter, publish.

    python jobs/benchmarks/bench_plan.py pairs=10000000 images=2500000

Pairs are synthetic: every image with near ones in a random order, as mining gives them. The generator answers at once:
parts are written column by column, which is not part of the driver's time. Memory is the largest resident set of this
process; the pairs are made in another one.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from machine import machine
from own_memory import own_kib
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core.artifacts import open_stage
from cirray.core.config import Config, load_config
from cirray.core.log import say
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.parts import account, each_part, finished
from cirray.pipelines.cluster.streaming import Columns, Step
from cirray.pipelines.texts.actors import load_generator
from cirray.pipelines.texts.config import GenerateRun, MineRun
from cirray.pipelines.texts.generate import TextPlan, filter_rows, make_plan, publish, text_parts
from cirray.triplets.config import FILTER_NAMES, FilterConfig
from cirray.triplets.pairs import PAIR_SCHEMA, write_pairs
from cirray.triplets.schema import REJECTED_SCHEMA, TRIPLET_SCHEMA, triplet_ids
from cirray.triplets.store import write_part
from cirray.types import part_name


class BenchConfig(Config):
    """What is measured."""

    pairs: int = Field(1_000_000, ge=100)
    images: int = Field(250_000, ge=10)
    part_rows: int = Field(4096, ge=1)
    folder: str = ""
    """Where the artifacts stay (`pairs`, `out`); empty: nowhere."""
    filters: bool = False
    """Also run every filter of texts."""
    near: int = Field(1000, ge=1)
    """How far apart two images of a pair may be in the order of the images."""


@dataclass
class AtOnce:
    """Writes a part's triplets without a generator."""

    work_uri: str
    recipe: str

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Two triplets a pair, each with the other's text."""
        count, ends = len(columns["pair_id"]), [pa.array(columns[f"{end}_id"]) for end in ("reference", "target")]
        twice = np.repeat(np.arange(count), 2)
        first, second = _interleaved(ends), _interleaved(ends[::-1])
        pair, group = (pa.array(columns[name]).take(twice) for name in ("pair_id", "group_id"))
        score = pa.array(np.repeat(columns["score"], 2))
        values = {
            "triplet_id": triplet_ids(pa.array(columns["pair_id"]), self.recipe, ("forward", "reverse")),
            "pair_id": pair, "reference_id": first, "target_id": second,
            "modification": pa.compute.binary_join_element_wise("make it look more like", second, " "),
            "reverse_modification": pa.compute.binary_join_element_wise("make it look more like", first, " "),
            "scores": pa.MapArray.from_arrays(np.arange(2 * count + 1), _same("pair", 2 * count), score),
            "group_id": group, "split": _same("train", 2 * count), "source": _same("mtst", 2 * count),
            "generator": _same("g", 2 * count), "prompt_version": _same("p", 2 * count), "edit": _same("", 2 * count),
            "seed": _same(0, 2 * count), "logprob": _same(-0.25, 2 * count), "weight": _same(1.0, 2 * count),
            "positive_ids": _same([], 2 * count, pa.list_(pa.string())),
            "negative_ids": _same([], 2 * count, pa.list_(pa.string())),
        }  # fmt: skip
        table = pa.table({name: values[name] for name in TRIPLET_SCHEMA.names}, schema=TRIPLET_SCHEMA)
        write_part(self.work_uri, part_name(columns["part"][0]), table, REJECTED_SCHEMA.empty_table())
        return {"rejected": 0}


def make_pairs(config: BenchConfig, uri: str) -> None:
    """A pairs artifact: names and ids as mining gives them, in the order of falling cosines."""
    rng = np.random.default_rng(0)
    names = pa.array([f"img-{row:09d}" for row in range(config.images)])
    order = rng.permutation(config.images)
    first = rng.integers(0, config.images, config.pairs)
    second = (first + rng.integers(1, config.near + 1, config.pairs)) % config.images
    groups = pa.array([f"{row:016x}" for row in range(0, config.images, 8)])
    columns = {
        "pair_id": _hex(rng, config.pairs), "reference_id": names.take(order[first]),
        "target_id": names.take(order[second]), "group_id": groups.take(first // 8),
        "score": -np.sort(-rng.random(config.pairs)), "rank": np.zeros(config.pairs, np.int64),
    }  # fmt: skip
    stage = open_stage(MineRun(out=uri), "pairs", {"data": "", "features": ""})
    write_pairs(stage.work_uri, pa.table(columns, schema=PAIR_SCHEMA))
    stage.publish({"pairs": config.pairs})


def measure(config: BenchConfig, folder: Path) -> None:
    """Every step of the driver, with its time and the memory so far."""
    for kind in ("features", "generator"):
        empty = open_stage(MineRun(out=str(folder / kind)), kind, {"data": "", "features": ""})
        (empty.local / "config.json").write_text('{"kind": "template"}')
        empty.publish({})
    generator = {"kind": "template", "settings": {"source": str(folder / "generator")}}
    run = GenerateRun(
        pairs=str(folder / "pairs"), features=(str(folder / "features"),), out=str(folder / "out"),
        part_rows=config.part_rows, generator=generator, ray=RayConfig(enabled=False),
        filters=FilterConfig(names=FILTER_NAMES if config.filters else (), instruction="what is different"),
    )  # fmt: skip
    stage = open_stage(run, "triplets")
    plan: TextPlan = timed("plan and order", lambda: make_plan(run))
    parts = text_parts(run, stage, plan, load_generator)
    step = Step(AtOnce, {"work_uri": stage.work_uri, "recipe": plan.recipe}, PoolConfig())
    parts = replace(parts, steps=[step], by=None)
    timed("(write parts)", lambda: sum(1 for _ in each_part(parts, run.ray)))
    whole = timed("resume check", lambda: finished(parts)[0])
    assert len(whole) == len(plan.tables)
    timed("account", lambda: account(parts, stage.work_uri))
    if config.filters:
        timed("filter", lambda: filter_rows(stage, run))
    timed("publish", lambda: publish(stage, plan, run, {}))


def timed(name: str, work: Callable[[], Any]) -> Any:
    """A step's result, with a line that says how long it took and how large the process has been."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    memory = own_kib() / 2**20
    say(f"{name:<16}{time.perf_counter() - wall:8.1f} s{time.process_time() - cpu:8.1f} CPU s{memory:8.2f} GB")
    return made


def _same(value: Any, count: int, kind: pa.DataType | None = None) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _interleaved(columns: list[pa.Array]) -> pa.Array:
    """The first of each column, then the second of each, and so on."""
    count = len(columns[0])
    return pa.concat_arrays(columns).take(np.arange(len(columns) * count).reshape(-1, count).T.ravel())


def _hex(rng: np.random.Generator, count: int) -> pa.Array:
    """Distinct ids of 16 hexadecimal digits."""
    numbers = (rng.permutation(count).astype(">u8") << 20).tobytes()
    offsets = np.arange(count + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(numbers.hex().encode()))


def main() -> None:
    """Make the pairs, measure, print."""
    config = load_config(BenchConfig, None, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="cirray-bench-") as scratch:
        folder = config.folder or scratch
        maker = multiprocessing.get_context("spawn").Process(
            target=make_pairs, args=(config, str(Path(folder) / "pairs"))
        )
        maker.start()
        maker.join()
        say(f"{config.pairs:,} pairs over {config.images:,} images, parts of {config.part_rows:,}")
        measure(config, Path(folder))
    say(machine("pyarrow"))


if __name__ == "__main__":
    sys.exit(guarded(main))
