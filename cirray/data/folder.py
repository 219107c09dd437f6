"""Read the open folder layout: folders of images, optionally with triplets, queries and captions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cirray.core.errors import DataError
from cirray.core.ids import Ids
from cirray.core.texts import parse_json
from cirray.data.benchmark import CirDataset, ImageTable, Protocol, count_note
from cirray.data.config import FolderConfig
from cirray.data.kinds import SUFFIXES as PICTURES
from cirray.data.listing import list_pictures, name_text, picture_ids
from cirray.data.names import NameFinder
from cirray.data.readers import READERS
from cirray.data.tables import TableRow, find_table, read_rows
from cirray.data.writing import MARKER
from cirray.types import Query, Triplet, stable_id

SPLITS = ("train", "val", "test")
_PARTS = ("labelled", "pool", "gallery")
_COMPOSED = ("reference", "target", "modification")
_OWN = ("triplets", "queries", "captions", "dataset")
"""Names of the layout's own files, which are not pictures."""


@READERS.register("folder")
def read_folder(config: FolderConfig) -> CirDataset:
    """Read a data set; no image is decoded.

    A row whose reference, target or text is null is left out, and named in the notes; an empty text is an error.

    An image's id is its path below its folder, without suffix where that is unique (`cirray.data.listing.picture_ids`);
    ids are unique over all folders. Tables may name an image with its suffix or with its folder in front, and in any
    spelling of blanks, accents and slashes (`cirray.data.names`). A root with images but none of the three folders is
    labelled part, pool and gallery at once. Without a gallery folder, queries search all images.

    Raises DataError naming the file, the line, the value and the remedy.
    """
    root = Path(config.root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"Data folder {str(root)!r} does not exist; give the folder that holds your images.")
    folders = {part: _part_folder(root, part, getattr(config, part)) for part in _PARTS}
    scan = _scan(root, folders)
    if not scan.images:
        raise DataError(
            f"No images found under {str(root)!r}; put them there or into {', '.join(_PARTS)}/. "
            + " ".join(f"{note[0].upper()}{note[1:]}." for note in scan.notes)
        )
    names = _Names(scan, tuple(folder for folder in folders.values() if folder), root)
    left: list[str] = []
    queries = _read_queries(_rows(root, "queries", config.queries, _COMPOSED, left), names)
    name = _name(root)
    images = ImageTable(scan.images)
    gallery = scan.members["gallery"] or (images.ids if queries and folders["gallery"] is None else ())
    return CirDataset(
        name=name,
        images=images,
        protocol=_protocol(name, config, len(gallery)),
        triplets=_read_triplets(_rows(root, "triplets", config.triplets, _COMPOSED, left), names),
        pool_ids=scan.members["pool"],
        queries=queries,
        gallery_ids=gallery,
        captions=_read_captions(_rows(root, "captions", config.captions, ("image", "caption"), left), names),
        notes=(*scan.notes, *count_note("rows left out because a needed value is null", left)),
    )


class _Names:
    """Resolves the names of images in tables."""

    def __init__(self, scan: "_Scan", folders: tuple[Path, ...], root: Path) -> None:
        self._finder, self._scan = NameFinder(scan.names, folders or (root,)), scan
        self._where = ", ".join(repr(folder.name) for folder in folders) or repr(str(root))

    def resolve(self, row: TableRow, column: str) -> str:
        """The id of the one image that a column names, or an error at its row."""
        return self._one(row, column, row.values.get(column), row.text(column))

    def resolve_all(self, row: TableRow, column: str) -> tuple[str, ...]:
        """The ids of a text or a list of texts, each once."""
        written, cleaned = row.values.get(column), row.texts(column)
        raw = written if isinstance(written, list) and len(written) == len(cleaned) else [written] * len(cleaned)
        return tuple(dict.fromkeys(self._one(row, column, *names) for names in zip(raw, cleaned, strict=True)))

    def _one(self, row: TableRow, column: str, written: object, cleaned: str) -> str:
        found = self._finder.find(*([written] if isinstance(written, str) else []), cleaned)
        if len(found) == 1:
            return found[0]
        if found:
            files = " or ".join(repr(self._scan.images[image]) for image in found[:3])
            row.fail(f"{column} image {cleaned!r} may be {files}; write the name as on disk, with its suffix.")
        row.fail(f"{column} image {cleaned!r} is not in {self._where}; add the file or correct the name.")


@dataclass(frozen=True)
class _Scan:
    """Content of the folders: paths and file names by id, ids by part, and notes."""

    images: dict[str, str]
    names: dict[str, str]
    members: dict[str, Sequence[str]]
    notes: tuple[str, ...]


def _part_folder(root: Path, part: str, value: str) -> Path | None:
    folder = root / Path(value).expanduser() if value else root
    if folder.is_dir():
        return folder
    if value != FolderConfig.model_fields[part].default:
        raise DataError(f"The {part} folder {str(folder)!r} does not exist; correct `folder.{part}` or create it.")
    return None


def _scan(root: Path, folders: dict[str, Path | None]) -> _Scan:
    places = folders if any(folders.values()) else dict.fromkeys(_PARTS, root)
    listings = {folder: list_pictures(folder) for folder in dict.fromkeys(places.values()) if folder is not None}
    if root in listings:
        listings[root].aside = [name for name in listings[root].aside if name.split(".")[0] not in _OWN]
    names: dict[str, str] = {}
    for name, path in (item for listing in listings.values() for item in listing.pictures):
        if names.setdefault(name, path) != path:
            raise DataError(f"Two images are called {name!r}: {names[name]!r} and {path!r}; rename one of them.")
    ids = dict(zip(names, picture_ids(list(names)), strict=True))
    inside = {folder: Ids(ids[name] for name, _ in listing.pictures) for folder, listing in listings.items()}
    members: dict[str, Sequence[str]] = {part: inside[folder] if folder else () for part, folder in places.items()}
    return _Scan(
        images={ids[name]: path for name, path in names.items()},
        names={image: name for name, image in ids.items()},
        members=members,
        notes=tuple(dict.fromkeys(note for listing in listings.values() for note in listing.notes())),
    )


def _table(root: Path, part: str, value: str) -> Path | None:
    """The file of a table, or None where the default name is absent."""
    path = root / Path(value).expanduser()
    present = path if path.is_file() else find_table(path, f"folder.{part}", tuple(PICTURES))
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
    reference, target = names.resolve(row, "reference"), names.resolve(row, "target")
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
        reference, targets = names.resolve(row, "reference"), names.resolve_all(row, "target")
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
        image_id = names.resolve(row, "image")
        if image_id in captions:
            row.fail(f"image {image_id!r} has a caption already; keep one.")
        captions[image_id] = row.text("caption")
    return captions


def _name(root: Path) -> str:
    marker = root / MARKER
    if not marker.is_file():
        return name_text(root.name)
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
