"""The leak guard of the stages: read the benchmarks that a run names and refuse their val and test images."""

from collections.abc import Iterable, Sequence
from typing import Any

from cirray.core.contents import canonical
from cirray.data.config import DataConfig
from cirray.data.leaks import guarded_ids, refuse_leaks
from cirray.pipelines.data.datasets import open_dataset
from cirray.types import Triplet, stable_id


def check_leaks(guard: Sequence[DataConfig], ids: Iterable[str], allow: bool, what: str) -> dict[str, Any]:
    """Refuse images of the named benchmarks' val and test splits.

    Returns: Entries for a manifest's `extra`: none without a guard, else the record under `guard`.

    Raises DataError with the list of images, unless `allow`; or when a benchmark cannot be read.
    """
    guards: dict[str, frozenset[str]] = {}
    for config in guard:
        dataset = open_dataset(config)
        guards[dataset.name] = guards.get(dataset.name, frozenset()) | guarded_ids(dataset)
    return {"guard": refuse_leaks(ids, guards, allow, what)} if guards else {}


def guard_inputs(record: dict[str, Any]) -> dict[str, str]:
    """The record as an input of a stage, so that artifacts with and without the guard differ."""
    return {"guard": stable_id(canonical(record))} if record else {}


def images_of(triplets: Iterable[Triplet]) -> set[str]:
    """References, targets and hard negatives."""
    return {image for row in triplets for image in row.images}
