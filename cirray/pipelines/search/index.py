"""Stage 9: embed a gallery with the trained encoder and build its index.

Images are encoded in parts, here or by a pool of Ray actors, each written atomically; a killed run finds its finished
parts. They are then joined in id order and given to `cirray.index`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, check_place, open_stage, read_manifest
from cirray.core.errors import ConfigError, DataError, damage_told
from cirray.core.log import get_logger
from cirray.core.unfinished import stage_function
from cirray.data.listing import list_pictures, picture_ids
from cirray.data.places import Place
from cirray.features.shards import read_contents, read_rejected
from cirray.features.store import FeatureStore
from cirray.index.config import INDEXES
from cirray.index.store import KIND, PATCHES, TOKENS, IndexMeta, write_index
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.parts import Parts, Rejected, cut, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.data.datasets import asked_digest, contents_of
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.metadata import metadata_for
from cirray.pipelines.search.models import with_checkpoint
from cirray.pipelines.search.originals import originals_of
from cirray.pipelines.search.parts import FOLDER, Part, PartEncoder, dataset_gallery, part_uri
from cirray.pipelines.search.texts import examples, indexed_dataset, own_texts
from cirray.types import part_name, stable_id

_LOGGER = get_logger("pipelines.index")
_CHANGED = "The picture is not the one that was embedded; its file has changed. Embed it again (cirray embed)."
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
    metadata: pa.Table | None = None
    """Columns about the images, one row an id."""

    def metadata_of(self, ids: Sequence[str]) -> pa.Table | None:
        """The metadata of some of the images, in their order."""
        rows = {name: row for row, name in enumerate(self.ids)}
        return None if self.metadata is None else self.metadata.take(pa.array([rows[name] for name in ids], pa.int64()))


@stage_function
def run_index(run: IndexRun) -> Manifest:
    """Index a folder of pictures, or the gallery of a data set whose features are stored.

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
    stage = open_stage(run, KIND, plan.inputs, [f"{FOLDER}/*"])
    if stage.finished:
        return stage.finished
    encoder = PartEncoder(run, plan.features_digest, len(plan.ids), stage.work_uri)
    INDEXES.get(run.index.kind)(run.index.settings).check(encoder.encoder.config.embed_dim)
    parts = _parts(run, plan, stage, encoder)
    run_parts(stage, parts, run.ray if run.pool else RayConfig(enabled=False))
    return _join(run, plan, stage, encoder, range(len(parts.tables)))


def make_plan(run: IndexRun) -> IndexPlan:
    """List the images to index and the digests of all inputs; reads every picture's bytes, decodes none.

    Raises:
        ArtifactError: checkpoint or features are missing.
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
    contents = contents_of([paths[image] for image in sorted(paths)], run.limits)
    listing = [part for row in zip(sorted(paths), contents, strict=True) for part in row]
    digests = {**inputs, "images": stable_id("images", *listing)}
    known = dict(zip(sorted(paths), contents, strict=True))
    return IndexPlan(tuple(sorted(paths)), paths, digests, contents=known, notes=found.notes())


def _parts(run: IndexRun, plan: IndexPlan, stage: Stage, encoder: PartEncoder) -> Parts:
    tables = cut({"image_id": plan.ids, "place": [plan.paths.get(name, "") for name in plan.ids]}, run.shard)
    keys = {part_name(number): table.column("image_id").to_pylist() for number, table in enumerate(tables)}
    settings = {
        "run": run, "vision_digest": plan.features_digest, "count": len(plan.ids), "work_uri": stage.work_uri,
    }  # fmt: skip

    def found() -> dict[str, list[str]]:
        names = {name.removesuffix(".npz") for name in storage.list_files(storage.join(stage.work_uri, FOLDER))}
        return {name: keys[name] for name in names & keys.keys()}

    step = Step(PartEncoder, settings, run.pool) if run.pool else Step(encoder)
    return Parts("encode the gallery", "images", tables, [step], list(keys.values()), found)


def _join(run: IndexRun, plan: IndexPlan, stage: Stage, encoder: PartEncoder, numbers: range) -> Manifest:
    ids: list[str] = []
    refused = list(plan.rejected)
    has_pictures = False
    for number in numbers:
        part = _read_part(stage, number)
        ids += part.ids
        refused += part.rejected
        has_pictures = has_pictures or bool(part.pictures)
    rejected = Rejected(refused)
    rejected.refuse_all(stage, len(ids), f"No image was left to index, of {len(plan.ids):,}: {{reason}}")
    network = encoder.encoder
    meta = IndexMeta(network.target_digest, encoder.vision.digest, network.config.similarity)
    _stack(stage, numbers, TOKENS, len(ids))
    _stack(stage, numbers, PATCHES, len(ids))
    pictures = (picture for number in numbers for picture in _read_part(stage, number).pictures)
    dataset = indexed_dataset(run)
    texts = own_texts(dataset, ids, network) if dataset else {}
    root, originals = originals_of(ids, plan.paths, plan.contents) if has_pictures else ("", [])
    files = write_index(
        stage.local, ids, meta, run.index, pictures if has_pictures else None, texts, originals, plan.metadata_of(ids)
    )
    shown = examples(run, stage.local, ids, encoder, dataset.queries) if dataset and dataset.queries else []
    storage.remove(storage.join(stage.work_uri, FOLDER))
    if rejected:
        (stage.local / REJECTED).write_text(json.dumps(refused, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    made_by = {"encoder_digest": meta.encoder_digest, "vision_digest": meta.vision_digest}
    extra = {
        "files": files, **made_by, "rejected": rejected.first(), "notes": list(plan.notes), "examples": shown,
        "originals": root,
    }  # fmt: skip
    return stage.publish({"images": len(ids), "rejected": len(rejected)}, extra=extra)


def _stack(stage: Stage, numbers: Sequence[int], name: str, count: int) -> None:
    """Join one array of all parts into a `.npy` file, a part at a time."""
    target: np.memmap | None = None
    row = 0
    for number in numbers:
        part = _read_part(stage, number)
        for block in part.tokens if name == TOKENS else part.patches:
            if target is None:
                shape = (count, *block.shape[1:])
                target = np.lib.format.open_memmap(stage.local / name, "w+", block.dtype, shape)
            target[row : row + len(block)] = block
            row += len(block)
    if target is not None:
        target.flush()


def _read_part(stage: Stage, number: int) -> Part:
    place = part_uri(stage.work_uri, number)
    with damage_told(place, "Delete that file, or start anew with --restart."):
        return Part.from_bytes(storage.read_bytes(place))
