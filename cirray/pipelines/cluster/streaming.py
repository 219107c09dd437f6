"""Parts through steps: by Ray Data over a pool of actors, or one after another in this process (its twin).

A *part* is one Arrow table, one Ray Data block, and one output shard. Ray Data would merge tiny rows of ids into one
block, and so one task without anything to resume; here blocks are the parts and stay whole.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.core import errors, storage, written
from cirray.core.contents import MARKER
from cirray.core.errors import ArtifactError, CirrayError
from cirray.core.refusals import refusal
from cirray.pipelines.cluster.answers import signs
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.patience import patient

Columns = dict[str, np.ndarray]
_TASK_CPUS = 0.5
_FAILURE, _KIND, _TOOK, _WRITTEN = "cirray_failure", "cirray_failure_kind", "cirray_took", "cirray_written"


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    `function` maps a part's columns to columns, or to the part's figures. With a `pool` it is a class, made once per
    actor from `settings`; without, it is a function called with them in up to `tasks` processes. The figure `asked`
    tells how many of the rows were work, where the others' results were known before or they could not be read.
    """

    function: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    pool: PoolConfig | None = None
    tasks: int = 1


class Worker:
    """A step in one process: takes whole parts, and gives answers that say which part they belong to."""

    def __init__(self, step: Step, work_uri: str = "") -> None:
        """Make the step; a machine that does not see `work_uri` is refused before anything is loaded.

        Raises ArtifactError when the machines share no disk.
        """
        if step.pool is None:
            self._call = partial(step.function, **step.settings)
            return
        if work_uri:
            check_shared(storage.join(work_uri, MARKER))
        self._call = step.function(**step.settings)
        limit_torch(step.pool.threads)

    def __call__(self, columns: Columns) -> Columns:
        """Do the step for one part."""
        part = whole_part(columns)
        answer = {name: np.atleast_1d(value) for name, value in self._call(columns).items()}
        rows = len(next(iter(answer.values())))
        return {**answer, "part": np.full(rows, part), "part_rows": np.full(rows, rows)}


def stream(
    parts: Sequence[pa.Table], steps: Sequence[Step], config: RayConfig, part_bytes: int = 0, work_uri: str = ""
) -> Iterator[Columns]:
    """Send every part (one table) through all steps, in order. `part_bytes` is the largest size of a part between two
    steps, below which Ray Data does not split it; every machine must see `work_uri`.

    Yields:
        What the last step returns, in any order, with the number of its part.

    Raises CirrayError: the first one that a step raised, also on another machine; ConfigError when no further part is
    finished within the hang guard's time, or an actor asks for more than the cluster has.
    """
    if not parts:
        return
    if config.enabled:
        yield from _by_ray(parts, steps, config, part_bytes, work_uri)
    else:
        yield from in_process(parts, steps, work_uri)


def in_process(parts: Sequence[pa.Table], steps: Sequence[Step], work_uri: str = "") -> Iterator[Columns]:
    """The twin without Ray: the same callables, one part after another."""
    workers = [Worker(step, work_uri) for step in steps]
    for part in parts:
        columns = to_columns(part)
        for worker in workers:
            columns = worker(columns)
        yield columns


def to_columns(table: pa.Table) -> Columns:
    """A table as a dict of arrays, a step's input."""
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def whole_part(columns: Columns) -> int:
    """Number of the part that the columns are.

    Raises ArtifactError when they are not exactly one part: it was split or merged on its way, and must not be written.
    """
    numbers, sizes = np.unique(columns["part"]), np.unique(columns["part_rows"])
    if len(numbers) != 1 or len(sizes) != 1 or int(sizes[0]) != len(columns["part"]):
        raise ArtifactError(
            f"A step was given {len(columns['part'])} rows of parts {numbers.tolist()}, each of {sizes.tolist()} rows. "
            "Parts must travel whole; make them smaller (shard_rows, part_rows)."
        )
    return int(numbers[0])


def check_shared(marker_uri: str) -> None:
    """Refuse to work on a machine that does not see the stage's folder.

    Raises ArtifactError naming the URI and the remedy.
    """
    if not storage.exists(marker_uri):
        raise ArtifactError(
            f"A worker cannot see {marker_uri!r}, which the driver has written: the machines of this cluster do not "
            "share that disk. Use a URI that every machine reaches (s3://..., gs://..., or a shared mount)."
        )


def limit_torch(threads: int) -> None:
    """Set this process's number of threads for matrix products, if torch is loaded."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


class GuardedWorker:
    """A `Worker` as Ray Data's actor or task: errors of this package come back as values.

    Ray would wrap them, print its stack traces and, for an error while the actor starts, forget their type.
    """

    def __init__(self, step: Step, work_uri: str = "") -> None:
        """Make the worker; an error is kept for the first call."""
        begin = time.monotonic()
        self._failure: Columns | None = None
        try:
            self._worker = Worker(step, work_uri)
        except Exception as error:  # noqa: BLE001 - raised again where it is not told
            self._failure = _failure(error)
        self._loading = time.monotonic() - begin

    def __call__(self, columns: Columns) -> Columns:
        """The step's answer, or its failure, or the failure of an earlier step."""
        if self._failure or _FAILURE in columns:
            return self._failure or columns
        begin = time.monotonic()
        try:
            answer = self._worker({name: value for name, value in columns.items() if name not in (_TOOK, _WRITTEN)})
        except Exception as error:  # noqa: BLE001 - as above
            return _failure(error)
        rows = len(columns["part"])
        asked = int(answer["asked"][0]) if "asked" in answer else rows
        took = 0.0
        if asked:
            took, self._loading = self._loading + (time.monotonic() - begin) * rows / asked, 0.0
        told, made = json.dumps(written.hand_over()), len(answer["part"])
        return {**answer, _TOOK: np.full(made, took), _WRITTEN: np.full(made, told, dtype=object)}


def _guarded_task(columns: Columns, step: Step) -> Columns:
    return GuardedWorker(step)(columns)


def _failure(error: Exception) -> Columns:
    """An error of this package, or a disk's that refuses, as a value. Raises the error again: any other."""
    told = error if isinstance(error, CirrayError) else refusal(error)
    if told is None:
        raise error
    return {_FAILURE: np.array([str(told)], dtype=object), _KIND: np.array([type(told).__name__], dtype=object)}


def _raise_failure(columns: Columns) -> None:
    if _FAILURE in columns:
        kind = getattr(errors, str(columns[_KIND][0]), errors.DataError)
        raise kind(str(columns[_FAILURE][0]))


def _took(columns: Columns) -> float:
    return float(columns[_TOOK][0]) if _TOOK in columns else 0.0


def _by_ray(
    parts: Sequence[pa.Table], steps: Sequence[Step], config: RayConfig, part_bytes: int, work_uri: str
) -> Iterator[Columns]:
    import ray.data

    from cirray.pipelines.cluster.resources import check_pool, cluster, data_context

    with cluster(config) as info, data_context(config, 2 * part_bytes):
        for step in steps:
            check_pool(step.pool, config, info)
        # `from_arrow` would run a task for each part, in a process for each CPU
        data: ray.data.Dataset = ray.data.from_blocks(list(parts))
        for step in steps:
            data = data.map_batches(batch_size=None, batch_format="numpy", **_arguments(step, len(parts), work_uri))
        answers = data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
        for columns in patient(answers, config.no_progress_timeout_s, signs(work_uri) if work_uri else None, _took):
            _raise_failure(columns)
            written.learn(json.loads(columns[_WRITTEN][0]))
            yield {name: value for name, value in columns.items() if name not in (_TOOK, _WRITTEN)}


def _arguments(step: Step, parts: int, work_uri: str) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    pool = step.pool
    if pool is None:
        compute = TaskPoolStrategy(size=min(step.tasks, parts))
        return {"fn": _guarded_task, "fn_kwargs": {"step": step}, "compute": compute, "num_cpus": _TASK_CPUS}
    least, most = (min(bound, parts) for bound in pool.bounds)
    return {
        "fn": GuardedWorker,
        "fn_constructor_kwargs": {"step": step, "work_uri": work_uri},
        "compute": ActorPoolStrategy(min_size=least, max_size=most, max_tasks_in_flight_per_actor=2),
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus or None,
    }
