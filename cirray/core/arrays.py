"""NumPy files, opened by any number of threads."""

import threading
from pathlib import Path

import numpy as np

_LOCK = threading.Lock()


def read_array(path: Path | str, mapped: bool = True) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory to be read, or with `mapped=False` read whole.

    One thread at a time: the header is a Python literal, and Python 3.11's parser of these fails where another thread
    parses too ("AST constructor recursion depth mismatch").

    Raises:
        OSError, ValueError, EOFError: missing, not of this format, or cut off; a mapped one also when it is empty.
    """
    with _LOCK:
        found: np.ndarray = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        return found
