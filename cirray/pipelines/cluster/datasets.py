"""Rows of artifacts as a `ray.data.Dataset`, and pairs or triplets of a `Dataset` as an artifact, piece by piece."""

import uuid
from collections.abc import Callable
from typing import Literal

import pyarrow as pa
import ray.data

from cirray.core import storage
from cirray.core.artifacts import Manifest, is_complete, open_stage, read_manifest
from cirray.core.config import validate
from cirray.core.errors import ArtifactError, DataError
from cirray.core.fields import Place
from cirray.core.places import Run
from cirray.core.unfinished import stage_function
from cirray.mining.pairs import pair_id
from cirray.triplets.pairs import KIND as PAIRS
from cirray.triplets.pairs import pair_table, write_pairs
from cirray.triplets.schema import rejected_table, triplet_table
from cirray.triplets.seen import Seen
from cirray.triplets.store import DATA, write_part
from cirray.triplets.store import KIND as TRIPLETS
from cirray.types import Pair, part_name

_FOLDERS = {PAIRS: "", TRIPLETS: DATA, "captions": DATA, "rewrites": DATA}
_ROWS = 65_536


class DatasetRun(Run):
    """An artifact made of a `Dataset`."""

    kind: Literal["pairs", "triplets"]
    """What its rows are."""
    out: Place
    """Artifact to write (path or URI)."""


def read_rows(uri: str) -> "ray.data.Dataset":
    """The rows of a pairs, triplets, captions or rewrites artifact, read where they are needed.

    Raises ArtifactError: missing, incomplete or of another kind.
    """
    kind = read_manifest(uri).kind
    if kind not in _FOLDERS:
        raise ArtifactError(f"{uri!r} is of kind {kind!r}; rows are read of: {', '.join(_FOLDERS)}.")
    folder = storage.join(uri, _FOLDERS[kind])
    filesystem, path = storage.resolve(folder)
    files = [f"{path}/{name}" for name in storage.list_files(folder) if name.endswith(".parquet")]
    return ray.data.read_parquet(files, filesystem=filesystem)


@stage_function
def write_rows(rows: "ray.data.Dataset", kind: Literal["pairs", "triplets"], out: str) -> Manifest:
    """Write the rows of a `Dataset` as an artifact that stages take: `cirray generate pairs=OUT`.

    Triplets need `triplet_id`, `reference_id`, `target_id` and `modification`, pairs the two images; other columns of
    their tables have defaults. Pairs are held in memory, triplets written piece by piece.

    Raises ArtifactError: something is at `out`; ConfigError: an unknown kind; DataError: a column is missing or of
    another type, an id stands twice, or there is no row. Then nothing is left at `out`.
    """
    run = validate(DatasetRun, {"kind": kind, "out": out})
    if is_complete(run.out):
        raise ArtifactError(f"{run.out!r} is there already. Choose another place, or delete it.")
    stage, seen, count, held = open_stage(run, kind, {"rows": uuid.uuid4().hex}), Seen(), 0, list[pa.Table]()
    make: Callable[[pa.Table], pa.Table] = _pairs if kind == PAIRS else _triplets
    batches = rows.iter_batches(batch_size=_ROWS, batch_format="pyarrow")
    for number, table in enumerate(make(batch) for batch in batches):
        ids = table.column(f"{kind.removesuffix('s')}_id").to_pylist()
        fresh = seen.fresh(ids)
        if not fresh.all():
            raise DataError(f"{ids[int(fresh.argmin())]!r} stands twice among the {kind}; every row has its own id.")
        count += len(table)
        if kind == PAIRS:
            held.append(table)
        else:
            write_part(stage.work_uri, part_name(number), table, rejected_table([]))
    if not count:
        raise DataError(f"The Dataset of {kind} has no row.")
    if held:
        write_pairs(stage.work_uri, pa.concat_tables(held))
    return stage.publish({kind: count})


def _triplets(batch: pa.Table) -> pa.Table:
    return triplet_table(batch.to_pylist())


def _pairs(batch: pa.Table) -> pa.Table:
    found = []
    for row in batch.to_pylist():
        try:
            ends = row["reference_id"], row["target_id"]
            found.append(Pair(**{"pair_id": pair_id(*ends), **row}))
        except (KeyError, TypeError) as error:
            raise DataError(
                f"The pair {row!r} does not fit: {error}. Columns: {', '.join(Pair.__annotations__)}."
            ) from None
    return pair_table(found)
