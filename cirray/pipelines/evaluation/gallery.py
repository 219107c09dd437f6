"""Gallery vectors in parts: a pool of actors, or this process, writes files that are mapped into memory to rank."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.core import storage
from cirray.core.arrays import read_array
from cirray.core.artifacts import Stage
from cirray.core.contents import MARKER, file_digest
from cirray.core.environ import cache_folder
from cirray.evaluation.evaluate import ComposedEncoder, encode_gallery
from cirray.features.store import FeatureLookup, FeatureStore, check_tower
from cirray.features.vector_files import VectorFile
from cirray.image_text import load_models
from cirray.pipelines.cluster.config import PoolConfig
from cirray.pipelines.cluster.parts import Cut, Parts
from cirray.pipelines.cluster.streaming import Columns, Step
from cirray.types import part_name

GALLERY = "gallery"
"""Folder of the stage while it works."""
_IMAGES = 4096
"""Images in a file of gallery vectors."""


class RetrieverActor:
    """What actors hold that encode for a stage: a retriever, features of its tower, and the stage's folder."""

    def __init__(self, checkpoint: str, features: Sequence[str], work_uri: str, batch: int, device: str) -> None:
        """Load the model and open the features. Raises IndexMismatchError: they are of another tower."""
        self._encoder, vision, _ = load_models(checkpoint, device)
        self._features, self._work_uri, self._batch = FeatureStore.open_many(features), work_uri, batch
        check_tower(features, self._features.info.encoder_digest, checkpoint, vision.digest)


class EncodeGallery(RetrieverActor):
    """Actor: gallery vectors of one part's images, written as one file of float32."""

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Encode and write one part (`image_id`)."""
        ids, stream = columns["image_id"].tolist(), io.BytesIO()
        np.save(stream, encode_gallery(self._encoder, self._features, ids, self._batch).cpu().numpy())
        name = f"{part_name(columns['part'][0])}.npy"
        storage.write_bytes(storage.join(self._work_uri, GALLERY, name), stream.getvalue())
        return {"images": len(ids)}


def gallery_parts(stage: Stage, ids: Sequence[str] | pa.Array, settings: Mapping[str, Any], pool: PoolConfig) -> Parts:
    """The images, whose gallery vectors a pool of models writes; `settings` are those of `EncodeGallery`."""
    tables, folder = Cut({"image_id": ids}, _IMAGES), storage.join(stage.work_uri, GALLERY)

    def found() -> Iterator[tuple[str, pa.Array]]:
        there = set(storage.list_files(folder))
        names = ((part_name(n), n) for n in range(len(tables)))
        return ((name, tables[n].column("image_id").combine_chunks()) for name, n in names if f"{name}.npy" in there)

    return Parts("encode images", "images", tables, [Step(EncodeGallery, settings, pool)], found=found)


def gallery_vectors(work_uri: str) -> list[tuple[Path, np.ndarray]]:
    """All files in order, mapped into memory; a remote stage's are copied once to each machine."""
    folder = storage.join(work_uri, GALLERY)
    if not storage.is_local(folder):
        # the marker says all that the vectors depend on
        target = cache_folder() / GALLERY / file_digest(storage.join(work_uri, MARKER))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.download_folder(folder, target)
        folder = str(target)
    return [(path, read_array(path)) for path in sorted(storage.local_path(folder).glob("*.npy"))]


def vector_files(work_uri: str, ids: Sequence[str]) -> list[VectorFile]:
    """All files with the ids of their rows; `ids` are those of all parts, in order."""
    files = enumerate(gallery_vectors(work_uri))
    return [VectorFile(str(path), tuple(ids[n * _IMAGES : (n + 1) * _IMAGES]), rows) for n, (path, rows) in files]


@dataclass(frozen=True)
class EncodedRows:
    """An array of gallery vectors that are made each time they are read, so that none of them stays in memory."""

    encoder: ComposedEncoder
    features: FeatureLookup
    ids: Sequence[str]
    batch: int
    dtype: np.dtype[Any] = np.dtype(np.float32)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """[N, D] or [N, Q, D]."""
        return (len(self.ids), *self[:1].shape[1:])

    @property
    def ndim(self) -> int:
        """2 or 3."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        ids = self.ids[rows] if isinstance(rows, slice) else [self.ids[int(row)] for row in rows]
        return encode_gallery(self.encoder, self.features, ids, self.batch).cpu().numpy()
