"""Result of evaluating one model on one benchmark. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cirray.evaluation.measures import Measure
from cirray.evaluation.metrics import NEVER, GroupRecall
from cirray.types import Query, Ranking


@dataclass(frozen=True)
class EvaluationResult:
    """Ranks and rankings of every query, and the counts.

    `ranks` (int64, one per query) counts ties against the method; `rankings` list the top K with ties broken by image
    id, so with tied scores a target's place in the list may be before its rank.
    """

    protocol: str
    """One line that names data set, gallery, reference rule and tie rule: print it with every figure."""
    gallery_size: int
    queries: tuple[Query, ...]
    ranks: np.ndarray
    rankings: tuple[Ranking, ...]
    measures: tuple[Measure, ...]
    """The protocol's metrics with the integers behind them."""
    per_edit: dict[str, GroupRecall] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap interval of every recall; queries of one reference are resampled together."""
    seconds: float = 0.0
    subset_rankings: tuple[Ranking, ...] = ()
    """Order of every query's subset (CIRR), by query; empty where queries have none."""

    @property
    def metrics(self) -> dict[str, float]:
        """The protocol's metrics as fractions in [0, 1] by name ("R@1", "Rs@1", "mAP@10")."""
        return {item.name: item.value for item in self.measures}

    @property
    def hit_counts(self) -> dict[str, int]:
        """Integer hits of every metric that has them."""
        return {item.name: item.hits for item in self.measures if item.hits is not None}

    @property
    def query_count(self) -> int:
        """Number of queries."""
        return len(self.queries)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready figures (no rankings)."""
        found = self.ranks[self.ranks != NEVER]
        return {
            "protocol": self.protocol,
            "gallery_size": self.gallery_size,
            "queries": self.query_count,
            "metrics": self.metrics,
            "hits": self.hit_counts,
            "intervals_95": {name: list(ends) for name, ends in self.intervals.items()},
            "per_edit": {
                name: {"queries": group.queries, **group.recalls} for name, group in sorted(self.per_edit.items())
            },
            "median_rank": float(np.median(found)) + 1 if len(found) else None,
            "seconds": round(self.seconds, 3),
        }


def ranking_rows(name: str, seed: int, result: EvaluationResult) -> list[dict[str, Any]]:
    """One row per query for `rankings.parquet`; `rank` counts from 1 and is null where no target can be hit."""
    subsets = {ranking.query_id: list(ranking.ids) for ranking in result.subset_rankings}
    lines: Sequence[tuple[Query, int, Ranking]] = list(
        zip(result.queries, result.ranks.tolist(), result.rankings, strict=True)
    )
    return [
        {
            "row": name, "seed": seed, "query_id": query.query_id, "edit": query.edit,
            "reference_id": query.reference_id, "modification": query.modification,
            "target_ids": list(query.target_ids), "rank": None if rank == NEVER else rank + 1,
            "ids": list(ranking.ids), "scores": list(ranking.scores), "gallery": query.gallery,
            "subset_ids": subsets.get(query.query_id, []),
        }
        for query, rank, ranking in lines
    ]  # fmt: skip
