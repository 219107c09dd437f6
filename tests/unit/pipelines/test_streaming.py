"""Parts stay whole, errors of workers come back as sentences, and a machine that shares nothing is told so."""

import numpy as np
import pyarrow as pa
import pytest

from cirray.core.errors import ArtifactError, GenerationError
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.streaming import (
    GuardedWorker,
    Step,
    Worker,
    _raise_failure,
    stream,
    to_columns,
    whole_part,
)


def part(number, rows, of=None):
    return pa.table({"part": [number] * rows, "part_rows": [of or rows] * rows, "x": [f"{n}" for n in range(rows)]})


def upper(columns, mark=""):
    return {"x": np.array([text + mark for text in columns["x"]], dtype=object)}


def refuse(columns):
    raise ArtifactError("no disk")


class Count:
    """Counts its calls."""

    def __init__(self, start):
        if start < 0:
            raise GenerationError("starts below zero")
        self.calls = start

    def __call__(self, columns):
        self.calls += 1
        return {"calls": self.calls, "seen": " ".join(columns["x"])}


def test_steps_follow_one_another_and_an_actor_is_made_once():
    steps = [Step(upper, {"mark": "!"}), Step(Count, {"start": 10}, PoolConfig())]
    found = list(stream([part(0, 2), part(1, 1)], steps, RayConfig(enabled=False)))
    assert [columns["calls"].tolist() for columns in found] == [[11], [12]]
    assert [columns["seen"].tolist() for columns in found] == [["0! 1!"], ["0!"]]
    assert [columns["part"].tolist() for columns in found] == [[0], [1]]
    assert list(stream([], steps, RayConfig())) == []


def test_a_whole_part_is_recognised():
    assert whole_part(to_columns(part(7, 3))) == 7


@pytest.mark.parametrize(
    "table", [part(7, 3, of=4), pa.concat_tables([part(1, 2), part(2, 2)]), pa.concat_tables([part(1, 2), part(1, 2)])]
)
def test_split_or_merged_parts_are_refused(table):
    with pytest.raises(ArtifactError, match="must travel whole"):
        whole_part(to_columns(table))


def test_an_error_in_an_actors_start_or_call_is_a_value_that_passes_later_steps():
    columns = to_columns(part(0, 1))
    failure = GuardedWorker(Step(Count, {"start": -1}, PoolConfig()))(columns)
    assert GuardedWorker(Step(upper))(failure) is failure
    with pytest.raises(GenerationError, match="starts below zero"):
        _raise_failure(failure)
    with pytest.raises(ArtifactError, match="no disk"):
        _raise_failure(GuardedWorker(Step(refuse))(columns))
    _raise_failure(GuardedWorker(Step(Count, {"start": 1}, PoolConfig()))(columns))


def test_a_foreign_error_is_no_value():
    with pytest.raises(ZeroDivisionError):
        GuardedWorker(Step(lambda columns: 1 / 0))(to_columns(part(0, 1)))


def test_a_machine_that_does_not_see_the_stage_is_told_what_to_do_before_anything_is_loaded(tmp_path):
    loud = Step(Count, {"start": -1}, PoolConfig())
    with pytest.raises(ArtifactError, match=r"do not share that disk. Use a URI"):
        Worker(loud, str(tmp_path))
    (tmp_path / "stage.json").write_text("{}")
    with pytest.raises(GenerationError, match="starts below zero"):
        Worker(loud, str(tmp_path))
