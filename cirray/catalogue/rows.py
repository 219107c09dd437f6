"""Images of a living gallery in memory, in the order of their ids: from rows of the table, and joined with changes.

Shapes: N images, Q tokens an image, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from cirray.catalogue.change import OWN
from cirray.catalogue.merging import NUMBER

_STEP = 8_192
"""Python works on so many ids at a time, then other threads have their turn."""


@dataclass(frozen=True)
class Rows:
    """Images by ascending id."""

    ids: list[str]
    tokens_NQD: np.ndarray
    """fp16."""
    numbers_N: np.ndarray
    """Row numbers of the table (int64)."""
    facts: pa.Table
    """The other columns, without the ids."""

    def __len__(self) -> int:
        return len(self.ids)

    def head(self, count: int) -> "Rows":
        """The first images."""
        return Rows(self.ids[:count], self.tokens_NQD[:count], self.numbers_N[:count], self.facts.slice(0, count))

    @property
    def metadata(self) -> pa.Table:
        """Metadata columns by their own names."""
        names = [name for name in self.facts.column_names if name.startswith(OWN)]
        return self.facts.select(names).rename_columns([name.removeprefix(OWN) for name in names])

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Place of every id."""
        found: dict[str, int] = {}
        for start in range(0, len(self.ids), _STEP):
            some = self.ids[start : start + _STEP]
            found.update(zip(some, range(start, start + len(some)), strict=True))
        return found


def rows_of(table: pa.Table, shape: tuple[int, int]) -> tuple[Rows, list[str]]:
    """The newest row of every id that is not gone, and the ids that are named at all.

    Args:
        table: rows as `Catalogue.since` gives them.
        shape: Q and D.
    """
    table = table.combine_chunks()
    numbers, ids = table[NUMBER].to_numpy().astype(np.int64), texts_of(table["id"])
    newest: dict[str, int] = {}
    order = np.argsort(numbers)
    for start in range(0, len(order), _STEP):
        newest.update((ids[place], place) for place in order[start : start + _STEP].tolist())
    newest.pop("", None)
    gone = table["gone"].to_numpy()
    names = sorted(name for name, place in newest.items() if not gone[place])
    at = np.fromiter((newest[name] for name in names), np.int64, len(names))
    facts = table.drop_columns(["id", "gone", "purged", "vector", NUMBER])
    return Rows(names, _vectors(table, shape)[at], numbers[at], facts.take(pa.array(at))), list(newest)


def joined(one: Rows, kept_N: np.ndarray, other: Rows) -> Rows:
    """The rows of `one` that are kept, and all of `other`, by ascending id; no id is in both."""
    if len(kept_N) == len(one) and not len(other):
        return one
    base = pa.array(one.ids, pa.string()).take(pa.array(kept_N))
    names = pa.concat_arrays([base, pa.array(other.ids, pa.string())])
    order = pa.compute.sort_indices(names).to_numpy().astype(np.int64)
    source = np.concatenate([kept_N, np.arange(len(other)) + len(one)])[order]
    facts = pa.concat_tables([one.facts, other.facts], promote_options="default").take(pa.array(source))
    return Rows(
        texts_of(names.take(pa.array(order))), _picked(one.tokens_NQD, other.tokens_NQD, source),
        np.concatenate([one.numbers_N, other.numbers_N])[source], facts.combine_chunks(),
    )  # fmt: skip


def texts_of(column: pa.Array | pa.ChunkedArray) -> list[str]:
    """Texts as Python's, some thousands at a time."""
    found: list[str] = []
    for start in range(0, len(column), _STEP):
        found += column.slice(start, _STEP).to_pylist()
    return found


def _vectors(table: pa.Table, shape: tuple[int, int]) -> np.ndarray:
    if not len(table):
        return np.empty((0, *shape), np.float16)
    column = table["vector"]
    parts = [chunk.flatten().to_numpy() for chunk in column.chunks]
    flat = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return flat.reshape(len(table), *shape)


def _picked(one: np.ndarray, other: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Rows of two arrays as if they were one, without joining them first."""
    found = np.empty((len(source), *one.shape[1:]), one.dtype)
    first = source < len(one)
    found[first], found[~first] = one[source[first]], other[source[~first] - len(one)]
    return found
