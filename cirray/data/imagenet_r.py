"""Domain conversion from ImageNet photographs to ImageNet-R (docs/PAPERS.md#domain-conversion)."""

from collections import Counter, defaultdict
from pathlib import Path

from cirray.core.errors import DataError
from cirray.data.annotations import Folders, load_lines
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import ImageNetRConfig
from cirray.data.readers import READERS
from cirray.types import Query

DOMAINS = {"cartoon": 0, "origami": 1, "toy": 2, "sculpture": 3}
"""Domain -> its number; a target's label is class + 1000 x number. 6 are real photographs, which no query asks for."""
_STEP = 1000


@READERS.register("imagenet_r")
def read_imagenet_r(config: ImageNetRConfig) -> CirDataset:
    """Read the lists; no image is opened, and images may be missing.

    Image ids are the paths of the lists. Every photograph is a query once for each domain; its targets are all images
    of its class in that domain. A class without any there gives no query; the authors' code keeps such queries with
    recall 0, so the notes give the factor from our mean to theirs.

    The protocol: set recall (share of all correct images in the first k) and precision.

    Raises DataError: a list is missing, or a line is not a path and a label.
    """
    files = Folders(config.root, "imagenet_r", "", "imgnet", "data/imgnet")
    queries_file = files.file("imgnet_real_query.txt")
    photographs = _labels(queries_file)
    gallery = _labels(files.file("imgnet_targets.txt"))
    base = files.images(config.images) if config.images else queries_file.parent.parent
    queries, left = _queries(config, photographs, gallery)
    return CirDataset(
        name="imagenet_r",
        images=ImageTable({name: str(base / name) for name in (*gallery, *photographs)}),
        protocol=Protocol(
            dataset="ImageNet-R",
            split=config.domain,
            gallery_rule=f"all {len(gallery):,} listed images, photographs as distractors",
            reference_rule=config.reference_rule,
            caption_rule=f"text {config.text!r}",
            label_rule="every image of the same class in the asked domain; queries without any are left out",
            metrics=("set_recall", "precision"),
            ks=config.ks,
        ),
        queries=queries,
        gallery_ids=tuple(gallery),
        guarded=frozenset((*gallery, *photographs)),
        notes=_notes(queries, left),
    )


def _labels(path: Path) -> dict[str, int]:
    """Image path -> label."""
    found: dict[str, int] = {}
    for number, line in load_lines(path):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal():
            raise DataError(
                f"{str(path)!r}, line {number}: a path and a whole number are expected, found {line[:80]!r}."
            )
        if name.strip() in found:
            raise DataError(f"{str(path)!r}, line {number}: image {name!r} appears twice; each has one line.")
        found[name.strip()] = int(label)
    return found


def _queries(
    config: ImageNetRConfig, photographs: dict[str, int], gallery: dict[str, int]
) -> tuple[tuple[Query, ...], list[str]]:
    by_label: dict[int, list[str]] = defaultdict(list)
    for name, label in gallery.items():
        by_label[label].append(name)
    targets = {label: tuple(names) for label, names in by_label.items()}
    found, left = [], []
    for domain in DOMAINS if config.domain == "all" else (config.domain,):
        text = config.text.replace("{domain}", domain)
        for row, (name, label) in enumerate(photographs.items()):
            wanted = targets.get(label + _STEP * DOMAINS[domain], ())
            if not wanted:
                left.append(f"{domain}-{row}")
                continue
            found.append(Query(f"{domain}-{row}", name, text, wanted, edit=domain, tags=(domain,)))
    return tuple(found), left


def _notes(queries: tuple[Query, ...], left: list[str]) -> tuple[str, ...]:
    kept, gone = Counter(q.edit for q in queries), Counter(name.partition("-")[0] for name in left)
    factors = [f"{domain} {kept[domain] / (kept[domain] + gone[domain]):.4f}" for domain in DOMAINS if gone[domain]]
    return (
        *count_note("queries left out because their class has no image in the domain", left),
        *([f"the authors' code counts those as 0: multiply our means by {', '.join(factors)}"] if factors else []),
    )
