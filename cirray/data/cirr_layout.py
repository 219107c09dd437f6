"""Write a data set in the layout of CIRR (release rc2): captions, image splits, images in split folders."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.data.writing import Row, publish_folder
from cirray.types import stable_id

SUBSET = 6
"""Images of one `img_set`: the reference, the target and four more like them."""

_FOLDERS = {"train": "train", "val": "dev"}
"""CIRR's split "val" is in the folder `dev`; only `train` has numbered sub-folders."""
_FIRST_PAIRID = {"train": 7, "val": 12060}


@dataclass(frozen=True)
class _Item:
    """One triplet or query."""

    reference: str
    targets: tuple[str, ...]
    text: str
    group: str


def write_cirr(dataset: CirDataset, out: Path) -> Row:
    """Write train triplets as CIRR's `train` and the queries as its `val`; return the counts.

    Files: `cirr/captions/cap.rc2.<split>.json`, `cirr/image_splits/split.rc2.<split>.json`, and copies of the images
    under `train/<number>/` and `dev/`. As in CIRR, `pairid` is unique in a split and not contiguous, paths start with
    `./`, and `img_set` holds six images: reference, target, others of their group, then neighbours by name.

    Raises:
        DataError: when a split has fewer than six images, or `out` holds something else.
    """
    items = {"train": _train_items(dataset), "val": _val_items(dataset)}
    images = {"train": _used(items["train"]), "val": sorted({*dataset.gallery_ids, *_used(items["val"])})}
    key = {"source": dataset.name, "queries": stable_id(*(item for split in items.values() for item in split))}
    return publish_folder(out, "cirr", key, lambda folder: _write(dataset, items, images, folder))


def _train_items(dataset: CirDataset) -> list[_Item]:
    triplets = dataset.split("train")
    return [_Item(t.reference_id, (t.target_id,), t.modification, t.group_id or t.reference_id) for t in triplets]


def _val_items(dataset: CirDataset) -> list[_Item]:
    return [_Item(q.reference_id, q.target_ids, q.modification, q.reference_id) for q in dataset.queries]


def _used(items: Sequence[_Item]) -> list[str]:
    return sorted({image_id for item in items for image_id in (item.reference, *item.targets)})


def _write(
    dataset: CirDataset, items: Mapping[str, list[_Item]], images: Mapping[str, list[str]], folder: Path
) -> dict[str, int]:
    counts: dict[str, int] = {}
    for split in (name for name in items if images[name]):
        paths = _copy_images(dataset, split, images[split], folder)
        records = _records(split, items[split], images[split])
        _write_json(folder / "cirr" / "image_splits" / f"split.rc2.{split}.json", paths)
        _write_json(folder / "cirr" / "captions" / f"cap.rc2.{split}.json", records)
        counts |= {f"{split}_images": len(paths), f"{split}_queries": len(records)}
    return counts


def _copy_images(dataset: CirDataset, split: str, ids: Sequence[str], folder: Path) -> dict[str, str]:
    paths = {}
    for number, image_id in enumerate(ids):
        place = dataset.images.place(image_id)
        if place.span or place.box:
            raise DataError(
                f"Image {image_id!r} is a part of {place.uri!r}; CIRR's layout holds whole image files only."
            )
        source = Path(place.uri)
        shelf = f"{_FOLDERS[split]}/{number % 100}" if split == "train" else _FOLDERS[split]
        paths[image_id] = f"./{shelf}/{image_id}{source.suffix}"
        copy = folder / paths[image_id]
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return paths


def _records(split: str, items: Sequence[_Item], ids: list[str]) -> list[dict[str, Any]]:
    if len(ids) < SUBSET:
        raise DataError(f"CIRR's layout needs at least {SUBSET} images in split {split!r}, found {len(ids)}.")
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for item in items:
        groups[item.group] |= dict.fromkeys((item.reference, *item.targets))
    numbers = {group: number for number, group in enumerate(groups)}
    places = {image_id: place for place, image_id in enumerate(ids)}
    pairid, records = _FIRST_PAIRID[split], []
    for item in items:
        members = _members(item, list(groups[item.group]), ids, places)
        records.append(_record(pairid, item, {"id": numbers[item.group], "members": members}))
        pairid += 1 + int(stable_id(pairid, item.reference)[:2], 16) % 5
    return records


def _members(item: _Item, group: list[str], ids: list[str], places: Mapping[str, int]) -> list[str]:
    """Six images in name order: reference, target, the rest of the group, then those that follow by name."""
    start = places[item.reference]
    following = (ids[(start + step) % len(ids)] for step in range(len(ids)))
    chosen = dict.fromkeys((item.reference, item.targets[0], *group, *following))
    return sorted(list(chosen)[:SUBSET])


def _record(pairid: int, item: _Item, img_set: dict[str, Any]) -> dict[str, Any]:
    target, members = item.targets[0], img_set["members"]
    ranks = {"reference_rank": members.index(item.reference), "target_rank": members.index(target)}
    return {
        "pairid": pairid,
        "reference": item.reference,
        "target_hard": target,
        "target_soft": dict.fromkeys(item.targets, 1.0),
        "caption": item.text,
        "img_set": {**img_set, **ranks},
    }


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
