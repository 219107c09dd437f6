"""The index built by a pool of Ray actors is the index built in this process."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.pipelines.cluster.config import PoolConfig
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.index import run_index

pytestmark = pytest.mark.integration
TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fixtures" / "tiny_service.py")))


def test_actors_build_the_same_index_as_this_process(tmp_path):
    tiny = TINY.make(tmp_path / "tiny", shard=5)
    run = IndexRun(
        checkpoint=tiny.checkpoint, images=str(tiny.images), out=str(tmp_path / "by-actors"), shard=5,
        pool=PoolConfig(size=2),
    )  # fmt: skip
    manifest = run_index(run)
    assert manifest.counts == tiny.manifest.counts
    files = manifest.extra["files"]
    assert files == tiny.manifest.extra["files"]
    assert np.load(tmp_path / "by-actors" / "tokens.npy").shape[0] == 24
