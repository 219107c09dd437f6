"""Rewritten query texts on disk: one row a text of a query, in Parquet parts like triplets. No torch.

An artifact of kind "rewrites" holds `data/part-XXXXX.parquet` and `rejected/part-XXXXX.parquet` with reasons. Data is
written last: a part with data is finished.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from cirray.triplets.store import DATA, REJECTED, read_tables, write_part

KIND, KEY = "rewrites", ("query_id", "modification")
_NAMES = ("query_id", "reference_id", "modification")
REWRITE_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), False) for name in (*_NAMES, "caption", "text", "rewriter", "prompt_version", "key")]
)
"""`text` describes the wanted image. `rewriter` is a digest of weights, instruction and decoding; `key` also covers
caption and modification: equal keys, equal texts."""
REJECTED_REWRITES = pa.schema([pa.field(name, pa.string(), False) for name in (*_NAMES, "reason")])


def write_rewrites(
    work_uri: str, name: str, rows: Iterable[Mapping[str, Any]], rejected: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Write one part, as `write_part`."""
    refused = pa.Table.from_pylist(list(rejected), schema=REJECTED_REWRITES)
    write_part(work_uri, name, pa.Table.from_pylist(list(rows), schema=REWRITE_SCHEMA), refused)


def rewrite_table(uri: str) -> pa.Table:
    """All rows of an artifact (or of one being written), sorted by query and modification.

    Raises DataError naming a file that is damaged.
    """
    return read_tables(uri, DATA, REWRITE_SCHEMA, by=KEY)


def rejected_rewrites(uri: str) -> pa.Table:
    """Texts that could not be rewritten, with reasons, sorted by query and modification."""
    return read_tables(uri, REJECTED, REJECTED_REWRITES, by=KEY)


def named(table: pa.Table) -> list[tuple[str, ...]]:
    """(query id, modification) of every row."""
    return list(zip(*(table.column(name).to_pylist() for name in KEY), strict=True))
