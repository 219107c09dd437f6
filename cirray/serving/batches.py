"""Greedy batches: a free worker takes whatever waits, and never waits for more."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")
Work = Callable[[Sequence[ItemT]], Awaitable[Sequence[AnswerT | Exception]]]


class Batcher(Generic[ItemT, AnswerT]):
    """Answers items by batches, first come first served, one batch at a time.

    An item that arrives while nothing runs starts at once; those that arrive meanwhile form the next batch. So batches
    grow with the load. Belongs to one event loop.
    """

    def __init__(self, work: Work[ItemT, AnswerT], max_size: int) -> None:
        """Set the work and its limit.

        Args:
            work: answers a batch, one value or exception an item, in order.
            max_size: most items of one batch; may be changed at any time.
        """
        self.max_size = max_size
        self._work = work
        self._waiting: deque[tuple[ItemT, asyncio.Future[AnswerT]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items that are in no batch yet."""
        return len(self._waiting)

    async def __call__(self, item: ItemT) -> AnswerT:
        """Answer one item. If the caller is cancelled before its batch begins, the item is dropped.

        Raises:
            Exception: the item's own, or that of the whole batch.
        """
        future: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._worker = None

    def _next_batch(self) -> list[tuple[ItemT, asyncio.Future[AnswerT]]]:
        batch: list[tuple[ItemT, asyncio.Future[AnswerT]]] = []
        while self._waiting and len(batch) < self.max_size:
            item, future = self._waiting.popleft()
            if not future.done():
                batch.append((item, future))
        return batch

    async def _answer(self, batch: Sequence[tuple[ItemT, asyncio.Future[AnswerT]]]) -> None:
        try:
            answers = await self._work([item for item, _ in batch])
        except Exception as error:  # noqa: BLE001 - every item of the batch is told; the next batch goes on
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
