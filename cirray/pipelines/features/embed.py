"""Stage 2: every image through the frozen vision tower once, into the feature store."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, is_complete, open_stage, read_manifest
from cirray.core.errors import ArtifactError
from cirray.core.unfinished import stage_function
from cirray.data.config import ImageLimits
from cirray.features.shards import FOLDER, PARTS, finished_parts, forget_part, read_contents, shard_digest
from cirray.models.towers.places import open_tower
from cirray.pipelines.cluster.parts import Cut, Parts, Rejected, run_parts
from cirray.pipelines.cluster.streaming import Step
from cirray.pipelines.data.datasets import ImageList, contents_of, list_images
from cirray.pipelines.features.actors import EncodeImages, decode_images
from cirray.pipelines.features.config import EmbedRun
from cirray.transforms import build_transform
from cirray.types import part_name


@dataclass(frozen=True)
class TowerFacts:
    """The driver's facts about a tower: digest, transform, shape of one image's tokens."""

    digest: str
    transform: dict[str, Any]
    transform_digest: str
    size: int
    shape: tuple[int, int]


@stage_function
def run_embed(run: EmbedRun) -> Manifest:
    """Decode and encode every image of the asked parts, once; resumes from finished shards whose images are unchanged.

    Returns: Manifest of kind "features"; counts `images` and `rejected`, `extra["rejected"]` the first reasons.

    Raises DataError: no image, or none that can be decoded; ArtifactError: no tower, another run's output at `out`, or
    features there of pictures that have changed since.
    """
    images = list_images(run.data, run.parts)
    stage = open_stage(run, "features", {"data": images.digest, "tower": _digest(run.tower)}, PARTS)
    if stage.finished:
        _check_unchanged(run, images)
        return stage.finished
    tower = tower_facts(run.tower)
    parts = embed_parts(run, stage, images, tower)
    _forget_changed(stage, parts, run.limits)
    run_parts(stage, parts, run.ray)
    return _publish(stage, tower)


def embed_parts(run: EmbedRun, stage: Stage, images: ImageList, tower: TowerFacts) -> Parts:
    """Images cut into shards: decoded in tasks, encoded and written in a pool of actors."""
    encode = {"tower": run.tower, "work_uri": stage.work_uri, "batch": run.batch, "device": run.pool.device}
    decode = {"transform": tower.transform, "limits": run.limits.to_dict()}
    return Parts(
        title="embed images", unit="images",
        tables=_tables(run, images),
        steps=[Step(decode_images, decode, tasks=run.decode_tasks), Step(EncodeImages, encode, run.pool)],
        found=lambda: _found(stage),
        row_bytes=tower.size * tower.size * 3 + 512,
    )  # fmt: skip


def _tables(run: EmbedRun, images: ImageList) -> Cut:
    return Cut({"image_id": images.ids, "place": images.places}, run.shard_rows)


def tower_facts(uri: str) -> TowerFacts:
    """Load a tower and return the driver's facts."""
    tower = open_tower(uri)
    transform = build_transform(tower.transform)
    shape = (tower.num_tokens, tower.width)
    return TowerFacts(tower.digest, tower.transform.to_dict(), transform.digest, transform.size, shape)


def _digest(tower: str) -> str:
    return read_manifest(tower).digest if is_complete(tower) else open_tower(tower).digest


def _found(stage: Stage) -> Iterator[tuple[str, pa.Array]]:
    """Images of every finished shard, including rejected ones."""
    for number, ids, rejected in finished_parts(stage.work_uri):
        yield part_name(number), pa.array([*ids, *(image for image, _ in rejected)], pa.string())


def _forget_changed(stage: Stage, parts: Parts, limits: ImageLimits) -> None:
    """Drop finished shards whose pictures have changed, so that they are made again."""
    for number, _, _ in finished_parts(stage.work_uri):
        if number < len(parts.tables) and _changed(stage.work_uri, parts.tables, number, limits):
            forget_part(stage.work_uri, number)


def _check_unchanged(run: EmbedRun, images: ImageList) -> None:
    tables = _tables(run, images)
    changed = [image for number in range(len(tables)) for image in _changed(run.out, tables, number, run.limits)]
    if changed:
        raise ArtifactError(
            f"{len(changed):,} of {len(images.ids):,} pictures have changed since the features at {run.out!r} were "
            f"made, e.g. {changed[0]!r}. Choose another out, or remove that artifact and embed again."
        )


def _changed(uri: str, tables: Cut, number: int, limits: ImageLimits) -> list[str]:
    """Images of a part whose pictures are not those that were embedded at `uri`."""
    ids, places = (tables[number].column(name).to_pylist() for name in ("image_id", "place"))
    known = read_contents(uri, [number])
    return [image for image, now in zip(ids, contents_of(places, limits), strict=True) if known.get(image) != now]


def _publish(stage: Stage, tower: TowerFacts) -> Manifest:
    names, images, refused = [], 0, list[tuple[str, str]]()
    for number, ids, rows in finished_parts(stage.work_uri):
        names.append(part_name(number))
        images += len(ids)
        refused += rows
    rejected = Rejected(refused)
    rejected.refuse_all(stage, images, "None of {count} images could be used, e.g. {name!r}: {reason}")
    folder = storage.join(stage.work_uri, FOLDER)
    extra = {
        "encoder_digest": tower.digest,
        "transform_digest": tower.transform_digest,
        "shape": list(tower.shape),
        "shards": {name: shard_digest(folder, name) for name in names},
        "rejected": rejected.first(),
    }
    return stage.publish({"images": images, "rejected": len(rejected)}, extra=extra)
