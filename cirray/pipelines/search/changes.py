"""Changes a gallery from the command line, beside the services that show it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cirray.catalogue.change import Change
from cirray.catalogue.encoding import Decoded, PictureEncoder
from cirray.catalogue.opening import Description, describe
from cirray.catalogue.parquet import SUFFIXES, VectorFile
from cirray.catalogue.rows import Rows, rows_of
from cirray.catalogue.table import Catalogue
from cirray.core import storage
from cirray.core.artifacts import read_manifest
from cirray.core.errors import ConfigError, DataError
from cirray.core.log import get_logger
from cirray.core.progress import progress
from cirray.data.changes import Seen, compare
from cirray.data.config import ImageLimits
from cirray.data.images import read_place
from cirray.data.listing import list_pictures, picture_ids
from cirray.data.places import Place
from cirray.image_text import load_models
from cirray.index.metadata import Columns
from cirray.index.store import LIVING, check_encoder
from cirray.pipelines.data.datasets import contents_of
from cirray.pipelines.search.living_config import AddRun, CompactRun, RemoveRun
from cirray.pipelines.search.metadata import metadata_for

_LOGGER = get_logger("pipelines.gallery")
_GROUP = 2_000


@dataclass(frozen=True)
class Changed:
    """What a command did to a gallery."""

    gallery: str
    counts: Mapping[str, int]
    rejected: tuple[tuple[str, str], ...] = ()
    """Ids and reasons."""

    def text(self) -> str:
        """In words."""
        told = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count) or "nothing to do"
        return "\n".join(
            [f"{self.gallery}: {told}", *(f"  rejected {name}: {why}" for name, why in self.rejected[:20])]
        )

    @property
    def exit_status(self) -> int:
        """3 where some were rejected."""
        return 3 if self.rejected else 0


def run_add(run: AddRun) -> Changed:
    """Add pictures of a folder, one picture, or the vectors of a Parquet file.

    Every group of `batch` images is one commit, so a killed run has added the groups before, and the next run of the
    same command encodes the others alone.

    Raises ArtifactError: there is no such gallery, or no checkpoint; ConfigError: no source; DataError: the source is
    missing, or holds nothing that can be added; IndexMismatchError: the checkpoint did not make the gallery;
    StoreError: the gallery cannot be written.
    """
    if not run.source:
        raise ConfigError("Nothing to add: name a folder of pictures, a picture, or a Parquet file of vectors.")
    described, table = describe(run.gallery), Catalogue.open(run.gallery, patient=True)
    if storage.without_query(run.source).lower().endswith(SUFFIXES):
        return _add_vectors(run, described, table)
    source = Path(run.source).expanduser()
    if not source.exists():
        raise DataError(f"{run.source!r} does not exist (looked at {str(source.absolute())!r}).")
    return _add_pictures(run, described, table, source)


def run_remove(run: RemoveRun) -> Changed:
    """Remove images by id, or those that a filter names.

    Raises ArtifactError: there is no such gallery; ConfigError: no id and no filter; DataError: an id that the gallery
    has not (then nothing is removed), or a filter that does not fit; StoreError: the gallery cannot be written.
    """
    if not run.ids and not run.where:
        raise ConfigError("Nothing to remove: name ids, or where=FILTER.")
    described, table = describe(run.gallery), Catalogue.open(run.gallery, patient=True)
    rows, _ = rows_of(table.since(0), described.shape)
    matching = () if run.ids else np.flatnonzero(Columns(rows.ids, rows.metadata).mask(run.where))
    names = _named(rows, run.ids) if run.ids else [rows.ids[place] for place in matching]
    _remove(table, names)
    return Changed(run.gallery, {"removed": len(names)})


def run_compact(run: CompactRun) -> Changed:
    """Write small files together and drop outdated rows.

    Raises ArtifactError: there is no such gallery; StoreError: the gallery cannot be written.
    """
    describe(run.gallery)
    return Changed(
        run.gallery, {"outdated rows dropped": Catalogue.open(run.gallery, patient=True).compact(run.keep_s)}
    )


def _named(rows: Rows, ids: Sequence[str]) -> list[str]:
    unknown = next((name for name in ids if name not in rows.places), None)
    if unknown is not None:
        raise DataError(f"The gallery has no image {unknown[:80]!r}. It holds {len(rows):,}; nothing was removed.")
    return list(dict.fromkeys(ids))


def _add_pictures(run: AddRun, described: Description, table: Catalogue, source: Path) -> Changed:
    files = _files(source)
    ids = [run.prefix + name for name in picture_ids([name for name, _ in files])]
    rows, _ = rows_of(table.since(0), described.shape)
    contents = dict(zip(rows.ids, rows.facts["content"].to_pylist(), strict=True))
    names = dict(zip((name for name, _ in files), ids, strict=True))
    told = _metadata(run, table, files, ids)
    before = [Seen(name, "", contents[image]) for name, image in names.items() if image in contents]
    found = compare(files, before, lambda paths: contents_of([Place(path).text() for path in paths], run.limits))
    todo = [(names[name], path) for name, path in files if name not in found.same]
    rejected: list[tuple[str, str]] = []
    known = _Known(rows, told)
    written = list(_encoded(run, described, table, todo, rejected, known)) if todo else []
    _retell(table, known, [names[name] for name in found.same])
    gone = _without_file(rows, source, {os.path.abspath(path) for _, path in files}) if run.gone else []
    _remove(table, gone)
    replaced = sum(name in contents for name in written)
    counts = {
        "added": len(written) - replaced, "replaced": replaced, "as before": len(found.same), "removed": len(gone),
        "rejected": len(rejected),
    }  # fmt: skip
    return Changed(run.gallery, counts, tuple(rejected))


@dataclass(frozen=True)
class _Known:
    """What a gallery holds, and the metadata that a file tells of some of its images."""

    rows: Rows
    told: Mapping[str, Mapping[str, Any]]

    def values(self, image_id: str) -> dict[str, Any]:
        """Metadata of an image as it is to be: what the file tells over what the gallery had."""
        return {**self.before(image_id), **self.told.get(image_id, {})}

    def before(self, image_id: str) -> dict[str, Any]:
        """Metadata of an image as it is."""
        place = self.rows.places.get(image_id)
        return {} if place is None else self.rows.metadata.slice(place, 1).to_pylist()[0]


def _metadata(
    run: AddRun, table: Catalogue, files: Sequence[tuple[str, str]], ids: Sequence[str]
) -> Mapping[str, Mapping[str, Any]]:
    """Values by id of the file of metadata; columns that are new are added to the table."""
    if not run.metadata:
        return {}
    short = dict(zip((name.removeprefix(run.prefix) for name in ids), ids, strict=True))
    found, notes = metadata_for(run.metadata, [*short], dict(zip(short, (name for name, _ in files), strict=True)))
    for note in notes:
        _LOGGER.info(note)
    known = table.columns
    table.add_columns({item.name: item.type for item in found.schema if item.name not in known})
    rows = zip(short.values(), found.to_pylist(), strict=True)
    return {image: values for image, values in rows if any(value is not None for value in values.values())}


def _retell(table: Catalogue, known: _Known, ids: Sequence[str]) -> None:
    """Write images whose pictures are as before and whose metadata is not."""
    rows = known.rows
    told = [name for name in ids if name in known.told]
    changed = [name for name in told if known.values(name) != {**dict.fromkeys(known.told[name]), **known.before(name)}]
    for start in range(0, len(changed), _GROUP):
        changes = list[Change]()
        for name in changed[start : start + _GROUP]:
            place = rows.places[name]
            facts = rows.facts.slice(place, 1).to_pylist()[0]
            picture = table.picture(int(rows.numbers_N[place])) if facts["width"] else b""
            size = (facts["width"], facts["height"])
            changes.append(Change(
                name, rows.tokens_NQD[place], picture, size, facts["content"], facts["origin"], known.values(name)
            ))  # fmt: skip
        table.write(changes)


def _files(source: Path) -> list[tuple[str, str]]:
    """Names and paths of a folder's pictures, or of the one picture."""
    if not source.is_dir():
        return [(source.name, str(source))]
    listing = list_pictures(source)
    if not listing.pictures:
        raise DataError(f"The folder {str(source)!r} holds no image. {' '.join(listing.notes())}".rstrip())
    return listing.pictures


def _encoded(
    run: AddRun, described: Description, table: Catalogue, todo: Sequence[tuple[str, str]],
    rejected: list[tuple[str, str]], known: "_Known",
) -> Iterator[str]:  # fmt: skip
    """Encode pictures and write them in groups; gives the ids that were written."""
    checkpoint = run.checkpoint or str(read_manifest(run.gallery, LIVING).config["checkpoint"])
    encoder, vision, transform = load_models(checkpoint, run.device)
    towers = (described.meta.vision_digest, vision.digest)
    check_encoder(described.meta.encoder_digest, encoder.index_digests, run.gallery, towers)
    made = PictureEncoder(encoder, vision, transform, described.thumbnail_size, run.device, run.limits)
    with progress("add pictures", len(todo), "images") as advance:
        for start in range(0, len(todo), run.batch):
            some = todo[start : start + run.batch]
            changes = made.encode(list(_decoded(made, run.limits, some, rejected, known)))
            if changes:
                table.load(changes)
            advance(len(some))
            yield from (change.id for change in changes)


def _decoded(
    made: PictureEncoder,
    limits: ImageLimits,
    some: Sequence[tuple[str, str]],
    rejected: list[tuple[str, str]],
    known: "_Known",
) -> Iterator[Decoded]:
    for name, path in some:
        try:
            yield made.decode(name, read_place(Place(path), limits), os.path.abspath(path), known.values(name), path)
        except DataError as error:
            rejected.append((name, str(error)))


def _without_file(rows: Rows, source: Path, files: set[str]) -> list[str]:
    """Ids of images that were made of a file below the folder which is no more."""
    below = os.path.join(os.path.abspath(source), "")
    origins = zip(rows.ids, rows.facts["origin"].to_pylist(), strict=True)
    return [name for name, origin in origins if origin.startswith(below) and origin not in files]


def _add_vectors(run: AddRun, described: Description, table: Catalogue) -> Changed:
    """Add the rows of a Parquet file; the first that cannot be kept ends it, and the rows before stay."""
    file, count = VectorFile(run.source, described.shape, table.columns, run.prefix), 0
    with progress("add vectors", file.rows, "rows") as advance:
        for changes in file.groups():
            table.load(changes)
            count += len(changes)
            advance(len(changes))
    return Changed(run.gallery, {"added or replaced": count})


def _remove(table: Catalogue, names: Sequence[str]) -> None:
    for start in range(0, len(names), _GROUP):
        table.write([Change(name) for name in names[start : start + _GROUP]])
