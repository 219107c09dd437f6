import asyncio
import threading
import time

import pytest

from cirray.core.config import validate
from cirray.core.errors import ConfigError, DataError
from cirray.queries import ComposedQuery, Term
from cirray.serving.config import ServeArgs, ServingSettings
from cirray.serving.deployments import SearchReplica
from cirray.serving.service import DirectService, Pace, Workers


def test_settings_that_contradict_each_other_are_named():
    with pytest.raises(ConfigError, match="default_k 50 must not exceed max_k 10"):
        validate(ServingSettings, {"default_k": 50, "max_k": 10})
    with pytest.raises(ConfigError, match="Did you mean 'max_batch_size'"):
        validate(ServingSettings, {"max_batchsize": 3})


def test_serve_arguments_accept_text_as_the_command_line_gives_it():
    assert ServeArgs(**{"max_body_mb": "2.5", "verify": "false"}).max_body_mb == 2.5


def test_a_slow_model_does_not_stall_the_event_loop(retriever):
    workers, ticks = Workers(), []

    async def main():
        work = asyncio.create_task(workers.model(lambda: time.sleep(0.3)))
        while not work.done():
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)

    asyncio.run(main())
    assert len(ticks) > 10


def test_the_model_runs_in_one_thread_however_many_ask(retriever):
    workers, seen = Workers(), set()

    async def main():
        await asyncio.gather(*(workers.model(lambda: seen.add(threading.get_ident())) for _ in range(20)))

    asyncio.run(main())
    assert len(seen) == 1 and threading.get_ident() not in seen


def worked(seconds):
    """Take so much processor time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_short_searches_are_done_in_the_event_loop_and_long_ones_in_the_thread():
    workers, pace, here = Workers(), Pace(), threading.get_ident()

    async def ran(seconds, size=1, waits=0.0):
        work = lambda: worked(seconds) or time.sleep(waits) or threading.get_ident() == here  # noqa: E731
        return await workers.search(work, size, pace)

    async def main():
        assert not await ran(0.001)  # nothing is known yet
        assert await ran(0.001) and await ran(0.06)
        assert not await ran(0.001)  # the last one was long
        assert not await ran(0.001, size=1_000)  # so many would be long
        assert await ran(0.001, size=1_000)
        assert await ran(0.001) and await ran(0.001, size=900)  # of so many it is known
        assert await ran(0.001, waits=0.1)
        assert await ran(0.001)  # the last one waited for others and was short by itself

    asyncio.run(main())


def test_the_model_is_used_by_one_thread_at_a_time():
    workers, pace, inside, most = Workers(), Pace(), [], []

    def work(seconds):
        inside.append(1)
        most.append(len(inside))
        time.sleep(seconds)
        inside.pop()
        return threading.get_ident()

    async def main():
        for _ in range(3):
            await workers.search(lambda: work(0.001), 1, pace)
        other = asyncio.create_task(workers.model(lambda: work(0.1)))
        await asyncio.sleep(0.02)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(other, 0.01)  # whoever asked has left, and the thread works on
        found = await workers.search(lambda: work(0.001), 1, pace)
        return found, await workers.search(lambda: work(0.001), 1, pace)

    first, _ = asyncio.run(main())
    assert max(most) == 1 and first != threading.get_ident()


def test_a_failed_probe_is_never_reused(retriever, monkeypatch):
    service = DirectService(retriever)
    asyncio.run(service.probe())
    service._workers._probed.clear()
    monkeypatch.setattr(retriever, "probe", lambda: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(service.probe())


@pytest.fixture
def replica(tiny):
    """A deployment's class without Serve around it."""
    return SearchReplica(ServeArgs(checkpoint=tiny.checkpoint, index=tiny.index))


def test_queries_that_arrive_together_share_one_pass(replica, monkeypatch):
    replica.reconfigure({"max_batch_size": 8})
    sizes, search_many = [], replica.loaded["default"].retriever.search_many
    monkeypatch.setattr(
        replica.loaded["default"].retriever,
        "search_many",
        lambda queries: sizes.append(len(queries)) or search_many(queries),
    )
    queries = [
        replica.loaded["default"].retriever.prepare("blue", gallery_id=f"plain/{n:02d}", k=3) for n in range(0, 16, 2)
    ]

    async def main():
        return await asyncio.gather(*(replica.loaded["default"].answer(query) for query in queries))

    answers = asyncio.run(main())
    assert sizes == [8]
    assert [answer.ids for answer in answers] == [search_many([query])[0].ids for query in queries]


def test_one_bad_query_fails_alone_in_its_batch(replica):
    replica.reconfigure({"max_batch_size": 4})
    good = [replica.loaded["default"].retriever.prepare("blue", gallery_id="plain/00") for _ in range(3)]
    poison = ComposedQuery((Term(text="blue", gallery_id="not there"),))

    async def main():
        return await asyncio.gather(
            *(replica.loaded["default"].answer(q) for q in [*good, poison]), return_exceptions=True
        )

    *fine, bad = asyncio.run(main())
    assert all(answer.ids for answer in fine)
    assert isinstance(bad, DataError) and "not there" in str(bad)


def test_new_settings_take_effect_without_a_restart(replica):
    replica.reconfigure({"default_k": 3, "max_k": 4})
    assert (replica.loaded["default"].settings.default_k, replica.loaded["default"].settings.max_k) == (3, 4)
    with pytest.raises(ConfigError, match="max_k"):
        replica.reconfigure({"max_k": 0})
    assert replica.loaded["default"].settings.max_k == 4


def test_the_health_check_is_a_real_query(replica, monkeypatch):
    asyncio.run(replica.check_health())
    replica._workers._probed_at = float("-inf")
    monkeypatch.setattr(replica.loaded["default"].retriever.gallery.search_index, "_tokens_NQD", None)
    with pytest.raises((TypeError, AttributeError)):
        asyncio.run(replica.check_health())
