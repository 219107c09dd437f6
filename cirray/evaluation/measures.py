"""A measured figure: its value, the integers behind it, and its bootstrap interval. NumPy only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cirray.core.errors import DataError
from cirray.core.seeding import numpy_generator


@dataclass(frozen=True)
class Measure:
    """One figure of a protocol.

    Its value is the unweighted mean, over groups, of the mean gain of each group's queries; most figures have one
    group. `hits` is the official integer count, if the figure is one (None for graded gains).
    """

    name: str
    members: np.ndarray
    """Positions of its queries, int64 [n]."""
    gains: np.ndarray
    """Gain of each query, float64 [n] in [0, 1]."""
    groups: np.ndarray
    """Group number of each, int64 [n], from 0."""
    hits: int | None = None

    @property
    def value(self) -> float:
        """The figure, a fraction in [0, 1]."""
        sizes_G = np.bincount(self.groups)
        sums_G = np.bincount(self.groups, weights=self.gains)
        return float(np.mean(sums_G / sizes_G))

    @property
    def queries(self) -> int:
        """Number of queries it is counted over."""
        return len(self.members)


def measure(
    name: str,
    gains: Sequence[float] | np.ndarray,
    members: Sequence[int] | np.ndarray | None = None,
    groups: Sequence[int] | np.ndarray | None = None,
    hits: int | None = None,
) -> Measure:
    """A measure over all queries, or over `members`; boolean gains of one group also give its integer hits.

    Raises DataError without queries, whose mean has no value.
    """
    array = np.asarray(gains)
    if not len(array):
        raise DataError(f"{name} needs at least one query.")
    if array.dtype == bool and groups is None and hits is None:
        hits = int(np.count_nonzero(array))
    return Measure(
        name,
        np.arange(len(array)) if members is None else np.asarray(members, dtype=np.int64),
        array.astype(np.float64),
        np.zeros(len(array), dtype=np.int64) if groups is None else np.asarray(groups, dtype=np.int64),
        hits,
    )


def interval(
    figure: Measure, families: Sequence[str], level: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of a measure: queries of one reference (`families`) are drawn together, inside
    their group.

    Returns: Lower and upper end, fractions.
    """
    names = np.asarray(families, dtype=object)[figure.members]
    rates_SG = [
        _rates(figure.gains[figure.groups == group], names[figure.groups == group], samples, seed, group)
        for group in range(int(figure.groups.max()) + 1)
    ]
    low, high = np.quantile(np.mean(rates_SG, axis=0), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _rates(gains: np.ndarray, names: np.ndarray, samples: int, seed: int, group: int) -> np.ndarray:
    """Resampled means [samples] of one group."""
    _, index = np.unique(names.astype(str), return_inverse=True)
    found, size = np.bincount(index, weights=gains), np.bincount(index)
    rng, count = numpy_generator(seed, "bootstrap", *([group] if group else [])), len(size)
    rates = np.empty(samples)
    for at in range(samples):
        draws = np.bincount(rng.integers(0, count, count), minlength=count)
        rates[at] = (draws @ found) / (draws @ size)
    return rates
