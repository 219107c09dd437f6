"""The driver's part of `cirray check` on a large artifact, and `cirray export triplets` of it.

    python jobs/benchmarks/bench_plan.py pairs=5000000 images=1250000 filters=true folder=/tmp/large
    python jobs/benchmarks/bench_check.py triplets=/tmp/large/out

The model answers at once: ranks and margins are drawn. Pictures are of one pixel, made in another process; they are
copied only with `pictures=true`, for it is the file system that is measured then. Memory is the largest resident set of
this process.
"""

import multiprocessing
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from bench_plan import timed
from PIL import Image

from cirray.cli.main import guarded
from cirray.core.artifacts import open_stage
from cirray.core.config import Config, load_config
from cirray.core.log import say
from cirray.data.config import DataConfig
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.parts import account, each_part
from cirray.pipelines.cluster.streaming import Columns, Step
from cirray.pipelines.texts.check import EndsOf, finish, text_parts
from cirray.pipelines.texts.checking import VERDICT_SCHEMA, VERDICTS
from cirray.pipelines.texts.config import CheckRun, ExportTripletsRun, MineRun
from cirray.pipelines.texts.export import run_export_triplets, write_triplets
from cirray.triplets.store import TripletStore, write_table
from cirray.types import part_name


class BenchConfig(Config):
    """What is measured."""

    triplets: str
    """Triplets artifact."""
    part_rows: int = 4096
    pictures: bool = False
    """Also write the layout `megapairs`, with a picture for every image."""


@dataclass
class AtOnce:
    """Writes a part's verdicts without a model: three of four triplets pass."""

    work_uri: str

    def __call__(self, columns: Columns) -> dict[str, int]:
        """One file of `VERDICT_SCHEMA`."""
        number, rows = int(columns["part"][0]), len(columns["part"])
        rng = np.random.default_rng(number)
        found = {"rank": rng.integers(0, 27, rows), "outrank": rng.normal(1, 1, rows), "direction": np.ones(rows)}
        write_table(f"{self.work_uri}/{VERDICTS}/{part_name(number)}.parquet", pa.table(found).cast(VERDICT_SCHEMA))
        return {"triplets": rows}


def measure(config: BenchConfig, folder: Path) -> None:
    """Every step of the driver, with its time and the memory so far."""
    for kind in ("features", "checkpoint"):
        open_stage(MineRun(out=str(folder / kind)), kind, {"data": "", "features": ""}).publish({})
    run = CheckRun(
        triplets=config.triplets, checkpoint=str(folder / "checkpoint"), features=(str(folder / "features"),),
        tests=("rank", "outrank"), out=str(folder / "checked"), part_rows=config.part_rows,
        ray=RayConfig(enabled=False),
    )  # fmt: skip
    stage, store = open_stage(run, "triplets"), TripletStore.open(config.triplets)
    timed("ids", store.refuse_doubled)
    ends = timed("number images", lambda: EndsOf.read(store))
    parts = replace(text_parts(run, stage, ends), steps=[Step(AtOnce, {"work_uri": stage.work_uri}, PoolConfig())])
    timed("(judge parts)", lambda: sum(1 for _ in each_part(parts, run.ray)))
    timed("account", lambda: account(parts, stage.work_uri))
    made = timed("part, publish", lambda: finish(run, stage, store, ends))
    say(f"{len(store):,} triplets: {made.counts}")
    timed("export rows", lambda: write_triplets(folder / "rows", store.pieces()))
    if config.pictures:
        maker = multiprocessing.get_context("spawn").Process(target=make_pictures, args=(config.triplets, folder))
        maker.start()
        maker.join()
        data = DataConfig.model_validate({"folder": {"root": str(folder / "world")}})
        shared = ExportTripletsRun(triplets=config.triplets, data=data, layout="megapairs", out=str(folder / "shared"))
        timed("export", lambda: run_export_triplets(shared))


def make_pictures(triplets: str, folder: Path) -> None:
    """A picture of one pixel for every image."""
    (folder / "world").mkdir()
    Image.new("RGB", (1, 1)).save(folder / "pixel.png")
    data = (folder / "pixel.png").read_bytes()
    for name in TripletStore.open(triplets).images().to_pylist():
        (folder / "world" / f"{name}.png").write_bytes(data)


def main() -> None:
    """Measure, print."""
    config = load_config(BenchConfig, None, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="cirray-bench-") as scratch:
        measure(config, Path(scratch))
    say(f"{platform.machine()}, {os.cpu_count()} cores; pyarrow {pa.__version__}; {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    sys.exit(guarded(main))
