"""What every index answers. Shapes: B queries, N images, Q tokens an image, D width, K answers."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from cirray.core.config import Config
from cirray.core.errors import DataError

SettingsT = TypeVar("SettingsT", bound=Config)

Answers = tuple[list[tuple[str, ...]], np.ndarray]
"""For every query its ids, best first, and the scores [B, K] (float32), K = min(k, N), padded with -inf where a query
has fewer answers."""
Allowed = np.ndarray | Sequence[np.ndarray | None] | None
"""Rows that may be answered: one mask [N] (bool) for all queries, or one a query, None where every row may be."""
Found = tuple[np.ndarray, np.ndarray]
"""One query's rows, best first, and their scores."""


class Searched(NamedTuple):
    """Answers, and which share of the gallery's images was searched for them."""

    ids: list[tuple[str, ...]]
    """Of every query, best first."""
    scores_BK: np.ndarray
    """See `Answers`."""
    share: float = 1.0


@dataclass(frozen=True)
class Shown:
    """What answers show of an image."""

    size: tuple[int, int] | None
    """Width and height of its picture; None where there is none."""
    values: Mapping[str, Any]
    """Metadata by column."""


@dataclass(frozen=True)
class Absent:
    """An image that cannot be shown: it was removed meanwhile, or its searcher is away."""

    share: float = 1.0
    """Share of the gallery's images that were there to be shown."""


class Page(NamedTuple):
    """Some ids of a gallery, in ascending order."""

    ids: Sequence[str]
    share: float = 1.0
    """Share of the gallery's images that are listed at all."""


class VectorIndex(Protocol):
    """A gallery that can be searched. Equal scores are ordered by ascending id, in every implementation."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The caller's ids, ascending."""

    def search(self, queries_BD: np.ndarray, k: int, allowed: Allowed = None) -> Answers:
        """The k images with the highest similarity to each query, among the rows that are allowed.

        The rows are chosen before the search, not after it: k answers are found wherever k rows are allowed.

        Raises:
            DataError: for queries of another width or with values that are not finite, k < 1, or masks that do not fit.
        """


class RowIndex(ABC):
    """What the searches over rows of vectors share: the ids, the checks, and one pass for each different mask."""

    def __init__(self, ids: Sequence[str], tokens_NQD: np.ndarray) -> None:
        """Hold (not copy) the vectors; `ids` ascending, one per row of `tokens_NQD`."""
        self._ids, self._tokens_NQD = tuple(ids), tokens_NQD

    @property
    def ids(self) -> tuple[str, ...]:
        """The caller's ids, ascending."""
        return self._ids

    def search(self, queries_BD: np.ndarray, k: int, allowed: Allowed = None) -> Answers:
        """See `VectorIndex.search`."""
        queries_BD = checked_queries(queries_BD, self._tokens_NQD.shape[2], k)
        found: dict[int, Found] = {}
        for mask_N, places in by_mask(allowed, len(queries_BD), len(self._ids)):
            rows = None if mask_N is None or mask_N.all() else np.flatnonzero(mask_N)
            found |= zip(places, self._found(queries_BD[places], k, rows), strict=True)
        return named(self._ids, [found[place] for place in range(len(queries_BD))], k)

    @abstractmethod
    def _found(self, queries_BD: np.ndarray, k: int, rows: np.ndarray | None) -> Sequence[Found]:
        """Best (rows, scores) of each query among some rows, ascending and not all of them; None: among all."""


class Backend(ABC, Generic[SettingsT]):
    """A kind of index: it writes what its searches need beside the vectors, and opens that again."""

    def __init__(self, settings: SettingsT) -> None:
        """Take settings of the class that the backend is registered with."""
        self.settings = settings

    def check(self, width: int) -> None:
        """Look at the settings and the vectors' width before any image is encoded; here: any will do.

        Raises ConfigError naming the setting that does not fit.
        """

    def write(self, folder: Path, tokens_NQD: np.ndarray) -> list[str]:
        """Write the backend's own files; returns their names (here: none).

        Raises ConfigError for settings that do not fit the vectors.
        """
        return []

    def build(self, ids: Sequence[str], tokens_NQD: np.ndarray) -> "VectorIndex":
        """The search over vectors that are in memory, without files.

        Raises ConfigError for settings that do not fit the vectors.
        """
        with TemporaryDirectory() as folder:
            self.write(Path(folder), tokens_NQD)
            return self.open(Path(folder), ids, tokens_NQD)

    @abstractmethod
    def open(self, folder: Path, ids: Sequence[str], tokens_NQD: np.ndarray) -> VectorIndex:
        """The search over an index folder.

        Args:
            folder: holds what `write` wrote.
            ids: ascending, one per row of `tokens_NQD`.
            tokens_NQD: the vectors (fp16), memory-mapped.

        Raises ArtifactError for a file that cannot be read, naming it.
        """


def checked_queries(queries_BD: np.ndarray, width: int, k: int) -> np.ndarray:
    """Queries as a contiguous float32 matrix. Raises DataError naming the shape, the count of bad values or k."""
    queries_BD = np.ascontiguousarray(queries_BD, dtype=np.float32)
    if queries_BD.ndim != 2 or queries_BD.shape[1] != width:
        raise DataError(f"Queries have shape {queries_BD.shape}; this index takes [B, {width}].")
    bad = int((~np.isfinite(queries_BD)).any(axis=1).sum())
    if bad:
        raise DataError(f"{bad} of {len(queries_BD)} query vectors hold values that are not finite (NaN or infinity).")
    if k < 1:
        raise DataError(f"k is {k}; at least 1 answer must be asked for.")
    return queries_BD


def named(ids: Sequence[str], found: Sequence[Found], k: int) -> Answers:
    """Turn rows into the caller's ids; scores are padded with -inf where fewer than k were found."""
    answers = min(k, len(ids))
    scores_BK = np.full((len(found), answers), -np.inf, dtype=np.float32)
    for line, (_, scores) in zip(scores_BK, found, strict=True):
        line[: len(scores)] = scores[:answers]
    return [tuple(ids[row] for row in rows[:answers]) for rows, _ in found], scores_BK


def by_mask(allowed: Allowed, queries: int, count: int) -> Iterator[tuple[np.ndarray | None, list[int]]]:
    """Every different mask and the places of its queries; the same object is one mask."""
    masks: list[np.ndarray | None]
    if allowed is None or (isinstance(allowed, np.ndarray) and allowed.ndim == 1):
        masks = [allowed] * queries
    else:
        masks = list(allowed)
    if len(masks) != queries:
        raise DataError(f"{len(masks)} masks of allowed rows were given for {queries} queries; give one a query.")
    places: dict[int, list[int]] = {}
    for place, mask_N in enumerate(masks):
        if mask_N is not None and (mask_N.shape != (count,) or mask_N.dtype != bool):
            raise DataError(f"A mask of allowed rows is {mask_N.dtype}{list(mask_N.shape)}; give bool[{count}].")
        places.setdefault(id(mask_N), []).append(place)
    return ((masks[group[0]], group) for group in places.values())


def best_of(parts: Iterable[tuple[Sequence[int], Answers]], queries: int, answers: int) -> Answers:
    """The best answers of several searches of other images each, given with the places of their queries."""
    found: list[list[tuple[float, str]]] = [[] for _ in range(queries)]
    for places, (names, scores_BK) in parts:
        for place, some, values in zip(places, names, scores_BK.tolist(), strict=True):
            found[place] += [(-value, name) for name, value in zip(some, values, strict=False)]
    best = [sorted(items)[:answers] for items in found]
    scores_BK = np.full((queries, answers), -np.inf, np.float32)
    for line, items in zip(scores_BK, best, strict=True):
        line[: len(items)] = [-value for value, _ in items]
    return [tuple(name for _, name in items) for items in best], scores_BK
