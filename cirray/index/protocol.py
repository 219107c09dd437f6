"""What every index answers. Shapes: B queries, N images, Q tokens an image, D width, K answers."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from cirray.core.config import Config
from cirray.core.errors import DataError

SettingsT = TypeVar("SettingsT", bound=Config)

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


class Backend(ABC, Generic[SettingsT]):
    """A kind of index: it writes what its searches need beside the vectors, and opens that again."""

    def __init__(self, settings: SettingsT) -> None:
        """Take settings of the class that the backend is registered with."""
        self.settings = settings

    def check(self, width: int) -> None:
        """Look at the settings and the vectors' width before any image is encoded; here: any will do.

        Raises:
            ConfigError: naming the setting that does not fit.
        """

    def write(self, folder: Path, tokens_NQD: np.ndarray) -> list[str]:
        """Write the backend's own files; returns their names (here: none).

        Raises:
            ConfigError: for settings that do not fit the vectors.
        """
        return []

    @abstractmethod
    def open(self, folder: Path, ids: Sequence[str], tokens_NQD: np.ndarray) -> VectorIndex:
        """The search over an index folder.

        Args:
            folder: holds what `write` wrote.
            ids: ascending, one per row of `tokens_NQD`.
            tokens_NQD: the vectors (fp16), memory-mapped.

        Raises:
            ArtifactError: for a file that cannot be read, naming it.
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
