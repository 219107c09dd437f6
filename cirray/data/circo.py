"""CIRCO (docs/PAPERS.md#circo): several ground truths for a query, all of COCO 2017 unlabeled as the gallery."""

from collections.abc import Sequence
from pathlib import Path

from cirray.core.errors import DataError
from cirray.data.annotations import Folders, Record, blank_note, complete, load_json, null_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import CircoConfig
from cirray.data.readers import READERS
from cirray.types import Query

ASPECTS = (
    "cardinality", "addition", "negation", "direct_addressing", "compare_change", "comparative_statement",
    "statement_with_conjunction", "spatial_relations_background", "viewpoint",
)  # fmt: skip
"""The nine semantic aspects that a val query may be tagged with."""


@READERS.register("circo")
def read_circo(config: CircoConfig) -> CirDataset:
    """Read CIRCO; no image is opened, and images may be missing.

    Image and query ids are the whole numbers of the files as text, never zero-padded (file names are). The first
    target is the annotated one. Tags are the semantic aspects.

    The protocol: mAP@k over several ground truths, per semantic aspect, and recall of the annotated target.

    Raises DataError: the annotation file is missing, or an entry is wrong.
    """
    files = Folders(config.root, "circo", "annotations", "")
    records = files.records(f"{config.split}.json", unique="id")
    left: list[str] = []
    queries = tuple(_query(record, config) for record in complete(records, ("reference_img_id", "target_img_id"), left))
    named = tuple(dict.fromkeys(image for q in queries for image in (q.reference_id, *q.target_ids)))
    folder, gallery = files.images(config.images), _gallery(files.images(config.info))
    paths = {image: str(folder / f"{image:0>12}.jpg") for image in named} | {
        image: str(folder / name) for image, name in gallery.items()
    }
    return CirDataset(
        name="circo",
        images=ImageTable(paths),
        protocol=_protocol(config, len(gallery)),
        queries=queries,
        gallery_ids=tuple(gallery),
        guarded=frozenset(paths),
        notes=(*null_note(left), *blank_note(queries), *_notes(config, queries, named, gallery)),
    )


def _query(record: Record, config: CircoConfig) -> Query:
    text = record.text("relative_caption")
    if config.text == "with_concept":
        text = f"{record.text('shared_concept')} that {text}"
    query_id, reference = record.id("id"), record.id("reference_img_id")
    if config.split == "test":
        return Query(query_id, reference, text, ())
    targets, first = record.ids("gt_img_ids"), record.id("target_img_id")
    if not targets or targets[0] != first:
        record.fail(f"gt_img_ids {list(targets)[:3]} does not begin with target_img_id {first}.")
    if len(set(targets)) < len(targets):
        record.fail("gt_img_ids names an image twice; each ground truth may appear once.")
    return Query(query_id, reference, text, targets, tags=_aspects(record))


def _aspects(record: Record) -> tuple[str, ...]:
    tags = record.ids("semantic_aspects")
    unknown = [tag for tag in tags if tag not in ASPECTS]
    if unknown:
        record.fail(f"semantic aspect {unknown[0]!r} is none of: {', '.join(ASPECTS)}.")
    return tags


def _gallery(info: Path) -> dict[str, str]:
    """Image id -> file name of COCO's list; empty where the list is absent."""
    if not info.is_file():
        return {}
    values = load_json(info)
    images = values.get("images") if isinstance(values, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(image, dict) for image in images):
        raise DataError(f"{str(info)!r} has no list `images`; fetch COCO's image_info_unlabeled2017.json again.")
    found: dict[str, str] = {}
    for number, values in enumerate(images):
        record = Record(info, f"image {number}", values)
        image = record.id("id")
        if image in found:
            record.fail(f"id {image} appears twice.")
        name = values.get("file_name") or f"{image:0>12}.jpg"
        found[image] = str(name)
    return found


def _notes(
    config: CircoConfig, queries: Sequence[Query], named: Sequence[str], gallery: dict[str, str]
) -> tuple[str, ...]:
    if not gallery:
        return (
            f"{config.info} is not here, so the gallery (123,403 images) is unknown: ranked lists can be scored, a "
            "model cannot. COCO publishes the file with its 2017 unlabeled images.",
        )
    same = [query.query_id for query in queries if query.reference_id in query.target_ids]
    return (
        *count_note("images are named by queries but not by the image list", [i for i in named if i not in gallery]),
        *count_note("queries whose reference is one of their targets", same),
    )


def _protocol(config: CircoConfig, gallery: int) -> Protocol:
    size = f"all {gallery:,} images of COCO 2017 unlabeled" if gallery else "unknown, the image list is missing"
    texts = {"relative": "text as written", "with_concept": "shared concept and relative caption (not like for like)"}
    return Protocol(
        dataset="CIRCO",
        split=config.split,
        gallery_rule=size,
        reference_rule=config.reference_rule,
        caption_rule=texts[config.text],
        label_rule="every ground truth, divisor min(k, ground truths); recall: the first one only",
        metrics=("map", "aspect_map", "target_recall"),
        ks=config.ks,
    )
