"""Ray Data's worker of the check stage: what the tests say of texts."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from cirray.core import storage
from cirray.evaluation.chunked import Shard
from cirray.evaluation.evaluate import encode_queries
from cirray.evaluation.round_trip import pair_margins, round_trip_ranks
from cirray.pipelines.cluster.streaming import Columns
from cirray.pipelines.evaluation.gallery import RetrieverActor, gallery_vectors
from cirray.triplets.store import TripletStore, write_table
from cirray.types import Query, part_name

VERDICTS = "verdicts"
"""Folder of the stage while it works."""
VERDICT_SCHEMA = pa.schema([("rank", pa.int32()), ("outrank", pa.float32()), ("direction", pa.float32())])
"""A row a triplet. The margins are in units of the checkpoint's temperature; 0 where a test was not asked for."""


class CheckTexts(RetrieverActor):
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
    """All vectors, mapped into memory."""
    vectors = [rows for _, rows in gallery_vectors(work_uri)]
    firsts = np.cumsum([0, *map(len, vectors)]).tolist()
    return tuple(Shard(vector, first) for vector, first in zip(vectors, firsts, strict=False))
