"""Triplets and their pictures for others, written a picture at a time: a data set for the hub, or another layout."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub import DatasetCardData

from cirray.core.artifacts import Manifest, Stage, localize, open_stage
from cirray.core.errors import DataError
from cirray.core.extras import require
from cirray.core.progress import Advance, progress
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import ImageTable
from cirray.data.config import ImageLimits
from cirray.data.images import open_place, read_place
from cirray.data.kinds import split_suffix
from cirray.data.readers import read_dataset
from cirray.data.shared import FORMAT, IMAGES, MARKER, TRIPLETS
from cirray.evaluation.pages import render
from cirray.pipelines.data.datasets import contents_of
from cirray.pipelines.texts.config import ExportTripletsRun
from cirray.pipelines.texts.layouts import check_cirr_splits, write_cirr, write_files, write_megapairs
from cirray.pipelines.weights.hub import check_id, push_folder
from cirray.triplets.schema import to_triplets
from cirray.triplets.store import TripletStore
from cirray.types import part_name, stable_id

DATASET, CARD = "dataset", "README.md"
_TOGETHER = 8 * 2**20
"""Bytes of pictures that are held before they are written."""


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
    store = TripletStore.open(run.triplets)
    store.refuse_doubled()
    splits = store.splits()
    if run.layout == "cirr":
        check_cirr_splits(splits)
    ids = store.images().to_pylist()
    images = read_dataset(run.data).images
    lacking = [name for name in ids if name not in images]
    if lacking or not ids:
        what = f"{len(lacking):,} of the {len(ids):,} pictures that the triplets name are not in the data set, e.g. "
        raise DataError(f"{what}{lacking[0]!r}. Name it with data=..." if ids else f"{run.triplets!r} has no triplet.")
    contents = contents_of([images.place(name).text() for name in ids], ImageLimits())
    if bad := [name for name, content in zip(ids, contents, strict=True) if not content]:
        raise DataError(
            f"{len(bad):,} of the {len(ids):,} pictures cannot be read, e.g. {bad[0]!r}. See cirray doctor."
        )
    digests = {"triplets": store.manifest.digest, "pictures": stable_id("pictures", *ids, *contents)}
    stage = open_stage(run, DATASET, {"triplets": digests["triplets"], "data": digests["pictures"]})
    if stage.finished:
        return stage.finished
    counts = {"triplets": len(store), "images": len(ids)}
    with progress("export pictures", len(ids), "images") as advance:
        if run.layout == "datasets":
            write_triplets(stage.local / TRIPLETS, store.pieces())
            _write_pictures(stage.local / IMAGES, images, ids, run.file_mb * 2**20, advance)
            marker = {"kind": TRIPLETS, "format": FORMAT, "digests": digests, "counts": counts}
            (stage.local / MARKER).write_text(json.dumps(marker, indent=2, sort_keys=True) + "\n")
        else:
            paths = write_files(stage.local, ((name, *_picture(images, name)) for name in ids), advance)
            rows = (row for piece in store.pieces() for row in to_triplets(piece))
            (write_cirr if run.layout == "cirr" else write_megapairs)(stage.local, rows, paths)
    _write_card(run, stage, store, sorted(splits), counts)
    return stage.publish(counts, extra={"digests": digests})


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


def _write_pictures(folder: Path, images: ImageTable, ids: Sequence[str], most: int, advance: Advance) -> None:
    """Files of at most about `most` bytes; compression would gain nothing."""
    import datasets

    schema = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image()}).arrow_schema
    folder.mkdir(parents=True, exist_ok=True)
    writer: pq.ParquetWriter | None = None
    written, number = 0, 0
    try:
        for rows, size in _blocks(images, ids, min(most, _TOGETHER)):
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


def _blocks(images: ImageTable, ids: Sequence[str], most: int) -> Iterator[tuple[list[dict[str, Any]], int]]:
    """Rows of some pictures at a time, and their bytes."""
    rows, size = list[dict[str, Any]](), 0
    for name in ids:
        data, suffix = _picture(images, name)
        if rows and size + len(data) > most:
            yield rows, size
            rows, size = [], 0
        rows.append({"id": name, "image": {"bytes": data, "path": Path(name).name + suffix}})
        size += len(data)
    if rows:
        yield rows, size


def _picture(images: ImageTable, name: str) -> tuple[bytes, str]:
    """A picture's file as it is and its suffix; of one that is cut from another a PNG."""
    place, limits = images.place(name), ImageLimits()
    if place.box is None:
        data = read_place(place, limits, place.name(name))
        if len(data) > limits.max_bytes:
            raise DataError(f"{place.name(name)!r} has more than {limits.max_bytes:,} bytes. Make it smaller.")
        suffix = "" if place.span else split_suffix(place.uri)[1]
        return data, "" if name.endswith(suffix) else suffix
    stream = io.BytesIO()
    open_place(place, name=name).save(stream, "PNG")
    return stream.getvalue(), ".png"


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
