"""A driver killed with SIGKILL, twice: the last run finds what the others finished, nothing is lost or doubled."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
pytestmark = [pytest.mark.integration, pytest.mark.timeout(480)]
PAIRS, PART = 400, 20


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES))
    return importlib.import_module("tiny_pipeline")


def start(root):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(FIXTURES)}
    command = [sys.executable, str(FIXTURES / "generate_driver.py"), str(root / "run.json")]
    log = (root / "driver.log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def finished(root):
    return len(list((root / "out.partial" / "data").glob("part-*.parquet")))


def wait_for(condition, seconds=150):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def test_a_killed_driver_costs_at_most_the_parts_under_way(tiny, tmp_path):
    from cirray.triplets.store import TripletStore

    (tmp_path / "calls").mkdir()
    tiny.write_features(tmp_path / "features", tiny.random_vectors(PAIRS + 1))
    tiny.write_pairs_artifact(tmp_path / "pairs", tiny.chain(PAIRS))
    tiny.write_generator(tmp_path / "generator", sleep=0.01, calls=str(tmp_path / "calls"))
    run = {
        "pairs": str(tmp_path / "pairs"), "features": [str(tmp_path / "features")], "part_rows": PART,
        "generator": tiny.written(tmp_path / "generator"), "out": str(tmp_path / "out"),
        "ray": {"object_store_memory": 150_000_000, "no_progress_timeout_s": 60},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run))
    for goal in (4, 11):
        driver = start(tmp_path)
        wait_for(lambda goal=goal, driver=driver: finished(tmp_path) >= goal or driver.poll() is not None)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        durable = finished(tmp_path)
        assert goal <= durable < PAIRS // PART and not (tmp_path / "out").exists()
        print(f"killed the driver with {durable} of {PAIRS // PART} parts durable")
    done = start(tmp_path)
    assert done.wait(timeout=120) == 0, (tmp_path / "driver.log").read_text()[-3000:]
    store = TripletStore.open(tmp_path / "out")
    ids = store.table().column("triplet_id").to_pylist()
    assert len(ids) == len(set(ids)) == 2 * PAIRS and len(store.rejected()) == 0
    served = sum(int(path.read_text()) for path in (tmp_path / "calls").iterdir())
    print(f"{served} pairs served for {PAIRS}")
    assert PAIRS <= served <= PAIRS + 2 * 4 * PART
