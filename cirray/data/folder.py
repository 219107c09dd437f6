"""Read the open folder layout: folders of images, with triplets, queries and captions where there are any."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cirray.core.errors import DataError
from cirray.core.texts import parse_json
from cirray.data.annotations import count_note
from cirray.data.benchmark import CirDataset, ImageTable, Protocol
from cirray.data.config import FolderConfig
from cirray.data.readers import READERS
from cirray.data.tables import TableRow, find_table, read_rows
from cirray.data.writing import MARKER
from cirray.types import Query, Triplet, stable_id

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
SPLITS = ("train", "val", "test")
_PARTS = ("labelled", "pool", "gallery")
_COMPOSED = ("reference", "target", "modification")


def read_folder(config: FolderConfig) -> CirDataset:
    """Read a data set; no image is decoded.

    A row whose reference, target or text is null is left out, and named in the notes; an empty text is an error.

    An image's id is its path below its folder, without suffix; ids are unique over all folders. Files may name an
    image with its suffix or with its folder in front. A root that holds images but none of the three folders is at
    once labelled part, pool and gallery. Without a gallery folder, queries search all images.

    Raises:
        DataError: naming the file, the line, the value and the remedy.
    """
    root = Path(config.root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"Data folder {str(root)!r} does not exist; give the folder that holds your images.")
    folders = {part: _part_folder(root, part, getattr(config, part)) for part in _PARTS}
    members, images = _scan(root, folders)
    if not images:
        kinds = ", ".join(SUFFIXES)
        raise DataError(f"No images ({kinds}) found under {str(root)!r}; put them there or into {', '.join(_PARTS)}/.")
    names = _Names(images, tuple(folder for folder in folders.values() if folder), root)
    left: list[str] = []
    queries = _read_queries(_rows(root, "queries", config.queries, _COMPOSED, left), names)
    name = _name(root)
    gallery = members["gallery"] or (tuple(images) if queries and folders["gallery"] is None else ())
    return CirDataset(
        name=name,
        images=ImageTable(images),
        protocol=_protocol(name, config, len(gallery)),
        triplets=_read_triplets(_rows(root, "triplets", config.triplets, _COMPOSED, left), names),
        pool_ids=members["pool"],
        queries=queries,
        gallery_ids=gallery,
        captions=_read_captions(_rows(root, "captions", config.captions, ("image", "caption"), left), names),
        notes=count_note("rows left out, a needed value being null", left),
    )


@READERS.register("folder")
def _read(config: FolderConfig) -> CirDataset:
    return read_folder(config)


def list_images(folder: Path) -> Iterator[tuple[str, str]]:
    """Id and absolute path of every image below a folder, sorted by path; hidden files and folders are passed over."""
    for parent, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                path = os.path.join(parent, name)
                yield os.path.splitext(os.path.relpath(path, folder))[0].replace(os.sep, "/"), path


@dataclass(frozen=True)
class _Names:
    """Finds the id meant by a name in a file: the id, with a suffix, with its folder, or as a path."""

    images: dict[str, str]
    folders: tuple[Path, ...]
    root: Path

    def resolve(self, row: TableRow, column: str, name: str) -> str:
        """The id that a name means, or an error at its row."""
        for candidate in self._candidates(name):
            if candidate in self.images:
                return candidate
        where = ", ".join(repr(folder.name) for folder in self.folders) or repr(str(self.root))
        row.fail(f"{column} image {name!r} is not in {where}; add the file or correct the name.")

    def _candidates(self, name: str) -> Iterator[str]:
        stem, suffix = os.path.splitext(name)
        plain = [name] + ([stem] if suffix.lower() in SUFFIXES else [])
        yield from plain
        for text in (item.replace("\\", "/").removeprefix("./") for item in plain):
            yield text
            for folder in self.folders:
                for prefix in (f"{folder.name}/", f"{folder.as_posix()}/"):
                    if text.startswith(prefix):
                        yield text.removeprefix(prefix)


def _part_folder(root: Path, part: str, value: str) -> Path | None:
    folder = root / Path(value).expanduser() if value else root
    if folder.is_dir():
        return folder
    if value != FolderConfig.model_fields[part].default:
        raise DataError(f"The {part} folder {str(folder)!r} does not exist; correct `folder.{part}` or create it.")
    return None


def _scan(root: Path, folders: dict[str, Path | None]) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    places = folders if any(folders.values()) else dict.fromkeys(_PARTS, root)
    found: dict[Path, tuple[str, ...]] = {}
    images: dict[str, str] = {}
    for folder in dict.fromkeys(folder for folder in places.values() if folder is not None):
        ids = []
        for image_id, path in list_images(folder):
            if images.setdefault(image_id, path) != path:
                raise DataError(
                    f"Two images have the id {image_id!r}: {images[image_id]!r} and {path!r}; rename one of them."
                )
            ids.append(image_id)
        found[folder] = tuple(ids)
    return {part: found.get(folder, ()) if folder else () for part, folder in places.items()}, images


def _table(root: Path, part: str, value: str) -> Path | None:
    """The file of a table, or None where the default name is absent."""
    path = root / Path(value).expanduser()
    present = path if path.is_file() else find_table(path, f"folder.{part}", SUFFIXES)
    if present is None and value != FolderConfig.model_fields[part].default:
        raise DataError(f"The {part} file {str(path)!r} does not exist; correct `folder.{part}`.")
    return present


def _rows(root: Path, part: str, value: str, needed: Sequence[str], left: list[str]) -> Iterator[TableRow]:
    """Rows of a table, none where there is no such file; those that lack a needed value go to `left`."""
    path = _table(root, part, value)
    for row in read_rows(path, needed) if path else ():
        if row.lacks(needed):
            left.append(f"{row.path.name} {row.place}")
        else:
            yield row


def _read_triplets(rows: Iterator[TableRow], names: _Names) -> tuple[Triplet, ...]:
    found: dict[str, Triplet] = {}
    places: dict[str, str] = {}
    for row in rows:
        triplet = _triplet(row, names)
        if triplet.triplet_id in found:
            row.fail(f"the same triplet as {places[triplet.triplet_id]}; remove one of the two.")
        found[triplet.triplet_id], places[triplet.triplet_id] = triplet, row.place
    return tuple(found.values())


def _triplet(row: TableRow, names: _Names) -> Triplet:
    reference = names.resolve(row, "reference", row.text("reference"))
    target = names.resolve(row, "target", row.text("target"))
    if reference == target:
        row.fail(f"reference and target are the same image {reference!r}; a triplet needs two.")
    text = row.text("modification")
    return Triplet(
        triplet_id=row.text("triplet_id", stable_id(reference, target, text)),
        reference_id=reference,
        target_id=target,
        modification=text,
        reverse_modification=row.text("reverse_modification", "") or None,
        split=row.choice("split", SPLITS, "train"),
        group_id=row.text("group", reference),
        weight=row.number("weight", 1.0),
        edit=row.text("edit", ""),
    )


def _read_queries(rows: Iterator[TableRow], names: _Names) -> tuple[Query, ...]:
    found: dict[str, Query] = {}
    for row in rows:
        reference = names.resolve(row, "reference", row.text("reference"))
        targets = tuple(dict.fromkeys(names.resolve(row, "target", name) for name in row.texts("target")))
        if reference in targets:
            row.fail(f"reference and target are the same image {reference!r}; a query needs two.")
        query = Query(
            row.text("query_id", f"line-{row.line}"), reference, row.text("modification"), targets, row.text("edit", "")
        )
        if query.query_id in found:
            row.fail(f"query_id {query.query_id!r} is used twice; give each query its own.")
        found[query.query_id] = query
    return tuple(found.values())


def _read_captions(rows: Iterator[TableRow], names: _Names) -> dict[str, str]:
    captions: dict[str, str] = {}
    for row in rows:
        image_id = names.resolve(row, "caption", row.text("image"))
        if image_id in captions:
            row.fail(f"image {image_id!r} has a caption already; keep one.")
        captions[image_id] = row.text("caption")
    return captions


def _name(root: Path) -> str:
    marker = root / MARKER
    if not marker.is_file():
        return root.name
    try:
        return str(parse_json(marker.read_bytes())["name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{str(marker)!r} is damaged ({error!r}); remove it or write the data set again.") from None


def _protocol(name: str, config: FolderConfig, gallery: int) -> Protocol:
    return Protocol(
        dataset=name,
        gallery_rule=f"{gallery} gallery images",
        reference_rule=config.reference_rule,
        ks=config.ks,
    )
