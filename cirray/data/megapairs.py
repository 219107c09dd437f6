"""MegaPairs (docs/PAPERS.md#megapairs): one JSON object a line, with paths of pictures; for training alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from cirray.core.errors import DataError
from cirray.data.annotations import Folders, Record, count_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
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
    target: str


@READERS.register("megapairs")
def read_megapairs(config: MegaPairsConfig) -> CirDataset:
    """Read triplets; no image is opened, and images may be missing.

    Each text of a line, with each of its targets, is a triplet. A picture's id is its path as written, without suffix
    where that is unique. Hard negatives are passed over. What `cirray export triplets` wrote comes back as it was.

    Raises DataError: no such folder or file, or naming the line and the key that is wrong.
    """
    folders = Folders(config.root, "megapairs")
    files = sorted(path for path in folders.root.glob(config.files) if path.is_file())
    if not files:
        raise DataError(f"{str(folders.root)!r} holds no file {config.files!r}; correct the root, or name the files.")
    left, hard = list[str](), list[str]()
    rows = [row for path in files for row in _rows(path, left, hard)]
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
        notes=(
            *count_note("triplets left out (blank text, or reference and target are one image)", left),
            *count_note("lines have hard negatives, which are passed over", hard),
        ),
    )


def _rows(path: Path, left: list[str], hard: list[str]) -> Iterator[_Row]:
    """Triplets of a file; what cannot be one goes to `left`, lines with hard negatives to `hard`."""
    split = next((split for start, split in _SPLITS.items() if path.name.startswith(start)), "train")
    for line in read_rows(path, ()):
        record = Record(path, line.place, line.values)
        reference, name = record.id(REFERENCE), f"{path.name.split('.')[0]}-{line.line}"
        pairs = [(text, target) for text in _many(record, TEXTS) for target in _many(record, TARGETS)]
        hard += [name] if NEGATIVES in record.values and record.list(NEGATIVES) else []
        for number, (text, target) in enumerate(pairs):
            if not text.strip() or not target or target == reference:
                left.append(f"{path.name}, {line.place}")
                continue
            row = Triplet(name if len(pairs) == 1 else f"{name}-{number}", "", "", text, split=split)
            yield _Row(restored(record, row) if len(pairs) == 1 else row, reference, target)


def _many(record: Record, key: str) -> list[str]:
    """A text, or a list of texts."""
    value = record.get(key)
    return [record.as_text(key, item) for item in (value if isinstance(value, list) else [value])]


def _ids(rows: list[_Row]) -> dict[str, str]:
    """Path of a picture -> its id, as the lines say or by its name."""
    said = dict[str, str]()
    for row in rows:
        said |= {row.reference: row.triplet.reference_id, row.target: row.triplet.target_id}
    named = dict(zip(said, picture_ids(list(said)), strict=True))
    return {path: image or named[path] for path, image in said.items()}


def _with_ids(row: _Row, ids: dict[str, str]) -> Triplet:
    reference = ids[row.reference]
    group = row.triplet.group_id if row.triplet.reference_id else reference
    return replace(row.triplet, reference_id=reference, target_id=ids[row.target], group_id=group)
