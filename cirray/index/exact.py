"""The simple twin: NumPy scans every token vector. It is what the FAISS indexes are tested against."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cirray.core.config import Config
from cirray.index.config import INDEXES
from cirray.index.protocol import Answers, Backend, VectorIndex, checked_queries
from cirray.index.similarity import batch_token_scores, best_rows

_CHUNK_VALUES = 4 * 2**20


class ExactIndex:
    """Exact max-over-tokens search by scanning, in chunks of bounded memory."""

    def __init__(self, ids: Sequence[str], tokens_NQD: np.ndarray) -> None:
        """Hold (not copy) the vectors; `ids` ascending, one per row of `tokens_NQD`."""
        self._ids, self._tokens_NQD = tuple(ids), tokens_NQD

    @property
    def ids(self) -> tuple[str, ...]:
        """The caller's ids, ascending."""
        return self._ids

    def search(self, queries_BD: np.ndarray, k: int) -> Answers:
        """The k best images of each query; see `VectorIndex.search`."""
        queries_BD = checked_queries(queries_BD, self._tokens_NQD.shape[2], k)
        found = scan(queries_BD, self._tokens_NQD, k)
        return named(self._ids, found, k)


@INDEXES.register("exact")
class ExactBackend(Backend[Config]):
    """Has no files and no settings."""

    def open(self, folder: Path, ids: Sequence[str], tokens_NQD: np.ndarray) -> VectorIndex:
        """A scan of the vectors."""
        return ExactIndex(ids, tokens_NQD)


def scan(queries_BD: np.ndarray, tokens_NQD: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Best (rows, scores) of each query over all images."""
    count, tokens, width = tokens_NQD.shape
    chunk = max(1, _CHUNK_VALUES // (tokens * width))
    best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries_BD]
    for start in range(0, count, chunk):
        scores_BN = batch_token_scores(queries_BD, np.asarray(tokens_NQD[start : start + chunk]))
        rows_N = np.arange(start, start + scores_BN.shape[1])
        best = [
            best_rows(np.concatenate([scores, fresh]), np.concatenate([rows, rows_N]), k)
            for (rows, scores), fresh in zip(best, scores_BN, strict=True)
        ]
    return best


def named(ids: Sequence[str], found: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> Answers:
    """Turn rows into the caller's ids; scores are padded with -inf where an approximate index found fewer than k."""
    answers = min(k, len(ids))
    scores_BK = np.full((len(found), answers), -np.inf, dtype=np.float32)
    for line, (_, scores) in zip(scores_BK, found, strict=True):
        line[: len(scores)] = scores[:answers]
    return [tuple(ids[row] for row in rows[:answers]) for rows, _ in found], scores_BK
