"""Which texts came before, among more than a Python set could hold."""

from collections.abc import Iterable

import numpy as np


class Seen:
    """Texts as 64-bit hashes in a few sorted arrays: 8 bytes each, at most twice that for a moment.

    Two texts of n are taken for one with a chance of n² / 2⁶⁵ (20 million: one in 90,000).
    """

    def __init__(self) -> None:
        """Nothing was seen."""
        self._runs: list[np.ndarray] = []

    def fresh(self, texts: Iterable[object]) -> np.ndarray:
        """Whether each text (or other hashable value) is the first of its kind, bool `[n]`; all are seen then."""
        keys = np.fromiter(map(hash, texts), np.int64)
        distinct, first = np.unique(keys, return_index=True)
        new = np.ones(len(distinct), bool)
        for run in self._runs:
            new &= run[np.minimum(np.searchsorted(run, distinct), len(run) - 1)] != distinct
        self._keep(distinct[new])
        found = np.zeros(len(keys), bool)
        found[first[new]] = True
        return found

    def _keep(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]))
        if len(run):
            self._runs.append(run)
