"""What a matching head's verdict is worth beside its retriever's: a weight chosen on held-out queries.

Shapes: B queries, N gallery images, K answers that are looked at again, W weights.
"""

from collections.abc import Sequence

import numpy as np

from cirray.evaluation.plan import EvaluationPlan
from cirray.evaluation.reranked import DataSights, first_answers
from cirray.features.store import FeatureLookup
from cirray.generators.rerankers.base import RerankSetup
from cirray.generators.rerankers.config import MatchingConfig
from cirray.generators.rerankers.matching import MatchingReranker
from cirray.types import Query

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Those that are tried; 1 multiplies the probabilities of both."""
_TOP = 50
_SURE = 2.0
"""Standard errors that a gain must have: less could be the choice's own luck."""


class Weighing:
    """Stands in an evaluation where a reranker does: it looks at the first answers, and leaves their order."""

    def __init__(self, retriever: object, features: FeatureLookup) -> None:
        """Take a retriever with a matching head, and the images' features."""
        self._matching = MatchingReranker(MatchingConfig(weight=1.0), RerankSetup(retriever))
        self._sharpness, self._sights = 1 / float(self._matching.encoder.temperature.detach()), DataSights(features)
        self._hits: list[np.ndarray] = []

    def lifted(self, plan: EvaluationPlan, queries: Sequence[Query], scores_BN: np.ndarray) -> np.ndarray:
        """The scores as they are."""
        asked = [
            first_answers(plan, query, scores_N, _TOP, self._sights)[1]
            for query, scores_N in zip(queries, scores_BN, strict=True)
        ]
        for query, item, odds_K in zip(queries, asked, self._matching.log_odds(asked), strict=True):
            both_WK = self._sharpness * np.asarray(item.scores) + np.outer(WEIGHTS, odds_K)
            right_K = np.isin(item.ids, query.target_ids)
            self._hits.append(right_K[both_WK.argmax(axis=1)])
        return scores_BN

    def chosen(self) -> tuple[float, float]:
        """The weight with the most first answers right, and their share; 0 where none gains more than luck would."""
        hits_BW = np.array(self._hits, dtype=float)
        gain_BW = hits_BW - hits_BW[:, :1]
        error_W = gain_BW.std(axis=0) / np.sqrt(len(gain_BW))
        best = int(gain_BW.mean(axis=0).argmax())
        best = best if gain_BW[:, best].mean() > _SURE * error_W[best] else 0
        return WEIGHTS[best], float(hits_BW[:, best].mean())
