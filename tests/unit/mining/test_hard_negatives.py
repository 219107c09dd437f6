import numpy as np

from cirray.mining import hard_negatives
from cirray.mining.hard_negatives import UNUSED, draw_hard, hard_lists

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(60, 6)).astype(np.float32)
IMAGES[7] = IMAGES[3] + 0.01
IMAGES /= np.linalg.norm(IMAGES, axis=1, keepdims=True)
REFERENCE, TARGET = np.arange(20) + 20, np.arange(20)
QUERIES = IMAGES[TARGET] + 0.3 * RNG.normal(size=(20, 6)).astype(np.float32)


def test_lists_hold_neither_target_nor_reference_nor_an_image_too_near_to_the_target():
    lists = hard_lists(QUERIES, IMAGES, REFERENCE, TARGET, (2, 50), 0.9)
    assert (lists != UNUSED).sum(1).min() > 10
    for row, names in enumerate(lists):
        found = names[names != UNUSED]
        assert TARGET[row] not in found and REFERENCE[row] not in found
        assert (IMAGES[found] @ IMAGES[TARGET[row]]).max() <= 0.9
    assert 7 not in lists[3] and 7 in hard_lists(QUERIES, IMAGES, REFERENCE, TARGET, (1, 50), 1.0)[3]


def test_lists_follow_the_ranks_of_the_queries_own_ranking():
    lists = hard_lists(QUERIES, IMAGES, REFERENCE, TARGET, (2, 6), 1.1, block=7)
    assert lists.shape == (20, 5)
    for row, names in enumerate(lists):
        order = np.argsort(-(IMAGES @ QUERIES[row]), kind="stable")[1:6]
        kept = [name for name in order if name not in (TARGET[row], REFERENCE[row])]
        assert names[names != UNUSED].tolist() == kept


def test_no_more_scores_than_allowed_are_ranked_at_once(monkeypatch):
    whole, ranked, argsort = hard_lists(QUERIES, IMAGES, REFERENCE, TARGET, (2, 50), 0.9), [], np.argsort
    monkeypatch.setattr(hard_negatives, "_SCORES", 3 * len(IMAGES) + 1)
    monkeypatch.setattr(np, "argsort", lambda values, **how: ranked.append(values.size) or argsort(values, **how))
    assert np.array_equal(hard_lists(QUERIES, IMAGES, REFERENCE, TARGET, (2, 50), 0.9), whole)
    assert len(ranked) == 7 and max(ranked) == 180


def test_draws_are_equal_for_one_seed_and_new_in_every_epoch():
    lists, rows = hard_lists(QUERIES, IMAGES, REFERENCE, TARGET, (2, 50), 0.9), np.arange(20)
    first = draw_hard(lists, rows, 5, seed=3, epoch=0)
    assert np.array_equal(first, draw_hard(lists, rows, 5, seed=3, epoch=0))
    assert np.array_equal(first[4:9], draw_hard(lists, rows[4:9], 5, seed=3, epoch=0))
    assert not np.array_equal(first, draw_hard(lists, rows, 5, seed=3, epoch=1))
    assert not np.array_equal(first, draw_hard(lists, rows, 5, seed=4, epoch=0))
    assert all(len(set(names)) == 5 and set(names) <= set(lists[row]) for row, names in enumerate(first))


def test_short_lists_leave_places_unused():
    lists = np.array([[4, UNUSED, UNUSED]])
    assert draw_hard(lists, np.array([0]), 2, seed=0, epoch=0).tolist() == [[4, UNUSED]]
