"""Stage 7 for several models at once: every row of a results table, scored on the same queries, in one report."""

from typing import Any

from cirray.core.artifacts import Manifest, open_stage, read_manifest
from cirray.core.progress import progress
from cirray.data.readers import read_dataset
from cirray.evaluation.baselines import ImageOnly
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.evaluation.report import ReportContent, ReportRow, render_table, write_report
from cirray.evaluation.samples import draw_samples
from cirray.features.store import FeatureStore
from cirray.pipelines.evaluate import read_history
from cirray.retriever import load_models
from cirray.runs import CompareRun
from cirray.triplets.store import TripletStore


def run_compare(run: CompareRun) -> Manifest:
    """Evaluate every checkpoint and write one report; the last row's queries are shown with pictures.

    Returns:
        Manifest of kind "report"; metrics hold one mapping of recalls (fractions) per row name.
    """
    inputs = {name: read_manifest(uri, "checkpoint").digest for name, uri in run.checkpoints.items()}
    stage = open_stage(run.out, "report", run.to_dict(), inputs)
    if stage.finished:
        return stage.finished
    dataset, features = read_dataset(run.data), FeatureStore.open_many(run.features)
    rows = []
    with progress("evaluate", len(run.checkpoints) + 1, "models") as advance:
        for name, encoder in _encoders(run, dataset, features):
            result = evaluate_retriever(
                encoder, features, dataset.queries, dataset.gallery_ids, dataset.protocol, galleries=dataset.galleries
            )
            headline = next(iter(result.metrics))
            rows.append(ReportRow(name, (result,), (run.seed,), labels_used=run.labels.get(name)))
            advance(1, f"{name}: {headline} {result.metrics[headline]:.3f}")
    generated = [item for uri in run.triplets for item in TripletStore.open(uri).read()]
    content = ReportContent(
        rows=tuple(rows), dataset=dataset, title=run.title, seed=run.seed,
        histories={name: read_history(uri) for name, uri in run.checkpoints.items()},
        samples=draw_samples(generated, run.samples, run.seed, run.judge) if generated else (), facts=dict(inputs),
    )  # fmt: skip
    write_report(stage.local, content)
    metrics = {row.name: dict(row.results[0].metrics) for row in rows}
    counts = {"rows": len(rows), "queries": rows[0].results[0].query_count, "gallery": len(dataset.gallery_ids)}
    return stage.publish(counts, metrics, {"protocol": rows[0].results[0].protocol, "table": render_table(rows)})


def _encoders(run: CompareRun, dataset: Any, features: FeatureStore) -> Any:
    yield "image only", ImageOnly.fit(features, dataset.gallery_ids)
    for name, uri in run.checkpoints.items():
        yield name, load_models(uri)[0]
