"""Two nodes that share no disk, only an S3 server: every stage reads and writes URIs, each node has its own cache."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]


def test_a_cluster_without_a_shared_disk_writes_what_one_machine_writes(tmp_path):
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join((str(FIXTURES), str(FIXTURES.parents[1]))),
        "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
    }  # fmt: skip
    environment.pop("RAY_AUTH_TOKEN", None)
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, str(FIXTURES / "two_nodes_driver.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=270)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, done.stderr[-3000:]
    result = json.loads(lines[0].removeprefix("RESULT "))
    assert result["nodes"] == 2 and result["workers"] >= 1
    assert result["two_nodes"] == result["here"]
    assert result["here"]["counts"][0] == {"images": 29, "rejected": 1}
    assert result["caches"]["cache-worker"] == ["features", "generator", "towers"]
    assert result["caches"]["cache-driver"] == ["features", "pairs", "towers"]
    # a pool of one to three, of which one machine holds one, grew when another joined
    assert result["grown"]["actors"] == 2 and sum(result["grown"]["counts"].values()) == 60, result["grown"]
