"""Stage 4a: choose the image pairs that are worth a text."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.artifacts import Manifest, localize, open_stage, read_manifest
from cirray.core.errors import DataError
from cirray.core.ids import ABSENT, Ids, Texts, sorted_ids
from cirray.core.texts import decoded
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.data.names import NameFinder
from cirray.features.shards import read_rejected
from cirray.features.store import FeatureStore
from cirray.mining.pairs import MiningInput, mine_pairs
from cirray.pipelines.data.datasets import check_leaks, guard_inputs, open_dataset, part_ids
from cirray.pipelines.texts.config import MineRun
from cirray.pipelines.texts.judging import is_shapes_world, single_edit_share
from cirray.pipelines.texts.mining_tasks import ray_finder
from cirray.triplets.pairs import KIND, write_pairs
from cirray.triplets.schema import image_ids
from cirray.types import images_of, stable_id_of


@stage_function
def run_mine(run: MineRun) -> Manifest:
    """Choose pairs and write them.

    Returns: Manifest of kind "pairs"; counts `pairs` and `images`; for a shapes world the metric `single_edits`, the
    share of pairs that are exactly one edit apart (the miner never sees the scenes).

    Raises DataError when images have no features, no pair is found, or a guarded image is among those to pair.
    """
    dataset = open_dataset(run.data)
    guard = check_leaks(run.guard, _candidates(run, dataset), run.allow_leaks, "The pair pool")
    stage = open_stage(run, KIND, {**_inputs(run, dataset), **guard_inputs(guard)})
    if stage.finished:
        return stage.finished
    source = _source(run, dataset)
    pairs = mine_pairs(source, run.mining)
    write_pairs(stage.work_uri, pairs)
    counts = {"pairs": len(pairs), "images": len(image_ids(pairs))}
    return stage.publish(counts, source.metrics | _metrics(run, pairs), guard)


def _inputs(run: MineRun, dataset: CirDataset) -> dict[str, str]:
    read = () if run.mining.labelled else run.features
    inputs = {f"features {at}": read_manifest(uri, "features").digest for at, uri in enumerate(read)}
    triplets = (f"{t.triplet_id}:{t.reference_id}:{t.target_id}:{t.split}" for t in dataset.triplets)
    ids, excluded = part_ids(dataset, run.parts), _excluded(run, dataset)
    data = stable_id_of(chain(("mine",), ids, ("excluded",), excluded, triplets))
    return {"features": "", "exclude_ids": "", **inputs, "data": data}


def _source(run: MineRun, dataset: CirDataset) -> MiningInput:
    features = None if run.mining.labelled else FeatureStore.open_many(run.features)
    ids, excluded = part_ids(dataset, run.parts), _excluded(run, dataset, _rejected(run))
    if ids and (excluded.places(ids) != ABSENT).all() and not run.mining.labelled:
        raise DataError(
            f"All {len(ids)} images of {', '.join(run.parts)} are excluded, being in {', '.join(run.exclude_parts)} as "
            "well. Put pool and gallery into folders of their own, or set exclude_parts=[] and expect pairs of images "
            "that queries search."
        )
    return MiningInput(
        ids, features, dataset.split(run.split), excluded, finder=ray_finder(run.ray, run.features, len(ids))
    )


def _rejected(run: MineRun) -> frozenset[str]:
    """Images that could not be embedded, which are skipped (`run_embed` has the reasons)."""
    if run.mining.labelled:
        return frozenset()
    parts = [rows for uri in run.features for rows in read_rejected(str(localize(uri, "features"))).values()]
    return frozenset(image for rows in parts for image, _ in rows)


def _candidates(run: MineRun, dataset: CirDataset) -> Texts:
    """Images that may be in a pair."""
    ids = Texts(images_of(dataset.split(run.split))) if run.mining.labelled else part_ids(dataset, run.parts)
    return Texts(ids.column.filter(pa.array(_excluded(run, dataset).places(ids) == ABSENT)))


def _excluded(run: MineRun, dataset: CirDataset, others: Iterable[str] = ()) -> Ids:
    """Images that no pair may hold, ascending: excluded parts and ids, the benchmark's own val and test images, and
    others.
    """
    ids = {*dataset.guarded, *others}
    if run.exclude_ids:
        path = Path(run.exclude_ids).expanduser()
        try:
            lines = decoded(path.read_bytes()).split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"The file of excluded ids {str(path)!r} cannot be read: {error}.") from None
        finder = NameFinder({image: image for image in dataset.images})
        ids.update(image for line in lines if line.strip() for image in finder.find(line, line.strip()))
    parts = part_ids(dataset, run.exclude_parts) if run.exclude_parts else Texts(())
    return sorted_ids(pa.chunked_array([Texts(ids).column, parts.column]))


def _metrics(run: MineRun, pairs: pa.Table) -> dict[str, Any]:
    metrics: dict[str, Any] = {"score_mean": pc.mean(pairs.column("score")).as_py()}
    root = str(getattr(getattr(run.data, run.data.format, None), "root", ""))
    if is_shapes_world(root):
        metrics["single_edits"] = single_edit_share(pairs, root)
    return metrics
