"""Memory and processor seconds of a million image ids, and of their files: as columns, and as Python's dict; and what
stages add to them that only list their images, digest the list and cut it into parts (for pairs: draw them).

    python jobs/benchmarks/bench_ids.py images=1000000

Every figure is of a process of its own: what it holds beyond its start, or a stage at its largest moment beyond the
data set. A batch looks 4,096 ids up.
"""

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from machine import machine
from own_memory import own_kib
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core.artifacts import Stage
from cirray.core.config import Config, load_config
from cirray.core.ids import Ids
from cirray.core.log import say
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.data.config import DataConfig
from cirray.generators.captioners.config import CaptionerChoice
from cirray.mining.config import MiningConfig
from cirray.mining.pairs import MiningInput, mine_pairs
from cirray.pipelines.captions import caption
from cirray.pipelines.captions.config import CaptionRun
from cirray.pipelines.data import datasets
from cirray.pipelines.features import embed
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.texts import mine
from cirray.pipelines.texts.config import MineRun

_BATCH, _BATCHES = 4096, 50


class BenchConfig(Config):
    """What is measured."""

    images: int = Field(1_000_000, ge=10_000)
    case: str = ""
    """Of a process of its own: what it holds."""


def main() -> None:
    """Measure every case in its own process, and print the table; with `case` the case alone."""
    config = load_config(BenchConfig, None, sys.argv[1:])
    if config.case:
        say(json.dumps(_case(config)))
        return
    say("| held | MB | processor s to make | ms of a batch of 4,096 |\n|---|---|---|---|")
    for case in ("ids: dict", "ids: columns", "files: dict", "files: columns"):
        words = [sys.executable, __file__, *sys.argv[1:], f"case={case}"]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        say(f"| {case} | {found['mb']:,} | {found['s']} | {found['ms']} |")
    say("\n| stage | MB at its largest moment | processor s |\n|---|---|---|")
    for case in _STAGES:
        words = [sys.executable, __file__, *sys.argv[1:], f"case={case}"]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        say(f"| {case} | {found['mb']:,} | {found['s']} |")
    say(machine("pyarrow"))


def _embed(dataset: CirDataset) -> object:
    """What `cirray embed` knows before the first picture is read."""
    images = datasets.list_images(DataConfig(), ("labelled", "pool", "gallery"))
    stage = Stage("nowhere", "features", {}, {}, {})
    return embed.embed_parts(EmbedRun(), stage, images, embed.TowerFacts("", {}, "", 224, (1, 1)))


def _caption(dataset: CirDataset) -> object:
    """What `cirray caption` knows before the first picture is read."""
    run, ids = CaptionRun(captioner=CaptionerChoice(kind="existing")), datasets.part_ids(dataset, ("pool",))
    caption._inputs(run, dataset, ids)
    return caption._parts(run, Stage("nowhere", "captions", {}, {}, {}), dataset, ids)


def _mine(dataset: CirDataset) -> object:
    """`cirray mine` with the policy `uniform`, without features."""
    run = MineRun(mining=MiningConfig.model_validate({"policy": "existing"}))
    mine._inputs(run, dataset)
    datasets.check_leaks((), mine._candidates(run, dataset), False, "")
    source = MiningInput(datasets.part_ids(dataset, ("pool",)), excluded=mine._excluded(run, dataset))
    return mine_pairs(source, MiningConfig.model_validate({"policy": "uniform", "count": 10_000}))


_STAGES = {"embed": _embed, "caption": _caption, "mine": _mine}


def _stage(config: BenchConfig) -> dict[str, Any]:
    names = [f"part-{number % 97:03d}/img-{number:09d}" for number in range(config.images)]
    table = ImageTable({name: f"/data/pictures/{name}.jpg" for name in names})
    dataset = CirDataset("bench", table, Protocol("bench"), pool_ids=Ids(names[1000:]), gallery_ids=Ids(names[:1000]))
    del names
    datasets.open_dataset = caption.open_dataset = lambda data: dataset  # type: ignore[assignment]
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before, begin = own_kib("VmRSS"), time.process_time()
    _STAGES[config.case](dataset)
    return {"mb": round((own_kib("VmHWM") - before) / 1024), "s": round(time.process_time() - begin, 1)}


def _case(config: BenchConfig) -> dict[str, Any]:
    if config.case in _STAGES:
        return _stage(config)
    names = (f"part-{number % 97:03d}/img-{number:09d}" for number in range(config.images))
    pairs = ((name, f"/data/pictures/{name}.jpg") for name in names)
    before, begin = own_kib("RssAnon"), time.process_time()
    held: Any
    if config.case == "ids: dict":
        held = {name: row for row, (name, _) in enumerate(pairs)}
    elif config.case == "ids: columns":
        held = Ids(name for name, _ in pairs)
    elif config.case == "files: dict":
        held = dict(pairs)
    else:
        held = ImageTable(dict(pairs))
    seconds = time.process_time() - begin
    pa.default_memory_pool().release_unused()
    ctypes.CDLL(None).malloc_trim(0)
    made = own_kib("RssAnon") - before
    rows = np.random.default_rng(0).integers(0, config.images, (_BATCHES, _BATCH)).tolist()
    asked = [[f"part-{number % 97:03d}/img-{number:09d}" for number in some] for some in rows]
    begin = time.process_time()
    for some in asked:
        if isinstance(held, Ids):
            held.places(some)
        else:
            of = held.paths if isinstance(held, ImageTable) else held
            _ = [of[name] for name in some]
    milliseconds = (time.process_time() - begin) / _BATCHES * 1000
    return {"mb": round(made / 1024), "s": round(seconds, 2), "ms": round(milliseconds, 2)}


if __name__ == "__main__":
    sys.exit(guarded(main))
