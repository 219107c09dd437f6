"""Rows of a Parquet file as changes of a gallery, in groups of bounded memory."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cirray.catalogue.change import Change
from cirray.core import storage
from cirray.core.errors import CirrayError, DataError, StoreError, reason_of

GROUP = 2_000
"""Rows of one group."""
SUFFIXES = (".parquet", ".pq")
_BUFFER = 2**20
"""Bytes of a column that are read at once; without it a whole row group would be."""


class VectorFile:
    """A Parquet file (path or URI) with the columns `id` and `vector`, and those of a gallery's metadata."""

    def __init__(
        self, place: str, shape: tuple[int, int], columns: Mapping[str, pa.DataType], prefix: str = ""
    ) -> None:
        """Open it; only its footer is read.

        Args:
            place: path or URI.
            shape: vectors of an image and their width (Q, D).
            columns: the gallery's metadata columns and their types.
            prefix: goes before every id.

        Raises:
            ArtifactError: a URI that cannot be opened.
            DataError: a file that is not there or no Parquet, or columns that do not fit.
            StoreError: its store is away.
        """
        self._place, self._name = place, storage.without_query(place)
        self._shape, self._prefix = shape, prefix
        with storage.hurried():
            filesystem, path = storage.resolve(place)
        try:
            self._file = pq.ParquetFile(filesystem.open_input_file(path), buffer_size=_BUFFER, pre_buffer=False)
        except FileNotFoundError:
            raise DataError(f"There is no file {self._name!r}.") from None
        except (OSError, pa.ArrowException) as error:
            raise self._unread(error) from None
        self._check(self._file.schema_arrow, columns)
        self.rows = int(self._file.metadata.num_rows)

    def _check(self, schema: pa.Schema, columns: Mapping[str, pa.DataType]) -> None:
        names = schema.names
        if not {"id", "vector"} <= set(names):
            raise DataError(f"{self._name!r} has the columns {', '.join(names)[:200]}; id and vector are needed.")
        unknown = next((name for name in names if name not in ("id", "vector", *columns)), None)
        if unknown is not None:
            known = ", ".join(sorted(columns)) or "none"
            raise DataError(f"{self._name!r} has a column {unknown[:80]!r}, and this gallery's metadata has {known}.")
        kind = schema.field("id").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise DataError(f"The column id of {self._name!r} holds {kind}; texts are needed.")
        if not _is_numbers(schema.field("vector").type):
            raise self._odd(str(schema.field("vector").type))

    @property
    def _width(self) -> int:
        return self._shape[0] * self._shape[1]

    def _unread(self, error: Exception) -> CirrayError:
        """What is wrong: the file, or the store that it is in, which then says nothing of it either."""
        try:
            with storage.hurried():
                storage.exists(self._place)
        except StoreError as away:
            return away
        return DataError(f"{self._name!r} cannot be read as a Parquet file: {reason_of(error)}.")

    def _odd(self, what: str) -> DataError:
        return DataError(
            f"The column vector of {self._name!r} holds {what}; lists of {self._width:,} numbers are needed."
        )

    def groups(self, offset: int = 0, limit: int | None = None) -> Iterator[list[Change]]:
        """Rows from `offset` on, at most `limit`, in groups; row groups before them are not read.

        Raises:
            DataError: a damaged file, an id that is missing, or vectors of another width.
            StoreError: its store is away.
        """
        try:
            for batch in self._batches(offset, limit):
                yield self._changes(batch)
        except (OSError, pa.ArrowException) as error:
            raise self._unread(error) from None

    def _batches(self, offset: int, limit: int | None) -> Iterator[pa.RecordBatch]:
        skip, left = offset, self.rows - offset if limit is None else min(limit, self.rows - offset)
        for number in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(number).num_rows
            if skip >= count or left <= 0:
                skip -= min(skip, count)
                continue
            for batch in self._file.iter_batches(GROUP, [number]):
                some = batch.slice(min(skip, len(batch)), left)
                skip -= min(skip, len(batch))
                left -= len(some)
                if len(some):
                    yield some

    def _changes(self, batch: pa.RecordBatch) -> list[Change]:
        ids, vectors = batch.column("id"), batch.column("vector")
        if ids.null_count:
            raise DataError(f"The column id of {self._name!r} has gaps; every row needs an id.")
        lengths = pc.list_value_length(vectors).unique().to_pylist()
        if lengths != [self._width]:
            told = ["no" if size is None else f"{size:,}" for size in lengths[:3]]
            raise self._odd(f"lists of {' and '.join(told)} numbers")
        flat = np.asarray(vectors.flatten().to_numpy(zero_copy_only=False), np.float16)
        metadata = batch.drop_columns(["id", "vector"]).to_pylist() or [{}] * len(batch)
        rows = zip(ids.to_pylist(), flat.reshape(len(batch), *self._shape), metadata, strict=True)
        return [Change(self._prefix + name, tokens_QD, metadata=values) for name, tokens_QD, values in rows]


def _is_numbers(kind: pa.DataType) -> bool:
    """Whether a column holds lists of numbers."""
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(listed and (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)))
