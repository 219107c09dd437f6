"""A page with every query of one evaluation, or of two side by side, in one file.

All queries are listed with text and rank (up to `listed`); pictures are embedded for some: the worst and the best
ranked of one run, or the most lost and most won of two. The page says how many.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cirray.core.errors import DataError
from cirray.data.benchmark import ImageTable
from cirray.evaluation.metrics import NEVER
from cirray.evaluation.pages import asset, render
from cirray.evaluation.pictures import Thumbnails
from cirray.evaluation.rankings import SavedRankings
from cirray.evaluation.result import EvaluationResult
from cirray.types import Query


@dataclass(frozen=True)
class Seen:
    """One run on the page: position of the best target per query (from 1; None: not in the list) and lists."""

    name: str
    ranks: Mapping[str, int | None]
    lists: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Limits:
    """Limits of the page's size."""

    pictured: int = 100
    """Queries with pictures."""
    listed: int = 10_000
    """Queries on the page."""
    strip: int = 10
    """Answers shown of each query."""
    side: int = 128
    """Longest side of a thumbnail in pixels."""


def seen(saved: SavedRankings, queries: Sequence[Query], reference_rule: str, name: str = "") -> Seen:
    """A saved run, with its own ranks if it has them, else counted from its lists.

    Raises DataError when it lacks one of the queries.
    """
    missing = [query.query_id for query in queries if query.query_id not in saved.lists]
    if missing:
        raise DataError(
            f"The run {name or saved.name!r} has no list for {len(missing):,} of {len(queries):,} queries; the first "
            f"is {missing[0]!r}. Is it of another benchmark or split?"
        )
    ranks, lists = {}, {}
    for query in queries:
        ids = saved.lists[query.query_id]
        kept = [image for image in ids if not (reference_rule == "remove" and image == query.reference_id)]
        found = [place for place, image in enumerate(kept, start=1) if image in query.target_ids]
        stored = saved.rows.get(query.query_id, {})
        ranks[query.query_id] = stored["rank"] if "rank" in stored else (found[0] if found else None)
        lists[query.query_id] = tuple(kept)
    return Seen(name or saved.name, ranks, lists)


def seen_result(result: EvaluationResult, name: str) -> Seen:
    """A run from an evaluation's result."""
    ranks = {
        query.query_id: None if rank == NEVER else rank + 1
        for query, rank in zip(result.queries, result.ranks.tolist(), strict=True)
    }
    return Seen(name, ranks, {ranking.query_id: ranking.ids for ranking in result.rankings})


def pictured(queries: Sequence[Query], runs: Sequence[Seen], count: int) -> list[str]:
    """Queries that get pictures: half from each end of the order, worst to best or most lost to most won."""
    ordered = sorted((query.query_id for query in queries), key=lambda name: (_merit(name, runs), name))
    half = count // 2
    chosen = [*ordered[: count - half], *ordered[max(count - half, len(ordered) - half) :]]
    return list(dict.fromkeys(chosen))


def won_and_lost(queries: Sequence[Query], runs: Sequence[Seen], k: int) -> tuple[int, int]:
    """Queries that the second run hits at k and the first does not, and the reverse."""
    hits = [
        {query.query_id for query in queries if (rank := run.ranks[query.query_id]) is not None and rank <= k}
        for run in runs
    ]
    return len(hits[1] - hits[0]), len(hits[0] - hits[1])


def render_browser(
    title: str, protocol: str, queries: Sequence[Query], runs: Sequence[Seen], images: ImageTable,
    limits: Limits | None = None, ks: Sequence[int] = (1, 5, 10, 50),
) -> str:  # fmt: skip
    """The page of one run, or of two to compare: the second wins or loses. `ks` are offered as filters; images that
    cannot be read become placeholders.

    Raises DataError without queries, or with another number of runs than one or two.
    """
    if not queries or len(runs) not in (1, 2):
        raise DataError(f"A page shows one run or two on at least one query; got {len(runs)} and {len(queries)}.")
    limits = limits or Limits()
    names = pictured(queries, runs, limits.pictured)
    shown = _listed(queries, names, limits.listed)
    chosen = set(names)
    thumbnails = Thumbnails(images, limits.side)
    data = {
        "runs": [run.name for run in runs],
        "ks": [int(k) for k in ks],
        "queries": [_row(query, runs, limits.strip) for query in shown],
        "pictures": _pictures([query for query in shown if query.query_id in chosen], runs, thumbnails, limits),
    }
    summary = _summary(queries, runs, shown, names, limits)
    if thumbnails.missing:
        summary += f" {thumbnails.missing:,} images could not be read; their names are shown instead."
    return _page(title, protocol, summary, data)


def _merit(name: str, runs: Sequence[Seen]) -> float:
    """Sort key, low is bad: the negative rank of one run; of two, how many times better the second ranks it."""
    places = [float(run.ranks[name] or 10**9) for run in runs]
    return -places[0] if len(places) == 1 else places[0] / places[1]


def _listed(queries: Sequence[Query], names: Sequence[str], most: int) -> list[Query]:
    """The first queries and all with pictures, in the data set's order."""
    wanted = set(names[:most])
    for query in queries:
        if len(wanted) >= most:
            break
        wanted.add(query.query_id)
    return [query for query in queries if query.query_id in wanted]


def _row(query: Query, runs: Sequence[Seen], strip: int) -> dict[str, Any]:
    return {
        "id": query.query_id,
        "text": query.modification,
        "tags": [name for name in (query.edit, *query.tags) if name],
        "reference": query.reference_id,
        "targets": list(query.target_ids),
        "ranks": [run.ranks[query.query_id] for run in runs],
        "lists": [list(run.lists[query.query_id][:strip]) for run in runs],
    }


def _pictures(queries: Sequence[Query], runs: Sequence[Seen], thumbnails: Thumbnails, limits: Limits) -> dict[str, str]:
    found: dict[str, str] = {}
    for query in queries:
        answers = [name for run in runs for name in run.lists[query.query_id][: limits.strip]]
        for name in dict.fromkeys((query.reference_id, *query.target_ids[:1], *answers)):
            if name not in found and (uri := thumbnails.uri(name)) is not None:
                found[name] = uri
    return found


def _summary(
    queries: Sequence[Query], runs: Sequence[Seen], shown: Sequence[Query], names: Sequence[str], limits: Limits
) -> str:
    kind = "worst and best ranked" if len(runs) == 1 else "most lost and most won"
    note = (
        f"{len(shown):,} of {len(queries):,} queries are listed, with the first {limits.strip} answers of each; "
        f"pictures are embedded for {len(names):,} of them, the {kind}."
    )
    if len(runs) == 1:
        return note
    counts = []
    for k in (1, 5, 10):
        won, lost = won_and_lost(queries, runs, k)
        counts.append(f"at {k}: {won:,} won, {lost:,} lost")
    return f"{runs[1].name} against {runs[0].name}, {'; '.join(counts)}. {note}"


def _page(title: str, protocol: str, summary: str, data: Mapping[str, Any]) -> str:
    script = asset("browse.js")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return render(
        "browse.html", policy=policy, title=title, protocol=protocol, summary=summary, data=data, script=script
    )
