"""The order of all tests, and which of them share a process."""

import os

import pytest

os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own 15 leaves its workers nothing beside other tests
FIRST = ("integration", "parity", "browser")
"""Those that start clusters, ranks and browsers wait for most of their time: the others fill the cores meanwhile."""
CLUSTERS = (("test_story", "test_train_ray", "test_tune_ray"), ("test_generator_ray", "test_ray_data"))
"""Files whose tests share a Ray cluster (`ray_config`). More at once would only take each other's cores."""


def pytest_collection_modifyitems(items):
    """Long files first, so that no worker is left alone with one at the end."""
    items.sort(key=lambda item: next((at for at, name in enumerate(FIRST) if name in item.path.parts), len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file's tests share their fixtures, so they go to one process; those of one cluster go there together."""
    from xdist.scheduler import LoadFileScheduling

    class ByFileOrCluster(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return next((names[0] for names in CLUSTERS if any(name in file for name in names)), file)

    return ByFileOrCluster(config, log)
