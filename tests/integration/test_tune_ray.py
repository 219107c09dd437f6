"""Ray Tune: a sweep in trial processes that goes on after a kill, and one whose trials start workers."""

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from cirray.core.config import validate
from cirray.pipelines.training.config import TuneRun
from cirray.pipelines.training.sweep import plan_trials
from cirray.pipelines.training.tune import run_tune

pytestmark = pytest.mark.integration
TINY = runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "tiny_training.py"))
BEST_FIRST = 1
SPACE = {"training.optimizer.lr": {"grid": [1e-2, 1e-5, 1e-6]}}


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    base = TINY["make"](tmp_path_factory.mktemp("t"))
    return {**base, "init": "", "reverse_texts": [], "validation": {"every": 10}}


def sweep(fields, out, steps, **changes):
    training = {**fields["training"], "steps": steps, "log_every": 10, "checkpoint_every": 10}
    return validate(TuneRun, {"base": {**fields, "training": training}, "space": SPACE, "out": str(out), **changes})


def nothing_left():
    groups = [item for item in ray.util.placement_group_table().values() if item["state"] != "REMOVED"]
    return groups == [] and ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]


def wait_for(condition, seconds=280):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_a_sweep_ended_by_ctrl_c_publishes_nothing_and_runs_no_finished_trial_again(fields, ray_config, tmp_path):
    out = tmp_path / "sweep"
    run = sweep(fields, out, 200, max_concurrent=1, scheduler="none", ray={"num_cpus": 2})
    (tmp_path / "sweep.yaml").write_text(run.to_yaml())
    driver = subprocess.Popen(
        [sys.executable, "-m", "cirray", "tune", str(tmp_path / "sweep.yaml")], start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    trials = Path(f"{out}.partial/trials")
    try:
        wait_for(
            lambda: (
                driver.poll() is not None
                or (list(trials.glob("*/manifest.json")) and list(trials.glob("*.partial/checkpoints/step-*")))
            )
        )
        driver.send_signal(signal.SIGINT)
        said = driver.communicate(timeout=60)[1]
    finally:
        driver.kill()
    assert driver.returncode == 130 and said.splitlines()[-1].startswith("interrupted; nothing half-done")
    assert "Traceback" not in said
    before = {path.parent.name: path.stat().st_mtime_ns for path in trials.glob("*/manifest.json")}
    assert 0 < len(before) < 3 and not out.exists()
    manifest = run_tune(run)
    assert manifest.counts == {"trials": 3, "done": 3, "stopped": 0, "failed": 0}
    for name, written in before.items():
        assert (out / "trials" / name / "manifest.json").stat().st_mtime_ns == written
    rows = json.loads((out / "results.json").read_text())["trials"]
    assert [row["metric"] for row in rows] == sorted((row["metric"] for row in rows), reverse=True)
    for row in rows:
        history = [json.loads(line) for line in (Path(row["place"]) / "history.jsonl").read_text().splitlines()]
        assert [item["step"] for item in history] == list(range(10, 201, 10))
        assert history[-1]["val_R@1"] == pytest.approx(row["metric"])
    assert (out / "best.txt").read_text().startswith("training.optimizer.lr=")
    assert (out / "table.txt").read_text().startswith("rank") and (out / "sweep.png").stat().st_size > 1000
    assert nothing_left()


@pytest.mark.timeout(600)
def test_asha_stops_the_worse_of_two_trials_that_train_on_workers_and_leaves_nothing_behind(
    fields, ray_config, tmp_path
):
    changes = {"trials": "train", "max_concurrent": 1, "reduction_factor": 2, "grace_steps": 10, "metric": "loss"}
    space = {"training.optimizer.lr": {"grid": [1e-5, 1e-2]}}
    base = {**fields, "ray": {"num_workers": 1}}
    run = sweep(base, tmp_path / "sweep", 40, mode="min", space=space, seed=BEST_FIRST, **changes)
    assert next(iter(plan_trials(run).values())) == {"training.optimizer.lr": 1e-2}
    manifest = run_tune(run)
    assert manifest.counts == {"trials": 2, "done": 1, "stopped": 1, "failed": 0}
    assert manifest.metrics["training.optimizer.lr"] == 1e-2
    rows = json.loads((tmp_path / "sweep" / "results.json").read_text())["trials"]
    assert [row["status"] for row in rows] == ["done", "stopped"] and rows[1]["step"] < 40
    wait_for(nothing_left, 60)
