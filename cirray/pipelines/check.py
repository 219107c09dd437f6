"""Stage 4b: keep the generated triplets whose target a base retriever finds by the text (round trip). One process."""

from typing import Any

import numpy as np
import pyarrow as pa

from cirray.core.artifacts import Manifest, open_stage, read_manifest
from cirray.core.errors import GenerationError
from cirray.core.progress import progress
from cirray.evaluation.round_trip import round_trip_ranks, worse_of_both
from cirray.features.store import FeatureStore
from cirray.pipelines.evaluate import check_tower
from cirray.pipelines.judging import text_accuracy
from cirray.retriever import load_models
from cirray.runs import CheckRun
from cirray.triplets.schema import REJECTED_SCHEMA, to_triplets
from cirray.triplets.store import KIND, TripletStore, write_part


def run_check(run: CheckRun) -> Manifest:
    """Write the triplets that pass; the others become rejected rows with their rank.

    Returns:
        Manifest of kind "triplets"; counts `triplets` (kept), `rejected` (by the check alone); metrics as `generate`'s.

    Raises:
        ArtifactError: an input is missing, or the features are of another vision tower than the checkpoint's.
        GenerationError: when no row passes.
    """
    features = FeatureStore.open_many(run.features)
    stage = open_stage(run.out, KIND, _result_config(run), _inputs(run))
    if stage.finished:
        return stage.finished
    store = TripletStore.open(run.triplets)
    table = store.table()
    ranks = _ranks(run, table, features)
    keep = ranks < run.top_k
    if not keep.any():
        stage.discard()
        raise GenerationError(
            f"No triplet of {run.triplets!r} has its target among the first {run.top_k}: the best rank is "
            f"{int(ranks.min()) + 1}. Raise top_k, or use a better base checkpoint than {run.checkpoint!r}."
        )
    kept = table.filter(pa.array(keep))
    write_part(stage.work_uri, "part-00000", kept, _rejected(table, ranks, keep, run.top_k))
    metrics = text_accuracy(kept, run.judge) if run.judge else {}
    return stage.publish({"triplets": len(kept), "rejected": int((~keep).sum())}, metrics, dict(store.manifest.extra))


def _ranks(run: CheckRun, table: pa.Table, features: FeatureStore) -> np.ndarray:
    encoder, vision, _ = load_models(run.checkpoint, run.device)
    check_tower(run, features.info.encoder_digest, vision.digest)
    triplets = to_triplets(table)
    images = {image for row in triplets for image in (row.reference_id, row.target_id)}
    with progress("check texts", len(triplets) + len(images), "images and triplets") as advance:
        ranks = round_trip_ranks(encoder, features, triplets, batch=run.batch, advance=advance)
    return worse_of_both(triplets, ranks) if run.both else ranks


def _rejected(table: pa.Table, ranks: np.ndarray, keep: np.ndarray, top_k: int) -> pa.Table:
    rows = table.filter(pa.array(~keep))
    reasons = [f"round trip: its target is number {rank + 1:,}, not among the first {top_k}" for rank in ranks[~keep]]
    return (
        rows.append_column("reason", pa.array(reasons, pa.string())).select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA)
    )


def _result_config(run: CheckRun) -> dict[str, Any]:
    config = run.to_dict()
    return {name: config[name] for name in ("top_k", "both")}


def _inputs(run: CheckRun) -> dict[str, str]:
    return {
        "triplets": read_manifest(run.triplets, KIND).digest,
        "checkpoint": read_manifest(run.checkpoint, "checkpoint").digest,
        "features": "+".join(read_manifest(uri, "features").digest for uri in run.features),
    }
