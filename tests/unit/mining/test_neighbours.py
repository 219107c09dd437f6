"""The blockwise search equals the full matrix with a full sort, whatever memory it is given."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cirray.features.store import FeatureInfo, FeatureStore
from cirray.mining import neighbours
from cirray.mining.config import WindowConfig
from cirray.mining.neighbours import Approximate, CentredVectors, Window, windows

TINY = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fixtures" / "tiny_pipeline.py")))
PLENTY = 2**28


def store_of(array):
    ids = [f"img-{n:04d}" for n in range(len(array))]
    return FeatureStore([np.asarray(array, np.float16)], ids, FeatureInfo("e", "t", array.shape[1:])), ids


def random_store(count, seed=0, shape=(3, 4)):
    return store_of(np.random.default_rng(seed).normal(size=(count, *shape)) + 2.0)


def same(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.reference == two.reference
        assert one.targets.tolist() == two.targets.tolist() and one.ranks.tolist() == two.ranks.tolist()
        assert one.scores == pytest.approx(two.scores, abs=1e-5)


def naive_windows(vectors, config):
    """The twin: the full matrix, a full sort for each reference."""
    every_ND = np.concatenate(list(vectors.blocks())).astype(np.float64)
    scores_NN = (every_ND @ every_ND.T).astype(np.float32)
    found = []
    for reference in range(len(vectors)):
        others = [
            (-float(score), index)
            for index, score in enumerate(scores_NN[reference])
            if index != reference and score <= config.max_score
        ]
        shares = config.quantiles and [int(share * len(others)) for share in config.quantiles]
        low, high = shares or (config.rank_low, config.rank_high)
        chosen = [(rank, -score, index) for rank, (score, index) in enumerate(sorted(others))][low:high]
        chosen = [item for item in chosen if item[1] >= config.min_score]
        ranks, scores, targets = (np.array([item[place] for item in chosen]) for place in range(3))
        found.append(Window(reference, targets.astype(np.int64), ranks.astype(np.int64), scores.astype(np.float32)))
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"rank_high": 3},
        {"rank_low": 5, "rank_high": 20},
        {"quantiles": (0.4, 0.8)},
        {"rank_high": 10, "max_score": 0.4, "min_score": 0.0},
        {"rank_high": 500},
        {"rank_high": 3, "representation": "mean"},
    ],
)
@pytest.mark.parametrize("memory", [PLENTY, 4 * 61 * 7, 2000])
def test_blocks_equal_the_naive_full_matrix(fields, memory):
    store, ids = random_store(61)
    config = WindowConfig(**fields)
    twin = naive_windows(CentredVectors(store, ids, config.representation, PLENTY), config)
    same(list(windows(CentredVectors(store, ids, config.representation, memory), config, memory)), twin)


def test_the_comparison_would_see_another_window():
    store, ids = random_store(61)
    vectors = CentredVectors(store, ids, "flat", PLENTY)
    with pytest.raises(AssertionError):
        same(
            list(windows(vectors, WindowConfig(rank_high=3), PLENTY)),
            naive_windows(vectors, WindowConfig(rank_low=1, rank_high=4)),
        )


def test_equal_cosines_are_ordered_by_index_also_at_the_cut():
    array = np.zeros((6, 1, 2))
    array[:, 0, 0] = [1, 1, 1, 1, -2, -2]
    store, ids = store_of(array)
    found = list(windows(CentredVectors(store, ids, "flat", PLENTY), WindowConfig(rank_high=2), PLENTY))
    assert [window.targets.tolist() for window in found[:4]] == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_near_duplicates_leave_the_list_before_ranks_are_counted():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(20, 2, 8))
    array[7] = array[3] * 1.001
    store, ids = store_of(array)
    vectors = CentredVectors(store, ids, "flat", PLENTY)
    open_list = list(windows(vectors, WindowConfig(rank_high=2), PLENTY))[3]
    closed = list(windows(vectors, WindowConfig(rank_high=1, max_score=0.98), PLENTY))[3]
    assert open_list.targets[0] == 7 and closed.targets.tolist() == [open_list.targets[1]]


def test_the_mean_over_all_images_is_taken_out():
    store, ids = random_store(40)
    vectors = CentredVectors(store, ids, "flat", PLENTY)
    raw = store.get(ids).astype(np.float64).reshape(40, -1)
    centred = raw - raw.mean(axis=0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    assert next(vectors.blocks()) == pytest.approx(expected, abs=1e-5)
    assert np.abs(expected - raw / np.linalg.norm(raw, axis=1, keepdims=True)).max() > 0.1


def test_a_constant_image_is_similar_to_nothing():
    array = np.ones((4, 1, 3))
    store, ids = store_of(array)
    found = list(windows(CentredVectors(store, ids, "flat", PLENTY), WindowConfig(min_score=0.1), PLENTY))
    assert all(len(window.targets) == 0 for window in found)


def tied_store():
    """Few distinct values and whole copies, so that many cosines are equal, and some are 1."""
    array = np.random.default_rng(3).integers(0, 3, size=(300, 1, 6)).astype(np.float32)
    array[40:90] = array[90:140]
    return store_of(array)


@pytest.mark.parametrize("made", [tied_store, lambda: random_store(300)])
@pytest.mark.parametrize(
    "fields",
    [{"rank_high": 3}, {"rank_low": 2, "rank_high": 9}, {"rank_high": 4, "max_score": 0.9},
     {"rank_high": 5, "max_score": 0.2, "min_score": -0.1}, {"rank_high": 2, "min_score": 0.95}],
)  # fmt: skip
@pytest.mark.parametrize("memory", [PLENTY, 20_000])
def test_windows_of_faiss_equal_the_full_matrix_also_among_equal_cosines_and_copies(made, fields, memory, monkeypatch):
    store, ids = made()
    config = WindowConfig(**fields)
    vectors = CentredVectors(store, ids, "flat", memory)
    found = list(windows(vectors, config, memory))
    same(found, naive_windows(vectors, config))
    some = [0, 41, 299]
    same(list(windows(vectors, config, memory, some)), [found[at] for at in some])
    monkeypatch.setattr(neighbours, "is_there", lambda: False)
    same(list(windows(vectors, config, memory)), found)


def test_inverted_lists_find_the_stated_share_of_the_windows():
    store, ids = random_store(1500, shape=(1, 8))
    vectors, config = CentredVectors(store, ids, "flat", PLENTY), WindowConfig(rank_high=5)
    lists = Approximate(vectors, config, PLENTY, 0.9)
    found, exact = (list(windows(vectors, config, PLENTY, None, which)) for which in (lists, None))
    shared = np.mean([len(set(a.targets) & set(b.targets)) / 5 for a, b in zip(found, exact, strict=True)])
    assert 1 < lists.probes < lists.lists.lists and lists.recall >= 0.9
    assert shared == pytest.approx(lists.recall, abs=0.03)
