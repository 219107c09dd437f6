"""Convert the NLVR dev scenes to the open folder layout: `python jobs/data/nlvr.py root=FOLDER out=FOLDER [seed=0]`.

The scenes (Suhr et al. 2017, CC BY 4.0) are cut into small images, and composed queries follow from their lists.

Each published picture holds three 100 x 100 scenes with an exact list of objects. Two scenes whose object lists
differ in one thing (an object more or less, or one colour, shape or size), places left aside, are a triplet; the
texts come from templates. Scenes are split by what they contain, so no part shares a scene, moved or not, with another.
"""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field

from cirray.cli.main import guarded
from cirray.core.config import Config, load_config
from cirray.core.errors import DataError
from cirray.core.fields import Place
from cirray.core.log import say
from cirray.data.annotations import load_lines
from cirray.data.images import open_image
from cirray.data.shapes.scenes import PLACES
from cirray.data.writing import Row, publish_folder, write_jsonl

SIDE, STRIDE = 100, 150
"""Side of a scene in the published picture, and the distance from one to the next, in pixels."""
PARTS = (("train", "labelled", 0.36), ("val", "labelled", 0.1), ("pool", "pool", 0.24), ("gallery", "gallery", 0.3))
"""Name, folder and share of the scenes (by content) of every part."""
TARGETS_PER_CHANGE = 3
"""Triplets of one reference and text; their targets differ only in places."""

_COLOURS = {"#0099ff": "blue", "yellow": "yellow", "black": "black"}
_SIZES = {10: "small", 20: "medium", 30: "large"}
_SHAPES = ("circle", "square", "triangle")
_TEMPLATES = {
    "recolour": (
        "make the {object} {value}",
        "change the colour of the {object} to {value}",
        "the {object} is {value}",
    ),
    "reshape": ("turn the {object} into a {value}", "replace the {object} with a {value}", "the {object} is a {value}"),
    "resize": ("make the {object} {value}", "change the size of the {object} to {value}", "the {object} is {value}"),
    "add": ("add a {object}", "there is one more {object}", "put in a {object}"),
    "remove": ("remove a {object}", "there is one {object} less", "take a {object} away"),
}


class NlvrRun(Config):
    """Convert the published NLVR scenes to the folder layout."""

    root: Place
    """Folder that holds `dev/dev.json` and `dev/images/`, or a folder `nlvr` with them."""
    out: Place
    """Folder to write."""
    seed: int = Field(0, ge=0)
    """Seed of the split and of the texts."""


class Item(NamedTuple):
    """What an object is: its size in words, colour and shape."""

    size: str
    colour: str
    shape: str

    def words(self) -> str:
        """`small blue circle`."""
        return " ".join(self)


class Placed(NamedTuple):
    """An object and its upper left corner in pixels."""

    item: Item
    x: float
    y: float

    def place(self) -> str:
        """Cell of a 3 x 3 grid in words, from the object's centre."""
        half = {word: side for side, word in _SIZES.items()}[self.item.size] / 2
        column, row = (min(2, max(0, int(3 * (value + half) / SIDE))) for value in (self.x, self.y))
        return PLACES[3 * row + column]


@dataclass(frozen=True)
class Box:
    """One scene: where it is published and what it holds, sorted."""

    picture: str
    number: int
    objects: tuple[Placed, ...]

    @cached_property
    def content(self) -> tuple[Item, ...]:
        """The objects without their places, sorted."""
        return tuple(sorted(placed.item for placed in self.objects))

    @property
    def name(self) -> str:
        """Image id."""
        return f"{Path(self.picture).stem}-box{self.number}"


@dataclass(frozen=True)
class Change:
    """The one difference of two contents; `value` is the new colour, shape or size."""

    kind: str
    item: Item
    value: str = ""

    def text(self, rng: np.random.Generator) -> str:
        """One of the paraphrases."""
        options = _TEMPLATES[self.kind]
        return options[int(rng.integers(len(options)))].format(object=self.item.words(), value=self.value)


def write_nlvr(root: Path, out: Path, seed: int = 0) -> Row:
    """Convert the published dev set into the open folder layout and return what `dataset.json` says.

    Args:
        root: folder that holds `dev/dev.json` and `dev/images/` (or a folder `nlvr` with them).
        out: where the layout is written; `objects.jsonl` there lists every image's objects.
        seed: of the split and of the texts.

    Raises:
        DataError: when the files are not there or not as published, or `out` holds something else.
    """
    folder = _find(Path(root).expanduser())
    boxes = read_boxes(folder / "dev.json")
    return publish_folder(out, "nlvr", {"seed": seed}, lambda target: _write(folder, boxes, target, seed))


def read_boxes(path: Path) -> list[Box]:
    """Every distinct scene of an NLVR annotation file, in published order.

    Raises:
        DataError: naming the line that is not as published.
    """
    boxes: dict[tuple[Placed, ...], Box] = {}
    for number, line in load_lines(path):
        try:
            row = json.loads(line)
            picture = f"images/{row['directory']}/dev-{row['identifier']}-0.png"
            for place, objects in enumerate(row["structured_rep"]):
                found = tuple(sorted(_placed(entry) for entry in objects))
                boxes.setdefault(found, Box(picture, place, found))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{str(path)!r}, line {number}: not an NLVR record ({error!r}).") from None
    return list(boxes.values())


def difference(reference: Sequence[Item], target: Sequence[Item]) -> Change | None:
    """The one change between two contents, or None when there is not exactly one."""
    gone, come = (list((Counter(a) - Counter(b)).elements()) for a, b in ((reference, target), (target, reference)))
    if (len(gone), len(come)) == (0, 1):
        return Change("add", come[0])
    if (len(gone), len(come)) == (1, 0):
        return Change("remove", gone[0])
    if (len(gone), len(come)) != (1, 1):
        return None
    kinds = ("resize", "recolour", "reshape")
    changed = [(kind, new) for kind, old, new in zip(kinds, gone[0], come[0], strict=True) if old != new]
    return Change(changed[0][0], gone[0], changed[0][1]) if len(changed) == 1 else None


def caption(box: Box, rng: np.random.Generator) -> str:
    """Every object with its place, in random order."""
    order = rng.permutation(len(box.objects))
    parts = (box.objects[int(index)] for index in order)
    return " and ".join(f"a {placed.item.words()} in the {placed.place()}" for placed in parts)


def meanings() -> dict[str, Change]:
    """Every text of the templates, with the change that it means."""
    values = {"recolour": _COLOURS.values(), "reshape": _SHAPES, "resize": _SIZES.values()}
    items = [Item(*words) for words in product(_SIZES.values(), _COLOURS.values(), _SHAPES)]
    return {
        template.format(object=item.words(), value=value): Change(kind, item, value)
        for kind, templates in _TEMPLATES.items()
        for template, item, value in product(templates, items, values.get(kind, ("",)))
    }


def cell_words(text: str) -> tuple[tuple[str, ...], ...]:
    """The words of each of the nine cells of a caption in reading order: its objects', or `empty`, then its place's."""
    found: dict[str, list[str]] = {place: [] for place in PLACES}
    for part in text.split(" and "):
        words, _, place = part.removeprefix("a ").partition(" in the ")
        found[place] += words.split()
    return tuple((*(words or ["empty"]), *place.split()) for place, words in found.items())


def split_boxes(boxes: Sequence[Box], seed: int) -> dict[str, list[Box]]:
    """Boxes by part; boxes of equal content stay together."""
    contents = sorted({box.content for box in boxes})
    order = np.random.default_rng([seed, 1]).permutation(len(contents))
    bounds = np.cumsum([share for _, _, share in PARTS]) * len(contents)
    part_of = {
        contents[int(index)]: PARTS[min(int(np.searchsorted(bounds, rank, side="right")), len(PARTS) - 1)][0]
        for rank, index in enumerate(order)
    }
    parts: dict[str, list[Box]] = {name: [] for name, _, _ in PARTS}
    for box in boxes:
        parts[part_of[box.content]].append(box)
    return parts


def changes(boxes: Sequence[Box], per_change: int = TARGETS_PER_CHANGE) -> Iterator[tuple[Box, Box, Change]]:
    """Ordered pairs one change apart; for each reference and change the few targets whose other objects moved least."""
    for reference in boxes:
        found: dict[Change, list[tuple[float, int]]] = defaultdict(list)
        for number, box in enumerate(boxes):
            change = difference(reference.content, box.content)
            if change is not None:
                found[change].append((_moved(reference, box), number))
        for change, near in found.items():
            for _, number in sorted(near)[:per_change]:
                yield reference, boxes[number], change


def _find(root: Path) -> Path:
    for folder in (root / "dev", root / "nlvr" / "dev"):
        if (folder / "dev.json").is_file() and (folder / "images").is_dir():
            return folder
    raise DataError(f"{str(root)!r} holds no dev/dev.json with dev/images; give the folder of the NLVR repository.")


def _placed(entry: Row) -> Placed:
    item = Item(_SIZES[entry["size"]], _COLOURS[entry["color"].lower()], entry["type"])
    if item.shape not in _SHAPES:
        raise ValueError(f"unknown type {item.shape!r}")
    return Placed(item, float(entry["x_loc"]), float(entry["y_loc"]))


def _moved(reference: Box, target: Box) -> float:
    """Mean distance in pixels between objects of equal looks, paired in order of place."""
    distances, unpaired = [], defaultdict(list)
    for placed in target.objects:
        unpaired[placed.item].append(placed)
    for placed in reference.objects:
        if unpaired[placed.item]:
            other = unpaired[placed.item].pop(0)
            distances.append(abs(placed.x - other.x) + abs(placed.y - other.y))
    return sum(distances) / max(1, len(distances))


def _write(folder: Path, boxes: Sequence[Box], out: Path, seed: int) -> dict[str, int]:
    parts, rng = split_boxes(boxes, seed), np.random.default_rng([seed, 2])
    place = {name: directory for name, directory, _ in PARTS}
    for name, members in parts.items():
        for box in members:
            _cut(folder, box, out / place[name])
    triplets = [row for name in ("train", "val") for row in _triplets(parts[name], name, rng)]
    queries = _queries(parts["gallery"], rng)
    captions = [{"image": box.name, "caption": caption(box, rng)} for box in parts["train"]]
    objects = [{"image": box.name, "objects": [[*o.item, o.x, o.y] for o in box.objects]} for box in boxes]
    tables = {"triplets": triplets, "queries": queries, "captions": captions, "objects": objects}
    for name, rows in tables.items():
        write_jsonl(out / f"{name}.jsonl", rows)
    counts = {"images": len(boxes), **{name: len(rows) for name, rows in tables.items()}}
    return counts | {f"{name}_images": len(members) for name, members in parts.items()}


def _cut(folder: Path, box: Box, out: Path) -> None:
    picture = open_image(folder / box.picture)
    left = box.number * STRIDE
    if picture.width < left + SIDE or picture.height < SIDE:
        raise DataError(f"{str(folder / box.picture)!r} is {picture.size}; 400 x 100 as published is needed.")
    out.mkdir(parents=True, exist_ok=True)
    picture.crop((left, 0, left + SIDE, SIDE)).save(out / f"{box.name}.png")


def _triplets(boxes: Sequence[Box], split: str, rng: np.random.Generator) -> Iterator[Row]:
    for reference, target, change in changes(boxes):
        yield {
            "reference": reference.name,
            "target": target.name,
            "modification": change.text(rng),
            "edit": change.kind,
            "split": split,
            "group": reference.name,
        }


def _queries(boxes: Sequence[Box], rng: np.random.Generator) -> list[Row]:
    """One query per reference and change; every gallery image with the resulting content is a target."""
    alike: dict[tuple[Item, ...], list[str]] = defaultdict(list)
    for box in boxes:
        alike[box.content].append(box.name)
    return [
        {
            "query_id": f"q-{number:04d}",
            "reference": reference.name,
            "target": alike[target.content],
            "modification": change.text(rng),
            "edit": change.kind,
        }
        for number, (reference, target, change) in enumerate(changes(boxes, per_change=1))
    ]


def convert() -> None:
    """Convert what the command line names and say what came out."""
    run = load_config(NlvrRun, None, sys.argv[1:])
    summary = write_nlvr(Path(run.root), Path(run.out), run.seed)
    say(f"{run.out}: " + ", ".join(f"{count} {name}" for name, count in summary["counts"].items()))


if __name__ == "__main__":
    sys.exit(guarded(convert))
