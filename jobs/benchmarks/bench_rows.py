"""Training rows of a large triplets artifact: opening it, preparing the sampler, and the rows of every step.

    python jobs/benchmarks/bench_plan.py pairs=5000000 images=1250000 folder=/tmp/large
    python jobs/benchmarks/bench_rows.py triplets=/tmp/large/out batch=4096 steps=200

No model and no features: what is measured is what a trainer does beside them. Memory is the process's own (anonymous),
and beside it the pages of the mapped file, which the system takes back where it needs them.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from machine import machine
from own_memory import own_kib
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core.config import Config, load_config
from cirray.core.log import say
from cirray.training.config import TrainingConfig
from cirray.training.retrieval import TrainingRows
from cirray.triplets.rows import TripletRows, row_table, training_rows


class BenchConfig(Config):
    """What is measured."""

    triplets: str
    """Triplets artifact."""
    batch: int = Field(4096, ge=1)
    steps: int = Field(200, ge=1)


class Everything:
    """Features of any image."""

    def get(self, ids: Any) -> np.ndarray:
        """Not asked for."""
        raise NotImplementedError

    def __contains__(self, image_id: object) -> bool:
        """It has all."""
        return True


def main() -> None:
    """Measure and print."""
    config = load_config(BenchConfig, None, sys.argv[1:])
    training = TrainingConfig(batch=config.batch)
    rows: TripletRows = timed("open", lambda: training_rows([config.triplets], row_table([]), frozenset()))
    made: TrainingRows = timed("prepare", lambda: TrainingRows(rows, Everything(), training))

    def walk() -> None:
        for step in range(config.steps):
            rows.take(made.sampler.rows(step))

    begin = time.perf_counter()
    timed(f"{config.steps} steps", walk)
    rate = config.steps * config.batch / (time.perf_counter() - begin)
    say(f"{len(rows):,} rows, {type(made.sampler).__name__}: {rate:,.0f} rows/s")
    say(machine("pyarrow"))


def timed(name: str, work: Callable[[], Any]) -> Any:
    """A step's result, with a line that says how long it took and how large the process is after it."""
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    own, mapped, peak = (own_kib(name) / 2**20 for name in ("RssAnon", "RssFile", "VmHWM"))
    say(
        f"{name:<20}{time.perf_counter() - wall:8.1f} s{time.process_time() - cpu:8.1f} CPU s{own:8.2f} GB own"
        f"{mapped:8.2f} GB mapped{peak:8.2f} GB largest"
    )
    return made


if __name__ == "__main__":
    sys.exit(guarded(main))
