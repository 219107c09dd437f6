"""Evaluate saved vectors: queries resolved to rows of files, ranked by `chunked`, turned into verdicts.

The work on a part of the gallery is a `Job`, plain data for any process. `in_process` runs them one after another;
`cirray.pipelines.cluster.shards` gives them to Ray.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cirray.core.errors import DataError
from cirray.core.progress import Advance, silent
from cirray.evaluation.chunked import (
    Partial,
    Question,
    Settings,
    Shard,
    merge,
    merge_probes,
    probe_scores,
    scan,
    split_rows,
)
from cirray.evaluation.evaluate import Answer, RankedQueries, subset_ranking
from cirray.evaluation.plan import EvaluationPlan, Gallery
from cirray.evaluation.verdicts import probes_of, verdict_from_scores
from cirray.features.vector_files import VectorFile, open_array
from cirray.types import Query, Ranking


@dataclass(frozen=True)
class Job:
    """One part of a gallery: rows of a file and their rows in the gallery. Without `scores`: find the probes."""

    path: str
    picked: np.ndarray
    rows: np.ndarray
    settings: Settings


Runner = Callable[[Question, Sequence[Job], np.ndarray | None], list[Any]]
"""Runs jobs in any order; results are in the jobs' order."""


def run_job(question: Question, job: Job, scores_P: np.ndarray | None, vectors: np.ndarray | None = None) -> Any:
    """Probe scores of a part of a gallery, or with these its partial result; opens the file if it is not given."""
    vectors = open_array(job.path) if vectors is None else vectors
    whole = len(job.picked) == len(vectors) and bool((job.picked == np.arange(len(vectors))).all())
    shard = Shard(vectors, rows=job.rows, picked=None if whole else job.picked)
    if scores_P is None:
        return probe_scores(question, shard, job.settings)
    return scan(question, shard, scores_P, job.settings)


def in_process(files: Sequence[VectorFile]) -> Runner:
    """The simplest runner: one part after another, on open files."""
    opened = {file.path: file.vectors for file in files}
    return lambda question, jobs, scores_P: [run_job(question, job, scores_P, opened[job.path]) for job in jobs]


def rank_vectors(
    plan: EvaluationPlan, queries: VectorFile, gallery: Sequence[VectorFile], settings: Settings | None = None, *,
    top_k: int = 50, parts: int = 1, judge: bool = True, run: Runner | None = None, advance: Advance = silent,
) -> RankedQueries:  # fmt: skip
    """Top K and verdict of every query from saved vectors, in bounded memory; with `judge` also by its targets.

    Vectors of other queries are ignored; each image of the plan has one, in one of the files. `parts` are those of
    every file, for runners that are parallel; None runs in this process.

    Raises:
        DataError: a query or image without a vector, an image in two files, vectors that do not fit or are not finite.
    """
    started, settings = time.perf_counter(), settings or Settings()
    query_BD = _query_matrix(plan, queries, settings)
    rows, run = _rows_of(plan, gallery), run or in_process(gallery)
    places = {name: _locate(name, plan, gallery, rows) for name in plan.galleries}
    found: dict[int, Answer] = {}
    for name, positions in plan.by_gallery(range(len(plan.queries))).items():
        own = plan.galleries[name]
        jobs = _jobs(places[name], gallery, settings, parts)
        question, probes = _question(plan, own, positions, query_BD[positions], top_k, judge)
        scores_P = merge_probes(question, run(question, jobs, None))
        partial = merge(run(question, jobs, scores_P))
        for at, answer in zip(positions, _answers(plan, own, positions, probes, scores_P, partial, judge), strict=True):
            found[at] = answer
        advance(len(positions), name or "queries")
    answers = [found[at] for at in range(len(plan.queries))]
    return RankedQueries.of(plan, answers, started)


def _query_matrix(plan: EvaluationPlan, queries: VectorFile, settings: Settings) -> np.ndarray:
    """Vectors [B, D] (float32) of the plan's queries."""
    if queries.vectors.ndim != 2:
        raise DataError(f"Query vectors have the shape {queries.vectors.shape}; one vector a query, [N, D], is needed.")
    row_of = {name: row for row, name in enumerate(queries.ids)}
    missing = [query.query_id for query in plan.queries if query.query_id not in row_of]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(plan.queries):,} queries have no vector in {queries.path!r}; the first is "
            f"{missing[0]!r}, and the file holds ids like {_example([queries])!r}. docs/BENCHMARKS.md lists the ids."
        )
    query_BD = np.asarray(queries.vectors[[row_of[query.query_id] for query in plan.queries]], dtype=np.float32)
    if not settings.normalize:
        return query_BD
    lengths = np.linalg.norm(query_BD.astype(np.float64), axis=1, keepdims=True)
    return (query_BD / np.maximum(lengths, 1e-12)).astype(np.float32)


def _rows_of(plan: EvaluationPlan, gallery: Sequence[VectorFile]) -> list[dict[str, int]]:
    """Row of every image of the plan, by file."""
    union = set(plan.ids)
    return [{name: row for row, name in enumerate(file.ids) if name in union} for file in gallery]


def _locate(
    name: str, plan: EvaluationPlan, gallery: Sequence[VectorFile], rows: Sequence[Mapping[str, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """File number and row of every image of one gallery.

    Each of several galleries may have its own file (Fashion IQ's categories share images): the only file with a whole
    gallery is used for it.
    """
    own = plan.galleries[name]
    files = [number for number, held in enumerate(rows) if name and all(image in held for image in own.ids)]
    files = files if len(files) == 1 else list(range(len(rows)))
    file_of, row_of = np.full(len(own), -1), np.zeros(len(own), dtype=np.int64)
    for number in files:
        for column, image in enumerate(own.ids):
            row = rows[number].get(image)
            if row is None:
                continue
            if file_of[column] >= 0:
                raise _twice(image, gallery[int(file_of[column])], gallery[number], name)
            file_of[column], row_of[column] = number, row
    missing = np.flatnonzero(file_of < 0)
    if len(missing):
        which = f" of {name!r}" if name and len(plan.galleries) <= _FEW else ""
        raise DataError(
            f"{len(missing):,} of {len(own):,} gallery images{which} have no vector; the first is "
            f"{own.ids[int(missing[0])]!r}, and the files hold ids like {_example(gallery)!r}. Give features of the "
            "whole gallery, under the data set's own image ids."
        )
    return file_of, row_of


def _twice(image: str, one: VectorFile, other: VectorFile, name: str) -> DataError:
    advice = "Give every image once"
    advice += f", or one file for each gallery that holds all of its images ({name!r} and the others)" if name else ""
    return DataError(f"Image {image!r} is in {one.path!r} and in {other.path!r}. {advice}.")


def _example(gallery: Sequence[VectorFile]) -> str:
    return next((file.ids[0] for file in gallery if file.ids), "")


_FEW = 10


def _jobs(
    where: tuple[np.ndarray, np.ndarray], gallery: Sequence[VectorFile], settings: Settings, parts: int
) -> list[Job]:
    file_of, row_of = where
    jobs = []
    for number in np.unique(file_of):
        columns = np.flatnonzero(file_of == number)
        columns = columns[np.argsort(row_of[columns], kind="stable")]
        for start, stop in split_rows(len(columns), min(parts, len(columns))):
            piece = columns[start:stop]
            jobs.append(Job(gallery[int(number)].path, row_of[piece], piece.astype(np.int64), settings))
    return jobs


def _question(
    plan: EvaluationPlan, own: Gallery, positions: Sequence[int], query_BD: np.ndarray, top_k: int, judge: bool
) -> tuple[Question, list[tuple[str, ...]]]:
    rule = plan.protocol.reference_rule
    chosen = [plan.queries[at] for at in positions]
    asked = chosen if judge else [replace(query, target_ids=(), soft=()) for query in chosen]
    placed = [_placed(query, own, probes_of(seen, rule)) for query, seen in zip(chosen, asked, strict=True)]
    probes = [tuple(name for name, _ in pairs) for pairs in placed]
    removed = [plan.removed(query) for query in chosen]
    question = Question(
        query_BD, tuple(query.query_id for query in chosen),
        np.repeat(np.arange(len(chosen)), [len(names) for names in probes]),
        np.asarray([column for pairs in placed for _, column in pairs], dtype=np.int64),
        np.asarray([-1 if row is None else row for row in removed], dtype=np.int64),
        min(top_k, len(own)), own.ids,
    )  # fmt: skip
    return question, probes


def _placed(query: Query, own: Gallery, names: Sequence[str]) -> list[tuple[str, int]]:
    """Probes in the gallery, with their columns; all columns of a repeated target."""
    found = []
    for name in names:
        if name in own.columns:
            columns = own.copies.get(name, ()) if name in query.target_ids else ()
            found += [(name, column) for column in columns or (own.columns[name],)]
    return found


def _answers(
    plan: EvaluationPlan, own: Gallery, positions: Sequence[int], probes: Sequence[tuple[str, ...]],
    scores_P: np.ndarray, partial: Partial, judge: bool,
) -> list[Answer]:  # fmt: skip
    found, start = [], 0
    for place, at in enumerate(positions):
        query, names = plan.queries[at], probes[place]
        span = slice(start, start + len(names))
        scores = dict(zip(names, scores_P[span].tolist(), strict=True))
        above = dict(zip(names, partial.above[span].tolist(), strict=True))
        verdict = verdict_from_scores(query, scores, above, plan.protocol.reference_rule) if judge else None
        found.append(Answer(_ranking(query, own, partial, place), subset_ranking(query, scores), verdict))
        start += len(names)
    return found


def _ranking(query: Query, own: Gallery, partial: Partial, place: int) -> Ranking:
    filled = partial.rows[place] < len(own)
    ids = tuple(own.ids[row] for row in partial.rows[place][filled])
    return Ranking(query.query_id, ids, tuple(partial.scores[place][filled].tolist()))
