"""Texts per second: a loop over pairs, batches, one actor, two actors; and what Ray costs on top.

    python jobs/benchmarks/bench_generate.py root=~/cirray/quickstart pairs=4096

Needs the artifacts `pairs`, `features` and `generator` below `root` (`make demo` leaves them there).
"""

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from machine import machine

from cirray.cli.main import guarded, resolve
from cirray.cli.words import overrides_of
from cirray.core.artifacts import open_stage
from cirray.core.environ import limit_threads
from cirray.core.places import Run
from cirray.core.storage import join
from cirray.features.store import FeatureStore
from cirray.generators.base import WriterSetup
from cirray.generators.config import DecodingConfig, GeneratorChoice, MtgConfig
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.resources import cluster
from cirray.pipelines.cluster.streaming import stream
from cirray.pipelines.texts.actors import load_generator
from cirray.pipelines.texts.config import GenerateRun, MineRun
from cirray.pipelines.texts.generate import make_plan, text_parts
from cirray.pipelines.texts.ordering import order_pairs
from cirray.triplets.pairs import read_pairs, to_pairs, write_pairs


class Bench(Run):
    """What is measured."""

    pairs: int = 4096
    """Pairs that the batched rows write; the loop writes one in sixteen of them."""
    part_rows: int = 256
    """Pairs per part."""
    decoding: DecodingConfig = DecodingConfig(batch=256)
    """Decoding, the same in every row."""
    repeats: int = 2
    """Runs of each row; the best counts."""


def main() -> None:
    """Measure every row and print the table."""
    limit_threads()
    torch.set_num_threads(1)
    bench = resolve(Bench, [], overrides_of(sys.argv[1:])).config
    with tempfile.TemporaryDirectory(prefix="cirray-bench-") as folder:
        run = _inputs(bench, Path(folder))
        rows = [*_by_hand(bench, run), *_by_stage(bench, run)]
    _show(bench, rows)


def _inputs(bench: Bench, folder: Path) -> GenerateRun:
    """A run over the first pairs, with inputs at their places."""
    pairs = read_pairs(join(bench.root, "pairs")).slice(0, bench.pairs)
    stage = open_stage(MineRun(out=str(folder / "pairs")), "pairs", {"data": "", "features": ""})
    write_pairs(stage.work_uri, pairs)
    stage.publish({"pairs": len(pairs)})
    return GenerateRun(
        pairs=str(folder / "pairs"), features=(join(bench.root, "features"),), out=str(folder / "out"),
        part_rows=bench.part_rows,
        generator=GeneratorChoice(settings=MtgConfig(source=join(bench.root, "generator"), decoding=bench.decoding)),
    )  # fmt: skip


def _by_hand(bench: Bench, run: GenerateRun) -> Iterator[tuple[str, int, float, float]]:
    """The generator called directly: one pair a call, and in batches."""
    store, pairs = FeatureStore.open_many(run.features), to_pairs(order_pairs(read_pairs(run.pairs)))
    some = pairs[: max(len(pairs) // 16, 1)]

    def once(chunk: int, chosen: list) -> float:
        generator = load_generator(run.generator, WriterSetup())
        generator.generate(chosen[:1], store)
        begin = time.perf_counter()
        for start in range(0, len(chosen), chunk):
            generator.generate(chosen[start : start + chunk], store)
        return time.perf_counter() - begin

    for name, chunk, chosen in (("one pair a call", 1, some), ("batches", bench.part_rows, pairs)):
        seconds = min(once(chunk, chosen) for _ in range(bench.repeats))
        yield name, len(chosen), seconds, seconds


def _by_stage(bench: Bench, run: GenerateRun) -> Iterator[tuple[str, int, float, float]]:
    """The stage's own actors: in this process, and by Ray Data in a pool of one and of two."""
    yield ("stage, no Ray", *_best(bench, run, RayConfig(enabled=False), 1))
    begin = time.perf_counter()
    with cluster(RayConfig()):
        yield "(start of Ray)", 0, time.perf_counter() - begin, 0.0
        for size in (1, 2):
            yield (f"stage, Ray Data, {size} actor{'s' * (size > 1)}", *_best(bench, run, RayConfig(), size))


def _best(bench: Bench, run: GenerateRun, ray_config: RayConfig, size: int) -> tuple[int, float, float]:
    return min((_stage(run, ray_config, size) for _ in range(bench.repeats)), key=lambda row: row[1])


def _stage(run: GenerateRun, ray_config: RayConfig, size: int) -> tuple[int, float, float]:
    """Pairs, wall seconds with start-up, and seconds for all pairs at the steady rate (after the first parts)."""
    shutil.rmtree(f"{run.out}.partial", ignore_errors=True)
    stage, plan = open_stage(run, "triplets"), make_plan(run)
    parts = text_parts(run.model_copy(update={"pool": PoolConfig(size=size)}), stage, plan, load_generator)
    begin, ends = time.perf_counter(), []
    for figures in stream(list(parts.tables), parts.steps, ray_config, work_uri=stage.work_uri):
        ends.append((time.perf_counter(), len(parts.tables[int(figures["part"][0])])))
    total = sum(rows for _, rows in ends)
    steady = (ends[-1][0] - ends[size - 1][0]) / max(sum(rows for _, rows in ends[size:]), 1) * total
    return total, time.perf_counter() - begin, steady


def _show(bench: Bench, rows: list[tuple[str, int, float, float]]) -> None:
    base = next(seconds / count for name, count, seconds, _ in rows if name == "one pair a call")
    wall = {name: seconds for name, _, seconds, _ in rows}
    print(f"| generation, {bench.pairs:,} pairs, both directions | wall s | pairs/s, steady | against the loop |")
    print("|---|---|---|---|")
    for name, count, seconds, steady in rows:
        rate = f"{count / steady:,.0f} | {base * count / steady:.1f}x" if steady else "|"
        print(f"| {name} | {seconds:.1f} | {rate} |")
    alone = wall["stage, no Ray"]
    print(f"\nRay Data, one actor, adds {wall['stage, Ray Data, 1 actor'] - alone:.1f} s to {alone:.1f} s.")
    print(machine("ray", "torch"))


if __name__ == "__main__":
    sys.exit(guarded(main))
