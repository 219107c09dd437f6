"""Evaluation with a reranker: the first answers of every query, scored again, stand before all others.

Shapes: B queries, N gallery images, K answers that are scored again, P patches, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from cirray.data.benchmark import ImageTable
from cirray.data.images import open_place
from cirray.evaluation.plan import EvaluationPlan
from cirray.features.store import FeatureLookup
from cirray.generators.rerankers.base import Asked, Reranking
from cirray.index.similarity import best_rows
from cirray.types import Query


@dataclass(frozen=True)
class DataSights:
    """A data set's images: cached patches, and pictures where a reranker looks at these."""

    features: FeatureLookup
    images: ImageTable | None = None

    def patches(self, ids: Sequence[str]) -> torch.Tensor:
        """See `Sights.patches`."""
        return torch.from_numpy(np.array(self.features.get(list(ids)), dtype=np.float32))

    def image(self, image_id: str) -> Image.Image:
        """See `Sights.image`."""
        assert self.images is not None
        place = self.images.place(image_id)
        return open_place(place, name=place.name(image_id))

    def picture_key(self, image_id: str) -> str:
        """See `Sights.picture_key`."""
        assert self.images is not None
        return self.images.place(image_id).text()


class Lifting(Protocol):
    """Changes the retriever's order."""

    def lifted(self, plan: EvaluationPlan, queries: Sequence[Query], scores_BN: np.ndarray) -> np.ndarray:
        """Scores `[B, N]` that give the order, of queries of one gallery."""


@dataclass(frozen=True)
class RerankedEvaluation:
    """A reranker with the images that it is shown."""

    reranking: Reranking
    sights: DataSights

    def lifted(self, plan: EvaluationPlan, queries: Sequence[Query], scores_BN: np.ndarray) -> np.ndarray:
        """Scores `[B, N]` (float64) in which the answers that were scored again are above all others, in their new
        order; equal exactly where both the reranker's and the retriever's scores are.

        Args:
            plan: galleries and rules.
            queries: of one gallery.
            scores_BN: the retriever's; no NaN.

        Raises:
            GenerationError: nothing can be scored now.
        """
        lifted_BN = scores_BN.astype(np.float64)
        first = [
            first_answers(plan, query, scores_N, self.reranking.top, self.sights)
            for query, scores_N in zip(queries, scores_BN, strict=True)
        ]
        levels = self.reranking.orders([asked for _, asked in first])
        for place, ((rows_K, _), level_K) in enumerate(zip(first, levels, strict=True)):
            if level_K is not None:
                above = float(scores_BN[place].max()) + 1
                lifted_BN[place, rows_K] = above + _dense(level_K, scores_BN[place, rows_K])
        return lifted_BN


def first_answers(
    plan: EvaluationPlan, query: Query, scores_N: np.ndarray, top: int, sights: DataSights
) -> tuple[np.ndarray, Asked]:
    """Gallery rows `[K]` of a query's first answers, and what a reranker is asked about them."""
    rows_N = np.arange(len(scores_N))
    if (removed := plan.removed(query)) is not None:
        rows_N = np.delete(rows_N, removed)
    rows_K, scores_K = best_rows(scores_N[rows_N], rows_N, top)
    ids = plan.gallery(query).ids
    answers = tuple(ids[row] for row in rows_K), tuple(scores_K.tolist())
    return rows_K, Asked(query.modification, *answers, sights, query.reference_id)


def _dense(level_K: np.ndarray, scores_K: np.ndarray) -> np.ndarray:
    """Places `[K]` from 0 by level, then score; equal where both are."""
    pairs_K2 = np.stack([level_K.astype(np.float64), scores_K.astype(np.float64)], axis=1)
    return np.unique(pairs_K2, axis=0, return_inverse=True)[1].reshape(-1)
