"""Training samples per second: this process, Ray Train with one and two workers, torch and DeepSpeed engines.

    python jobs/benchmarks/bench_train.py root=~/cirray/quickstart steps=100

Needs the artifacts `world`, `towers` and `features` below `root` (`make demo` leaves them there).
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from machine import machine

from cirray.cli.main import guarded, resolve
from cirray.cli.words import overrides_of
from cirray.core.config import validate
from cirray.core.environ import limit_threads
from cirray.core.log import say
from cirray.core.places import Run
from cirray.core.storage import join
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import cluster
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train


class Bench(Run):
    """What is measured."""

    steps: int = 100
    """Optimiser steps of every row."""
    batch: int = 128
    """Global batch."""
    labels: int | None = 2000
    """Labelled triplets."""


@dataclass(frozen=True)
class Line:
    """One row of the table: wall seconds of the whole stage, and samples per second of the loop alone."""

    name: str
    wall: float
    rate: float


def main() -> None:
    """Measure every row and print the table."""
    limit_threads()
    torch.set_num_threads(1)
    bench = resolve(Bench, [], overrides_of(sys.argv[1:])).config
    with tempfile.TemporaryDirectory(prefix="cirray-bench-") as folder:
        lines = [_measure(bench, folder, "(first run: imports, file cache)", "torch", None)]
        lines.append(_measure(bench, folder, "this process, torch", "torch", None))
        lines.append(_measure(bench, folder, "this process, DeepSpeed ZeRO-2", "deepspeed", None))
        lines += _on_ray(bench, folder)
    _show(bench, lines)


def _on_ray(bench: Bench, folder: str) -> Iterator[Line]:
    begin = time.perf_counter()
    with cluster(RayConfig()):
        yield Line("(start of Ray)", time.perf_counter() - begin, 0.0)
        for workers in (1, 2):
            for engine, words in (("torch", "torch"), ("deepspeed", "DeepSpeed ZeRO-2")):
                name = f"Ray Train, {workers} worker{'s' * (workers > 1)}, {words}"
                yield _measure(bench, folder, name, engine, workers)


def _measure(bench: Bench, folder: str, name: str, engine: str, workers: int | None) -> Line:
    training = {
        "steps": bench.steps, "batch": bench.batch, "engine": engine, "zero_stage": 2, "log_every": bench.steps,
        "checkpoint_minutes": None,
    }  # fmt: skip
    tree = {
        "data": {"folder": {"root": join(bench.root, "world")}}, "features": [join(bench.root, "features")],
        "towers": join(bench.root, "towers"), "labels": bench.labels, "training": training,
        "validation": {"queries": 0}, "out": join(folder, name.replace(" ", "-")),
        "ray": {"enabled": workers is not None, "num_workers": workers or 1},
    }  # fmt: skip
    begin = time.perf_counter()
    manifest = run_train(validate(TrainRun, tree))
    return Line(name, time.perf_counter() - begin, float(manifest.extra["samples_per_second"]))


def _show(bench: Bench, lines: list[Line]) -> None:
    base = next(line for line in lines if line.name == "this process, torch")
    say(f"| training, {bench.steps} steps of {bench.batch} | wall s | samples/s | against this process | overhead s |")
    say("|---|---|---|---|---|")
    for line in lines:
        rate = f"{line.rate:,.0f} | {line.rate / base.rate:.2f}x" if line.rate else " | "
        extra = f"{line.wall - bench.steps * bench.batch / line.rate:.1f}" if line.rate else ""
        say(f"| {line.name} | {line.wall:.1f} | {rate} | {extra} |")
    say(f"\n{machine('torch')}")


if __name__ == "__main__":
    sys.exit(guarded(main))
