"""Parts through steps: by Ray Data over a pool of actors, or one after another in this process (its twin).

A *part* is one Arrow table, one Ray Data block, and one output shard. Rows that carry only ids are tiny, and Ray Data
would merge a whole job of them into one block, hence one task and nothing to resume; here blocks are the parts and
stay whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.core import errors, storage
from cirray.core.errors import ArtifactError, CirrayError
from cirray.pipelines.cluster.config import PoolConfig, RayConfig

Columns = dict[str, np.ndarray]
_TASK_CPUS = 0.5
_FAILURE, _KIND = "cirray_failure", "cirray_failure_kind"


@dataclass(frozen=True)
class Step:
    """One step of a pipeline.

    `function` maps columns to columns. With a `pool` it is a class, made once per actor from `settings`; without, it is
    a function called with them in up to `tasks` processes.
    """

    function: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    pool: PoolConfig | None = None
    tasks: int = 1

    def local(self) -> Callable[[Columns], Columns]:
        """The step as one callable in this process."""
        return self.function(**self.settings) if self.pool else partial(self.function, **self.settings)


def stream(
    parts: Sequence[pa.Table], steps: Sequence[Step], config: RayConfig, part_bytes: int = 0
) -> Iterator[Columns]:
    """Send every part through all steps.

    Args:
        parts: one table per part.
        steps: what happens to a part, in order.
        config: Ray or no Ray.
        part_bytes: largest size of a part between two steps, so that Ray Data does not split it.

    Yields:
        What the last step returns, in any order.

    Raises:
        CirrayError: the first one that a step raised, also on another machine.
    """
    if not parts:
        return
    if config.enabled:
        yield from _by_ray(parts, steps, config, part_bytes)
    else:
        yield from in_process(parts, steps)


def in_process(parts: Sequence[pa.Table], steps: Sequence[Step]) -> Iterator[Columns]:
    """The twin without Ray: the same callables, one part after another."""
    functions = [step.local() for step in steps]
    for part in parts:
        columns = to_columns(part)
        for function in functions:
            columns = function(columns)
        yield columns


def to_columns(table: pa.Table) -> Columns:
    """A table as the dict of arrays that a step is given."""
    return {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}


def whole_part(columns: Columns) -> int:
    """Number of the part that the columns are.

    Raises:
        ArtifactError: when they are not exactly one part: it was split or merged on its way, and must not be written.
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

    Raises:
        ArtifactError: naming the URI and the remedy.
    """
    if not storage.exists(marker_uri):
        raise ArtifactError(
            f"A worker cannot see {marker_uri!r}, which the driver has written: the machines of this cluster do not "
            "share that disk. Use a URI that every machine reaches (s3://..., gs://..., or a shared mount)."
        )


class GuardedActor:
    """A step's class as Ray Data's actor: errors of this package come back as values.

    Ray would wrap them, print its stack traces and, for an error while the actor starts, forget their type.
    """

    def __init__(self, function: Callable[..., Any], settings: Mapping[str, Any]) -> None:
        """Make the step; an error is kept for the first call."""
        self._failure: Columns | None = None
        try:
            self._call = function(**settings)
        except CirrayError as error:
            self._failure = _failure(error)

    def __call__(self, columns: Columns) -> Columns:
        """The step's answer, or its failure, or the failure of an earlier step."""
        return self._failure or guarded_task(columns, self._call, {})


def guarded_task(columns: Columns, function: Callable[..., Columns], settings: Mapping[str, Any]) -> Columns:
    """A function's answer, or its failure as a value; a failure that comes in goes out."""
    if _FAILURE in columns:
        return columns
    try:
        return function(columns, **settings)
    except CirrayError as error:
        return _failure(error)


def _failure(error: CirrayError) -> Columns:
    return {_FAILURE: np.array([str(error)], dtype=object), _KIND: np.array([type(error).__name__], dtype=object)}


def _raise_failure(columns: Columns) -> None:
    if _FAILURE in columns:
        kind = getattr(errors, str(columns[_KIND][0]), errors.DataError)
        raise kind(str(columns[_FAILURE][0]))


def _by_ray(parts: Sequence[pa.Table], steps: Sequence[Step], config: RayConfig, part_bytes: int) -> Iterator[Columns]:
    import ray.data
    from ray.data.exceptions import ExecutionTimeoutError

    from cirray.pipelines.cluster.resources import cluster, data_context

    with cluster(config), data_context(config, 2 * part_bytes):
        data: ray.data.Dataset = ray.data.from_arrow(list(parts))
        for step in steps:
            data = data.map_batches(batch_size=None, batch_format="numpy", **_arguments(step, len(parts)))
        try:
            for columns in data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
                _raise_failure(columns)
                yield columns
        except ExecutionTimeoutError:
            raise errors.ConfigError(
                f"Nothing was finished for {config.no_progress_timeout_s:g} s. If one part takes longer, make parts "
                "smaller or raise ray.no_progress_timeout_s; else look for workers that die while they start (memory) "
                "and for actors that ask for more CPUs or GPUs than the cluster has."
            ) from None


def _arguments(step: Step, parts: int) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    settings = {"function": step.function, "settings": dict(step.settings)}
    if step.pool is None:
        compute = TaskPoolStrategy(size=min(step.tasks, parts))
        return {"fn": guarded_task, "fn_kwargs": settings, "compute": compute, "num_cpus": _TASK_CPUS}
    pool = step.pool
    return {
        "fn": GuardedActor,
        "fn_constructor_kwargs": settings,
        "compute": ActorPoolStrategy(size=min(pool.size, parts), max_tasks_in_flight_per_actor=2),
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus or None,
    }
