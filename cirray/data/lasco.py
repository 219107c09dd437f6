"""LaSCo (docs/PAPERS.md#lasco): large generated triplets over COCO 2014, searched in its validation corpus."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from cirray.data.annotations import Folders, Record, blank_note, complete, null_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import LascoConfig
from cirray.data.readers import READERS
from cirray.types import Query, Triplet

_IMAGES = ("query-image", "target-image")


@READERS.register("lasco")
def read_lasco(config: LascoConfig) -> CirDataset:
    """Read LaSCo; no image is opened, and images may be missing.

    Image ids are COCO's numbers as text. Train triplets and the train corpus (the pool) are read if present.

    The protocol: recall over the val corpus (our choice, there is no official evaluation code).

    Raises DataError: the val triplets or the val corpus are missing, or an entry is wrong.
    """
    files = Folders(config.root, "lasco", "downloads", "")
    images = files.images(config.images)
    corpus = _corpus(files, "val", images)
    paths, queries, named = dict(corpus), [], dict[str, str]()
    records = files.records("lasco_val.json")
    left: list[str] = []
    for name, record in _named(complete(records, _IMAGES, left)):
        reference, target = (_image(record, key, images, named) for key in _IMAGES)
        queries.append(Query(name, reference, record.text("query-text"), (target,)))
    absent = sorted(image for image in named if image not in corpus)
    pool = _corpus(files, "train", images) if files.has("lasco_train_corpus.json") else {}
    triplets, notes = _triplets(files, images, paths)
    same = [query.query_id for query in queries if query.reference_id in query.target_ids]
    return CirDataset(
        name="lasco",
        images=ImageTable(pool | paths | named),
        protocol=Protocol(
            dataset="LaSCo",
            split="val",
            gallery_rule=f"val corpus of {len(corpus):,} images",
            reference_rule=config.reference_rule,
            label_rule="the one target",
            metrics=("recall",),
            ks=config.ks,
        ),
        triplets=triplets,
        pool_ids=tuple(pool),
        queries=tuple(queries),
        gallery_ids=tuple(corpus),
        guarded=frozenset(corpus),
        training_notes=notes,
        notes=(
            *notes,
            *null_note(left),
            *blank_note(queries),
            *count_note("images are named by queries but not by the val corpus", absent),
            *count_note("queries whose target is their reference: they cannot be hit", same),
        ),
    )


def _corpus(files: Folders, split: str, images: Path) -> dict[str, str]:
    records = files.records(f"lasco_{split}_corpus.json", unique="id")
    return {record.id("id"): _path(images, record.text("path")) for record in records}


def _path(images: Path, name: str) -> str:
    """Corpora say `val/val2014/x.jpg`, triplets `val2014/x.jpg`: the last two parts are COCO's own layout."""
    return str(images.joinpath(*name.split("/")[-2:]))


def _named(records: Sequence[Record]) -> Iterator[tuple[str, Record]]:
    """Entries with their qid; a repeated qid gets a number, so that nothing is merged or lost."""
    seen: Counter[str] = Counter()
    for record in records:
        qid = record.id("qid")
        seen[qid] += 1
        yield qid if seen[qid] == 1 else f"{qid}-{seen[qid]}", record


def _image(record: Record, key: str, images: Path, paths: dict[str, str]) -> str:
    """Id of `[id, path]`; its path is remembered."""
    value = record.list(key)
    if len(value) != 2 or not isinstance(value[1], str):
        record.fail(f"key {key!r} has the value {value!r}; [id, path] is expected.")
    image_id = record.as_id(key, value[0])
    paths[image_id] = _path(images, value[1])
    return image_id


def _triplets(files: Folders, images: Path, paths: dict[str, str]) -> tuple[tuple[Triplet, ...], tuple[str, ...]]:
    if not files.has("lasco_train.json"):
        return (), ("lasco_train.json is not here, so there are no train triplets",)
    records = files.records("lasco_train.json")
    found, left = [], []
    missing: list[str] = []
    for name, record in _named(complete(records, _IMAGES, missing)):
        reference, target = (_image(record, key, images, paths) for key in _IMAGES)
        text = record.text("query-text")
        if not text.strip() or reference == target:
            left.append(name)
            continue
        found.append(Triplet(f"lasco-train-{name}", reference, target, text, group_id=reference))
    left += missing
    return tuple(found), count_note("train triplets left out (blank text, or an image missing or twice)", left)
