"""Triplets and their pictures in layouts that other programs train on: MegaPairs' lines and CIRR's files."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

from cirray.core.errors import DataError
from cirray.core.ids import IdMap, Ids
from cirray.data.kinds import HEAD_BYTES, READ, sniff
from cirray.data.megapairs import NEGATIVES, REFERENCE, TARGETS, TEXTS
from cirray.data.own_keys import own_keys
from cirray.triplets.store import TripletStore
from cirray.types import Triplet, stable_id

IMAGES = "images"
_CIRR_SPLITS = ("train", "val")


def write_files(
    folder: Path, pictures: Iterable[tuple[str, bytes, str]], advance: Callable[[int], None]
) -> Mapping[str, str]:
    """Write pictures (id, bytes, suffix) as files called by their ids; id -> path below the folder."""
    return IdMap.texts(_written(folder, pictures, advance))


def _written(
    folder: Path, pictures: Iterable[tuple[str, bytes, str]], advance: Callable[[int], None]
) -> Iterator[tuple[str, str]]:
    for name, data, suffix in pictures:
        kind = "" if suffix or PurePosixPath(name).suffix else sniff(data[:HEAD_BYTES])
        suffix = suffix or (READ[kind][0] if kind else "")
        path = f"{IMAGES}/{name}{suffix}"
        parts = path.split("/")
        if (folder / path).exists() or {"", ".", ".."} & set(parts) or "\0" in path or "\\" in path:
            path = f"{IMAGES}/{stable_id(name)}{suffix}"  # an id is no path, and may be none that can be written
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        advance(1)
        yield name, path


def write_megapairs(folder: Path, store: TripletStore, paths: Mapping[str, str]) -> None:
    """A file a split, a line a triplet; a picture is its path below the folder."""
    with _SplitFiles(folder, "{}.jsonl") as files:
        for row in store:
            entry = {
                REFERENCE: paths[row.reference_id], TEXTS: [row.modification], TARGETS: paths[row.target_id],
                NEGATIVES: [paths[name] for name in row.negative_ids], **own_keys(row),
            }  # fmt: skip
            files.of(row.split).write(json.dumps(entry) + "\n")


def write_cirr(folder: Path, store: TripletStore, paths: Mapping[str, str]) -> None:
    """Captions and image lists of the splits train and val. A triplet's similar images are its own."""
    counts = Counter[str]()
    with _SplitFiles(folder, "captions/cap.rc2.{}.json") as files:
        for row in store:
            number = counts[row.split]
            files.of(row.split).write((",\n" if number else "[") + json.dumps(_cirr_entry(number, row)))
            counts[row.split] += 1
        for split in counts:
            files.of(split).write("]\n")
    with _SplitFiles(folder, "image_splits/split.rc2.{}.json") as files:
        for split in counts:
            for number, name in enumerate(Ids(store.images(split=split))):
                entry = f"{json.dumps(name)}: {json.dumps('./' + paths[name])}"
                files.of(split).write((", " if number else "{") + entry)
            files.of(split).write("}")


def check_cirr_splits(counts: Mapping[str, int]) -> None:
    """Refuse splits (and how many triplets each has) that CIRR's layout has not. Raises DataError naming one."""
    if other := set(counts) - set(_CIRR_SPLITS):
        raise DataError(
            f"{counts[min(other)]:,} triplets are of the split {min(other)!r}; CIRR's layout has triplets of "
            f"{' and '.join(_CIRR_SPLITS)}. Use layout=megapairs or layout=datasets."
        )


def _cirr_entry(number: int, row: Triplet) -> dict[str, Any]:
    return {
        "pairid": number, "reference": row.reference_id, "target_hard": row.target_id,
        "target_soft": {row.target_id: 1.0}, "caption": row.modification,
        "img_set": {"id": number, "members": list(row.images), "reference_rank": 0, "target_rank": 1}, **own_keys(row),
    }  # fmt: skip


class _SplitFiles(ExitStack):
    """A text file a split, opened when it is first written to."""

    def __init__(self, folder: Path, pattern: str) -> None:
        super().__init__()
        self._folder, self._pattern, self._open = folder, pattern, dict[str, TextIO]()

    def of(self, split: str) -> TextIO:
        """The file of a split."""
        if split not in self._open:
            path = self._folder / self._pattern.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[split] = self.enter_context(path.open("w", encoding="utf-8"))
        return self._open[split]
