"""Greedy batches: a free worker takes whatever waits, once nothing more comes of what has arrived already."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")
TURNS = 6
"""Turns of the event loop without a further item after which all that had arrived is waiting; a few microseconds each.

A request that was read from its socket takes some turns until its query waits."""
Work = Callable[[Sequence[ItemT]], Awaitable[Sequence[AnswerT | Exception]]]


class Batcher(Generic[ItemT, AnswerT]):
    """Answers items by batches, first come first served, one batch at a time.

    An item that arrives while nothing runs starts with those that came with it, and waits for no clock; those that
    arrive meanwhile form the next batch. So batches grow with the load. Belongs to one event loop.
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
            while self._waiting:
                await self._settled()
                if batch := self._next_batch():
                    await self._answer(batch)
        finally:
            self._worker = None

    async def _settled(self) -> None:
        """Return when a batch is full, or has not grown for some turns of the event loop."""
        seen = still = 0
        while still < TURNS and len(self._waiting) < self.max_size:
            still = still + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)
            await asyncio.sleep(0)

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
