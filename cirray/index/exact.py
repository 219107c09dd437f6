"""The simple twin: NumPy scans every token vector. It is what the FAISS indexes are tested against."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cirray.core.config import Config
from cirray.index.config import INDEXES
from cirray.index.protocol import Backend, Found, RowIndex, VectorIndex
from cirray.index.similarity import batch_token_scores, best_rows

_CHUNK_VALUES = 4 * 2**20


class ExactIndex(RowIndex):
    """Exact max-over-tokens search by scanning, in chunks of bounded memory."""

    def _found(self, queries_BD: np.ndarray, k: int, rows: np.ndarray | None) -> list[Found]:
        return scan(queries_BD, self._tokens_NQD, k, rows)


@INDEXES.register("exact")
class ExactBackend(Backend[Config]):
    """Has no files and no settings."""

    def open(self, folder: Path, ids: Sequence[str], tokens_NQD: np.ndarray) -> VectorIndex:
        """A scan of the vectors."""
        return ExactIndex(ids, tokens_NQD)


def scan(queries_BD: np.ndarray, tokens_NQD: np.ndarray, k: int, rows: np.ndarray | None = None) -> list[Found]:
    """Best (rows, scores) of each query over all images, or over the images of some rows."""
    _, tokens, width = tokens_NQD.shape
    count = len(tokens_NQD) if rows is None else len(rows)
    chunk = max(1, _CHUNK_VALUES // (tokens * width))
    best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries_BD]
    for start in range(0, count, chunk):
        part = slice(start, start + chunk)
        rows_N = np.arange(*part.indices(count)) if rows is None else rows[part]
        scores_BN = batch_token_scores(queries_BD, np.asarray(tokens_NQD[part if rows is None else rows_N]))
        best = [
            best_rows(np.concatenate([scores, fresh]), np.concatenate([kept, rows_N]), k)
            for (kept, scores), fresh in zip(best, scores_BN, strict=True)
        ]
    return best
