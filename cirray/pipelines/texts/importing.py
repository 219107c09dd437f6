"""Triplets of a data set as a triplets artifact."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.errors import DataError
from cirray.core.unfinished import stage_function
from cirray.pipelines.data.datasets import open_dataset
from cirray.pipelines.texts.config import ImportTripletsRun
from cirray.triplets.schema import rejected_table, triplet_table
from cirray.triplets.store import KIND, refuse_duplicates, write_part
from cirray.types import Triplet, part_name, stable_id

_ROWS = 100_000
"""Triplets in a part."""


@stage_function
def run_import_triplets(run: ImportTripletsRun) -> Manifest:
    """Write them; the triplets of two images, whichever is the reference, are of one pair.

    Returns:
        Manifest of kind "triplets"; count `triplets`; `extra["notes"]` says what was left out.

    Raises DataError: the data set cannot be read, has no triplet, or one id twice.
    """
    dataset = open_dataset(run.data)
    stage = open_stage(run, KIND, {"data": stable_id(*dataset.triplets)})
    if stage.finished:
        return stage.finished
    if not dataset.triplets:
        raise DataError(f"{dataset.describe()}: there is no triplet to import. Check `data`.")
    refuse_duplicates((row.triplet_id for row in dataset.triplets), dataset.name)
    for number, rows in enumerate(_cut(dataset.triplets)):
        write_part(stage.work_uri, part_name(number), triplet_table(map(_columns, rows)), rejected_table([]))
    return stage.publish({"triplets": len(dataset.triplets)}, extra={"notes": list(dataset.notes)})


def _cut(rows: Sequence[Triplet]) -> Iterator[Sequence[Triplet]]:
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def _columns(row: Triplet) -> dict[str, Any]:
    return {**asdict(row), "pair_id": stable_id("pair", *sorted((row.reference_id, row.target_id)))}
