"""Columns of a triplets artifact, and conversion between rows and `Triplet` values. No torch."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import DataError
from cirray.types import Triplet, stable_id


def texts(*names: str) -> list[pa.Field]:
    """Columns of text that no row leaves empty."""
    return [pa.field(name, pa.string(), nullable=False) for name in names]


TRIPLET_SCHEMA = pa.schema(
    [
        *texts("triplet_id", "pair_id", "reference_id", "target_id", "modification"),
        pa.field("reverse_modification", pa.string()),
        *texts("split", "source", "generator", "prompt_version"),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("logprob", pa.float64(), nullable=False),
        pa.field("scores", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("weight", pa.float64(), nullable=False),
        *texts("group_id", "edit"),
        *(pa.field(name, pa.list_(pa.string()), nullable=False) for name in ("positive_ids", "negative_ids")),
    ]
)
"""`generator` is a digest, `logprob` a mean per token, `scores` named numbers (`pair`: the miner's cosine).

`positive_ids` are further right answers beside the target, `negative_ids` hard negatives, each a list of image ids.
"""

REJECTED_SCHEMA = pa.schema(
    [
        *texts("triplet_id", "pair_id", "reference_id", "target_id"),
        pa.field("modification", pa.string()),
        *texts("source", "generator", "reason"),
    ]
)
"""A generation that failed or was filtered; `modification` is its text, if any."""

_TOGETHER = 65_536
_DEFAULTS: dict[str, Any] = {
    "pair_id": "", "reverse_modification": None, "split": "train", "source": "human", "generator": "",
    "prompt_version": "", "seed": 0, "logprob": 0.0, "scores": {}, "weight": 1.0, "group_id": "", "edit": "",
    "positive_ids": (), "negative_ids": (),
}  # fmt: skip


def triplet_id(pair_id: str, recipe: str, direction: str) -> str:
    """Id of a generated triplet, the same on every machine; `recipe`: digest of generator, prompt, decoding, seed."""
    return stable_id("triplet", pair_id, recipe, direction)


def stable_bytes(head: str, *columns: pa.Array) -> np.ndarray:
    """Digests behind `stable_id(head, *row)` of every row of some columns of text: uint8 `[rows, 8]`."""
    start, parts = head.encode(), [np.empty(0, np.uint8)]
    for at in range(0, len(columns[0]), _TOGETHER):
        rows = zip(*(column.slice(at, _TOGETHER).cast(pa.binary()).to_pylist() for column in columns), strict=True)
        found = (hashlib.blake2b(b"\x1f".join((start, *row)), digest_size=8).digest() for row in rows)
        parts.append(np.frombuffer(b"".join(found), np.uint8))
    return np.concatenate(parts).reshape(-1, 8)


def hex_ids(numbers: np.ndarray) -> pa.Array:
    """`stable_id` of digests, in hexadecimal digits."""
    ends = np.arange(len(numbers) + 1, dtype=np.int32) * 16
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(ends), pa.py_buffer(numbers.tobytes().hex().encode()))


def triplet_ids(pairs: pa.Array, recipe: str, directions: Sequence[str]) -> pa.Array:
    """`triplet_id` of many pairs, for each of some directions: pair by pair."""
    ends = [f"\x1f{recipe}\x1f{direction}".encode() for direction in directions]
    heads = (b"triplet\x1f" + pair for pair in pairs.cast(pa.binary()).to_pylist())
    blake2b = hashlib.blake2b
    return pa.array([blake2b(head + end, digest_size=8).hexdigest() for head in heads for end in ends], pa.string())


def triplet_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rows of plain values as a table; absent optional columns take their defaults.

    Raises DataError naming the row when a column is missing, unknown or of the wrong type.
    """
    full = [{**_DEFAULTS, **row} for row in rows]
    for row in full:
        _check_columns(row)
        row["scores"] = list(dict(row["scores"]).items())
    return _table(full, TRIPLET_SCHEMA)


def rejected_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """Rejected rows of plain values as a table."""
    return _table([{"modification": None, **row} for row in rows], REJECTED_SCHEMA)


def refused_rows(table: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    """Rejected rows of the triplets that have a reason."""
    rows = table.filter(pa.array([reason is not None for reason in reasons], pa.bool_()))
    told = pa.array([reason for reason in reasons if reason is not None], pa.string())
    return rows.append_column("reason", told).select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA)


def to_triplets(table: pa.Table) -> list[Triplet]:
    """The rows of a table as `Triplet` values, in order."""
    names = [item.name for item in fields(Triplet)]
    columns = [table.column(name).to_pylist() for name in names]
    for name in ("positive_ids", "negative_ids"):
        columns[names.index(name)] = [tuple(ids) for ids in columns[names.index(name)]]
    return [Triplet(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def image_ids(table: pa.Table) -> pa.Array:
    """Ids of the images of pairs or triplets, hard negatives too, each once, sorted."""
    columns = [table.column(name) for name in ("reference_id", "target_id")]
    if "negative_ids" in table.column_names:
        columns.append(pc.list_flatten(table.column("negative_ids")))
    names = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()))
    return names.take(pc.sort_indices(names))


def check_schema(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """The table in the schema's order of columns.

    Raises DataError naming the file and the first column that is missing or of another type.
    """
    for field in schema:
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            found = table.schema.field(field.name).type if field.name in table.column_names else "nothing"
            raise DataError(f"{name!r} has {found} where the column {field.name!r} of type {field.type} is needed.")
    return table.select(schema.names)


def _check_columns(row: Mapping[str, Any]) -> None:
    label = row.get("triplet_id", row)
    missing = [name for name in TRIPLET_SCHEMA.names if name not in row]
    unknown = [name for name in row if name not in TRIPLET_SCHEMA.names]
    if missing or unknown:
        what = f"lacks the column {missing[0]!r}" if missing else f"has the unknown column {unknown[0]!r}"
        raise DataError(f"Triplet {label!r} {what}; the columns are: {', '.join(TRIPLET_SCHEMA.names)}.")
    if not str(row["modification"]).strip():
        raise DataError(f"Triplet {label!r} has an empty modification; reject the row with a reason instead.")
    right = {row["target_id"], *row["positive_ids"]}
    if both := [name for name in row["negative_ids"] if name in right]:
        raise DataError(f"Triplet {label!r} has {both[0]!r} as a right answer and as a hard negative; leave one out.")


def _table(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    try:
        return pa.Table.from_pylist(list(rows), schema=schema)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"Triplet rows do not fit the schema: {' '.join(str(error).split())[:200]}.") from None
