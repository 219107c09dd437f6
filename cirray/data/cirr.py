"""CIRR (docs/PAPERS.md#cirr, release rc2) in its published layout: captions, extended captions, image splits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from cirray.core.errors import DataError
from cirray.data.annotations import Folders, Record, blank_note, complete, load_json, null_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import CirrConfig
from cirray.data.own_keys import restored
from cirray.data.readers import READERS
from cirray.types import Query, Triplet

_SPLITS = ("train", "val", "test1")
_TRIPLETS = ("train", "val")
_IMAGES = ("reference", "target_hard")
_PLACEHOLDERS = ("[c]", "[cr0]", "[cr1]")
"""Beginnings of extended texts that mean "nothing to add"."""
_METRICS = {
    "hard": ("recall", "recall_subset", "cirr_avg"),
    "soft": ("soft_recall", "soft_recall_subset"),
    "soft_subset": ("recall", "soft_recall_subset"),
}
_LABELS = {
    "hard": "annotated target (target_hard)",
    "soft": "largest label among the soft targets in the first k, at least 0",
    "soft_subset": "annotated target; in the subset the largest soft label in the first k",
}


class _Files(Folders):
    """The annotations' folders, and that of the images."""

    def __init__(self, config: CirrConfig) -> None:
        """Take the config's places."""
        super().__init__(config.root, "cirr", "cirr", "")
        self._pictures = self.images(config.images)

    def paths(self, split: str) -> dict[str, str]:
        """Image name -> expected path, in the split file's order; nothing where the file is absent."""
        name = f"image_splits/split.rc2.{split}.json"
        if not self.has(name):
            return {}
        path = self.file(name)
        values = load_json(path)
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise DataError(f"{str(path)!r} is not an object of image names and relative paths; fetch it again.")
        return {image: str(self._pictures / value.removeprefix("./")) for image, value in values.items()}

    def captions(self, split: str, extended: bool = False) -> list[Record]:
        """Entries of a caption file, their pair ids checked."""
        name = f"captions_ext/cap.ext.rc2.{split}.json" if extended else f"captions/cap.rc2.{split}.json"
        return self.records(name, unique="pairid")


@READERS.register("cirr")
def read_cirr(config: CirrConfig) -> CirDataset:
    """Read CIRR; no image is opened, and images may be missing.

    Query ids are pair ids as text, image ids are CIRR's names. `triplets` hold the train and val captions that are
    there (`split` says which); the pool is the train images. A caption is kept exactly as written, blank ones too;
    a triplet with a blank text or with one image twice is left out of training and noted.

    The protocol: recall over the split's images, recall among the similar images, and the mean of R@5 and Rs@1.

    Raises DataError: a file of the chosen split is missing, or an entry lacks a key or repeats a pair id.
    """
    files = _Files(config)
    left: list[str] = []
    names = {split: files.paths(split) for split in _SPLITS}
    if not names[config.split]:
        files.file(f"image_splits/split.rc2.{config.split}.json")
        raise DataError(
            f"The image list of CIRR's split {config.split!r} under {str(files.root)!r} is empty; fetch it again."
        )
    records = complete(files.captions(config.split), _IMAGES, left)
    queries = tuple(_query(record, config.split) for record in records)
    triplets, notes = _triplets(files, config.extended)
    used = {config.split, *(t.split for t in triplets), *(("train",) if names["train"] else ())}
    paths = {image: path for split in _SPLITS if split in used for image, path in names[split].items()}
    gallery = tuple(names[config.split])
    return CirDataset(
        name="cirr",
        images=ImageTable(paths),
        protocol=Protocol(
            dataset="CIRR",
            split=config.split,
            gallery_rule=f"all {len(gallery):,} images of split.rc2.{config.split}.json",
            reference_rule=config.reference_rule,
            label_rule=_LABELS[config.labels],
            metrics=_METRICS[config.labels],
            ks=config.ks,
        ),
        triplets=triplets,
        pool_ids=tuple(names["train"]),
        queries=queries,
        gallery_ids=gallery,
        guarded=frozenset(names["val"]) | frozenset(names["test1"]),
        notes=(*notes, *null_note(left), *_query_notes(queries), *_unknown(queries, triplets, paths)),
        training_notes=notes,
    )


def _query(record: Record, split: str) -> Query:
    query = Query(
        query_id=record.id("pairid"),
        reference_id=record.id("reference"),
        modification=record.text("caption"),
        target_ids=() if split == "test1" else (record.id("target_hard"),),
        subset=record.section("img_set").ids("members"),
    )
    if split == "test1":
        return query
    soft = record.mapping("target_soft")
    return replace(query, soft=tuple((image, record.number("target_soft", label)) for image, label in soft.items()))


def _triplets(files: _Files, extended: bool) -> tuple[tuple[Triplet, ...], tuple[str, ...]]:
    found: list[Triplet] = []
    left: list[str] = []
    notes: list[str] = []
    for split in _TRIPLETS:
        if not files.has(f"captions/cap.rc2.{split}.json"):
            notes.append(f"captions/cap.rc2.{split}.json is not here, so there are no {split} triplets")
            continue
        rows = [_triplet(record, split) for record in complete(files.captions(split), _IMAGES, left)]
        if extended and split == "train":
            rows += _extended(complete(files.captions(split, extended=True), _IMAGES, left), split)
        for row in rows:
            usable = row.modification.strip() and row.reference_id != row.target_id
            found += [row] if usable else []
            left += [] if usable else [row.triplet_id]
    return tuple(found), (*notes, *count_note("triplets left out (blank text, or an image missing or twice)", left))


def _triplet(record: Record, split: str) -> Triplet:
    reference = record.id("reference")
    row = Triplet(
        triplet_id=f"cirr-{split}-{record.id('pairid')}",
        reference_id=reference,
        target_id=record.id("target_hard"),
        modification=record.text("caption"),
        split=split,
        group_id=reference,
    )
    return restored(record, row)


def _extended(records: Sequence[Record], split: str) -> Iterator[Triplet]:
    for record in records:
        for key, text in record.mapping("caption_extend").items():
            text = record.as_text(f"caption_extend {key}", text)
            if text.strip() and not text.strip().startswith(_PLACEHOLDERS):
                yield Triplet(
                    triplet_id=f"cirr-{split}-{record.id('pairid')}-ext{key}",
                    reference_id=record.id("reference"),
                    target_id=record.id("target_hard"),
                    modification=text,
                    split=split,
                    group_id=record.id("reference"),
                    edit=f"extended {key}",
                )


def _query_notes(queries: Sequence[Query]) -> tuple[str, ...]:
    same = [query.query_id for query in queries if query.reference_id in query.target_ids]
    outside = [q.query_id for q in queries if q.target_ids and not set(q.target_ids) <= set(q.subset)]
    return (
        *blank_note(queries),
        *count_note("queries whose target is their reference: they cannot be hit", same),
        *count_note("queries whose target is not among their similar images", outside),
    )


def _unknown(queries: Sequence[Query], triplets: Iterable[Triplet], paths: dict[str, str]) -> tuple[str, ...]:
    named = {image: None for q in queries for image in (q.reference_id, *q.target_ids, *q.subset, *dict(q.soft))}
    named |= {image: None for t in triplets for image in (t.reference_id, t.target_id)}
    return count_note(
        "images are named by captions but by no image list", [name for name in named if name not in paths]
    )
