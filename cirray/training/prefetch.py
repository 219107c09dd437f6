"""Batches drawn on another thread while the one before is used."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Generic, TypeVar

ItemT = TypeVar("ItemT")


class Ahead(Generic[ItemT]):
    """Items in their order, each made on a thread while the one before is used. A context: leaving it ends the thread.

    What making an item raises is raised where the item would have been used.
    """

    def __init__(self, items: Iterable[ItemT]) -> None:
        """Take the items; the first is made at once."""
        self._items, self._end = iter(items), object()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._following = self._pool.submit(next, self._items, self._end)

    def __iter__(self) -> Iterator[ItemT]:
        while (item := self._following.result()) is not self._end:
            self._following = self._pool.submit(next, self._items, self._end)
            yield item  # type: ignore[misc]

    def rest(self) -> None:
        """Wait until the thread has made its item: it does nothing from then on until the next one is taken."""
        wait([self._following])

    def __enter__(self) -> "Ahead[ItemT]":
        return self

    def __exit__(self, *problem: Any) -> None:
        self._pool.shutdown(cancel_futures=True)
