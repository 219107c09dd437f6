"""The replica: picture decoding, query encoding and search in one deployment, with micro-batches.

One deployment, because a hop between deployments costs more than this model on a small machine.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from cirray.core.config import validate
from cirray.core.environ import set_default
from cirray.core.errors import AwayError
from cirray.core.log import configure
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.entrances import Entrances
from cirray.serving.gathering import Line
from cirray.serving.loaded import Current, Loaded, Models
from cirray.serving.names import each
from cirray.serving.searchers import asking
from cirray.serving.service import Workers

PROBE_TIMEOUT_S = 20.0
_ASKING = 8
"""Threads that prepare queries where most of that is waiting for searchers."""


class SearchReplica:
    """What is served, in a process of its own. Wrapped by `serve.ingress` and `serve.deployment` in `app.py`."""

    def __init__(self, args: ServeArgs, searchers: Sequence[DeploymentHandle[Any]] = ()) -> None:
        """Load the checkpoint and the index and answer a first query, so that a ready replica is warm.

        Args:
            args: of the service.
            searchers: those that hold the galleries, in the order of their shards; none: this process holds them.

        Raises:
            ArtifactError: an artifact is missing or damaged.
            IndexMismatchError: the index belongs to another encoder.
        """
        import torch  # imported here: the process that starts the service needs no torch

        from cirray.index.faiss_index import limit_faiss_threads

        configure()
        set_default("TOKENIZERS_PARALLELISM", "false")  # threads of its own would wait for the cores of this one
        torch.set_num_threads(args.threads)
        limit_faiss_threads(args.threads)
        self._workers, self._entrances = Workers(_ASKING if searchers else 2), Entrances(args)
        models = Models(args.device)
        line = Line([asking(handle) for handle in searchers], args.searcher_timeout_s) if searchers else None
        self.galleries = {
            name: Current(own, self._workers, models, name, line) for name, own in each(args).items()
        }  # fmt: skip
        for current in self.galleries.values():
            current.follow()

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take new settings without a restart (Serve calls this with the deployment's `user_config`).

        Raises:
            ConfigError: naming the field that does not fit.
        """
        settings = validate(ServingSettings, user_config or {})
        for current in self.galleries.values():
            current.take(settings)

    async def check_health(self) -> None:
        """Serve's health check: a real query through the model and index of each gallery; also puts the gate into the
        entrances. A searcher that is away is Serve's to start again, and no fault of this process.

        Raises:
            Exception: whatever the model or the index raises, or TimeoutError when they hang.
        """
        for loaded in self.loaded.values():
            with suppress(AwayError):
                await asyncio.wait_for(loaded.probe(), PROBE_TIMEOUT_S)
            loaded.tell()
        await self._entrances.guard()

    @property
    def loaded(self) -> dict[str, Loaded]:
        """What is served now, by the galleries' names."""
        return {name: current.loaded for name, current in self.galleries.items()}


def current_services() -> dict[str, Loaded]:
    """What the replica of this process serves now, by the galleries' names."""
    replica: SearchReplica = serve.get_replica_context().servable_object  # type: ignore[assignment]
    return replica.loaded
