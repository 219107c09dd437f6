"""Run the parts of a gallery as Ray tasks; `cirray.evaluation.vectors.in_process` is the simple twin."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import ray

from cirray.evaluation.chunked import Question
from cirray.evaluation.vectors import Job, Runner, run_job
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.resources import cluster

LEAST_ROWS = 20_000
"""Below this size of a gallery, scoring takes less time than starting a cluster."""


@contextmanager
def ray_runner(
    config: RayConfig, cpus: float = 1.0, gpus: float = 0.0, least_rows: int = LEAST_ROWS
) -> Iterator[Runner]:
    """Runner for `rank_vectors` that hands every part to a Ray task; a task that dies with its node runs again.

    A private cluster starts with the first gallery of `least_rows` or more and ends with the block; smaller ones run in
    this process.
    """
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=2)(run_job)
    with ExitStack() as stack:
        started = list[Any]()

        def run(question: Question, jobs: Sequence[Job], scores_P: np.ndarray | None) -> list[Any]:
            if sum(len(job.rows) for job in jobs) < least_rows:
                return [run_job(question, job, scores_P) for job in jobs]
            if not started:
                started.append(stack.enter_context(cluster(config)))
            shared, scores = ray.put(question), ray.put(scores_P)
            return ray.get([task.remote(shared, job, scores) for job in jobs])

        yield run
