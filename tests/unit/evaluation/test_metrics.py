import numpy as np
import pytest

from cirray.core.errors import DataError
from cirray.evaluation.measures import interval, measure
from cirray.evaluation.metrics import (
    NEVER,
    group_recall,
    hit_counts,
    recall_by,
    refuse_nan,
    spread,
    spread_of,
)
from cirray.evaluation.verdicts import row_verdict
from cirray.types import Query


def bootstrap_interval(hits_B, families=None, **settings):
    names = map(str, range(len(hits_B))) if families is None else families
    return interval(measure("R@1", hits_B), list(names), **settings)


def rank(scores, targets, removed=None):
    ids = [f"i{at}" for at in range(len(scores))]
    query = Query("q", "other" if removed is None else ids[removed], "text", tuple(ids[at] for at in targets))
    columns = {name: at for at, name in enumerate(ids)}
    rule = "keep" if removed is None else "remove"
    return row_verdict(query, np.asarray(scores, dtype=np.float32), columns, removed, rule).rank


def test_the_rank_counts_candidates_with_a_higher_score():
    assert rank([0.1, 0.9, 0.5, 0.7], [2]) == 2
    assert rank([0.1, 0.9, 0.5, 0.7], [1]) == 0


def test_a_constant_score_is_never_a_hit():
    ranks_B = [rank([0.3] * 20, [target]) for target in (0, 5, 19)]
    assert hit_counts(ranks_B, [1, 5, 10, 19]) == {1: 0, 5: 0, 10: 0, 19: 0}


def test_an_optimistic_count_would_have_called_the_constant_score_a_hit():
    """Negative control: counting only strictly better candidates gives 100 % here."""
    scores_N = np.full(20, 0.3)
    assert np.count_nonzero(scores_N > scores_N[0]) == 0


def test_the_target_stands_after_every_candidate_with_an_equal_score():
    assert rank([0.5, 0.5, 0.9, 0.5, 0.1], [1]) == 3


def test_a_removed_reference_does_not_stand_before_the_target():
    assert rank([0.9, 0.5, 0.1], [1]) == 1
    assert rank([0.9, 0.5, 0.1], [1], removed=0) == 0
    assert rank([0.5, 0.5, 0.1], [1], removed=0) == 0


def test_a_removed_reference_below_the_target_changes_nothing():
    assert rank([0.2, 0.5, 0.9], [1], removed=0) == rank([0.2, 0.5, 0.9], [1]) == 1


def test_with_several_targets_the_best_placed_one_counts_and_targets_do_not_push_each_other_down():
    assert rank([0.9, 0.8, 0.7, 0.6], [1, 2]) == 1
    assert rank([0.5, 0.5, 0.5, 0.4], [0, 1]) == 1
    assert rank([0.5, 0.5, 0.5, 0.4], [0, 0]) == 2


def test_a_query_whose_only_target_is_removed_can_never_be_hit():
    found = rank([0.9, 0.1], [0], removed=0)
    assert found == NEVER and hit_counts([found], [1, 10**9]) == {1: 0, 10**9: 0}


def test_a_removed_target_leaves_the_other_targets_in_play():
    assert rank([0.9, 0.8, 0.1], [0, 1], removed=0) == 0


def test_a_score_that_is_not_a_number_is_an_error_naming_the_query():
    scores_BN = np.zeros((3, 4), dtype=np.float32)
    scores_BN[1, 2] = np.nan
    with pytest.raises(DataError, match="Query 'q-2'"):
        refuse_nan(scores_BN, ["q-1", "q-2", "q-3"])


def test_minus_infinity_is_a_score():
    assert rank([-np.inf, 0.0, -np.inf], [0]) == 2


def test_hits_are_integers_and_recalls_their_fraction():
    found = group_recall(np.array([0, 4, 5, 10]), [1, 5, 10])
    assert found.hits == {1: 1, 5: 2, 10: 3} and all(type(value) is int for value in found.hits.values())
    assert found.recalls == {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75}


def test_recall_of_no_query_is_an_error():
    with pytest.raises(DataError, match="at least one query"):
        group_recall(np.array([], dtype=np.int64), [1])


def test_recall_by_edit_type_adds_up_to_the_whole():
    ranks_B, edits = np.array([0, 3, 0, 9, 0]), ["add", "add", "move", "move", ""]
    groups = recall_by(ranks_B, edits, [1])
    assert {name: group.recalls["R@1"] for name, group in groups.items()} == {"add": 0.5, "move": 0.5}
    assert sum(group.queries for group in groups.values()) == 4


def test_the_bootstrap_interval_holds_the_rate_and_shrinks_with_more_queries():
    rng = np.random.default_rng(0)
    few, many = rng.random(50) < 0.6, rng.random(2000) < 0.6
    low, high = bootstrap_interval(few)
    assert low < few.mean() < high and 0 <= low and high <= 1
    assert np.ptp(bootstrap_interval(many)) < np.ptp((low, high)) / 3


def test_the_bootstrap_interval_is_the_binomial_one_for_independent_queries():
    hits_B = np.arange(1000) % 2 == 0
    low, high = bootstrap_interval(hits_B, samples=4000)
    half = 1.96 * np.sqrt(0.25 / 1000)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=0.004)


def test_queries_of_one_reference_are_not_independent_evidence():
    hits_B, families = np.repeat(np.arange(50) % 2, 8), np.repeat(np.arange(50), 8).astype(str)
    assert np.ptp(bootstrap_interval(hits_B, families)) > 2 * np.ptp(bootstrap_interval(hits_B))


def test_the_bootstrap_repeats_with_its_seed():
    hits_B = np.arange(100) % 3 == 0
    assert (
        bootstrap_interval(hits_B, seed=4) == bootstrap_interval(hits_B, seed=4) != bootstrap_interval(hits_B, seed=5)
    )


def test_the_spread_over_seeds_is_the_sample_deviation_and_unknown_for_one_seed():
    assert spread([1.0, 2.0, 3.0]).deviation == pytest.approx(1.0)
    assert spread([0.4]).deviation is None and spread([0.4]).mean == 0.4
    with pytest.raises(DataError, match="at least one value"):
        spread([])
    with pytest.raises(DataError, match="NaN"):
        spread([0.1, float("nan")])


def test_the_spread_covers_metrics_that_every_run_has():
    runs = [{"R@1": 0.5, "R@5": 0.9}, {"R@1": 0.7}]
    assert {name: value.mean for name, value in spread_of(runs).items()} == {"R@1": pytest.approx(0.6)}
