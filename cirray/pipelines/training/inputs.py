"""Inputs of a training run: triplets with their sources, held-out queries, digests, the tower. No ray."""

import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.artifacts import is_complete, read_manifest
from cirray.core.errors import DataError
from cirray.core.ids import Ids
from cirray.core.seeding import derive_seed
from cirray.data.benchmark import CirDataset, select_labels
from cirray.data.readers import read_dataset
from cirray.features.store import check_tower
from cirray.models.sources.blip2 import open_blip2
from cirray.models.towers.hf_blip2 import load_vision_tower
from cirray.models.towers.places import find_tower
from cirray.pipelines.data.datasets import unusable_images, without_images
from cirray.pipelines.training.config import TrainRun
from cirray.pipelines.training.live import Features, live_digests
from cirray.triplets.rows import TripletRows, row_table, training_rows
from cirray.triplets.schema import to_triplets
from cirray.triplets.store import TripletStore, attach_reverse
from cirray.types import Query, Triplet, stable_id

MODEL, VISION = "model", "vision"


@dataclass(frozen=True)
class TrainInputs:
    """Rows to train on, held-out queries with their gallery."""

    triplets: TripletRows
    """Rows of the artifacts, then those of the data set."""
    labelled: tuple[Triplet, ...]
    """Rows of the data set."""
    queries: tuple[Query, ...]
    gallery_ids: tuple[str, ...]
    dataset: CirDataset | None
    slice: tuple[Triplet, ...] = ()
    """Labelled triplets held out of training for measurement (`validation.held_out`)."""
    unusable: frozenset[str] = frozenset()
    """Images of the data set that cannot be used; rows that name one are left out."""
    verified: bool = False
    """Whether the contents of the features were compared with their digests, as the driver does for its workers."""

    @property
    def sources(self) -> dict[str, int]:
        """Rows by source tag."""
        counts = self.triplets.table.column("source").value_counts()
        return {row["values"]: row["counts"] for row in counts.to_pylist()}

    @property
    def texts(self) -> Ids:
        """Texts for a new tokenizer's vocabulary, each once: of the training rows, and `dataset_texts`."""
        columns = (self.triplets.table.column(name) for name in ("modification", "reverse_modification"))
        own = [column.unique() for column in columns]
        every = pc.unique(pa.chunked_array([*own, pa.array(self.dataset_texts, pa.string())])).drop_null()
        return Ids(every.filter(pc.not_equal(every, "")))

    @property
    def dataset_texts(self) -> tuple[str, ...]:
        """All training texts and captions of the data set."""
        labelled = self.dataset.split("train") if self.dataset else ()
        both = [text for row in labelled for text in (row.modification, row.reverse_modification) if text]
        return tuple(dict.fromkeys([*both, *(self.dataset.captions.values() if self.dataset else ())]))


def read_inputs(run: TrainRun, unusable: Collection[str] | None = None) -> TrainInputs:
    """Read the rows and the held-out queries of a run. Where unusable images are not known, the features list them, or
    every image is opened.

    Raises ArtifactError: a triplets artifact is missing or damaged; DataError: nothing to train on, or no held-out
    triplet when validation needs some.
    """
    dataset, bad = None, frozenset(unusable or ())
    if run.data:
        whole = read_dataset(run.data)
        bad = unusable_images(whole, run.features) if unusable is None else bad
        dataset = without_images(whole, bad)
    labelled, held_out = set_aside(_labelled(run, dataset), run.validation.held_out)
    apart = frozenset(frozenset((row.reference_id, row.target_id)) for row in held_out)
    rows = training_rows(run.triplets, row_table(labelled), apart)
    if not rows:
        raise DataError("There is no triplet of split 'train' to train on. Check `triplets`, `data` and `labels`.")
    queries, gallery = _queries(run, dataset)
    return TrainInputs(rows, labelled, queries, gallery, dataset, held_out, bad)


def set_aside(rows: Sequence[Triplet], count: int) -> tuple[tuple[Triplet, ...], tuple[Triplet, ...]]:
    """The rows without at least `count` of them in whole families, and those; chosen by their names.

    Raises DataError when no row would be left to train on.
    """
    if not count:
        return tuple(rows), ()
    families: dict[str, list[Triplet]] = {}
    for row in rows:
        families.setdefault(row.group_id or row.triplet_id, []).append(row)
    held_out: list[Triplet] = []
    for name in sorted(families, key=lambda name: derive_seed(0, "held out", name)):
        if len(held_out) < count:
            held_out += families.pop(name)
    if not families:
        raise DataError(
            f"validation.held_out={count} leaves none of the {len(rows)} labelled training triplets to train on. Lower "
            "it, or set it to 0 and validation.keep to [val_R@1]."
        )
    return tuple(row for family in families.values() for row in family), tuple(held_out)


def gallery_of(triplets: Sequence[Triplet]) -> tuple[str, ...]:
    """The distinct images of triplets, sorted."""
    return tuple(sorted({image for row in triplets for image in (row.reference_id, row.target_id)}))


def queries_of(triplets: Sequence[Triplet]) -> tuple[Query, ...]:
    """Held-out triplets as queries."""
    return tuple(
        Query(row.triplet_id, row.reference_id, row.modification, (row.target_id,), row.edit) for row in triplets
    )


def input_digests(run: TrainRun, inputs: TrainInputs) -> dict[str, str]:
    """Digests of what `open_stage` cannot know: the rows, images encoded while training, a BLIP-2 source's files."""
    digests = {"images": "", "towers": ""} if run.features else live_digests(run)
    if run.qformer_source:
        digests["qformer_source"] = open_blip2(run.qformer_source).digest
    held_out = ("held out", *inputs.slice) if inputs.slice else ()
    rows = stable_id(
        *inputs.labelled, "queries", *inputs.queries, "gallery", *inputs.gallery_ids, "texts", *inputs.dataset_texts,
        *held_out,
    )  # fmt: skip
    return {**digests, "data": rows}


def keep_tower(run: TrainRun, features: Features, folder: Path) -> str:
    """Put the vision tower that made the features beside the model, which can then encode images.

    A tower of an artifact is copied as it is: its manifest tells its digest, and no weights are loaded.

    Returns: The tower's digest.

    Raises IndexMismatchError when the named tower is another one.
    """
    place = find_tower(run.towers)
    known = read_manifest(run.towers).extra.get("encoder_digest") if is_complete(run.towers) else None
    tower = None if known and isinstance(place, Path) else load_vision_tower(place)
    digest = str(known) if tower is None else tower.digest
    check_tower(run.features, features.info.encoder_digest, run.towers, digest)
    if tower is None:
        shutil.copytree(place, folder, dirs_exist_ok=True)
    else:
        tower.save(folder)
    return digest


def _labelled(run: TrainRun, dataset: CirDataset | None) -> tuple[Triplet, ...]:
    if dataset is None or run.labels == 0:
        return ()
    rows = select_labels(dataset, run.labels).train
    if run.reverse_texts:
        pieces = (piece for uri in run.reverse_texts for piece in TripletStore.open(uri).pieces())
        rows = tuple(attach_reverse(rows, (row for piece in pieces for row in to_triplets(piece))))
    return rows


def _queries(run: TrainRun, dataset: CirDataset | None) -> tuple[tuple[Query, ...], tuple[str, ...]]:
    """Queries of validation, and the images of all their galleries."""
    count = run.validation.queries
    if isinstance(count, str):
        return _of_benchmark(dataset)
    rows = dataset.split(run.validation.split)[:count] if dataset else ()
    if run.validation.every and count and not rows:
        raise DataError(
            f"validation.every is {run.validation.every}, but the data set has no triplet of split "
            f"{run.validation.split!r}. Mark some rows with that split, or set validation.every=null."
        )
    return queries_of(rows), gallery_of(rows)


def _of_benchmark(dataset: CirDataset | None) -> tuple[tuple[Query, ...], tuple[str, ...]]:
    if dataset is None or not dataset.queries:
        raise DataError(
            "validation.queries=benchmark asks the data set's own queries, but there are none. Name a data set that "
            "has some, or give a number of held-out triplets."
        )
    searched = {image for ids in (dataset.gallery_ids, *dataset.galleries.values()) for image in ids}
    asked = {query.reference_id for query in dataset.queries}
    return dataset.queries, tuple(sorted(searched | asked))
