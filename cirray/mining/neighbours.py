"""Exact nearest neighbours over mean-centred features, block by block with bounded memory.

Equal to the full similarity matrix with a full sort (the twin in its test), which takes 7 GB for 25,000 images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from cirray.features.store import FeatureStore
from cirray.mining.config import WindowConfig

_EPSILON = 1e-12


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
        self._store, self._ids, self._flat = store, list(ids), representation == "flat"
        patches, width = store.shape
        self.width = patches * width if self._flat else width
        self.rows = max(1, memory_bytes // (8 * self.width))
        self.mean_D = self._mean()
        whole = len(self._ids) * self.width * 4
        self._kept = self._make(0, len(self._ids)) if whole <= memory_bytes else None

    def __len__(self) -> int:
        return len(self._ids)

    def block(self, start: int, stop: int) -> np.ndarray:
        """Vectors [stop - start, D]; a constant image gives the zero vector, which is similar to nothing."""
        return self._make(start, stop) if self._kept is None else self._kept[start:stop]

    def take(self, places: Sequence[int]) -> np.ndarray:
        """Vectors of single images, in any order: `[len(places), D]`."""
        if self._kept is not None:
            return self._kept[list(places)]
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


def windows(vectors: CentredVectors, config: WindowConfig, memory_bytes: int) -> Iterator[Window]:
    """Every reference's rank window, in order.

    Ranks count a reference's other images by falling cosine (equal cosines by index), near-duplicates above
    `max_score` left out. Working memory: one block of references against all images.
    """
    count = len(vectors)
    block = int(np.clip(memory_bytes // (4 * max(count, 1)), 1, 4096))
    for start in range(0, count, block):
        scores_BN = _scores(vectors, start, min(start + block, count))
        for row, scores_N in enumerate(scores_BN):
            yield select_window(start + row, scores_N, config)


def select_window(reference: int, scores_N: np.ndarray, config: WindowConfig) -> Window:
    """The rank window of one reference from its cosines with all images (itself among them)."""
    scores_N = scores_N.astype(np.float32, copy=True)
    allowed = scores_N <= config.max_score
    allowed[reference] = False
    candidates = np.flatnonzero(allowed)
    low, high = rank_window(len(candidates), config)
    order = _best(candidates, scores_N[candidates], high)[low:high]
    targets = candidates[order]
    ranks = np.arange(low, low + len(order))
    keep = scores_N[targets] >= config.min_score
    return Window(reference, targets[keep], ranks[keep], scores_N[targets][keep])


def rank_window(candidates: int, config: WindowConfig) -> tuple[int, int]:
    """First rank and end of the window in a list of `count` candidates."""
    if config.quantiles is None:
        return min(config.rank_low, candidates), min(config.rank_high, candidates)
    low, high = config.quantiles
    return int(low * candidates), int(high * candidates)


def _scores(vectors: CentredVectors, start: int, stop: int) -> np.ndarray:
    queries_BD, count = vectors.block(start, stop), len(vectors)
    scores_BN = np.empty((stop - start, count), dtype=np.float32)
    for low in range(0, count, vectors.rows):
        high = min(low + vectors.rows, count)
        np.matmul(queries_BD, vectors.block(low, high).T, out=scores_BN[:, low:high])
    return scores_BN


def _best(candidates: np.ndarray, scores_N: np.ndarray, high: int) -> np.ndarray:
    """Positions of the `high` best scores, best first, equal scores by index (also at the cut)."""
    if high >= len(scores_N):
        return np.lexsort((candidates, -scores_N))
    if high == 0:
        return np.empty(0, dtype=np.int64)
    cut = np.partition(scores_N, len(scores_N) - high)[len(scores_N) - high]
    near = np.flatnonzero(scores_N >= cut)
    return near[np.lexsort((candidates[near], -scores_N[near]))][:high]
