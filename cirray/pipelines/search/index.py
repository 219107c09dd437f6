"""Stage 9: embed a gallery with the trained encoder and build its index.

Images are encoded in parts, here or by a pool of Ray actors, each written atomically. What the index of a folder held
before, and the parts of a killed run, are not encoded again (`rows`). All are then joined in id order and given to
`cirray.index`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import MANIFEST, Manifest, Stage, check_place, is_complete, open_stage, read_manifest
from cirray.core.errors import ArtifactError, ConfigError, DataError
from cirray.core.log import get_logger
from cirray.core.unfinished import stage_function
from cirray.data.changes import Changes, Seen, compare
from cirray.data.config import ImageLimits
from cirray.data.listing import list_pictures, picture_ids
from cirray.data.places import Place
from cirray.features.shards import read_contents, read_rejected
from cirray.features.store import FeatureStore
from cirray.index.config import INDEXES
from cirray.index.store import KIND, IndexMeta, write_index
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.parts import Parts, Rejected, cut, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.data.datasets import asked_digest, contents_of
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.metadata import metadata_for
from cirray.pipelines.search.models import with_checkpoint
from cirray.pipelines.search.originals import originals_of
from cirray.pipelines.search.parts import PartEncoder, dataset_gallery
from cirray.pipelines.search.rows import (
    FOLDER,
    Rows,
    Source,
    earlier_rows,
    next_part,
    part_numbers,
    part_rows,
    read_seen,
    write_seen,
)
from cirray.pipelines.search.texts import examples, indexed_dataset, own_texts
from cirray.transforms import REVISION
from cirray.types import part_name, stable_id

_LOGGER = get_logger("pipelines.index")
_CHANGED = "The picture is not the one that was embedded; its file has changed. Embed it again (cirray embed)."
_UNSTEADY = "The file changed while the folder was indexed. Run the command again."
REJECTED = "rejected.json"
"""The full list of rejected images, id and reason."""


@dataclass(frozen=True)
class IndexPlan:
    """What to encode: ids ascending, files of those that have one, digests of all inputs."""

    ids: tuple[str, ...]
    paths: dict[str, str]
    inputs: dict[str, str]
    features_digest: str = ""
    rejected: tuple[tuple[str, str], ...] = ()
    """Gallery images without features, or changed since: id and reason."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Digests of the files' bytes by id, where they were read."""
    notes: tuple[str, ...] = ()
    """Notes of the folder's listing: files left out, folders that cannot be listed; and of the metadata."""
    folder: str = ""
    """Whole path of a folder that is indexed."""
    changes: Changes | None = None
    """That folder beside what the index at this place was made of."""
    metadata: pa.Table | None = None
    """Columns about the images, one row an id."""

    def key(self, image_id: str) -> str:
        """What identifies an image's row; empty for a file that could not be read."""
        return image_id if self.changes is None else self.contents[image_id]

    def metadata_of(self, ids: Sequence[str]) -> pa.Table | None:
        """The metadata of some of the images, in their order."""
        rows = {name: row for row, name in enumerate(self.ids)}
        return None if self.metadata is None else self.metadata.take(pa.array([rows[name] for name in ids], pa.int64()))


@stage_function
def run_index(run: IndexRun) -> Manifest:
    """Index a folder of pictures, or the gallery of a data set whose features are stored.

    A folder that was indexed here before is compared with the index, and only what is new or changed is encoded. The
    result is the one of a new index; it takes the place of the former in one step.

    Returns: Manifest of kind "index"; counts `images` and `rejected`; `extra["rejected"]` holds the first reasons,
        `extra["examples"]` the clearest queries of the data set (reference id and text).

    Raises:
        ArtifactError: checkpoint or features are missing, or another artifact is at `out`.
        ConfigError: settings of the index that its backend refuses.
        DataError: no image could be used.
        IndexMismatchError: features of another vision tower.
    """
    run = with_checkpoint(run)
    check_place(run, KIND)
    plan = make_plan(run)
    stage = open_stage(run, KIND, plan.inputs, [f"{FOLDER}/*"], living=["images", "metadata"] if plan.changes else [])
    if stage.finished:
        return _as_before(run, plan, stage.finished)
    encoder = PartEncoder(run, plan.features_digest, len(plan.ids), stage.work_uri, next_part(stage))
    INDEXES.get(run.index.kind)(run.index.settings).check(encoder.encoder.config.embed_dim)
    earlier = earlier_rows(stage, encoder.keeps_patches)
    known = Rows(earlier).places
    left = [name for name in plan.ids if plan.key(name) not in known]
    if left:
        run_parts(stage, _parts(run, plan, stage, encoder, left), run.ray if run.pool else RayConfig(enabled=False))
    manifest = _join(run, plan, stage, encoder, [*earlier, *part_rows(stage, encoder.first)])
    if plan.changes and stage.former:
        _LOGGER.info("%s: %s", run.images, plan.changes.told())
    return manifest


def _as_before(run: IndexRun, plan: IndexPlan, finished: Manifest) -> Manifest:
    """A finished index; where its folder lies now, and how its files were seen, is noted for the next time."""
    if plan.changes is None:
        return finished
    _LOGGER.info("%s: %s", run.images, plan.changes.told())
    if list(plan.changes.rows) != read_seen(run.out):
        write_seen(run.out, plan.changes.rows)
    if finished.extra.get("originals") == plan.folder:
        return finished
    moved = replace(finished, extra={**finished.extra, "originals": plan.folder})
    storage.write_bytes(storage.join(run.out, MANIFEST), moved.to_json().encode())
    return moved


def make_plan(run: IndexRun) -> IndexPlan:
    """List the images to index and the digests of all inputs; reads pictures' bytes, decodes none.

    Of a folder whose index is at `out`, only files that were touched since are read.

    Raises:
        ArtifactError: checkpoint or features are missing, or the index of another folder is at `out`.
        ConfigError: neither images nor features were named.
        DataError: the folder holds no image, features lack some of the gallery, or metadata that cannot be used.
    """
    checkpoint = read_manifest(run.checkpoint, "checkpoint")
    inputs = {"checkpoint": checkpoint.digest, "features": "", "data": ""}
    if run.images is None and not run.features:
        raise ConfigError("Nothing to index: give `images` (a folder) or `features` (features artifacts).")
    plan = _features_plan(run, inputs) if run.images is None else _folder_plan(run, run.images, inputs)
    return _with_metadata(run, plan) if run.metadata else plan


def _with_metadata(run: IndexRun, plan: IndexPlan) -> IndexPlan:
    """The plan with its metadata, which is read before any image is encoded."""
    names = {image: Place.parse(text).name(image) for image, text in plan.paths.items()}
    table, notes = metadata_for(run.metadata, plan.ids, names)
    for note in notes:
        _LOGGER.info(note)
    return replace(plan, metadata=table, notes=(*plan.notes, *notes))


def _features_plan(run: IndexRun, inputs: dict[str, str]) -> IndexPlan:
    store = FeatureStore.open_many(run.features)
    gallery, paths = dataset_gallery(dataset := indexed_dataset(run))
    refused = {name: why for uri in run.features for rows in read_rejected(uri).values() for name, why in rows}
    absent = store.missing(gallery)
    missing = [name for name in absent if name not in refused]
    if missing:
        raise DataError(
            f"The features {list(run.features)} lack {len(missing):,} of {len(gallery):,} gallery images, e.g. "
            f"{missing[0]!r}. Embed this data set first (cirray embed)."
        )
    digests = {f"features {number}": read_manifest(uri).digest for number, uri in enumerate(run.features)}
    if dataset is not None:
        digests["data"] = stable_id(asked_digest(dataset), *dataset.triplets)
    known: dict[str, str] = {}
    for uri in run.features:
        known |= read_contents(uri)
    changed = _changed(run, gallery, paths, known)
    if changed:
        digests["changed"] = stable_id("changed", *(part for row in sorted(changed.items()) for part in row))
    ids = [name for name in gallery if name in store and name not in changed] if gallery else store.ids
    reasons = {**{name: refused[name] for name in absent}, **dict.fromkeys(changed, _CHANGED)}
    rejected = tuple(sorted(reasons.items()))
    return IndexPlan(tuple(sorted(ids)), paths, {**inputs, **digests}, store.info.encoder_digest, rejected, known)


def _changed(run: IndexRun, ids: Sequence[str], paths: dict[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Images whose files have changed since they were embedded, with their new digests; and unreadable ones."""
    ids = [name for name in ids if name in known and name in paths]
    now = zip(ids, contents_of([paths[name] for name in ids], run.limits), strict=True)
    return {name: content for name, content in now if content and content != known[name]}


def _folder_plan(run: IndexRun, folder: str, inputs: dict[str, str]) -> IndexPlan:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(f"The image folder {folder!r} does not exist (looked at {str(root.absolute())!r}).")
    found = list_pictures(root)
    ids = picture_ids([name for name, _ in found.pictures])
    paths = {image: Place(path).text() for image, (_, path) in zip(ids, found.pictures, strict=True)}
    if not paths:
        raise DataError(f"The folder {folder!r} holds no image. {' '.join(found.notes())}".rstrip())
    for note in found.notes():
        _LOGGER.info("%s: %s", folder, note)
    here = str(root.absolute())
    changes = compare(found.pictures, _seen_before(run, here), partial(_contents, limits=run.limits))
    contents = {image: row.digest for image, row in zip(ids, changes.rows, strict=True)}
    listing = [part for image in sorted(paths) for part in (image, contents[image])]
    digests = {**inputs, "images": stable_id("images", *listing), "transform": f"revision {REVISION}"}
    names = tuple(sorted(paths))
    return IndexPlan(names, paths, digests, "", (), contents, found.notes(), here, changes)


def _contents(paths: Sequence[str], limits: ImageLimits) -> list[str]:
    return contents_of([Place(path).text() for path in paths], limits)


def _seen_before(run: IndexRun, folder: str) -> list[Seen]:
    """The files that the index at `out` was made of.

    Raises:
        ArtifactError: when they lie in another folder that is still there.
    """
    if not is_complete(run.out):
        return []
    before = str(read_manifest(run.out, KIND).extra.get("originals", ""))
    if before not in ("", folder) and Path(before).is_dir() and not os.path.samefile(before, folder):
        raise ArtifactError(
            f"{run.out!r} is the index of another folder, {before!r}. Choose another --out, or delete that index if it "
            "is not needed any more."
        )
    return read_seen(run.out)


def _parts(run: IndexRun, plan: IndexPlan, stage: Stage, encoder: PartEncoder, left: Sequence[str]) -> Parts:
    """What is still to be encoded, as parts behind those that are there."""
    tables = cut({"image_id": left, "place": [plan.paths.get(name, "") for name in left]}, run.shard)
    keys = [table.column("image_id").to_pylist() for table in tables]
    settings = {
        "run": run, "vision_digest": plan.features_digest, "count": len(plan.ids), "work_uri": stage.work_uri,
        "first": encoder.first,
    }  # fmt: skip

    def found() -> dict[str, list[str]]:
        there = {number - encoder.first for number in part_numbers(stage)}
        return {part_name(number): keys[number] for number in range(len(keys)) if number in there}

    step = Step(type(encoder), settings, run.pool) if run.pool else Step(encoder)
    return Parts("encode the gallery", "images", tables, [step], keys, found)


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
    pictures = rows.pictures(keys) if has_pictures else None
    files = write_index(stage.local, ids, meta, run.index, pictures, texts, originals, plan.metadata_of(ids))
    shown = examples(run, stage.local, ids, encoder, dataset.queries) if dataset and dataset.queries else []
    storage.remove(storage.join(stage.work_uri, FOLDER))
    if rejected:
        (stage.local / REJECTED).write_text(json.dumps(refused, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if plan.changes:
        write_seen(stage.work_uri, plan.changes.rows)
    made_by = {"encoder_digest": meta.encoder_digest, "vision_digest": meta.vision_digest}
    extra = {
        "files": files, **made_by, "rejected": rejected.first(), "notes": list(plan.notes), "examples": shown,
        "originals": plan.folder or root,
    }  # fmt: skip
    return stage.publish({"images": len(ids), "rejected": len(rejected)}, extra=extra)


def _refused(plan: IndexPlan, sources: Sequence[Source], without: set[str]) -> list[tuple[str, str]]:
    """Every image without a row, with the reason."""
    reasons = {name: reason for source in sources for name, reason in source.rejected}
    told = {name: reasons.get(name, _UNSTEADY) for name in without}
    return sorted({**dict(plan.rejected), **told}.items())
