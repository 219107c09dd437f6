"""Rewritten query texts on disk: one row a text of a query, in Parquet parts like triplets. No torch.

An artifact of kind "rewrites" holds `data/part-XXXXX.parquet` and `rejected/part-XXXXX.parquet` with reasons. Data is
written last: a part with data is finished.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from cirray.core import storage
from cirray.triplets.store import DATA, REJECTED, read_file, write_table

KIND = "rewrites"
_NAMES = ("query_id", "reference_id", "modification")
REWRITE_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), False) for name in (*_NAMES, "caption", "text", "rewriter", "prompt_version", "key")]
)
"""`text` tells the wanted image. `rewriter` digests weights, instruction and decoding; `key` also covers caption and
modification: equal keys, equal texts."""
REJECTED_REWRITES = pa.schema([pa.field(name, pa.string(), False) for name in (*_NAMES, "reason")])


def write_rewrites(
    work_uri: str, name: str, rows: Iterable[Mapping[str, Any]], rejected: Iterable[Mapping[str, Any]] = ()
) -> None:
    """Write one part: rejected rows first, then data, whose presence says that the part is finished."""
    refused = pa.Table.from_pylist(list(rejected), schema=REJECTED_REWRITES)
    if len(refused):
        write_table(storage.join(work_uri, REJECTED, f"{name}.parquet"), refused)
    write_table(
        storage.join(work_uri, DATA, f"{name}.parquet"), pa.Table.from_pylist(list(rows), schema=REWRITE_SCHEMA)
    )


def finished_texts(work_uri: str) -> dict[str, set[tuple[str, str]]]:
    """(query id, modification) of every finished part, rewritten or rejected: part name -> pairs."""
    found = {}
    refused = storage.list_files(storage.join(work_uri, REJECTED))
    for name in storage.list_files(storage.join(work_uri, DATA)):
        pairs = set(named(read_file(work_uri, DATA, name, REWRITE_SCHEMA)))
        if name in refused:
            pairs |= set(named(read_file(work_uri, REJECTED, name, REJECTED_REWRITES)))
        found[name.removesuffix(".parquet")] = pairs
    return found


def rewrite_table(uri: str) -> pa.Table:
    """All rows of an artifact (or of one being written), sorted by query and modification.

    Raises:
        DataError: naming a file that is damaged.
    """
    return _sorted(uri, DATA, REWRITE_SCHEMA)


def rejected_rewrites(uri: str) -> pa.Table:
    """Texts that could not be rewritten, with reasons, sorted by query and modification."""
    return _sorted(uri, REJECTED, REJECTED_REWRITES)


def named(table: pa.Table) -> list[tuple[str, str]]:
    """(query id, modification) of every row."""
    columns = (table.column(name).to_pylist() for name in ("query_id", "modification"))
    return list(zip(*columns, strict=True))


def _sorted(uri: str, folder: str, schema: pa.Schema) -> pa.Table:
    names = [name for name in storage.list_files(storage.join(uri, folder)) if name.endswith(".parquet")]
    tables = [read_file(uri, folder, name, schema) for name in names]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return table.sort_by([("query_id", "ascending"), ("modification", "ascending")]).combine_chunks()
