"""Vectors from other programs: `.npy`, `.npz` or `.safetensors` with the ids of their rows. No torch.

`.npy` and `.safetensors` are memory-mapped; their ids are a JSON list in `NAME.ids.json` or `ids.json` beside them.
`.npz` holds the arrays `vectors` and `ids`, and is read whole. Nothing is ever unpickled: arrays of Python objects, as
`DataFrame.values` gives them, are refused.
"""

import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cirray.core.arrays import Arrays, read_array
from cirray.core.errors import DataError
from cirray.core.texts import is_whole, parse_json

SUFFIXES = (".npy", ".npz", ".safetensors")
_TYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


@dataclass(frozen=True)
class VectorFile:
    """Vectors [n, D] or [n, Q, D] of images or queries, of any byte order, and the id of every row."""

    path: str
    ids: tuple[str, ...]
    vectors: np.ndarray


def read_vectors(path: str | Path, ids_path: str | Path = "") -> VectorFile:
    """Open a `.npy`, `.npz` or `.safetensors` file of vectors; ids are looked for beside it, or inside an `.npz`, where
    no JSON list is named.

    Raises DataError: unreadable, not floating point, of another rank than 2 or 3, ids missing, repeated, too few or too
    many.
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

    Raises DataError: unreadable, not floating point, or of another rank than 2 or 3.
    """
    file = Path(path)
    readers = {".npy": _npy, ".npz": _npz, ".safetensors": _safetensors}
    suffix = file.suffix.lower()
    if suffix not in readers:
        raise DataError(f"{str(file)!r} is no file of vectors; {', '.join(SUFFIXES)} are read.")
    if not file.is_file():
        raise DataError(f"The file of vectors {str(file)!r} does not exist.")
    try:
        array = readers[suffix](file)
    except _UNREADABLE as error:
        raise DataError(f"{str(file)!r} cannot be read: {_reason(error, _STACK)}") from None
    if array.ndim not in (2, 3) or array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise DataError(
            f"{str(file)!r} holds {array.dtype} of shape {array.shape}; floating point (float16, float32 or float64) "
            "[N, D] or [N, tokens, D] is needed."
        )
    return array


def _npy(path: Path) -> np.ndarray:
    return read_array(path)


def _npz(path: Path) -> np.ndarray:
    with Arrays(path) as arrays:
        names = [name for name in arrays if name != "ids"]
        return arrays[_one(names, path)]


def _safetensors(path: Path) -> np.ndarray:
    """The file's only tensor, or the one called `vectors`, memory-mapped."""
    with path.open("rb") as stream:
        (size,) = struct.unpack("<Q", stream.read(8))
        if size > 100_000_000:
            raise ValueError("its header is no safetensors header")
        header: dict[str, Any] = parse_json(stream.read(size))
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
    if ids_path is None and path.suffix.lower() == ".npz":
        with Arrays(path) as arrays:
            if "ids" in arrays:
                return _array_ids(arrays, path)
    beside = (path.with_suffix(".ids.json"), path.with_name("ids.json"))
    found = ids_path or next((file for file in beside if file.is_file()), None)
    if found is None:
        raise DataError(f"The ids of {str(path)!r} are missing: write a JSON list of them to {str(beside[0])!r}.")
    try:
        names = parse_json(found.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(
            f"The ids {str(found)!r} cannot be read: {' '.join(str(error).split())[:120]}. Write a JSON list of them."
        ) from None
    if not isinstance(names, list):
        raise DataError(f"{str(found)!r} must hold a JSON list of ids (text or whole numbers).")
    return _names(names, found, "a JSON list of ids")


def _array_ids(arrays: Arrays, path: Path) -> tuple[str, ...]:
    """Ids of an `.npz`: text, bytes in UTF-8, or whole numbers, one a row."""
    try:
        ids = arrays["ids"]
    except _UNREADABLE as error:
        raise DataError(f"The ids of {str(path)!r} cannot be read: {_reason(error, _AS_TEXT)}") from None
    if ids.ndim != 1 or ids.dtype.kind not in "USiu":
        raise DataError(
            f"The ids of {str(path)!r} are {ids.dtype} of shape {ids.shape}; a plain array of texts or whole numbers, "
            f"one a row, is needed. {_AS_TEXT}"
        )
    return _names(ids.tolist(), path, "ids")


def _names(values: Iterable[Any], path: Path, what: str) -> tuple[str, ...]:
    found = []
    for value in values:
        try:
            name = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError:
            raise DataError(f"{str(path)!r} holds the id {value!r}, which is not UTF-8 text.") from None
        if isinstance(name, bool) or not isinstance(name, str | int) or not is_whole(str(name)):
            raise DataError(f"{str(path)!r} holds {value!r} among its ids; {what} (text or whole numbers) is needed.")
        found.append(str(name))
    return tuple(found)


def _reason(error: BaseException, remedy: str) -> str:
    """Why an array cannot be read, and what to do."""
    text = " ".join(str(error).split())[:120] or type(error).__name__
    if any(word in text for word in ("allow_pickle", "pickled", "Python objects")):
        return f"it is an array of Python objects, which only unpickling could read. {remedy}"
    return f"{text}. Write it again."


_UNREADABLE = (
    OSError, ValueError, EOFError, KeyError, TypeError, ArithmeticError, RuntimeError, SyntaxError, MemoryError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy raises for damaged files."""
_STACK = "Save numbers: np.save(file, np.stack(vectors).astype(np.float32))."
_AS_TEXT = "Save them as text: np.savez(file, vectors=vectors, ids=np.array(ids, dtype=str))."
