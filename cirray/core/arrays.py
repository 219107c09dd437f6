"""NumPy files, opened by any number of threads.

One thread at a time: an array's header is a Python literal, and Python 3.11's parser of these fails where another
thread parses too ("AST constructor recursion depth mismatch").
"""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

_LOCK = threading.Lock()


def read_array(path: Path | str, mapped: bool = True) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory to be read, or with `mapped=False` read whole.

    Raises:
        OSError, ValueError, EOFError: missing, not of this format, or cut off; a mapped one also when it is empty.
    """
    return _load(path, "r" if mapped else None)


def change_array(path: Path | str) -> np.ndarray:
    """The array of a `.npy` file, mapped into memory to be written. Raises as `read_array`."""
    return _load(path, "r+")


def _load(path: Path | str, mode: Literal["r", "r+"] | None) -> np.ndarray:
    with _LOCK:
        found: np.ndarray = np.load(path, mmap_mode=mode, allow_pickle=False)
        return found


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` by name, each read whole when it is asked for; a context manager that closes the file."""

    def __init__(self, file: Path | str | BinaryIO) -> None:
        """Read which arrays there are.

        Raises:
            OSError, ValueError, EOFError, BadZipFile: missing, not of this format, or cut off; arrays that are asked
                for raise too.
        """
        with _LOCK:
            found = np.load(file, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise ValueError("it is no .npz file")
        self._file = found

    def __getitem__(self, name: str) -> np.ndarray:
        with _LOCK:
            found: np.ndarray = self._file[name]
            return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.files)

    def __len__(self) -> int:
        return len(self._file.files)

    def __contains__(self, name: object) -> bool:
        return name in self._file.files

    def __enter__(self) -> "Arrays":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()
