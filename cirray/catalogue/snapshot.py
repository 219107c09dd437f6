"""A living gallery as it was at one version: what a request sees from its beginning to its end.

Most images lie in a base with an index of its own kind. What has changed since lies beside it: a small exact index of
new images, and the places of the base that are replaced or gone. Outside, a row is the place of an id among all ids in
ascending order, as in a frozen index.

Shapes: B queries, N images, Q tokens an image, D width, K answers.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.catalogue.table import Catalogue
from cirray.catalogue.view import View
from cirray.core.errors import StoreError
from cirray.index.metadata import Columns
from cirray.index.protocol import Allowed, Answers, Page, VectorIndex, best_of, by_mask, checked_queries
from cirray.index.store import GalleryIndex, IndexMeta

_KEPT_PICTURES = 512
_SPARE = 32


class LiveIndex:
    """The search of a view; see `VectorIndex`."""

    def __init__(self, view: View, width: int) -> None:
        """Search a view of vectors of that width."""
        self._view, self._width = view, width
        self._lost = len(view.lost_L)

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, ascending."""
        return self._view.ids

    def search(self, queries_BD: np.ndarray, k: int, allowed: Allowed = None) -> Answers:
        """The k best images of each query; see `VectorIndex.search`."""
        queries_BD = checked_queries(queries_BD, self._width, k)
        answers = min(k, len(self._view))
        parts = (
            (places, part)
            for mask_N, places in by_mask(allowed, len(queries_BD), len(self._view))
            for part in self._parts(queries_BD[places], k, mask_N)
        )
        return best_of(parts, len(queries_BD), answers)

    def _parts(self, queries_BD: np.ndarray, k: int, mask_N: np.ndarray | None) -> Iterator[Answers]:
        """Answers of the base and of the newer images."""
        base, newer = self._view.base.index, self._view.newer.index
        if base is not None and self._view.kept:
            if mask_N is None and self._lost:
                yield self._spared(base, queries_BD, k)
            else:
                yield base.search(queries_BD, k, None if mask_N is None else self._view.to_base(mask_N))
        if newer is not None:
            yield newer.search(queries_BD, k, None if mask_N is None else mask_N[self._view.newer_M])

    def _spared(self, base: VectorIndex, queries_BD: np.ndarray, k: int) -> Answers:
        """The k best that stay. A few more are asked for, and the lost ones left out, which is quicker than a mask;
        where too few are left, the mask decides.
        """
        places, stays, most = self._view.base.rows.places, self._view.stays_N, min(k, self._view.kept)
        names, scores_BK = base.search(queries_BD, k + min(_SPARE, self._lost))
        kept = [[at for at, name in enumerate(some) if stays[places[name]]][:most] for some in names]
        short = [number for number, items in enumerate(kept) if len(items) < most]
        found = [tuple(some[at] for at in items) for some, items in zip(names, kept, strict=True)]
        scores = np.full((len(found), most), -np.inf, np.float32)
        for line, values, items in zip(scores, scores_BK, kept, strict=True):
            line[: len(items)] = values[items]
        if short:
            again, scores_SK = base.search(queries_BD[short], k, stays)
            for number, some in zip(short, again, strict=True):
                found[number] = some
            scores[short] = scores_SK[:, :most]
        return found, scores


class LiveColumns(Columns):
    """The columns of a view. What a filter says of the base is found once, however often images beside it change."""

    def __init__(self, view: View) -> None:
        """Show the columns of a view's parts."""
        self._view, self._parts = view, (view.base.columns, view.newer.columns)
        self.schema, self.names = self._parts[0].schema, self._parts[0].names
        self._masks = {}

    def rows(self, rows: Sequence[int], names: Sequence[str]) -> list[dict[str, Any]]:
        """Some columns of metadata of some rows as values for JSON."""
        found = (self._view.find(row) for row in rows)
        base, newer = self._parts
        return [(base if part is self._view.base.rows else newer).rows([at], names)[0] for part, at in found]

    def _found(self, text: str) -> np.ndarray:
        base, newer = self._parts
        return self._view.of_parts(base.mask(text), newer.mask(text))

    def table(self) -> pa.Table | None:
        """All columns of metadata in row order; None for a gallery without."""
        one, other = (part.table() for part in self._parts)
        return None if one is None else pa.concat_tables([one, other]).take(pa.array(self._view.order_N))


class LivePictures:
    """Thumbnails, read from the table when they are asked for; the latest stay in memory."""

    def __init__(self, view: View, reader: "PictureReader") -> None:
        """Pictures of a view by one reader for all views."""
        self._view, self._reader = view, reader

    def read(self, row: int) -> bytes:
        """Encoded picture of one row, empty when there is none."""
        rows, place = self._view.find(row)
        return self._reader(int(rows.numbers_N[place])) if rows.facts["width"][place].as_py() else b""

    def size(self, row: int) -> tuple[int, int] | None:
        """Width and height of one row's picture."""
        rows, place = self._view.find(row)
        width, height = (rows.facts[name][place].as_py() for name in ("width", "height"))
        return (width, height) if width else None


class PictureReader:
    """Reads pictures by the numbers of their rows. Any thread may ask."""

    def __init__(self, catalogue: Catalogue) -> None:
        """Read from a table that nothing else uses."""
        self._catalogue, self._lock = catalogue, Lock()
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def __call__(self, number: int) -> bytes:
        """Encoded picture; empty where the row is no more.

        Raises:
            StoreError: when the store cannot be read.
        """
        with self._lock:
            if number not in self._kept:
                self._kept[number] = self._read(number)
                if len(self._kept) > _KEPT_PICTURES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]

    def _read(self, number: int) -> bytes:
        """Read at the version at hand, which is old enough to have lost its files or too old for a new row."""
        try:
            if picture := self._catalogue.picture(number):
                return picture
        except StoreError:
            pass
        self._catalogue.refresh()
        return self._catalogue.picture(number)


@dataclass(frozen=True)
class LiveOriginals:
    """The files that images were made of."""

    view: View

    def find(self, row: int) -> tuple[Path, str] | None:
        """Path and digest of a row's file; None when it has none."""
        rows, place = self.view.find(row)
        origin, content = (rows.facts[name][place].as_py() for name in ("origin", "content"))
        return (Path(origin), content) if origin and content else None


@dataclass(frozen=True)
class LiveGallery(GalleryIndex):
    """A view with what a service asks of a gallery."""

    view: View = field(kw_only=True)
    version: int = field(kw_only=True)
    """Version of the table that it shows."""

    def __len__(self) -> int:
        return len(self.view)

    def __contains__(self, image_id: str) -> bool:
        return self.view.row(image_id) is not None

    def row(self, image_id: str) -> int:
        """Row of one id.

        Raises:
            UnknownImageError: for an id that is not in the gallery.
        """
        row = self.view.row(image_id)
        if row is None:
            raise self.unknown(image_id)
        return row

    def page(self, offset: int, limit: int) -> Page:
        """Some ids, in ascending order; the others are not looked at."""
        found = (self.view.find(row) for row in range(offset, min(offset + limit, len(self))))
        return Page([rows.ids[place] for rows, place in found])

    def before(self, image_id: str) -> int:
        """How many ids come before one, which need not be there."""
        at, newer = (bisect_left(rows.ids, image_id) for rows in (self.view.base.rows, self.view.newer.rows))
        return self.view.rank(at) + newer

    def tag(self, image_id: str) -> str:
        """Changes with the picture of an id: the number of its row."""
        rows, place = self.view.find(self.row(image_id))
        return f"{self.meta.encoder_digest[:8]}-{rows.numbers_N[place]}"

    @cached_property
    def columns(self) -> Columns:
        """What filters and facets see."""
        return LiveColumns(self.view)

    @property
    def metadata(self) -> pa.Table | None:
        """Metadata columns, one row an image; None for a gallery without."""
        return self.columns.table()


def gallery_of(
    view: View, meta: IndexMeta, digest: str, width: int, version: int, reader: PictureReader
) -> LiveGallery:
    """A view as a gallery."""
    return LiveGallery(
        LiveIndex(view, width), meta, f"{digest}-{version}", LivePictures(view, reader), originals=LiveOriginals(view),
        view=view, version=version,
    )  # fmt: skip
