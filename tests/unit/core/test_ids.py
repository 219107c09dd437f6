"""Texts found by their hashes: exact, also where hashes collide."""

import pickle

import numpy as np
import pyarrow as pa
import pytest

from cirray.core import ids as module
from cirray.core.errors import DataError
from cirray.core.ids import ABSENT, IdMap, Ids, sorted_ids

NAMES = ["b", "a/ü", "", "c", "img 7"]


@pytest.fixture(params=["hashes", "colliding hashes"])
def ids(request, monkeypatch):
    if request.param == "colliding hashes":
        monkeypatch.setattr(module, "_hash", lambda text: len(text) % 2)
    return Ids(NAMES)


def test_every_text_is_found_at_its_place_and_no_other_is(ids):
    assert [ids.place(name) for name in NAMES] == [*range(5)] and [*ids] == NAMES == ids[:]
    assert ids.places(["img 7", "nothing", "b", "b"]).tolist() == [4, ABSENT, 0, 0]
    assert "c" in ids and "d" not in ids and 3 not in ids and "a\udcff" not in ids
    assert ids.places(["\udcff"]).tolist() == [ABSENT]
    assert ids[-1] == "img 7" and ids[1:3] == ["a/ü", ""] and ids[::2] == ["b", "", "img 7"]


def test_sorted_ids_are_each_text_once_in_the_order_of_python():
    texts = ["b", "a", "é", "b", "", "\U0001f600", "z", "\uffff", "a"]
    assert sorted_ids(texts) == sorted(set(texts)) and sorted_ids([]) == []
    assert Ids.of(found := sorted_ids(texts)) is found and Ids.of(["x"]) == ["x"]


def test_columns_and_lists_of_texts_give_the_same_places(ids):
    asked = ["c", "x", "b", "", "c"]
    for column in (pa.array(asked), pa.chunked_array([asked[:2], asked[2:]]), pa.array(asked).dictionary_encode()):
        assert ids.places(column).tolist() == ids.places(asked).tolist() == [3, ABSENT, 0, 2, 3]
    assert ids.places(Ids(["c", "b"])).tolist() == [3, 0]


def test_a_text_that_stands_twice_is_named(monkeypatch):
    for twice in (["a", "b", "a"], ["a"] * 5):
        with pytest.raises(DataError, match="'a' appears twice"):
            Ids(twice)
    monkeypatch.setattr(module, "_hash", lambda text: 0)
    with pytest.raises(DataError, match="'b' appears twice"):
        Ids(["a", "b", "c", "b"])


def test_no_texts_are_fine_and_another_process_gets_the_texts():
    assert Ids([]).places(["a"]).tolist() == [ABSENT] and "a" not in Ids(()) and len(Ids([])) == 0
    assert Ids([]).places(pa.array(["a"])).tolist() == [ABSENT]
    made = pickle.loads(pickle.dumps(Ids(NAMES)))  # noqa: S301
    assert made == Ids(NAMES) == NAMES and made.place("c") == 3 and made != Ids(NAMES[1:])
    assert pa.array(made).equals(pa.array(NAMES))


def test_texts_by_id_are_a_mapping_also_of_paths_that_are_not_utf_8(monkeypatch):
    monkeypatch.setattr(module, "_TOGETHER", 2)
    given = {"a": "/d/a.jpg", "b": "/d/\udce9.jpg", "c": "", "d": "x"}
    made = IdMap.texts(given.items())
    assert made == given and made["b"] == given["b"] and [*made] == [*"abcd"] and made.get("e", 1) == 1
    assert pickle.loads(pickle.dumps(made)) == given  # noqa: S301
    holes = IdMap(made.ids, pa.array([[1, 2], None, [3, 4], None], pa.list_(pa.int64(), 2)), tuple)
    assert holes == {"a": (1, 2), "c": (3, 4)} and len(holes) == 2 and "b" not in holes
    assert len(IdMap.texts([])) == 0 and "a" not in IdMap.texts([])


def test_many_texts_are_found_among_each_other():
    names = [f"img-{row:06d}" for row in np.random.default_rng(0).permutation(150_000)]
    made = Ids(pa.chunked_array([names[:70_000], names[70_000:]]))
    asked = np.random.default_rng(1).integers(0, len(names), 1000)
    assert made.places([names[row] for row in asked]).tolist() == asked.tolist()
