"""Encoded images of an index, wherever they were made: in the index it replaces, or in parts of this stage.

A row is known by its key: the digest of its picture's bytes, or its id where stored features are indexed.
"""

import io
import json
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from cirray.core import storage
from cirray.core.arrays import Arrays, change_array, read_array
from cirray.core.artifacts import Manifest, Stage
from cirray.core.contents import SEEN
from cirray.core.errors import ArtifactError, damage_told, reason_of
from cirray.core.log import get_logger
from cirray.data.changes import Seen
from cirray.data.listing import picture_ids
from cirray.index.pictures import open_pictures
from cirray.index.store import IDS, PATCHES, TOKENS, check_files
from cirray.types import part_name

FOLDER = "parts"
"""Below the stage's folder while it works."""
MAKERS = ("checkpoint", "transform")
"""The inputs that decide what a picture's row is."""
_LOGGER = get_logger("pipelines.index")
_STEP, _OPEN = 256, 4
"""Rows copied at once from an index; parts whose pictures are in memory at once."""


class Source(Protocol):
    """Rows in one place."""

    keys: list[str]
    rejected: list[tuple[str, str]]
    """Ids and reasons of images without a row."""
    has_patches: bool

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """An array (`TOKENS`, `PATCHES`) of all rows, in pieces; nothing where it is not kept."""

    def pictures(self) -> Callable[[int], bytes]:
        """Reader of the encoded picture of a row, empty where there is none."""


class PartRows:
    """A part that this stage, or its killed earlier run, wrote."""

    def __init__(self, uri: str) -> None:
        """Read which rows it holds."""
        self._uri = uri
        with self._arrays() as arrays:
            self._told = json.loads(arrays["text"].tobytes())
            self.has_patches = "patches0" in arrays
        self.keys: list[str] = self._told["keys"]
        self.rejected: list[tuple[str, str]] = [(name, reason) for name, reason in self._told["rejected"]]

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """See `Source`."""
        with self._arrays() as arrays:
            names = [f"{Path(name).stem}{number}" for number in range(self._told["blocks"])]
            yield from (arrays[name] for name in names if name in arrays)

    def pictures(self) -> Callable[[int], bytes]:
        """See `Source`."""
        ends = np.cumsum([0, *self._told["sizes"]])
        with self._arrays() as arrays:
            packed = arrays["pictures"].tobytes()
        return lambda row: packed[ends[row] : ends[row + 1]] if row + 1 < len(ends) else b""

    def _arrays(self) -> Arrays:
        with damage_told(self._uri, "Delete that file, or start anew with --restart."):
            is_local = storage.is_local(self._uri)
            file = storage.local_path(self._uri) if is_local else io.BytesIO(storage.read_bytes(self._uri))
            return Arrays(file)


class IndexRows:
    """A finished index of a folder."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Check its files and find the digests of its pictures. Raises ArtifactError: a file is missing or damaged."""
        check_files(folder, manifest, str(folder))
        self._folder, self._names = folder, list(manifest.extra["files"])
        self.has_patches = PATCHES in self._names
        self.rejected: list[tuple[str, str]] = []
        seen = read_seen(str(folder))
        digests = dict(zip(picture_ids([row.name for row in seen]), (row.digest for row in seen), strict=True))
        ids = json.loads((folder / IDS).read_text(encoding="utf-8"))
        self.keys: list[str] = [digests.get(name, "") for name in ids]

    def blocks(self, name: str) -> Iterator[np.ndarray]:
        """See `Source`."""
        if name in self._names:
            mapped = partial(read_array, self._folder / name)
            yield from (mapped()[start : start + _STEP] for start in range(0, len(mapped()), _STEP))

    def pictures(self) -> Callable[[int], bytes]:
        """See `Source`."""
        store = open_pictures(self._folder, self._names)
        return store.read if store else lambda row: b""


class Rows:
    """Rows by key, of several sources."""

    def __init__(self, sources: Sequence[Source]) -> None:
        """Note where every row is; of two with one key the later source counts."""
        self._sources = sources
        named = ((key, at, row) for at, source in enumerate(sources) for row, key in enumerate(source.keys))
        self.places = {key: (at, row) for key, at, row in named if key}

    def stack(self, keys: Sequence[str], folder: Path) -> None:
        """Write the vectors, and the patches where they are kept, of some rows in their order."""
        wanted = np.array([self.places[key] for key in keys], np.int64).reshape(-1, 2)
        for name in (TOKENS, PATCHES):
            made = False
            for at, source in enumerate(self._sources):
                (to,) = np.nonzero(wanted[:, 0] == at)
                begin = 0
                for block in source.blocks(name) if len(to) else ():
                    shape = (len(keys), *block.shape[1:])
                    # mapped anew for each block, for a page once touched stays in this process's memory
                    if not made:
                        np.lib.format.open_memmap(folder / name, "w+", block.dtype, shape)
                    target = change_array(folder / name)
                    inside = to[(wanted[to, 1] >= begin) & (wanted[to, 1] < begin + len(block))]
                    target[inside] = block[wanted[inside, 1] - begin]
                    begin, made = begin + len(block), True

    def picture_of(self) -> Callable[[str], bytes]:
        """Reader of the encoded picture of a key; the latest sources stay open."""
        reader = lru_cache(_OPEN)(lambda at: self._sources[at].pictures())

        def read(key: str) -> bytes:
            at, row = self.places[key]
            return reader(at)(row)

        return read


def earlier_rows(stage: Stage, patches: bool) -> list[Source]:
    """What need not be encoded: the index that this stage replaces, and parts of its killed earlier run.

    Says why, where the index cannot be used. Rows without patches, or with, are of no use where the new index keeps
    some, or none.
    """
    sources: list[Source] = [rows for rows in part_rows(stage) if rows.has_patches == patches]
    former = stage.former
    if former is None:
        return sources
    try:
        index = IndexRows(storage.local_path(stage.uri), former)
        same = all(former.inputs.get(name) == stage.inputs.get(name) for name in MAKERS)
        why = "" if same else "its model has changed"
        why = why or ("it keeps other features" if index.has_patches != patches else "")
        why = why or ("it does not know its files any more" if not any(index.keys) else "")
    except (ArtifactError, ValueError) as error:
        why = reason_of(error)
    if not why:
        return [index, *sources]
    _LOGGER.info("every picture is encoded again: %s was here, but %s", stage.uri, why)
    return sources


def part_rows(stage: Stage, first: int = 0) -> list[PartRows]:
    """The parts from a number on that the stage holds."""
    return [PartRows(part_uri(stage.work_uri, number)) for number in part_numbers(stage) if number >= first]


def part_numbers(stage: Stage) -> list[int]:
    """Numbers of the parts that the stage holds, ascending."""
    names = storage.list_files(storage.join(stage.work_uri, FOLDER))
    return sorted(int(name.removesuffix(".npz").rpartition("-")[2]) for name in names if name.endswith(".npz"))


def next_part(stage: Stage) -> int:
    """The first free number."""
    return max(part_numbers(stage), default=-1) + 1


def part_uri(work_uri: str, number: int) -> str:
    """File of a part while the index is made."""
    return storage.join(work_uri, FOLDER, f"{part_name(number)}.npz")


def read_seen(index: str) -> list[Seen]:
    """The files that an index was made of, as they were seen last; none where that is not known."""
    place = storage.join(index, SEEN)
    try:
        return [Seen(*row) for row in json.loads(storage.read_bytes(place))] if storage.exists(place) else []
    except (ValueError, TypeError):
        return []


def write_seen(index: str, rows: Sequence[Seen]) -> None:
    """Note them."""
    storage.write_bytes(storage.join(index, SEEN), json.dumps(rows).encode())
