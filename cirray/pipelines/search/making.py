"""Makes an index: encodes the pictures that are not encoded yet, and joins all rows in id order."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage
from cirray.core.extras import install_line
from cirray.core.log import get_logger
from cirray.data.places import Place
from cirray.index.config import INDEXES
from cirray.index.faiss_library import faiss_library, is_there
from cirray.index.originals import Original
from cirray.index.store import IndexMeta, write_index
from cirray.index.texts import write_texts
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.parts import Cut, Parts, Rejected, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.search.choice import choose_index
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.parts import PartEncoder
from cirray.pipelines.search.plan import IndexPlan, indexed_dataset
from cirray.pipelines.search.rows import (
    FOLDER,
    Rows,
    Source,
    earlier_rows,
    next_part,
    part_numbers,
    part_rows,
    write_seen,
)
from cirray.pipelines.search.texts import examples, own_texts
from cirray.triplets.store import row_keys
from cirray.types import part_name

_LOGGER = get_logger("pipelines.index")
_UNSTEADY = "The file changed while the folder was indexed. Run the command again."
REJECTED = "rejected.json"
"""The full list of rejected images, id and reason."""


def make_index(run: IndexRun, plan: IndexPlan, stage: Stage) -> Manifest:
    """Encode what is left to encode, and publish the index. Raises CirrayError as `run_index`."""
    encoder = PartEncoder(run, plan.features_digest, len(plan.ids), stage.work_uri, next_part(stage))
    if run.index.kind == "exact" and not is_there():
        _LOGGER.info("FAISS is not installed: a search scans all vectors. For many pictures: %s", install_line("cpu"))
    if run.target_recall is not None:
        faiss_library()  # its absence is told before any image is encoded
    INDEXES.get(run.index.kind)(run.index.settings).check(encoder.encoder.config.embed_dim)
    earlier = earlier_rows(stage, encoder.keeps_patches)
    known = Rows(earlier).places
    left = [name for name in plan.ids if plan.key(name) not in known]
    if left:
        run_parts(stage, _parts(run, plan, stage, encoder, left), run.ray if run.pool else RayConfig(enabled=False))
    return _join(run, plan, stage, encoder, [*earlier, *part_rows(stage, encoder.first)])


def _parts(run: IndexRun, plan: IndexPlan, stage: Stage, encoder: PartEncoder, left: Sequence[str]) -> Parts:
    """What is still to be encoded, as parts behind those that are there."""
    tables = Cut({"image_id": left, "place": [plan.paths.get(name, "") for name in left]}, run.shard)
    settings = {
        "run": run, "vision_digest": plan.features_digest, "count": len(plan.ids), "work_uri": stage.work_uri,
        "first": encoder.first,
    }  # fmt: skip

    def found() -> Iterator[tuple[str, pa.Array]]:
        there = {number - encoder.first for number in part_numbers(stage)}
        return ((part_name(n), row_keys(tables[n], ("image_id",))) for n in range(len(tables)) if n in there)

    step = Step(type(encoder), settings, run.pool) if run.pool else Step(encoder)
    return Parts("encode the gallery", "images", tables, [step], found=found)


def _join(
    run: IndexRun, plan: IndexPlan, stage: Stage, encoder: PartEncoder, sources: Sequence[Source]
) -> Manifest:  # fmt: skip
    rows = Rows(sources)
    ids = [name for name in plan.ids if plan.key(name) in rows.places]
    keys = [*map(plan.key, ids)]
    refused = _refused(plan, sources, set(plan.ids) - set(ids))
    rejected = Rejected(refused)
    rejected.refuse_all(stage, len(ids), f"No image was left to index, of {len(plan.ids):,}: {{reason}}")
    network = encoder.encoder
    meta = IndexMeta(network.target_digest, encoder.vision.digest, network.config.similarity)
    rows.stack(keys, stage.local)
    dataset = indexed_dataset(run)
    texts = own_texts(dataset, ids, network) if dataset else {}
    has_pictures = bool(run.thumbnail_size) and any(plan.paths.get(name) for name in ids)
    root, originals = originals_of(ids, plan.paths, plan.contents, plan.folder) if has_pictures else ("", [])
    picture_of = rows.picture_of()
    pictures = map(picture_of, keys) if has_pictures else None
    backend, measured = choose_index(stage, run.target_recall) if run.target_recall else (run.index, [])
    metadata = plan.metadata_of(ids)
    told = {"rejected": rejected.first(), "notes": list(plan.notes), "measured": measured}
    told |= {"rejected_file": REJECTED} if rejected else {}
    if rejected:
        (stage.local / REJECTED).write_text(json.dumps(refused, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    counts = {"images": len(ids), "rejected": len(rejected)}

    asked = dataset.queries if dataset else ()
    read = (lambda row: picture_of(keys[row])) if has_pictures else None
    told |= {"examples": examples(run, stage.local, ids, encoder, asked, read) if asked else []}
    if run.living:
        from cirray.pipelines.search.living import write_gallery

        places = [(os.path.join(root, name), content) if name else ("", "") for name, content in originals]
        write_texts(stage.local, texts)
        described = write_gallery(stage, ids, meta, backend, run.thumbnail_size, pictures, places, metadata)
        storage.remove(storage.join(stage.work_uri, FOLDER))
        return stage.publish(counts, extra={**described.extra(), **told})
    files = write_index(stage.local, ids, meta, backend, pictures, texts, originals, metadata)
    storage.remove(storage.join(stage.work_uri, FOLDER))
    if plan.changes:
        write_seen(stage.work_uri, plan.changes.rows)
    made_by = {"encoder_digest": meta.encoder_digest, "vision_digest": meta.vision_digest}
    extra = {"files": files, **made_by, **told, "originals": plan.folder or root}
    return stage.publish(counts, extra=extra)


def _refused(plan: IndexPlan, sources: Sequence[Source], without: set[str]) -> list[tuple[str, str]]:
    """Every image without a row, with the reason."""
    reasons = {name: reason for source in sources for name, reason in source.rejected}
    told = {name: reasons.get(name, _UNSTEADY) for name in without}
    return sorted({**dict(plan.rejected), **told}.items())


def originals_of(
    ids: Sequence[str], places: Mapping[str, str], contents: Mapping[str, str], folder: str = ""
) -> tuple[str, list[Original]]:
    """Folder above all files (the nearest one, where none is given), and their names below it with their digests, by
    row.

    Parts of a file, crops, files behind a URI, and files whose contents were not read have none.
    """
    files = [_file(places.get(name, "")) if contents.get(name) else "" for name in ids]
    folders = {os.path.dirname(path) for path in files if path}
    if not folders:
        return "", []
    root = folder or os.path.commonpath(folders)
    rows = [
        (os.path.relpath(path, root), contents[name]) if path else ("", "")
        for name, path in zip(ids, files, strict=True)
    ]
    return root, rows


def _file(text: str) -> str:
    """Absolute path of a whole local file, else empty."""
    place = Place.parse(text)
    if not place.uri or place.span or place.box or not storage.is_local(place.uri):
        return ""
    return os.path.abspath(storage.local_path(place.uri))
