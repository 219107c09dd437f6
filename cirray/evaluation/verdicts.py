"""Positions in the ranking of the images that a query is judged by, from scores or from a list. NumPy only.

From scores, ties count against the method (docs/PAPERS.md#ranks-and-ties): a target is after every other candidate with
the same score, so a constant score is never a hit. From a list, the list's order counts. A copy of a target in its own
gallery (GeneCIS has two) counts as the target, as in GeneCIS's own code; a copy of any other image is a candidate of
its own.

Positions are 0-based; `NEVER` means not found (the removed reference, or not in the list). A *probe* is an image whose
exact score is needed: a target, a graded target, a subset member.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from cirray.core.errors import DataError
from cirray.evaluation.metrics import NEVER
from cirray.types import Query

Levels = tuple[tuple[float, int], ...]
"""(label, position of the best target with at least this label), highest label first."""


@dataclass(frozen=True)
class Verdict:
    """Everything that metrics use of one query.

    `places`: positions of all distinct targets, ascending. `rank`: that of the best one (targets do not push each other
    down). `first`: that of the first target, the others counting as ordinary images. `subset`, `subset_levels`: the
    same among the subset's images without the reference; None if unknown.
    """

    rank: int
    places: tuple[int, ...]
    first: int
    levels: Levels = ()
    subset: int | None = None
    subset_levels: Levels = ()


def probes_of(query: Query, reference_rule: str) -> tuple[str, ...]:
    """Distinct images whose exact score a query's verdict needs.

    Its own reference is one only if it is a target and the protocol keeps it.
    """
    graded = (name for name, label in query.soft if label > 0)
    wanted = dict.fromkeys((*query.target_ids, *graded, *query.subset))
    if reference_rule == "remove" or query.reference_id not in query.target_ids:
        wanted.pop(query.reference_id, None)
    return tuple(wanted)


def verdict_from_scores(
    query: Query, scores: Mapping[str, float], above: Mapping[str, int], reference_rule: str
) -> Verdict:
    """Judge a query by the exact scores of its `probes_of`.

    `above`: for each of these, the number of ranked images that are no probes and score at least as high.
    """
    gone = {query.reference_id} if reference_rule == "remove" else set()
    live = [name for name in dict.fromkeys(query.target_ids) if name not in gone]
    graded = _graded(query)
    inner = {name: scores[name] for name in query.subset if name != query.reference_id}
    rank, inner_rank = partial(_best, scores=scores, above=above), partial(_best, scores=inner, above={})
    return Verdict(
        rank=rank(live),
        places=_places(query, live, scores, above),
        first=rank(live[:1]) if query.target_ids[0] not in gone else NEVER,
        levels=_levels(graded, rank),
        subset=inner_rank([name for name in live if name in inner]) if inner else None,
        subset_levels=_levels({name: label for name, label in graded.items() if name in inner}, inner_rank),
    )


def verdict_from_list(
    query: Query, ids: Sequence[str], subset_ids: Sequence[str] | None, reference_rule: str
) -> Verdict:
    """Judge a query by its ranked list, best first; an image that is not in the list is no hit.

    The subset is looked up in `ids` where it has no list of its own.
    """
    kept = [name for name in ids if not (reference_rule == "remove" and name == query.reference_id)]
    places = {name: place for place, name in reversed(list(enumerate(kept)))}
    wanted = list(dict.fromkeys(query.target_ids))
    graded = _graded(query)
    order = _subset_order(query, kept, subset_ids)
    inner = None if order is None else {name: place for place, name in enumerate(order)}
    rank, inner_rank = partial(_listed_rank, places=places), partial(_listed_rank, places=inner or {})
    return Verdict(
        rank=rank(wanted),
        places=tuple(sorted(places.get(name, NEVER) for name in wanted)),
        first=places.get(wanted[0], NEVER),
        levels=_levels(graded, rank),
        subset=None if inner is None else inner_rank(wanted),
        subset_levels=() if inner is None else _levels(graded, inner_rank),
    )


def check_list(
    query: Query, ids: Sequence[str], gallery: Collection[str] | None, copies: Mapping[str, Sequence[int]] | None = None
) -> None:
    """Refuse a list with an unknown id, or with one more often than in the gallery (`Gallery.copies`); None: any id.

    Raises DataError naming the query and the id.
    """
    if len(set(ids)) != len(ids):
        for name, times in Counter(ids).items():
            if times > len((copies or {}).get(name, (0,))):
                raise DataError(
                    f"The list of query {query.query_id!r} holds {name!r} twice; an image may be there once."
                )
    if gallery is None:
        return
    for name in ids:
        if name not in gallery:
            raise DataError(
                f"The list of query {query.query_id!r} holds {name!r}, which is not among the {len(gallery):,} images "
                "of its gallery. Use the data set's own image ids."
            )


def _graded(query: Query) -> dict[str, float]:
    return {name: label for name, label in query.soft if label > 0 and name != query.reference_id}


def _best(names: Sequence[str], scores: Mapping[str, float], above: Mapping[str, int]) -> int:
    """Position of the best of some probes; the other probes count as ordinary images."""
    if not names:
        return NEVER
    best = max(names, key=scores.__getitem__)
    own = set(names)
    return above.get(best, 0) + sum(scores[other] >= scores[best] for other in scores if other not in own)


def _places(
    query: Query, live: Sequence[str], scores: Mapping[str, float], above: Mapping[str, int]
) -> tuple[int, ...]:
    ordered = sorted(live, key=lambda name: -scores[name])
    own = set(live)
    others = [scores[name] for name in scores if name not in own]
    found = [place + above[name] + sum(score >= scores[name] for score in others) for place, name in enumerate(ordered)]
    return tuple(found + [NEVER] * (len(set(query.target_ids)) - len(live)))


def _levels(graded: Mapping[str, float], rank: Callable[[Sequence[str]], int]) -> Levels:
    steps = sorted(set(graded.values()), reverse=True)
    return tuple((step, rank([name for name in graded if graded[name] >= step])) for step in steps)


def _subset_order(query: Query, kept: Sequence[str], subset_ids: Sequence[str] | None) -> list[str] | None:
    """The subset's order; None if a cut list does not tell the target's place."""
    members = {name for name in query.subset if name != query.reference_id}
    if not members:
        return None
    if subset_ids is not None:
        return [name for name in subset_ids if name in members]
    listed = [name for name in kept if name in members]
    judged = {*query.target_ids, *(name for name, label in query.soft if label > 0)} & members
    return listed if judged <= set(listed) or len(listed) >= len(members) - 1 else None


def _listed_rank(names: Sequence[str], places: Mapping[str, int]) -> int:
    """Position of the first of some images in a list."""
    return min((places.get(name, NEVER) for name in names), default=NEVER)


def row_verdict(
    query: Query, scores_N: np.ndarray, columns: Mapping[str, int], removed: int | None, reference_rule: str,
    copies: Mapping[str, Sequence[int]] | None = None,
) -> Verdict:  # fmt: skip
    """Judge a query by its whole row of scores.

    `columns` has the first column of every image, `copies` all columns of repeated ones; those of targets count as the
    targets. `removed` is the reference's column, if it is removed.
    """
    names = probes_of(query, reference_rule)
    places = [columns[name] for name in names]
    others_N = np.ones(len(scores_N), dtype=bool)
    others_N[places] = False
    for name in query.target_ids if copies else ():
        others_N[list((copies or {}).get(name, ()))] = False
    if removed is not None:
        others_N[removed] = False
    rest = scores_N[others_N]
    scores = {name: float(scores_N[place]) for name, place in zip(names, places, strict=True)}
    above = {name: int(np.count_nonzero(rest >= score)) for name, score in scores.items()}
    return verdict_from_scores(query, scores, above, reference_rule)
