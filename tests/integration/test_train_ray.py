"""Ray Train: DeepSpeed on two workers equals this process; killed workers and killed drivers cost one interval."""

import json
import logging
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import load_file, save_file

from cirray.core.config import validate
from cirray.core.errors import CirrayError, ConfigError
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.train import run_train

pytestmark = pytest.mark.integration
FIXTURES = Path(__file__).parents[1] / "fixtures"
TINY = runpy.run_path(str(FIXTURES / "tiny_training.py"))
WORKERS = runpy.run_path(str(FIXTURES / "ray_workers.py"))
STEPS, EVERY = 140, 20
OPTIMIZER = {"lr": 2e-4, "eps": 1e-5}
TRAINING = {
    "steps": STEPS, "batch": 8, "log_every": 20, "checkpoint_every": EVERY, "seed": 1, "optimizer": OPTIMIZER
}  # fmt: skip


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    return {**TINY["make"](tmp_path_factory.mktemp("t")), "training": TRAINING}


@pytest.fixture(scope="module")
def here(fields, tmp_path_factory):
    """The same run in this process."""
    out = tmp_path_factory.mktemp("here") / "c"
    return history_of(out, run_train(validate(TrainRun, {**fields, "out": str(out)})))


def history_of(out, manifest):
    assert manifest.counts["steps"] == STEPS
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def check_equal(found, wanted):
    """Same steps, and losses within a thousandth (reduction order differs, and Adam amplifies it step by step)."""
    assert [row["step"] for row in found] == [row["step"] for row in wanted]
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in wanted], rel=1e-3)
    assert found[-1]["val_R@10"] == pytest.approx(wanted[-1]["val_R@10"], abs=0.1)


def reached(out, step):
    """Has the run written this step into its status_file?"""
    for status_file in Path(f"{out}.partial/ray").glob("train-*.json"):
        return json.loads(status_file.read_text())["step"] >= step
    return False


def wait_for(condition, seconds=280):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing after {seconds} s; resources: {ray.is_initialized()}"
        time.sleep(0.02)


def kill_a_worker(out):
    wait_for(lambda: reached(out, 40))
    WORKERS["train_workers"]()[-1].send_signal(signal.SIGKILL)


@pytest.mark.timeout(600)
def test_deepspeed_on_two_workers_survives_a_killed_one_and_ends_like_torch_in_one_process(
    fields, here, ray_config, tmp_path, caplog
):
    out = tmp_path / "c"
    training = {**TRAINING, "engine": "deepspeed", "zero_stage": 2}
    run = validate(TrainRun, {**fields, "training": training, "out": str(out), "ray": {"num_workers": 2}})
    killer = threading.Thread(target=kill_a_worker, args=(out,), daemon=True)
    killer.start()
    with caplog.at_level(logging.INFO, "cirray"):
        manifest = run_train(run)
    killer.join(timeout=10)
    check_equal(history_of(out, manifest), here)
    restarts = re.findall(r"a worker was lost; training goes on from step (\d+)", caplog.text)
    assert len(restarts) == 1 and int(restarts[0]) % EVERY == 0 and 0 < int(restarts[0]) < STEPS
    assert not (out / "ray").exists() and (out / "model" / "vision").is_dir()
    assert ray.util.placement_group_table() == {} or all(
        group["state"] == "REMOVED" for group in ray.util.placement_group_table().values()
    )


@pytest.mark.timeout(600)
def test_a_terminated_driver_says_so_and_resumes_from_its_last_checkpoint(fields, here, ray_config, tmp_path, caplog):
    out = tmp_path / "c"
    settings = {**fields, "out": str(out), "ray": {"num_workers": 1, "num_cpus": 3}}
    (tmp_path / "run.yaml").write_text(validate(TrainRun, settings).to_yaml())
    driver = subprocess.Popen(
        [sys.executable, "-m", "cirray", "finetune", str(tmp_path / "run.yaml")], start_new_session=True,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_for(lambda: reached(out, 40) or driver.poll() is not None)
        driver.terminate()
        said = driver.communicate(timeout=60)[1]
    finally:
        driver.kill()
    assert driver.returncode == 143 and said.splitlines()[-1].startswith("terminated; nothing half-done")
    assert "Traceback" not in said and not out.exists()
    with caplog.at_level(logging.INFO, "cirray"):
        manifest = run_train(validate(TrainRun, settings))
    check_equal(history_of(out, manifest), here)
    went_on = re.findall(r"(?<!lost; )training goes on from step (\d+)", caplog.text)
    assert len(went_on) == 1 and int(went_on[0]) >= EVERY


def test_more_workers_than_the_cluster_holds_are_refused(fields, ray_config, tmp_path):
    ray = {"num_workers": 8, "cpus_per_worker": 100}
    run = validate(TrainRun, {**fields, "out": str(tmp_path / "c"), "ray": ray})
    with pytest.raises(ConfigError, match=r"8 training workers need 800 CPUs, the cluster has \d+"):
        run_train(run)


@pytest.mark.timeout(300)
def test_two_workers_without_features_encode_their_own_images_from_relative_paths_and_end_as_with_the_cache(
    fields, ray_config, monkeypatch
):
    """Relative paths mean the driver's folder to workers, too."""
    root = Path(fields["towers"]).parent
    monkeypatch.chdir(root)
    training = {**TRAINING, "steps": 20, "log_every": 5, "checkpoint_every": None}
    run_train(validate(TrainRun, {**fields, "training": training, "out": str(root / "cached")}))
    near = {"data": {"folder": {"root": "world"}}, "features": [], "towers": "towers", "out": "live"}
    run_train(validate(TrainRun, {**fields, **near, "training": training, "ray": {"num_workers": 2}}))
    rows = [
        [json.loads(line)["loss"] for line in (root / name / "history.jsonl").read_text().splitlines()]
        for name in ("cached", "live")
    ]
    assert len(rows[0]) == 4 and rows[1] == pytest.approx(rows[0], rel=1e-3)


@pytest.mark.usefixtures("ray_config")
def test_a_worker_s_error_in_words_is_told_once_and_not_retried(fields, tmp_path):
    start = tmp_path / "start"
    training = {**TRAINING, "steps": 1, "log_every": 1, "checkpoint_every": None}
    run_train(validate(TrainRun, {**fields, "training": training, "out": str(start)}))
    weights = load_file(start / "model" / "model.safetensors")
    save_file({**weights, "prompts": torch.full_like(weights["prompts"], torch.nan)}, start / "model/model.safetensors")
    run = {**fields, "init": str(start), "encoder": {}, "training": training, "out": str(tmp_path / "out")}
    with pytest.raises(CirrayError, match="prompts"):
        run_train(
            validate(TrainRun, {**run, "ray": {"num_workers": 2}}),
            reports=[WORKERS["CountFailures"](str(tmp_path / "n"))],
        )
    assert (tmp_path / "n").read_text() == "failed\n"
