"""Stage 4b: keep the generated triplets that a base retriever confirms (round trip, direction), or weight them."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.errors import GenerationError
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.evaluation.round_trip import pair_scores, round_trip_ranks, twins, worse_of_both
from cirray.features.store import FeatureStore, check_tower
from cirray.image_text import load_models
from cirray.pipelines.texts.config import CheckRun
from cirray.pipelines.texts.judging import text_accuracy
from cirray.triplets.schema import REJECTED_SCHEMA, to_triplets
from cirray.triplets.store import KIND, TripletStore, write_part


@stage_function
def run_check(run: CheckRun) -> Manifest:
    """Write the triplets that pass; the others become rejected rows with their rank, or rows of a smaller weight.

    Returns:
        Manifest of kind "triplets"; counts `triplets` (kept), `rejected` (by the check alone), or `lowered`; metrics as
        `generate`'s.

    Raises ArtifactError: an input is missing; IndexMismatchError: the features are of another vision tower than the
    checkpoint's; GenerationError when no row passes.
    """
    features = FeatureStore.open_many(run.features)
    stage = open_stage(run, KIND)
    if stage.finished:
        return stage.finished
    store = TripletStore.open(run.triplets)
    table = store.table()
    reasons, factors = _judged(run, table, features)
    passed = np.array([reason is None for reason in reasons])
    if run.failing == "drop" and not passed.any():
        stage.discard()
        raise GenerationError(
            f"No triplet of {run.triplets!r} passes {' and '.join(run.tests)}; the first one: {reasons[0]}. Raise "
            f"top_k, ask less, or use a better base checkpoint than {run.checkpoint!r}."
        )
    weighted = run.failing == "weight"
    kept = _lowered(table, factors) if weighted else table.filter(pa.array(passed))
    refused = REJECTED_SCHEMA.empty_table() if weighted else _rejected(table, reasons)
    write_part(stage.work_uri, "part-00000", kept, refused)
    metrics = text_accuracy(kept, run.judge) if run.judge else {}
    failed = {"rejected": len(refused)} | ({"lowered": int((~passed).sum())} if weighted else {})
    return stage.publish({"triplets": len(kept), **failed}, metrics, dict(store.manifest.extra))


def _judged(run: CheckRun, table: pa.Table, features: FeatureStore) -> tuple[list[str | None], np.ndarray]:
    """The first test that a row fails, in words, or None; and the factor of its weight, 1 for a row that passes."""
    encoder, vision, _ = load_models(run.checkpoint, run.device)
    check_tower(run.features, features.info.encoder_digest, run.checkpoint, vision.digest)
    triplets = to_triplets(table)
    images = {image for row in triplets for image in (row.reference_id, row.target_id)}
    ranked, scored = "rank" in run.tests, bool({"outrank", "direction"} & set(run.tests))
    total = ranked * (len(triplets) + len(images)) + scored * len(triplets)
    reasons: list[str | None] = [None] * len(triplets)
    factors = np.ones(len(triplets))
    with progress("check texts", total, "images and triplets") as advance:
        if ranked:
            ranks = round_trip_ranks(encoder, features, triplets, batch=run.batch, advance=advance)
            ranks = worse_of_both(triplets, ranks) if run.both else ranks
            _note(reasons, _rank_reasons(ranks, run.top_k))
            factors = np.minimum(factors, run.top_k / (ranks + 1.0))
        if scored:
            scores = pair_scores(encoder, features, triplets, batch=run.batch, advance=advance)
            for name in [name for name in run.tests if name != "rank"]:
                ahead = scores.target - (scores.reference if name == "outrank" else scores.back)
                ahead = np.minimum(ahead, ahead[twins(triplets)]) if run.both else ahead
                _note(reasons, [None if margin > 0 else _WORDS[name] for margin in ahead])
                factors = np.minimum(factors, np.exp(np.minimum(ahead, 0) / float(encoder.temperature)))
    return reasons, factors


_WORDS = {
    "outrank": "outrank: its target is not nearer to the query than its own reference",
    "direction": "direction: the text leads rather from target to reference",
}


def _rank_reasons(ranks: np.ndarray, top_k: int) -> list[str | None]:
    words = "round trip: its target is number {:,}, not among the first {}"
    return [None if rank < top_k else words.format(int(rank) + 1, top_k) for rank in ranks]


def _note(reasons: list[str | None], more: Sequence[str | None]) -> None:
    """Keep the first reason of each row."""
    reasons[:] = [first or other for first, other in zip(reasons, more, strict=True)]


def _lowered(table: pa.Table, factors: np.ndarray) -> pa.Table:
    """The rows with their weights times the factors."""
    at = table.schema.get_field_index("weight")
    weights = pa.array(table.column("weight").to_numpy() * factors)
    return table.set_column(at, table.schema.field("weight"), weights)


def _rejected(table: pa.Table, reasons: Sequence[str | None]) -> pa.Table:
    rows = table.filter(pa.array([reason is not None for reason in reasons]))
    told = pa.array([reason for reason in reasons if reason], pa.string())
    return rows.append_column("reason", told).select(REJECTED_SCHEMA.names).cast(REJECTED_SCHEMA)
