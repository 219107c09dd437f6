"""Metadata of an index: any columns, one row an image, and what filters and facets make of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cirray.core.errors import DataError, unknown_name
from cirray.index.columns import kind_of, plain
from cirray.index.filters import mask_of, parse_filter

METADATA = "metadata.parquet"
ID = "id"
"""Column of the ids, which every gallery has."""
_KEPT_MASKS = 32
MAX_VALUES = 50
"""Most values of a column whose counts are shown; one with more has only its range, or the count of its values."""


@dataclass(frozen=True)
class Facet:
    """What a column holds among some rows."""

    column: str
    kind: str
    """`numbers`, `texts`, `dates`, `true or false`."""
    filled: int
    """Rows with a value."""
    counts: tuple[tuple[Any, int], ...] = ()
    """Values and their rows, the most frequent first, for a column with few."""
    least: Any = None
    """Smallest value of numbers and dates."""
    most: Any = None
    """Largest value of numbers and dates."""


def write_metadata(folder: Path, table: pa.Table | None) -> list[str]:
    """Write the columns of a table in row order; returns the names of the files written (none without a table)."""
    if table is None:
        return []
    pq.write_table(plain(table), folder / METADATA)
    return [METADATA]


def open_metadata(folder: Path, names: Sequence[str]) -> pa.Table | None:
    """The metadata of an index folder; None when it was built without."""
    return pq.read_table(folder / METADATA) if METADATA in names else None


class Counted(NamedTuple):
    """What the columns hold among some images."""

    images: int
    facets: list[Facet]
    share: float = 1.0
    """Share of the gallery's images that were counted."""


class Columns:
    """The columns of a gallery as filters see them: its metadata, and the ids."""

    def __init__(self, ids: Sequence[str], metadata: pa.Table | None) -> None:
        """Take ids and metadata in row order."""
        self._ids, self._kept = ids, plain(metadata) if metadata is not None else None
        fields = [] if self._kept is None else [field for field in self._kept.schema if field.name != ID]
        self.schema = pa.schema([pa.field(ID, pa.string()), *fields])
        """What a filter may name."""
        self.names: Sequence[str] = [] if self._kept is None else self._kept.column_names
        """Columns of metadata."""
        self._masks: dict[str, np.ndarray] = {}

    def mask(self, text: str) -> np.ndarray:
        """Which rows pass a filter [N]; the masks of the latest filters are kept, since a search asks again and again.

        Raises DataError: see `parse_filter`.
        """
        found = self._masks.get(text)
        if found is None:
            found = self._found(text)
            if len(self._masks) >= _KEPT_MASKS:
                self._masks.clear()
            self._masks[text] = found
        return found

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Columns of metadata by name; `*` is all of them. Raises DataError for an unknown name."""
        unknown = next((name for name in names if name not in self.names and name != "*"), None)
        if unknown is not None:
            raise DataError(unknown_name("column", unknown[:80], self.names))
        return list(self.names) if "*" in names else list(dict.fromkeys(names))

    def rows(self, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of metadata of some rows as values for JSON."""
        if self._kept is None or not names:
            return [{} for _ in rows]
        taken = self._kept.select(list(names)).take(pa.array(rows, pa.int64()))
        return [{name: said(value) for name, value in row.items()} for row in taken.to_pylist()]

    def table(self) -> pa.Table | None:
        """All columns of metadata in row order; None for a gallery without."""
        return self._kept

    def facets(self, mask_N: np.ndarray | None = None) -> list[Facet]:
        """What the columns hold, in their order, among the rows of a mask; None: all rows."""
        kept = self.table()
        if kept is None:
            return []
        table = kept if mask_N is None else kept.filter(pa.array(mask_N))
        return [_facet(name, table[name]) for name in table.column_names if kind_of(table[name].type)]

    def _found(self, text: str) -> np.ndarray:
        """The mask of a filter."""
        chosen = parse_filter(text, self.schema)
        return mask_of(chosen, self._table(chosen.columns))

    def _table(self, names: frozenset[str]) -> pa.Table:
        """The columns that a filter needs."""
        kept: Any = self._kept
        return pa.table({name: pa.array(self._ids, pa.string()) if name == ID else kept[name] for name in names})


def said(value: Any) -> Any:
    """A value of a column as JSON has it: dates and times as text."""
    return value.isoformat() if isinstance(value, date | datetime) else value


def _facet(name: str, column: pa.ChunkedArray) -> Facet:
    kind, filled = kind_of(column.type), len(column) - column.null_count
    values = pc.value_counts(column.drop_null())
    counts: tuple[tuple[Any, int], ...] = ()
    if len(values) <= MAX_VALUES:
        pairs = [(said(item["values"]), int(item["counts"])) for item in values.to_pylist()]
        counts = tuple(sorted(pairs, key=lambda pair: (-pair[1], str(pair[0]))))
    if kind not in ("numbers", "dates") or not filled:
        return Facet(name, kind, filled, counts)
    ends = pc.min_max(column).as_py()
    return Facet(name, kind, filled, counts, said(ends["min"]), said(ends["max"]))


def joined(facets: Sequence[Facet]) -> Facet:
    """What a column holds in several parts of a gallery."""
    counts, filled = Counter[Any](), sum(facet.filled for facet in facets)
    for facet in facets:
        counts.update(dict(facet.counts))
    few = len(counts) <= MAX_VALUES and all(facet.counts or not facet.filled for facet in facets)
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], str(pair[0]))) if few else []
    least = min((facet.least for facet in facets if facet.least is not None), default=None)
    most = max((facet.most for facet in facets if facet.most is not None), default=None)
    return Facet(facets[0].column, facets[0].kind, filled, tuple(ordered), least, most)
