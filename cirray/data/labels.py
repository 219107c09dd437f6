"""The labelled part of a data set, or the first rows of it."""

from collections.abc import Mapping
from dataclasses import dataclass

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.types import Triplet


@dataclass(frozen=True)
class Labelled:
    """What may be learnt from: training triplets, captions of their images, and held-out triplets."""

    train: tuple[Triplet, ...]
    held_out: tuple[Triplet, ...]
    captions: Mapping[str, str]


def select_labels(dataset: CirDataset, labels: int | None) -> Labelled:
    """The first `labels` training triplets in whole groups, captions of their images, and the held-out triplets.

    Raises DataError when the data set has no training triplets.
    """
    train = dataset.split("train")
    if not train:
        raise DataError(f"{dataset.name!r} has no triplets of split 'train'; the generator learns from labelled ones.")
    if labels is not None and labels < len(train):
        groups = {row.group_id for row in train[:labels] if row.group_id}
        train = tuple(row for number, row in enumerate(train) if number < labels or row.group_id in groups)
    images = {image for row in train for image in (row.reference_id, row.target_id)}
    captions = {name: text for name, text in dataset.captions.items() if labels is None or name in images}
    return Labelled(train, dataset.split("val"), captions)
