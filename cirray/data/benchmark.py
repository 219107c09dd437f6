"""A composed-retrieval data set, independent of its files: images, triplets, queries, protocol; its labelled part."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from cirray.core.errors import DataError
from cirray.core.ids import IdMap, Ids, Texts
from cirray.data.places import Box, Place, Span
from cirray.types import Query, Triplet

T = TypeVar("T")
_HINT_LIMIT, _EXAMPLES = 20_000, 3


@dataclass(frozen=True)
class Protocol:
    """What a number on this data set means.

    `reference_rule` is "remove" or "keep": whether a query's own reference leaves its ranking. `metrics` names what is
    computed (`cirray.evaluation.protocol_metrics`), `ks` its cut-offs; the other fields are words for the report.
    """

    dataset: str
    split: str = "test"
    gallery_rule: str = "all gallery images"
    reference_rule: str = "remove"
    caption_rule: str = "text as written"
    label_rule: str = "any target is a hit"
    metrics: tuple[str, ...] = ("recall",)
    ks: tuple[int, ...] = (1, 5, 10, 50)

    def describe(self) -> str:
        """One line for tables and logs."""
        reference = {"remove": "own reference removed", "keep": "own reference kept"}[self.reference_rule]
        ranks = ", ".join(str(k) for k in self.ks)
        words = "" if self.caption_rule == "text as written" else f"; {self.caption_rule}"
        head = f"{self.dataset}/{self.split}: {self.gallery_rule}; {reference}{words}"
        return f"{head}; {self.label_rule}; {', '.join(self.metrics)} at {ranks}"


@dataclass(frozen=True)
class ImageTable:
    """Where every image is: id -> absolute path. Ids are opaque keys.

    `boxes` are cut from the image (GeneCIS's crops), `spans` are the bytes of the file that are the image (shards). A
    file may be missing: annotations alone are usable. `contents`, where known, are digests of the files that were
    embedded: a file of other content is another picture (`cirray.features.shards.read_contents`).
    """

    paths: Mapping[str, str] = field(default_factory=dict)
    boxes: Mapping[str, Box] = field(default_factory=dict)
    spans: Mapping[str, Span] = field(default_factory=dict)
    contents: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Keep what every image has as columns."""
        paths = self.paths if isinstance(self.paths, IdMap) else IdMap.texts(self.paths.items())
        spans = _aligned(paths.ids, self.spans, pa.list_(pa.int64(), 2), tuple)
        for name, value in (
            ("paths", IdMap(paths.ids, paths.column.dictionary_encode(), paths.read) if spans else paths),
            ("spans", spans), ("contents", _aligned(paths.ids, self.contents, pa.string(), str)),
        ):  # fmt: skip
            object.__setattr__(self, name, value)

    def path(self, image_id: str) -> Path:
        """File of an image. Raises DataError for an unknown id, with a near one when there is one."""
        if image_id not in self.paths:
            raise DataError(f"Image {image_id!r} is not among the {len(self.paths)} images.{self._hint(image_id)}")
        return Path(self.paths[image_id])

    def place(self, image_id: str) -> Place:
        """File, bytes and box of an image, as needed to open it. Raises DataError for an unknown id."""
        if image_id not in self.paths:
            self.path(image_id)
        return Place(self.paths[image_id], self.spans.get(image_id), self.boxes.get(image_id))

    def places(self, ids: Sequence[str]) -> Texts:
        """Places (`Place.text`) of images, as a column. Raises DataError for an unknown id."""
        return Texts(self.place(image).text() for image in ids)

    @property
    def ids(self) -> Ids:
        """All ids, in the order of the data set."""
        assert isinstance(self.paths, IdMap)
        return self.paths.ids

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.paths

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def _hint(self, image_id: str) -> str:
        if len(self.paths) > _HINT_LIMIT:
            return ""
        close = difflib.get_close_matches(image_id, self.paths, n=1)
        return f" Did you mean {close[0]!r}?" if close else ""


def _aligned(ids: Ids, given: Mapping[str, T], kind: pa.DataType, read: Callable[[Any], T]) -> Mapping[str, T]:
    """Values of some images as a column beside all ids."""
    if not given or (isinstance(given, IdMap) and given.ids is ids):
        return given
    return IdMap(ids, pa.array((given.get(image) for image in ids), kind), read)


@dataclass(frozen=True)
class CirDataset:
    """A whole data set. Parts that the files do not have are empty.

    `pool_ids` are the unlabelled images, `gallery_ids` what queries search, `captions` one text per captioned image.
    """

    name: str
    images: ImageTable
    protocol: Protocol
    triplets: tuple[Triplet, ...] = ()
    pool_ids: Sequence[str] = ()
    queries: tuple[Query, ...] = ()
    gallery_ids: Sequence[str] = ()
    galleries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Galleries by name, for benchmarks whose queries do not all search the same one (see `Query.gallery`)."""
    captions: Mapping[str, str] = field(default_factory=dict)
    guarded: frozenset[str] = frozenset()
    """Images of the benchmark's own val and test splits: no mined pair may hold them (`cirray.data.leaks`)."""
    notes: tuple[str, ...] = ()
    """What was odd and how it was handled: rows left out, names without a file, blank texts."""
    training_notes: tuple[str, ...] = ()
    """Notes about training triplets, which scoring queries does not need."""

    @property
    def guarded_ids(self) -> frozenset[str]:
        """Images that training must not see: those the reader names, else the gallery and all images of the queries."""
        named = (image for q in self.queries for image in (q.reference_id, *q.target_ids, *q.subset))
        return self.guarded or frozenset((*self.gallery_ids, *named))

    def split(self, name: str) -> tuple[Triplet, ...]:
        """Triplets of one split, `train` or `val`."""
        return tuple(triplet for triplet in self.triplets if triplet.split == name)

    def describe(self) -> str:
        """One line of counts."""
        counts = {
            "images": len(self.images),
            "triplets": len(self.triplets),
            "pool": len(self.pool_ids),
            "queries": len(self.queries),
            "gallery": len(self.gallery_ids),
            "captions": len(self.captions),
        }
        return f"{self.name}: " + ", ".join(f"{count} {name}" for name, count in counts.items())


@dataclass(frozen=True)
class Labelled:
    """What may be learnt from: training triplets, captions of their images, and held-out triplets."""

    train: tuple[Triplet, ...]
    held_out: tuple[Triplet, ...]
    captions: Mapping[str, str]


def select_labels(dataset: CirDataset, labels: int | None) -> Labelled:
    """The first `labels` training triplets in whole groups, captions of their images, and the held-out triplets.

    Raises DataError when the data set has no training triplets.
    """
    train = dataset.split("train")
    if not train:
        raise DataError(f"{dataset.name!r} has no triplets of split 'train'; the generator learns from labelled ones.")
    if labels is not None and labels < len(train):
        groups = {row.group_id for row in train[:labels] if row.group_id}
        train = tuple(row for number, row in enumerate(train) if number < labels or row.group_id in groups)
    images = {image for row in train for image in (row.reference_id, row.target_id)}
    captions = {name: text for name, text in dataset.captions.items() if labels is None or name in images}
    return Labelled(train, dataset.split("val"), captions)


def count_note(what: str, found: Sequence[str]) -> tuple[str, ...]:
    """A sentence `12 <what>, e.g. a, b, c`, or nothing when there are none."""
    if not found:
        return ()
    return (f"{len(found):,} {what}, e.g. {', '.join(repr(item) for item in found[:_EXAMPLES])}",)
