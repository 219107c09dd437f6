"""Pairs of images on disk: one Parquet file of a "pairs" artifact, and rows of columns as `Pair` values. No torch."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cirray.core import storage
from cirray.core.artifacts import localize
from cirray.triplets.store import write_table
from cirray.types import Pair

KIND, _FILE = "pairs", "pairs.parquet"
PAIR_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), False) for name in ("pair_id", "reference_id", "target_id", "group_id")]
    + [pa.field("score", pa.float64(), False), pa.field("rank", pa.int64(), False)]
)


def pair_table(pairs: Sequence[Pair]) -> pa.Table:
    """Pairs as a table of `PAIR_SCHEMA`."""
    columns = {name: [getattr(pair, name) for pair in pairs] for name in PAIR_SCHEMA.names}
    return pa.table(columns, schema=PAIR_SCHEMA)


def to_pairs(columns: Mapping[str, Any]) -> list[Pair]:
    """Arrays by the names of `PAIR_SCHEMA`, as `Pair` values."""
    rows = zip(*(columns[name].tolist() for name in PAIR_SCHEMA.names), strict=True)
    return [Pair(**dict(zip(PAIR_SCHEMA.names, row, strict=True))) for row in rows]


def write_pairs(work_uri: str, pairs: Sequence[Pair]) -> None:
    """Write the pairs of an artifact."""
    write_table(storage.join(work_uri, _FILE), pair_table(pairs))


def read_pairs(uri: str) -> list[Pair]:
    """Pairs of an artifact, in the order they were chosen.

    Raises ArtifactError when there is no complete pairs artifact.
    """
    table = pq.read_table(localize(uri, KIND) / _FILE)
    return [Pair(**row) for row in table.select(PAIR_SCHEMA.names).to_pylist()]
