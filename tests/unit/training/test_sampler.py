import numpy as np
import pyarrow as pa
import pytest

from cirray.core.errors import ConfigError
from cirray.training.sampler import BatchSampler, group_numbers, spread_groups

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
