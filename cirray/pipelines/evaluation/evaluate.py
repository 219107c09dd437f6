"""Stage 7: score a checkpoint on a data set's queries and write the report. Ray for a large gallery alone."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from cirray.core import storage
from cirray.core.artifacts import Manifest, Stage, open_stage, read_manifest
from cirray.core.errors import ArtifactError, DataError
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset
from cirray.data.readers import read_dataset
from cirray.evaluation.baselines import ImageOnly
from cirray.evaluation.browse import Limits, render_browser, seen_result
from cirray.evaluation.chunked import Settings
from cirray.evaluation.evaluate import count_result, encode_queries, rank_queries
from cirray.evaluation.page import write_report
from cirray.evaluation.plan import EvaluationPlan, make_plan
from cirray.evaluation.report import ReportContent, ReportRow, TextSample, render_table
from cirray.evaluation.reranked import DataSights, RerankedEvaluation
from cirray.evaluation.result import EvaluationResult
from cirray.evaluation.samples import draw_samples
from cirray.evaluation.seen import Seen, seen_by
from cirray.evaluation.vectors import rank_vectors
from cirray.features.shards import read_contents
from cirray.features.store import FeatureLookup, FeatureStore, check_tower
from cirray.features.vector_files import VectorFile, open_array
from cirray.generators.rerankers.base import Remember, Reranking
from cirray.generators.rerankers.config import RerankChoice
from cirray.image_text import load_models
from cirray.index.store import open_vectors
from cirray.pipelines.cluster.answers import KEPT, Remembered, forget
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.cluster.parts import run_parts
from cirray.pipelines.data.datasets import asked_digest
from cirray.pipelines.evaluation.evaluate_config import EvaluateRun
from cirray.pipelines.evaluation.gallery import GALLERY, EncodedRows, gallery_parts, vector_files
from cirray.pipelines.evaluation.score import vector_runner
from cirray.pipelines.rewrites.texts import with_texts
from cirray.training.callbacks import HISTORY
from cirray.triplets.rows import StoredRows

_HERE = RayConfig(enabled=False)


@stage_function
def run_evaluate(run: EvaluateRun) -> Manifest:
    """Evaluate and report.

    Returns:
        Manifest of kind "report"; metrics are the checkpoint's recalls (fractions), `extra["table"]` the text table.

    Raises ArtifactError: an input is missing; IndexMismatchError: the features were made by another vision tower than
    the checkpoint's; DataError: the data set has no queries, or a query or image cannot be used.
    """
    dataset, rewrites = _dataset(run)
    stage = open_stage(run, "report", {"data": asked_digest(dataset)}, kept=(f"{GALLERY}/*", *KEPT))
    if stage.finished:
        return stage.finished
    features = FeatureStore.open_many(run.features)
    contents = {image: content for uri in run.features for image, content in read_contents(uri).items()}
    dataset = dataclasses.replace(dataset, images=dataclasses.replace(dataset.images, contents=contents))
    rows, reranking = _rows(run, stage, dataset, features)
    reranked = {"rerank": reranking.done()} if reranking else {}
    content = ReportContent(
        rows=rows, dataset=dataset, histories=_histories(run), samples=_samples(run),
        facts=_facts(run, stage.inputs, rewrites, reranked), title=f"{run.name} on {dataset.name}", shown=run.shown,
        seed=run.seed,
    )  # fmt: skip
    write_report(stage.local, content, run.html)
    result = rows[-1].results[0]
    if run.browse:
        limits, runs = Limits(pictured=run.browse), [seen_result(result, run.name)]
        page = render_browser(
            content.title, result.protocol, result.queries, runs, dataset.images, limits, dataset.protocol.ks
        )
        (stage.local / "browse.html").write_text(page, encoding="utf-8")
    counts = {"queries": result.query_count, "gallery": result.gallery_size, "rows": len(rows)}
    counts |= {"unscored": reranking.unscored} if reranking else {}
    extra = {"protocol": result.protocol, "table": render_table(rows)} | ({"texts": rewrites} if rewrites else {})
    extra |= reranked
    storage.remove(storage.join(stage.work_uri, GALLERY))
    forget(stage.work_uri)
    return stage.publish(counts, _metrics(result), extra)


def _dataset(run: EvaluateRun) -> tuple[CirDataset, dict[str, Any]]:
    """The data set with rewritten queries, if any, and the digest of the rewrites."""
    dataset = read_dataset(run.data)
    if not dataset.queries:
        raise DataError(
            f"Data set {dataset.name!r} has no queries, so there is nothing to evaluate. Add a queries file "
            "(reference, target, modification)."
        )
    ks = run.ks or dataset.protocol.ks
    dataset = dataclasses.replace(dataset, protocol=dataclasses.replace(dataset.protocol, ks=tuple(ks)))
    return with_texts(dataset, run.texts) if run.texts else (dataset, {})


def _rows(
    run: EvaluateRun, stage: Stage, dataset: CirDataset, features: FeatureStore
) -> tuple[tuple[ReportRow, ...], Reranking | None]:
    """The rows, and the reranker of the last, if it has one."""
    encoder, vision, transform = load_models(run.checkpoint, run.device)
    check_tower(run.features, features.info.encoder_digest, run.checkpoint, vision.digest)
    plan = make_plan(dataset.queries, dataset.gallery_ids, dataset.protocol, dataset.galleries)
    rows, large = [], len(plan.ids) >= run.ray_from
    if run.image_only_row:
        baseline = ImageOnly.fit(features, plan.ids)
        if large:
            made = cast("np.ndarray", EncodedRows(baseline, features, plan.ids, run.batch))
            gallery = [VectorFile("image only", plan.ids, made)]
            result = _score_files(run, plan, features, baseline, "image only", gallery)
        else:
            result = _score(run, plan, features, baseline, "image only")
        rows.append(ReportRow("image only", (result,)))
    seen = seen_by(encoder, features, dataset.images, transform)
    rerank = reranked_evaluation(run.rerank, encoder, dataset, features, memory(stage), run.device)
    if run.index:
        path, ids = open_vectors(run.index, encoder.index_digests, features.info.encoder_digest)
        indexed = [VectorFile(str(path), ids, open_array(path))]
        result = _score_files(run, plan, seen, encoder, run.name, indexed, run.ray)
    elif large and not rerank:
        result = _score_parts(run, stage, plan, seen, encoder)
    else:
        result = _score(run, plan, seen, encoder, run.name, rerank)
    rows.append(ReportRow(run.name, (result,), (run.seed,)))
    return tuple(rows), rerank.reranking if rerank else None


def memory(stage: Stage) -> Remember:
    """Keeps a reranker's answers below a stage that is not finished; see `forget`."""
    return Remembered(stage.work_uri, "rerank")


def reranked_evaluation(
    choice: RerankChoice | None, encoder: Any, dataset: CirDataset, features: FeatureLookup, remember: Remember,
    device: str = "cpu",
) -> RerankedEvaluation | None:  # fmt: skip
    """What scores the first answers of a data set's queries again, if anything does."""
    if choice is None:
        return None
    return RerankedEvaluation(Reranking(choice, encoder, device, remember), DataSights(features, dataset.images))


def _score(
    run: EvaluateRun, plan: EvaluationPlan, features: Seen, retriever: Any, name: str,
    rerank: RerankedEvaluation | None = None,
) -> EvaluationResult:  # fmt: skip
    """Score with gallery vectors in this process's memory."""
    with progress(f"evaluate {name}", len(plan.ids) + len(plan.queries), "images and queries") as advance:
        ranked = rank_queries(
            retriever, features, plan, batch=run.batch, top_k=run.top_k, advance=advance, rerank=rerank
        )
    return count_result(ranked, run.intervals)


def _score_parts(
    run: EvaluateRun, stage: Stage, plan: EvaluationPlan, features: Seen, retriever: Any
) -> EvaluationResult:
    """Score with gallery vectors that actors, or this process, write into files first."""
    ray = run.ray.model_copy(update={"enabled": run.ray.enabled and (bool(run.pool.gpus) or run.device == "cpu")})
    device = run.pool.device if ray.enabled else run.device
    settings = {
        "checkpoint": run.checkpoint, "features": run.features, "work_uri": stage.work_uri, "batch": run.batch,
        "device": device,
    }  # fmt: skip
    run_parts(stage, gallery_parts(stage, plan.ids, settings, run.pool), ray)
    shared = ray if storage.is_local(stage.work_uri) else _HERE
    return _score_files(run, plan, features, retriever, run.name, vector_files(stage.work_uri, plan.ids), shared)


def _score_files(
    run: EvaluateRun, plan: EvaluationPlan, features: Seen, retriever: Any, name: str, gallery: Sequence[VectorFile],
    ray: RayConfig = _HERE,
) -> EvaluationResult:  # fmt: skip
    """Score with gallery vectors that stay on disk; they are kept as the model scores them."""
    with progress(f"evaluate {name}", 2 * len(plan.queries), "queries") as advance:
        query_BD = encode_queries(retriever, features, plan.queries, run.batch, advance)
        queries = VectorFile("the checkpoint", tuple(query.query_id for query in plan.queries), query_BD)
        settings = Settings(run.device, normalize=False)
        with vector_runner(ray, run.parts * len(gallery), run.device) as work:
            ranked = rank_vectors(
                plan, queries, gallery, settings, top_k=run.top_k, parts=run.parts, run=work, advance=advance
            )
    return count_result(ranked, run.intervals)


def _histories(run: EvaluateRun) -> dict[str, list[dict[str, float]]]:
    """Training curves by the last part of their artifact's name (or all of it, if that is taken)."""
    found = {}
    for uri in dict.fromkeys((*run.histories, run.checkpoint)):
        if rows := read_history(uri):
            name = storage.without_query(uri).rstrip("/").rpartition("/")[2]
            found[uri if name in found else name] = rows
        elif uri in run.histories:
            raise ArtifactError(f"{uri!r} holds no {HISTORY}; leave it out of `histories`.")
    return found


def read_history(uri: str) -> list[dict[str, float]]:
    """Rows of an artifact's `history.jsonl`, in step order; none of a checkpoint that was not trained here."""
    if not storage.exists(storage.join(uri, HISTORY)):
        return []
    lines = storage.read_bytes(storage.join(uri, HISTORY)).decode().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _samples(run: EvaluateRun) -> tuple[TextSample, ...]:
    if not run.triplets or not run.samples:
        return ()
    return draw_samples(StoredRows(run.triplets), run.samples, run.seed, run.judge)


def _facts(
    run: EvaluateRun, inputs: dict[str, str], rewrites: dict[str, Any], reranked: dict[str, str]
) -> dict[str, str]:
    places = {"checkpoint": run.checkpoint}
    places |= {f"features {at}": uri for at, uri in enumerate(run.features)}
    places |= {f"triplets {at}": uri for at, uri in enumerate(run.triplets)}
    facts = {name: f"{uri}\ndigest {inputs[name]}" for name, uri in places.items()}
    facts |= {"texts": json.dumps(rewrites, indent=2)} if rewrites else {}
    facts |= reranked
    trained = read_manifest(run.checkpoint, "checkpoint")
    facts["trained"] = f"{trained.created}, cirray {trained.cirray_version}"
    facts["training config"] = json.dumps(trained.identity, indent=2)
    return facts


def _metrics(result: EvaluationResult) -> dict[str, Any]:
    figures: dict[str, Any] = dict(result.metrics)
    figures["intervals_95"] = {name: list(ends) for name, ends in result.intervals.items()}
    figures["per_edit"] = {name: group.recalls for name, group in result.per_edit.items()}
    return figures
