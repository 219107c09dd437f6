"""NumPy files that several threads open."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cirray.core.arrays import Arrays, change_array, read_array


class Slow:
    """Garbage whose end lets other threads run."""

    def __init__(self):
        self.itself = self

    def __del__(self):
        time.sleep(0)


def of_archive(path):
    with Arrays(path.with_suffix(".npz")) as arrays:
        return arrays["a"]


WAYS = (read_array, lambda path: read_array(path, mapped=False), change_array, of_archive)


def test_many_threads_open_arrays_at_once_while_garbage_is_collected(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(12).reshape(3, 4))
    np.savez(path.with_suffix(".npz"), a=np.arange(12).reshape(3, 4))
    before = gc.get_threshold()

    def read(number):
        Slow()
        return WAYS[number % len(WAYS)](path)

    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(read, range(1500)))
    finally:
        gc.set_threshold(*before)
    assert all((array == found[0]).all() for array in found)
    assert isinstance(found[0], np.memmap) and not isinstance(found[1], np.memmap)


def test_a_file_of_objects_is_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError):
        read_array(tmp_path / "a.npy", mapped=False)
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    with pytest.raises(ValueError):
        Arrays(tmp_path / "a.npz")["a"]


def test_what_is_no_archive_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(2))
    with pytest.raises(ValueError, match="it is no .npz file"):
        Arrays(tmp_path / "a.npy")
