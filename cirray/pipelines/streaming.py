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

from cirray.core import storage
from cirray.core.errors import ArtifactError, CirrayError
from cirray.pipelines.config import PoolConfig, RayConfig

Columns = dict[str, np.ndarray]
_TASK_CPUS = 0.5


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


def _by_ray(parts: Sequence[pa.Table], steps: Sequence[Step], config: RayConfig, part_bytes: int) -> Iterator[Columns]:
    import ray.data
    from ray.exceptions import RayError

    from cirray.pipelines.resources import cluster, data_context

    with cluster(config), data_context(config, 2 * part_bytes):
        data: ray.data.Dataset = ray.data.from_arrow(list(parts))
        for step in steps:
            data = data.map_batches(
                step.function, batch_size=None, batch_format="numpy", **_arguments(step, len(parts))
            )
        try:
            yield from data.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0)
        except RayError as error:
            raise_own(error)
            raise


def _arguments(step: Step, parts: int) -> dict[str, Any]:
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    if step.pool is None:
        size = min(step.tasks, parts)
        return {"fn_kwargs": dict(step.settings), "compute": TaskPoolStrategy(size=size), "num_cpus": _TASK_CPUS}
    pool = step.pool
    return {
        "fn_constructor_kwargs": dict(step.settings),
        "compute": ActorPoolStrategy(size=min(pool.size, parts), max_tasks_in_flight_per_actor=2),
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus or None,
    }


def raise_own(error: BaseException) -> None:
    """Raise the first error of this package in a chain of causes, if there is one."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, CirrayError):
            raise current from None
        current = getattr(current, "cause", None) or current.__cause__ or current.__context__
