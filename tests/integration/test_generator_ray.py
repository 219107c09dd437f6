"""Ray Train for the generator: two workers, one of them killed, end as one process does."""

import json
import logging
import re
import runpy
import signal
import threading
import time
from pathlib import Path

import pytest

from cirray.core.config import load_config
from cirray.data.config import ShapesConfig
from cirray.data.readers import read_dataset
from cirray.data.shapes.world import write_world
from cirray.generators.store import load_generator
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.pipelines.features.config import TowersRun
from cirray.pipelines.features.towers import run_towers
from cirray.pipelines.texts.config import GeneratorRun
from cirray.pipelines.texts.generator import run_generator
from cirray.pipelines.texts.generator_inputs import encode_live
from cirray.types import Pair

WORKERS = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "ray_workers.py"))

pytestmark = pytest.mark.integration
EVERY, STEPS = 10, 80
# Adam's first steps divide small gradients by themselves: a larger epsilon keeps rounding from growing.
QUICK = (
    "features=[]", "alignment=captions", "zero_shot=false", "evaluate_pairs=4", "generator.settings.tuning=lora",
    "alignment_training={steps: 2, batch: 8, optimizer: {lr: 1e-4, eps: 1e-5}}",
    "training={steps: 80, batch: 4, log_every: 20, checkpoint_every: 10, optimizer: {lr: 1e-4, eps: 1e-5}}",
)  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    root = tmp_path_factory.mktemp("home")
    sizes = {"labelled_families": 4, "heldout_families": 2, "pool_families": 0, "gallery_references": 0}
    write_world(ShapesConfig(**sizes), root / "world")
    run_towers(load_config(TowersRun, None, [f"out={root / 'towers'}"]))
    return root


def settings(home, out, *more):
    places = (f"towers={home / 'towers'}", f"data.folder.root={home / 'world'}", f"out={home / out}")
    return load_config(GeneratorRun, None, [*QUICK, *places, *more])


def kill_a_worker(out):
    """When the second loop has left a checkpoint or two behind, and Ray has had a moment to hear of them."""
    end = time.monotonic() + 550
    while time.monotonic() < end:
        steps = [json.loads(item.read_text())["step"] for item in Path(f"{out}.partial/ray").glob("answers-*.json")]
        if steps and steps[0] > EVERY:
            time.sleep(0.5)
            return WORKERS["train_workers"]()[-1].send_signal(signal.SIGKILL)
        time.sleep(0.02)


@pytest.mark.timeout(600)
def test_two_workers_one_of_them_killed_train_the_generator_that_one_process_trains(home, ray_config, caplog):
    here = run_generator(settings(home, "here"))
    killer = threading.Thread(target=kill_a_worker, args=(home / "there",), daemon=True)
    killer.start()
    run = settings(home, "there", "ray.num_workers=2")
    with caplog.at_level(logging.INFO, "cirray"):
        there = run_generator(run)
    killer.join(timeout=10)
    restarts = re.findall(r"a worker was lost; training goes on from step (\d+)", caplog.text)
    assert len(restarts) == 1 and int(restarts[0]) % EVERY == 0 and 0 < int(restarts[0]) < STEPS
    assert there.stage_key["inputs"] == here.stage_key["inputs"] and there.counts == here.counts
    assert there.metrics["alignment"]["loss"] == pytest.approx(here.metrics["alignment"]["loss"], rel=1e-3)
    for name in ("train_loss", "token_loss"):
        assert there.metrics[name] == pytest.approx(here.metrics[name], rel=2e-3)
    assert sorted(item.name for item in (home / "there").iterdir()) == sorted(
        item.name for item in (home / "here").iterdir()
    )
    dataset, tower = read_dataset(run.data), load_vision_tower(home / "towers" / "vision")
    row = dataset.split("val")[0]
    pair = Pair(row.triplet_id, row.reference_id, row.target_id)
    features = encode_live(tower, dataset, [row.reference_id, row.target_id], run)
    made, told = (load_generator(home / name).generate([pair], features)[0] for name in ("there", "here"))
    assert made.text and made.text == told.text
    assert run_generator(run) == there
