"""Metadata for an index: a Parquet, CSV or JSONL file, joined with the images by id or by file name."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from cirray.core import storage
from cirray.core.errors import DataError, reason_of
from cirray.core.texts import encoding_of
from cirray.data.names import NameFinder
from cirray.index.columns import kind_of, plain
from cirray.index.metadata import ID

KEYS = (ID, "image_id", "image", "file_name", "filename", "file", "path", "name")
"""Columns that may name the image of a row; the first one that a file has is taken."""
_SHOWN = 3


def metadata_for(place: str, ids: Sequence[str], names: Mapping[str, str]) -> tuple[pa.Table, tuple[str, ...]]:
    """The columns of a file in the order of the images, null where an image has no row, and notes on what was left out.

    The file is `.parquet`, `.csv`, `.tsv`, `.jsonl` or `.ndjson`; `names` are those of the images' files by id.

    Raises DataError: a file that cannot be read, names no image, or has two rows of one.
    """
    table = _read(place)
    key = _key(place, table.schema)
    rows, unknown = _matched(place, table[key].cast(pa.string()).to_pylist(), ids, names)
    kept, odd = _usable(table.drop_columns([key]))
    order = pa.array([rows.get(name) for name in ids], pa.int64())
    notes = [f"{place}: {unknown:,} of {len(table):,} rows name no image that is indexed"] if unknown else []
    if order.null_count:
        notes.append(f"{place}: {order.null_count:,} of {len(ids):,} images have no row")
    if odd:
        notes.append(f"{place}: columns left out, for no filter could read them: {', '.join(odd)}")
    return kept.take(order), tuple(notes)


def _read(place: str) -> pa.Table:
    suffix = place.partition("?")[0].rpartition(".")[2].lower()
    readers: dict[str, Any] = {
        "parquet": lambda data: pq.read_table(io.BytesIO(data)), "csv": _read_csv, "tsv": _read_csv,
        "jsonl": _read_json, "ndjson": _read_json,
    }  # fmt: skip
    if suffix not in readers:
        raise DataError(f"The metadata {place!r} is no .parquet, .csv, .tsv, .jsonl or .ndjson file.")
    try:
        table = readers[suffix](storage.read_bytes(place))
    except (ValueError, pa.ArrowException) as error:
        raise DataError(f"The metadata {place!r} cannot be read: {reason_of(error)}.") from None
    double = next((name for name, times in Counter(table.column_names).items() if times > 1), None)
    if double is not None:
        raise DataError(f"The metadata {place!r} has two columns {double!r}; rename one of them.")
    return table


def _read_csv(data: bytes) -> pa.Table:
    """Types are those that all of a column's values have; a column that names images stays text (`00012`)."""
    text = data.decode(encoding_of(data[:4]))
    head = text.partition("\n")[0]
    sign = max(",;\t", key=head.count)
    return pa.csv.read_csv(
        io.BytesIO(text.encode()),
        parse_options=pa.csv.ParseOptions(delimiter=sign, newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(KEYS, pa.string()), strings_can_be_null=True),
    )


def _read_json(data: bytes) -> pa.Table:
    text = data.decode(encoding_of(data[:4]))
    return pa.json.read_json(io.BytesIO(text.encode()))


def _key(place: str, schema: pa.Schema) -> str:
    """The column that names images: one of texts or whole numbers (a data set's `image` may hold pixels)."""
    found = next((key for key in KEYS if key in schema.names and _names(schema.field(key).type)), None)
    if found is None:
        raise DataError(
            f"The metadata {place!r} has no column that names images: it has {', '.join(schema.names)}; call the one "
            f"with their ids or file names {ID!r} (also read: {', '.join(KEYS[1:])})."
        )
    return found


def _matched(
    place: str, written: Sequence[str | None], ids: Sequence[str], names: Mapping[str, str]
) -> tuple[dict[str, int], int]:
    """Row of every image that has one, and the count of rows that name no image."""
    files = {name: names.get(name, name) for name in ids}
    finder, last = NameFinder(files), NameFinder(_last_parts(files))
    rows: dict[str, int] = {}
    unknown = []
    for row, text in enumerate(written):
        found = (finder.find(text) or last.find(text)) if text else ()
        if len(found) > 1:
            raise DataError(f"The metadata {place!r}, row {row + 1}: {text!r} may be {found[0]!r} or {found[1]!r}.")
        if not found:
            unknown.append(text)
        elif found[0] in rows:
            first = rows[found[0]] + 1
            raise DataError(f"The metadata {place!r} has two rows of the image {found[0]!r}: {first} and {row + 1}.")
        else:
            rows[found[0]] = row
    if not rows:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) or "no row at all"
        raise DataError(
            f"The metadata {place!r} names no image that is indexed: it has {shown}; ids are like {ids[0]!r}."
        )
    return rows, len(unknown)


def _last_parts(files: Mapping[str, str]) -> dict[str, str]:
    """The last part of a file's name, where only one image has it."""
    parts = {name: file.rpartition("/")[2] for name, file in files.items()}
    times = Counter(parts.values())
    return {name: part for name, part in parts.items() if times[part] == 1}


def _usable(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """The columns that filters can read, and the names of the others. Lists of texts are kept, to be shown."""
    table = plain(table)
    kept = [field.name for field in table.schema if kind_of(field.type) or _is_texts(field.type)]
    kept = [name for name in kept if name != ID]
    return table.select(kept), [name for name in table.column_names if name not in kept]


def _names(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind)


def _is_texts(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and pa.types.is_string(kind.value_type)
