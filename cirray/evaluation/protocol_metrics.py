"""The metrics that protocols name, counted from verdicts. NumPy only.

Sources: docs/PAPERS.md, by data set. Values are fractions. A query without targets is refused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cirray.core.errors import ConfigError, DataError
from cirray.core.registry import Registry
from cirray.data.benchmark import Protocol
from cirray.evaluation.measures import Measure, measure
from cirray.evaluation.verdicts import Levels, Verdict
from cirray.types import Query

SUBSET_KS = (1, 2, 3)
"""Cut-offs of CIRR's Recall_subset."""
ASPECT_K = 10
"""Cut-off of CIRCO's per-aspect mAP."""
_SUBSET_METRICS = ("recall_subset", "cirr_avg", "soft_recall_subset")


@dataclass(frozen=True)
class Judged:
    """Queries with their verdicts, in one order."""

    queries: Sequence[Query]
    verdicts: Sequence[Verdict]

    @property
    def ranks(self) -> np.ndarray:
        """Position of the best target of every query, int64."""
        return np.asarray([verdict.rank for verdict in self.verdicts], dtype=np.int64)


Metric = Callable[[Judged, Sequence[int]], list[Measure]]
METRICS: Registry[Metric] = Registry("metric")
"""Name in `Protocol.metrics` -> function of the verdicts and the protocol's cut-offs."""


def compute(protocol: Protocol, judged: Judged) -> tuple[Measure, ...]:
    """All measures of a protocol, in its order.

    Raises ConfigError for an unknown metric, or two metrics that give one figure's name, and DataError for a query
    without a target, or without data that a metric needs.
    """
    check_queries(protocol, judged.queries)
    found: dict[str, Measure] = {}
    for name in dict.fromkeys(protocol.metrics):
        for item in METRICS.get(name)(judged, protocol.ks):
            if item.name in found:
                raise ConfigError(f"The metrics {', '.join(protocol.metrics)} give the figure {item.name!r} twice.")
            found[item.name] = item
    return tuple(found.values())


def figure_names(protocol: Protocol, queries: Sequence[Query]) -> list[str]:
    """Names of a protocol's figures for these queries, without scores. Raises ConfigError, DataError: as `compute`."""
    return [item.name for item in compute(protocol, Judged(queries, [Verdict(0, (0,), 0, subset=0)] * len(queries)))]


def check_queries(protocol: Protocol, queries: Sequence[Query]) -> None:
    """Refuse queries without a value for some metric, before anything is computed.

    Raises ConfigError for an unknown metric or a cut-off below 1, and DataError naming the query and what it lacks.
    """
    for name in protocol.metrics:
        METRICS.get(name)
    if not protocol.ks or any(k < 1 for k in protocol.ks):
        raise ConfigError(f"Cut-offs {list(protocol.ks)} cannot be used; give at least one, each at least 1.")
    for query in queries:
        if not query.target_ids:
            raise DataError(
                f"Query {query.query_id!r} has no target. Every query needs at least one to be scored; for a split "
                "whose targets are not published, write a submission file (cirray submit takes the same vectors, lists "
                "and checkpoints)."
            )
        if any(name in _SUBSET_METRICS for name in protocol.metrics):
            _check_subset(query)
        if "category_recall" in protocol.metrics and not query.gallery:
            raise DataError(f"Query {query.query_id!r} names no gallery, so category_recall has no category for it.")
        if "aspect_map" in protocol.metrics and not query.tags:
            raise DataError(f"Query {query.query_id!r} has no tag, so aspect_map has no aspect for it.")


def group_of(query: Query) -> str:
    """Group that a query is averaged in: its first tag, else its edit, else its gallery's name before `/`, `:` or `#`.

    GeneCIS's galleries are named by task and template ("focus_object/12").
    """
    if query.tags or query.edit:
        return query.tags[0] if query.tags else query.edit
    for mark in "/:#":
        if mark in query.gallery:
            return query.gallery.partition(mark)[0]
    return ""


def average_precision(places: Sequence[int], k: int) -> float:
    """AP@k = sum over found ground truths of (found so far / position), divided by min(k, |G|) (CIRCO, equation 1).

    `places`: 0-based positions of all ground truths, ascending.
    """
    found = [place for place in places if place < k]
    return sum((at + 1) / (place + 1) for at, place in enumerate(found)) / min(k, len(places))


def soft_gain(levels: Levels, k: int) -> float:
    """Largest label among the graded targets in the first k, at least 0 (CIRPLANT's validation code)."""
    return max((label for label, rank in levels if rank < k), default=0.0)


@METRICS.register("recall")
def recall(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """R@k: share of queries with a target among the first k."""
    return [measure(f"R@{k}", judged.ranks < k) for k in ks]


@METRICS.register("mean_recall")
def mean_recall(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """Mean of R@k over the cut-offs (Shoes; WebVid-CoVR)."""
    return [measure("mean R@" + ",".join(map(str, ks)), _mean_hits(judged.ranks, ks))]


@METRICS.register("recall_subset")
def recall_subset(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """Rs@1, 2, 3 (CIRR): the target among the subset's images without the reference."""
    ranks = _subset_ranks(judged)
    return [measure(f"Rs@{k}", ranks < k) for k in SUBSET_KS]


@METRICS.register("cirr_avg")
def cirr_avg(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """CIRR's average column: (R@5 + Rs@1) / 2."""
    gains = ((judged.ranks < 5).astype(np.float64) + (_subset_ranks(judged) < 1)) / 2
    return [measure("Avg", gains)]


@METRICS.register("soft_recall")
def soft_recall(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """Soft R@k (CIRR): a query earns the largest label among its graded targets in the first k."""
    return [measure(f"soft R@{k}", [soft_gain(verdict.levels, k) for verdict in judged.verdicts]) for k in ks]


@METRICS.register("soft_recall_subset")
def soft_recall_subset(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """Soft Rs@1, 2, 3 (CIRR): the same among the subset's images."""
    _subset_ranks(judged)
    return [
        measure(f"soft Rs@{k}", [soft_gain(verdict.subset_levels, k) for verdict in judged.verdicts]) for k in SUBSET_KS
    ]


@METRICS.register("category_recall")
def category_recall(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """Fashion IQ: R@k of each category, their unweighted means, and the mean of those."""
    names, groups = _numbered([query.gallery for query in judged.queries])
    ranks, found = judged.ranks, []
    for number, name in enumerate(names):
        members = np.flatnonzero(groups == number)
        found += [measure(f"{name} R@{k}", ranks[members] < k, members) for k in ks]
    found += [measure(f"Avg R@{k}", ranks < k, groups=groups) for k in ks]
    return [*found, measure("Avg", _mean_hits(ranks, ks), groups=groups)]


@METRICS.register("task_recall")
def task_recall(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """GeneCIS: R@k of each task; headline: unweighted mean of the tasks' R@1."""
    names, groups = _numbered([group_of(query) for query in judged.queries])
    ranks, found = judged.ranks, []
    for number, name in enumerate(names):
        members = np.flatnonzero(groups == number)
        found += [measure(f"{name} R@{k}".strip(), ranks[members] < k, members) for k in ks]
    return [*found, measure("Avg R@1", ranks < 1, groups=groups)]


@METRICS.register("map")
def mean_average_precision(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """mAP@k (CIRCO), divisor min(k, |G|); `hits` counts the ground truths in the first k."""
    everyone = range(len(judged.verdicts))
    return [_map_over(judged, f"mAP@{k}", everyone, k) for k in ks]


@METRICS.register("aspect_map")
def aspect_map(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """mAP@10 over the queries of each semantic aspect (CIRCO); a query counts for each of its aspects."""
    aspects = sorted({tag for query in judged.queries for tag in query.tags})
    return [
        _map_over(
            judged,
            f"mAP@{ASPECT_K} {aspect}",
            [at for at, q in enumerate(judged.queries) if aspect in q.tags],
            ASPECT_K,
        )
        for aspect in aspects
    ]


@METRICS.register("target_recall")
def target_recall(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """CIRCO's secondary Recall@k: only the first target counts, the other ground truths are ordinary images."""
    ranks = np.asarray([verdict.first for verdict in judged.verdicts], dtype=np.int64)
    return [measure(f"target R@{k}", ranks < k) for k in ks]


@METRICS.register("set_recall")
def set_recall(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """Targets in the first k over all targets (domain conversion), per group and as their unweighted mean."""
    shares = {k: [_found(verdict, k) / len(verdict.places) for verdict in judged.verdicts] for k in ks}
    return _by_group(judged, "set R", shares)


@METRICS.register("precision")
def precision(judged: Judged, ks: Sequence[int]) -> list[Measure]:
    """Targets in the first k over k, per group and as their unweighted mean."""
    return _by_group(judged, "P", {k: [_found(verdict, k) / k for verdict in judged.verdicts] for k in ks})


def _mean_hits(ranks: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    return np.mean([ranks < k for k in ks], axis=0)


def _found(verdict: Verdict, k: int) -> int:
    return sum(place < k for place in verdict.places)


def _map_over(judged: Judged, name: str, members: Sequence[int], k: int) -> Measure:
    chosen = [judged.verdicts[at] for at in members]
    gains = [average_precision(verdict.places, k) for verdict in chosen]
    return measure(name, gains, list(members), hits=sum(_found(verdict, k) for verdict in chosen))


def _by_group(judged: Judged, name: str, gains: dict[int, list[float]]) -> list[Measure]:
    labels, groups = _numbered([group_of(query) for query in judged.queries])
    counts = {k: [_found(verdict, k) for verdict in judged.verdicts] for k in gains}
    found = []
    for number, label in enumerate(labels) if len(labels) > 1 else ():
        members = np.flatnonzero(groups == number)
        for k, values in gains.items():
            hits = sum(counts[k][at] for at in members)
            found.append(measure(f"{label} {name}@{k}".strip(), np.asarray(values)[members], members, hits=hits))
    return found + [measure(f"{name}@{k}", values, groups=groups, hits=sum(counts[k])) for k, values in gains.items()]


def _numbered(labels: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct labels in order of appearance, and every query's number."""
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    return list(numbers), np.asarray([numbers[label] for label in labels], dtype=np.int64)


def _subset_ranks(judged: Judged) -> np.ndarray:
    for query, verdict in zip(judged.queries, judged.verdicts, strict=True):
        if verdict.subset is None:
            raise DataError(
                f"The order of the subset of query {query.query_id!r} is not known: its list ends before them. Give "
                "the subset's own ranking, or lists of the whole gallery."
            )
    return np.asarray([verdict.subset for verdict in judged.verdicts], dtype=np.int64)


def _check_subset(query: Query) -> None:
    if not query.subset:
        raise DataError(f"Query {query.query_id!r} has no subset, so Recall_subset has no value for it.")
    if not set(query.target_ids) & set(query.subset):
        raise DataError(
            f"Query {query.query_id!r} has its target {query.target_ids[0]!r} outside its subset of "
            f"{len(query.subset)} images, so Recall_subset has no value for it. Correct the annotation."
        )
