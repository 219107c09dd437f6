"""Score any composed-image retriever on any hit-rate benchmark, in bounded memory.

The retriever's own `score` does the scoring: the function that training used and that serving calls.
Shapes: B queries of a batch, N gallery images, P patches, D width, K top-k.
"""

import time
import typing
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cirray.core.errors import DataError
from cirray.core.progress import Advance, silent
from cirray.data.benchmark import Protocol
from cirray.evaluation.metrics import bootstrap_interval, group_recall, recall_by, target_ranks
from cirray.evaluation.result import EvaluationResult
from cirray.index.similarity import best_rows
from cirray.types import Query, Ranking

_SCORE_BYTES = 64 * 2**20


class ComposedEncoder(typing.Protocol):
    """The part of a retriever that evaluation uses; baselines implement the same five methods."""

    def tokenize(self, texts: list[str]) -> Any:
        """Texts to whatever `compose` takes."""

    def encode_reference(self, patches_BPD: torch.Tensor) -> Any:
        """State of the reference images."""

    def compose(self, state: Any, text: Any) -> torch.Tensor:
        """Query vectors [B, D]."""

    def encode_gallery(self, patches_BPD: torch.Tensor) -> torch.Tensor:
        """Gallery vectors [N, Q, D] or [N, D]."""

    def score(self, query_BD: torch.Tensor, gallery_NQD: torch.Tensor) -> torch.Tensor:
        """Scores [B, N], higher is better."""


class FeatureLookup(typing.Protocol):
    """Cached patch tokens by image id."""

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """Patches [n, P, D] of images, in the order asked."""


@dataclass(frozen=True)
class _Plan:
    """Queries resolved to gallery columns."""

    gallery_ids: tuple[str, ...]
    targets: list[list[int]]
    removed: list[int | None]


def evaluate_retriever(
    retriever: ComposedEncoder,
    features: FeatureLookup,
    queries: Sequence[Query],
    gallery_ids: Sequence[str],
    protocol: Protocol,
    *,
    batch: int = 128,
    top_k: int = 50,
    advance: Advance = silent,
) -> EvaluationResult:
    """Recall of a retriever, per edit type, with the ranks and the top K of every query.

    Args:
        retriever: model or baseline; put into evaluation mode for the duration.
        features: cached patch tokens of every reference and gallery image.
        queries: at least one; every target must be in the gallery.
        gallery_ids: distinct image ids; their order does not matter.
        protocol: cut-offs and reference rule.
        batch: images and queries per forward pass.
        top_k: length of the lists that are kept.
        advance: progress, one unit per gallery image and per query.

    Raises:
        DataError: no query, a doubled gallery id, a target outside the gallery, a score that is not a number.
    """
    started = time.perf_counter()
    plan = _plan(queries, gallery_ids, protocol.reference_rule)
    with _evaluation_mode(retriever), torch.inference_mode():
        gallery_NQD = _encode_gallery(retriever, features, plan.gallery_ids, batch, advance)
        parts = [
            _judge(retriever, features, queries, plan, gallery_NQD, rows, top_k, advance)
            for rows in _slices(len(queries), _query_batch(batch, len(plan.gallery_ids)))
        ]
    ranks = np.concatenate([ranks_B for ranks_B, _ in parts])
    rankings = tuple(ranking for _, found in parts for ranking in found)
    return _result(queries, plan, protocol, ranks, rankings, time.perf_counter() - started)


def protocol_line(protocol: Protocol, gallery_size: int, queries: int) -> str:
    """The protocol in one line, to be printed with every figure."""
    counts = f"{queries:,} queries over {gallery_size:,} images"
    return f"{protocol.describe()}; {counts}; ties against the method; float32 scores"


def _plan(queries: Sequence[Query], gallery_ids: Sequence[str], rule: str) -> _Plan:
    if not queries:
        raise DataError("There are no queries to evaluate. Give a data set with queries.")
    if rule not in ("remove", "keep"):
        raise DataError(f"Reference rule {rule!r} is unknown. Known: keep, remove.")
    ordered = tuple(sorted(gallery_ids))
    columns = {name: column for column, name in enumerate(ordered)}
    if len(columns) != len(ordered):
        twice = next(name for name, after in zip(ordered, ordered[1:], strict=False) if name == after)
        raise DataError(f"Image {twice!r} stands twice in the gallery; every gallery id must be there once.")
    targets = [[_column(query, name, columns) for name in query.target_ids] for query in queries]
    for query, found in zip(queries, targets, strict=True):
        if not found:
            raise DataError(f"Query {query.query_id!r} has no target. Every query needs at least one.")
    removed = [columns.get(query.reference_id) if rule == "remove" else None for query in queries]
    return _Plan(ordered, targets, removed)


def _column(query: Query, name: str, columns: dict[str, int]) -> int:
    if name not in columns:
        raise DataError(
            f"Query {query.query_id!r} has the target {name!r}, which is not among the {len(columns):,} "
            "gallery images. Add it to the gallery, or drop the query from the query file."
        )
    return columns[name]


def _query_batch(batch: int, gallery: int) -> int:
    return max(1, min(batch, _SCORE_BYTES // (4 * gallery)))


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


def _patches(retriever: ComposedEncoder, features: FeatureLookup, ids: Sequence[str]) -> torch.Tensor:
    return torch.from_numpy(np.array(features.get(list(ids)), dtype=np.float32)).to(_device_of(retriever))


def _encode_gallery(
    retriever: ComposedEncoder, features: FeatureLookup, ids: Sequence[str], batch: int, advance: Advance
) -> torch.Tensor:
    blocks = []
    for rows in _slices(len(ids), batch):
        blocks.append(retriever.encode_gallery(_patches(retriever, features, ids[rows])).float())
        advance(rows.stop - rows.start, "gallery")
    return torch.cat(blocks)


def _judge(
    retriever: ComposedEncoder, features: FeatureLookup, queries: Sequence[Query], plan: _Plan,
    gallery_NQD: torch.Tensor, rows: slice, top_k: int, advance: Advance,
) -> tuple[np.ndarray, list[Ranking]]:  # fmt: skip
    """Ranks [B] and top-K lists of one batch of queries."""
    chosen = queries[rows]
    state = retriever.encode_reference(_patches(retriever, features, [query.reference_id for query in chosen]))
    query_BD = retriever.compose(state, retriever.tokenize([query.modification for query in chosen])).float()
    scores_BN = score_rows(retriever, query_BD, gallery_NQD)
    removed, names = plan.removed[rows], [query.query_id for query in chosen]
    ranks_B = target_ranks(scores_BN, plan.targets[rows], removed, names)
    rankings = [
        _top(name, scores_N, gone, plan.gallery_ids, top_k)
        for name, scores_N, gone in zip(names, scores_BN, removed, strict=True)
    ]
    advance(len(chosen), "queries")
    return ranks_B, rankings


def score_rows(
    retriever: ComposedEncoder, query_BD: torch.Tensor, gallery_NQD: torch.Tensor, budget: int = 4 * 2**20
) -> np.ndarray:
    """Scores [B, N] (float32) by the retriever's own scorer, over gallery chunks of at most `budget` token scores."""
    tokens = gallery_NQD.shape[1] if gallery_NQD.dim() == 3 else 1
    scores_BN = np.empty((len(query_BD), len(gallery_NQD)), dtype=np.float32)
    for columns in _slices(len(gallery_NQD), max(1, budget // (len(query_BD) * tokens))):
        scores_BN[:, columns] = retriever.score(query_BD, gallery_NQD[columns]).float().cpu().numpy()
    return scores_BN


def _top(name: str, scores_N: np.ndarray, removed: int | None, ids: Sequence[str], top_k: int) -> Ranking:
    rows_N = np.arange(len(scores_N))
    if removed is not None:
        scores_N, rows_N = np.delete(scores_N, removed), np.delete(rows_N, removed)
    rows_K, scores_K = best_rows(scores_N, rows_N, top_k)
    return Ranking(name, tuple(ids[row] for row in rows_K), tuple(float(score) for score in scores_K))


def _result(
    queries: Sequence[Query], plan: _Plan, protocol: Protocol, ranks: np.ndarray,
    rankings: tuple[Ranking, ...], seconds: float,
) -> EvaluationResult:  # fmt: skip
    ks, families = tuple(protocol.ks), [query.reference_id for query in queries]
    return EvaluationResult(
        protocol=protocol_line(protocol, len(plan.gallery_ids), len(queries)),
        gallery_size=len(plan.gallery_ids),
        queries=tuple(queries),
        ranks=ranks,
        rankings=rankings,
        overall=group_recall(ranks, ks),
        per_edit=recall_by(ranks, [query.edit for query in queries], ks),
        intervals={f"R@{k}": bootstrap_interval(ranks < k, families) for k in ks},
        seconds=seconds,
    )
