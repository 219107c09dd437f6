"""Stage 9: embed a gallery with the trained encoder and build its index.

Images are encoded in parts (in this process or by a pool of Ray actors), each written whole under its number; a killed
run finds its finished parts. The parts are then joined in id order and handed to `cirray.index`.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, check_place, is_complete, open_stage, read_manifest
from cirray.core.errors import ConfigError, DataError, damage_told
from cirray.core.log import get_logger
from cirray.core.progress import Advance, progress
from cirray.core.unfinished import stage_function
from cirray.data.listing import list_pictures, picture_ids
from cirray.data.places import Place
from cirray.features.shards import read_contents, read_rejected
from cirray.features.store import FeatureStore
from cirray.index.faiss_index import check_faiss
from cirray.index.store import KIND, PATCHES, TOKENS, IndexMeta, write_index
from cirray.pipelines.cluster.config import PoolConfig
from cirray.pipelines.data.datasets import asked_digest, contents_of
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.parts import Part, PartEncoder, dataset_gallery
from cirray.pipelines.search.texts import examples, indexed_dataset, own_texts
from cirray.types import stable_id

Todo = tuple[int, tuple[str, ...]]
_LOGGER = get_logger("pipelines.index")
_REASONS_SHOWN = 20
_CHANGED = "The picture is not the one that was embedded; its file has changed. Embed it again (cirray embed)."
REJECTED = "rejected.json"
"""The whole list of what was left out, id and reason."""


@dataclass(frozen=True)
class IndexPlan:
    """What is to be encoded: ids ascending, files of those that have one, digests of everything read."""

    ids: tuple[str, ...]
    paths: dict[str, str]
    inputs: dict[str, str]
    features_digest: str = ""
    rejected: tuple[tuple[str, str], ...] = ()
    """Gallery images that had been refused when the features were made, or have changed since: id and reason."""
    notes: tuple[str, ...] = ()
    """What listing a folder met: files left aside, folders that cannot be listed."""

    def shards(self, size: int) -> list[tuple[str, ...]]:
        """The ids cut into parts."""
        return [self.ids[start : start + size] for start in range(0, len(self.ids), size)]


@stage_function
def run_index(run: IndexRun) -> Manifest:
    """Index a folder of pictures, or the gallery of a data set whose features are stored.

    Returns:
        Manifest of kind "index"; counts `images` and `rejected`; `extra["rejected"]` holds the first reasons,
        `extra["examples"]` the most convincing queries of the data set (reference id and text).

    Raises:
        ArtifactError: checkpoint or features are missing, or another artifact is at `out`.
        ConfigError: a factory or search parameters that FAISS refuses.
        DataError: no image could be used.
        IndexMismatchError: features of another vision tower.
    """
    check_place(run, KIND)
    plan = make_plan(run)
    finished = open_stage(run, KIND, plan.inputs).finished if is_complete(run.out) else None
    if finished:
        return finished
    encoder = PartEncoder(run, plan.paths, plan.features_digest)
    if run.index.backend == "faiss":
        check_faiss(encoder.encoder.config.embed_dim, run.index)
    stage = open_stage(run, KIND, plan.inputs, ["parts/*"])
    meta = IndexMeta(encoder.encoder.target_digest, encoder.vision.digest, encoder.encoder.config.similarity)
    feature_bytes = len(plan.ids) * encoder.vision.num_tokens * encoder.vision.width * 2
    keep_patches = feature_bytes <= run.index.reference_features_gb * 1e9
    with progress("encode the gallery", len(plan.ids), "images") as advance:
        _encode(run, plan, stage, encoder, keep_patches, advance)
    return _join(run, plan, stage, meta, encoder)


def make_plan(run: IndexRun) -> IndexPlan:
    """List what is to be indexed and the digests of what is read; decodes nothing, but reads every picture's bytes.

    Raises:
        ArtifactError: checkpoint or features are missing.
        ConfigError: neither images nor features were named.
        DataError: the folder holds no image, or features lack some of the gallery.
    """
    checkpoint = read_manifest(run.checkpoint, "checkpoint")
    inputs = {"checkpoint": checkpoint.digest, "features": "", "data": ""}
    if run.images is not None:
        return _folder_plan(run, run.images, inputs)
    if not run.features:
        raise ConfigError("Nothing to index: give `images` (a folder) or `features` (features artifacts).")
    return _features_plan(run, inputs)


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
    changed = _changed(run, gallery, paths)
    if changed:
        digests["changed"] = stable_id("changed", *(part for row in sorted(changed.items()) for part in row))
    ids = [name for name in gallery if name in store and name not in changed] if gallery else store.ids
    reasons = {**{name: refused[name] for name in absent}, **dict.fromkeys(changed, _CHANGED)}
    rejected = tuple(sorted(reasons.items()))
    return IndexPlan(tuple(sorted(ids)), paths, {**inputs, **digests}, store.info.encoder_digest, rejected)


def _changed(run: IndexRun, ids: Sequence[str], paths: dict[str, str]) -> dict[str, str]:
    """Images whose files hold something else than what was embedded, with what they hold now; unreadable ones apart."""
    known: dict[str, str] = {}
    for uri in run.features:
        known |= read_contents(uri)
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
    return IndexPlan(
        tuple(sorted(paths)), paths, {**inputs, "images": stable_id("images", *listing)}, notes=found.notes()
    )


def _encode(
    run: IndexRun, plan: IndexPlan, stage: Stage, encoder: PartEncoder, keep_patches: bool, advance: Advance
) -> None:
    shards = plan.shards(run.shard)
    todo = []
    for number, ids in enumerate(shards):
        if storage.exists(_part_uri(stage, number)):
            advance(len(ids), "finished before", earlier=True)
        else:
            todo.append((number, ids))
    if run.pool is None:
        for number, ids in todo:
            storage.write_bytes(_part_uri(stage, number), encoder(ids, keep_patches).to_bytes())
            advance(len(ids))
        return
    for done in _by_actors(run, run.pool, plan, stage, todo, keep_patches):
        advance(done)


def _by_actors(
    run: IndexRun, pool: PoolConfig, plan: IndexPlan, stage: Stage, todo: Sequence[Todo], keep_patches: bool
) -> Iterator[int]:
    """Encode parts in a pool of Ray actors; a dead actor is started again and its part repeated."""
    import ray
    from ray.util import ActorPool

    from cirray.pipelines.cluster.resources import cluster

    def write(actor: Any, item: Todo) -> Any:
        return actor.write.remote(_part_uri(stage, item[0]), item[1], keep_patches)

    options: dict[str, Any] = {"num_cpus": pool.cpus, "num_gpus": pool.gpus, "max_restarts": 3, "max_task_retries": 3}
    remote: Any = ray.remote(**options)(PartWriter)
    with cluster(run.ray):
        count = min(pool.size, len(todo))
        actors = [remote.remote(run, plan.paths, plan.features_digest, pool.threads) for _ in range(count)]
        yield from ActorPool(actors).map_unordered(write, list(todo)) if todo else ()
        for actor in actors:
            ray.kill(actor)


class PartWriter:
    """A `PartEncoder` that writes its parts to the stage's storage itself; runs as a Ray actor."""

    def __init__(self, run: IndexRun, paths: dict[str, str], features_digest: str, threads: int) -> None:
        """See `PartEncoder`; `threads` is the number of threads of this actor's matrix products."""
        torch.set_num_threads(threads)
        self._encoder = PartEncoder(run, paths, features_digest)

    def write(self, uri: str, ids: Sequence[str], keep_patches: bool) -> int:
        """Encode and write one part; returns the number of ids it took."""
        storage.write_bytes(uri, self._encoder(ids, keep_patches).to_bytes())
        return len(ids)


def _join(run: IndexRun, plan: IndexPlan, stage: Stage, meta: IndexMeta, encoder: PartEncoder) -> Manifest:
    numbers = range(len(plan.shards(run.shard)))
    ids: list[str] = []
    rejected = list(plan.rejected)
    has_pictures = False
    for number in numbers:
        part = _read_part(stage, number)
        ids += part.ids
        rejected += part.rejected
        has_pictures = has_pictures or bool(part.pictures)
    if not ids:
        reason = rejected[0][1] if rejected else "the gallery is empty"
        raise DataError(f"No image was left to index, of {len(plan.ids):,}: {reason}")
    _stack(stage, numbers, TOKENS, len(ids))
    _stack(stage, numbers, PATCHES, len(ids))
    pictures = (picture for number in numbers for picture in _read_part(stage, number).pictures)
    dataset = indexed_dataset(run)
    texts = own_texts(dataset, ids, encoder.encoder) if dataset else {}
    files = write_index(stage.local, ids, meta, run.index, pictures if has_pictures else None, texts)
    shown = examples(run, stage.local, ids, encoder, dataset.queries) if dataset and dataset.queries else []
    storage.remove(storage.join(stage.work_uri, "parts"))
    if rejected:
        (stage.local / REJECTED).write_text(json.dumps(rejected, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    made_by = {"encoder_digest": meta.encoder_digest, "vision_digest": meta.vision_digest}
    extra = {
        "files": files, **made_by, "rejected": rejected[:_REASONS_SHOWN], "notes": list(plan.notes), "examples": shown,
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
    place = _part_uri(stage, number)
    with damage_told(place, "Delete that file, or start anew with --restart."):
        return Part.from_bytes(storage.read_bytes(place))


def _part_uri(stage: Stage, number: int) -> str:
    return storage.join(stage.work_uri, "parts", f"part-{number:05d}.npz")
