"""`cluster.yaml` is a file that Ray's own autoscaler accepts, offline."""

import copy
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def prepared(cluster):
    """As `ray up` sees it: merged with the provider's defaults."""
    return prepare_config(copy.deepcopy(cluster))


def test_ray_accepts_it(prepared):
    validate_config(prepared)


def test_ray_would_refuse_an_unknown_field_and_a_missing_head(cluster):
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**copy.deepcopy(cluster), "worker_count": 3}))
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config({**copy.deepcopy(cluster), "head_node_type": "boss"}))


def test_it_has_a_head_without_work_and_growing_cpu_and_gpu_groups(prepared):
    kinds = prepared["available_node_types"]
    assert set(kinds) == {"head", "cpu", "gpu"} and prepared["head_node_type"] == "head"
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert all(kinds[name]["min_workers"] == 0 < kinds[name]["max_workers"] for name in ("cpu", "gpu"))
    assert sum(kinds[name]["max_workers"] for name in ("cpu", "gpu")) <= prepared["max_workers"]


def test_every_node_gets_the_token_and_ray_starts_closed(cluster):
    assert cluster["file_mounts"]["~/.ray/auth_token"]
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert not any(re.search(r"--dashboard-host=0\.0\.0\.0", line) for line in starts)


def test_mounted_folders_exist(cluster):
    assert (ROOT / cluster["file_mounts"]["~/cirray"] / "pyproject.toml").is_file()
