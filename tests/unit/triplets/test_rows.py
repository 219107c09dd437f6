"""Triplets as rows of a table: a large store is read from a mapped file, with the same rows as a small one."""

import pickle

import numpy as np
import pytest
from made_artifacts import stage_of

from cirray.core.errors import DataError
from cirray.triplets.rows import TripletRows, row_table, training_rows
from cirray.triplets.schema import rejected_table, triplet_table
from cirray.triplets.store import TripletStore, write_part
from cirray.types import Triplet

NOTHING = rejected_table([])


def row(number, **fields):
    names = {"triplet_id": f"t{number}", "pair_id": f"p{9 - number}", "modification": f"text {number}"}
    return {**names, "reference_id": f"r{number}", "target_id": f"x{number}", **fields}


def store(path, parts):
    stage = stage_of(path, "triplets", {"parts": len(parts)})
    for number, rows in enumerate(parts):
        write_part(stage.work_uri, f"part-{number:05d}", triplet_table(rows), NOTHING)
    stage.publish({})
    return str(path)


@pytest.fixture
def large(monkeypatch, tmp_path):
    """Stores of more than three rows are large."""
    monkeypatch.setenv("CIRRAY_CACHE", str(tmp_path / "cache"))
    for module in ("store", "rows"):
        monkeypatch.setattr(f"cirray.triplets.{module}.LARGE", 3)
    monkeypatch.setattr("cirray.triplets.store._MAPPED_ROWS", 2)
    return tmp_path / "cache" / "triplets"


PARTS = [
    [row(5, weight=0.5, negative_ids=["n1"]), row(1, split="val")],
    [row(3), row(2, reverse_modification="back", positive_ids=["y"])],
    [row(4)],
]


def test_a_large_store_is_mapped_with_the_rows_of_its_parts_in_order(tmp_path, large):
    opened = TripletStore.open(store(tmp_path / "t", PARTS))
    mapped = TripletRows(opened.rows("train"))
    assert [item.triplet_id for item in mapped] == ["t5", "t3", "t2", "t4"]
    assert {item.triplet_id: item for item in mapped} == {item.triplet_id: item for item in opened.read("train")}
    (file,) = large.iterdir()
    before = file.stat().st_mtime_ns
    assert TripletRows(opened.rows("train"))[1:3] == list(mapped)[1:3] and file.stat().st_mtime_ns == before


def test_rows_are_a_sequence_whatever_pieces_their_table_is_in(tmp_path, large):
    more = [Triplet("h1", "a", "b", "human"), Triplet("h2", "c", "d", "human", group_id="g")]
    rows = training_rows([store(tmp_path / "t", PARTS)], row_table(more), frozenset())
    every = list(rows)
    assert [item.triplet_id for item in every] == ["t5", "t3", "t2", "t4", "h1", "h2"] and every[-2:] == more
    assert [rows[at] for at in range(6)] == every and rows[-1] == every[-1] and rows[1:5:2] == every[1:5:2]
    assert rows.take(np.array([4, 0, 4, 2])) == [every[at] for at in (4, 0, 4, 2)]
    assert list(rows.images()) == sorted({image for item in every for image in item.images})
    assert list(TripletRows.of(every)) == every and TripletRows.of(rows) is rows
    with pytest.raises(IndexError):
        rows[6]


def test_another_process_opens_a_large_store_again_and_is_given_a_small_one(tmp_path, large):
    uri = store(tmp_path / "t", PARTS)
    apart = frozenset({frozenset({"x3", "r3"})})
    rows = training_rows([uri], row_table([Triplet("h", "a", "b", "c")]), apart)
    assert [item.triplet_id for item in rows] == ["t5", "t2", "t4", "h"]
    few = TripletRows.of(list(rows)[:2])
    assert b"text 5" not in pickle.dumps(rows) and b"text 5" in pickle.dumps(few)
    for sent in (rows, few):
        function, given = sent.__reduce__()
        assert list(function(*given)) == list(sent)


def test_an_id_that_stands_twice_in_a_large_store_is_refused_and_leaves_no_file(tmp_path, large):
    opened = TripletStore.open(store(tmp_path / "t", [*PARTS, [row(3)]]))
    with pytest.raises(DataError, match="'t3' appears 2 times"):
        opened.rows("train")
    assert not list(large.iterdir())
