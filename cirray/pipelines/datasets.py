"""Data sets wherever they lie: local folders, or below any URI, of which only tables and names are fetched."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs as pafs

from cirray.core import storage
from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.data.config import DataConfig
from cirray.data.folder import SUFFIXES
from cirray.data.places import Place
from cirray.data.readers import read_dataset
from cirray.types import stable_id

_OWN_STORAGE = ("webdataset", "huggingface")
"""Formats whose readers open URIs themselves; everything else is mirrored without its images."""


@dataclass(frozen=True)
class ImageList:
    """Ids and places (`Place.text`) of images, in the data set's order; `digest` covers names and sizes."""

    ids: tuple[str, ...]
    places: tuple[str, ...]
    digest: str


def open_dataset(data: DataConfig) -> CirDataset:
    """Read a data set; below a URI the image table holds URIs, and no image is downloaded.

    Raises:
        DataError: as the reader, or when nothing stands at the URI.
    """
    settings = getattr(data, data.format, None)
    root = str(getattr(settings, "root", ""))
    if settings is None or storage.is_local(root) or data.format in _OWN_STORAGE:
        return read_dataset(data)
    with tempfile.TemporaryDirectory(prefix="cirray-") as folder:
        mirror = Path(folder).resolve() / (root.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "data")
        _mirror(root, mirror)
        local = data.model_copy(update={data.format: settings.model_copy(update={"root": str(mirror)})})
        dataset = read_dataset(local)
    remote = {image: _remote(root, mirror, Path(path)) for image, path in dataset.images.paths.items()}
    return replace(dataset, images=replace(dataset.images, paths=remote))


def _remote(root: str, mirror: Path, path: Path) -> str:
    """The URI of a mirrored file; a path elsewhere (an absolute `images` folder) stays what it is."""
    return storage.join(root, path.relative_to(mirror).as_posix()) if path.is_relative_to(mirror) else str(path)


def part_ids(dataset: CirDataset, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Ids of the images in some parts of a data set, each once, in the data set's order.

    The labelled part is whatever triplets and captions name; labelled, pool and gallery together are every image.
    """
    if set(parts) >= {"labelled", "pool", "gallery"}:
        return dataset.images.ids
    wanted: set[str] = set()
    if "labelled" in parts:
        wanted.update(dataset.captions)
        wanted.update(image for item in dataset.triplets for image in (item.reference_id, item.target_id))
    if "pool" in parts:
        wanted.update(dataset.pool_ids)
    if "gallery" in parts:
        wanted.update(dataset.gallery_ids)
    if "gallery" in parts or "references" in parts:
        wanted.update(item.reference_id for item in dataset.queries)
    return tuple(image for image in dataset.images.ids if image in wanted)


def list_images(data: DataConfig, parts: tuple[str, ...]) -> ImageList:
    """The images of some parts, with a digest of their ids, names and sizes.

    Raises:
        DataError: when the parts hold no image.
    """
    dataset = open_dataset(data)
    ids = part_ids(dataset, parts)
    if not ids:
        raise DataError(f"No image in the parts {', '.join(parts)} of {dataset.describe()}. Name parts that it has.")
    places = [dataset.images.place(image) for image in ids]
    sizes = _sizes(str(getattr(getattr(data, data.format, None), "root", "")), places)
    boxes = [repr(place.box) for place in places if place.box is not None]
    digest = stable_id("images", *(part for row in zip(ids, sizes, strict=True) for part in row), *boxes)
    return ImageList(ids, tuple(place.text() for place in places), digest)


def _sizes(root: str, places: Sequence[Place]) -> list[int]:
    """Bytes of each image; -1 where the file is missing, which embedding then rejects with a reason."""
    known: dict[str, int] = {}
    if not storage.is_local(root):
        filesystem, base = storage.resolve(root)
        found = filesystem.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
        files = [info for info in found if info.type == pafs.FileType.File]
        known = {storage.join(root, info.path.removeprefix(base).lstrip("/")): int(info.size) for info in files}
    return [place.span[1] if place.span else known.get(place.uri, _size(place.uri)) for place in places]


def _size(uri: str) -> int:
    try:
        return Path(uri).stat().st_size
    except OSError:
        return -1


def _mirror(root: str, folder: Path) -> None:
    """A local folder with the tables of a remote data set, and an empty file for each of its images."""
    names = storage.list_files(root)
    if not names:
        raise DataError(f"Nothing stands at {root!r}; correct the URI, or upload the data set there.")
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_image = path.suffix.lower() in SUFFIXES
        path.write_bytes(b"" if is_image else storage.read_bytes(storage.join(root, name)))
