"""Data sets in local folders or below any URI, of which only tables and names are fetched; the guard of benchmarks."""

import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import localize
from cirray.core.contents import canonical
from cirray.core.errors import ArtifactError, DataError
from cirray.core.ids import Texts
from cirray.core.log import get_logger
from cirray.data.benchmark import CirDataset
from cirray.data.config import DataConfig, ImageLimits
from cirray.data.doctor import USABLE, check_image
from cirray.data.images import picture_digest, read_place
from cirray.data.kinds import is_foreign
from cirray.data.leaks import refuse_leaks
from cirray.data.places import Place
from cirray.data.readers import read_dataset
from cirray.features.shards import read_rejected
from cirray.types import stable_id, stable_id_of

_OWN_STORAGE = ("webdataset", "huggingface")
"""Formats whose readers open URIs; others are mirrored without their images."""
_READERS, _TOGETHER = 8, 4096
_LOGGER = get_logger("data")


@dataclass(frozen=True)
class ImageList:
    """Ids and places (`Place.text`) of images, in the data set's order.

    `digest` covers ids and crops; files are compared by `contents_of`.
    """

    ids: Texts
    places: Texts
    digest: str


def open_dataset(data: DataConfig) -> CirDataset:
    """Read a data set; below a URI the image table holds URIs, and no image is downloaded.

    Raises DataError as the reader, or when there is nothing at the URI.
    """
    settings = getattr(data, data.format, None)
    root = str(getattr(settings, "root", ""))
    if settings is None or storage.is_local(root) or data.format in _OWN_STORAGE:
        return read_dataset(data)
    with tempfile.TemporaryDirectory(prefix="cirray-") as folder:
        mirror = Path(folder).resolve() / (storage.without_query(root).rstrip("/").rsplit("/", 1)[-1] or "data")
        _mirror(root, mirror)
        local = data.model_copy(update={data.format: settings.model_copy(update={"root": str(mirror)})})
        dataset = read_dataset(local)
    remote = {image: _remote(root, mirror, Path(path)) for image, path in dataset.images.paths.items()}
    return replace(dataset, images=replace(dataset.images, paths=remote))


def read_usable(data: DataConfig, features: Sequence[str]) -> CirDataset:
    """A training data set without rows that name an unusable image; their number is logged.

    Raises DataError when every triplet names such an image.
    """
    dataset = read_dataset(data)
    return without_images(dataset, unusable_images(dataset, features))


def unusable_images(dataset: CirDataset, features: Sequence[str]) -> frozenset[str]:
    """Ids of images that training cannot use, as features artifacts list them; without any, every image that a row or a
    caption names is opened once.
    """
    if not features:
        return frozenset(_unreadable(dataset))
    refused = [rows for uri in features for rows in read_rejected(str(localize(uri, "features"))).values()]
    return frozenset(image for rows in refused for image, _ in rows)


def without_images(dataset: CirDataset, bad: Collection[str]) -> CirDataset:
    """A data set without rows that name one of some images; their number is logged.

    Raises DataError when every triplet names such an image.
    """
    bad = frozenset(bad)
    triplets = tuple(row for row in dataset.triplets if bad.isdisjoint((row.reference_id, row.target_id)))
    queries = tuple(row for row in dataset.queries if bad.isdisjoint((row.reference_id, *row.target_ids)))
    lost = len(dataset.triplets) - len(triplets) + len(dataset.queries) - len(queries)
    if dataset.triplets and not triplets:
        raise DataError(f"Every triplet of {dataset.name!r} names an image that cannot be used, e.g. {min(bad)!r}.")
    if lost:
        _LOGGER.info(
            "%s: %d triplets and queries are left out because they name images that cannot be used, e.g. %r",
            dataset.name, lost, min(bad),
        )  # fmt: skip
    return replace(
        dataset, triplets=triplets, queries=queries,
        pool_ids=tuple(image for image in dataset.pool_ids if image not in bad),
        gallery_ids=tuple(image for image in dataset.gallery_ids if image not in bad),
        galleries={name: tuple(i for i in ids if i not in bad) for name, ids in dataset.galleries.items()},
        captions={image: text for image, text in dataset.captions.items() if image not in bad},
    ) if bad else dataset  # fmt: skip


def _unreadable(dataset: CirDataset) -> set[str]:
    named = dict.fromkeys(image for row in dataset.triplets for image in (row.reference_id, row.target_id))
    named |= dict.fromkeys(image for row in dataset.queries for image in (row.reference_id, *row.target_ids))
    named |= dict.fromkeys(dataset.captions)
    ids = [image for image in named if image in dataset.images]
    with ThreadPoolExecutor(_READERS) as pool:
        checks = pool.map(lambda image: check_image(dataset.images.place(image), ImageLimits()).code, ids)
        return {image for image, code in zip(ids, checks, strict=True) if code not in USABLE}


def _remote(root: str, mirror: Path, path: Path) -> str:
    """The URI of a mirrored file; another path (an absolute `images` folder) is kept."""
    return storage.join(root, path.relative_to(mirror).as_posix()) if path.is_relative_to(mirror) else str(path)


def check_leaks(guard: Sequence[DataConfig], ids: Iterable[str], allow: bool, what: str) -> dict[str, Any]:
    """Refuse images of the named benchmarks' val and test splits.

    Returns: Entries for a manifest's `extra`: none without a guard, else the record under `guard`.

    Raises DataError with the list of images, unless `allow`; or when a benchmark cannot be read.
    """
    guards: dict[str, frozenset[str]] = {}
    for config in guard:
        dataset = open_dataset(config)
        guards[dataset.name] = guards.get(dataset.name, frozenset()) | dataset.guarded_ids
    return {"guard": refuse_leaks(ids, guards, allow, what)} if guards else {}


def guard_inputs(record: dict[str, Any]) -> dict[str, str]:
    """The record as an input of a stage, so that artifacts with and without the guard differ."""
    return {"guard": stable_id(canonical(record))} if record else {}


def part_ids(dataset: CirDataset, parts: tuple[str, ...]) -> Texts:
    """Ids of the images in some parts of a data set, each once, in the data set's order.

    The labelled part is what triplets and captions name; labelled, pool and gallery together are all images.
    """
    images = dataset.images.ids
    if set(parts) >= {"labelled", "pool", "gallery"}:
        return images
    named: list[Iterable[str]] = []
    if "labelled" in parts:
        named += [dataset.captions, (image for item in dataset.triplets for image in item.images)]
    if "pool" in parts:
        named.append(dataset.pool_ids)
    if "gallery" in parts:
        named.append(dataset.gallery_ids)
    if "gallery" in parts or "references" in parts:
        named.append(item.reference_id for item in dataset.queries)
    wanted = np.zeros(len(images) + 1, bool)
    names = chain.from_iterable(named)
    while some := list(islice(names, _TOGETHER)):
        wanted[images.places(some)] = True  # an id that is not there, -1, marks the last place
    return Texts(images.column.filter(pa.array(wanted[:-1])))


def list_images(data: DataConfig, parts: tuple[str, ...]) -> ImageList:
    """The images of some parts; no image is opened. Raises DataError when the parts hold no image."""
    dataset = open_dataset(data)
    ids = part_ids(dataset, parts)
    if not ids:
        raise DataError(f"No image in the parts {', '.join(parts)} of {dataset.describe()}. Name parts that it has.")
    boxes = dataset.images.boxes
    cut = (repr(boxes[image]) for image in ids if image in boxes) if boxes else ()
    return ImageList(ids, dataset.images.places(ids), stable_id_of(chain(("images",), ids, cut)))


def asked_digest(dataset: CirDataset) -> str:
    """Digest of what is asked of a data set and searched in it: its queries and galleries."""
    galleries = [part for name, ids in sorted(dataset.galleries.items()) for part in (name, *sorted(ids))]
    return stable_id(*dataset.queries, "gallery", *sorted(dataset.gallery_ids), *galleries)


def captioned_digest(dataset: CirDataset, ids: Sequence[str], limits: ImageLimits) -> str:
    """Digest of captioned images: ids, captions and the bytes of the pictures."""
    captions = (dataset.captions.get(name, "") for name in ids)
    contents = each_content(dataset.images.places(ids), limits)
    return stable_id_of(chain(ids, ("captions",), captions, ("contents",), contents))


def contents_of(places: Sequence[str], limits: ImageLimits) -> list[str]:
    """What `each_content` gives."""
    return list(each_content(places, limits))


def each_content(places: Sequence[str], limits: ImageLimits) -> Iterator[str]:
    """Digests of the bytes at places (`Place.text`), read by threads; empty for unreadable ones.

    Every byte is read, since sizes and dates can be kept by a copy; nothing is decoded.
    """

    def digest(text: str) -> str:
        try:
            return picture_digest(read_place(Place.parse(text), limits))
        except (ArtifactError, DataError):
            return ""

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(places), _TOGETHER):
            yield from pool.map(digest, places[start : start + _TOGETHER])


def _mirror(root: str, folder: Path) -> None:
    """A local folder with the tables of a remote data set and the first bytes of each picture."""
    names = storage.list_files(root)
    if not names:
        raise DataError(f"There is nothing at {root!r}; correct the URI, or upload the data set there.")
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(storage.read_bytes(storage.join(root, name)) if is_foreign(path.name) else b"")
