"""The table of a living gallery: a log of changes in Lance. LanceDB makes and opens it; what is done often asks Lance
itself, since each of LanceDB's calls goes through a thread of its own, which took half of an append's time.

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
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.catalogue.change import OWN, Change, columns_of, rows_of_changes
from cirray.catalogue.made import GONE, NAME, Made
from cirray.catalogue.merging import NUMBER, merge_files, outdated
from cirray.catalogue.places import connected, is_gone, told, unread
from cirray.core.errors import ArtifactError, DataError, RemadeError, StoreError
from cirray.index.shards import WHOLE, Shard

_FACTS = ("content", "origin", "width", "height")
_DELETED_AT_ONCE = 20_000
_TAKEN, _SPARE = 4_096, 64
"""Most rows that are taken by their numbers, and how many numbers more are asked for."""
MERGE_EVERY = 128
"""Commits of one writer after which it merges files."""


class Catalogue:
    """A table of images that is written to and read by any number of processes. One object a thread."""

    def __init__(self, table: Any, uri: str, made: Made) -> None:
        """Wrap a Lance data set; see `create` and `open`."""
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
        """Take an open table as it is now."""
        self._held, self._schema = table, table.schema

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
            table = connected(uri, patient).create_table(NAME, schema=schema).to_lance()
            return cls(table, uri, Made(uri, patient))

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
            return cls(place.open_table(NAME).to_lance(), uri, made)
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
        return columns_of(self._schema)

    def refresh(self) -> int:
        """Read the newest version from now on; returns it.

        Raises:
            StoreError: when the store cannot be read.
        """
        self._look("read")
        return self.version

    def _look(self, what: str, newest: bool = True) -> None:
        """Make sure that this gallery is there, and no other one; where asked, go to the newest version."""
        with told(self.uri, what):
            try:
                table = self._table
                if newest:
                    table.checkout_latest()
                self._made.check()
                self._hold(table)
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
        self._ready()
        try:
            table = self.as_table(list(last.values()))
        except DataError:
            self.refresh()  # a column may be new
            table = self.as_table(list(last.values()))
        with told(self.uri, "written"):
            self._append(table)
            self.commits += 1
        return self.version

    def _ready(self) -> None:
        """Before a write: where the table was deleted Lance would begin it anew, over files that are gone.

        In a folder a look at it tells, which does not read the newest version: a commit does that by itself.
        """
        self._look("written", newest=not self._made.is_local)

    def _append(self, rows: pa.Table) -> None:
        """Append rows in one commit, after those that others have made meanwhile; be at its version."""
        import lance

        self._hold(lance.write_dataset(rows, self._table, mode="append"))

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
        return rows_of_changes(changes, self._schema)

    def add_columns(self, columns: Mapping[str, pa.DataType]) -> list[str]:
        """Add metadata columns, which no image has a value of yet; returns the names of those that are new.

        Beside writers and readers.

        Raises:
            DataError: one that is there holds another type.
            StoreError: the store refuses.
        """
        self.refresh()
        known = self.columns
        other = next((name for name, kind in columns.items() if known.get(name, kind) != kind), None)
        if other is not None:
            raise DataError(f"The metadata column {other!r} holds {known[other]} here; a column keeps its type.")
        new = [pa.field(f"{OWN}{name}", kind) for name, kind in columns.items() if name not in known]
        if new:
            with told(self.uri, "written"):
                self._table.add_columns(pa.schema(new))
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
                self.end = _after(self._read(["slot"], f"{NUMBER} >= {number}" if number else None), number)
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
        numbers = ",".join(map(str, range(number, number + gained + _SPARE)))
        found = self._read(names, f"{NUMBER} in ({numbers})")
        return found if len(found) == gained else None

    def _scanned(self, number: int, shard: Shard, names: Sequence[str]) -> pa.Table:
        slots = f"((slot >= {shard.slots.start} and slot < {shard.slots.stop}) or purged is not null)"
        wanted = [f"{NUMBER} >= {number}"] * (number > 0) + [slots] * (not shard.is_whole)
        return self._read(names, " and ".join(wanted) or None)

    def _read(self, names: Sequence[str], where: str | None = None) -> pa.Table:
        """Columns of the rows that a condition in SQL keeps, with the rows' numbers."""
        return self._table.to_table(columns=list(names), filter=where, with_row_id=True)

    def picture(self, number: int) -> bytes:
        """Thumbnail of one row; empty when it has none, or has been replaced.

        Raises:
            StoreError: when the store cannot be read.
        """
        with told(self.uri, "read"):
            found = self._read(["picture"], f"{NUMBER} = {number}")["picture"].to_pylist()
        return found[0] or b"" if found else b""

    def merge(self, clean: bool = False) -> None:
        """Write small files together; what they hold stays as it is, with its numbers.

        Beside writers, readers and other merges, of which one does it. It takes as long as the small files are large,
        whatever else the table holds.

        Args:
            clean: also delete versions that nobody reads any more, which looks at each version of the last minutes.

        Raises:
            StoreError: the store refuses.
        """
        self.refresh()
        with told(self.uri, "written"):
            merge_files(self._table, clean)

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
            dropped, notes = outdated(self._read(columns), keep_s)
            if len(notes):
                self._append(self._mark(int(notes.max())))
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
