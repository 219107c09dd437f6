"""Nearest neighbours over mean-centred features, block by block with bounded memory: exact, or with a stated recall.

The exact ones equal the full similarity matrix with a full sort (the twin in its test; 7 GB for 25,000 images).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cirray.features.store import FeatureStore
from cirray.index.faiss_library import is_there
from cirray.index.nearest import MOST_HITS, InvertedLists, nearest_rows
from cirray.mining.config import WindowConfig

_EPSILON = 1e-12
Places = Sequence[int] | np.ndarray
"""Places of images in the list of ids."""
_SPARE = 16
"""Hits beyond a window's end, for near-duplicates and equal cosines."""
_WIDEN = 4


@dataclass(frozen=True)
class Window:
    """Candidates of one reference: indices of targets, their ranks and cosines, best first."""

    reference: int
    targets: np.ndarray
    ranks: np.ndarray
    scores: np.ndarray


class CentredVectors:
    """Unit vectors of images: tokens in a row (or their mean), minus the mean over all images, float32."""

    def __init__(self, store: FeatureStore, ids: Sequence[str], representation: str, memory_bytes: int) -> None:
        """Compute the mean in one pass; keep the vectors if they fit into `memory_bytes`, else compute them again."""
        self._store, self._ids, self._flat = store, ids, representation == "flat"
        patches, width = store.shape
        self.width = patches * width if self._flat else width
        self.rows = max(1, memory_bytes // (8 * self.width))
        self.margin = 4.0 * float(np.sqrt(self.width) * np.finfo(np.float32).eps)
        """Error of a float32 cosine: that of a sum whose rounding errors are random, four times over."""
        self.mean_D = self._mean()
        whole = len(self._ids) * self.width * 4
        self._kept = self._make(0, len(self._ids)) if whole <= memory_bytes else None

    def __len__(self) -> int:
        return len(self._ids)

    def blocks(self) -> Iterator[np.ndarray]:
        """All vectors from the first, `[B, D]` each; a constant image's is zero, which is similar to nothing."""
        if self._kept is not None:
            yield self._kept
            return
        yield from (self._make(start, start + self.rows) for start in range(0, len(self), self.rows))

    def take(self, places: Places) -> np.ndarray:
        """Vectors of single images, in any order: `[len(places), D]`."""
        if self._kept is not None:
            return self._kept[np.asarray(places, dtype=np.int64)]
        return self._unit(self._flatten([self._ids[place] for place in places]))

    def _raw(self, start: int, stop: int) -> np.ndarray:
        return self._flatten(self._ids[start:stop])

    def _flatten(self, ids: Sequence[str]) -> np.ndarray:
        patches_NPD = self._store.get(ids).astype(np.float32)
        return patches_NPD.reshape(len(patches_NPD), -1) if self._flat else patches_NPD.mean(axis=1)

    def _make(self, start: int, stop: int) -> np.ndarray:
        return self._unit(self._raw(start, stop))

    def _unit(self, raw_ND: np.ndarray) -> np.ndarray:
        vectors_ND = raw_ND - self.mean_D
        return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), _EPSILON)

    def _mean(self) -> np.ndarray:
        total_D = np.zeros(self.width, dtype=np.float64)
        for start in range(0, len(self._ids), self.rows):
            total_D += self._raw(start, start + self.rows).sum(axis=0, dtype=np.float64)
        return (total_D / max(len(self._ids), 1)).astype(np.float32)


def windows(
    vectors: CentredVectors,
    config: WindowConfig,
    memory_bytes: int,
    references: Places | None = None,
    lists: "Approximate | None" = None,
) -> Iterator[Window]:
    """Every reference's rank window, in order; with `references` (ascending) only theirs.

    Ranks count a reference's other images by falling cosine (equal cosines by index), near-duplicates above
    `max_score` left out. Windows of the first ranks are found by FAISS where it is installed, the others by the whole
    row of cosines; both order by cosines that are summed in float64 and rounded once, so that they agree to the index.

    Args:
        vectors: unit vectors of the images.
        config: the window.
        memory_bytes: working memory; the answer does not depend on it.
        references: whose windows; None: of all images.
        lists: look into these lists instead, which finds most of a window.
    """
    wanted = np.arange(len(vectors)) if references is None else np.asarray(references, dtype=np.int64)
    hits = config.rank_high + 1 + _SPARE
    by_faiss = config.quantiles is None and is_there() and hits * _WIDEN <= min(MOST_HITS, len(vectors))
    if lists is not None and by_faiss:
        yield from _approximate(vectors, wanted, config, memory_bytes, hits, lists)
    elif by_faiss:
        yield from _nearest(vectors, wanted, config, memory_bytes, hits)
    else:
        yield from _by_rows(vectors, wanted, config, memory_bytes)


class Approximate:
    """Inverted lists over the images, and into how many of them a reference looks for a stated recall."""

    _TRIED = 500

    def __init__(self, vectors: CentredVectors, config: WindowConfig, memory_bytes: int, recall: float) -> None:
        """Build the lists and measure; `recall`: least share of the windows' pairs, over drawn references."""
        self.lists = InvertedLists(vectors.blocks, len(vectors), seed=0)
        tried = min(self._TRIED, len(vectors))
        drawn = np.sort(np.random.default_rng(1).choice(len(vectors), tried, replace=False))
        exact = list(windows(vectors, config, memory_bytes, drawn))
        self.probes, self.recall = 1, 0.0
        while self.recall < recall and self.probes < self.lists.lists:
            self.probes *= 2
            self.recall = _recall(list(windows(vectors, config, memory_bytes, drawn, self)), exact)


def select_window(
    vectors: CentredVectors, reference: int, query_D: np.ndarray, rows_H: np.ndarray, config: WindowConfig,
    floor: float = -np.inf,
) -> Window | None:  # fmt: skip
    """The rank window of one reference from images that may be in it.

    Args:
        vectors: unit vectors of the images.
        reference: whose window.
        query_D: its vector.
        rows_H: images, in any order.
        config: the window; by ranks.
        floor: no image outside `rows_H` has a higher cosine.

    Returns:
        The window; None when an image outside `rows_H` may belong to it.
    """
    rows_H = np.sort(rows_H[rows_H != reference])
    scores_H = _cosines(vectors, query_D, rows_H)
    allowed = scores_H <= config.max_score
    rows_H, scores_H = rows_H[allowed], scores_H[allowed]
    order = np.lexsort((rows_H, -scores_H))[: config.rank_high]
    settled = floor < config.min_score or (len(order) == config.rank_high and scores_H[order[-1]] > floor)
    if not settled and floor > -np.inf:
        return None
    order = order[config.rank_low :]
    return _kept(reference, rows_H[order], scores_H[order], config.rank_low, config)


def _nearest(
    vectors: CentredVectors, wanted: np.ndarray, config: WindowConfig, memory_bytes: int, hits: int
) -> Iterator[Window]:
    """Windows from FAISS's best hits; where these do not settle a window, more are asked for."""
    for part in _parts(wanted, memory_bytes // (8 * max(vectors.width, hits * _WIDEN))):
        queries_BD, found, waiting, asked = vectors.take(part), dict[int, Window](), np.arange(len(part)), hits
        while len(waiting) and asked <= min(MOST_HITS, len(vectors)):
            scores_BK, rows_BK = nearest_rows(queries_BD[waiting], vectors.blocks, asked)
            for place, scores_K, rows_K in zip(waiting.tolist(), scores_BK, rows_BK, strict=True):
                floor = float(scores_K[-1]) + vectors.margin
                rows_H, reference = rows_K[rows_K >= 0], int(part[place])
                window = select_window(vectors, reference, queries_BD[place], rows_H, config, floor)
                if window is not None:
                    found[place] = window
            waiting, asked = np.array([place for place in waiting if place not in found], np.int64), asked * _WIDEN
        rest = _by_rows(vectors, part[waiting], config, memory_bytes)
        found |= zip(waiting.tolist(), rest, strict=True)
        yield from (found[place] for place in range(len(part)))


def _approximate(
    vectors: CentredVectors, wanted: np.ndarray, config: WindowConfig, memory_bytes: int, hits: int, lists: Approximate
) -> Iterator[Window]:
    for part in _parts(wanted, memory_bytes // (8 * max(vectors.width, hits))):
        queries_BD = vectors.take(part)
        _, rows_BK = lists.lists.search(queries_BD, hits, lists.probes)
        for reference, query_D, rows_K in zip(part.tolist(), queries_BD, rows_BK, strict=True):
            window = select_window(vectors, reference, query_D, rows_K[rows_K >= 0], config)
            assert window is not None
            yield window


def _by_rows(vectors: CentredVectors, wanted: np.ndarray, config: WindowConfig, memory_bytes: int) -> Iterator[Window]:
    """Windows from whole rows of cosines: a block of references against all images."""
    for part in _parts(wanted, memory_bytes // (4 * max(len(vectors), 1))):
        queries_BD = vectors.take(part)
        for reference, query_D, scores_N in zip(part.tolist(), queries_BD, _scores(vectors, queries_BD), strict=True):
            if config.quantiles is not None:
                yield _quantile_window(reference, scores_N, config, config.quantiles)
                continue
            above = int(np.count_nonzero(scores_N > config.max_score - vectors.margin))
            asked = min(len(scores_N), config.rank_high + 1 + above)
            cut = float(np.partition(scores_N, len(scores_N) - asked)[len(scores_N) - asked])
            rows_H = np.flatnonzero(scores_N >= cut - 2 * vectors.margin)
            window = select_window(vectors, reference, query_D, rows_H, config)
            assert window is not None
            yield window


def _quantile_window(
    reference: int, scores_N: np.ndarray, config: WindowConfig, quantiles: tuple[float, float]
) -> Window:
    """A window of shares of the list, whose many images are ordered by the float32 cosines themselves."""
    allowed = scores_N <= config.max_score
    allowed[reference] = False
    rows = np.flatnonzero(allowed)
    low, high = (int(share * len(rows)) for share in quantiles)
    order = np.lexsort((rows, -scores_N[rows]))[low:high]
    return _kept(reference, rows[order], scores_N[rows[order]], low, config)


def _kept(reference: int, targets: np.ndarray, scores: np.ndarray, low: int, config: WindowConfig) -> Window:
    keep = scores >= config.min_score
    return Window(reference, targets[keep], np.arange(low, low + len(targets))[keep], scores[keep])


def _cosines(vectors: CentredVectors, query_D: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Cosines of one image with others: products summed in float64 and rounded once to float32."""
    exact_D, step = query_D.astype(np.float64), vectors.rows
    parts = [vectors.take(rows[at : at + step]).astype(np.float64) @ exact_D for at in range(0, len(rows), step)]
    return np.concatenate(parts or [np.empty(0)]).astype(np.float32)


def _recall(found: Sequence[Window], exact: Sequence[Window]) -> float:
    """Share of the exact windows' targets that are in the found ones."""
    shared = sum(len(np.intersect1d(ours.targets, theirs.targets)) for ours, theirs in zip(found, exact, strict=True))
    return shared / max(1, sum(len(window.targets) for window in exact))


def _parts(wanted: np.ndarray, size: int) -> Iterator[np.ndarray]:
    block = int(np.clip(size, 1, 4096))
    yield from (wanted[start : start + block] for start in range(0, len(wanted), block))


def _scores(vectors: CentredVectors, queries_BD: np.ndarray) -> np.ndarray:
    low, scores_BN = 0, np.empty((len(queries_BD), len(vectors)), dtype=np.float32)
    for block_ND in vectors.blocks():
        high = low + len(block_ND)
        np.matmul(queries_BD, block_ND.T, out=scores_BN[:, low:high])
        low = high
    return scores_BN
