"""Writes to the served gallery: pictures are encoded together, and all changes that wait become one commit."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from cirray.catalogue.change import Change
from cirray.catalogue.parquet import VectorFile
from cirray.catalogue.table import MERGE_EVERY, Catalogue
from cirray.core.errors import DataError, StoreError
from cirray.core.log import get_logger
from cirray.serving.batches import Batcher

if TYPE_CHECKING:  # the process that starts the service needs no torch
    from cirray.catalogue.encoding import Decoded
    from cirray.search_engine import SearchEngine
    from cirray.serving.service import Workers

ResultT = TypeVar("ResultT")
WRITE_TIMEOUT_S = 20.0
"""A commit that takes longer is answered 503; whether it was made is not known then, and it may be repeated."""
_ENCODED, _GROUP = 32, 2_000
_LOADS = 2
"""Files that are read at once; each holds one group of rows in memory."""
_CLEAN_S = 60.0
"""Seconds between two merges that also delete old versions."""
_LEAST, _SHARE = 4_096, 10
"""A tenth of the gallery, but so many changes at least, are written before rows that were replaced are dropped."""
_LOG = get_logger(__name__)


class GalleryWriter:
    """Changes of one gallery. Belongs to one event loop."""

    def __init__(self, retriever: "SearchEngine", workers: "Workers", uri: str) -> None:
        """Write to the gallery that a retriever searches.

        Raises:
            StoreError: when its table cannot be opened.
        """
        from cirray.catalogue.encoding import PictureEncoder
        from cirray.catalogue.opening import describe

        self._retriever, self._workers, self._uri = retriever, workers, uri
        described = describe(uri)
        self.shape = described.shape
        self._encoder = PictureEncoder(
            retriever.encoder, retriever.vision, retriever.transform, described.thumbnail_size, retriever.device,
            retriever.limits,
        )  # fmt: skip
        self._table, self._checks = Catalogue.open(uri), Catalogue.open(uri)
        self._threads, self._compactor = ThreadPoolExecutor(1, "cirray-write"), ThreadPoolExecutor(1, "cirray-compact")
        self._encoded: Batcher[Decoded, Change] = Batcher(self._encode, _ENCODED)
        self._committed: Batcher[Sequence[Change], int] = Batcher(self._commit, _GROUP)
        self._changes, self._cleaned_at, self._loads = 0, time.monotonic(), asyncio.Semaphore(_LOADS)

    async def picture(self, image_id: str, data: bytes, metadata: dict[str, Any]) -> Change:
        """A picture as a change; it is not written yet.

        Raises:
            DataError: for a picture, an id or metadata that cannot be used.
        """
        self.check(Change(image_id, metadata=metadata))
        decoded = await self._workers.decode(lambda: self._encoder.decode(image_id, data, metadata=metadata))
        return await self._encoded(decoded)

    def check(self, change: Change) -> None:
        """Refuse a change that the table could not keep, before it joins others.

        Raises:
            DataError: naming it.
            StoreError: when the store cannot be read.
        """
        try:
            self._checks.as_table([change])
        except DataError:
            self._checks.refresh()  # a column may be new
            self._checks.as_table([change])

    async def write(self, changes: Sequence[Change]) -> int:
        """Write checked changes; returns the version of the table that shows them, once they are durable.

        Raises:
            StoreError: the store refuses, or does not answer.
        """
        try:
            version = await asyncio.wait_for(self._committed(changes), WRITE_TIMEOUT_S)
        except TimeoutError:
            raise StoreError(
                f"The gallery's store has not answered for {WRITE_TIMEOUT_S:g} s; whether the change was made is not "
                "known. It may be repeated."
            ) from None
        return version

    async def load(self, place: str, offset: int, limit: int) -> tuple[int, int, int]:
        """Write rows of a Parquet file, a commit a group; returns how many, how many the file has, and the version.

        Raises:
            ArtifactError: a URI that cannot be opened.
            DataError: a file or a row that cannot be used, and how many rows were written before it.
            StoreError: as `write`.
        """
        async with self._loads:
            file = await asyncio.to_thread(VectorFile, place, self.shape, self._columns())
            groups, written, version = file.groups(offset, limit), 0, self._table.version
            try:
                while changes := await asyncio.to_thread(self._next, groups):
                    version = await self.write(changes)
                    written += len(changes)
            except DataError as error:
                raise DataError(f"{error} {written:,} rows before it were written.") from None
            return written, file.rows, version

    def _columns(self) -> dict[str, Any]:
        self._checks.refresh()
        return self._checks.columns

    def _next(self, groups: "Iterator[list[Change]]") -> list[Change]:
        """The next group of a file, once it can be kept; empty at the end."""
        changes = next(groups, [])
        self._checks.as_table(changes)
        return changes

    async def _encode(self, pictures: "Sequence[Decoded]") -> Sequence[Change]:
        return await self._workers.model(lambda: self._encoder.encode(pictures))

    async def _commit(self, groups: Sequence[Sequence[Change]]) -> list[int]:
        """One commit for all that wait; the later change of an id counts."""
        changes = [change for group in groups for change in group]
        version = await self._run(lambda: self._table.write(changes))
        if self._retriever.follower is not None:
            self._retriever.follower.hurry()
        self._changes += len(changes)
        if self._table.commits % MERGE_EVERY == 0:
            self._compactor.submit(self._tidy)
        return [version] * len(groups)

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _tidy(self) -> None:
        """Merge small files; once much was changed, drop what was replaced."""
        try:
            table, now = Catalogue.open(self._uri), time.monotonic()
            due = now - self._cleaned_at >= _CLEAN_S
            if self._changes >= max(_LEAST, len(self._retriever.gallery) // _SHARE):
                self._changes = 0
                table.compact()
            else:
                table.merge(clean=due)
            if due:
                self._cleaned_at = now
        except (StoreError, DataError) as error:  # another replica's was first, or the store is away
            _LOG.info("files are merged the next time: %s", error)
