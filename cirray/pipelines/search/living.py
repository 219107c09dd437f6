"""Makes a gallery that is written to, from an index or empty."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
import pyarrow as pa
from PIL import Image

from cirray.catalogue.change import Change
from cirray.catalogue.encoding import Decoded, PictureEncoder
from cirray.catalogue.made import TABLE
from cirray.catalogue.opening import Description
from cirray.catalogue.table import Catalogue
from cirray.core import storage
from cirray.core.arrays import read_array
from cirray.core.artifacts import Manifest, Stage, check_place, is_complete, open_stage, read_manifest
from cirray.core.config import given
from cirray.core.log import get_logger
from cirray.core.unfinished import stage_function
from cirray.image_text import load_models
from cirray.index.config import IndexBackend
from cirray.index.latest import chosen
from cirray.index.pictures import size_of
from cirray.index.store import LIVING, PATCHES, TOKENS, GalleryIndex, IndexMeta, open_index, open_vectors
from cirray.index.texts import write_texts
from cirray.pipelines.search.living_config import ColumnKind, GalleryRun

COLUMN_TYPES: Mapping[ColumnKind, pa.DataType] = {
    "text": pa.string(), "texts": pa.list_(pa.string()), "number": pa.float64(), "integer": pa.int64(),
    "flag": pa.bool_(), "date": pa.date32(), "time": pa.timestamp("us"),
}  # fmt: skip
Columns = Mapping[str, pa.DataType]
_LOGGER = get_logger("pipelines.gallery")
_GROUP = 2_000
_USUAL_SIDE = 256


@stage_function
def run_gallery(run: GalleryRun) -> Manifest:
    """Make a gallery.

    Returns:
        Manifest of kind "gallery" with the count of images it begins with. One that is there already stays as it is,
        but for further metadata columns, which are added.

    Raises:
        ArtifactError: index or checkpoint are missing, or something else is at `out`.
        DataError: a column that is there has another type.
        IndexMismatchError: the checkpoint did not make the index.
        StoreError: the table cannot be written.
    """
    others = (name for name in GalleryRun.model_fields if name not in ("root", "out", "columns"))
    if run.columns and is_complete(run.out) and not any(given(run, name) for name in others):
        return _widened(run)
    run = _resolved(run)
    check_place(run, LIVING)
    stage = open_stage(run, LIVING)
    if stage.finished:
        return stage.finished
    described, columns, changes, source = _begin(run)
    write_texts(stage.local, source.texts if source else {})
    count = _fill(stage, described, columns, changes)
    return stage.publish({"images": count}, extra={**described.extra(), "examples": source.examples if source else ()})


def write_gallery(
    stage: Stage, ids: Sequence[str], meta: IndexMeta, backend: IndexBackend, thumbnail_size: int,
    pictures: Iterable[bytes] | None, files: Sequence[tuple[str, str]], metadata: pa.Table | None,
) -> Description:  # fmt: skip
    """Make the table of a stage whose folder holds `tokens.npy`, which it then does without.

    Args:
        stage: the stage.
        ids: one per row of the tokens.
        meta: what made them.
        backend: what will search them.
        thumbnail_size: longest side of the gallery's pictures.
        pictures: encoded pictures in row order; None: there are none.
        files: path and digest of each picture's file, empty texts where it has none; or nothing at all.
        metadata: any columns in row order; None: there are none.
    """
    storage.remove(storage.join(stage.work_uri, TABLE))  # of a killed run
    tokens_NQD = read_array(stage.local / TOKENS)
    described = Description(meta, (tokens_NQD.shape[1], tokens_NQD.shape[2]), backend, thumbnail_size)
    columns = {} if metadata is None else {item.name: item.type for item in metadata.schema}
    shown, named = iter(pictures or ()), files or [("", "")] * len(ids)
    kept = ((next(shown, b""), *named[row]) for row in range(len(ids)))
    _fill(stage, described, columns, _groups(ids, tokens_NQD, kept, metadata))
    for name in (TOKENS, PATCHES):
        (stage.local / name).unlink(missing_ok=True)
    return described


def _fill(stage: Stage, described: Description, columns: Columns, groups: Iterable[list[Change]]) -> int:
    """Make a stage's table of groups of images, a commit each; returns how many images that were."""
    table, count = Catalogue.create(stage.work_uri, described.shape, columns, patient=True), 0
    for group in groups:
        table.load(group)
        count += len(group)
    return count


def _widened(run: GalleryRun) -> Manifest:
    """The gallery that is there, with the columns of the run."""
    described = read_manifest(run.out, LIVING)
    new = Catalogue.open(run.out, patient=True).add_columns(
        {name: COLUMN_TYPES[kind] for name, kind in run.columns.items()}
    )
    _LOGGER.info("%s: %s", run.out, f"new columns: {', '.join(new)}" if new else "it has these columns already")
    return described


def _resolved(run: GalleryRun) -> GalleryRun:
    """The run with the index and checkpoint that are meant where none is named."""
    if run.index is None:
        return run
    checkpoint, index = chosen(run)
    return run.model_copy(update={"checkpoint": checkpoint, "index": index})


def _begin(run: GalleryRun) -> tuple[Description, Columns, Iterator[list[Change]], GalleryIndex | None]:
    """What the vectors are, the metadata columns, the images at the beginning in groups, and the index they are of."""
    encoder, vision, transform = load_models(run.checkpoint)
    columns = {name: COLUMN_TYPES[kind] for name, kind in run.columns.items()}
    if run.index is None:
        meta = IndexMeta(encoder.target_digest, vision.digest, encoder.config.similarity)
        grey = transform(Image.new("RGB", (transform.size, transform.size), "grey"))
        probe = PictureEncoder(encoder, vision, transform, 0).encode([Decoded("probe", grey, b"", "")])[0].tokens_QD
        assert probe is not None
        size = _USUAL_SIDE if run.thumbnail_size is None else run.thumbnail_size
        described = Description(meta, (probe.shape[0], probe.shape[1]), run.backend or IndexBackend(), size)
        return described, columns, iter(()), None
    config = read_manifest(run.index, "index").config
    gallery = open_index(run.index, encoder.index_digests, vision_digest=vision.digest)
    path, _ = open_vectors(run.index, encoder.index_digests, vision.digest)
    tokens_NQD = read_array(path)
    _, tokens, width = tokens_NQD.shape
    size = int(config["thumbnail_size"]) if run.thumbnail_size is None else run.thumbnail_size
    backend = run.backend or IndexBackend.model_validate(config["index"])
    own = {} if gallery.metadata is None else {item.name: item.type for item in gallery.metadata.schema}
    kept = (_kept(gallery, row) for row in range(len(gallery)))
    groups = _groups(gallery.ids, tokens_NQD, kept, gallery.metadata)
    return Description(gallery.meta, (tokens, width), backend, size), {**own, **columns}, groups, gallery


def _groups(
    ids: Sequence[str], tokens_NQD: np.ndarray, kept: Iterator[tuple[bytes, str, str]], metadata: pa.Table | None
) -> Iterator[list[Change]]:
    """Images in row order. `kept`: of each its encoded picture, and the path and digest of the picture's file."""
    for start in range(0, len(ids), _GROUP):
        some = ids[start : start + _GROUP]
        told = [{}] * len(some) if metadata is None else metadata.slice(start, _GROUP).to_pylist()
        yield [
            Change(name, np.asarray(tokens_NQD[start + at]), picture, size_of(picture), content, origin, told[at])
            for at, (name, (picture, origin, content)) in enumerate(zip(some, islice(kept, len(some)), strict=True))
        ]


def _kept(gallery: GalleryIndex, row: int) -> tuple[bytes, str, str]:
    """What an index keeps of an image's picture."""
    path, content = (gallery.originals and gallery.originals.find(row)) or ("", "")
    return gallery.pictures.read(row) if gallery.pictures else b"", str(path), content
