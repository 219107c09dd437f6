import time
from types import SimpleNamespace

import pytest

from cirray.core.artifacts import Manifest
from cirray.core.errors import ConfigError, StageError
from cirray.core.progress import progress
from cirray.core.unfinished import restarts
from cirray.pipelines.cluster import schedule
from cirray.pipelines.cluster.schedule import Board, Node, Outcome, _startable, check_graph, run_here

STEPS = []


def node(name, after=(), slots=1, run="builtins:str"):
    return Node(name, run, name, tuple(after), slots)


def test_stages_run_in_order_and_hand_back_their_results():
    outcomes = run_here([node("a"), node("b", ["a"])])
    assert {name: outcome.result for name, outcome in outcomes.items()} == {"a": "a", "b": "b"}


def test_a_stage_before_its_prerequisite_is_refused_by_name():
    with pytest.raises(ConfigError, match="'b' comes after 'a'"):
        check_graph([node("b", ["a"]), node("a")])


def test_what_is_ready_starts_and_slots_are_never_overbooked():
    waiting = [node("big", slots=2), node("small"), node("late", ["big"])]
    chosen = _startable(waiting, {}, {}, slots=2)
    assert [item.name for item in chosen] == ["big"]
    assert _startable(waiting[1:], {"ref": waiting[0]}, {}, slots=2) == []
    assert [item.name for item in _startable(waiting[2:], {}, {"big": Outcome()}, slots=2)] == ["late"]


def test_a_stage_larger_than_the_machine_still_runs_alone():
    assert [item.name for item in _startable([node("huge", slots=8)], {}, {}, slots=2)] == ["huge"]


def test_an_error_of_a_stage_reaches_the_caller():
    with pytest.raises(ValueError, match="invalid literal"):
        run_here([node("x", run="builtins:int")])


def noisy(config):
    """A stage that reports progress after every step."""
    with progress("steps", 3) as advance:
        for _ in range(3):
            STEPS.append(config)
            advance(1)
            time.sleep(0.6)
    return len(STEPS)


def unfinished_is_thrown_away(config):
    """A stage that says whether it would start anew."""
    return restarts()


@pytest.mark.parametrize("restart", [False, True])
def test_restarting_reaches_stages_that_run_as_tasks(monkeypatch, restart):
    remote = SimpleNamespace(put=SimpleNamespace(remote=Board().put))
    node = Node("stage", f"{__name__}:unfinished_is_thrown_away", "x")
    assert schedule._execute(node, remote, restart).result is restart and not restarts()


def test_a_stage_whose_board_was_closed_stops_at_its_next_progress(monkeypatch):
    board = Board()
    remote = SimpleNamespace(put=SimpleNamespace(remote=board.put))
    monkeypatch.setattr(schedule.ray, "get", lambda value: value)
    STEPS.clear()
    node = Node("noisy", f"{__name__}:noisy", "x")
    assert schedule._execute(node, remote).result == 3 and board.get()["noisy"][1] == 3
    board.close()
    with pytest.raises(StageError, match="'noisy' was stopped"):
        schedule._execute(node, remote)
    assert len(STEPS) == 3


@pytest.mark.parametrize(
    ("kind", "counts", "metrics", "line"),
    [
        ("checkpoint", {"steps": 80, "triplets": 9206}, {"loss": 0.3, "val_R@1": 0.8312},
         "7 s · 9,206 triplets · validation R@1 83.1"),
        ("checkpoint", {"steps": 80, "triplets": 12}, {"loss": 0.3}, "7 s · 12 triplets"),
        ("generator", {"labels": 2000}, {"trained": {"forward": {"exact": 0.975}, "reverse": {"exact": 0.9525}}},
         "7 s · 2,000 labels · exact on held-out pairs 97.5 / 95.2 % (forward / reverse)"),
        ("triplets", {"rejected": 3, "triplets": 9206}, {"exact": 0.882}, "7 s · 9,206 triplets · 88.2 % exact"),
        ("towers", {"vision_weights": 3}, {}, "7 s"),
    ],
)  # fmt: skip
def test_a_finished_stage_says_in_one_line_what_was_learnt(kind, counts, metrics, line):
    manifest = Manifest(kind, {}, {}, {}, counts, metrics, "d", "now")
    told = []
    schedule._tell(lambda *row: told.append(row), {}, {}, {"it": Outcome(manifest, 7.2)})
    assert told == [("it", "", 1, 1, line)]
