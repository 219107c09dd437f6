"""Stage 2: every image through the frozen vision tower once, into the feature store."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, is_complete, open_stage, read_manifest
from cirray.core.errors import ArtifactError, DataError
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.data.config import ImageLimits
from cirray.data.transforms import build_transform
from cirray.features.shards import FOLDER, PARTS, finished_parts, forget_part, part_name, read_contents, shard_digest
from cirray.pipelines.cluster.actors import EncodeImages, decode_images, load_tower
from cirray.pipelines.cluster.streaming import Step, stream
from cirray.pipelines.data.datasets import ImageList, contents_of, list_images
from cirray.pipelines.features.config import EmbedRun

_REASONS_SHOWN = 20


@dataclass(frozen=True)
class TowerFacts:
    """What the driver must know of a tower: its digest, its transform and the shape of one image's tokens."""

    digest: str
    transform: dict[str, Any]
    transform_digest: str
    size: int
    shape: tuple[int, int]


@stage_function
def run_embed(run: EmbedRun) -> Manifest:
    """Decode and encode every image of the asked parts, once; resumes from finished shards whose images are unchanged.

    Returns:
        Manifest of kind "features"; counts `images` and `rejected`, `extra["rejected"]` the first reasons.

    Raises:
        DataError: no image, or none that can be decoded.
        ArtifactError: no tower, another run's output at `out`, or features there of pictures that have changed since.
    """
    images = list_images(run.data, run.parts)
    stage = open_stage(run, "features", {"data": images.digest, "tower": _digest(run.tower)}, PARTS)
    if stage.finished:
        _check_unchanged(run, images)
        return stage.finished
    tower = tower_facts(run.tower)
    parts = plan_parts(images, run.shard_rows)
    done = _unchanged(stage, parts, run.limits)
    todo = [table for number, table in enumerate(parts) if number not in done]
    with progress("embed images", len(images.ids), "images") as advance:
        advance(sum(len(parts[number]) for number in done), "finished before" if done else "", earlier=True)
        for summary in stream(todo, embed_steps(run, stage, tower), run.ray, _part_bytes(run, tower)):
            advance(int(summary["rows"][0]))
    return _publish(stage, parts, tower)


def plan_parts(images: ImageList, rows: int) -> list[pa.Table]:
    """The images cut into parts of `rows`, each with its number and its size in every row."""
    tables = []
    for number, start in enumerate(range(0, len(images.ids), rows)):
        ids, places = images.ids[start : start + rows], images.places[start : start + rows]
        columns = {"part": [number] * len(ids), "part_rows": [len(ids)] * len(ids), "image_id": ids, "place": places}
        tables.append(pa.table(columns))
    return tables


def embed_steps(run: EmbedRun, stage: Stage, tower: TowerFacts) -> list[Step]:
    """Decoding in tasks, encoding and writing in a pool of actors."""
    encode = {
        "tower": run.tower, "work_uri": stage.work_uri, "batch": run.batch,
        "device": "cuda" if run.pool.gpus else "cpu", "threads": run.pool.threads,
    }  # fmt: skip
    decode = {"transform": tower.transform, "limits": run.limits.to_dict()}
    return [Step(decode_images, decode, tasks=run.decode_tasks), Step(EncodeImages, encode, run.pool)]


def tower_facts(uri: str) -> TowerFacts:
    """Load a tower and note what the driver needs of it."""
    tower = load_tower(uri)
    transform = build_transform(tower.transform)
    shape = (tower.num_tokens, tower.width)
    return TowerFacts(tower.digest, tower.transform.to_dict(), transform.digest, transform.size, shape)


def _digest(tower: str) -> str:
    return read_manifest(tower).digest if is_complete(tower) else load_tower(tower).digest


def _done(stage: Stage, parts: Sequence[pa.Table]) -> set[int]:
    finished = finished_parts(stage.work_uri)
    return {number for number, table in enumerate(parts) if number in finished and _same(finished[number], table)}


def _unchanged(stage: Stage, parts: Sequence[pa.Table], limits: ImageLimits) -> set[int]:
    """Finished parts whose pictures hold what was embedded; the others are forgotten."""
    done = set()
    for number in sorted(_done(stage, parts)):
        ids, places = (parts[number].column(name).to_pylist() for name in ("image_id", "place"))
        known = read_contents(stage.work_uri, [number])
        if [known.get(image) for image in ids] == contents_of(places, limits):
            done.add(number)
        else:
            forget_part(stage.work_uri, number)
    return done


def _check_unchanged(run: EmbedRun, images: ImageList) -> None:
    known = read_contents(run.out)
    now = zip(images.ids, contents_of(images.places, run.limits), strict=True)
    changed = [image for image, content in now if known.get(image) != content]
    if changed:
        raise ArtifactError(
            f"{len(changed):,} of {len(images.ids):,} pictures have changed since the features at {run.out!r} were "
            f"made, e.g. {changed[0]!r}. Choose another out, or remove that artifact and embed again."
        )


def _same(found: tuple[list[str], list[tuple[str, str]]], table: pa.Table) -> bool:
    ids = found[0] + [image for image, _ in found[1]]
    return sorted(ids) == sorted(table.column("image_id").to_pylist())


def _part_bytes(run: EmbedRun, tower: TowerFacts) -> int:
    return run.shard_rows * (tower.size * tower.size * 3 + 512)


def _publish(stage: Stage, parts: Sequence[pa.Table], tower: TowerFacts) -> Manifest:
    finished, done = finished_parts(stage.work_uri), _done(stage, parts)
    lacking = sorted(set(range(len(parts))) - done)
    if lacking or set(finished) != done:
        raise DataError(f"Shards {lacking or sorted(set(finished) - done)} do not hold their images; run again.")
    rejected = [row for number in sorted(finished) for row in finished[number][1]]
    images = sum(len(ids) for ids, _ in finished.values())
    if not images:
        stage.discard()
        raise DataError(f"None of {len(rejected)} images could be used, e.g. {rejected[0][0]!r}: {rejected[0][1]}")
    folder = storage.join(stage.work_uri, FOLDER)
    extra = {
        "encoder_digest": tower.digest,
        "transform_digest": tower.transform_digest,
        "shape": list(tower.shape),
        "shards": {part_name(number): shard_digest(folder, part_name(number)) for number in sorted(finished)},
        "rejected": [list(row) for row in rejected[:_REASONS_SHOWN]],
    }
    return stage.publish({"images": images, "rejected": len(rejected)}, extra=extra)
