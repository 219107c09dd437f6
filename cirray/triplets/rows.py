"""Triplets of a table as a sequence: a row is made when it is asked for, and a large store's rows stay in a file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.triplets.schema import TRIPLET_SCHEMA, image_ids, to_triplets
from cirray.triplets.store import KEY_MARK, LARGE, TripletStore, row_keys
from cirray.types import Triplet

_TOGETHER = 4096


class TripletRows(Sequence[Triplet]):
    """Triplets in a table of the columns of `Triplet`; of a table in a file only the asked rows are read."""

    def __init__(self, table: pa.Table, again: tuple[Any, ...] | None = None) -> None:
        """Take a table; `again` is a function with its arguments that opens it in another process."""
        self.table, self._again = table.select([item.name for item in fields(Triplet)]), again
        self._batches = self.table.to_batches()
        self._ends = np.cumsum([0, *map(len, self._batches)])

    @classmethod
    def of(cls, rows: Iterable[Triplet]) -> "TripletRows":
        """The rows as they are, or a table of them."""
        return rows if isinstance(rows, TripletRows) else cls(row_table(rows))

    def __reduce__(self) -> tuple[Any, ...]:
        return self._again or (TripletRows, (self.table.combine_chunks(),))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TripletRows) and self.table.equals(other.table)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Triplet]:
        for batch in self._batches:
            for start in range(0, len(batch), _TOGETHER):
                yield from to_triplets(pa.Table.from_batches([batch.slice(start, _TOGETHER)]))

    def __getitem__(self, place: Any) -> Any:
        picked = range(len(self))[place]
        return self.take(np.array(picked)) if isinstance(place, slice) else self.take(np.array([picked]))[0]

    def images(self) -> Iterator[str]:
        """Ids of the images, hard negatives too, each once, sorted."""
        for image in image_ids(self.table):
            yield image.as_py()

    def take(self, rows: np.ndarray) -> list[Triplet]:
        """The rows of some numbers, in their order."""
        batch_R, made = np.searchsorted(self._ends, rows, side="right") - 1, dict[int, Triplet]()
        for number in np.unique(batch_R).tolist():
            places = np.flatnonzero(batch_R == number)
            part = self._batches[number].take(pa.array(rows[places] - self._ends[number]))
            made |= zip(places.tolist(), to_triplets(pa.Table.from_batches([part])), strict=True)
        return [made[place] for place in range(len(rows))]


class StoredRows(Sequence[Triplet]):
    """All triplets of some artifacts, each read from its file when it is asked for."""

    def __init__(self, uris: Iterable[str]) -> None:
        """Open them. Raises ArtifactError: missing, incomplete or of another kind."""
        self._stores = [TripletStore.open(uri) for uri in uris]
        self._ends = np.cumsum([0, *map(len, self._stores)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, place: Any) -> Any:
        row = range(len(self))[place]
        number = int(np.searchsorted(self._ends, row, side="right")) - 1
        return to_triplets(self._stores[number].at(row - int(self._ends[number]), 1))[0]


def row_table(rows: Iterable[Triplet]) -> pa.Table:
    """Triplets as a table of their own columns."""
    held = list(rows)
    names = [item.name for item in fields(Triplet)]
    columns = {name: [getattr(row, name) for row in held] for name in names}
    return pa.table(columns, schema=pa.schema([TRIPLET_SCHEMA.field(name) for name in names]))


def training_rows(uris: Sequence[str], more: pa.Table, apart: frozenset[frozenset[str]]) -> TripletRows:
    """The training rows of triplets artifacts, without those whose two images are in `apart`, then those of `more`.

    Raises ArtifactError or DataError as `TripletStore.rows`.
    """
    columns = more.column_names
    stored = [_without(TripletStore.open(uri).rows("train").select(columns), apart) for uri in uris]
    table = pa.concat_tables([*stored, more])
    return TripletRows(table, (training_rows, (uris, more, apart)) if len(table) > LARGE else None)


def _without(table: pa.Table, apart: frozenset[frozenset[str]]) -> pa.Table:
    """The rows between those of `apart`, in pieces of the same memory."""
    if not apart:
        return table
    keys = pa.array([KEY_MARK.join(ends) for pair in apart for ends in (sorted(pair), sorted(pair, reverse=True))])
    taken = [
        start + place for start in range(0, len(table), LARGE) for place in _places(table.slice(start, LARGE), keys)
    ]
    pieces = [table.slice(a + 1, b - a - 1) for a, b in pairwise([-1, *taken, len(table)])]
    return pa.concat_tables(pieces)


def _places(table: pa.Table, keys: pa.Array) -> list[int]:
    return np.flatnonzero(pc.is_in(row_keys(table, ("reference_id", "target_id")), keys).to_numpy(False)).tolist()
