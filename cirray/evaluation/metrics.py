"""Recall with ties counted against the method, its uncertainty, and its spread over seeds. NumPy only.

Rank = 0-based position of the best target by decreasing score; a hit at k means rank < k. Every candidate with the
target's score is before it, so a constant score never counts as a hit. Recall here is a hit rate: with several targets
the best placed one counts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cirray.core.errors import DataError

NEVER = int(np.iinfo(np.int64).max)
"""Rank of a query that cannot be hit: its only target is the reference that the protocol removes."""


@dataclass(frozen=True)
class GroupRecall:
    """Recall of one group of queries: `hits` are counts by k, `recalls` fractions in [0, 1] by "R@k"."""

    queries: int
    hits: dict[int, int]
    recalls: dict[str, float]


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over `count` runs; the deviation of one run is None, not zero."""

    mean: float
    deviation: float | None
    count: int


def refuse_nan(scores_BN: np.ndarray, query_ids: Sequence[str]) -> None:
    """Refuse scores [B, N] that are not numbers.

    Raises DataError naming the first such query and how many there are.
    """
    broken_B = np.isnan(scores_BN).any(axis=1)
    if broken_B.any():
        name, count = query_ids[int(broken_B.argmax())], int(broken_B.sum())
        raise DataError(
            f"Query {name!r} has a score that is not a number ({count} of {len(query_ids)} queries in this batch do). "
            "The model or its features hold NaN: check the checkpoint's training curves."
        )


def hit_counts(ranks_B: np.ndarray, ks: Sequence[int]) -> dict[int, int]:
    """Number of queries whose rank is below each k."""
    return {k: int(np.count_nonzero(np.asarray(ranks_B) < k)) for k in ks}


def group_recall(ranks_B: np.ndarray, ks: Sequence[int]) -> GroupRecall:
    """Hits and recall of one group of queries.

    Raises DataError for a group without queries, whose recall has no value.
    """
    count = len(ranks_B)
    if not count:
        raise DataError("Recall needs at least one query.")
    hits = hit_counts(ranks_B, ks)
    return GroupRecall(count, hits, {f"R@{k}": found / count for k, found in hits.items()})


def recall_by(ranks_B: np.ndarray, labels: Sequence[str], ks: Sequence[int]) -> dict[str, GroupRecall]:
    """Recall by label (such as the edit type), labels sorted; unlabelled queries are left out."""
    ranks_B, names_B = np.asarray(ranks_B), np.asarray(labels, dtype=object)
    return {name: group_recall(ranks_B[names_B == name], ks) for name in sorted({label for label in labels if label})}


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of one figure over seeds.

    Raises DataError without values, or when one is not a number.
    """
    array = np.asarray(values, dtype=np.float64)
    if not array.size or np.isnan(array).any():
        raise DataError(f"Mean over seeds needs at least one value and no NaN; got {list(values)!r}.")
    return Spread(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None, int(array.size))


def spread_of(metrics: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Spread of every metric that all runs have, in the first run's order."""
    names = [name for name in (metrics[0] if metrics else {}) if all(name in run for run in metrics)]
    return {name: spread([run[name] for run in metrics]) for name in names}
