"""The table of a living gallery: a log of changes in Lance, through LanceDB.

Every change is a row that is appended: an image (vector, thumbnail, origin, metadata), or the note that an id is gone.
An append never conflicts with another one, so any number of writers may work at once. Lance numbers the rows when a
commit becomes visible, and keeps the numbers when files are rewritten (stable row ids): the highest number of an id is
its state, and whoever has read up to a number asks for the higher ones. A merge by key would not do: two writers that
insert the same new id would both succeed.

Merging writes small files together, those of a size alone: a file of many images is not written again for a few new
rows. Compaction also deletes rows that a later one has replaced. Before it deletes notes of gone ids it appends how far
it will go (`purged`): a reader that has read less reads everything again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.catalogue.made import GONE, Made
from cirray.catalogue.merging import NUMBER, merge_files, now_ms, outdated
from cirray.catalogue.places import connected, is_gone, told, unread
from cirray.core.errors import ArtifactError, DataError, RemadeError, StoreError, reason_of
from cirray.core.texts import is_whole
from cirray.index.shards import WHOLE, Shard, slot_of

OWN = "m_"
"""Columns of metadata begin with it, so that no name clashes with those of the table."""
MAX_ID = 1_024
"""Most characters of an id."""
_NAME = "images"
TABLE = f"{_NAME}.lance"
"""The table's folder in a gallery's."""
_FACTS = ("content", "origin", "width", "height")
_DELETED_AT_ONCE = 20_000
_TAKEN, _SPARE = 4_096, 64
"""Most rows that are taken by their numbers, and how many numbers more are asked for."""
MERGE_EVERY = 128
"""Commits of one writer after which it merges files."""


@dataclass(frozen=True)
class Change:
    """One image as it is from now on, or, without vectors, the note that it is gone."""

    id: str
    tokens_QD: np.ndarray | None = None
    picture: bytes = b""
    """Encoded thumbnail; empty: none."""
    size: tuple[int, int] = (0, 0)
    """Width and height of the thumbnail."""
    content: str = ""
    """Digest of the original picture's bytes."""
    origin: str = ""
    """Path of its file, where it has one."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Catalogue:
    """A table of images that is written to and read by any number of processes. One object a thread."""

    def __init__(self, table: Any, uri: str, made: Made) -> None:
        """Wrap an open table; see `create` and `open`."""
        self.uri, self._made = uri, made
        self._remade: RemadeError | None = None
        self.commits = 0
        """Commits that this object made."""
        self.end, self._counted = 0, 0
        """`end`: see `since`; and how many rows there were then."""
        self._hold(table)

    @property
    def _table(self) -> Any:
        """The table; one that another gallery has taken the place of is neither read nor written."""
        if self._remade is not None:
            raise self._remade
        return self._held

    def _hold(self, table: Any) -> None:
        """Take an open table as it is now. Asking for its schema takes half a millisecond: only when others wrote."""
        self._held = table
        self._at, self._schema = int(table.version), table.schema
        self._width = self._schema.field("vector").type.list_size

    @classmethod
    def create(
        cls, uri: str, shape: tuple[int, int], columns: Mapping[str, pa.DataType] | None = None, patient: bool = False
    ) -> "Catalogue":
        """Make an empty table in a folder or below a URI.

        Args:
            uri: the gallery's place.
            shape: vectors of an image and their width (Q, D).
            columns: metadata columns and their types.
            patient: wait for a store that is away, as stages do; a service asks for a few seconds.

        Raises:
            StoreError: when it cannot be written.
        """
        own = [(f"{OWN}{name}", kind) for name, kind in (columns or {}).items()]
        schema = pa.schema([
            ("id", pa.string()), ("slot", pa.uint16()), ("gone", pa.bool_()), ("purged", pa.int64()),
            ("at", pa.int64()),
            ("vector", pa.list_(pa.float16(), shape[0] * shape[1])), ("content", pa.string()),
            ("origin", pa.string()), ("width", pa.uint16()), ("height", pa.uint16()), ("picture", pa.binary()), *own,
        ])  # fmt: skip
        with told(uri, "written"):
            return cls(connected(uri, patient).create_table(_NAME, schema=schema), uri, Made(uri, patient))

    @classmethod
    def open(cls, uri: str, patient: bool = False) -> "Catalogue":
        """Open the table of a gallery, at its newest version. `patient`: see `create`.

        Raises:
            ArtifactError: when there is none.
            ConfigError: without LanceDB.
            StoreError: when the store cannot be read.
        """
        place = connected(uri, patient)
        try:
            made = Made(uri, patient)
            return cls(place.open_table(_NAME), uri, made)
        except (ValueError, FileNotFoundError):
            raise ArtifactError(f"The gallery {uri!r} has no table of images. Make it again (cirray index).") from None
        except (OSError, RuntimeError) as error:
            raise unread(uri, error, "read") from None

    @property
    def version(self) -> int:
        """The version that is read; `refresh` moves it."""
        return int(self._table.version)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Names and types of the metadata columns."""
        found = ((item.name, item.type) for item in self._schema)
        return {name.removeprefix(OWN): kind for name, kind in found if name.startswith(OWN)}

    def refresh(self) -> int:
        """Read the newest version from now on; returns it.

        Raises:
            StoreError: when the store cannot be read.
        """
        self._look("read")
        return self.version

    def _look(self, what: str) -> None:
        """Go to the newest version, of this gallery and no other one. Before a write too: where the table was deleted
        Lance would begin it anew, over files that are gone.
        """
        with told(self.uri, what):
            try:
                self._table.checkout_latest()
                self._made.check()
                if int(self._table.version) != self._at:
                    self._hold(self._table)
            except RemadeError as error:
                self._remade = error
                raise
            except (ValueError, OSError, RuntimeError) as error:
                raise RuntimeError(GONE) if is_gone(error) else error from None

    def write(self, changes: Sequence[Change]) -> int:
        """Append changes in one commit; returns when they are durable. Of two for one id the later one counts.

        Returns:
            Version of the table that shows them.

        Raises:
            DataError: an id, a vector or metadata that cannot be kept; nothing is written.
            StoreError: the store refuses (full disk, read-only, away); nothing is written, or the whole group.
        """
        last = {change.id: change for change in changes}
        self._look("written")
        table = self.as_table(list(last.values()))
        with told(self.uri, "written"):
            before, self._at = self._at, int(self._table.add(table).version)
            self.commits += 1
            if self._at != before + 1:
                self._hold(self._table)  # others wrote meanwhile
        return self._at

    def load(self, changes: Sequence[Change]) -> None:
        """As `write`, for whoever writes a lot: every `MERGE_EVERY` commits files are merged."""
        self.write(changes)
        if self.commits % MERGE_EVERY == 0:
            with suppress(StoreError):  # another process's merge was first
                self.merge()

    def as_table(self, changes: Sequence[Change]) -> pa.Table:
        """Changes as rows.

        Raises:
            DataError: naming the id whose change cannot be kept.
        """
        for change in changes:
            _check(change, self._width)
        vectors = [_flat(change, self._width) for change in changes]
        values = pa.array(np.concatenate(vectors) if vectors else np.empty(0, np.float16))
        gone = [change.tokens_QD is None for change in changes]
        columns = {
            "id": pa.array([change.id for change in changes], pa.string()), "gone": pa.array(gone, pa.bool_()),
            "slot": pa.array([slot_of(change.id) for change in changes], pa.uint16()),
            "purged": pa.nulls(len(changes), pa.int64()), "at": pa.array([now_ms()] * len(changes), pa.int64()),
            "vector": pa.FixedSizeListArray.from_arrays(values, self._width),
            **{name: pa.array([getattr(change, name) for change in changes]) for name in ("content", "origin")},
            "width": pa.array([change.size[0] for change in changes], pa.uint16()),
            "height": pa.array([change.size[1] for change in changes], pa.uint16()),
            "picture": pa.array([change.picture for change in changes], pa.binary()),
            **self._own(changes),
        }  # fmt: skip
        return pa.table({name: columns[name] for name in self._schema.names})

    def _own(self, changes: Sequence[Change]) -> dict[str, pa.Array]:
        known = self.columns
        for change in changes:
            odd = next((name for name in change.metadata if name not in known), None)
            if odd is not None:
                raise DataError(
                    f"{change.id[:80]!r}: this gallery has no metadata column {odd[:80]!r}. It has "
                    f"{', '.join(sorted(known)) or 'none'}; `cirray gallery --columns.NAME text` adds one."
                )
        found = {}
        for name, kind in known.items():
            try:
                found[f"{OWN}{name}"] = pa.array([change.metadata.get(name) for change in changes], kind)
            except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, ValueError, OverflowError) as error:
                raise DataError(f"The metadata column {name!r} holds {kind}: {reason_of(error)}.") from None
        return found

    def add_columns(self, columns: Mapping[str, pa.DataType]) -> list[str]:
        """Add metadata columns, which no image has a value of yet; returns the names of those that are new.

        Beside writers and readers.

        Raises:
            DataError: one that is there holds another type.
            StoreError: the store refuses.
        """
        self._look("read")
        known = self.columns
        other = next((name for name, kind in columns.items() if known.get(name, kind) != kind), None)
        if other is not None:
            raise DataError(f"The metadata column {other!r} holds {known[other]} here; a column keeps its type.")
        new = [pa.field(f"{OWN}{name}", kind) for name, kind in columns.items() if name not in known]
        if new:
            with told(self.uri, "written"):
                self._table.add_columns(new)
                self._hold(self._table)
        return [item.name.removeprefix(OWN) for item in new]

    def since(self, number: int, shard: Shard = WHOLE) -> pa.Table:
        """Rows of a shard with at least that number, without pictures; numbers are in `_rowid`, in no order.

        `end` is the number after those of all rows then, also of other shards.

        Raises:
            StoreError: when the store cannot be read, tried twice.
        """
        try:
            return self._since(number, shard)
        except StoreError as error:
            if "ot found" not in str(error):
                raise
            self.refresh()  # files were merged meanwhile, and those of this version deleted
            return self._since(number, shard)

    def _since(self, number: int, shard: Shard) -> pa.Table:
        names = ["id", "slot", "gone", "purged", "vector", *_FACTS, *(f"{OWN}{name}" for name in self.columns)]
        with told(self.uri, "read"):
            count = int(self._table.count_rows())
            appended = self._appended(number, count, names)
            found = self._scanned(number, shard, names) if appended is None else _of_shard(appended, shard)
            if appended is not None or shard.is_whole:
                self.end = _after(appended if appended is not None else found, number)
            else:
                query = self._table.search().select(["slot"]).with_row_id(True)
                where = f"{NUMBER} >= {number}"
                self.end = _after((query.where(where) if number else query).to_arrow(), number)
            self._counted = count
        return found.drop_columns(["slot"])

    def _appended(self, number: int, count: int, names: Sequence[str]) -> pa.Table | None:
        """The rows from a number on where they are all that has happened since the last reading; None where not.

        They are taken by their numbers, which are without gaps as long as nothing was deleted: then there are as many
        as the table has gained, and none after them. A scan looks into every file of the table, however few are new.
        """
        gained = count - self._counted
        if number == 0 or number != self.end or not 0 <= gained <= _TAKEN:
            return None
        numbers = list(range(number, number + gained + _SPARE))
        found = self._table.take_row_ids(numbers).select(list(names)).with_row_id().to_arrow()
        return found if len(found) == gained else None

    def _scanned(self, number: int, shard: Shard, names: Sequence[str]) -> pa.Table:
        slots = f"((slot >= {shard.slots.start} and slot < {shard.slots.stop}) or purged is not null)"
        wanted = [f"{NUMBER} >= {number}"] * (number > 0) + [slots] * (not shard.is_whole)
        query = self._table.search().select(list(names)).with_row_id(True)
        return (query.where(" and ".join(wanted)) if wanted else query).to_arrow()

    def picture(self, number: int) -> bytes:
        """Thumbnail of one row; empty when it has none, or has been replaced.

        Raises:
            StoreError: when the store cannot be read.
        """
        with told(self.uri, "read"):
            found = self._table.take_row_ids([number]).select(["picture"]).to_arrow()["picture"].to_pylist()
        return found[0] or b"" if found else b""

    def merge(self, clean: bool = False) -> None:
        """Write small files together; what they hold stays as it is, with its numbers.

        Beside writers and readers. It takes as long as the small files are large, whatever else the table holds.

        Args:
            clean: also delete versions that nobody reads any more, which looks at each version of the last minutes.

        Raises:
            StoreError: the store refuses, or another process's merge or compaction was first.
        """
        self.refresh()
        with told(self.uri, "written"):
            merge_files(self._table.to_lance(), clean)

    def compact(self, keep_s: float = 60.0) -> int:
        """Merge small files, and delete rows that were replaced or noted as gone.

        Beside writers and readers; one that another process's compaction overtakes leaves the rest to it.

        Args:
            keep_s: leaves rows of the last so many seconds.

        Returns:
            Rows deleted.

        Raises:
            StoreError: when the store refuses.
        """
        self.refresh()
        with told(self.uri, "written"):
            columns = ["id", "gone", "purged", "at"]
            dropped, notes = outdated(self._table.search().select(columns).with_row_id(True).to_arrow(), keep_s)
            if len(notes):
                self._table.add(self._mark(int(notes.max())))
            drop = np.union1d(dropped, notes)
            for start in range(0, len(drop), _DELETED_AT_ONCE):
                some = ",".join(map(str, drop[start : start + _DELETED_AT_ONCE].tolist()))
                self._table.delete(f"{NUMBER} in ({some})")
        self.merge(clean=True)
        return len(drop)

    def _mark(self, number: int) -> pa.Table:
        """The row that says up to which number notes of gone ids may have been deleted."""
        row = self.as_table([Change("-")])
        row = row.set_column(row.schema.get_field_index("id"), "id", pa.array([""]))
        return row.set_column(row.schema.get_field_index("purged"), "purged", pa.array([number], pa.int64()))


def _after(rows: pa.Table, number: int) -> int:
    """The number after those of some rows, of which those below `number` are known."""
    return max(number, int(pa.compute.max(rows[NUMBER]).as_py()) + 1) if len(rows) else number


def _of_shard(rows: pa.Table, shard: Shard) -> pa.Table:
    """A shard's rows, and those that say how far a compaction went."""
    if shard.is_whole:
        return rows
    slots = rows["slot"].to_numpy()
    own = (slots >= shard.slots.start) & (slots < shard.slots.stop)
    return rows.filter(pa.array(own | rows["purged"].is_valid().to_numpy()))


def _check(change: Change, width: int) -> None:
    if not 0 < len(change.id) <= MAX_ID or not is_whole(change.id):
        raise DataError(f"The id {change.id[:80]!r} cannot be kept: 1 to {MAX_ID:,} characters of UTF-8 are needed.")
    if change.tokens_QD is None:
        return
    if change.tokens_QD.size != width:
        raise DataError(
            f"The vector of {change.id[:80]!r} has {change.tokens_QD.size:,} values; this gallery's have {width:,}."
        )
    if not np.isfinite(change.tokens_QD).all():
        raise DataError(f"The vector of {change.id[:80]!r} holds values that are not finite (NaN or infinity).")


def _flat(change: Change, width: int) -> np.ndarray:
    if change.tokens_QD is None:
        return np.zeros(width, np.float16)
    return np.asarray(change.tokens_QD, np.float16).reshape(-1)
