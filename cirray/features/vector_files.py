"""Vectors that somebody saved: `.npy`, `.npz` or `.safetensors` with the ids of their rows. No torch.

`.npy` and `.safetensors` are memory-mapped; their ids are a JSON list in `NAME.ids.json` or `ids.json` beside them.
`.npz` holds the arrays `vectors` and `ids`, and is read whole.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cirray.core.errors import DataError

SUFFIXES = (".npy", ".npz", ".safetensors")
_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


@dataclass(frozen=True)
class VectorFile:
    """Vectors [n, D] or [n, Q, D] of images or queries, and the id of every row."""

    path: str
    ids: tuple[str, ...]
    vectors: np.ndarray


def read_vectors(path: str | Path, ids_path: str | Path = "") -> VectorFile:
    """Open a file of vectors.

    Args:
        path: `.npy`, `.npz` or `.safetensors`.
        ids_path: JSON list of ids; empty looks beside the file (or inside an `.npz`).

    Raises:
        DataError: unreadable, not floating point, of another rank than 2 or 3, ids that are missing, doubled, or too
            few or many.
    """
    file = Path(path).expanduser()
    vectors = open_array(file)
    ids = _ids(file, Path(ids_path).expanduser() if ids_path else None)
    if len(ids) != len(vectors):
        raise DataError(f"{str(file)!r} holds {len(vectors):,} vectors for {len(ids):,} ids; one id a row is needed.")
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(name for name in ids if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise DataError(f"The ids of {str(file)!r} hold {twice!r} twice; one vector an id is needed.")
    return VectorFile(str(file), ids, vectors)


def open_array(path: str | Path) -> np.ndarray:
    """The vectors of a file, memory-mapped where its format allows it.

    Raises:
        DataError: unreadable, not floating point, or of another rank than 2 or 3.
    """
    file = Path(path)
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    if file.suffix not in readers:
        raise DataError(f"{str(file)!r} is no file of vectors; {', '.join(SUFFIXES)} are read.")
    if not file.is_file():
        raise DataError(f"The file of vectors {str(file)!r} does not exist.")
    try:
        array = readers[file.suffix](file)
    except (OSError, ValueError, EOFError, KeyError, TypeError, struct.error) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{str(file)!r} cannot be read: {reason}. Write it again.") from None
    if array.ndim not in (2, 3) or array.dtype.kind != "f":
        raise DataError(
            f"{str(file)!r} holds {array.dtype} of shape {array.shape}; floating point [N, D] or [N, tokens, D] is "
            "needed."
        )
    return array


def _npy(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if name != "ids"]
        return arrays[_one(names, path)]


def _safetensors(path: Path) -> np.ndarray:
    """The tensor of the file, or the one called `vectors`, mapped where it lies."""
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > 100_000_000:
            raise ValueError("its header is no safetensors header")
        header: dict[str, Any] = json.loads(stream.read(size))
    name = _one([key for key in header if key != "__metadata__"], path)
    kind, shape, (start, _) = header[name]["dtype"], header[name]["shape"], header[name]["data_offsets"]
    if kind not in _TYPES:
        raise DataError(f"{str(path)!r} holds {kind} values; {', '.join(_TYPES)} are read. Convert them first.")
    return np.memmap(path, dtype=_TYPES[kind], mode="r", offset=8 + size + start, shape=tuple(shape))


def _one(names: Sequence[str], path: Path) -> str:
    if "vectors" in names:
        return "vectors"
    if len(names) != 1:
        raise DataError(f"{str(path)!r} holds {', '.join(names) or 'nothing'}; name the vectors `vectors`.")
    return names[0]


def _ids(path: Path, ids_path: Path | None) -> tuple[str, ...]:
    if ids_path is None and path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            if "ids" in arrays.files:
                return tuple(str(name) for name in arrays["ids"].tolist())
    beside = (path.with_suffix(".ids.json"), path.with_name("ids.json"))
    found = ids_path or next((file for file in beside if file.is_file()), None)
    if found is None:
        raise DataError(f"The ids of {str(path)!r} are missing: write a JSON list of them to {str(beside[0])!r}.")
    try:
        names = json.loads(found.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The ids {str(found)!r} cannot be read: {' '.join(str(error).split())[:120]}.") from None
    if not isinstance(names, list) or any(isinstance(name, bool) or not isinstance(name, str | int) for name in names):
        raise DataError(f"{str(found)!r} must hold a JSON list of ids (text or whole numbers).")
    return tuple(str(name) for name in names)
