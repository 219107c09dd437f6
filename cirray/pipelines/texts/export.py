"""Triplets and their pictures for others, written a picture at a time: a data set for the hub, or another layout."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from cirray.core.artifacts import Manifest, Stage, check_place, is_complete, localize, open_stage
from cirray.core.errors import ArtifactError, DataError
from cirray.core.extras import require
from cirray.core.ids import ABSENT, Ids
from cirray.core.progress import Advance, progress
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import ImageTable
from cirray.data.config import ImageLimits
from cirray.data.images import open_place, picture_digest, read_place
from cirray.data.kinds import split_suffix
from cirray.data.readers import read_dataset
from cirray.data.shared import FORMAT, IMAGES, MARKER, TRIPLETS
from cirray.evaluation.pages import render
from cirray.pipelines.texts.config import ExportTripletsRun
from cirray.pipelines.texts.layouts import check_cirr_splits, write_cirr, write_files, write_megapairs
from cirray.pipelines.weights.hub import check_id, push_folder
from cirray.triplets.schema import to_triplets
from cirray.triplets.store import TripletStore
from cirray.types import part_name

DATASET, CARD = "dataset", "README.md"
_TOGETHER = 8 * 2**20
"""Bytes of pictures that are held before they are written."""
_READERS, _AHEAD = 8, 32
"""Threads that read pictures, and how many pictures they read ahead."""


@stage_function
def run_export_triplets(run: ExportTripletsRun) -> Manifest:
    """Write triplets and pictures in a layout, and upload them if asked to.

    Returns: Manifest of kind "dataset"; counts `triplets` and `images`, `extra` has the digests of both.

    Raises ArtifactError: the triplets are missing, another artifact is at `out`, or the hub takes nothing; ConfigError:
    `push` is no hub id, or the library `datasets` is not installed; DataError: a picture that a triplet names is not in
    the data set, or cannot be read; a split that the layout does not have.
    """
    if run.layout == "datasets":
        require("datasets", "hub", "cirray export triplets layout=datasets")
    if run.push:
        check_id(run.push)
    made = _exported(run)
    if run.push:
        push_folder(localize(run.out, DATASET), run.push, run.private, "dataset")
    return made


def _exported(run: ExportTripletsRun) -> Manifest:
    check_place(run, DATASET)
    store = TripletStore.open(run.triplets)
    store.refuse_doubled()
    splits = store.splits()
    if run.layout == "cirr":
        check_cirr_splits(splits)
    ids, images = Ids(store.images()), read_dataset(run.data).images
    lacking = np.flatnonzero(images.ids.places(ids) == ABSENT).tolist()
    if lacking or not ids:
        what = f"{len(lacking):,} of the {len(ids):,} pictures that the triplets name are not in the data set, e.g. "
        raise DataError(
            f"{what}{ids[lacking[0]]!r}. Name it with data=..." if ids else f"{run.triplets!r} has no triplet."
        )
    pictures = _Pictures(images, ids)
    stage = _opened(run, store, pictures)
    if stage.finished:
        return stage.finished
    counts = {"triplets": len(store), "images": len(ids)}
    with progress("export pictures", len(ids), "images") as advance:
        if run.layout == "datasets":
            write_triplets(stage.local / TRIPLETS, store.pieces())
            _write_pictures(stage.local / IMAGES, pictures, run.file_mb * 2**20, advance)
        else:
            paths = write_files(stage.local, pictures, advance)
            pictures.refuse(stage)
            (write_cirr if run.layout == "cirr" else write_megapairs)(stage.local, store, paths)
    pictures.refuse(stage)
    digests = {"triplets": store.manifest.digest, "pictures": pictures.digest}
    if run.layout == "datasets":
        marker = {"kind": TRIPLETS, "format": FORMAT, "digests": digests, "counts": counts}
        (stage.local / MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n")
    _write_card(run, stage, store, sorted(splits), counts)
    known = replace(stage, inputs={**stage.inputs, "data": pictures.digest})
    return known.publish(counts, extra={"digests": digests})


def _opened(run: ExportTripletsRun, store: TripletStore, pictures: "_Pictures") -> Stage:
    """The stage. What is there is compared by the pictures' contents; else these are known when they are written, so
    that each is read once, and what a killed run has left is thrown away.
    """
    inputs = {"triplets": store.manifest.digest, "data": ""}
    if is_complete(run.out):
        for _ in pictures:
            pass
        pictures.refuse()
        return open_stage(run, DATASET, {**inputs, "data": pictures.digest})
    stage = open_stage(run, DATASET, inputs)
    if not stage.fresh:
        stage.discard()
        stage = open_stage(run, DATASET, inputs)
    return stage


class _Pictures:
    """Pictures of a data set, some read at a time, each as (id, file as it is, suffix); of one that is cut from another
    a PNG. Those that cannot be read are passed over and counted.
    """

    def __init__(self, images: ImageTable, ids: Ids) -> None:
        """Read nothing yet."""
        self._images, self._ids, self.bad, self.digest = images, ids, list[str](), ""

    def __iter__(self) -> Iterator[tuple[str, bytes, str]]:
        """Read all; then `digest` is that of their ids and contents."""
        told = hashlib.blake2b(digest_size=8)
        with ThreadPoolExecutor(_READERS) as pool:
            for start in range(0, len(self._ids), _AHEAD):
                names = self._ids[start : start + _AHEAD]
                for name, found in zip(names, pool.map(self._read, names), strict=True):
                    if found is None:
                        self.bad.append(name)
                    else:
                        data, suffix, content = found
                        told.update(f"{name}\x1f{content}\x1f".encode())
                        yield name, data, suffix
        self.digest = told.hexdigest()

    def refuse(self, stage: Stage | None = None) -> None:
        """Throw away what was written, and raise a DataError naming one that cannot be read, if there are any."""
        if self.bad:
            if stage is not None:
                stage.discard()
            raise DataError(
                f"{len(self.bad):,} of the {len(self._ids):,} pictures cannot be read, e.g. {self.bad[0]!r}. "
                "See cirray doctor."
            )

    def _read(self, name: str) -> tuple[bytes, str, str] | None:
        """File, suffix and digest of the file that it comes from; None where that cannot be read."""
        place, limits = self._images.place(name), ImageLimits()
        try:
            data = read_place(place, limits)
        except (ArtifactError, DataError):
            return None
        content = picture_digest(data)
        if place.box is not None:
            stream = io.BytesIO()
            open_place(place, name=name).save(stream, "PNG")
            return stream.getvalue(), ".png", content
        if len(data) > limits.max_bytes:
            raise DataError(f"{place.name(name)!r} has more than {limits.max_bytes:,} bytes. Make it smaller.")
        suffix = "" if place.span else split_suffix(place.uri)[1]
        return data, "" if name.endswith(suffix) else suffix, content


def write_triplets(folder: Path, pieces: Iterable[pa.Table]) -> None:
    """Files a split; named numbers become a list, which is all that the library `datasets` knows of maps."""
    folder.mkdir(parents=True, exist_ok=True)
    listed, written = pa.list_(pa.struct([("name", pa.string()), ("value", pa.float64())])), Counter[str]()
    for piece in pieces:
        at = piece.schema.get_field_index("scores")
        pairs = [[{"name": name, "value": value} for name, value in row] for row in piece.column(at).to_pylist()]
        table = piece.set_column(at, "scores", pa.array(pairs, listed))
        for split in pc.unique(table.column("split")).to_pylist():
            rows = table.filter(pc.equal(table.column("split"), split))
            pq.write_table(rows, folder / f"{split}-{written[split]:05d}.parquet", compression="zstd")
            written[split] += 1


def _write_pictures(folder: Path, pictures: _Pictures, most: int, advance: Advance) -> None:
    """Files of at most about `most` bytes; compression would gain nothing."""
    import datasets

    schema = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()}).arrow_schema
    folder.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    written, number = 0, 0
    try:
        for rows, size in _blocks(pictures, min(most, _TOGETHER)):
            if writer is None or written + size > most:
                if writer is not None:
                    writer.close()
                writer = pq.ParquetWriter(folder / f"{part_name(number)}.parquet", schema, compression="none")
                written, number = 0, number + 1
            writer.write_table(pa.Table.from_pylist(rows, schema))
            written += size
            advance(len(rows), "")
    finally:
        if writer is not None:
            writer.close()


def _blocks(pictures: _Pictures, most: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Rows of some pictures at a time, and their bytes."""
    rows, size = list[dict[str, Any]](), 0
    for name, data, suffix in pictures:
        if rows and size + len(data) > most:
            yield rows, size
            rows, size = [], 0
        rows.append({"id": name, "image": {"bytes": data, "path": Path(name).name + suffix}})
        size += len(data)
    if rows:
        yield rows, size


def _write_card(
    run: ExportTripletsRun, stage: Stage, store: TripletStore, splits: Sequence[str], counts: dict[str, int]
) -> None:
    files = [{"split": split, "path": f"{TRIPLETS}/{split}-*.parquet"} for split in splits]
    configs = [
        {"config_name": TRIPLETS, "default": True, "data_files": files},
        {"config_name": IMAGES, "data_files": [{"split": "train", "path": f"{IMAGES}/*.parquet"}]},
    ]
    data = DatasetCardData(
        license=run.license, pretty_name=run.name, tags=["composed-image-retrieval", "cirray"],
        configs=configs if run.layout == "datasets" else None,
    )  # type: ignore[call-arg]  # fmt: skip
    samples = [(row.modification, row.source) for row in to_triplets(store.at(0, 5))]
    card = render(
        "triplets.jinja", metadata=data.to_yaml(), name=run.name, notes=run.notes, counts=counts, samples=samples,
        layout=run.layout, place=run.push or "this-folder", made=store.manifest,
    )  # fmt: skip
    (stage.local / CARD).write_text(card, encoding="utf-8")
