"""Queries resolved to galleries: the images each one ranks, and its own images' columns. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cirray.core.errors import DataError, unknown_name
from cirray.data.benchmark import Protocol
from cirray.evaluation.protocol_metrics import check_queries
from cirray.types import Query

RULES = ("keep", "remove")


@dataclass(frozen=True)
class Gallery:
    """The images that some queries rank, ascending by id; `rows` are their rows in the plan's union."""

    ids: tuple[str, ...]
    rows: np.ndarray

    @cached_property
    def columns(self) -> dict[str, int]:
        """First column of every image (GeneCIS repeats a few)."""
        return {name: column for column, name in reversed(list(enumerate(self.ids)))}

    @cached_property
    def copies(self) -> dict[str, tuple[int, ...]]:
        """All columns of repeated images."""
        if len(self.columns) == len(self.ids):
            return {}
        found: dict[str, tuple[int, ...]] = {}
        for column, name in enumerate(self.ids):
            found[name] = (*found.get(name, ()), column)
        return {name: columns for name, columns in found.items() if len(columns) > 1}

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class EvaluationPlan:
    """Queries and galleries of an evaluation. `ids` is the union of all galleries, ascending."""

    queries: tuple[Query, ...]
    protocol: Protocol
    ids: tuple[str, ...]
    galleries: Mapping[str, Gallery]

    def gallery(self, query: Query) -> Gallery:
        """The gallery that a query searches."""
        return self.galleries[query.gallery]

    def removed(self, query: Query) -> int | None:
        """Column of the reference if the protocol removes it, else None."""
        if self.protocol.reference_rule == "keep":
            return None
        return self.gallery(query).columns.get(query.reference_id)

    def describe(self) -> str:
        """Counts in words: queries, images, galleries."""
        queries = f"{len(self.queries):,} queries over"
        sizes = sorted({len(gallery) for gallery in self.galleries.values()})
        if len(self.galleries) == 1:
            return f"{queries} {sizes[0]:,} images"
        named = len(self.galleries) <= _FEW
        words = (
            ", ".join(f"{name} {len(gallery):,}" for name, gallery in self.galleries.items())
            if named
            else " to ".join(f"{size:,}" for size in dict.fromkeys((sizes[0], sizes[-1])))
        )
        return f"{queries} {len(self.galleries):,} galleries ({words} images; {len(self.ids):,} distinct)"

    def by_gallery(self, positions: Sequence[int]) -> dict[str, list[int]]:
        """Some queries' positions, by the name of their gallery."""
        found: dict[str, list[int]] = {}
        for at in positions:
            found.setdefault(self.queries[at].gallery, []).append(at)
        return found


_FEW = 6


def make_plan(
    queries: Sequence[Query],
    gallery_ids: Sequence[str],
    protocol: Protocol,
    galleries: Mapping[str, Sequence[str]] | None = None,
    scored: bool = True,
) -> EvaluationPlan:
    """Resolve queries; refuse anything that would be a silent miss.

    Queries that name no gallery search `gallery_ids`; an id may be repeated in a named one. With `scored` every query
    must have its targets, subset and graded targets in its gallery, as the metrics need.

    Raises DataError: no query, an unknown gallery, a repeated id, an image outside the gallery, a query without
    targets; ConfigError: an unknown metric.
    """
    if not queries:
        raise DataError("There are no queries to evaluate. Give a data set with queries.")
    if protocol.reference_rule not in RULES:
        raise DataError(f"Reference rule {protocol.reference_rule!r} is unknown. Known: {', '.join(RULES)}.")
    if scored:
        check_queries(protocol, queries)
    lists = {name: _sorted_gallery(name, gallery_ids, galleries or {}) for name in _names(queries)}
    if empty := [name for name, ids in lists.items() if not ids]:
        raise DataError(
            f"The gallery {empty[0]!r} of data set {protocol.dataset!r} holds no image, so there is nothing to rank "
            f"({protocol.gallery_rule}). Add the benchmark's list of gallery images."
        )
    union = tuple(sorted({image for ids in lists.values() for image in ids}))
    row_of = {name: row for row, name in enumerate(union)}
    resolved = {
        name: Gallery(ids, np.fromiter((row_of[image] for image in ids), np.int64, len(ids)))
        for name, ids in lists.items()
    }
    plan = EvaluationPlan(tuple(queries), protocol, union, resolved)
    for query in plan.queries if scored else ():
        _check_images(query, plan.gallery(query))
    return plan


def _names(queries: Sequence[Query]) -> list[str]:
    return list(dict.fromkeys(query.gallery for query in queries))


def _sorted_gallery(name: str, gallery_ids: Sequence[str], galleries: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if name:
        if name not in galleries:
            raise DataError(unknown_name("gallery", name, list(galleries)[:20]))
        return tuple(sorted(galleries[name]))
    ordered = tuple(sorted(gallery_ids))
    for image, after in zip(ordered, ordered[1:], strict=False):
        if image == after:
            raise DataError(f"Image {image!r} appears twice in the gallery; every gallery id must be there once.")
    return ordered


def _check_images(query: Query, gallery: Gallery) -> None:
    graded = [image for image, label in query.soft if label > 0]
    for kind, names in (("target", query.target_ids), ("graded target", graded), ("subset image", query.subset)):
        for image in names:
            if image not in gallery.columns and not (image == query.reference_id and kind != "target"):
                raise DataError(
                    f"Query {query.query_id!r} has the {kind} {image!r}, which is not among the {len(gallery):,} "
                    "gallery images. Add it to the gallery, or drop the query from the query file."
                )
