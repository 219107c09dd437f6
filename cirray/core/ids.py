"""Distinct texts and the place of each, as columns: the ids of many million images without an object for each."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from operator import eq
from typing import Any, Generic, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import DataError

T = TypeVar("T")
ABSENT = -1
"""Place of a text that is not there."""
_TOGETHER = 65_536
_hash = hash


class Texts(Sequence[str]):
    """Texts in order, as a column."""

    def __init__(self, texts: Iterable[str] | pa.Array | pa.ChunkedArray) -> None:
        """Take the texts, or a column of them."""
        self.column = _column(texts)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            picked = self.column.slice(start, max(stop - start, 0)) if step == 1 else self.column[place]
            return picked.to_pylist()
        return self.column[place].as_py()

    def __len__(self) -> int:
        return len(self.column)

    def __iter__(self) -> Iterator[str]:
        for part in _parts(self.column):
            yield from part

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Texts):
            return bool(self.column.equals(other.column))
        return isinstance(other, list | tuple) and [*self] == [*other]

    __hash__ = None  # type: ignore[assignment]

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self.column.cast(type or pa.string())


class Ids(Texts):
    """Distinct texts in order, and where each stands: 20 bytes a text beside its characters.

    A text is looked for by its 64-bit hash among the sorted ones and then compared, so the answer is exact.
    """

    def __init__(self, texts: Iterable[str] | pa.Array | pa.ChunkedArray) -> None:
        """Take the texts, or a column of them. Raises DataError naming one that appears twice."""
        super().__init__(texts)
        keys = np.concatenate([np.empty(0, np.int64), *(_hashes(part) for part in _parts(self.column))])
        order = np.argsort(keys, kind="stable")
        self._keys, self._order = keys[order], order.astype(np.int32 if len(order) < 2**31 else np.int64)
        self._others = dict[str, int]()
        for at in np.flatnonzero(self._keys[1:] == self._keys[:-1]) + 1:
            place = int(self._order[at])
            if self[place] in self:
                raise DataError(f"{self[place]!r} appears twice; every id must be there once.")
            self._others[self[place]] = place  # another text of equal hash

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Ids":
        """The texts, which may be `Ids` already."""
        return texts if isinstance(texts, Ids) else cls(texts)

    def place(self, text: object) -> int:
        """Where a text stands, or `ABSENT`."""
        if not isinstance(text, str) or not len(self):
            return ABSENT
        row = int(self._order[min(int(self._keys.searchsorted(_hash(text))), len(self) - 1)])
        return row if self.column[row].as_py() == text else self._others.get(text, ABSENT)

    def places(self, texts: "Sequence[str] | pa.Array | pa.ChunkedArray") -> np.ndarray:
        """Where each text stands, int64 `[n]`; `ABSENT` for those that are not there. Columns are quickest."""
        if isinstance(texts, Texts | pa.Array | pa.ChunkedArray):
            found = pc.index_in(_column(texts), value_set=self.column)
            return found.fill_null(ABSENT).to_numpy(zero_copy_only=False).astype(np.int64)
        if not len(self):
            return np.full(len(texts), ABSENT)
        at = np.minimum(self._keys.searchsorted(_hashes(texts)), len(self) - 1)
        rows = self._order[at].astype(np.int64)
        there = self.column.take(pa.array(rows)).to_pylist()
        for other in np.flatnonzero(~np.fromiter(map(eq, there, texts), bool, len(rows))).tolist():
            rows[other] = self._others.get(texts[other], ABSENT)
        return rows

    def __contains__(self, text: object) -> bool:
        return self.place(text) != ABSENT

    def __reduce__(self) -> tuple[Any, ...]:
        return Ids, (self.column,)  # hashes of texts differ between processes


def sorted_ids(texts: Iterable[str] | pa.Array | pa.ChunkedArray) -> Ids:
    """The distinct texts, ascending."""
    column = _column(texts)
    column = column.take(pc.sort_indices(column))
    first = np.ones(len(column), bool)
    first[1:] = pc.not_equal(column[1:], column[:-1]).to_numpy(zero_copy_only=False)
    return Ids(column if first.all() else column.filter(pa.array(first)))


class IdMap(Mapping[str, T], Generic[T]):
    """Values by id as a column: a value is made when it is asked for, and a null is none."""

    def __init__(self, ids: Ids, column: pa.Array, read: Callable[[Any], T]) -> None:
        """Take the ids and the column of their values; `read` makes a value of the column's plain one."""
        self.ids, self.column, self.read = ids, column, read

    @classmethod
    def texts(cls, pairs: Iterable[tuple[str, str]]) -> "IdMap[str]":
        """Texts by their ids, also paths that are not UTF-8. Raises DataError naming an id that appears twice."""
        pairs, names, texts = iter(pairs), [pa.array([], pa.large_string())], [pa.array([], pa.large_binary())]
        while some := list(islice(pairs, _TOGETHER)):
            names.append(pa.array([name for name, _ in some], pa.large_string()))
            texts.append(pa.array([text.encode("utf-8", "surrogateescape") for _, text in some], pa.large_binary()))
        column = pa.chunked_array(texts).combine_chunks()
        return IdMap(Ids(pa.chunked_array(names)), column, _text)

    def __getitem__(self, image_id: str) -> T:
        place = self.ids.place(image_id)
        value = None if place == ABSENT else self.column[place].as_py()
        if value is None:
            raise KeyError(image_id)
        return self.read(value)

    def __iter__(self) -> Iterator[str]:
        there = self.column.is_valid()
        return (name for name, known in zip(self.ids, there, strict=True) if known.as_py())

    def __len__(self) -> int:
        return len(self.column) - self.column.null_count


def _text(stored: bytes) -> str:
    return stored.decode("utf-8", "surrogateescape")


def _column(texts: Iterable[str] | pa.Array | pa.ChunkedArray) -> pa.Array:
    """The texts as one array, whose characters may be more than 2 GB."""
    if isinstance(texts, Texts):
        return texts.column
    if not isinstance(texts, pa.Array | pa.ChunkedArray):
        rest, chunks = iter(texts), [pa.array([], pa.large_string())]
        while some := list(islice(rest, _TOGETHER)):
            chunks.append(pa.array(some, pa.large_string()))
        return pa.chunked_array(chunks).combine_chunks()
    column = texts.cast(pa.large_string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _parts(column: pa.Array) -> Iterator[list[str]]:
    for start in range(0, len(column), _TOGETHER):
        yield column.slice(start, _TOGETHER).to_pylist()


def _hashes(texts: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(_hash, texts), np.int64, len(texts))
