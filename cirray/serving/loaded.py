"""A loaded retriever that answers in batches, and the replacement of it by another while requests go on."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from cirray.core.artifacts import read_manifest
from cirray.core.errors import CirrayError
from cirray.core.log import get_logger
from cirray.data.config import ImageLimits
from cirray.index.store import LIVING, read_searchable
from cirray.index.uses import Use, is_name, use_of
from cirray.serving.batches import Batcher
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.gathering import Gathering, Line
from cirray.serving.metrics import Meters
from cirray.serving.names import DEFAULT
from cirray.serving.service import Pace, ResultT, Workers
from cirray.serving.writer import GalleryWriter
from cirray.types import Ranking

if TYPE_CHECKING:  # the process that starts the service needs no torch
    from cirray.catalogue.source import Source
    from cirray.image_text import ImageTextEncoder
    from cirray.index.protocol import Absent, Shown
    from cirray.index.store import GalleryIndex
    from cirray.queries import ComposedQuery

LOOK_S = 0.5
"""Seconds between two looks at what a name stands for."""
_LOG = get_logger(__name__)
_Asked = tuple["GalleryIndex", Sequence[str], tuple[str, ...]]
"""A gallery, and the ids and columns that are asked of it."""


class Models:
    """Each model once in memory, for all galleries that it queries."""

    def __init__(self, device: str) -> None:
        """Load to a device."""
        self._device, self._lock = device, threading.Lock()
        self._kept: WeakValueDictionary[str, ImageTextEncoder] = WeakValueDictionary()

    def __call__(self, checkpoint: str) -> "ImageTextEncoder":
        """The model of a checkpoint, which stays while somebody holds it.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        from cirray.image_text import load_checkpoint

        digest = read_manifest(checkpoint, "checkpoint").digest
        with self._lock:
            model = self._kept.get(digest) or load_checkpoint(checkpoint, self._device)
            self._kept[digest] = model
            return model


class Loaded:
    """A `SearchService` over one retriever. A request keeps it to its end."""

    def __init__(
        self, args: ServeArgs, use: Use, workers: Workers, settings: ServingSettings, models: Models | None = None,
        name: str = DEFAULT, line: Line | None = None,
    ) -> None:  # fmt: skip
        """Load the checkpoint and the index, and answer a first query.

        Args:
            args: what the service was started with.
            use: the index and its checkpoint.
            workers: threads of the process.
            settings: how queries are answered.
            models: those of the process; None: none are shared.
            name: the gallery's, in metrics.
            line: asks the searchers that hold the gallery; None: it is held here.

        Raises:
            ArtifactError: an artifact is missing or damaged.
            IndexMismatchError: the index belongs to another encoder.
        """
        from cirray.catalogue.opening import open_gallery
        from cirray.search_engine import SearchEngine

        self.use, self._workers = use, workers
        limits = ImageLimits(max_pixels=args.max_pixels)
        self._model = model = (models or Models(args.device))(use.checkpoint)
        digests, tower = model.encoder.index_digests, model.vision.digest
        gallery: GalleryIndex | Source
        if line is None:
            gallery = open_gallery(use.index, digests, args.verify, tower)
        else:
            gallery = Gathering(use.index, digests, tower, line, args.partial)
        self.retriever = SearchEngine(
            model.encoder,
            model.vision,
            model.transform,
            gallery,
            args.device,
            limits,
            args.kept_references,
            args.rerank,
        )
        self._batched: Batcher[ComposedQuery, Ranking] = Batcher(self._answer_many, settings.max_batch_size)
        self._shown: Batcher[_Asked, Sequence[Shown | Absent]] = Batcher(self._show_many, settings.max_batch_size)
        self.settings, self._meters, self._pace = settings, Meters(name), Pace()
        self.retriever.probe()
        self.writer: GalleryWriter | None = None
        if self.retriever.follower is not None:
            self.retriever.follower.start()
            writes = args.writes and self.retriever.living
            self.writer = GalleryWriter(self.retriever, workers, use.index) if writes else None

    def take(self, settings: ServingSettings) -> None:
        """Go on with other settings."""
        self.settings, self._batched.max_size = settings, settings.max_batch_size

    async def prepare(self, make: Callable[[], ResultT]) -> ResultT:
        """See `SearchService.prepare`."""
        return await self._workers.decode(make)

    async def answer(self, query: "ComposedQuery") -> Ranking:
        """See `SearchService.answer`; queries that arrive together share one pass through the model."""
        begin = time.perf_counter()
        answer = await self._batched(query)
        self._meters.answered(1000 * (time.perf_counter() - begin))
        return answer

    async def shown(
        self, gallery: "GalleryIndex", ids: Sequence[str], names: Sequence[str]
    ) -> "Sequence[Shown | Absent]":
        """See `SearchService.shown`; searchers are asked about several answers at once."""
        return await self._shown((gallery, ids, tuple(names))) if gallery.is_remote else gallery.shown(ids, names)

    async def _show_many(self, asked: Sequence[_Asked]) -> "list[Sequence[Shown | Absent] | Exception]":
        """What answers show, by one question for all that want the same columns of the same gallery."""
        galleries = {(id(gallery), names): gallery for gallery, _, names in asked}
        found: dict[tuple[int, tuple[str, ...]], dict[str, Shown | Absent]] = {}
        for (number, names), gallery in galleries.items():
            same = [ids for other, ids, columns in asked if id(other) == number and columns == names]
            every = list(dict.fromkeys(name for ids in same for name in ids))
            shown = await self._workers.decode(partial(gallery.shown, every, names))
            found[number, names] = dict(zip(every, shown, strict=True))
        return [[found[id(gallery), names][name] for name in ids] for gallery, ids, names in asked]

    async def probe(self) -> None:
        """See `SearchService.probe`."""
        await self._workers.probe(self.retriever)

    def tell(self) -> None:
        """Tell the metrics what is so now."""
        gallery, follower = self.retriever.gallery, self.retriever.follower
        version, failed = getattr(gallery, "version", 0), follower.failures if follower else 0
        self._meters.state(self._batched.waiting, len(gallery), version, failed)

    async def _answer_many(self, queries: "Sequence[ComposedQuery]") -> list[Ranking | Exception]:
        """Failures are values, since an exception in a batch would reach all its queries."""
        waiting = self._batched.waiting

        def work() -> list[Ranking | Exception]:
            return self.retriever.search_many(queries)

        here = self.retriever.device.type == "cpu" and not (self.retriever.reranks or self.retriever.gallery.is_remote)
        answers = await (self._workers.search(work, len(queries), self._pace) if here else self._workers.model(work))
        self._meters.passed(answers, waiting, self.retriever.references)
        return answers


class Current:
    """What is served now. Where a name is served, a thread loads what it stands for before it takes its place."""

    def __init__(
        self, args: ServeArgs, workers: Workers, models: Models | None = None, name: str = DEFAULT,
        line: Line | None = None,
    ) -> None:  # fmt: skip
        """Load what is served at first; arguments as of `Loaded`.

        Raises:
            CirrayError: as `Loaded`.
        """
        self._args, self._settings = args, ServingSettings()
        self._load = lambda use: Loaded(args, use, workers, self._settings, models, name, line)
        self.loaded = self._load(self._use())
        self._tried, self._fault = self.loaded.use, ""

    def take(self, settings: ServingSettings) -> None:
        """Go on with other settings."""
        self._settings = settings
        self.loaded.take(settings)

    def follow(self) -> None:
        """Look in a thread at what is served, where that may change: a name, or a gallery that is written to."""
        if is_name(self._args.index) or self.loaded.retriever.living:
            threading.Thread(target=self._run, name="cirray-name", daemon=True).start()

    def look(self) -> None:
        """Take what the name stands for now; what cannot be loaded is logged once, and the old one stays."""
        try:
            use = self._use()
            if use in (self._tried, self.loaded.use):
                return
            self._tried = use
            fresh = self._load(use)
        except CirrayError as error:
            if str(error) != self._fault:
                _LOG.error("%s stays, since the new gallery cannot be served: %s", self.loaded.use.index, error)
            self._fault = str(error)
            return
        before, self.loaded = self.loaded, fresh
        _LOG.info("served from now on: %s, queried by %s", use.index, use.checkpoint)
        if before.retriever.follower is not None:
            before.retriever.follower.stop()

    def _use(self) -> Use:
        """What is to be served now. A gallery that was made again in its place is another one."""
        use = use_of(self._args.index, self._args.checkpoint)
        manifest = read_searchable(use.index)
        return replace(use, at=f"{use.at} {manifest.created} {manifest.digest}") if manifest.kind == LIVING else use

    def _run(self) -> None:
        pause = threading.Event()
        while not pause.wait(LOOK_S):
            self.look()
