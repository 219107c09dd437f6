import numpy as np
import pyarrow as pa
import pytest

from cirray.core.errors import ConfigError
from cirray.training.config import TrainingConfig
from cirray.training.sampler import BatchSampler, BlockSampler, group_numbers, make_sampler, spread_groups

GROUPS = np.arange(40) // 4


def numbers(names):
    return group_numbers(pa.chunked_array([names], pa.string()))


def test_the_rows_of_a_step_depend_on_seed_and_step_alone():
    one, other = BatchSampler(GROUPS, 8, seed=3), BatchSampler(GROUPS, 8, seed=3)
    forward = [one.rows(step).tolist() for step in range(12)]
    backward = [other.rows(step).tolist() for step in reversed(range(12))][::-1]
    assert forward == backward
    assert forward != [BatchSampler(GROUPS, 8, seed=4).rows(step).tolist() for step in range(12)]


def test_an_epoch_without_groups_visits_every_row_once():
    sampler = BatchSampler(40, 8, seed=0)
    epoch = np.concatenate([sampler.rows(step) for step in range(sampler.batches_per_epoch)])
    assert sampler.batches_per_epoch == 5 and sorted(epoch) == list(range(40))
    following = np.concatenate([sampler.rows(step) for step in range(5, 10)])
    assert sorted(following) == list(range(40)) and following.tolist() != epoch.tolist()


@pytest.mark.parametrize(("batch", "expected"), [(3, True), (4, True), (5, False)])
def test_auto_spreads_groups_where_there_are_enough(batch, expected):
    groups = numbers(["a", "a", "a", "b", "b", "", ""])
    assert spread_groups(groups, batch, "auto") == expected
    assert spread_groups(groups, batch, True) and not spread_groups(groups, batch, False)


def test_one_per_group_never_repeats_a_group_in_a_batch_and_still_visits_all():
    sampler = BatchSampler(GROUPS, 5, seed=0, one_per_group=True)
    assert sampler.batches_per_epoch == 8
    batches = [sampler.rows(step) for step in range(8)]
    assert all(len({GROUPS[row] for row in batch}) == 5 for batch in batches)
    assert sorted(np.concatenate(batches)) == list(range(40))
    free = BatchSampler(GROUPS, 5, seed=0)
    assert any(len({GROUPS[row] for row in free.rows(step)}) < 5 for step in range(8))


def test_rows_that_do_not_fill_a_batch_are_left_to_other_epochs():
    sampler = BatchSampler(GROUPS, 8, seed=0, one_per_group=True)
    assert sampler.batches_per_epoch == 4
    seen = {row for step in range(200) for row in sampler.rows(step)}
    assert seen == set(range(40))


def test_groups_of_different_sizes_are_visited_evenly_by_group():
    groups = ["big"] * 50 + [f"s{row}" for row in range(10)]
    sampler = BatchSampler(numbers(groups), 4, seed=0, one_per_group=True)
    batches = [[groups[row] for row in sampler.rows(step)] for step in range(100)]
    assert all(len(set(batch)) == 4 for batch in batches)


def test_rows_without_a_group_stand_alone():
    assert BatchSampler(numbers([""] * 8), 8, seed=0, one_per_group=True).batches_per_epoch == 1


def test_the_ranks_shares_make_the_global_batch():
    sampler = BatchSampler(GROUPS, 8, seed=0)
    for step in range(6):
        shares = [sampler.rows(step, rank, 4) for rank in range(4)]
        assert np.concatenate(shares).tolist() == sampler.rows(step).tolist()
        assert {len(share) for share in shares} == {2}


@pytest.mark.parametrize(("groups", "one"), [(GROUPS, True), (7, False), (numbers([]), True)])
def test_a_batch_that_cannot_be_filled_names_the_largest_that_can(groups, one):
    with pytest.raises(ConfigError, match="Use batch <="):
        BatchSampler(groups, 11, seed=0, one_per_group=one)


def test_every_window_takes_whole_blocks_from_all_over_and_mixes_all_their_rows():
    sampler = BlockSampler(10_240, 64, 0, one_per_group=False, window=2048)
    assert sampler.batches_per_epoch == 160
    orders = []
    for epoch in (0, 1):
        batches = [sampler.rows(step) for step in range(160 * epoch, 160 * epoch + 160)]
        assert sorted(np.concatenate(batches)) == list(range(10_240))
        windows = [np.stack(batches[at : at + 32]) // 1024 for at in range(0, 160, 32)]
        orders.append([tuple(np.unique(window)) for window in windows])
        for window, blocks in zip(windows, orders[-1], strict=True):
            assert len(blocks) == 2
            assert all(16 < (batch == blocks[0]).sum() < 48 for batch in window)
    assert orders[0] != orders[1] and sorted(orders[0]) == sorted(orders[1])
    assert any(second - first > 1 for first, second in orders[0])


@pytest.mark.parametrize("one", [False, True])
def test_the_rows_of_a_step_of_windows_depend_on_seed_and_step_alone(one):
    groups = np.random.default_rng(0).integers(0, 900, 5000)
    used, fresh = (BlockSampler(groups, 32, 3, one, 2048) for _ in range(2))
    steps = [*range(0, 400, 37), used.batches_per_epoch - 1, used.batches_per_epoch]
    forward = {step: used.rows(step).tolist() for step in steps}
    assert all(fresh.rows(step).tolist() == forward[step] for step in reversed(steps))
    assert any(BlockSampler(groups, 32, 4, one, 2048).rows(step).tolist() != forward[step] for step in steps)
    shares = [used.rows(5, rank, 4) for rank in range(4)]
    assert np.concatenate(shares).tolist() == used.rows(5).tolist()


def test_windows_repeat_no_group_in_a_batch_and_no_row_in_an_epoch_and_end_with_a_short_block():
    groups = np.arange(5000) // 4
    sampler = BlockSampler(groups, 32, 0, one_per_group=True, window=2048)
    batches = [sampler.rows(step) for step in range(sampler.batches_per_epoch)]
    assert all(len(np.unique(groups[batch])) == 32 for batch in batches)
    rows = np.concatenate(batches)
    assert len(np.unique(rows)) == len(rows) > 4500 and rows.max() < 5000


def test_stores_beyond_a_size_are_mixed_in_windows_and_smaller_ones_whole(monkeypatch):
    def made(rows, **fields):
        return type(make_sampler(np.arange(rows), TrainingConfig(batch=8, **fields)))

    assert made(4000) is made(4000, shuffle_rows=4000) is BatchSampler
    assert made(4000, shuffle_rows=2048) is BlockSampler
    monkeypatch.setattr("cirray.training.sampler.LARGE", 3000)
    assert made(4000) is BatchSampler  # a window holds as much
    monkeypatch.setattr("cirray.training.sampler._AUTO_WINDOW", 2048)
    assert made(4000) is BlockSampler and made(3000) is BatchSampler
    with pytest.raises(ConfigError, match="A batch of 3000 cannot be filled from 2"):
        BlockSampler(5000, 3000, 0, one_per_group=False, window=2048)
