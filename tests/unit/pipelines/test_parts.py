"""The runner of parted stages: only what is left is done, every key is counted, and an empty result leaves nothing."""

from collections import Counter
from functools import partial

import pyarrow as pa
import pytest
from made_artifacts import stage_of

from cirray.core.errors import DataError, GenerationError
from cirray.core.progress import redirected
from cirray.pipelines.cluster import parts as runner
from cirray.pipelines.cluster.config import PoolConfig, RayConfig
from cirray.pipelines.cluster.parts import Cut, Parts, Rejected, each_part, run_parts
from cirray.pipelines.cluster.streaming import Step, in_process
from cirray.triplets.store import row_keys
from cirray.types import part_name

HERE = RayConfig(enabled=False)


class Shelf:
    """Keeps the names of each part; leaves out, doubles or adds some."""

    def __init__(self, shelf, lose=(), also=()):
        self.shelf, self.lose, self.also = shelf, lose, also

    def __call__(self, columns):
        names = [name for name in columns["name"] if name not in self.lose]
        self.shelf[part_name(columns["part"][0])] = [*names, *self.also]
        return {"kept": len(names)}


@pytest.fixture
def stage(tmp_path):
    return stage_of(tmp_path / "out", "toy", {})


def parts_of(shelf, names="abcdefg", **settings):
    step = Step(Shelf, {"shelf": shelf, **settings}, PoolConfig())
    return Parts(
        "shelve", "names", Cut({"name": list(names)}, 3), [step], partial(row_keys, columns=("name",)),
        lambda: [(name, pa.array(keys, pa.string())) for name, keys in shelf.items()],
    )  # fmt: skip


def test_parts_are_whole_numbered_and_in_order():
    tables = Cut({"name": list("abcdefg")}, 3)
    assert [table.column("part").to_pylist() for table in tables] == [[0, 0, 0], [1, 1, 1], [2]]
    assert [table.column("part_rows").to_pylist()[0] for table in tables] == [3, 3, 1]
    assert pa.concat_tables(tables).column("name").to_pylist() == list("abcdefg") and not list(Cut({"name": []}, 3))


def test_only_unfinished_parts_are_done_and_their_figures_summed(stage):
    shelf, told = {"part-00000": ["c", "b", "a"], "part-00001": ["d", "e"]}, []
    with redirected(lambda title, done, total, note: told.append((title, done, total))):
        assert run_parts(stage, parts_of(shelf), HERE) == Counter(kept=4)
    assert shelf == {"part-00000": ["c", "b", "a"], "part-00001": ["d", "e", "f"], "part-00002": ["g"]}
    assert told[0] == ("shelve", 0, 7) and told[-1] == ("shelve", 7, 7)
    assert run_parts(stage, parts_of(shelf, lose="abcdefg"), HERE) == Counter()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"lose": "df"}, "2 of 7 rows are lost in .*out.partial', e.g. 'd'"), ({"also": "z"}, "are unknown .* e.g. 'z'"),
     ({"also": "c"}, "are doubled .* e.g. 'c'")],
)  # fmt: skip
def test_keys_that_are_lost_unknown_or_doubled_are_a_loud_failure(stage, settings, words):
    with pytest.raises(GenerationError, match=f"{words}. Delete that folder and run again"):
        run_parts(stage, parts_of({}, **settings), HERE)


def test_a_key_that_is_wanted_twice_may_be_there_twice(stage):
    assert run_parts(stage, parts_of({}, names="aab"), HERE) == Counter(kept=3)


def test_parts_that_are_only_read_come_back_with_their_numbers():
    parts = Parts("look", "names", Cut({"name": list("abcd")}, 3), [Step(lambda columns: {"name": columns["name"]})])
    found = {int(columns["part"][0]): columns["name"].tolist() for columns in each_part(parts, HERE)}
    assert found == {0: ["a", "b", "c"], 1: ["d"]}


def test_parts_that_do_not_come_back_are_missed(monkeypatch):
    monkeypatch.setattr(runner, "stream", lambda tables, *rest: in_process(tables[:1], *rest[:1]))
    parts = Parts("look", "names", Cut({"name": list("abcd")}, 3), [Step(lambda columns: {"name": columns["name"]})])
    with pytest.raises(DataError, match="1 of 2 parts did not come back, e.g. number 1; run again"):
        list(each_part(parts, HERE))


def test_when_everything_is_rejected_the_most_frequent_reason_is_told_and_nothing_left(stage, tmp_path):
    rejected = Rejected([("a", "dull"), ("b", "{wet}"), ("c", "{wet}")])
    assert rejected.first() == [["a", "dull"], ["b", "{wet}"], ["c", "{wet}"]] and len(rejected) == 3
    rejected.refuse_all(stage, 1, "no")
    assert (tmp_path / "out.partial").exists()
    with pytest.raises(DataError, match="None of 3, e.g. 'a': {wet}"):
        rejected.refuse_all(stage, 0, "None of {count}, e.g. {name!r}: {reason}")
    assert not (tmp_path / "out.partial").exists()
