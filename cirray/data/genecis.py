"""GeneCIS (docs/PAPERS.md#genecis): four tasks, a small gallery for each template; attribute tasks use crops."""

from collections.abc import Sequence
from pathlib import Path

from cirray.data.annotations import Folders, Record, blank_note, null_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import GeneCisConfig
from cirray.data.places import Box
from cirray.data.readers import READERS
from cirray.types import Query

TASKS = {"focus_attribute": 9, "change_attribute": 14, "focus_object": 14, "change_object": 14}
"""Task -> published length of a template's gallery, target not included."""


class _Images:
    """Collects images and boxes while records are read."""

    def __init__(self, coco: Path, visual_genome: Path) -> None:
        self.paths: dict[str, str] = {}
        self.boxes: dict[str, Box] = {}
        self._coco, self._visual_genome = coco, visual_genome

    def add(self, record: Record) -> str:
        """Id of an image: COCO's number, or Visual Genome's with the box, so that every crop has its own."""
        if "val_image_id" in record.values:
            image_id = record.id("val_image_id")
            self.paths[image_id] = str(self._coco / f"{image_id:0>12}.jpg")
            return image_id
        number, box = record.id("image_id"), record.list("instance_bbox")
        if len(box) != 4:
            record.fail(f"instance_bbox {box!r} is not x, y, width, height.")
        x, y, width, height = (record.number("instance_bbox", value) for value in box)
        if width <= 0 or height <= 0:
            record.fail(f"instance_bbox {box!r} is empty; width and height must be above 0.")
        image_id = crop_id(number, (x, y, width, height))
        self.paths[image_id], self.boxes[image_id] = str(self._visual_genome / f"{number}.jpg"), (x, y, width, height)
        return image_id


@READERS.register("genecis")
def read_genecis(config: GeneCisConfig) -> CirDataset:
    """Read one task or all four; no image is opened, and images may be missing.

    A query's candidates, `galleries[query_id]`, are its target followed by the template's gallery exactly as
    published: a repeated target or crop, and a reference among them, stay and are noted.

    The protocol: recall among a template's own candidates; the headline is the mean of the tasks' R@1.

    Raises DataError: a task file is missing or an entry is wrong.
    """
    files = Folders(config.root, "genecis", "genecis", "")
    images = _Images(files.images(config.coco), files.images(config.visual_genome))
    queries: list[Query] = []
    galleries: dict[str, tuple[str, ...]] = {}
    sizes: dict[str, int] = {}
    left: list[str] = []
    for task in TASKS if config.task == "all" else (config.task,):
        for number, record in enumerate(files.records(f"{task}.json")):
            if record.lacks(("reference", "target", "gallery")):
                left.append(f"{task} {record.place}")
                continue
            query, candidates = _template(record, task, number, images)
            queries.append(query)
            galleries[query.query_id] = candidates
            sizes[task] = max(len(candidates), sizes.get(task, 0))
    return CirDataset(
        name="genecis",
        images=ImageTable(images.paths, images.boxes),
        protocol=_protocol(config, sizes),
        queries=tuple(queries),
        gallery_ids=tuple(dict.fromkeys(image for ids in galleries.values() for image in ids)),
        galleries=galleries,
        guarded=frozenset(images.paths),
        notes=(*null_note(left), *blank_note(queries), *_notes(queries, galleries, images.boxes)),
    )


def _template(record: Record, task: str, number: int, images: _Images) -> tuple[Query, tuple[str, ...]]:
    target = images.add(record.section("target"))
    gallery = []
    for place, values in enumerate(record.list("gallery")):
        if not isinstance(values, dict):
            record.fail(f"gallery image {place} is {values!r}, which is not an object.")
        gallery.append(images.add(Record(record.path, f"{record.place}, gallery image {place}", values)))
    if not gallery:
        record.fail("the gallery is empty, so there is nothing to rank.")
    name = f"{task}-{number}"
    reference = images.add(record.section("reference"))
    query = Query(name, reference, record.text("condition"), (target,), edit=task, gallery=name, tags=(task,))
    return query, (target, *gallery)


def crop_id(number: str, box: Sequence[float]) -> str:
    """Id of a crop: the image's number and the box, `2366087@379,83,52,20`."""
    return f"{number}@{','.join(str(int(value)) if value == int(value) else repr(value) for value in box)}"


def _notes(queries: list[Query], galleries: dict[str, tuple[str, ...]], boxes: dict[str, Box]) -> tuple[str, ...]:
    repeated = [q.query_id for q in queries if q.target_ids[0] in galleries[q.query_id][1:]]
    double = [name for name, ids in galleries.items() if len(set(ids[1:])) < len(ids) - 1]
    reference = [q.query_id for q in queries if q.reference_id in galleries[q.query_id]]
    odd = {q.query_id for q in queries if len(galleries[q.query_id]) != TASKS[q.edit] + 1}
    negative = [image for image, box in boxes.items() if min(box[:2]) < 0]
    return (
        *count_note("templates have their target in the gallery as well", repeated),
        *count_note("templates have an image twice in the gallery", double),
        *count_note("templates have their reference in the gallery, where it stays", reference),
        *count_note("templates have another number of candidates than published", sorted(odd)),
        *count_note("crops have a box with a negative corner", negative),
    )


def _protocol(config: GeneCisConfig, sizes: dict[str, int]) -> Protocol:
    counts = ", ".join(f"{task} {size}" for task, size in sizes.items())
    return Protocol(
        dataset="GeneCIS",
        split=config.task,
        gallery_rule=f"each template's target and gallery ({counts} candidates)",
        reference_rule="keep",
        label_rule="the one target",
        metrics=("task_recall",),
        ks=config.ks,
    )
