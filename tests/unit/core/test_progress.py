import io
import logging
import re
import sys
import time

import pytest

from cirray.core import progress as module
from cirray.core.progress import Pace, progress, redirected


@pytest.fixture
def clock(monkeypatch):
    """The clock of progress, moved by hand: `clock(seconds)` lets time pass."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


@pytest.fixture
def lines(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="cirray")
    monkeypatch.setattr(logging.getLogger("cirray"), "propagate", True)
    return lambda: [record.getMessage() for record in caplog.records]


def at(seconds):
    return time.strftime("%H:%M", time.localtime(seconds))


def test_slow_work_says_seconds_a_step_and_when_it_ends_from_its_first_step_on(clock, lines):
    with progress("train", 36, "steps") as advance:
        clock(97.2)
        advance(1, "loss 0.3")
        assert lines() == [f"train: 1/36 steps in 97.2 s (97.2 s/step, 57 min left, ends {at(4499.2)}) · loss 0.3"]
        clock(97.2)
        advance()
        assert lines()[1].startswith("train: 2/36 steps in 194.4 s (97.2 s/step, 55 min left, ends ")
    assert lines()[-1] == "train: 2/36 steps in 194.4 s (97.2 s/step, 55 min left, ends " + at(4499.2) + ") · done"


def test_a_first_step_of_a_few_seconds_is_told_at_once_and_a_quick_one_is_not(clock, lines):
    with progress("train", 100, "steps") as advance:
        clock(3)
        advance()
        assert [line.split(" (")[0] for line in lines()] == ["train: 1/100 steps in 3.0 s"]
    with progress("embed", 1000, "images") as advance:
        for _ in range(600):
            clock(0.1)
            advance()
    told = lines()[2:]
    assert len(told) == 6 and all("10 images/s" in line for line in told)
    assert ", 50 s left, ends " in told[4] and told[0].startswith("embed: 100/1000")


def test_units_that_an_earlier_run_finished_do_not_count_as_speed(clock, lines):
    with progress("train", 36, "steps") as advance:
        advance(30, "finished before", earlier=True)
        clock(50)
        advance()
    assert "31/36 steps in 50.0 s (50 s/step, 4 min left" in lines()[0]


@pytest.mark.parametrize("made, words", [(0, "train: 0/4 steps in 5.0 s · x"), (4, "(1.25 s/step) · x")])
def test_no_end_is_predicted_before_the_first_unit_and_after_the_last(clock, made, words):
    pace = Pace(4, "steps")
    clock(5)
    pace.move(made)
    assert pace.line("train", "x").endswith(words)


@pytest.mark.parametrize("seconds, left", [(2, "8 s"), (60, "4 min"), (3000, "3 h"), (80000, "4 days")])
def test_time_left_is_told_in_the_unit_that_suits_it(clock, seconds, left):
    pace = Pace(5, "queries")
    clock(seconds)
    pace.move(1)
    assert f"{seconds:.3g} s/query, {left} left, ends " in pace.outlook()


def test_a_stage_on_another_node_tells_its_speed_too(clock):
    told = []
    with redirected(lambda *row: told.append(row)), progress("train", 4, "steps") as advance:
        clock(20)
        advance(1, "loss 1")
    assert told[1][:3] == ("train", 1, 4) and re.match(r"20 s/step, 60 s left, ends \S+ · loss 1$", told[1][3])


def test_the_bar_of_a_terminal_shows_speed_and_end(clock, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "150")
    with progress("train", 36, "steps") as advance:
        clock(97.2)
        advance(1, "loss 0.3")
    assert "97.2 s/step, 57 min left, ends" in screen.getvalue() and "loss 0.3" in screen.getvalue()
