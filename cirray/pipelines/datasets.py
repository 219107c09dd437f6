"""Data sets wherever they lie: local folders, or below any URI, of which only tables and names are fetched."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from pyarrow import fs as pafs

from cirray.core import storage
from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset, ImageTable
from cirray.data.config import DataConfig
from cirray.data.folder import SUFFIXES
from cirray.data.readers import read_dataset
from cirray.types import stable_id


@dataclass(frozen=True)
class ImageList:
    """Ids and places (paths or URIs) of images, in the data set's order; `digest` covers names and sizes."""

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
    if settings is None or storage.is_local(root):
        return read_dataset(data)
    with tempfile.TemporaryDirectory(prefix="cirray-") as folder:
        mirror = Path(folder).resolve() / (root.split("?")[0].rstrip("/").rsplit("/", 1)[-1] or "data")
        _mirror(root, mirror)
        local = data.model_copy(update={data.format: settings.model_copy(update={"root": str(mirror)})})
        dataset = read_dataset(local)
    remote = {
        image: storage.join(root, Path(path).relative_to(mirror).as_posix())
        for image, path in dataset.images.paths.items()
    }
    return replace(dataset, images=ImageTable(remote))


def part_ids(dataset: CirDataset, parts: tuple[str, ...]) -> tuple[str, ...]:
    """Ids of the images in some parts of a data set, each once, in the data set's order.

    The labelled part is whatever triplets and captions name; all three parts together are every image.
    """
    if set(parts) == {"labelled", "pool", "gallery"}:
        return dataset.images.ids
    wanted: set[str] = set()
    if "labelled" in parts:
        wanted.update(dataset.captions)
        wanted.update(image for item in dataset.triplets for image in (item.reference_id, item.target_id))
    if "pool" in parts:
        wanted.update(dataset.pool_ids)
    if "gallery" in parts:
        wanted.update(dataset.gallery_ids)
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
    places = tuple(dataset.images.paths[image] for image in ids)
    sizes = _sizes(str(getattr(getattr(data, data.format, None), "root", "")), places)
    digest = stable_id("images", *(part for row in zip(ids, sizes, strict=True) for part in row))
    return ImageList(ids, places, digest)


def _sizes(root: str, places: tuple[str, ...]) -> list[int]:
    if storage.is_local(root):
        return [Path(place).stat().st_size for place in places]
    filesystem, base = storage.resolve(root)
    found = filesystem.get_file_info(pafs.FileSelector(base, recursive=True))
    known = {storage.join(root, info.path.removeprefix(base).lstrip("/")): info.size for info in found}
    return [int(known[place]) for place in places]


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
