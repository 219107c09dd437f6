"""Makes a gallery that is written to, from an index or empty."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cirray.catalogue.encoding import Decoded, PictureEncoder
from cirray.catalogue.opening import Description
from cirray.catalogue.table import Catalogue, Change
from cirray.core.artifacts import Manifest, check_place, open_stage, read_manifest
from cirray.core.unfinished import stage_function
from cirray.image_text import load_models
from cirray.index.config import IndexBackend
from cirray.index.latest import chosen
from cirray.index.pictures import size_of
from cirray.index.store import LIVING, GalleryIndex, IndexMeta, open_index, open_vectors
from cirray.pipelines.search.living_config import ColumnKind, GalleryRun

COLUMN_TYPES: Mapping[ColumnKind, pa.DataType] = {
    "text": pa.string(), "texts": pa.list_(pa.string()), "number": pa.float64(), "integer": pa.int64(),
    "flag": pa.bool_(), "date": pa.date32(), "time": pa.timestamp("us"),
}  # fmt: skip
Columns = Mapping[str, pa.DataType]
_GROUP = 2_000
_USUAL_SIDE = 256


@stage_function
def run_gallery(run: GalleryRun) -> Manifest:
    """Make a gallery.

    Returns:
        Manifest of kind "gallery" with the count of images it begins with. One that is there already stays as it is.

    Raises:
        ArtifactError: index or checkpoint are missing, or something else is at `out`.
        IndexMismatchError: the checkpoint did not make the index.
    """
    run = _resolved(run)
    check_place(run, LIVING)
    stage = open_stage(run, LIVING)
    if stage.finished:
        return stage.finished
    described, columns, changes = _begin(run)
    stage.local  # noqa: B018 - the folder is made
    table, count = Catalogue.create(stage.work_uri, described.shape, columns), 0
    for group in changes:
        table.write(group)
        count += len(group)
    return stage.publish({"images": count}, extra=described.extra())


def _resolved(run: GalleryRun) -> GalleryRun:
    """The run with the index and checkpoint that are meant where none is named."""
    if run.index is None:
        return run
    checkpoint, index = chosen(run)
    return run.model_copy(update={"checkpoint": checkpoint, "index": index})


def _begin(run: GalleryRun) -> tuple[Description, Columns, Iterator[list[Change]]]:
    """What the vectors are, the metadata columns, and the images at the beginning in groups."""
    encoder, vision, transform = load_models(run.checkpoint)
    columns = {name: COLUMN_TYPES[kind] for name, kind in run.columns.items()}
    if run.index is None:
        meta = IndexMeta(encoder.target_digest, vision.digest, encoder.config.similarity)
        grey = transform(Image.new("RGB", (transform.size, transform.size), "grey"))
        probe = PictureEncoder(encoder, vision, transform, 0).encode([Decoded("probe", grey, b"", "")])[0].tokens_QD
        assert probe is not None
        size = _USUAL_SIDE if run.thumbnail_size is None else run.thumbnail_size
        described = Description(meta, (probe.shape[0], probe.shape[1]), run.backend or IndexBackend(), size)
        return described, columns, iter(())
    config = read_manifest(run.index, "index").config
    gallery = open_index(run.index, encoder.index_digests, vision_digest=vision.digest)
    path, _ = open_vectors(run.index, encoder.index_digests, vision.digest)
    tokens_NQD = np.load(path, mmap_mode="r", allow_pickle=False)
    _, tokens, width = tokens_NQD.shape
    size = int(config["thumbnail_size"]) if run.thumbnail_size is None else run.thumbnail_size
    backend = run.backend or IndexBackend.model_validate(config["index"])
    own = {} if gallery.metadata is None else {item.name: item.type for item in gallery.metadata.schema}
    groups = (_copied(gallery, tokens_NQD, start) for start in range(0, len(gallery), _GROUP))
    return Description(gallery.meta, (tokens, width), backend, size), {**own, **columns}, groups


def _copied(gallery: GalleryIndex, tokens_NQD: np.ndarray, start: int) -> list[Change]:
    """Images of an index from a row on."""
    ids = gallery.ids[start : start + _GROUP]
    told = [{}] * len(ids) if gallery.metadata is None else gallery.metadata.slice(start, _GROUP).to_pylist()
    return [
        Change(name, np.asarray(tokens_NQD[start + at]), **_files(gallery, start + at), metadata=told[at])
        for at, name in enumerate(ids)
    ]


def _files(gallery: GalleryIndex, row: int) -> dict[str, Any]:
    """What an index keeps of an image's picture."""
    picture = gallery.pictures.read(row) if gallery.pictures else b""
    path, content = (gallery.originals and gallery.originals.find(row)) or ("", "")
    return {"picture": picture, "size": size_of(picture), "content": content, "origin": str(path)}
