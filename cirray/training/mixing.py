"""Policies that mix real and pseudo rows in batches, each a pure function of (seed, step).

VDG (Jang et al., 2024; docs/PAPERS.md#paired-batches): equal batches of real and pseudo rows, |B'| = |B|, one pseudo
row drawn with replacement for each real one; L_tcc = L_c(B) + L_c(B u B').
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import ConfigError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.training.config import MIXERS, CurriculumConfig, MixerConfig, PairedConfig, TrainingConfig
from cirray.training.sampler import Sampler, Windows, make_sampler, name_numbers, window_rows
from cirray.triplets.rows import TripletRows
from cirray.types import Triplet


@dataclass(frozen=True)
class Rows:
    """The mixer's view of the rows: the number of each one's group, and which are real."""

    group_M: np.ndarray
    real_M: np.ndarray

    def places(self, real: bool) -> np.ndarray:
        """Row numbers of the real rows, or of the others. Raises ConfigError: when there are none."""
        found = np.flatnonzero(self.real_M == real)
        if len(found) == 0:
            kind = "real" if real else "pseudo"
            raise ConfigError(
                f"Mixing needs real and pseudo rows, and none of the {len(self.real_M)} rows is a {kind} one. Name the "
                "sources of real rows in training.real_sources, add triplets, or use mixing=concat."
            )
        return found


MakeMixer = Callable[[Rows, TrainingConfig, Any], Sampler]
"""(rows, configuration, the policy's own settings) -> the policy, whose `rows` raises ConfigError when the global batch
does not divide by the ranks."""


@MIXERS.register("concat")
def concat(rows: Rows, config: TrainingConfig, settings: MixerConfig) -> Sampler:
    """All rows in one shuffled list."""
    return make_sampler(rows.group_M, config)


@MIXERS.register("paired")
class Paired:
    """`batch` real rows in shuffled epochs and round(`ratio` x `batch`) pseudo rows drawn with replacement.

    One pseudo row for each real one (ratio 1) is the paper's. With one row of a group in a batch, a batch's pseudo rows
    are of different groups; the next batch draws from all again.
    """

    def __init__(self, rows: Rows, config: TrainingConfig, settings: PairedConfig) -> None:
        """Prepare. Raises ConfigError: when one kind of row is missing, or a batch cannot be filled."""
        self._seed, self._real = config.seed, rows.places(True)
        self._pseudo = Draw(rows, rows.places(False), config) if settings.ratio else None
        self._count = settings.rows_per_step(config.batch) - config.batch
        self._sampler = make_sampler(rows.group_M[self._real], config)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Real and pseudo rows of one rank, in equal parts on every rank."""
        real = self._real[self._sampler.rows(step)]
        if self._pseudo is None:
            return share(real, rank, world)
        rng = numpy_generator(self._seed, "pseudo rows", step)
        return share(interleave(real, self._pseudo(step, rng, self._count)), rank, world)


@MIXERS.register("curriculum")
class Curriculum:
    """`batch` rows whose share of real ones moves evenly from the first to the second of `shares`."""

    def __init__(self, rows: Rows, config: TrainingConfig, settings: CurriculumConfig) -> None:
        """Prepare. Raises ConfigError: when one kind of row is missing."""
        self._config, self._shares = config, settings.shares
        self._draws = [Draw(rows, rows.places(real), config) for real in (True, False)]

    def real_count(self, step: int) -> int:
        """Real rows in the global batch of a step."""
        first, last = self._shares
        done = min(step / max(self._config.steps - 1, 1), 1.0)
        return round((first + (last - first) * done) * self._config.batch)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Real and pseudo rows of one rank, equal on every rank up to one row."""
        real = self.real_count(step)
        counts = (real, self._config.batch - real)
        parts = [
            draw(step, numpy_generator(self._config.seed, "curriculum", kind, step), count)
            for kind, (draw, count) in enumerate(zip(self._draws, counts, strict=True))
        ]
        return share(interleave(*parts), rank, world)


class Draw:
    """Random rows of a pool: with replacement, or (one of a group) of different groups as far as possible.

    Of a pool of many million rows a step draws from one of the sampler's windows, and as many steps as its rows fill
    batches draw from it; then comes the next window, each once in an epoch of them.
    """

    def __init__(self, rows: Rows, pool: np.ndarray, config: TrainingConfig) -> None:
        """Deal the pool into windows."""
        window = window_rows(len(pool), config)
        self._group_M, self._all, self._apart = rows.group_M, pool, bool(config.one_per_group)
        self._windows, self._stay = Windows(len(pool), window, config.seed), max(window // config.batch, 1)
        self._number, self._pool = -1, pool
        self._members, self._begin_G = pool, np.zeros(1, dtype=np.int64)

    def __call__(self, step: int, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` row numbers."""
        epoch, place = divmod(step // self._stay, len(self._windows))
        self._enter(int(self._windows.order(epoch)[place]))
        groups = len(self._begin_G) - 1
        if groups < count or not count:
            return self._pool[rng.integers(0, len(self._pool), size=count)]
        chosen = rng.choice(groups, size=count, replace=False)
        sizes = np.diff(self._begin_G)[chosen]
        return self._members[self._begin_G[chosen] + np.array([rng.integers(size) for size in sizes])]

    def _enter(self, number: int) -> None:
        """Sort a window's rows by groups."""
        if number == self._number:
            return
        self._number, self._pool = number, self._all[self._windows.rows(number)]
        if self._apart:
            _, first_G, group_P = np.unique(self._group_M[self._pool], return_index=True, return_inverse=True)
            group_P = np.argsort(np.argsort(first_G))[group_P]  # groups in the order of their first rows
            self._members = self._pool[np.argsort(group_P, kind="stable")]
            self._begin_G = np.cumsum([0, *np.bincount(group_P)])


class PairTexts:
    """Several texts of one (reference, target) as one row; each visit draws one in proportion to the weights.

    Examples: a human and a generated text of a pair, both templates of a generated pair, the four ways to join two
    captions.
    """

    def __init__(self, rows: TripletRows, config: TrainingConfig) -> None:
        """Fold the rows by pairs (`pair_texts: drawn`), or leave every row as it is.

        A folded row is the pair's first real row, or its first one, with the weight of all rows of that kind.
        """
        self._seed, self._given, self.rows = config.seed, rows, rows
        self._begin_P = np.zeros(0, np.int64)
        if config.pair_texts == "rows":
            return
        pair_M = _pair_numbers(rows.table)
        self._order, self._begin_P = np.argsort(pair_M, kind="stable"), np.cumsum([0, *np.bincount(pair_M)])
        self._weight_M = rows.table.column("weight").to_numpy()
        kind_M = self._kind(pair_M, config.real_sources)
        kind = np.flatnonzero(kind_M)
        first_P = kind[np.unique(pair_M[kind], return_index=True)[1]]
        weights = pa.array(np.bincount(pair_M, self._weight_M * kind_M))
        at, field = (of("weight") for of in (rows.table.schema.get_field_index, rows.table.schema.field))
        self.rows = TripletRows(rows.table.take(pa.array(first_P)).set_column(at, field, weights))

    def _kind(self, pair_M: np.ndarray, real_sources: Sequence[str]) -> np.ndarray:
        """Which rows are of the kind that stands for their pair: real ones, else those of its first row's source."""
        source = self._given.table.column("source")
        real_M = pc.is_in(source, pa.array(real_sources, pa.string())).to_numpy()
        source_M, first_P = name_numbers(source), self._order[self._begin_P[:-1]]
        any_P = np.bincount(pair_M, real_M) > 0
        return np.where(any_P[pair_M], real_M, source_M == source_M[first_P][pair_M])

    def visit(self, numbers: np.ndarray, step: int) -> list[Triplet]:
        """The rows of some numbers with the texts of this step, a pure function of (seed, step, row)."""
        rows = self.rows.take(numbers)
        if not len(self._begin_P):
            return rows
        several = np.flatnonzero(np.diff(self._begin_P)[numbers] > 1)
        drawn = [self._draw(int(numbers[place]), rows[place], step) for place in several]
        for place, text in zip(several, self._given.take(np.array(drawn, np.int64)), strict=True):
            reverse = text.reverse_modification or rows[place].reverse_modification
            rows[place] = replace(
                rows[place], modification=text.modification, reverse_modification=reverse,
                positive_ids=text.positive_ids, negative_ids=text.negative_ids,
            )  # fmt: skip
        return rows

    def _draw(self, number: int, row: Triplet, step: int) -> int:
        """Which of its pair's rows gives its text."""
        texts = self._order[self._begin_P[number] : self._begin_P[number + 1]]
        ends = np.cumsum(self._weight_M[texts])
        draw = derive_seed(self._seed, "text", step, row.triplet_id) / 2**63 * ends[-1]
        return int(texts[min(int(np.searchsorted(ends, draw, side="right")), len(texts) - 1)])


def _pair_numbers(table: pa.Table) -> np.ndarray:
    """A number for each row's (reference, target), in the order in which they first appear."""
    first_M, second_M = (name_numbers(table.column(name)) for name in ("reference_id", "target_id"))
    _, place_P, pair_M = np.unique(first_M * len(table) + second_M, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(place_P))[pair_M]


def interleave(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Both lists in one, evenly spread: every equal slice has the same part of each, up to one row."""
    total = len(first) + len(second)
    place = np.arange(total + 1) * len(first) // max(total, 1)
    is_first = np.diff(place) > 0
    result = np.empty(total, dtype=np.int64)
    result[is_first], result[~is_first] = first, second
    return result


def share(rows: np.ndarray, rank: int, world: int) -> np.ndarray:
    """One rank's contiguous part. Raises ConfigError: when the rows do not divide by the ranks."""
    if len(rows) % world:
        raise ConfigError(
            f"A mixed batch of {len(rows)} rows does not divide by {world} workers. Choose training.batch and "
            "the mixing's settings (training.mixing.settings.ratio) so that it does."
        )
    size = len(rows) // world
    return rows[rank * size : (rank + 1) * size]
