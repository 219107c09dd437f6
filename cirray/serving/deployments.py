"""The replica: picture decoding, query encoding and search in one deployment, with micro-batches.

One deployment, because a hop between deployments costs more than this model on a small machine.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ray import serve

from cirray.core.config import validate
from cirray.core.log import configure
from cirray.data.config import ImageLimits
from cirray.serving.batches import Batcher
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.entrances import Entrances
from cirray.serving.service import ResultT, Workers
from cirray.serving.writer import GalleryWriter
from cirray.types import Ranking

if TYPE_CHECKING:
    from cirray.queries import ComposedQuery

PROBE_TIMEOUT_S = 20.0


class SearchReplica:
    """A `SearchService` that answers in batches. Wrapped by `serve.ingress` and `serve.deployment` in `app.py`."""

    def __init__(self, args: ServeArgs) -> None:
        """Load the checkpoint and the index and answer a first query, so that a ready replica is warm.

        Raises:
            ArtifactError: an artifact is missing or damaged.
            IndexMismatchError: the index belongs to another encoder.
        """
        import torch  # imported here: the process that starts the service needs no torch

        from cirray.index.faiss_index import limit_faiss_threads
        from cirray.search_engine import SearchEngine

        configure()
        torch.set_num_threads(args.threads)
        limit_faiss_threads(args.threads)
        self.retriever = SearchEngine.open(
            args.checkpoint,
            args.index,
            args.device,
            args.verify,
            ImageLimits(max_pixels=args.max_pixels),
            args.kept_references,
        )
        self.settings, self._workers, self._entrances = ServingSettings(), Workers(), Entrances(args)
        self._batched: Batcher[ComposedQuery, Ranking] = Batcher(self._answer_many, self.settings.max_batch_size)
        self.retriever.probe()
        self.writer: GalleryWriter | None = None
        if self.retriever.follower is not None:
            self.retriever.follower.start()
            self.writer = GalleryWriter(self.retriever, self._workers, args.index) if args.writes else None

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new settings without a restart (Serve calls this with the deployment's `user_config`).

        Raises:
            ConfigError: naming the field that does not fit.
        """
        self.settings = validate(ServingSettings, user_config or {})
        self._batched.max_size = self.settings.max_batch_size

    async def check_health(self) -> None:
        """Serve's health check: a real query through the model and the index; also puts the gate into the entrances.

        Raises:
            Exception: whatever the model or the index raises, or TimeoutError when they hang.
        """
        await asyncio.wait_for(self.probe(), PROBE_TIMEOUT_S)
        await self._entrances.guard()

    async def prepare(self, make: Callable[[], ResultT]) -> ResultT:
        """See `SearchService.prepare`."""
        return await self._workers.decode(make)

    async def answer(self, query: "ComposedQuery") -> Ranking:
        """See `SearchService.answer`; queries that arrive together share one pass through the model."""
        return await self._batched(query)

    async def probe(self) -> None:
        """See `SearchService.probe`."""
        await self._workers.probe(self.retriever)

    async def _answer_many(self, queries: "Sequence[ComposedQuery]") -> list[Ranking | Exception]:
        """Failures are values, since an exception in a batch would reach all its queries."""
        return await self._workers.model(lambda: self.retriever.search_many(queries))


def current_service() -> SearchReplica:
    """The replica that runs in this process."""
    return serve.get_replica_context().servable_object  # type: ignore[return-value]
