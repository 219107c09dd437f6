"""A stream of answers may be silent before the first one, and only for a limited time after it."""

import threading
import time

import numpy as np
import pytest

from cirray.core.errors import ConfigError, DataError
from cirray.pipelines.cluster.config import PoolConfig
from cirray.pipelines.cluster.patience import patient
from cirray.pipelines.cluster.streaming import GuardedWorker, Step


def answers(*waits):
    for number, wait in enumerate(waits):
        time.sleep(wait)
        yield number


def test_a_slow_first_answer_is_waited_for_and_gives_the_others_as_much_time():
    assert list(patient(answers(0.3, 0.0, 0.3), 0.05)) == [0, 1, 2]


def test_a_long_answer_that_leaves_signs_is_waited_for():
    begin = time.monotonic()
    signs = lambda: int((time.monotonic() - begin) / 0.05)  # noqa: E731
    assert list(patient(answers(0.0, 0.5), 0.1, signs)) == [0, 1]
    with pytest.raises(ConfigError, match="Nothing was finished"):
        list(patient(answers(0.0, 0.5), 0.1, lambda: 1))


def test_silence_after_the_first_answer_is_an_error_in_time():
    hang = threading.Event()

    def stuck():
        yield 0
        hang.wait(20)

    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"Nothing was finished for 0.2 s.*no_progress_timeout_s"):
        list(patient(stuck(), 0.2))
    assert time.monotonic() - begin < 5
    hang.set()


def test_a_slow_reader_is_not_taken_for_silence():
    found = []
    for number in patient(answers(0, 0, 0), 0.1):
        time.sleep(0.3)
        found.append(number)
    assert found == [0, 1, 2]


def test_an_error_on_the_way_arrives_and_a_reader_that_leaves_ends_the_thread():
    def failing():
        yield 1
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        list(patient(failing(), 9))
    following = patient(answers(0, 0, 0, 0), 9)
    next(following)
    following.close()
    end = time.monotonic() + 5
    while any(thread.name == "answers" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_slowest_answer_so_far_says_how_long_another_may_take():
    assert list(patient(answers(0.0, 0.0, 0.4), 0.1, took=lambda number: 0.2 * number)) == [0, 1, 2]
    with pytest.raises(ConfigError, match="Nothing was finished"):
        list(patient(answers(0.0, 0.0, 0.4), 0.1, took=lambda number: 0.01 * number))


def test_answers_that_took_no_work_say_nothing_of_how_long_others_may_take():
    assert list(patient(answers(0.0, 0.0, 0.4), 0.1, took=lambda number: 0.0)) == [0, 1, 2]
    assert list(patient(answers(0.0, 0.3, 0.6), 0.1, took=lambda number: 0.3 * number)) == [0, 1, 2]
    with pytest.raises(ConfigError, match="Nothing was finished"):
        list(patient(answers(0.0, 0.0, 0.4), 0.1, took=lambda number: 0.01 * (number == 0)))


def test_a_worker_tells_what_a_part_would_have_taken_of_which_every_row_was_work():
    class Known:
        def __call__(self, columns):
            asked = int(columns["new"].sum())
            time.sleep(0.1 * asked)
            return {"made": len(columns["new"]), "asked": asked}

    worker = GuardedWorker(Step(Known, pool=PoolConfig(threads=1)))
    took = [
        float(
            worker({"part": np.zeros(4, np.int64), "part_rows": np.full(4, 4), "new": np.arange(4) < new})[
                "cirray_took"
            ][0]
        )
        for new in (0, 1, 4)
    ]
    assert took[0] == 0 and 0.4 <= took[1] < 1 and 0.4 <= took[2] < 1


def test_a_worker_tells_how_long_a_part_took_it_and_of_its_first_one_the_loading_too():
    class Slow:
        def __init__(self):
            time.sleep(0.2)

        def __call__(self, columns):
            assert set(columns) == {"part", "part_rows"}
            return {"made": 1}

    worker = GuardedWorker(Step(Slow, pool=PoolConfig(threads=1)))
    time.sleep(0.3)  # waiting for work is not work
    part = {"part": np.zeros(2, np.int64), "part_rows": np.full(2, 2)}
    first, second = (float(worker({**part, "cirray_took": np.ones(2)})["cirray_took"][0]) for _ in range(2))
    assert 0.2 <= first < 0.5 and second < 0.1
