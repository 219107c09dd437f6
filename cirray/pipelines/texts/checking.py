"""Ray Data's workers of the check stage: the triplets' images as gallery vectors, and what the tests say of texts."""

import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from cirray.core import storage
from cirray.core.arrays import read_array
from cirray.core.contents import MARKER, file_digest
from cirray.core.environ import cache_folder
from cirray.evaluation.chunked import Shard
from cirray.evaluation.evaluate import encode_gallery, encode_queries
from cirray.evaluation.round_trip import pair_margins, round_trip_ranks
from cirray.features.store import FeatureStore, check_tower
from cirray.image_text import load_models
from cirray.pipelines.cluster.streaming import Columns
from cirray.triplets.store import TripletStore, write_table
from cirray.types import Query, part_name

GALLERY, VERDICTS = "gallery", "verdicts"
"""Folders of the stage while it works."""
VERDICT_SCHEMA = pa.schema([("rank", pa.int32()), ("outrank", pa.float32()), ("direction", pa.float32())])
"""A row a triplet. The margins are in units of the checkpoint's temperature; 0 where a test was not asked for."""


class _Checker:
    """What both actors hold: a retriever, features of its tower, and the stage's folder."""

    def __init__(self, checkpoint: str, features: Sequence[str], work_uri: str, batch: int, device: str) -> None:
        """Load the model and open the features. Raises IndexMismatchError: they are of another tower."""
        self._encoder, vision, _ = load_models(checkpoint, device)
        self._features, self._work_uri, self._batch = FeatureStore.open_many(features), work_uri, batch
        check_tower(features, self._features.info.encoder_digest, checkpoint, vision.digest)


class EncodeGallery(_Checker):
    """Actor: gallery vectors of one part's images, written as one file of float32."""

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Encode and write one part (`image_id`)."""
        ids, stream = columns["image_id"].tolist(), io.BytesIO()
        np.save(stream, encode_gallery(self._encoder, self._features, ids, self._batch).cpu().numpy())
        name = f"{part_name(columns['part'][0])}.npy"
        storage.write_bytes(storage.join(self._work_uri, GALLERY, name), stream.getvalue())
        return {"images": len(ids)}


class CheckTexts(_Checker):
    """Actor: ranks and margins of one part's triplets, written as one file of `VERDICT_SCHEMA`."""

    def __init__(
        self, checkpoint: str, features: Sequence[str], work_uri: str, batch: int, device: str, triplets: str,
        part_rows: int, tests: Sequence[str],
    ) -> None:  # fmt: skip
        """Load the model, open features, triplets and the gallery's vectors.

        Raises IndexMismatchError: the features are of another tower.
        """
        super().__init__(checkpoint, features, work_uri, batch, device)
        self._store, self._part_rows, self._device = TripletStore.open(triplets), part_rows, device
        self._gallery = _open_gallery(work_uri) if "rank" in tests else ()
        self._scored = bool({"outrank", "direction"} & set(tests))

    def __call__(self, columns: Columns) -> dict[str, int]:
        """Judge and write one part (`reference` and `target`: rows of the gallery)."""
        number, rows = int(columns["part"][0]), len(columns["part"])
        names = ("triplet_id", "reference_id", "target_id", "modification")
        table = self._store.at(number * self._part_rows, rows, names)
        ids, references, targets, texts = (table.column(name).to_pylist() for name in names)
        found = {"rank": np.zeros(rows, np.int32)} | dict.fromkeys(VERDICT_SCHEMA.names[1:], np.zeros(rows, np.float32))
        if self._gallery:
            queries = [Query(*row, ()) for row in zip(ids, references, texts, strict=True)]
            query_BD = encode_queries(self._encoder, self._features, queries, self._batch)
            places = columns["target"].astype(np.int64), columns["reference"].astype(np.int64)
            found["rank"] = round_trip_ranks(query_BD, ids, *places, self._gallery, self._device).astype(np.int32)
        if self._scored:
            margins = pair_margins(self._encoder, self._features, references, targets, texts, self._batch)
            temperature = float(torch.as_tensor(self._encoder.temperature).detach())
            scaled = (margin / temperature for margin in margins)
            found |= zip(VERDICT_SCHEMA.names[1:], scaled, strict=True)
        file = storage.join(self._work_uri, VERDICTS, f"{part_name(number)}.parquet")
        write_table(file, pa.table(found).cast(VERDICT_SCHEMA))
        return {"triplets": rows}


def _open_gallery(work_uri: str) -> tuple[Shard, ...]:
    """All vectors, mapped into memory; a remote stage's are copied once to each machine."""
    folder = storage.join(work_uri, GALLERY)
    if not storage.is_local(folder):
        # the marker says all that the vectors depend on
        target = cache_folder() / GALLERY / file_digest(storage.join(work_uri, MARKER))
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            storage.download_folder(folder, target)
        folder = str(target)
    files = sorted(storage.local_path(folder).glob("*.npy"))
    vectors = [read_array(path) for path in files]
    firsts = np.cumsum([0, *map(len, vectors)]).tolist()
    return tuple(Shard(vector, first) for vector, first in zip(vectors, firsts, strict=False))
