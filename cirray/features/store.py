"""Feature store: fp16 vectors of images in memory-mapped shards, found by image id. No torch.

An artifact of kind "features" holds `shards/part-XXXXX.npy` (fp16, n x P x D) with `shards/part-XXXXX.ids.json` beside
it, and its manifest says which encoder and which image transform made it.
"""

import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa

from cirray.core.arrays import read_array
from cirray.core.artifacts import Manifest, localize, read_manifest
from cirray.core.errors import ArtifactError, DataError, IndexMismatchError, reason_of
from cirray.core.ids import ABSENT, Ids
from cirray.core.storage import is_local, list_files
from cirray.features.shards import FOLDER, read_shard_ids, shard_digest

VERIFIED_BYTES = 2**30
"""Up to this size every byte is checked when a store is opened; above it, only sizes and shapes."""
_SHOWN_IDS = 3
_LARGE_ROW, _THREADED, _THREADS, _KEPT = 2**15, 2**24, 4, 5
"""From this row size on, rows are copied one by one; from this batch size on, by several threads into reused memory."""
_BUFFERS = threading.Lock()
"""Held while a buffer is looked for: training reads its next batch on another thread."""


class FeatureLookup(Protocol):
    """Frozen patch tokens by image id, as training, generation and evaluation read them; `FeatureStore` is one."""

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Tokens `[n, P, D]`, any float type, in the order of `ids`."""

    def __contains__(self, image_id: object) -> bool:
        """Whether the image has features."""


@dataclass(frozen=True)
class FeatureInfo:
    """Origin of the features: digests of encoder and transform, shape (P, D) of one image's tokens."""

    encoder_digest: str
    transform_digest: str
    shape: tuple[int, int]


class FeatureStore:
    """Image id -> patch tokens. Opening reads ids and headers; vectors are read from disk when asked for."""

    def __init__(
        self, shards: Sequence[np.ndarray], ids: Sequence[str] | pa.ChunkedArray, info: FeatureInfo,
        rows: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """Take shards [n, P, D] and the ids of their rows, in one order; with `rows` of those alone.

        Raises ArtifactError when an id appears twice, or ids and rows differ in number.
        """
        self.info = info
        self._shards = list(shards)
        self._buffers: list[np.ndarray] = []
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self._rows = rows
        count = int(self._starts[-1]) if rows is None else len(rows)
        if len(ids) != count:
            raise ArtifactError(f"{len(ids)} ids for {count} rows. Embed the images again.")
        try:
            self.ids = Ids(ids)
        except DataError as error:
            raise ArtifactError(f"Damaged ids of features: {error} Embed the images again.") from None

    @classmethod
    def open(cls, uri: str | Path, verified_bytes: int = VERIFIED_BYTES) -> "FeatureStore":
        """Open a features artifact; a remote one is downloaded once into this machine's cache.

        Raises ArtifactError: missing, incomplete, of another kind, or a shard that is damaged (named).
        """
        manifest, folder = read_manifest(uri, "features"), localize(uri, "features") / FOLDER
        info = _info(manifest, str(uri))
        names = sorted(name.removesuffix(".npy") for name in list_files(folder) if name.endswith(".npy"))
        expected = manifest.extra.get("shards", {})
        missing = sorted(set(expected) - set(names))
        if missing:
            raise ArtifactError(f"Feature shard {str(folder / missing[0])!r}.npy is missing. Embed the images again.")
        total = sum((folder / f"{name}.npy").stat().st_size for name in names)
        shards, ids = [], [pa.array([], pa.large_string())]
        for name in names:
            shard_ids = read_shard_ids(str(folder), name)
            if total <= verified_bytes and name in expected:
                _check_content(folder, name, expected[name])
            shards.append(_map_shard(folder / f"{name}.npy", len(shard_ids), info.shape))
            ids.append(pa.array(shard_ids, pa.large_string()))
        return cls(shards, pa.chunked_array(ids), info)

    @classmethod
    def open_many(cls, uris: str | Path | Sequence[str | Path], verified: bool = False) -> "FeatureStore":
        """Open one artifact or several as one store.

        With `verified` another process has compared the contents with their digests; only a machine's own copies of
        remote artifacts are compared again.

        Raises IndexMismatchError when their encoders, transforms or shapes differ, and DataError when one id names
        different features in two of them.
        """
        wanted = [uris] if isinstance(uris, str | Path) else list(uris)
        if not wanted:
            raise ArtifactError("No features artifact was named; give at least one.")
        return merge(
            [cls.open(uri, 0 if verified and is_local(uri) else VERIFIED_BYTES) for uri in wanted],
            [str(uri) for uri in wanted],
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(P, D): tokens of an image and their width."""
        return self.info.shape

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Features of images, fp16 [n, P, D], in the order of `ids` (an id may be asked for more than once).

        Raises DataError naming ids that are not in the store.
        """
        rows = self._rows_of(ids)
        result = self._memory(len(rows))
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        if result[:1].nbytes >= _LARGE_ROW:
            self._copy(rows, shard_of, result)
            return result
        for number in np.unique(shard_of):
            places = np.flatnonzero(shard_of == number)
            places = places[np.argsort(rows[places], kind="stable")]
            result[places] = self._shards[number][rows[places] - self._starts[number]]
        return result

    def blocks(self, rows: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """All ids and features in order, `rows` at a time."""
        for start in range(0, len(self), rows):
            chunk = self.ids[start : start + rows]
            yield chunk, self.get(chunk)

    def missing(self, ids: Iterable[str]) -> list[str]:
        """Those of `ids` that are not in the store, in order."""
        asked = ids if isinstance(ids, Ids) else [*ids]
        return [asked[int(at)] for at in np.flatnonzero(self.ids.places(asked) == ABSENT)]

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.ids

    def __len__(self) -> int:
        return len(self.ids)

    def _memory(self, rows: int) -> np.ndarray:
        """Memory for a batch: an earlier batch's that is no longer used, since the kernel clears new pages first."""
        shape = (rows, *self.shape)
        if rows * self.shape[0] * self.shape[1] * 2 < _THREADED:
            return np.empty(shape, dtype=np.float16)
        with _BUFFERS:
            return self._free(shape)

    def _free(self, shape: tuple[int, ...]) -> np.ndarray:
        for at in range(len(self._buffers)):
            # referenced by the list and by getrefcount's argument; a view or tensor would add one
            if sys.getrefcount(self._buffers[at]) == 2 and self._buffers[at].shape == shape:
                return self._buffers[at]
        self._buffers = [*self._buffers[-_KEPT + 1 :], np.empty(shape, dtype=np.float16)]
        return self._buffers[-1]

    def _copy(self, rows: np.ndarray, shard_of: np.ndarray, result: np.ndarray) -> None:
        """Copy row by row from the mapped files, in threads (NumPy releases the lock)."""
        starts = rows - self._starts[shard_of]
        plain = {number: np.asarray(self._shards[number]) for number in np.unique(shard_of).tolist()}

        def copy(places: Sequence[int]) -> None:
            for place in places:
                result[place] = plain[shard_of[place]][starts[place]]

        order = np.lexsort((starts, shard_of)).tolist()
        if result.nbytes < _THREADED:
            copy(order)
            return
        with ThreadPoolExecutor(_THREADS) as pool:
            share = -(-len(order) // _THREADS)
            list(pool.map(copy, [order[begin : begin + share] for begin in range(0, len(order), share)]))

    def _rows_of(self, ids: Sequence[str]) -> np.ndarray:
        rows = self.ids.places(ids)
        if (rows == ABSENT).any():
            absent = list(dict.fromkeys(self.missing(ids)))
            shown = ", ".join(repr(image_id) for image_id in absent[:_SHOWN_IDS])
            more = f" and {len(absent) - _SHOWN_IDS} more" if len(absent) > _SHOWN_IDS else ""
            raise DataError(
                f"No features for image {shown}{more}; the store holds {len(self)} images. Embed these images, or "
                "name the features artifact that holds them."
            )
        return rows if self._rows is None else self._rows[rows]


def check_tower(features: Sequence[str], made_by: str, reader: str, needed: str) -> None:
    """Refuse features of another vision tower than the one whose tokens a model reads.

    Args:
        features: the artifacts' URIs.
        made_by: digest of the tower that made them.
        reader: URI of the model that reads them, or of its tower.
        needed: digest of its tower.

    Raises IndexMismatchError naming both and the remedy.
    """
    if made_by != needed:
        raise IndexMismatchError(
            f"The features {', '.join(map(repr, features))} were made by vision tower {made_by[:12]}, {reader!r} needs "
            f"those of tower {needed[:12]}. Embed the images with that tower (cirray embed), or name features and "
            "model that belong together."
        )


def merge(stores: Sequence[FeatureStore], names: Sequence[str]) -> FeatureStore:
    """Several stores of one encoder as one; images with equal features in two of them count once.

    Raises IndexMismatchError or DataError as `FeatureStore.open_many`.
    """
    first = stores[0]
    for store, name in zip(stores[1:], names[1:], strict=True):
        if store.info != first.info:
            raise IndexMismatchError(
                f"Features {name!r} were made by {store.info}, {names[0]!r} by {first.info}; they cannot be mixed. "
                "Embed all images with one tower."
            )
    for store, name in zip(stores[1:], names[1:], strict=True):
        first = _joined(first, store, name)
    return first


def _joined(whole: FeatureStore, store: FeatureStore, name: str) -> FeatureStore:
    known = whole.ids.places(store.ids) != ABSENT
    for at in np.flatnonzero(known):
        image_id = store.ids[int(at)]
        if not np.array_equal(whole.get([image_id]), store.get([image_id])):
            raise DataError(
                f"Image id {image_id!r} is another image in {name!r} than before; give each image its own id."
            )
    ids = pa.chunked_array([whole.ids.column, store.ids.column.filter(pa.array(~known))])
    rows = np.concatenate([_rows(whole), whole._starts[-1] + _rows(store)[~known]])
    return FeatureStore([*whole._shards, *store._shards], ids, whole.info, rows)


def _rows(store: FeatureStore) -> np.ndarray:
    return np.arange(len(store)) if store._rows is None else store._rows


def _info(manifest: Manifest, uri: str) -> FeatureInfo:
    try:
        extra = manifest.extra
        patches, width = (int(size) for size in extra["shape"])
        return FeatureInfo(str(extra["encoder_digest"]), str(extra["transform_digest"]), (patches, width))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"The manifest of {uri!r} lacks {error}; embed the images again.") from None


def _check_content(folder: Path, name: str, digest: str) -> None:
    if shard_digest(str(folder), name) != digest:
        raise ArtifactError(
            f"Feature shard {str(folder / name)!r}.npy or its ids are damaged: the content does not match the "
            "manifest. Delete the artifact and embed the images again."
        )


def _map_shard(path: Path, rows: int, shape: tuple[int, int]) -> np.ndarray:
    try:
        shard = read_array(path, mapped=rows > 0)
    except (OSError, ValueError, EOFError) as error:
        reason = reason_of(error)
        raise ArtifactError(f"Feature shard {str(path)!r} is damaged ({reason}). Embed the images again.") from None
    if shard.dtype != np.float16 or shard.shape != (rows, *shape):
        raise ArtifactError(
            f"Feature shard {str(path)!r} is damaged: it holds {shard.dtype} {shard.shape}, its ids and manifest say "
            f"float16 {(rows, *shape)}. Embed the images again."
        )
    return shard
