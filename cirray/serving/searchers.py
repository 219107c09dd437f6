"""Searchers as deployments: each holds one shard of every gallery of the service, in a process of its own."""

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from cirray.catalogue.searcher import Key, Searcher
from cirray.core.log import configure
from cirray.index.shards import Shard
from cirray.index.uses import use_of
from cirray.serving.config import ServeArgs
from cirray.serving.gathering import Ask
from cirray.serving.names import each

SEARCHER_OPTIONS: dict[str, Any] = {
    "max_ongoing_requests": 96,
    "max_constructor_retry_count": 2,
    "health_check_period_s": 2,
    "health_check_timeout_s": 30,
    "graceful_shutdown_timeout_s": 2,
    "graceful_shutdown_wait_loop_s": 0.5,
    "ray_actor_options": {"num_cpus": 0.1},
}
"""A config file overrides them by the searcher's name, such as `Searcher1`; memory is what it needs most."""


class SearcherReplica:
    """A `Searcher` in a process of its own."""

    def __init__(self, args: ServeArgs, number: int) -> None:
        """Load the shard of every gallery, so that a ready replica answers at once.

        Raises:
            CirrayError: an index or a gallery is missing or damaged, or its store cannot be read.
        """
        from cirray.index.faiss_index import limit_faiss_threads

        configure()
        limit_faiss_threads(args.threads)
        self._searcher = Searcher(Shard(number, args.shards), args.verify)
        self._search, self._other = ThreadPoolExecutor(1, "cirray-search"), ThreadPoolExecutor(2, "cirray-other")
        for own in each(args).values():
            self._searcher.hold(Key.of(use_of(own.index, own.checkpoint).index))

    async def ask(self, method: str, *args: Any) -> Any:
        """What `Searcher.answer` says; searches have a thread of their own."""
        pool = self._search if method == "search" else self._other
        return await asyncio.get_running_loop().run_in_executor(pool, self._searcher.answer, method, *args)


def searchers_of(args: ServeArgs, options: Mapping[str, Any]) -> list[Application]:
    """The searchers of a service, in the order of their shards; `options` by name over `SEARCHER_OPTIONS`."""
    made = []
    for number in range(args.shards):
        name = f"Searcher{number + 1}"
        own = {**SEARCHER_OPTIONS, "name": name, **options.get(name, {})}
        made.append(serve.deployment(**own)(SearcherReplica).bind(args, number))
    return made


def asking(handle: DeploymentHandle[Any]) -> Ask:
    """Asks a searcher through its handle."""

    async def ask(*call: Any) -> Any:
        return await handle.ask.remote(*call)

    return ask
