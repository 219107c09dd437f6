"""What answers the HTTP interface: this process (here) or a Ray Serve replica (`deployments`)."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar
from weakref import WeakKeyDictionary

from cirray.serving.config import ServingSettings
from cirray.serving.writer import GalleryWriter
from cirray.types import Ranking

if TYPE_CHECKING:  # the process that starts the service needs no torch
    from cirray.index.protocol import Absent, Shown
    from cirray.index.store import GalleryIndex
    from cirray.queries import ComposedQuery
    from cirray.search_engine import SearchEngine

ResultT = TypeVar("ResultT")
PROBE_REUSE_S = 1.0
SHORT_S = 0.04
"""A search on the CPU that takes less is done in the event loop: two threads that work in Python only take turns."""


class SearchService(Protocol):
    """A loaded retriever with its settings."""

    @property
    def retriever(self) -> "SearchEngine":
        """The retriever that answers."""

    @property
    def settings(self) -> ServingSettings:
        """The settings in force."""

    @property
    def writer(self) -> "GalleryWriter | None":
        """What writes to the gallery; None where it is frozen or writes are off."""

    async def prepare(self, make: Callable[[], ResultT]) -> ResultT:
        """Run CPU work (decoding a picture) outside the event loop."""

    async def answer(self, query: "ComposedQuery") -> Ranking:
        """Answer one prepared query, alone or in a batch; raises the query's own error."""

    async def shown(
        self, gallery: "GalleryIndex", ids: Sequence[str], names: Sequence[str]
    ) -> "Sequence[Shown | Absent]":
        """See `GalleryIndex.shown`."""

    async def probe(self) -> None:
        """Run a query through the model and the index; raises when they do not work."""


class Pace:
    """Whether a retriever's next search is short, by what its last ones took; nothing is short before.

    Processor time counts: what a search waits for (another process, the interpreter's lock) is no work of its own, and
    a search that is slow in the thread for once would stay there, where it is slow.
    """

    def __init__(self) -> None:
        """No search has been made yet."""
        self._known: dict[int, float] = {}

    def is_short(self, size: int) -> bool:
        """Whether so many queries take less than `SHORT_S`: time grows with them at most as their number does."""
        return any(took * max(1.0, size / before) < SHORT_S for before, took in self._known.items())

    def took(self, seconds: float, size: int) -> None:
        """So many queries took so much processor time; what was known and spoke against it is forgotten."""
        known = self._known
        if seconds >= SHORT_S:
            known = {before: took for before, took in known.items() if took * max(1.0, size / before) >= SHORT_S}
        self._known = {**known, size: seconds}  # another one, since both threads read it


class Workers:
    """Two small pools: torch and FAISS in one thread, picture decoding in another, so that neither blocks the event
    loop (and Serve's health checks in it) for long.
    """

    def __init__(self, decoders: int = 2) -> None:
        """Threads start at first use; `decoders`: those that prepare."""
        self._model = ThreadPoolExecutor(1, "cirray-model")
        self._decode = ThreadPoolExecutor(decoders, "cirray-decode")
        self._probed: WeakKeyDictionary[SearchEngine, float] = WeakKeyDictionary()
        self._one = threading.Lock()

    async def search(self, work: Callable[[], ResultT], size: int, pace: "Pace") -> ResultT:
        """Search so many queries: here where that is short and the model's thread is idle, else there. So models are
        used by one thread at a time.
        """

        def timed() -> ResultT:
            begin = time.thread_time()
            answer = work()
            pace.took(time.thread_time() - begin, size)
            return answer

        if pace.is_short(size) and self._one.acquire(blocking=False):
            try:
                return timed()
            finally:
                self._one.release()
        return await self.model(timed)

    async def model(self, work: Callable[[], ResultT]) -> ResultT:
        """Run work in the model's thread."""

        def alone() -> ResultT:
            with self._one:
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._model, alone)

    async def decode(self, work: Callable[[], ResultT]) -> ResultT:
        """Run work in a decoding thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decode, work)

    async def probe(self, retriever: "SearchEngine") -> None:
        """Run the probe of a retriever; its success counts for one second, a failure is never reused."""
        if time.monotonic() - self._probed.get(retriever, float("-inf")) < PROBE_REUSE_S:
            return
        await self.model(retriever.probe)
        self._probed[retriever] = time.monotonic()


class DirectService:
    """Answers in this process, one query at a time: the twin of the batched deployment."""

    def __init__(self, retriever: "SearchEngine", settings: ServingSettings | None = None, gallery: str = "") -> None:
        """Hold a loaded retriever, and write to a gallery where one is named."""
        self.retriever, self.settings, self._workers = retriever, settings or ServingSettings(), Workers()
        self.writer = GalleryWriter(retriever, self._workers, gallery) if gallery else None

    async def prepare(self, make: Callable[[], ResultT]) -> ResultT:
        """See `SearchService.prepare`."""
        return await self._workers.decode(make)

    async def answer(self, query: "ComposedQuery") -> Ranking:
        """See `SearchService.answer`."""
        answer = (await self._workers.model(lambda: self.retriever.search_many([query])))[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def shown(
        self, gallery: "GalleryIndex", ids: Sequence[str], names: Sequence[str]
    ) -> "Sequence[Shown | Absent]":
        """See `SearchService.shown`."""
        return await self.prepare(lambda: gallery.shown(ids, names))

    async def probe(self) -> None:
        """See `SearchService.probe`."""
        await self._workers.probe(self.retriever)
