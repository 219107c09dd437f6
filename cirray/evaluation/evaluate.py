"""Score any composed-image retriever on any benchmark, in bounded memory.

Scores come from the retriever's own `score`, as in training and serving.
Shapes: B queries of a batch, N gallery images, P patches, D width, K top-k.
"""

import time
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.functional import normalize

from cirray.core.progress import Advance, silent
from cirray.data.benchmark import Protocol
from cirray.evaluation.measures import interval
from cirray.evaluation.metrics import recall_by, refuse_nan
from cirray.evaluation.plan import EvaluationPlan, make_plan
from cirray.evaluation.protocol_metrics import Judged, compute
from cirray.evaluation.reranked import Lifting
from cirray.evaluation.result import EvaluationResult
from cirray.evaluation.seen import SeenPictures
from cirray.evaluation.verdicts import Verdict, row_verdict
from cirray.features.store import FeatureLookup
from cirray.index.similarity import best_rows
from cirray.types import Query, Ranking

SCORE_TIES = "ties against the method; float32 scores"
_SCORE_BYTES = 64 * 2**20


class ComposedEncoder(typing.Protocol):
    """The methods of a retriever that evaluation uses; baselines have the same."""

    def tokenize(self, texts: list[str]) -> Any:
        """Texts as `compose` takes them."""

    def encode_reference(self, patches_BPD: torch.Tensor) -> Any:
        """State of the reference images."""

    def compose(self, state: Any, text: Any) -> torch.Tensor:
        """Query vectors [B, D]."""

    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Gallery vectors [N, Q, D] or [N, D]."""

    def score(self, query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
        """Scores [B, N], higher is better."""


class Answer(NamedTuple):
    """One query's ranking, that of its subset (None where it has none), and its verdict (None where not asked for)."""

    ranking: Ranking
    subset: Ranking | None
    verdict: Verdict | None


@dataclass(frozen=True)
class RankedQueries:
    """The model's rankings of every query, before counting."""

    plan: EvaluationPlan
    rankings: tuple[Ranking, ...]
    subset_rankings: tuple[Ranking, ...]
    """The subset's images without the reference, best first (CIRR); empty where queries have none."""
    verdicts: tuple[Verdict, ...]
    """One per query; empty when targets were not asked for."""
    seconds: float

    @classmethod
    def of(cls, plan: EvaluationPlan, answers: Sequence[Answer], started: float) -> "RankedQueries":
        """The answers in the order of the queries; `started` is what `time.perf_counter` said before."""
        return cls(
            plan,
            tuple(answer.ranking for answer in answers),
            tuple(answer.subset for answer in answers if answer.subset is not None),
            tuple(answer.verdict for answer in answers if answer.verdict is not None),
            time.perf_counter() - started,
        )


def evaluate_retriever(
    retriever: ComposedEncoder,
    features: FeatureLookup,
    queries: Sequence[Query],
    gallery_ids: Sequence[str],
    protocol: Protocol,
    *,
    galleries: Mapping[str, Sequence[str]] | None = None,
    batch: int = 128,
    top_k: int = 50,
    intervals: bool = False,
    advance: Advance = silent,
    rerank: Lifting | None = None,
) -> EvaluationResult:
    """The protocol's metrics of a retriever or baseline, with the ranks and the top K of every query.

    It is in evaluation mode meanwhile. Features hold every reference and gallery image; queries that name no gallery
    search `gallery_ids`. Recall always has an interval, other metrics with `intervals`. `rerank` scores the first
    answers of every query again.

    Raises DataError: no query, a query without target, a repeated gallery id, a target outside the gallery, a score
    that is not a number; ConfigError: a metric that is not known.
    """
    plan = make_plan(queries, gallery_ids, protocol, galleries)
    ranked = rank_queries(
        retriever, features, plan, batch=batch, top_k=top_k, judge=True, advance=advance, rerank=rerank
    )
    return count_result(ranked, intervals)


def rank_queries(
    retriever: ComposedEncoder, features: FeatureLookup, plan: EvaluationPlan, *, batch: int = 128, top_k: int = 50,
    judge: bool = True, advance: Advance = silent, rerank: Lifting | None = None,
) -> RankedQueries:  # fmt: skip
    """Top K of every query, and its verdict where `judge` is set; a submission needs no targets.

    Raises DataError for a score that is not a number, or an image without features.
    """
    started = time.perf_counter()
    largest = max(len(gallery) for gallery in plan.galleries.values())
    with _evaluation_mode(retriever), torch.inference_mode():
        gallery_NQD = encode_gallery(retriever, features, plan.ids, batch, advance)
        answers = [
            answer
            for rows in _slices(len(plan.queries), max(1, min(batch, _SCORE_BYTES // (4 * largest))))
            for answer in _judge(retriever, features, plan, gallery_NQD, rows, top_k, judge, advance, rerank)
        ]
    return RankedQueries.of(plan, answers, started)


@torch.inference_mode()
def encode_gallery(
    retriever: ComposedEncoder, features: FeatureLookup, ids: Sequence[str], batch: int = 128, advance: Advance = silent
) -> torch.Tensor:
    """Gallery vectors [N, D] or [N, Q, D] (float32) of images; progress is one unit per image."""
    blocks = []
    with _evaluation_mode(retriever):
        for rows in _slices(len(ids), batch):
            blocks.append(retriever.encode_gallery(patches_of(retriever, features, ids[rows])).float())
            advance(rows.stop - rows.start, "gallery")
    return torch.cat(blocks)


def encode_queries(
    retriever: ComposedEncoder, features: FeatureLookup, queries: Sequence[Query], batch: int = 128,
    advance: Advance = silent,
) -> np.ndarray:  # fmt: skip
    """Query vectors [B, D] (float32), several texts of one query averaged; progress is one unit per query."""
    blocks = []
    with _evaluation_mode(retriever), torch.inference_mode():
        for rows in _slices(len(queries), batch):
            blocks.append(_query_vectors(retriever, features, queries[rows]).cpu().numpy())
            advance(rows.stop - rows.start, "queries")
    return np.concatenate(blocks)


def count_result(ranked: RankedQueries, intervals: bool = False, ties: str = SCORE_TIES) -> EvaluationResult:
    """The protocol's metrics of ranked and judged queries."""
    plan, protocol = ranked.plan, ranked.plan.protocol
    judged = Judged(plan.queries, ranked.verdicts)
    ks, families, ranks = tuple(protocol.ks), [query.reference_id for query in plan.queries], judged.ranks
    measures = compute(protocol, judged)
    usual = {f"R@{k}" for k in ks} if "recall" in protocol.metrics else set()
    ends = {item.name: interval(item, families) for item in measures if intervals or item.name in usual}
    return EvaluationResult(
        protocol=f"{protocol.describe()}; {plan.describe()}; {ties}",
        gallery_size=len(plan.ids),
        queries=plan.queries,
        ranks=ranks,
        rankings=ranked.rankings,
        per_edit=recall_by(ranks, [query.edit for query in plan.queries], ks),
        intervals=ends,
        seconds=ranked.seconds,
        measures=measures,
        subset_rankings=ranked.subset_rankings,
    )


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


@contextmanager
def _evaluation_mode(retriever: ComposedEncoder) -> Iterator[None]:
    if not isinstance(retriever, torch.nn.Module):
        yield
        return
    was_training = retriever.training
    retriever.eval()
    try:
        yield
    finally:
        retriever.train(was_training)


def _device_of(retriever: ComposedEncoder) -> torch.device:
    if isinstance(retriever, torch.nn.Module):
        return next((parameter.device for parameter in retriever.parameters()), torch.device("cpu"))
    return torch.device("cpu")


def patches_of(retriever: ComposedEncoder, features: FeatureLookup, ids: Sequence[str]) -> torch.Tensor:
    """Stored tokens [B, P, D] (float32) of images, where the retriever is."""
    return torch.from_numpy(np.array(features.get(list(ids)), dtype=np.float32)).to(_device_of(retriever))


def _judge(
    retriever: ComposedEncoder, features: FeatureLookup, plan: EvaluationPlan, gallery_NQD: torch.Tensor, rows: slice,
    top_k: int, judge: bool, advance: Advance, rerank: Lifting | None,
) -> list[Answer]:  # fmt: skip
    """Answers of one batch of queries, in their order."""
    chosen = range(rows.start, rows.stop)
    query_BD = _query_vectors(retriever, features, plan.queries[rows])
    answers: dict[int, Answer] = {}
    for name, group in plan.by_gallery(chosen).items():
        gallery = plan.galleries[name]
        own_NQD = gallery_NQD if gallery.ids == plan.ids else gallery_NQD[torch.from_numpy(gallery.rows)]
        scores_BN = score_rows(retriever, query_BD[[at - rows.start for at in group]], own_NQD)
        refuse_nan(scores_BN, [plan.queries[at].query_id for at in group])
        order_BN = rerank.lifted(plan, [plan.queries[at] for at in group], scores_BN) if rerank else scores_BN
        for at, order_N, scores_N in zip(group, order_BN, scores_BN, strict=True):
            answers[at] = _answer(plan, plan.queries[at], order_N, scores_N, top_k, judge)
    advance(len(chosen), "queries")
    return [answers[at] for at in chosen]


def _answer(
    plan: EvaluationPlan, query: Query, order_N: np.ndarray, scores_N: np.ndarray, top_k: int, judge: bool
) -> Answer:
    """One query's answer in the order of `order_N`, with the retriever's scores."""
    gallery, removed = plan.gallery(query), plan.removed(query)
    rule, columns = plan.protocol.reference_rule, gallery.columns
    verdict = row_verdict(query, order_N, columns, removed, rule, gallery.copies) if judge else None
    rows_K = _top(order_N, removed, top_k)
    listed = tuple(gallery.ids[row] for row in rows_K), tuple(scores_N[rows_K].tolist())
    inner = {name: float(order_N[columns[name]]) for name in query.subset if name in columns}
    return Answer(Ranking(query.query_id, *listed), subset_ranking(query, inner), verdict)


def subset_ranking(query: Query, scores: Mapping[str, float]) -> Ranking | None:
    """A query's subset without the reference, best first, ties by image id; None where nothing has a score."""
    members = sorted(name for name in set(query.subset) if name != query.reference_id and name in scores)
    if not members:
        return None
    ordered = sorted(members, key=lambda name: -scores[name])
    return Ranking(query.query_id, tuple(ordered), tuple(scores[name] for name in ordered))


def _query_vectors(retriever: ComposedEncoder, features: FeatureLookup, queries: Sequence[Query]) -> torch.Tensor:
    """Vectors [B, D]; of a query with several texts the normalised mean of their normalised vectors."""
    counts = [max(1, len(query.variants)) for query in queries]
    references = [query.reference_id for query, count in zip(queries, counts, strict=True) for _ in range(count)]
    texts = [text for query in queries for text in (query.variants or (query.modification,))]
    if isinstance(features, SeenPictures):
        state = retriever.encode_reference(features.pictures(references))
    else:
        state = retriever.encode_reference(patches_of(retriever, features, references))
    flat_TD = retriever.compose(state, retriever.tokenize(texts)).float()
    if len(texts) == len(queries):
        return flat_TD
    parts = torch.split(flat_TD, counts)
    return torch.stack(
        [
            normalize(normalize(part, dim=-1).mean(dim=0), dim=-1) if query.variants else part[0]
            for query, part in zip(queries, parts, strict=True)
        ]
    )


def score_rows(
    retriever: ComposedEncoder, query_BD: torch.Tensor, gallery_NQD: torch.Tensor, budget: int = 4 * 2**20
) -> np.ndarray:
    """Scores [B, N] (float32) by the retriever's own scorer, over gallery chunks of at most `budget` token scores."""
    tokens = gallery_NQD.shape[1] if gallery_NQD.dim() == 3 else 1
    scores_BN = np.empty((len(query_BD), len(gallery_NQD)), dtype=np.float32)
    for columns in _slices(len(gallery_NQD), max(1, budget // (len(query_BD) * tokens))):
        scores_BN[:, columns] = retriever.score(query_BD, gallery_NQD[columns]).float().cpu().numpy()
    return scores_BN


def _top(scores_N: np.ndarray, removed: int | None, top_k: int) -> np.ndarray:
    """Rows of the best answers, without the removed one."""
    rows_N = np.arange(len(scores_N))
    if removed is not None:
        rows_N = np.delete(rows_N, removed)
    return best_rows(scores_N[rows_N], rows_N, top_k)[0]
