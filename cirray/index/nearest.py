"""Nearest rows of a large matrix by FAISS, for whole blocks of queries: exact over blocks, or by inverted lists.

Scores here are FAISS's float32 inner products; whoever orders close ones computes them anew.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cirray.index.faiss_library import faiss_library

MOST_HITS = 2048
"""FAISS's own limit on GPUs."""
Blocks = Callable[[], Iterator[np.ndarray]]
"""The matrix `[N, D]` (float32), block by block from its first row, as often as it is called."""


def nearest_rows(queries_BD: np.ndarray, blocks: Blocks, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows `[B, k]` of the k largest inner products, best first; rows that are not there are -1.

    On the GPU where this FAISS sees one. Memory: one block and the answers.
    """
    faiss, start = faiss_library(), 0
    find = _on_gpu(faiss) if _gpus(faiss) else faiss.knn
    best_scores = np.full((len(queries_BD), k), -np.inf, np.float32)
    best_rows = np.full((len(queries_BD), k), -1, np.int64)
    for block_ND in blocks():
        scores_BK, rows_BK = find(queries_BD, block_ND, min(k, len(block_ND)), faiss.METRIC_INNER_PRODUCT)
        both_scores = np.concatenate([best_scores, scores_BK], axis=1)
        both_rows = np.concatenate([best_rows, np.where(rows_BK < 0, -1, rows_BK + start)], axis=1)
        order = np.argsort(-both_scores, axis=1, kind="stable")[:, :k]
        best_scores = np.take_along_axis(both_scores, order, axis=1)
        best_rows = np.take_along_axis(both_rows, order, axis=1)
        start += len(block_ND)
    return best_scores, best_rows


class InvertedLists:
    """An IVF index over a matrix: rows fall into lists around centres, and a query looks into a few of them."""

    _TRAINED_ON, _ROUNDS = 64, 10

    def __init__(self, blocks: Blocks, count: int, seed: int) -> None:
        """Find the centres (4 sqrt(N) of them, by k-means over drawn rows) and add all rows."""
        faiss = faiss_library()
        self.lists = max(1, int(4 * np.sqrt(count)))
        drawn = np.sort(np.random.default_rng(seed).choice(count, min(count, self.lists * self._TRAINED_ON), False))
        sample_SD = _rows(blocks, drawn)
        self._index = faiss.index_factory(sample_SD.shape[1], f"IVF{self.lists},Flat", faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed, self._index.cp.niter = seed + 1, self._ROUNDS
        self._index.train(sample_SD)
        for block_ND in blocks():
            self._index.add(block_ND)

    def search(self, queries_BD: np.ndarray, k: int, probes: int) -> tuple[np.ndarray, np.ndarray]:
        """As `nearest_rows`, among the rows of each query's `probes` nearest lists."""
        faiss = faiss_library()
        return self._index.search(queries_BD, k, params=faiss.SearchParametersIVF(nprobe=probes))


def _rows(blocks: Blocks, places: np.ndarray) -> np.ndarray:
    """Single rows of the matrix, `places` ascending."""
    found, start = [], 0
    for block_ND in blocks():
        inside = places[(places >= start) & (places < start + len(block_ND))] - start
        found.append(block_ND[inside])
        start += len(block_ND)
    return np.concatenate(found)


def _gpus(faiss: Any) -> int:
    return faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0


def _on_gpu(faiss: Any) -> Any:
    resources = faiss.StandardGpuResources()

    def find(queries_BD: np.ndarray, block_ND: np.ndarray, k: int, metric: int) -> tuple[np.ndarray, np.ndarray]:
        return faiss.knn_gpu(resources, queries_BD, block_ND, k, metric=metric)

    return find
