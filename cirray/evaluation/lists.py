"""Evaluate ranked lists: a report's rankings, a JSON file, a submission. No torch."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cirray.core.errors import DataError
from cirray.data.benchmark import Protocol
from cirray.evaluation.evaluate import RankedQueries
from cirray.evaluation.plan import EvaluationPlan
from cirray.evaluation.verdicts import check_list, verdict_from_list
from cirray.types import Query, Ranking

LIST_TIES = "order as listed"
_SUBSET_ONLY = ("recall_subset", "soft_recall_subset")
_BOTH = ("cirr_avg",)


def split_metrics(protocol: Protocol, lists: bool, subsets: bool) -> tuple[Protocol, tuple[str, ...]]:
    """The protocol with the metrics that the given lists allow, and the names of those left out.

    Raises DataError when none is left.
    """
    kept = []
    for name in protocol.metrics:
        needs_lists, needs_subsets = name not in _SUBSET_ONLY, name in _SUBSET_ONLY or name in _BOTH
        if (lists or not needs_lists) and (subsets or not needs_subsets):
            kept.append(name)
    if not kept:
        given = "of the subsets only" if subsets else "of the gallery only"
        raise DataError(f"The lists are {given}; {', '.join(protocol.metrics)} cannot be counted from them.")
    return replace(protocol, metrics=tuple(kept)), tuple(name for name in protocol.metrics if name not in kept)


def knows_subsets(plan: EvaluationPlan, lists: Mapping[str, Sequence[str]]) -> bool:
    """Whether lists of the gallery are long enough to order every query's subset."""
    rule = plan.protocol.reference_rule
    return all(
        verdict_from_list(query, lists.get(query.query_id, ()), None, rule).subset is not None
        for query in plan.queries
        if query.subset
    )


def rank_lists(
    plan: EvaluationPlan, lists: Mapping[str, Sequence[str]], subsets: Mapping[str, Sequence[str]], source: str
) -> RankedQueries:
    """Verdicts of ranked lists, query id -> image ids, best first and possibly cut; one of the two kinds may be empty.

    Raises DataError: a query without a list, a list without a query, a repeated or unknown id.
    """
    named = [_own_ids(plan, given, source) if given else {} for given in (lists, subsets)]
    rule, verdicts, rankings, subset_rankings = plan.protocol.reference_rule, [], [], []
    for query in plan.queries:
        ids, inner = named[0].get(query.query_id, ()), named[1].get(query.query_id)
        if inner is not None:
            _check_subset(query, inner, source)
            subset_rankings.append(Ranking(query.query_id, inner))
        verdicts.append(verdict_from_list(query, _with_copies(query, ids, plan.gallery(query).copies), inner, rule))
        rankings.append(Ranking(query.query_id, ids))
    return RankedQueries(plan, tuple(rankings), tuple(subset_rankings), tuple(verdicts), 0.0)


def depth_note(lists: Mapping[str, Sequence[str]], plan: EvaluationPlan) -> str:
    """A sentence if some cut-off is beyond the end of the lists; else empty."""
    shortest = min((len(lists.get(query.query_id, ())) for query in plan.queries), default=0)
    deepest, smallest = max(plan.protocol.ks), min(len(gallery) for gallery in plan.galleries.values())
    if not lists or shortest >= min(deepest, smallest - 1):
        return ""
    return f"The shortest list holds {shortest} images; images beyond its end count as no hit."


def _own_ids(plan: EvaluationPlan, lists: Mapping[str, Sequence[str]], source: str) -> dict[str, tuple[str, ...]]:
    """The lists as given, checked."""
    wanted = {query.query_id for query in plan.queries}
    missing, strange = [name for name in wanted if name not in lists], sorted(set(lists) - wanted)
    if missing:
        raise DataError(
            f"{source!r} has no list for {len(missing):,} of {len(wanted):,} queries; the first is {min(missing)!r}."
        )
    if strange:
        raise DataError(
            f"{source!r} holds {len(strange):,} lists of unknown queries; the first is {strange[0]!r}. Is it of "
            "another split?"
        )
    found = {}
    for query in plan.queries:
        gallery = plan.gallery(query)
        found[query.query_id] = tuple(lists[query.query_id])
        check_list(query, found[query.query_id], gallery.columns, gallery.copies)
    return found


def _with_copies(query: Query, ids: Sequence[str], copies: Mapping[str, Sequence[int]]) -> Sequence[str]:
    """A list in which images repeated in the gallery are repeated, and targets are not, as scores are counted. Copies
    missing from the list are put behind.
    """
    if not copies:
        return ids
    listed, found = Counter(ids), list[str]()
    for name in ids:
        if name not in copies:
            found.append(name)
        elif name in query.target_ids:
            found += [] if name in found else [name]
        else:
            listed[name] -= 1
            missing = 0 if listed[name] else len(copies[name]) - ids.count(name)
            found += [name] * (1 + missing)
    return found


def _check_subset(query: Query, ids: Sequence[str], source: str) -> None:
    strange = [name for name in ids if name not in query.subset]
    if strange:
        raise DataError(
            f"{source!r} ranks {strange[0]!r} in the subset of query {query.query_id!r}, which is not one of its "
            f"{len(query.subset)} members."
        )
