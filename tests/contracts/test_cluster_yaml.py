"""`cluster.yaml` is what Ray's own autoscaler accepts, and `runtime_env.yaml` sends what a job needs; offline."""

import copy
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.dashboard.modules.dashboard_sdk import parse_runtime_env_args

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


def sent(folder, target):
    """Names in the package that `ray job submit --runtime-env runtime_env.yaml` makes of a folder."""
    said = parse_runtime_env_args(runtime_env=str(ROOT / "runtime_env.yaml"))
    assert said["working_dir"] == "."
    excludes = [*get_runtime_env_default_excludes(), *said["excludes"]]
    create_package(str(folder), target, include_gitignore=True, excludes=excludes)
    return zipfile.ZipFile(target).namelist()


def test_a_job_is_sent_code_and_recipes_that_run_and_nothing_else(tmp_path):
    names = sent(ROOT, tmp_path / "sent.zip")
    assert {name.split("/")[0] for name in names if "/" in name} == {"cirray", "jobs", "serve_configs"}
    assert (tmp_path / "sent.zip").stat().st_size < 8_000_000
    zipfile.ZipFile(tmp_path / "sent.zip").extractall(tmp_path / "there")
    command = [sys.executable, "jobs/check.py", "jobs/configs/shapes/check.yaml", "triplets=nowhere"]
    paths = {"PYTHONPATH": str(tmp_path / "there"), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path / "there", env=paths, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "'nowhere'" in done.stderr, done.stderr[-2000:]


def test_what_was_made_in_a_folder_is_not_sent_with_a_job(tmp_path):
    kept = ("recipe.yaml", "mine/plugin.py")
    made = (".git/objects/x", ".venv/lib/x", ".venv-latest/x", "runs/demo/x", "mine/runs/x", "out.partial/x")
    for name in (*kept, *made):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("x")
    assert sorted(sent(tmp_path / "mine", tmp_path / "sent.zip")) == sorted(kept)
