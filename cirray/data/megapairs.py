"""MegaPairs (docs/PAPERS.md#megapairs): one JSON object a line, with paths of pictures; for training alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cirray.core.errors import DataError
from cirray.data.annotations import Folders, Record
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import MegaPairsConfig
from cirray.data.listing import picture_ids
from cirray.data.own_keys import restored
from cirray.data.readers import READERS
from cirray.data.tables import read_rows
from cirray.triplets.store import refuse_duplicates
from cirray.types import Triplet

REFERENCE, TEXTS, TARGETS, NEGATIVES = "q_img", "q_texts", "t_img", "hns"
_SPLITS = {"val": "val", "validation": "val", "dev": "val", "test": "test"}
"""How a file's name begins -> the split of its triplets; others train."""


class _Row(NamedTuple):
    """A triplet and the paths of its pictures; its ids are empty where the line names none."""

    triplet: Triplet
    reference: str
    targets: list[str]
    negatives: list[str]

    def named(self) -> Iterator[tuple[str, str]]:
        """Every path and the id that the line gives it, if any."""
        row, paths = self.triplet, (self.reference, self.targets[0], *self.negatives)
        ids = (row.reference_id, row.target_id, *row.negative_ids) if row.target_id else ("",) * len(paths)
        yield from zip((*paths, *self.targets[1:]), (*ids, *[""] * len(self.targets[1:])), strict=True)


@READERS.register("megapairs")
def read_megapairs(config: MegaPairsConfig) -> CirDataset:
    """Read triplets; no image is opened, and images may be missing.

    Each text of a line is a triplet, with further targets as positives. A picture's id is its path as written, without
    suffix where that is unique. What `cirray export triplets` wrote comes back as it was.

    Raises DataError: no such folder or file, or naming the line and the key that is wrong.
    """
    folders = Folders(config.root, "megapairs")
    files = sorted(path for path in folders.root.glob(config.files) if path.is_file())
    if not files:
        raise DataError(f"{str(folders.root)!r} holds no file {config.files!r}; correct the root, or name the files.")
    left = list[str]()
    rows = [row for path in files for row in _rows(path, left)]
    ids = _ids(rows)
    triplets = [_with_ids(row, ids) for row in rows]
    refuse_duplicates([*ids.values()], f"the pictures of {str(folders.root)!r}")
    refuse_duplicates([row.triplet_id for row in triplets], f"the triplets of {str(folders.root)!r}")
    images = folders.images(config.images)
    name = folders.root.name
    return CirDataset(
        name=name,
        images=ImageTable({image: str(images / path) for path, image in ids.items()}),
        protocol=Protocol(name, gallery_rule="none"),
        triplets=tuple(triplets),
        notes=count_note("triplets left out (blank text, or reference and target are one image)", left),
    )


def _rows(path: Path, left: list[str]) -> Iterator[_Row]:
    """Triplets of a file; what cannot be one goes to `left`."""
    split = next((split for start, split in _SPLITS.items() if path.name.startswith(start)), "train")
    for line in read_rows(path, ()):
        record = Record(path, line.place, line.values)
        reference, name = record.id(REFERENCE), f"{path.name.split('.')[0]}-{line.line}"
        texts, targets = _many(record, TEXTS), list(dict.fromkeys(filter(None, _many(record, TARGETS))))
        wrong = record.ids(NEGATIVES) if NEGATIVES in record.values else ()
        negatives = [image for image in dict.fromkeys(wrong) if image not in targets]
        for number, text in enumerate(texts):
            if not text.strip() or not targets or reference in targets:
                left.append(f"{path.name}, {line.place}")
                continue
            row = Triplet(name if len(texts) == 1 else f"{name}-{number}", "", "", text, split=split)
            row = restored(record, row) if len(texts) == 1 else row
            if row.target_id and len(row.negative_ids) != len(negatives):
                record.fail(
                    f"key {NEGATIVES!r} has {len(negatives)} images, and `negative_ids` {len(row.negative_ids)}."
                )
            yield _Row(row, reference, targets, negatives)


def _many(record: Record, key: str) -> list[str]:
    """A text, or a list of texts."""
    value = record.get(key)
    return [record.as_text(key, item) for item in (value if isinstance(value, list) else [value])]


def _ids(rows: list[_Row]) -> dict[str, str]:
    """Path of a picture -> its id, as the lines say or by its name."""
    said = dict[str, str]()
    for path, image in (item for row in rows for item in row.named()):
        said[path] = said.get(path) or image
    named = dict(zip(said, picture_ids(list(said)), strict=True))
    return {path: image or named[path] for path, image in said.items()}


def _with_ids(row: _Row, ids: dict[str, str]) -> Triplet:
    reference, told = ids[row.reference], row.triplet
    return replace(
        told, reference_id=reference, target_id=ids[row.targets[0]],
        group_id=told.group_id if told.reference_id else told.group_id or reference,
        positive_ids=told.positive_ids or tuple(ids[path] for path in row.targets[1:]),
        negative_ids=tuple(ids[path] for path in row.negatives),
    )  # fmt: skip
