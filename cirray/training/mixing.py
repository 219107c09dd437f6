"""Policies that mix real and pseudo rows in batches, each a pure function of (seed, step).

VDG (Jang et al., 2024; docs/PAPERS.md#paired-batches): equal batches of real and pseudo rows, |B'| = |B|, one pseudo
row drawn with replacement for each real one; L_tcc = L_c(B) + L_c(B u B').
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cirray.core.errors import ConfigError
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.training.config import MIXERS, CurriculumConfig, MixerConfig, PairedConfig, TrainingConfig
from cirray.training.sampler import Sampler, make_sampler
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
        self._pseudo = Draw(rows, rows.places(False), config.one_per_group) if settings.ratio else None
        self._count = settings.rows_per_step(config.batch) - config.batch
        self._sampler = make_sampler(rows.group_M[self._real], config)

    def rows(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Real and pseudo rows of one rank, in equal parts on every rank."""
        real = self._real[self._sampler.rows(step)]
        if self._pseudo is None:
            return share(real, rank, world)
        rng = numpy_generator(self._seed, "pseudo rows", step)
        return share(interleave(real, self._pseudo(rng, self._count)), rank, world)


@MIXERS.register("curriculum")
class Curriculum:
    """`batch` rows whose share of real ones moves evenly from the first to the second of `shares`."""

    def __init__(self, rows: Rows, config: TrainingConfig, settings: CurriculumConfig) -> None:
        """Prepare. Raises ConfigError: when one kind of row is missing."""
        self._config, self._shares = config, settings.shares
        self._draws = [Draw(rows, rows.places(real), config.one_per_group) for real in (True, False)]

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
            draw(numpy_generator(self._config.seed, "curriculum", kind, step), count)
            for kind, (draw, count) in enumerate(zip(self._draws, counts, strict=True))
        ]
        return share(interleave(*parts), rank, world)


class Draw:
    """Random rows of a pool: with replacement, or (one of a group) of different groups as far as possible."""

    def __init__(self, rows: Rows, pool: np.ndarray, one_per_group: bool | str) -> None:
        """Sort the pool by groups."""
        self._pool, self._begin_G = pool, np.zeros(1, dtype=np.int64)
        if one_per_group:
            _, first_G, group_P = np.unique(rows.group_M[pool], return_index=True, return_inverse=True)
            group_P = np.argsort(np.argsort(first_G))[group_P]  # groups in the order of their first rows
            self._members = pool[np.argsort(group_P, kind="stable")]
            self._begin_G = np.cumsum([0, *np.bincount(group_P)])

    def __call__(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """`count` row numbers."""
        groups = len(self._begin_G) - 1
        if groups < count or not count:
            return self._pool[rng.integers(0, len(self._pool), size=count)]
        chosen = rng.choice(groups, size=count, replace=False)
        sizes = np.diff(self._begin_G)[chosen]
        return self._members[self._begin_G[chosen] + np.array([rng.integers(size) for size in sizes])]


class PairTexts:
    """Several texts of one (reference, target) as one row; each visit draws one in proportion to the weights.

    Examples: a human and a generated text of a pair, both templates of a generated pair, the four ways to join two
    captions.
    """

    def __init__(self, rows: Sequence[Triplet], config: TrainingConfig) -> None:
        """Fold the rows by pairs (`pair_texts: drawn`), or leave every row as it is.

        A folded row is the pair's first real row, or its first one, with the weight of all rows of that kind.
        """
        self._seed, self._texts = config.seed, dict[str, list[Triplet]]()
        self.rows: Sequence[Triplet] = rows
        if config.pair_texts == "rows":
            return
        pairs: dict[tuple[str, str], list[Triplet]] = {}
        for row in rows:
            pairs.setdefault((row.reference_id, row.target_id), []).append(row)
        self.rows = [self._folded(texts, config.real_sources) for texts in pairs.values()]

    def _folded(self, texts: list[Triplet], real_sources: Sequence[str]) -> Triplet:
        real = [row for row in texts if row.source in real_sources]
        kind = real or [row for row in texts if row.source == texts[0].source]
        if len(texts) > 1:
            self._texts[kind[0].triplet_id] = texts
        return replace(kind[0], weight=sum(row.weight for row in kind))

    def visit(self, row: Triplet, step: int) -> Triplet:
        """The row with the text of this step, a pure function of (seed, step, row)."""
        texts = self._texts.get(row.triplet_id)
        if not texts:
            return row
        ends = np.cumsum([text.weight for text in texts])
        draw = derive_seed(self._seed, "text", step, row.triplet_id) / 2**63 * ends[-1]
        chosen = texts[min(int(np.searchsorted(ends, draw, side="right")), len(texts) - 1)]
        reverse = chosen.reverse_modification or row.reverse_modification
        return replace(
            row, modification=chosen.modification, reverse_modification=reverse,
            positive_ids=chosen.positive_ids, negative_ids=chosen.negative_ids,
        )  # fmt: skip


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
