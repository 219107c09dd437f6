"""The rows of a step's global batch: a pure function of (seed, step), so resuming needs only the step."""

from collections.abc import Sequence

import numpy as np

from cirray.core.errors import ConfigError
from cirray.core.log import get_logger
from cirray.core.seeding import numpy_generator


def spread_groups(groups: Sequence[str], batch: int, wanted: bool | str) -> bool:
    """Whether batches hold at most one row of a group: as set, or ("auto") if there are enough groups."""
    if wanted != "auto":
        return bool(wanted)
    count = len(set(groups) - {""}) + sum(not name for name in groups)
    if count < batch:
        get_logger(__name__).info(
            "%d groups do not fill a batch of %d with one triplet each: batches mix triplets of a group", count, batch
        )
    return count >= batch


class BatchSampler:
    """Shuffled epochs cut into full batches, optionally with at most one row of a group in a batch.

    With groups, an epoch has rounds: round r holds the r-th row, in random order, of every group that has one, so no
    batch inside a round repeats a group. Rows that do not fill a batch are left out of that epoch.
    """

    def __init__(self, groups: Sequence[str] | int, batch: int, seed: int, one_per_group: bool = False) -> None:
        """Prepare the epochs. Groups are named by row ("" stands alone), or their place has the number of rows.

        Raises ConfigError when not even one batch can be filled.
        """
        count = groups if isinstance(groups, int) else len(groups)
        names = [str(row) for row in range(count)] if isinstance(groups, int) or not one_per_group else groups
        self._group_M = _group_numbers(names)
        self.batch, self._seed, self._cached = batch, seed, (-1, np.empty((0, batch), dtype=np.int64))
        sizes = np.bincount(np.bincount(self._group_M)) if count else np.zeros(1, dtype=np.int64)
        rounds = np.cumsum(sizes[::-1])[::-1][1:]
        self.batches_per_epoch = int((rounds // batch).sum())
        if self.batches_per_epoch == 0:
            groups_count = int(rounds[0]) if len(rounds) else 0
            what = f"{groups_count} groups (one triplet of a group per batch)" if one_per_group else f"{count} rows"
            other = ", or one_per_group=false" if one_per_group and count >= batch else ""
            most = max(groups_count, 1)
            raise ConfigError(f"A batch of {batch} cannot be filled from {what}. Use batch <= {most}{other}.")

    def rows(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Row numbers of one rank's equal share of the global batch of `step` (int64, contiguous slice)."""
        epoch, index = divmod(step, self.batches_per_epoch)
        if self._cached[0] != epoch:
            self._cached = (epoch, self._epoch(epoch))
        share = self.batch // world
        return self._cached[1][index][rank * share : (rank + 1) * share]

    def _epoch(self, epoch: int) -> np.ndarray:
        rng = numpy_generator(self._seed, "epoch", epoch)
        order = rng.permutation(len(self._group_M))
        turn = _turns(self._group_M[order])
        batches = []
        for number in range(int(turn.max()) + 1):
            rows = order[turn == number]
            full = len(rows) // self.batch
            batches.append(rows[: full * self.batch].reshape(full, self.batch))
            if full == 0:
                break
        stacked = np.concatenate(batches)
        return stacked[rng.permutation(len(stacked))]


def _group_numbers(names: Sequence[str]) -> np.ndarray:
    known: dict[str, int] = {}
    return np.array(
        [known.setdefault(name or f"\x1f{row}", len(known)) for row, name in enumerate(names)], dtype=np.int64
    )


def _turns(group_M: np.ndarray) -> np.ndarray:
    """How many earlier rows of the same group each row has."""
    order = np.argsort(group_M, kind="stable")
    ordered = group_M[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    turn = np.empty_like(group_M)
    turn[order] = np.arange(len(ordered)) - np.repeat(starts, sizes)
    return turn
