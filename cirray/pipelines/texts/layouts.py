"""Triplets and their pictures in layouts that other programs train on: MegaPairs' lines and CIRR's files."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from cirray.core.errors import DataError
from cirray.data.kinds import HEAD_BYTES, READ, sniff
from cirray.data.megapairs import NEGATIVES, REFERENCE, TARGETS, TEXTS
from cirray.data.own_keys import own_keys
from cirray.types import Triplet, stable_id

IMAGES = "images"
_CIRR_SPLITS = ("train", "val")


def write_files(folder: Path, pictures: Iterable[tuple[str, bytes, str]], advance: Callable[[int], None]) -> Any:
    """Write pictures (id, bytes, suffix) as files called by their ids; id -> path below the folder."""
    paths = dict[str, str]()
    for name, data, suffix in pictures:
        kind = "" if suffix or PurePosixPath(name).suffix else sniff(data[:HEAD_BYTES])
        suffix = suffix or (READ[kind][0] if kind else "")
        path = f"{IMAGES}/{name}{suffix}"
        parts = path.split("/")
        if (folder / path).exists() or {"", ".", ".."} & set(parts) or "\0" in path or "\\" in path:
            path = f"{IMAGES}/{stable_id(name)}{suffix}"  # an id is no path, and may be none that can be written
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        paths[name] = path
        advance(1)
    return paths


def write_megapairs(folder: Path, rows: Sequence[Triplet], paths: Mapping[str, str]) -> None:
    """A file a split, a line a triplet; a picture is its path below the folder."""
    for split, inside in _by_split(rows).items():
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as stream:
            for row in inside:
                entry = {
                    REFERENCE: paths[row.reference_id], TEXTS: [row.modification], TARGETS: paths[row.target_id],
                    NEGATIVES: [paths[name] for name in row.negative_ids], **own_keys(row),
                }  # fmt: skip
                stream.write(json.dumps(entry) + "\n")


def write_cirr(folder: Path, rows: Sequence[Triplet], paths: Mapping[str, str]) -> None:
    """Captions and image lists of the splits train and val. A triplet's similar images are its own.

    Raises DataError: a triplet of another split.
    """
    splits = _by_split(rows)
    if other := set(splits) - set(_CIRR_SPLITS):
        raise DataError(
            f"{len(splits[min(other)]):,} triplets are of the split {min(other)!r}; CIRR's layout has triplets of "
            f"{' and '.join(_CIRR_SPLITS)}. Use layout=megapairs or layout=datasets."
        )
    for split, inside in splits.items():
        names = dict.fromkeys(name for row in inside for name in row.images)
        _write_json(folder / f"image_splits/split.rc2.{split}.json", {name: f"./{paths[name]}" for name in names})
        entries = [_cirr_entry(number, row) for number, row in enumerate(inside)]
        _write_json(folder / f"captions/cap.rc2.{split}.json", entries)


def _cirr_entry(number: int, row: Triplet) -> dict[str, Any]:
    return {
        "pairid": number, "reference": row.reference_id, "target_hard": row.target_id,
        "target_soft": {row.target_id: 1.0}, "caption": row.modification,
        "img_set": {"id": number, "members": list(row.images), "reference_rank": 0, "target_rank": 1}, **own_keys(row),
    }  # fmt: skip


def _by_split(rows: Sequence[Triplet]) -> dict[str, list[Triplet]]:
    splits = dict[str, list[Triplet]]()
    for row in rows:
        splits.setdefault(row.split, []).append(row)
    return splits


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")
