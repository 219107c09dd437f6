"""Which images a living gallery has at one version: those of a base that stay, and newer ones beside it.

Outside, a row is the place of an id among all ids in ascending order, as in a frozen index.

Shapes: A images of the base that stay, L lost ones, M newer images, N images.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa

from cirray.catalogue.change import OWN
from cirray.catalogue.rows import Rows, joined
from cirray.index.metadata import Columns
from cirray.index.protocol import VectorIndex


@dataclass(frozen=True)
class Base:
    """Images with their index; never changed."""

    rows: Rows
    index: VectorIndex | None
    """None for no image."""

    @cached_property
    def columns(self) -> Columns:
        """Its metadata; the masks of filters stay with it, in whatever views it is seen."""
        metadata = self.rows.metadata
        return Columns(self.rows.ids, metadata if metadata.num_columns else None)


@dataclass(frozen=True)
class View:
    """Which images there are: those of the base that stay, and the newer ones.

    Every look at the table makes one, so what it needs at once takes time by the number of changes, not of images.
    """

    base: Base
    lost_L: np.ndarray
    """Places of the base that are replaced or gone, ascending (int64)."""
    newer: Base
    at_M: np.ndarray
    """How many ids of the base come before that of each newer image (int64)."""

    @classmethod
    def of(cls, base: Base) -> "View":
        """All images of a base, and no others."""
        none = np.empty(0, np.int64)
        return cls(base, none, Base(base.rows.head(0), None), none)

    def changed(self, fresh: Rows, named: Sequence[str], build: Callable[[Rows], VectorIndex | None]) -> "View":
        """The view with fresh images, and without what else there is of the ids that were named.

        Args:
            fresh: images by ascending id.
            named: their ids, and those that are gone.
            build: gives the index of the newer images.
        """
        if not named:
            return self
        old, places = self.newer.rows, self.base.rows.places
        lost = np.array([place for name in named if (place := places.get(name)) is not None], np.int64)
        again = [place for name in named if (place := _place(old.ids, name)) is not None]
        kept = np.delete(np.arange(len(old)), again)
        rows = joined(old, kept, fresh)
        at = np.array([bisect_left(self.base.rows.ids, name) for name in fresh.ids], np.int64)
        at_M = np.sort(np.concatenate([self.at_M[kept], at]), kind="stable")  # it ascends as the ids do
        return View(self.base, np.union1d(self.lost_L, lost), Base(rows, build(rows)), at_M)

    def widened(self, schema: pa.Schema) -> "View":
        """The view with the columns of metadata that a table has gained; none of its images has a value."""
        base, newer = (_widened(part, schema) for part in (self.base, self.newer))
        return self if base is self.base and newer is self.newer else replace(self, base=base, newer=newer)

    def __len__(self) -> int:
        return self.kept + len(self.newer.rows)

    @property
    def kept(self) -> int:
        """How many images of the base stay."""
        return len(self.base.rows) - len(self.lost_L)

    @cached_property
    def stays_N(self) -> np.ndarray:
        """Whether a place of the base stays (bool)."""
        found = np.ones(len(self.base.rows), bool)
        found[self.lost_L] = False
        return found

    @cached_property
    def kept_A(self) -> np.ndarray:
        """Places of the base that stay."""
        return np.flatnonzero(self.stays_N)

    @cached_property
    def before_M(self) -> np.ndarray:
        """How many images that stay come before each newer one."""
        return self.at_M - np.searchsorted(self.lost_L, self.at_M)

    @cached_property
    def newer_M(self) -> np.ndarray:
        """Rows of the newer images."""
        return self.before_M + np.arange(len(self.at_M))

    @cached_property
    def _passed_L(self) -> np.ndarray:
        """How many images that stay come before each lost place."""
        return self.lost_L - np.arange(len(self.lost_L))

    def row(self, image_id: str) -> int | None:
        """Row of an id; None where there is none."""
        place = _place(self.newer.rows.ids, image_id)
        if place is not None:
            return int(self.newer_M[place])
        place = self.base.rows.places.get(image_id)
        if place is None or not self.stays_N[place]:
            return None
        rank = self.rank(place)
        return rank + int(np.searchsorted(self.before_M, rank, side="right"))

    def rank(self, place: int) -> int:
        """How many images that stay come before a place of the base."""
        return place - int(np.searchsorted(self.lost_L, place))

    def find(self, row: int) -> tuple[Rows, int]:
        """Where a row lies: the rows of base or newer ones, and the place there."""
        place = int(np.searchsorted(self.newer_M, row))
        if place < len(self.newer_M) and self.newer_M[place] == row:
            return self.newer.rows, place
        rank = row - place
        return self.base.rows, rank + int(np.searchsorted(self._passed_L, rank, side="right"))

    def to_base(self, mask_N: np.ndarray) -> np.ndarray:
        """A mask of rows as one of places in the base."""
        kept = np.delete(mask_N, self.newer_M)
        if not len(self.lost_L):
            return kept
        found = np.zeros(len(self.stays_N), bool)
        found[self.stays_N] = kept
        return found

    def of_parts(self, base_N: np.ndarray, newer_M: np.ndarray) -> np.ndarray:
        """A mask of rows from one of places in the base and one of newer images."""
        return np.insert(base_N[self.stays_N] if len(self.lost_L) else base_N, self.before_M, newer_M)

    @cached_property
    def _kept_rows(self) -> np.ndarray:
        """Rows of the images of the base that stay."""
        return np.delete(np.arange(len(self)), self.newer_M)

    @cached_property
    def order_N(self) -> np.ndarray:
        """For every row its place in the base, or that of a newer image plus the size of the base."""
        order = np.empty(len(self), np.int64)
        order[self._kept_rows] = self.kept_A
        order[self.newer_M] = np.arange(len(self.newer_M)) + len(self.base.rows)
        return order

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """All ids, ascending."""
        found = np.empty(len(self), object)
        found[self._kept_rows] = np.array(self.base.rows.ids, object)[self.kept_A]
        found[self.newer_M] = self.newer.rows.ids
        return tuple(found)


def _place(ids: list[str], image_id: str) -> int | None:
    """Place of an id among ascending ones; None where it is not there."""
    at = bisect_left(ids, image_id)
    return at if at < len(ids) and ids[at] == image_id else None


def _widened(base: Base, schema: pa.Schema) -> Base:
    facts = base.rows.facts
    for item in schema:
        if item.name.startswith(OWN) and item.name not in facts.column_names:
            facts = facts.append_column(item, pa.nulls(len(facts), item.type))
    return base if facts is base.rows.facts else Base(replace(base.rows, facts=facts), base.index)
