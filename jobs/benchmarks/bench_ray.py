"""What Ray costs in the quickstart: its stages with Ray on two cores against the same functions in one process.

    python jobs/benchmarks/bench_ray.py root=~/cirray/quickstart wall=400

Runs the quickstart below `root` first where it is not there yet; where it is (after `make demo`), `wall` are the
seconds that it printed. Overhead = cluster start and stop + sum over the
stages that use Ray of (seconds with Ray - seconds in one process / workers), as a share of its wall time.
Work that does not divide perfectly counts as Ray's. Run it on an idle machine.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine

from cirray.cli.main import guarded, resolve
from cirray.cli.study import find, run
from cirray.cli.verb import load, verb
from cirray.cli.words import overrides_of
from cirray.core.config import load_config
from cirray.core.environ import limit_threads
from cirray.core.places import Run

STAGES = {"features": 2, "synthetic": 2, "reverse": 2, "pretrained": 2}
"""Its stages that use Ray, and their workers on two cores."""


class Bench(Run):
    """What is measured."""

    wall: float = 0.0
    """Seconds that it took, where it is there already."""
    seed: int = 0
    """Of the quickstart."""


def main() -> None:
    """Measure every stage both ways and print the table."""
    limit_threads()
    bench = resolve(Bench, [], overrides_of(sys.argv[1:])).config
    from cirray.pipelines.cluster.config import RayConfig
    from cirray.pipelines.cluster.resources import cluster

    begin = time.perf_counter()
    run(_study(bench, ray=True))
    wall = max(bench.wall, time.perf_counter() - begin)
    with tempfile.TemporaryDirectory(prefix="cirray-bench-") as folder:
        alone = {name: _seconds(bench, name, Path(folder) / "alone", ray=False) for name in STAGES}
        begin = time.perf_counter()
        with cluster(RayConfig()):
            started = time.perf_counter() - begin
            with_ray = {name: _seconds(bench, name, Path(folder) / "ray", ray=True) for name in STAGES}
            begin = time.perf_counter()
        start_stop = started + time.perf_counter() - begin
    _show(alone, with_ray, start_stop, wall)


def _study(bench: Bench, ray: bool) -> Any:
    quickstart = verb("quickstart")
    words = [f"root={bench.root}", f"seeds={bench.seed}", f"ray={str(ray).lower()}"]
    return load_config(quickstart.config_class(), quickstart.own_file(), words)


def _seconds(bench: Bench, name: str, out: Path, ray: bool) -> float:
    """Time of one stage, written elsewhere, reading what the quickstart made."""
    from cirray.pipelines.study.run import study_nodes

    node: Any = next(node for node in study_nodes(_study(bench, ray), find) if node.name == name)
    begin = time.perf_counter()
    load(node.run)(node.config.model_copy(update={"out": str(out / name)}))
    return time.perf_counter() - begin


def _show(alone: dict[str, float], with_ray: dict[str, float], start_stop: float, wall: float) -> None:
    print(machine("ray"))
    print(f"{'stage':<14}{'one process s':>16}{'Ray s':>10}{'cost s':>10}")
    costs = {name: with_ray[name] - alone[name] / workers for name, workers in STAGES.items()}
    for name in STAGES:
        print(f"{name:<14}{alone[name]:>16.1f}{with_ray[name]:>10.1f}{costs[name]:>10.1f}")
    cost = start_stop + sum(costs.values())
    print(f"{'start, stop':<14}{'':>16}{start_stop:>10.1f}{start_stop:>10.1f}")
    if wall > 60:
        print(f"wall time {wall:.0f} s; Ray costs {cost:.0f} s of it: {100 * cost / wall:.0f} %")
    else:
        print(f"Ray costs {cost:.0f} s (it was there already: its first run printed its wall time)")


if __name__ == "__main__":
    sys.exit(guarded(main))
