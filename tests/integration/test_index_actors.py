"""A pool of Ray actors builds the index that this process builds, and never waits for ever."""

import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.core.errors import ConfigError
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.resources import cluster
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]
TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "tiny_service.py")))


@pytest.fixture(scope="module")
def ray_config():
    config = RayConfig(object_store_memory=150_000_000, no_progress_timeout_s=60)
    with cluster(config):
        yield config


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TINY.make(tmp_path_factory.mktemp("tiny"), shard=5)


def run_of(tiny, out, ray, **fields):
    settings = {"checkpoint": tiny.checkpoint, "images": str(tiny.images), "shard": 5, "pool": PoolConfig(size=2)}
    return IndexRun(**{**settings, "out": str(out), "ray": ray, **fields})


def test_actors_build_the_same_index_as_this_process(tiny, ray_config, tmp_path):
    manifest = run_index(run_of(tiny, tmp_path / "by-actors", ray_config))
    assert manifest.counts == tiny.manifest.counts and manifest.digest == tiny.manifest.digest
    files = manifest.extra["files"]
    assert files == tiny.manifest.extra["files"]
    assert np.load(tmp_path / "by-actors" / "tokens.npy").shape[0] == 24


def test_actors_that_the_cluster_can_never_hold_are_refused_at_once(tiny, ray_config, tmp_path):
    begin = time.monotonic()
    with pytest.raises(ConfigError, match="One actor needs 1000 CPUs .pool.cpus., the cluster has"):
        run_index(run_of(tiny, tmp_path / "out", ray_config, pool=PoolConfig(size=1, cpus=1000)))
    assert time.monotonic() - begin < 30 and not (tmp_path / "out.partial").exists()
