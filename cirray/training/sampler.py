"""The rows of a step's global batch: a pure function of (seed, step), so resuming needs only the step."""

from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cirray.core.errors import ConfigError
from cirray.core.log import get_logger
from cirray.core.seeding import derive_seed, numpy_generator
from cirray.training.config import TrainingConfig
from cirray.triplets.store import LARGE

BLOCK_ROWS = 1024
"""Neighbouring rows that go into one window."""
_AUTO_WINDOW, _AUTO_BATCHES = 1_000_000, 64


class Sampler(Protocol):
    """Chooses the rows of every step."""

    def rows(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """Row numbers of one rank's equal share of the global batch of `step` (int64, contiguous slice)."""


def make_sampler(group_M: np.ndarray, config: TrainingConfig) -> Sampler:
    """Epochs over rows by the numbers of their groups: of all rows mixed, or window by window (`shuffle_rows`).

    Raises ConfigError when a batch cannot be filled.
    """
    one_each, window = spread_groups(group_M, config.batch, config.one_per_group), window_rows(len(group_M), config)
    if len(group_M) <= window:
        return BatchSampler(group_M, config.batch, config.seed, one_each)
    return BlockSampler(group_M, config.batch, config.seed, one_each, window)


def window_rows(count: int, config: TrainingConfig) -> int:
    """Rows of a window (`shuffle_rows`) for so many rows; `count` where one window holds them all."""
    window = config.shuffle_rows
    if isinstance(window, int):
        return min(window, count)
    return count if count <= LARGE else max(_AUTO_WINDOW, _AUTO_BATCHES * config.batch)


def spread_groups(group_M: np.ndarray, batch: int, wanted: bool | str) -> bool:
    """Whether batches hold at most one row of a group: as set, or ("auto") if there are enough groups."""
    if wanted != "auto":
        return bool(wanted)
    count = len(np.unique(group_M))
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

    def __init__(self, groups: np.ndarray | int, batch: int, seed: int, one_per_group: bool = False) -> None:
        """Prepare the epochs. `groups` are the number of each row's group (`group_numbers`), or the count of rows.

        Raises ConfigError when not even one batch can be filled.
        """
        count = groups if isinstance(groups, int) else len(groups)
        alone = isinstance(groups, int) or not one_per_group
        self._group_M = np.arange(count) if alone else np.unique(groups, return_inverse=True)[1]
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


def name_numbers(names: pa.ChunkedArray) -> np.ndarray:
    """A number for each name, equal for equal ones."""
    return pc.index_in(names, pc.unique(names)).to_numpy().astype(np.int64)


def group_numbers(names: pa.ChunkedArray) -> np.ndarray:
    """A number for each row's group, equal for equal names; rows without a name ("") have numbers of their own."""
    numbers = name_numbers(names)
    alone = np.flatnonzero(pc.equal(names, "").to_numpy())
    numbers[alone] = -1 - alone
    return numbers


def _turns(group_M: np.ndarray) -> np.ndarray:
    """How many earlier rows of the same group each row has."""
    order = np.argsort(group_M, kind="stable")
    ordered = group_M[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sizes = np.diff(np.r_[starts, len(ordered)])
    turn = np.empty_like(group_M)
    turn[order] = np.arange(len(ordered)) - np.repeat(starts, sizes)
    return turn


class Windows:
    """Rows dealt into windows of whole blocks: a block is 1,024 neighbouring rows, and goes at random, once for a seed,
    into one of the windows of about `window` rows.
    """

    def __init__(self, rows: int, window: int, seed: int) -> None:
        """Deal the blocks."""
        self._rows, self._seed = rows, seed
        blocks = numpy_generator(seed, "blocks").permutation(-(-rows // BLOCK_ROWS))
        self._blocks = np.array_split(blocks, max(1, round(rows / window)))

    def __len__(self) -> int:
        return len(self._blocks)

    def order(self, epoch: int) -> np.ndarray:
        """The windows in the order of an epoch."""
        return numpy_generator(self._seed, "windows", epoch).permutation(len(self))

    def rows(self, number: int) -> np.ndarray:
        """Rows of a window, in order."""
        rows = (np.sort(self._blocks[number])[:, None] * BLOCK_ROWS + np.arange(BLOCK_ROWS)).ravel()
        return rows[rows < self._rows]


class BlockSampler:
    """Batches for stores of many million rows: rows are mixed inside windows, which are made of whole blocks.

    Every epoch takes the windows in a new order, and in each the rows in a new order as `BatchSampler` does. So a step
    reads from one window alone, and every row shares batches with any row of its window, which are drawn over the
    whole store.
    """

    def __init__(self, groups: np.ndarray | int, batch: int, seed: int, one_per_group: bool, window: int) -> None:
        """Deal the blocks. Raises ConfigError when a window does not fill a batch."""
        self._groups, self._given = groups, (batch, one_per_group)
        self._windows = Windows(groups if isinstance(groups, int) else len(groups), window, seed)
        self._seed, self._cached = seed, (-1, np.empty(0, dtype=np.int64), BatchSampler(batch, batch, seed))
        self._batches_W = np.array([self._window(w)[1].batches_per_epoch for w in range(len(self._windows))])
        self.batches_per_epoch = int(self._batches_W.sum())

    def rows(self, step: int, rank: int = 0, world: int = 1) -> np.ndarray:
        """As `BatchSampler.rows`."""
        epoch, index = divmod(step, self.batches_per_epoch)
        order_W = self._windows.order(epoch)
        ends_W = np.cumsum(self._batches_W[order_W])
        place = int(np.searchsorted(ends_W, index, side="right"))
        number = int(order_W[place])
        held, sampler = self._window(number)
        local = index - int(ends_W[place]) + sampler.batches_per_epoch
        return held[sampler.rows(epoch * sampler.batches_per_epoch + local, rank, world)]

    def _window(self, number: int) -> tuple[np.ndarray, BatchSampler]:
        """Rows of a window, and their own sampler."""
        if self._cached[0] != number:
            rows = self._windows.rows(number)
            groups = len(rows) if isinstance(self._groups, int) else self._groups[rows]
            sampler = BatchSampler(groups, self._given[0], derive_seed(self._seed, "window", number), self._given[1])
            self._cached = (number, rows, sampler)
        return self._cached[1:]
