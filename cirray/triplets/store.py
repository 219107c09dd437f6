"""Triplets on disk in Parquet parts: writing (atomic) and reading.

An artifact of kind "triplets" holds `data/part-XXXXX.parquet` and, for generations that failed,
`rejected/part-XXXXX.parquet` with a reason. Data is written last: a part with data is finished.
"""

import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cirray.core import storage
from cirray.core.artifacts import Manifest, localize, read_manifest
from cirray.core.environ import cache_folder
from cirray.core.errors import ArtifactError, DataError, reason_of
from cirray.core.refusals import is_away, refused
from cirray.triplets.schema import REJECTED_SCHEMA, TRIPLET_SCHEMA, check_schema, image_ids, to_triplets
from cirray.triplets.seen import Seen
from cirray.types import Triplet

DATA, REJECTED, ANSWERS = "data", "rejected", "answers"
PARTS = (f"{DATA}/*", f"{REJECTED}/*", f"{ANSWERS}/*")
"""Files from which a restarted stage goes on."""
KIND = "triplets"
ORDER = ("pair_id", "reference_id", "triplet_id")
"""Columns that rows are sorted by."""
LARGE = 2_000_000
"""Rows beyond which a store is read from a mapped file, and mixed by blocks (`cirray.training.sampler`)."""
_MAPPED_ROWS = 500_000
PIECE = 65_536
"""Rows that are looked at together where all are."""
KEY_MARK = "\x1f"
"""Stands between the columns of a key."""


class TripletStore:
    """A complete triplets artifact. Rows are sorted by pair and reference.

    So their order, and a training on them, does not depend on the digests that enter triplet ids.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Take an artifact in a local folder."""
        self.folder, self.manifest = folder, manifest
        self._last: tuple[Any, Any] = None, None

    @classmethod
    def open(cls, uri: str | Path) -> "TripletStore":
        """Open an artifact; a remote one is downloaded once.

        Raises ArtifactError: missing, incomplete or of another kind.
        """
        return cls(localize(uri, KIND), read_manifest(uri, KIND))

    def table(self, split: str | None = None, source: str | None = None) -> pa.Table:
        """All triplets, or those of one split or source.

        Raises DataError naming a file that is damaged, or an id that appears twice.
        """
        table = read_tables(str(self.folder), DATA, TRIPLET_SCHEMA)
        refuse_duplicates(table.column("triplet_id"), str(self.folder))
        for name, value in (("split", split), ("source", source)):
            if value is not None:
                table = table.filter(pc.equal(table.column(name), value))
        return table

    def read(self, split: str | None = None, source: str | None = None) -> list[Triplet]:
        """The same as `Triplet` values."""
        return to_triplets(self.table(split, source))

    def __len__(self) -> int:
        """Triplets of all splits."""
        return int(self._ends[-1])

    def __iter__(self) -> Iterator[Triplet]:
        """All triplets in the order of the parts, read a piece at a time."""
        return (row for piece in self.pieces() for row in to_triplets(piece))

    def pieces(self, columns: Sequence[str] = (), rows: int = PIECE) -> Iterator[pa.Table]:
        """All triplets, or some of their columns, in the order of the parts: tables of `rows` rows, the last of fewer.

        Raises DataError naming a file that is damaged.
        """
        yield from regrouped(each_table(str(self.folder), DATA, _some(columns)), rows)

    def at(self, start: int, rows: int, columns: Sequence[str] = ()) -> pa.Table:
        """At most `rows` rows from row `start` on, in the order of the parts. Raises DataError as `pieces`."""
        stop, found = min(start + rows, len(self)), [_some(columns).empty_table()]
        while start < stop:
            number = int(np.searchsorted(self._ends, start, side="right")) - 1
            found.append(self._file(number, tuple(columns)).slice(start - int(self._ends[number]), stop - start))
            start += len(found[-1])
        return pa.concat_tables(found)

    def splits(self) -> Counter[str]:
        """Splits and how many triplets each has."""
        counts = Counter[str]()
        for piece in self.pieces(("split",), LARGE):
            counts.update({row["values"]: row["counts"] for row in piece.column("split").value_counts().to_pylist()})
        return counts

    def refuse_doubled(self) -> None:
        """Raise a DataError that names an id standing twice; holds 8 bytes a row."""
        seen = Seen()
        for piece in self.pieces(("triplet_id",)):
            ids = piece.column("triplet_id").to_pylist()
            fresh = seen.fresh(ids)
            if not fresh.all():
                doubled = ids[int(fresh.argmin())]
                raise DataError(f"{doubled!r} appears twice in {str(self.folder)!r}; every row must be there once.")

    def images(self, negatives: bool = True, split: str | None = None) -> pa.Array:
        """Ids of all their images, hard negatives too unless they are left out, each once, sorted; or of a split's."""
        columns = ("reference_id", "target_id", *(["negative_ids"] if negatives else []))
        found = image_ids(TRIPLET_SCHEMA.empty_table())
        for piece in self.pieces((*columns, "split"), LARGE):
            if split is not None:
                piece = piece.filter(pc.equal(piece.column("split"), split))
            found = pc.unique(pa.concat_arrays([found, image_ids(piece)]))
        return found.take(pc.sort_indices(found))

    def _file(self, number: int, columns: tuple[str, ...]) -> pa.Table:
        """Rows of a file; those of the last one are kept."""
        if self._last[0] != (number, columns):
            name = _files(str(self.folder), DATA)[number]
            self._last = (number, columns), read_file(str(self.folder), DATA, name, _some(columns))
        return self._last[1]

    @cached_property
    def _ends(self) -> np.ndarray:
        """First row of every file, and behind the last."""
        return np.cumsum([0, *row_counts(str(self.folder))])

    def rows(self, split: str) -> pa.Table:
        """The columns of `Triplet` of a split: of `table`, or for more than `LARGE` rows of a file mapped into memory.

        The file is written once into the cache, part by part; its rows stand in the order of the parts.
        """
        names = [item.name for item in fields(Triplet)]
        if len(self) <= LARGE:
            return self.table(split).select(names)
        path = cache_folder() / KIND / f"{self.manifest.digest}-{split}.arrow"
        if not path.exists():
            self._map(path, split, names)
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def _map(self, path: Path, split: str, names: Sequence[str]) -> None:
        scratch, held = path.with_suffix(f".{uuid.uuid4().hex[:8]}"), list[pa.Table]()
        path.parent.mkdir(parents=True, exist_ok=True)
        schema, files = pa.schema([TRIPLET_SCHEMA.field(name) for name in names]), _files(str(self.folder), DATA)
        try:
            with pa.OSFile(str(scratch), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for at, name in enumerate(files, start=1):
                    table = read_file(str(self.folder), DATA, name, TRIPLET_SCHEMA)
                    held.append(table.filter(pc.equal(table.column("split"), split)).select(names))
                    if at == len(files) or sum(map(len, held)) >= _MAPPED_ROWS:
                        writer.write_table(pa.concat_tables(held).combine_chunks())
                        held.clear()
            mapped = pa.ipc.open_file(pa.memory_map(str(scratch))).read_all()
            refuse_duplicates(mapped.column("triplet_id"), str(self.folder))
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)

    def rejected(self) -> pa.Table:
        """Rejected rows, with reasons."""
        return read_tables(str(self.folder), REJECTED, REJECTED_SCHEMA)


def write_part(work_uri: str, name: str, triplets: pa.Table, rejected: pa.Table) -> None:
    """Write one part: rejected rows first, then data, which marks the part as finished."""
    if len(rejected):
        write_table(storage.join(work_uri, REJECTED, f"{name}.parquet"), rejected)
    write_table(storage.join(work_uri, DATA, f"{name}.parquet"), triplets)


def write_table(uri: str, table: pa.Table) -> None:
    """Write one Parquet file atomically; equal tables give equal bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    storage.write_bytes(uri, sink.getvalue())


def finished_keys(work_uri: str, columns: Sequence[str] = ("triplet_id",)) -> Iterator[tuple[str, pa.Array]]:
    """`row_keys`, data and rejected, of every finished part of an artifact being written, with the part's name.

    Raises ArtifactError naming a file that is damaged.
    """
    refused = set(_files(work_uri, REJECTED))
    for part in part_names(work_uri):
        name = f"{part}.parquet"
        folders = (DATA, REJECTED) if name in refused else (DATA,)
        yield part, pa.concat_arrays([_keys(work_uri, f, name, columns) for f in folders])


def regrouped(tables: Iterable[pa.Table], rows: int = PIECE) -> Iterator[pa.Table]:
    """The rows of some tables, in their order, as tables of `rows` rows, the last of fewer."""
    held = list[pa.Table]()
    for table in tables:
        held.append(table)
        while sum(map(len, held)) >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows)
            held = [whole.slice(rows)]
    if sum(map(len, held)):
        yield pa.concat_tables(held)


def part_names(work_uri: str) -> list[str]:
    """Names of the finished parts of an artifact being written."""
    return [name.removesuffix(".parquet") for name in _files(work_uri, DATA)]


def row_keys(table: pa.Table, columns: Sequence[str]) -> pa.Array:
    """Keys of rows: the texts of a column, or of several joined by `KEY_MARK`."""
    texts = [table.column(name) for name in columns]
    return (texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, KEY_MARK)).combine_chunks()


def read_tables(uri: str, folder: str, schema: pa.Schema, by: Sequence[str] = ORDER) -> pa.Table:
    """All rows of one folder of an artifact, sorted by some columns.

    Raises DataError naming a file that is damaged or has other columns.
    """
    table = pa.concat_tables([schema.empty_table(), *each_table(uri, folder, schema)])
    return (table.sort_by([(name, "ascending") for name in by]) if by else table).combine_chunks()


def each_table(uri: str, folder: str, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of one folder of an artifact, file by file, with the columns of a schema. Raises as `read_tables`."""
    return (read_file(uri, folder, name, schema) for name in _files(uri, folder))


def row_counts(uri: str, folder: str = DATA) -> list[int]:
    """Rows of each file of one folder of an artifact, by the files' own counts.

    Raises DataError naming a file that is damaged.
    """
    filesystem, path = storage.resolve(storage.join(uri, folder))
    counts = []
    for name in _files(uri, folder):
        try:
            with storage.asking(uri):
                counts.append(pq.read_metadata(f"{path}/{name}", filesystem=filesystem).num_rows)
        except (pa.ArrowInvalid, OSError) as error:
            place = storage.join(uri, folder, name)
            raise (refused(place, "read", error) if is_away(error) else _damaged(place, error)) from None
    return counts


def read_file(uri: str, folder: str, name: str, schema: pa.Schema) -> pa.Table:
    """Rows of one Parquet file of an artifact: the columns of a schema. Raises DataError as `read_tables`."""
    path = storage.join(uri, folder, name)
    try:
        table = pq.ParquetFile(pa.BufferReader(storage.read_bytes(path))).read(schema.names)
    except (pa.ArrowInvalid, OSError) as error:
        raise _damaged(path, error) from None
    return check_schema(table, schema, path)


def attach_reverse(triplets: Sequence[Triplet], generated: Iterable[Triplet]) -> list[Triplet]:
    """Human triplets with the reverse texts that a generator wrote for the same (reference, target).

    A generated (reference, target) row offers its reverse text, a (target, reference) row its own text. Triplets that
    have a reverse text keep it; others stay without.
    """
    asked = {(item.reference_id, item.target_id) for item in triplets}
    texts: dict[tuple[str, str], str] = {}
    for row in generated:
        there, back = (row.reference_id, row.target_id), (row.target_id, row.reference_id)
        if back in asked:
            texts.setdefault(back, row.modification)
        if there in asked and row.reverse_modification:
            texts[there] = row.reverse_modification
    return [
        item
        if item.reverse_modification
        else replace(item, reverse_modification=texts.get((item.reference_id, item.target_id)))
        for item in triplets
    ]


def refuse_duplicates(texts: Iterable[str] | pa.ChunkedArray, where: str) -> None:
    """Raise a DataError that names the first id standing twice."""
    ids = texts if isinstance(texts, pa.ChunkedArray) else pa.chunked_array([[*texts]], pa.string())
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = ids.value_counts()
        double = counts.filter(pc.greater(counts.field("counts"), 1))[0].as_py()
        raise DataError(
            f"{double['values']!r} appears {double['counts']} times in {where}; every row must be there once."
        )


def _damaged(path: str, error: Exception) -> DataError:
    return DataError(f"{path!r} is damaged ({reason_of(error)}). Delete the artifact and make it again.")


def _some(columns: Sequence[str]) -> pa.Schema:
    """The columns of some names; of no names all."""
    return pa.schema([TRIPLET_SCHEMA.field(name) for name in columns]) if columns else TRIPLET_SCHEMA


def _files(uri: str, folder: str) -> list[str]:
    return [name for name in storage.list_files(storage.join(uri, folder)) if name.endswith(".parquet")]


def _keys(work_uri: str, folder: str, name: str, columns: Sequence[str]) -> pa.Array:
    path = storage.join(work_uri, folder, name)
    try:
        return row_keys(pq.read_table(pa.BufferReader(storage.read_bytes(path)), columns=list(columns)), columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path!r} is damaged ({error}); delete it and run the stage again.") from None
