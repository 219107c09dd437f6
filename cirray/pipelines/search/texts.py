"""Suggestions for a new index: the data set's own texts, and queries that are answered well."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cirray.core.arrays import read_array
from cirray.core.errors import DataError
from cirray.data.benchmark import CirDataset
from cirray.image_text import clean_text, said
from cirray.index.exact import ExactIndex
from cirray.index.store import PATCHES, TOKENS, GalleryIndex, IndexMeta
from cirray.index.texts import texts_by_reference
from cirray.pipelines.search.config import IndexRun
from cirray.pipelines.search.parts import PartEncoder
from cirray.queries import ComposedQuery
from cirray.search_engine import QueryEncoder, SearchEngine
from cirray.types import Query, Ranking

Example = tuple[str, str]
"""Reference id and text."""
_TRIED, _BATCH, _SHOWN = 64, 16, 3


@dataclass(frozen=True)
class _ReadPictures:
    """See `Pictures`."""

    read: Callable[[int], bytes]

    def size(self, row: int) -> tuple[int, int] | None:
        """Nobody asks."""
        return None


def own_texts(dataset: CirDataset, ids: Sequence[str], encoder: QueryEncoder) -> dict[str, tuple[str, ...]]:
    """Texts of queries and triplets about gallery pictures, queries first, without unusable ones."""
    asked = [(query.reference_id, query.modification) for query in dataset.queries]
    asked += [(triplet.reference_id, triplet.modification) for triplet in dataset.triplets]
    cleaned = ((name, _usable(encoder, text)) for name, text in asked)
    return texts_by_reference(((name, text) for name, text in cleaned if text), ids)


def examples(
    run: IndexRun, folder: Path, ids: Sequence[str], encoder: PartEncoder, queries: Sequence[Query],
    read: Callable[[int], bytes] | None,
) -> list[Example]:  # fmt: skip
    """The clearest queries of an index that is not published yet; `read`: its pictures by row, where it has some."""
    vectors = read_array(folder / TOKENS)
    patches = read_array(folder / PATCHES) if (folder / PATCHES).exists() else None
    meta, search = IndexMeta(encoder.encoder.target_digest), ExactIndex(ids, vectors)
    gallery = GalleryIndex(search, meta, "", None if read is None else _ReadPictures(read), patches)
    parts = (encoder.encoder, encoder.vision, encoder.transform, gallery, run.device, run.limits)
    return convincing(SearchEngine(*parts), queries)


def convincing(retriever: SearchEngine, queries: Sequence[Query], count: int = _SHOWN) -> list[Example]:
    """Queries whose first answer is a target, by falling margin to the second answer.

    One query of each of the first 64 references is tried, for different pictures.

    Returns: At most `count`; none if no first answer is right.
    """
    gallery = retriever.gallery
    first: dict[str, Query] = {}
    for query in queries:
        if query.reference_id in gallery and any(name in gallery for name in query.target_ids):
            first.setdefault(query.reference_id, query)
    answered = _answered(retriever, list(first.values())[:_TRIED])
    right = [(query, scores) for query, names, scores in answered if names[0] in query.target_ids]
    right.sort(key=lambda item: item[1][-1] - item[1][0])
    return [(query.reference_id, clean_text(query.modification)) for query, _ in right[:count]]


def _answered(
    retriever: SearchEngine, queries: Sequence[Query]
) -> Iterator[tuple[Query, tuple[str, ...], tuple[float, ...]]]:
    """Queries with ids and scores of their two best answers, without unusable queries."""
    usable = [(query, asked) for query in queries if (asked := _asked(retriever, query)) is not None]
    for start in range(0, len(usable), _BATCH):
        some = usable[start : start + _BATCH]
        for (query, _), answer in zip(some, retriever.search_many([asked for _, asked in some]), strict=True):
            if isinstance(answer, Ranking) and answer.ids:
                yield query, answer.ids, answer.scores


def _asked(retriever: SearchEngine, query: Query) -> ComposedQuery | None:
    """The query for the retriever, or None if its text or picture cannot be used."""
    try:
        return retriever.prepare(query.modification, gallery_id=query.reference_id, k=2)
    except DataError:
        return None


def _usable(encoder: QueryEncoder, text: str) -> str:
    """The text for a search; empty if unusable."""
    try:
        return said(encoder, text)
    except DataError:
        return ""
