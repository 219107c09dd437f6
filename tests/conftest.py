"""The order of all tests, and which of them share a process."""

import gc
import os

import pytest

from cirray.core.environ import collect_seldom

collect_seldom()
os.environ.setdefault("RAY_worker_niceness", "0")
"""Ray's own is 15: the longest files, which all run on one cluster, would wait until the others are done."""
BEHIND = 3
"""Niceness of the processes beside that cluster's, the longest way through the tests."""
FIRST = ("integration", "parity", "browser")
"""Those that start clusters, ranks and browsers wait for most of their time: the others fill the cores meanwhile."""
ONE_CLUSTER = ("test_generator_ray", "test_ray_data", "test_story", "test_train_ray", "test_tune_ray")
"""Files whose tests share one Ray cluster (`ray_config`). Several at once would only take each other's cores."""


def pytest_collection_modifyitems(items):
    """Long files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: next((at for at, name in enumerate(FIRST) if name in item.path.parts), len(FIRST)))


def pytest_collection_finish():
    """What all modules hold is looked through no more."""
    gc.freeze()


def pytest_runtest_setup(item):
    """A process that does not begin with the cluster's tests stands behind it. The shared cluster ends before another
    file's test, which would find Ray joined in its process.
    """
    if not hasattr(item.config, "begun"):
        item.config.begun = item.path.stem
        beside = item.path.stem not in ONE_CLUSTER and any(
            other.path.stem in ONE_CLUSTER for other in item.session.items
        )
        if beside and hasattr(item.config, "workerinput"):
            os.nice(BEHIND)
    if getattr(item.config, "shared_cluster", False) and item.path.stem not in ONE_CLUSTER:
        import ray

        item.config.shared_cluster = False
        ray.shutdown()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests share their fixtures, so they go to one process; those of one cluster go there together."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrCluster(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "one cluster" if any(name in file for name in ONE_CLUSTER) else file

    return ByFileOrCluster(config, log)
