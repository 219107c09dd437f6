"""Shoes (docs/PAPERS.md#shoes) with the train and eval lists of the VAL repository."""

import os
import re
from pathlib import Path

from cirray.core.errors import DataError
from cirray.data.annotations import Folders, Record, blank_note, load_lines, null_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import ShoesConfig
from cirray.data.readers import READERS
from cirray.types import Query, Triplet

_TYPE = re.compile(r"^img_(.+)_\d+\.\w+$")


@READERS.register("shoes")
def read_shoes(config: ShoesConfig) -> CirDataset:
    """Read Shoes; no image is opened, and images may be missing.

    Image ids are file names. A pair trains or is a query when both names are in that list; others are left out and
    counted. A training pair of one image with itself is left out; such an eval pair stays and can never be a hit.

    The protocol: recall and its mean over the cut-offs.

    Raises DataError: a file is missing or an entry is wrong.
    """
    files = Folders(config.root, "shoes")
    names = {part: _names(files.file(f"{part}_im_names.txt")) for part in ("train", "eval")}
    records = files.records("relative_captions_shoes.json")
    pairs: dict[str, list[tuple[int, Record, str, str]]] = {"train": [], "eval": [], "neither": []}
    missing: list[str] = []
    for row, record in enumerate(records):
        if record.lacks(("ReferenceImageName", "ImageName")):
            missing.append(record.place)
            continue
        reference, target = record.id("ReferenceImageName"), record.id("ImageName")
        homes = [part for part, known in names.items() if reference in known and target in known]
        pairs[homes[0] if homes else "neither"].append((row, record, reference, target))
    queries = tuple(
        Query(f"eval-{row}", reference, record.text("RelativeCaption"), (target,))
        for row, record, reference, target in pairs["eval"]
    )
    triplets, left = _triplets(pairs["train"])
    same = [query.query_id for query in queries if query.reference_id in query.target_ids]
    unused = count_note("train pairs left out (blank text, or one image twice)", left)
    return CirDataset(
        name="shoes",
        images=ImageTable(_paths(files, config, (*names["train"], *names["eval"]))),
        protocol=Protocol(
            dataset="Shoes",
            split="eval",
            gallery_rule=f"all {len(names['eval']):,} eval images",
            reference_rule=config.reference_rule,
            label_rule="the one target; a pair whose reference is its target cannot be hit",
            metrics=("recall", "mean_recall"),
            ks=config.ks,
        ),
        triplets=triplets,
        pool_ids=tuple(names["train"]),
        queries=queries,
        gallery_ids=tuple(names["eval"]),
        guarded=frozenset(names["eval"]),
        training_notes=unused,
        notes=(
            *unused,
            *null_note(missing),
            *blank_note(queries),
            *count_note("pairs left out: in neither list", [f"row {item[0]}" for item in pairs["neither"]]),
            *count_note("queries whose target is their reference: they cannot be hit", same),
        ),
    )


def _names(path: Path) -> dict[str, None]:
    names = [line for _, line in load_lines(path)]
    if len(set(names)) < len(names) or not names:
        raise DataError(f"{str(path)!r} names no image, or one of them twice; fetch the file again.")
    return dict.fromkeys(names)


def _triplets(pairs: list[tuple[int, Record, str, str]]) -> tuple[tuple[Triplet, ...], list[str]]:
    found, left = [], []
    for row, record, reference, target in pairs:
        text = record.text("RelativeCaption")
        if not text.strip() or reference == target:
            left.append(f"row {row}")
            continue
        found.append(Triplet(f"shoes-train-{row}", reference, target, text, group_id=reference))
    return tuple(found), left


def _paths(files: Folders, config: ShoesConfig, names: tuple[str, ...]) -> dict[str, str]:
    """Each image's path: on disk, else by the published list, else in its type's folder `0`."""
    folder = files.images(config.images)
    found = {name: os.path.join(parent, name) for parent, _, inside in os.walk(folder) for name in inside}
    listed: dict[str, str] = {}
    if files.has("shoes-test-all.txt"):
        for _, line in load_lines(files.file("shoes-test-all.txt")):
            listed[line.rsplit("/", 1)[-1]] = str(folder.joinpath(*line.split("/")[-3:]))
    return {name: found.get(name) or listed.get(name) or str(folder / _type(name) / "0" / name) for name in names}


def _type(name: str) -> str:
    match = _TYPE.match(name)
    return match.group(1) if match else ""
