"""Kills processes of running stages (SIGKILL) at random moments, and compares what they end with to an unbroken run.

    python jobs/benchmarks/chaos_stages.py [kinds=[actor,driver,worker,trial,index]] [kills=20] [store=s3] [seed=0]

`actor`: one of two that write texts. `driver`: of generation. `worker`: of Ray Train, in a fine-tuning. `trial`: a
process of a sweep. `index`: the driver of an index that two actors encode. A moment is drawn from the time that the
unbroken run took; a killed driver is started again, the other kinds go on by themselves. A process may be killed again
until it has ended. `store=s3` writes to an S3 server on loopback (moto), and needs `pip install moto[server]`.
"""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import pyarrow as pa
import torch
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core import storage
from cirray.core.artifacts import is_complete, open_stage, read_manifest
from cirray.core.config import Config, load_config, validate
from cirray.core.contents import directory_digest
from cirray.core.log import say
from cirray.core.places import Run
from cirray.data.config import TransformConfig
from cirray.features.store import FeatureStore
from cirray.models.config import VisionTowerConfig
from cirray.models.towers.hf_blip2 import build_vision_tower
from cirray.pipelines.data.config import WorldRun
from cirray.pipelines.data.world import run_world
from cirray.pipelines.features.config import EmbedRun
from cirray.pipelines.features.embed import run_embed
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.texts.config import GenerateRun, MineRun
from cirray.pipelines.training.config import TrainRun, TuneRun
from cirray.pipelines.training.train import run_train
from cirray.triplets.pairs import PAIR_SCHEMA, write_pairs
from cirray.triplets.store import TripletStore

Kind = Literal["actor", "driver", "worker", "trial", "index"]
VERBS = {"actor": "generate", "driver": "generate", "worker": "finetune", "trial": "tune", "index": "index"}
NAMES = {"actor": "ray::MapWorker", "worker": "ray::RayTrain", "trial": "ray::ImplicitFunc"}
"""How the names of the processes to kill begin; of the others the driver is killed."""
RAY = {"object_store_memory": 100_000_000, "num_cpus": 4}


class ChaosConfig(Config):
    """What is done."""

    kinds: tuple[Kind, ...] = ("actor", "driver", "worker", "trial", "index")
    kills: int = Field(20, ge=1)
    """Kills of each kind."""
    store: Literal["local", "s3"] = "local"
    seed: int = 0
    pairs: int = Field(4000, ge=10)
    """Pairs to write texts for, ten in a part."""
    steps: int = Field(400, ge=20)
    """Steps of a training, with a checkpoint at every twentieth."""


@dataclass
class Told:
    """What was seen of one kind."""

    kills: int = 0
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    difference: float = 0.0
    """Largest relative difference of a loss, or of a trial's figure, to the unbroken run."""


def make_inputs(root: Path, pairs: int) -> dict[str, Any]:
    """World, towers of random weights, features and pairs; gives the fields of a training run."""
    sizes = {"labelled_families": 24, "heldout_families": 6, "pool_families": 30, "gallery_references": 0}
    run_world(WorldRun.model_validate({"shapes": sizes, "out": str(root / "world")}))
    data = {"folder": {"root": str(root / "world")}}
    stage = open_stage(MineRun(out=str(root / "towers")), "towers", {"data": "", "features": ""})
    torch.manual_seed(0)
    vision = VisionTowerConfig(patch_size=24, width=16, layers=1, heads=2, intermediate=32)
    build_vision_tower(vision, TransformConfig()).save(stage.local / "vision")
    stage.publish({})
    embed = {"data": data, "tower": str(root / "towers"), "out": str(root / "features"), "ray": {"enabled": False}}
    run_embed(validate(EmbedRun, embed))
    names, rng = FeatureStore.open(root / "features").ids, np.random.default_rng(0)
    first = rng.integers(0, len(names), pairs)
    second = (first + rng.integers(1, len(names), pairs)) % len(names)
    columns = {
        "pair_id": [f"{row:06d}" for row in range(pairs)], "reference_id": [names[row] for row in first],
        "target_id": [names[row] for row in second], "group_id": [""] * pairs, "score": rng.random(pairs),
        "rank": np.zeros(pairs, np.int64),
    }  # fmt: skip
    stage = open_stage(MineRun(out=str(root / "pairs")), "pairs", {"data": "", "features": ""})
    write_pairs(stage.work_uri, pa.table(columns, schema=PAIR_SCHEMA))
    stage.publish({"pairs": pairs})
    small = {"qformer": {"width": 16, "heads": 2, "queries": 2, "intermediate": 32}, "embed_dim": 8}
    return {
        "data": data, "features": [str(root / "features")], "towers": str(root / "towers"),
        "encoder": {"settings": small}, "init": "", "reverse_texts": [],
    }  # fmt: skip


def runs(root: Path, config: ChaosConfig) -> dict[Kind, Run]:
    """A run of each kind."""
    fields = make_inputs(root, config.pairs)
    training = {"steps": config.steps, "batch": 8, "log_every": 20, "checkpoint_every": 20, "seed": 1}
    here = {**fields, "training": training, "ray": {"enabled": False}, "out": str(root / "checkpoint")}
    run_train(validate(TrainRun, here))
    generate = validate(
        GenerateRun,
        {"pairs": str(root / "pairs"), "features": fields["features"], "generator": {"kind": "template"},
         "part_rows": 10, "ray": RAY},
    )  # fmt: skip
    finetune = validate(TrainRun, {**here, "ray": {**RAY, "num_workers": 1}})
    base = {**here, "validation": {"every": 20}}
    space = {"training.optimizer.lr": {"grid": [1e-3, 1e-4]}}
    sweep = {"base": base, "space": space, "scheduler": "none", "max_concurrent": 1, "max_failures": 20, "ray": RAY}
    index = {"checkpoint": str(root / "checkpoint"), "images": str(root / "world"), "shard": 4, "pool": {}, "ray": RAY}
    indexing = validate(IndexRun, index)
    return {
        "actor": generate, "driver": generate, "worker": finetune, "trial": validate(TuneRun, sweep), "index": indexing
    }  # fmt: skip


def start(kind: Kind, run: Run, folder: Path) -> subprocess.Popen[bytes]:
    """A driver in a process of its own, that appends what it says to a file."""
    path = folder / "run.yaml"
    path.write_text(run.to_yaml())
    log = (folder / "log").open("ab")
    command = [sys.executable, "-m", "cirray", VERBS[kind], str(path)]
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def alive(kind: Kind, driver: int) -> list[int]:
    """Process ids of those that may be killed."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(NAMES[kind]):
                    found.append(process.pid)
    return found


def break_run(kind: Kind, run: Any, told: Told, kills: int, longest: float, rng: random.Random, folder: Path) -> None:
    """Run to the end, with at most `kills` kills on the way."""
    driver, left = start(kind, run, folder), kills
    while driver.poll() is None:
        moment = time.monotonic() + rng.uniform(0, longest)
        while left and driver.poll() is None:
            pids = alive(kind, driver.pid) if kind in NAMES else [driver.pid]
            if time.monotonic() >= moment and pids:
                os.kill(rng.choice(pids), signal.SIGKILL)
                left, told.kills = left - 1, told.kills + 1
                break
            time.sleep(0.02)
        if kind in NAMES and left:
            continue
        driver.wait()
        if driver.returncode == -signal.SIGKILL:
            told.faults["half published"] += half_published(run.out)
            driver = start(kind, run, folder)
    if driver.returncode:
        told.faults["ended with an error"] += 1
        say((folder / "log").read_text()[-1500:])


def half_published(out: str) -> bool:
    """Whether something stands under the final name that is not the whole artifact."""
    if is_complete(out):
        return read_manifest(out).digest != directory_digest(out)
    return storage.is_local(out) and storage.exists(out)


def compare(kind: Kind, whole: str, out: str, told: Told) -> None:
    """Count what differs from the unbroken run."""
    if not is_complete(out):
        told.faults["nothing published"] += 1
        return
    told.faults["half published"] += half_published(out)
    if VERBS[kind] == "generate":
        wanted, found = (TripletStore.open(uri).table().column("triplet_id").to_pylist() for uri in (whole, out))
        told.faults["rows lost"] += len(set(wanted) - set(found))
        told.faults["rows doubled"] += len(found) - len(set(found))
    if kind in ("worker", "trial"):
        pairs = zip(figures(kind, whole), figures(kind, out), strict=True)
        told.difference = max([told.difference, *(abs(b - a) / max(abs(a), 1e-9) for a, b in pairs)])
    elif read_manifest(whole).digest != read_manifest(out).digest:
        told.faults["another digest"] += 1


def figures(kind: Kind, uri: str) -> list[float]:
    """Losses of a training by step, or the trials' figures by name."""
    if kind == "worker":
        lines = storage.read_bytes(storage.join(uri, "history.jsonl")).decode().splitlines()
        return [json.loads(line)["loss"] for line in lines]
    rows = json.loads(storage.read_bytes(storage.join(uri, "results.json")))["trials"]
    return [row["metric"] for row in sorted(rows, key=lambda row: str(row["values"]))]


@contextmanager
def place(config: ChaosConfig, folder: Path) -> Iterator[str]:
    """Where artifacts are written."""
    if config.store == "local":
        yield str(folder / "out")
        return
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="chaos")
    yield f"s3://chaos/out?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


def attack(kind: Kind, run: Run, config: ChaosConfig, root: str, folder: Path) -> None:
    """Kill as often as asked, and say what was seen."""
    rng, told, whole = random.Random(f"{config.seed} {kind}"), Told(), storage.join(root, kind, "whole")
    (folder / kind).mkdir()
    begin = time.monotonic()
    if start(kind, run.model_copy(update={"out": whole}), folder / kind).wait():
        say(f"{kind}: the unbroken run failed\n{(folder / kind / 'log').read_text()[-2000:]}")
        return
    longest = time.monotonic() - begin
    while told.kills < config.kills:
        out = storage.join(root, kind, str(told.runs))
        told.runs += 1
        at_once = min(config.kills - told.kills, 5)
        broken = run.model_copy(update={"out": out})
        break_run(kind, broken, told, at_once, longest / (2 if kind in NAMES else 1), rng, folder / kind)
        compare(kind, whole, out, told)
    faults = ", ".join(f"{count} {name}" for name, count in sorted(told.faults.items()) if count) or "no fault"
    difference = f", losses within {told.difference:.1e}" if kind in ("worker", "trial") else ""
    say(f"{kind:<7}{told.kills:>4} kills in {told.runs} runs of {longest:.0f} s: {faults}{difference}")


def main() -> None:
    """Make the inputs, attack, print."""
    config = load_config(ChaosConfig, None, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="cirray-chaos-") as scratch:
        folder = Path(scratch)
        victims = runs(folder / "inputs", config)
        with place(config, folder) as root:
            for kind in config.kinds:
                attack(kind, victims[kind], config, root, folder)
    say(
        f"store {config.store}, seed {config.seed}; {platform.machine()}, {os.cpu_count()} cores; {time.strftime('%F')}"
    )


if __name__ == "__main__":
    sys.exit(guarded(main))
