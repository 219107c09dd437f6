"""One Ray cluster for all tests that train or stream on one; `tests/conftest.py` gives them all to one process."""

import os
from pathlib import Path

import pytest

from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import cluster

FIXTURES = str(Path(__file__).resolve().parents[1] / "fixtures")


@pytest.fixture(scope="session")
def ray_config(request):
    """The cluster's configuration, which stages join it with. Its workers can import the fixtures.

    With the dashboard, which trials that are stopped early need.
    """
    config = RayConfig(object_store_memory=150_000_000, no_progress_timeout_s=60, dashboard=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FIXTURES)
        patch.setenv("PYTHONPATH", FIXTURES, prepend=os.pathsep)
        with cluster(config) as info:
            assert info.private and info.own and info.cpus >= 8
            request.config.shared_cluster = True
            yield config
