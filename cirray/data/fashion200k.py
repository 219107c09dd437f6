"""Fashion200k as TIRG uses it (docs/PAPERS.md#fashion200k): one-word changes of captions, any image that has the
target's caption is a hit.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cirray.core.errors import DataError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.data.annotations import Folders, load_lines
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import Fashion200kConfig
from cirray.data.readers import READERS
from cirray.types import Query, Triplet

MARKS = {".": "dotmark", "?": "questionmark", "&": "andmark", "*": "starmark"}
"""Characters that TIRG spells out in captions."""


@READERS.register("fashion200k")
def read_fashion200k(config: Fashion200kConfig) -> CirDataset:
    """Read Fashion200k; no image is opened, and images may be missing.

    Image ids are the paths of the label files. Training triplets are drawn: an image, and one of another caption that
    differs from its own in one word, with the text "replace X with Y"; images without such a neighbour are counted.

    The protocol: any image that has the target's caption is a hit.

    Raises DataError: label files or `test_queries.txt` are missing, or a line is wrong.
    """
    files = Folders(config.root, "fashion200k")
    root = files.root
    train, test = _labels(root, "train"), _labels(root, "test")
    queries = _queries(files.file("test_queries.txt"), test)
    triplets, alone = _triplets(train, config)
    both = sorted(set(train) & set(test))
    unused = count_note("train images have no caption one word away, so no triplet", alone)
    return CirDataset(
        name="fashion200k",
        images=ImageTable({name: str(root / name) for name in (*train, *test)}),
        protocol=Protocol(
            dataset="Fashion200k",
            split="test",
            gallery_rule=f"all {len(test):,} test images",
            reference_rule=config.reference_rule,
            caption_rule="replace X with Y",
            label_rule="any image with the target's caption (TIRG)",
            metrics=("recall",),
            ks=config.ks,
        ),
        triplets=triplets,
        pool_ids=tuple(train),
        queries=queries,
        gallery_ids=tuple(test),
        captions=train,
        guarded=frozenset(test),
        training_notes=unused,
        notes=(*unused, *count_note("images are both in train and in test", both)),
    )


def clean_caption(text: str) -> str:
    """The caption with these characters spelt out."""
    for sign, word in MARKS.items():
        text = text.replace(sign, word)
    return text.strip()


def change(source: str, target: str) -> str:
    """TIRG's text: the first word that only the source has, the first that only the target has.

    If the other caption has all its words, it is the last word, as in TIRG's loop.
    """
    old, new = source.split(), target.split()
    gone = next((word for word in old if word not in new), old[-1] if old else "")
    come = next((word for word in new if word not in old), new[-1] if new else "")
    return f"replace {gone} with {come}"


def _labels(root: Path, split: str) -> dict[str, str]:
    """Image path -> caption over all label files of a split; lines are `path <tab> score <tab> caption`."""
    files = sorted(path for path in (root / "labels").glob("*.txt") if split in path.name)
    if not files:
        raise DataError(
            f"There is no label file *{split}*.txt in {str(root / 'labels')!r}; put the published ones there."
        )
    found: dict[str, str] = {}
    for path in files:
        for number, line in load_lines(path):
            parts = line.split("\t")
            if len(parts) != 3:
                raise DataError(
                    f"{str(path)!r}, line {number}: path, score and caption with tabs between are expected."
                )
            if found.setdefault(parts[0], clean_caption(parts[2])) != clean_caption(parts[2]):
                raise DataError(f"{str(path)!r}, line {number}: image {parts[0]!r} has another caption already.")
    return found


def _queries(path: Path, captions: dict[str, str]) -> tuple[Query, ...]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name, caption in captions.items():
        alike[caption].append(name)
    targets, found = {caption: tuple(names) for caption, names in alike.items()}, []
    for number, line in load_lines(path):
        names = line.split()
        unknown = [name for name in names if name not in captions]
        if len(names) != 2 or unknown:
            what = f"image {unknown[0]!r} is in no test label file" if unknown else "source and target are expected"
            raise DataError(f"{str(path)!r}, line {number}: {what}.")
        source, target = names
        first = (target, *(name for name in targets[captions[target]] if name != target))
        found.append(Query(f"test-{number}", source, change(captions[source], captions[target]), first))
    return tuple(found)


def _triplets(captions: dict[str, str], config: Fashion200kConfig) -> tuple[tuple[Triplet, ...], list[str]]:
    if not config.triplets_per_image:
        return (), []
    images: dict[str, list[str]] = defaultdict(list)
    for name, caption in captions.items():
        images[caption].append(name)
    families = _families(images)
    found: list[Triplet] = []
    alone: list[str] = []
    for name, caption in captions.items():
        options = [other for parent in _parents(caption) for other in families[parent] if other != caption]
        rng = numpy_generator(derive_seed(config.seed, "fashion200k", name), "triplets")
        drawn = dict.fromkeys(_draw(rng, options, images) for _ in range(config.triplets_per_image if options else 0))
        found += [
            Triplet(f"fashion200k-train-{name}-{number}", name, other, change(caption, captions[other]), group_id=name)
            for number, other in enumerate(drawn)
        ]
        alone += [] if options else [name]
    return tuple(found), alone


def _parents(caption: str) -> tuple[str, ...]:
    """The caption with one word left out, each way."""
    words = caption.split()
    return tuple(dict.fromkeys(" ".join(words[:at] + words[at + 1 :]) for at in range(len(words))))


def _families(captions: Sequence[str] | dict[str, list[str]]) -> dict[str, list[str]]:
    """Captions by what is left of them without one word."""
    families: dict[str, list[str]] = defaultdict(list)
    for caption in captions:
        for parent in _parents(caption):
            families[parent].append(caption)
    return families


def _draw(rng: np.random.Generator, options: list[str], images: dict[str, list[str]]) -> str:
    names = images[options[int(rng.integers(len(options)))]]
    return names[int(rng.integers(len(names)))]
