import asyncio

import pytest

from cirray.serving.batches import Batcher


class Recorder:
    """Work that takes a moment, remembers its batches, and answers 10 x item; an exception is its own answer."""

    def __init__(self, seconds=0.02, fail=False):
        self.batches, self.seconds, self.fail, self.running, self.most = [], seconds, fail, 0, 0

    async def __call__(self, items):
        self.batches.append(list(items))
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        if self.fail:
            raise MemoryError("no room")
        return [item if isinstance(item, Exception) else 10 * item for item in items]


def test_a_lone_item_is_worked_on_at_once_and_later_ones_form_the_next_batch():
    work = Recorder()

    async def main():
        batcher = Batcher(work, 8)
        first = asyncio.create_task(batcher(0))
        await asyncio.sleep(0.005)
        assert work.batches == [[0]]
        return [await first, *await asyncio.gather(*(batcher(n) for n in range(1, 5)))]

    assert asyncio.run(main()) == [0, 10, 20, 30, 40]
    assert work.batches == [[0], [1, 2, 3, 4]]


def test_items_that_arrive_while_the_model_is_busy_wait_for_it_and_not_for_a_clock():
    work = Recorder(seconds=0.05)

    async def main():
        batcher = Batcher(work, 100)
        tasks = []
        for number in range(20):
            tasks.append(asyncio.create_task(batcher(number)))
            await asyncio.sleep(0.004)
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [10 * n for n in range(20)]
    assert len(work.batches) <= 4 and work.most == 1


def test_requests_that_arrived_together_are_one_batch_though_some_take_more_turns_of_the_loop():
    work = Recorder()

    async def request(batcher, number):
        for _ in range(number % 4):
            await asyncio.sleep(0)
        return await batcher(number)

    async def main():
        batcher = Batcher(work, 32)
        await asyncio.gather(*(request(batcher, number) for number in range(16)))

    asyncio.run(main())
    assert [len(batch) for batch in work.batches] == [16]


def test_a_batch_has_at_most_its_size_and_nobody_is_overtaken():
    work = Recorder(seconds=0.001)

    async def main():
        batcher = Batcher(work, 3)
        await asyncio.gather(*(batcher(n) for n in range(10)))

    asyncio.run(main())
    assert work.batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]


def test_a_new_size_holds_from_the_next_batch_on():
    work = Recorder(seconds=0.005)

    async def main():
        batcher = Batcher(work, 1)
        tasks = [asyncio.create_task(batcher(n)) for n in range(5)]
        await asyncio.sleep(0.002)
        batcher.max_size = 10
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert work.batches == [[0], [1, 2, 3, 4]]


def test_the_error_of_one_item_is_its_own():
    work = Recorder()

    async def main():
        batcher = Batcher(work, 8)
        return await asyncio.gather(batcher(1), batcher(ValueError("mine")), batcher(2), return_exceptions=True)

    good, bad, also = asyncio.run(main())
    assert (good, also) == (10, 20) and isinstance(bad, ValueError) and len(work.batches) == 1


def test_work_that_fails_is_told_to_its_batch_and_the_next_one_is_answered():
    work = Recorder(fail=True)

    async def main():
        batcher = Batcher(work, 2)
        failed = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
        work.fail = False
        return failed, await batcher(3)

    failed, after = asyncio.run(main())
    assert [type(error) for error in failed] == [MemoryError, MemoryError] and after == 30


def test_a_client_that_left_costs_no_pass():
    work = Recorder()

    async def main():
        batcher = Batcher(work, 8)
        tasks = [asyncio.create_task(batcher(n)) for n in range(4)]
        first = asyncio.create_task(batcher(9))
        await asyncio.sleep(0.005)
        late = [asyncio.create_task(batcher(n)) for n in range(10, 14)]
        await asyncio.sleep(0)
        late[1].cancel()
        tasks[0].cancel()  # in the pass already: its answer is dropped, the others get theirs
        answers = await asyncio.gather(*tasks, first, *late, return_exceptions=True)
        return answers

    answers = asyncio.run(main())
    assert work.batches == [[0, 1, 2, 3, 9], [10, 12, 13]]
    assert [type(item) for item in (answers[0], answers[6])] == [asyncio.CancelledError] * 2
    assert answers[1:5] == [10, 20, 30, 90]


def test_a_batch_of_clients_that_all_left_is_no_pass_and_the_next_one_is_answered():
    work = Recorder()

    async def main():
        batcher = Batcher(work, 8)
        task = asyncio.create_task(batcher(1))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return await batcher(2)

    assert asyncio.run(main()) == 20 and work.batches == [[2]]
