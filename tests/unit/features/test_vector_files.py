"""Files of vectors that people bring: formats, ids, and what is refused in words."""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import save_file

from cirray.core.errors import DataError
from cirray.evaluation.chunked import Question, Settings, Shard, merge_probes, probe_scores, scan
from cirray.features.vector_files import open_array, read_vectors

VECTORS = np.arange(12, dtype=np.float16).reshape(4, 3)
IDS = ["a", "b", "c", "d"]


def beside(path, ids=IDS):
    path.with_suffix(".ids.json").write_text(json.dumps(ids))
    return path


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_vectors_are_mapped_not_read_and_equal_what_was_saved(tmp_path, suffix):
    path = tmp_path / f"g{suffix}"
    np.save(path, VECTORS) if suffix == ".npy" else save_file({"x": VECTORS}, path)
    found = read_vectors(beside(path))
    assert isinstance(found.vectors, np.memmap) and found.ids == tuple(IDS)
    assert np.array_equal(found.vectors, VECTORS)


def test_of_several_tensors_the_one_called_vectors_is_taken(tmp_path):
    save_file({"other": VECTORS + 1, "vectors": VECTORS.astype(np.float32)}, tmp_path / "g.safetensors")
    assert np.array_equal(open_array(tmp_path / "g.safetensors"), VECTORS)
    save_file({"one": VECTORS, "two": VECTORS}, tmp_path / "h.safetensors")
    with pytest.raises(DataError, match="name the vectors `vectors`"):
        open_array(tmp_path / "h.safetensors")


def test_an_npz_holds_its_own_ids(tmp_path):
    np.savez(tmp_path / "g.npz", vectors=VECTORS, ids=np.array(IDS))
    assert read_vectors(tmp_path / "g.npz").ids == tuple(IDS)


def test_ids_are_found_beside_or_where_they_are_said_to_be_and_numbers_become_text(tmp_path):
    np.save(tmp_path / "tokens.npy", np.zeros((4, 2, 3), np.float32))
    (tmp_path / "ids.json").write_text("[7, 8, 9, 10]")
    assert read_vectors(tmp_path / "tokens.npy").ids == ("7", "8", "9", "10")
    (tmp_path / "else.json").write_text(json.dumps(IDS))
    assert read_vectors(tmp_path / "tokens.npy", tmp_path / "else.json").ids == tuple(IDS)


@pytest.mark.parametrize("dtype", [">f2", ">f4", ">f8"])
def test_vectors_of_the_other_byte_order_are_scored_alike(tmp_path, dtype):
    np.save(tmp_path / "g.npy", VECTORS.astype(dtype))
    found = read_vectors(beside(tmp_path / "g.npy"))
    questions = Question(np.ones((1, 3), np.float32), ("q",), np.array([0]), np.array([2]), np.array([-1]), 4)
    shard = Shard(found.vectors)
    scores = merge_probes(questions, [probe_scores(questions, shard, Settings(normalize=False))])
    best = scan(questions, shard, scores, Settings(normalize=False))
    assert scores.tolist() == [21.0] and best.rows.tolist() == [[3, 2, 1, 0]]


@pytest.mark.parametrize("ids", [np.array(IDS), np.array([b"a", b"b", b"c", b"d"]), np.array([7, 8, 9, 10])])
def test_ids_of_an_npz_may_be_text_bytes_or_whole_numbers(tmp_path, ids):
    np.savez(tmp_path / "g.npz", vectors=VECTORS, ids=ids)
    assert read_vectors(tmp_path / "g.npz").ids == (tuple(IDS) if ids.dtype.kind in "US" else ("7", "8", "9", "10"))


class Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_object_arrays_are_refused_with_the_way_to_save_them_and_never_unpickled(tmp_path):
    trap = Trap(str(tmp_path / "sprung"))
    for ids in (np.array(IDS, dtype=object), np.array([trap] * 4, dtype=object)):
        np.savez(tmp_path / "g.npz", vectors=VECTORS, ids=ids)
        with pytest.raises(DataError, match=r"g.npz' cannot be read: it is an array of Python objects.*dtype=str"):
            read_vectors(tmp_path / "g.npz")
    rows = np.empty(4, dtype=object)
    rows[:] = list(VECTORS)
    np.save(tmp_path / "o.npy", rows, allow_pickle=True)
    np.savez(tmp_path / "o.npz", vectors=rows)
    for name in ("o.npy", "o.npz"):
        with pytest.raises(DataError, match=r"Python objects.*np.stack"):
            open_array(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (np.array([1.0, 2.0, 3.0, 4.0]), "are float64 of shape"),
        (np.array([["a"], ["b"], ["c"], ["d"]]), r"of shape \(4, 1\)"),
        (np.array([True, False, True, False]), "are bool"),
        (np.array([b"a", b"b", b"c", b"\xff"]), "which is not UTF-8 text"),
        (np.array(IDS)[:3], "4 vectors for 3 ids"),
    ],
)
def test_ids_of_an_npz_that_are_none_are_refused(tmp_path, ids, words):
    np.savez(tmp_path / "g.npz", vectors=VECTORS, ids=ids)
    with pytest.raises(DataError, match=words):
        read_vectors(tmp_path / "g.npz")


def test_a_cut_npz_and_long_doubles_are_refused_in_words(tmp_path):
    np.savez(tmp_path / "g.npz", vectors=VECTORS, ids=np.array(IDS))
    (tmp_path / "g.npz").write_bytes((tmp_path / "g.npz").read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot be read"):
        read_vectors(tmp_path / "g.npz")
    np.save(tmp_path / "l.npy", VECTORS.astype(np.longdouble))
    with pytest.raises(DataError, match="float16, float32 or float64"):
        open_array(tmp_path / "l.npy")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_ids_with_a_byte_order_mark_and_suffixes_in_capitals_are_read(tmp_path, encoding):
    np.save(tmp_path / "g.npy", VECTORS)
    (tmp_path / "g.npy").rename(tmp_path / "g.NPY")
    (tmp_path / "g.ids.json").write_bytes(json.dumps(["à", *IDS[1:]], ensure_ascii=False).encode(encoding))
    assert read_vectors(tmp_path / "g.NPY").ids == ("à", *IDS[1:])


@pytest.mark.parametrize(
    ("ids", "sentence"),
    [
        (IDS[:3], "4 vectors for 3 ids"),
        (["a", "b", "c", "b"], "hold 'b' twice"),
        ({"a": 1}, "JSON list of ids"),
        ([True, 1, 2, 3], "JSON list of ids"),
    ],
)
def test_ids_that_do_not_fit_are_refused(tmp_path, ids, sentence):
    np.save(tmp_path / "g.npy", VECTORS)
    with pytest.raises(DataError, match=sentence):
        read_vectors(beside(tmp_path / "g.npy", ids))


def test_missing_ids_say_where_they_are_looked_for(tmp_path):
    np.save(tmp_path / "g.npy", VECTORS)
    with pytest.raises(DataError, match=r"ids of .*g.npy' are missing.*g.ids.json"):
        read_vectors(tmp_path / "g.npy")


def test_damaged_foreign_and_absent_files_are_refused(tmp_path):
    for name in ("a.npy", "a.npz", "a.safetensors"):
        (tmp_path / name).write_bytes(b"\x00" * 40)
        with pytest.raises(DataError, match="cannot be read|holds nothing"):
            open_array(tmp_path / name)
    with pytest.raises(DataError, match="no file of vectors; .npy"):
        open_array(tmp_path / "a.pt")
    with pytest.raises(DataError, match="does not exist"):
        open_array(tmp_path / "b.npy")


def test_whole_numbers_and_other_ranks_are_refused(tmp_path):
    np.save(tmp_path / "g.npy", np.zeros((4, 3), np.int64))
    with pytest.raises(DataError, match="holds int64 of shape"):
        open_array(tmp_path / "g.npy")
    np.save(tmp_path / "h.npy", np.zeros(4))
    with pytest.raises(DataError, match=r"of shape \(4,\)"):
        open_array(tmp_path / "h.npy")


def test_pickled_arrays_are_never_loaded(tmp_path):
    np.save(tmp_path / "g.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        open_array(tmp_path / "g.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
def test_damage_anywhere_in_a_file_is_an_error_in_words_or_harmless(tmp_path, suffix):
    good, path, rng = beside(tmp_path / f"good{suffix}"), beside(tmp_path / f"bad{suffix}"), random.Random(0)
    values = VECTORS.astype(np.float32)
    if suffix == ".npz":
        np.savez(good, vectors=values, ids=np.array(IDS))
    else:
        np.save(good, values) if suffix == ".npy" else save_file({"vectors": values}, good)
    refused = 0
    for _ in range(300):
        data = bytearray(good.read_bytes())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.choice([len(data), rng.randrange(len(data))])]))
        try:
            read_vectors(path)
        except DataError:
            refused += 1
    assert refused > 150
