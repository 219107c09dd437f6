"""What keeps a process's copy of a gallery up to date: it reads what the table has gained, and builds new bases.

The newest changes lie beside the base. Once there are many, a thread builds a base of everything; until it is there,
searches go on with the old one. Changes that came meanwhile have higher numbers than the new base, and lie beside it.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa

from cirray.catalogue.merging import NUMBER
from cirray.catalogue.rows import Rows, joined, rows_of
from cirray.catalogue.snapshot import LiveGallery, PictureReader, gallery_of
from cirray.catalogue.table import Catalogue
from cirray.catalogue.view import Base, View
from cirray.core.errors import RemadeError, StoreError
from cirray.core.log import get_logger
from cirray.index.config import IndexBackend
from cirray.index.protocol import VectorIndex
from cirray.index.shards import WHOLE, Shard
from cirray.index.store import IndexMeta, built
from cirray.index.texts import Texts

_LOGGER = get_logger("catalogue.follower")
_RESTS, _LONGEST_S = 50, 0.75
"""A look is followed by a rest of fifty times what it took, but no longer than this: searches, which take turns with it
at the interpreter, seldom meet one, however much is written."""
_LEAST, _MOST, _SHARE = 4_096, 32_768, 10
"""A new base is built for as many changes as a tenth of the old one, but not for fewer or more than these."""


@dataclass(frozen=True)
class _State:
    view: View
    until: int
    """Its base holds every change with a smaller number."""
    changes: pa.Table
    """Rows of the table since then."""
    seen: int
    """Every row with a smaller number has been read."""


class Follower:
    """The current gallery of a table. `poll` moves it; `start` polls until `stop`."""

    def __init__(
        self, uri: str, meta: IndexMeta, shape: tuple[int, int], backend: IndexBackend, digest: str = "",
        exact_kind: str = "", poll_s: float = 0.25, shard: Shard = WHOLE, texts: Texts | None = None,
        examples: tuple[tuple[str, str], ...] = (),
    ) -> None:  # fmt: skip
        """Read the table and build its index.

        Args:
            uri: the gallery's place.
            meta: what made its vectors.
            shape: Q and D.
            backend: the index of the base.
            digest: names the gallery in answers.
            exact_kind: backend of the newest changes, exact in its default settings; empty: the usual one.
            poll_s: seconds between two looks at the table.
            shard: which of its images are followed.
            texts: the data set's own texts by id.
            examples: queries to try (reference id, text).

        Raises:
            ArtifactError: when there is no table.
            StoreError: when it cannot be read.
        """
        self._meta, self._shape, self._digest, self._poll_s, self._shard = meta, shape, digest, poll_s, shard
        self._backend, self._small = backend, IndexBackend(kind=exact_kind) if exact_kind else IndexBackend()
        self._texts, self._examples = texts or {}, examples
        self._catalogue = Catalogue.open(uri)
        self._reader = PictureReader(Catalogue.open(uri))
        self._lock, self._wake, self._ended = threading.Lock(), threading.Event(), threading.Event()
        self._builder = ThreadPoolExecutor(1, "cirray-index")
        self._building: Future[_State] | None = None
        self._thread: threading.Thread | None = None
        self.failures, self._remade = 0, False
        """`failures`: polls in a row that the store refused."""
        self._read_at = time.monotonic()
        self.told: Callable[[LiveGallery], None] = lambda gallery: None
        """Called with every new gallery."""
        self._state = self._read_all()
        self._newer_index(self._state.view.base.rows.head(1))  # what the first change would wait for is loaded here
        self.gallery = self._shown()

    living = True

    @property
    def fault(self) -> str:
        """See `Source`: told from the second look on that failed."""
        behind_s = time.monotonic() - self._read_at
        told = f"has not been read for {behind_s:.0f} s: its store is gone or away"
        told = "was made again, and is not opened anew yet" if self._remade else told
        return f"{told}. It is searched as it was." if self.failures > 1 else ""

    def start(self) -> None:
        """Follow the table in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="cirray-follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following."""
        self._ended.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        self._builder.shutdown(cancel_futures=True)

    def hurry(self) -> None:
        """Look at the table at once: this process has written to it."""
        self._wake.set()

    def poll(self) -> LiveGallery:
        """Take what the table has gained; returns the gallery of now.

        Raises:
            StoreError: when the store cannot be read; the gallery stays what it was.
        """
        with self._lock:
            swapped = self._swap()
            before, now = self._catalogue.version, self._catalogue.refresh()
            if before != now or self.gallery.version != now:
                self._state = self._caught_up()
                swapped = True
            if swapped:
                self.gallery = self._shown()
                self.told(self.gallery)
            self._rebuild_if_due()
            return self.gallery

    def settle(self) -> LiveGallery:
        """Poll, and wait for a base that is being built."""
        self.poll()
        if self._building is not None:
            self._building.exception()
        return self.poll()

    def _run(self) -> None:
        rested_s = 0.0
        while not self._ended.is_set():
            self._wake.wait(max(0.0, self._poll_s - rested_s))
            self._wake.clear()
            begin = time.monotonic()
            try:
                self.poll()
                self.failures, self._read_at = 0, time.monotonic()
            except StoreError as error:
                self._remade = isinstance(error, RemadeError)
                self._fail(str(error))
            except Exception as error:  # noqa: BLE001 - a gallery that stays as it was is better than none
                self._fail(f"the gallery is not caught up: {error!r}")
            rested_s = min(_RESTS * (time.monotonic() - begin), _LONGEST_S)
            self._ended.wait(rested_s)

    def _fail(self, sentence: str) -> None:
        self.failures += 1
        if self.failures == 1:
            _LOGGER.warning("%s Searches go on with what was read before.", sentence)

    def _read_all(self) -> _State:
        self._catalogue.refresh()
        table = self._catalogue.since(0, self._shard)
        rows, _ = rows_of(table, self._shape)
        seen = self._catalogue.end
        assert len(rows.places) == len(rows)  # made now: a million ids take a second
        return _State(View.of(Base(rows, self._index(rows))), seen, table.slice(0, 0), seen)

    def _caught_up(self) -> _State:
        """The state with the table's new rows."""
        state = self._state
        fresh = self._catalogue.since(state.seen, self._shard)
        if pa.compute.max(fresh["purged"]).as_py() is not None and _purged(fresh) >= state.seen:
            return self._read_all()
        changes = pa.concat_tables([state.changes, fresh], promote_options="default")
        return _State(self._changed(state.view, fresh), state.until, changes, self._catalogue.end)

    def _changed(self, view: View, table: pa.Table) -> View:
        """A view with rows of the table that are newer than it."""
        return view.widened(table.schema).changed(*rows_of(table, self._shape), self._newer_index)

    def _shown(self) -> LiveGallery:
        view = self._state.view
        found = gallery_of(view, self._meta, self._digest, self._shape[1], self._catalogue.version, self._reader)
        there = tuple(pair for pair in self._examples if pair[0] in found)
        return replace(found, texts=self._texts, examples=there)

    def _rebuild_if_due(self) -> None:
        due = min(_MOST, max(_LEAST, len(self._state.view.base.rows) // _SHARE))
        if self._building is None and len(self._state.changes) >= due:
            self._building = self._builder.submit(self._rebuilt, self._state)

    def _rebuilt(self, state: _State) -> _State:
        """A state whose base holds all that is shown."""
        rows = joined(state.view.base.rows, state.view.kept_A, state.view.newer.rows)
        assert len(rows.places) == len(rows)  # made now, as above
        return _State(View.of(Base(rows, self._index(rows))), state.seen, state.changes.slice(0, 0), state.seen)

    def _swap(self) -> bool:
        """Take a base that has been built; whether there was one."""
        if self._building is None or not self._building.done():
            return False
        done, self._building = self._building, None
        if error := done.exception():
            _LOGGER.warning("the new index was not built, the old one stays: %s", error)
            return False
        made = done.result()
        if self._state.until > made.until:
            return False  # everything was read again meanwhile
        later = self._state.changes.filter(pa.compute.greater_equal(self._state.changes[NUMBER], made.until))
        self._state = _State(self._changed(made.view, later), made.until, later, self._state.seen)
        return True

    def _index(self, rows: Rows) -> VectorIndex | None:
        return _built(self._backend, rows)

    def _newer_index(self, rows: Rows) -> VectorIndex | None:
        return _built(self._small, rows)


def _built(backend: IndexBackend, rows: Rows) -> VectorIndex | None:
    return built(backend, rows.ids, rows.tokens_NQD) if len(rows) else None


def _purged(table: pa.Table) -> int:
    return int(pa.compute.max(table["purged"]).as_py())
