"""A gallery cut into shards and worked off by Ray tasks gives what this process gives."""

import json

import numpy as np
import pytest

from cirray.core.errors import DataError
from cirray.data.benchmark import Protocol
from cirray.evaluation.plan import make_plan
from cirray.evaluation.vectors import rank_vectors
from cirray.features.vector_files import read_vectors
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.shards import ray_runner
from cirray.types import Query

pytestmark = pytest.mark.integration
IDS = [f"im-{n:04d}" for n in range(600)]


def save(folder, name, ids, vectors):
    np.save(folder / f"{name}.npy", vectors)
    (folder / f"{name}.ids.json").write_text(json.dumps(list(ids)))
    return read_vectors(folder / f"{name}.npy")


def test_ray_tasks_count_what_this_process_counts_and_their_errors_arrive(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.integers(-2, 3, (600, 4, 5)).astype(np.float16)
    shards = [save(tmp_path, f"part{n}", IDS[n::2], vectors[n::2]) for n in range(2)]
    queries = [Query(f"q{n}", IDS[n], "text", (IDS[3 * n + 1], IDS[n + 7])) for n in range(40)]
    asked = save(tmp_path, "queries", [q.query_id for q in queries], rng.integers(-2, 3, (40, 5)).astype(np.float32))
    plan = make_plan(queries, IDS, Protocol("toy"))
    expected = rank_vectors(plan, asked, shards)
    broken = vectors[1::2].copy()
    broken[9] = np.nan
    bad = [shards[0], save(tmp_path, "broken", IDS[1::2], broken)]
    with ray_runner(RayConfig(num_cpus=2), least_rows=1) as run:
        found = rank_vectors(plan, asked, shards, parts=3, run=run)
        with pytest.raises(DataError, match=f"gallery image '{IDS[19]}' holds NaN"):
            rank_vectors(plan, asked, bad, run=run)
    assert found.verdicts == expected.verdicts and found.rankings == expected.rankings
