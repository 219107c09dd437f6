"""Stage 7 for several models at once: every row of a results table, scored on the same queries, in one report."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from cirray.core.artifacts import Manifest, open_stage
from cirray.core.errors import ConfigError, unknown_name
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.data.readers import read_dataset
from cirray.evaluation.baselines import ImageOnly
from cirray.evaluation.evaluate import evaluate_retriever
from cirray.evaluation.page import write_report
from cirray.evaluation.report import ReportContent, ReportRow, render_table
from cirray.evaluation.samples import draw_samples
from cirray.evaluation.seen import Seen, seen_by
from cirray.features.store import FeatureStore, check_tower
from cirray.image_text import load_models
from cirray.models.config import RETRIEVERS
from cirray.pipelines.cluster.answers import KEPT, forget
from cirray.pipelines.data.datasets import asked_digest
from cirray.pipelines.evaluation.config import CompareRun
from cirray.pipelines.evaluation.evaluate import memory, read_history, reranked_evaluation
from cirray.pipelines.evaluation.query_shapes import ShapeRow, measure_shapes, shapes_table
from cirray.pipelines.rewrites.texts import with_texts
from cirray.search_engine import SearchEngine
from cirray.triplets.rows import StoredRows


@stage_function
def run_compare(run: CompareRun) -> Manifest:
    """Evaluate every checkpoint and write one report; the last row's queries are shown with pictures.

    A row may have rewritten texts; its queries, gallery and rules are those of the others.

    Returns: Manifest of kind "report"; metrics hold one mapping of recalls (fractions) per row name.

    Raises ConfigError without a row, or for texts, features or shapes of an unknown row.
    """
    if not run.checkpoints and not run.encoders:
        raise ConfigError("There is nothing to compare; name checkpoints with checkpoints.NAME=PLACE, once for each.")
    if run.row_shapes and not run.judge:
        raise ConfigError("row_shapes are measured by the scenes of a shapes world; name its root with judge=PLACE.")
    for field in ("row_features", "row_texts", "row_rerank", "row_shapes"):
        for name in getattr(run, field):
            if name not in (*run.checkpoints, *run.encoders):
                raise ConfigError(unknown_name(f"row in {field}", name, (*run.checkpoints, *run.encoders)))
    dataset = read_dataset(run.data)
    stage = open_stage(run, "report", {"data": asked_digest(dataset)}, KEPT)
    if stage.finished:
        return stage.finished
    features = FeatureStore.open_many(run.features)
    rows, reranked, remember = [], dict[str, str](), memory(stage)
    with progress("evaluate", len(run.checkpoints) + len(run.encoders) + 1, "models") as advance:
        for name, encoder, seen in _encoders(run, dataset, features):
            asked = with_texts(dataset, run.row_texts[name])[0] if name in run.row_texts else dataset
            rerank = reranked_evaluation(run.row_rerank.get(name), encoder, dataset, seen, remember)
            result = evaluate_retriever(
                encoder, seen, asked.queries, dataset.gallery_ids, dataset.protocol, galleries=dataset.galleries,
                rerank=rerank,
            )  # fmt: skip
            result = dataclasses.replace(result, queries=tuple(dataset.queries))
            reranked |= {f"rerank {name}": rerank.reranking.done()} if rerank else {}
            headline = next(iter(result.metrics))
            rows.append(ReportRow(name, (result,), (run.seed,), labels_used=run.labels.get(name)))
            advance(1, f"{name}: {headline} {result.metrics[headline]:.3f}")
    shapes = {name: _shapes(run, name) for name in run.row_shapes}
    tables = {f"query shapes of {name}": shapes_table(name, found) for name, found in shapes.items()}
    content = ReportContent(
        rows=tuple(rows), dataset=dataset, title=run.title, seed=run.seed,
        histories={name: curve for name, uri in run.checkpoints.items() if (curve := read_history(uri))},
        samples=draw_samples(StoredRows(run.triplets), run.samples, run.seed, run.judge),
        facts=stage.inputs | reranked | tables,
    )  # fmt: skip
    write_report(stage.local, content)
    metrics = {row.name: dict(row.results[0].metrics) for row in rows}
    counts = {"rows": len(rows), "queries": rows[0].results[0].query_count, "gallery": len(dataset.gallery_ids)}
    table = "\n\n".join([render_table(rows), *tables.values()])
    measured = {name: [row.to_dict() for row in found] for name, found in shapes.items()}
    extra = {"protocol": rows[0].results[0].protocol, "table": table} | ({"shapes": measured} if measured else {})
    forget(stage.work_uri)
    return stage.publish(counts, metrics, extra)


def _shapes(run: CompareRun, name: str) -> list[ShapeRow]:
    """What each shape of query does to a row's model.

    Raises:
        ConfigError: for a row that is no checkpoint.
    """
    if name not in run.checkpoints:
        raise ConfigError(f"The shapes of {name!r} cannot be measured: it is no checkpoint, so it has no index.")
    engine = SearchEngine.open(run.checkpoints[name], run.row_shapes[name])
    return measure_shapes(engine, run.judge, run.shape_queries, run.shape_seeds)


def _encoders(run: CompareRun, dataset: CirDataset, features: FeatureStore) -> Iterator[tuple[str, Any, Seen]]:
    """Name, encoder and the features of its tower, row by row."""
    yield "image only", ImageOnly.fit(features, dataset.gallery_ids), features

    def seen(name: str) -> FeatureStore:
        return FeatureStore.open_many(run.row_features[name]) if name in run.row_features else features

    for name, encoder in run.encoders.items():
        store, texts = seen(name), [query.modification for query in dataset.queries]
        yield name, RETRIEVERS.get(encoder.kind).build(encoder.settings, texts, store.shape[1], 0).eval(), store
    for name, uri in run.checkpoints.items():
        encoder, tower, transform = load_models(uri)
        store = seen(name)
        check_tower(run.row_features.get(name, run.features), store.info.encoder_digest, uri, tower.digest)
        yield name, encoder, seen_by(encoder, store, dataset.images, transform)
