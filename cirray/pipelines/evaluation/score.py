"""Score saved vectors, ranked lists or a submission file. No model; Ray only if asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cirray.core import storage
from cirray.core.artifacts import Stage, open_stage
from cirray.core.contents import file_digest
from cirray.core.progress import progress
from cirray.core.unfinished import stage_function
from cirray.data.benchmark import CirDataset, Protocol
from cirray.data.readers import read_dataset
from cirray.evaluation.chunked import Settings
from cirray.evaluation.evaluate import SCORE_TIES, count_result
from cirray.evaluation.given import open_vectors, plan_for
from cirray.evaluation.lists import LIST_TIES, depth_note, knows_subsets, rank_lists, split_metrics
from cirray.evaluation.page import write_report
from cirray.evaluation.rankings import read_lists
from cirray.evaluation.report import ReportContent, ReportRow
from cirray.evaluation.result import EvaluationResult
from cirray.evaluation.spellings import spellings_of
from cirray.evaluation.tables import figures_table, percent
from cirray.evaluation.vectors import Runner, rank_vectors
from cirray.pipelines.cluster.config import RayConfig
from cirray.pipelines.data.datasets import asked_digest
from cirray.pipelines.evaluation.config import ScoreRun


@dataclass(frozen=True)
class Scored:
    """The figures, what was left out, and where they were written."""

    result: EvaluationResult
    notes: tuple[str, ...] = ()
    out: str = ""

    def text(self) -> str:
        """Table, protocol and notes."""
        written = (f"written: {self.out}",) if self.out else ()
        return "\n".join([figures_table(self.result), *self.notes, *written])


@stage_function
def run_score(run: ScoreRun) -> Scored:
    """Count a benchmark's figures from saved vectors or lists.

    Raises ConfigError: fields that do not go together; DataError: files that do not fit the benchmark: sizes, NaN,
    repeated or unknown ids, missing queries (named); ArtifactError: `out` holds something else.
    """
    dataset = read_dataset(run.data, training=False)
    protocol = replace(dataset.protocol, reference_rule=run.reference_rule or dataset.protocol.reference_rule)
    count = _lists_counted if run.ranks or run.subsets else _vectors_counted
    stage = _report(run, dataset)
    result, notes = count(run, dataset, protocol)
    if stage is not None and not stage.finished:
        _write(stage, run, dataset, result)
    return Scored(result, notes, run.out)


def _report(run: ScoreRun, dataset: CirDataset) -> Stage | None:
    """The report's stage, opened before any work."""
    if not run.out:
        return None
    files = {"queries": run.queries, "ranks": run.ranks, "subsets": run.subsets}
    files |= {f"gallery {at}": path for at, path in enumerate(run.gallery)}
    inputs = {name: _digest(path) for name, path in files.items() if path}
    return open_stage(run, "report", {**inputs, "data": asked_digest(dataset)})


def _vectors_counted(
    run: ScoreRun, dataset: CirDataset, protocol: Protocol
) -> tuple[EvaluationResult, tuple[str, ...]]:
    spellings = spellings_of(dataset)
    given = open_vectors(run.queries, run.query_ids, run.gallery, run.gallery_ids, spellings)
    plan, notes = plan_for(dataset, protocol, (name for file in given.gallery for name in file.ids), spellings)
    settings = Settings(run.device, run.sums, run.normalize, run.budget_mb * 2**20)
    parts = run.parts * len(run.gallery)
    with vector_runner(run.ray, parts, run.device) as work, progress("score", len(plan.queries), "queries") as advance:
        ranked = rank_vectors(
            plan, given.queries, given.gallery, settings, top_k=run.top_k, parts=run.parts, run=work, advance=advance
        )
    return count_result(ranked, run.intervals, SCORE_TIES), (*notes, *spellings.note())


@contextmanager
def vector_runner(ray: RayConfig, parts: int, device: str) -> Iterator[Runner | None]:
    """Ray tasks for several parts, this process for one, since starting a cluster takes longer than most scorings."""
    if not ray.enabled or parts == 1:
        yield None
        return
    from cirray.pipelines.cluster.shards import ray_runner

    with ray_runner(ray, gpus=1.0 if device.startswith("cuda") else 0.0) as work:
        yield work


def _lists_counted(run: ScoreRun, dataset: CirDataset, protocol: Protocol) -> tuple[EvaluationResult, tuple[str, ...]]:
    spellings = spellings_of(dataset)
    lists, subsets = (spellings.lists(found) for found in read_lists(run.ranks, run.subsets, run.row, run.seed))
    targets = (image for query in dataset.queries for image in query.target_ids)
    named = (*targets, *(image for given in (lists, subsets) for ids in given.values() for image in ids))
    known = bool(subsets)
    if lists and not subsets and any(query.subset for query in dataset.queries):
        known = knows_subsets(plan_for(dataset, protocol, named, spellings)[0], lists)
    usable, left_out = split_metrics(protocol, bool(lists), known)
    plan, notes = plan_for(dataset, usable, named, spellings)
    ranked = rank_lists(plan, lists, subsets, run.ranks or run.subsets)
    missing = "a subset ranking (subsets=FILE)" if lists else "lists of the gallery (ranks=FILE)"
    if left_out:
        notes = (*notes, f"Left out without {missing}: {', '.join(left_out)}.")
    depth = depth_note(lists, plan)
    notes = (*notes, *spellings.note(), *((depth,) if depth else ()))
    return count_result(ranked, run.intervals, LIST_TIES), notes


def _write(stage: Stage, run: ScoreRun, dataset: CirDataset, result: EvaluationResult) -> None:
    content = ReportContent((ReportRow(run.name, (result,)),), dataset, title=f"{run.name} on {dataset.name}")
    write_report(stage.local, content, html=False)
    figures = {name: percent(value) for name, value in result.metrics.items()}
    counts = {"queries": result.query_count, "gallery": result.gallery_size}
    stage.publish(counts, dict(result.metrics), {"protocol": result.protocol, "percent": figures})


def _digest(path: str) -> str:
    folder = storage.join(path, "rankings.parquet")
    return file_digest(folder if storage.exists(folder) else path)
