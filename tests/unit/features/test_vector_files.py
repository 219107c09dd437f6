"""Files of vectors that people bring: formats, ids, and what is refused in words."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from cirray.core.errors import DataError
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
