"""What every index answers. Shapes: B queries, N images, Q tokens an image, D width, K answers."""

from typing import Protocol

import numpy as np

from cirray.core.errors import DataError

Answers = tuple[list[tuple[str, ...]], np.ndarray]
"""For every query its ids, best first, and the scores [B, K] (float32), K = min(k, N)."""


class VectorIndex(Protocol):
    """A gallery that can be searched. Equal scores are ordered by ascending id, in every implementation."""

    @property
    def ids(self) -> tuple[str, ...]:
        """The caller's ids, ascending."""

    def search(self, queries_BD: np.ndarray, k: int) -> Answers:
        """The k images with the highest similarity to each query.

        Raises:
            DataError: for queries of another width or with values that are not finite, or k < 1.
        """


def checked_queries(queries_BD: np.ndarray, width: int, k: int) -> np.ndarray:
    """Queries as a contiguous float32 matrix.

    Raises:
        DataError: naming the shape, the count of bad values or k.
    """
    queries_BD = np.ascontiguousarray(queries_BD, dtype=np.float32)
    if queries_BD.ndim != 2 or queries_BD.shape[1] != width:
        raise DataError(f"Queries have shape {queries_BD.shape}; this index takes [B, {width}].")
    bad = int((~np.isfinite(queries_BD)).any(axis=1).sum())
    if bad:
        raise DataError(f"{bad} of {len(queries_BD)} query vectors hold values that are not finite (NaN or infinity).")
    if k < 1:
        raise DataError(f"k is {k}; at least 1 answer must be asked for.")
    return queries_BD
