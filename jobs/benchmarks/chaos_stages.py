"""Kills processes of running stages (SIGKILL) at random moments, and compares what they end with to an unbroken run.

    python jobs/benchmarks/chaos_stages.py [kinds=[actor,driver,worker,trial,index]] [kills=20] [store=s3] [seed=0]

`actor`: one of two that write texts. `driver`: of generation, on Ray or (`ray=false`) without. `worker`: of Ray Train,
in a fine-tuning. `trial`: a process of a sweep. `index`: an index build. A killed driver or build is started again, the
other kinds go on by themselves; a run is hit up to `at_once` times until it has ended.
`store=s3` writes to an S3 server on loopback (moto), and needs `pip install moto[server]`.
"""

import json
import logging
import os
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
from urllib.request import Request, urlopen

import psutil
import torch
from machine import machine
from pydantic import Field

from cirray.cli.main import guarded, main
from cirray.core import storage
from cirray.core.artifacts import is_complete, open_stage, read_manifest
from cirray.core.config import Config, load_config
from cirray.core.contents import directory_digest
from cirray.core.log import say
from cirray.data.config import TransformConfig
from cirray.models.config import VisionTowerConfig
from cirray.models.towers.hf_blip2 import build_vision_tower
from cirray.pipelines.texts.config import MineRun
from cirray.triplets.store import TripletStore

Kind = Literal["actor", "driver", "worker", "trial", "index"]
Fields = dict[str, Any]
VERBS = {"actor": "generate", "driver": "generate", "worker": "finetune", "trial": "tune", "index": "index"}
NAMES = {"actor": "ray::MapWorker", "worker": "ray::RayTrain", "trial": "ray::ImplicitFunc"}
"""How the names of the processes to kill begin; of the other kinds the stage's own process is killed."""
RAY, ALONE = {"object_store_memory": 100_000_000, "num_cpus": 4}, {"ray": {"enabled": False}}


class ChaosConfig(Config):
    """What is done."""

    kinds: tuple[Kind, ...] = ("actor", "driver", "worker", "trial", "index")
    kills: int = Field(20, ge=1)
    """Of each kind."""
    at_once: int = Field(10, ge=1)
    store: Literal["local", "s3"] = "local"
    seed: int = 0
    ray: bool = True
    """False: `driver` and `worker` work in one process without Ray, which is killed."""
    pairs: int = Field(4000, ge=10)
    """Pairs to write texts for, ten in a part."""
    workers: int = Field(1, ge=1)
    """Ray Train's workers of a training; one of them is killed."""
    steps: int = Field(100, ge=10)
    """Steps of a training, with a checkpoint at every fifth."""


@dataclass
class Told:
    """What was seen of one kind."""

    name: str
    """How the processes to kill are called; empty: it is the stage's own."""
    kills: int = 0
    runs: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    difference: float = 0.0
    """Largest relative one of a loss, or of a trial's figure, to the unbroken run."""


def make(verb: str, root: Path, fields: Fields) -> None:
    """Run a verb here. Raises SystemExit with its status, where that is an error's."""
    (root / "run.yaml").write_text(json.dumps(fields))
    if status := main([verb, str(root / "run.yaml")]):
        sys.exit(status)


def make_inputs(root: Path, pairs: int) -> Fields:
    """World, towers of random weights, features, pairs, a generator; gives the fields of a training run."""
    root.mkdir()
    sizes = {"labelled_families": 24, "heldout_families": 6, "pool_families": 30, "gallery_references": 0}
    make("world", root, {"shapes": sizes, "out": str(root / "world")})
    data, features, towers = {"folder": {"root": str(root / "world")}}, [str(root / "features")], str(root / "towers")
    stage = open_stage(MineRun(out=towers), "towers", {"data": "", "features": ""})
    torch.manual_seed(0)
    vision = VisionTowerConfig(patch_size=24, width=16, layers=1, heads=2, intermediate=32)
    build_vision_tower(vision, TransformConfig()).save(stage.local / "vision")
    stage.publish({})
    make("embed", root, {"data": data, "tower": towers, "out": features[0], **ALONE})
    mining = {"policy": {"kind": "uniform"}, "count": pairs}
    make("mine", root, {"data": data, "features": features, "mining": mining, "out": str(root / "pairs")})
    stage = open_stage(MineRun(out=str(root / "generator")), "generator", {"data": "", "features": ""})
    (stage.local / "config.json").write_text('{"kind": "template", "template": "make {reference} {target}"}')
    stage.publish({})
    small = {"qformer": {"width": 16, "heads": 2, "queries": 2, "intermediate": 32}, "embed_dim": 8}
    return {
        "data": data, "features": features, "towers": towers, "encoder": {"settings": small}, "init": "",
        "reverse_texts": [],
    }  # fmt: skip


def runs(root: Path, config: ChaosConfig) -> dict[Kind, Fields]:
    """The fields of a run of each kind."""
    fields = make_inputs(root, config.pairs)
    training = {"steps": config.steps, "batch": 8, "log_every": 5, "checkpoint_every": 5, "seed": 1}
    here = {**fields, "training": training, **ALONE}
    make("finetune", root, {**here, "training": {**training, "steps": 1}, "out": str(root / "checkpoint")})
    generator = {"kind": "template", "settings": {"source": str(root / "generator")}}
    generate = {"pairs": str(root / "pairs"), "features": fields["features"], "generator": generator, "part_rows": 10}
    space = {"training.optimizer.lr": {"grid": [1e-3, 1e-4]}}
    sweep = {"base": {**here, "validation": {"every": 10}}, "space": space, "scheduler": "none", "max_concurrent": 1}
    index = {"checkpoint": str(root / "checkpoint"), "images": str(root / "world"), "shard": 4}
    return {
        "actor": {**generate, "ray": RAY}, "driver": {**generate, "ray": RAY}, "index": index,
        "worker": {**here, "ray": {**RAY, "num_workers": config.workers, "max_failures": config.at_once}},
        "trial": {**sweep, "max_failures": config.at_once, "ray": RAY},
    }  # fmt: skip


def start(kind: Kind, run: Fields, folder: Path) -> subprocess.Popen[bytes]:
    """A stage in a process of its own, that appends what it says to a file."""
    (folder / "run.yaml").write_text(json.dumps(run))
    command = [sys.executable, "-m", "cirray", VERBS[kind], str(folder / "run.yaml")]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def strike(name: str, process: int, rng: random.Random) -> bool:
    """Kill a process, or one of a name below it; False if there is none now."""
    found = [process]
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        if name:
            below = psutil.Process(process).children(recursive=True)
            found = [child.pid for child in below if " ".join(child.cmdline()).startswith(name)]
        if found:
            os.kill(rng.choice(found), signal.SIGKILL)
            return True
    return False


def break_run(kind: Kind, run: Fields, told: Told, kills: int, longest: float, rng: random.Random, at: Path) -> None:
    """Run to the end, with at most `kills` kills on the way."""
    process, left = start(kind, run, at), kills
    while True:
        moment, struck = time.monotonic() + rng.uniform(0, longest), False
        while not struck and process.poll() is None:
            time.sleep(0.02)
            struck = bool(left) and time.monotonic() >= moment and strike(told.name, process.pid, rng)
        if not struck:
            break
        left, told.kills = left - 1, told.kills + 1
        if not told.name:
            process.wait()
            told.faults["half published"] += half_published(run["out"])
            process = start(kind, run, at)
    if process.returncode:
        told.faults["ended with an error"] += 1
        say((at / "log").read_text()[-1500:])


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
        told.difference = max([told.difference, *(abs(other - one) / max(abs(one), 1e-9) for one, other in pairs)])
        told.faults["losses beyond 1e-3"] += told.difference > 1e-3
    elif read_manifest(whole).digest != read_manifest(out).digest:
        told.faults["another digest"] += 1


def figures(kind: Kind, uri: str) -> list[float]:
    """Losses of a training by step, or the trials' figures by name."""
    if kind == "worker":
        lines = storage.read_bytes(storage.join(uri, "history.jsonl")).decode().splitlines()
        return [json.loads(line)["loss"] for line in lines]
    rows = json.loads(storage.read_bytes(storage.join(uri, "results.json")))["trials"]
    return [row["metric"] for row in sorted(rows, key=lambda row: str(row["name"]))]


@contextmanager
def place(store: str, folder: Path) -> Iterator[str]:
    """Where artifacts are written."""
    if store == "local":
        yield str(folder / "out")
        return
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = ":".join(map(str, server.get_host_and_port()))
    urlopen(Request(f"http://{address}/chaos", method="PUT")).close()
    yield f"s3://chaos/out?endpoint_override={address}&scheme=http&region=us-east-1"
    server.stop()


def attack(kind: Kind, run: Fields, config: ChaosConfig, root: str, folder: Path) -> None:
    """Kill as often as asked, and say what was seen."""
    rng, whole = random.Random(f"{config.seed} {kind}"), storage.join(root, kind, "whole")
    told, run = Told(NAMES.get(kind, "") if config.ray else ""), run if config.ray else {**run, **ALONE}
    folder.mkdir()
    begin = time.monotonic()
    if start(kind, {**run, "out": whole}, folder).wait():
        say(f"{kind}: the unbroken run failed\n{(folder / 'log').read_text()[-2000:]}")
        return
    longest = (time.monotonic() - begin) / (3 if told.name else 1)
    while told.kills < config.kills:
        out = storage.join(root, kind, str(told.runs))
        told.runs += 1
        kills = min(config.kills - told.kills, config.at_once)
        break_run(kind, {**run, "out": out}, told, kills, longest, rng, folder)
        compare(kind, whole, out, told)
        faults = ", ".join(f"{count} {name}" for name, count in sorted(told.faults.items()) if count) or "no fault"
        faults += f", losses within {told.difference:.1e}" if kind in ("worker", "trial") else ""
        say(f"{kind:<7}{told.kills:>4} kills in {told.runs} runs, moments of {longest:.0f} s: {faults}")


def work() -> None:
    """Make the inputs, attack, print."""
    config = load_config(ChaosConfig, None, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="cirray-chaos-") as scratch:
        folder = Path(scratch)
        victims = runs(folder / "inputs", config)
        with place(config.store, folder) as root:
            for kind in config.kinds:
                attack(kind, victims[kind], config, root, folder / kind)
    say(f"store {config.store}, seed {config.seed}; {machine('ray', 'torch')}")


if __name__ == "__main__":
    sys.exit(guarded(work))
